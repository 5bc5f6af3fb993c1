"""Files as they are in the world: what is read of them, or one line that says why not.

Settings and data sets name files that somebody else wrote. `check` lets no pipe, device
or folder pass, so that nothing waits for ever; `parse_json` takes strict JSON alone;
`one_line` turns whatever a library raises into the one error that callers know.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import stat
import sys
from collections.abc import Iterator
from typing import Any

from fljax import bounds
from fljax.runtime import memory

AMOUNTS = (1e-9, 1e9)  # see `is_amount`

# Text of JSON takes up to so many times its length as objects of Python.
_OBJECTS = 4
_LENGTH = 300  # characters of a library's error that are shown

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def gist(error: BaseException) -> str:
    """Says in one line what a library's error says in one or more."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    lines = [line for line in str(error).splitlines() if line.strip()]
    lines = [*lines[:1], *(x for x in lines[1:] if x.startswith("Did you mean"))]
    text = " ".join(" ".join(lines).split())
    if isinstance(error, MemoryError):
        return text or "it takes more memory than there is"
    if not isinstance(error, ValueError | OSError | ImportError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."


@contextlib.contextmanager
def one_line(name: str, install: str = "") -> Iterator[None]:
    """Turns every error into a ValueError that opens with a name.

    Readers of images, archives, tables and prepared sets raise whatever their authors
    chose, some with pages of text: all that comes out of them is about the file.

    Args:
      name: of the source or file. A ValueError that opens with it stays as it is.
      install: the command that helps where a library is missing.

    Raises:
      ValueError: one line, with the error as its cause.
    """
    try:
        yield
    except Exception as error:
        text = gist(error)
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        fix = f": {install}" if install and isinstance(error, ImportError) else ""
        raise ValueError(f"{name}: {text}{fix}") from error


def check(name: str, path: str | os.PathLike[str]) -> None:
    """Checks that a path is a file that can be read whole.

    Args:
      name: opens the error.
      path: any; what stands behind symbolic links counts.

    Raises:
      ValueError: it is none, or a folder, a named pipe, a device, or larger than the
        memory.
    """
    where = pathlib.Path(path).absolute()
    if not os.path.isfile(path):  # unlike Path.is_file, false for impossible names
        there = f", but {kind}" if (kind := _kind(path)) else ""
        raise ValueError(f"{name}: there is no file {where}{there}; check the path")
    if not os.access(path, os.R_OK):
        raise ValueError(
            f"{name}: expected a file that may be read, got {where} without the "
            f"permission to read it"
        )
    memory.require(name, str(where), os.path.getsize(path), memory.of_host())


def _kind(path: str | os.PathLike[str]) -> str:
    """Names what is no file; empty: there is nothing."""
    if not os.path.exists(path):
        return ""
    mode = os.stat(path).st_mode
    return next((kind for test, kind in _KINDS if test(mode)), "something else")


def read_json(path: str | os.PathLike[str], name: str = "") -> Any:
    """Reads a file of JSON.

    Args:
      path: the file.
      name: opens every error; empty: the path.

    Returns:
      What it holds, as of `parse_json`.

    Raises:
      ValueError: there is no such file, or it holds something else.
    """
    name = name or str(path)
    with one_line(name):
        check(name, path)
        size = os.path.getsize(path)
        what = f"JSON of {size:,} bytes in {path}"
        memory.require(name, what, size * _OBJECTS, memory.of_host())
        content = pathlib.Path(path).read_bytes()
    where = "" if name == str(path) else f" in {path}"
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON, got: {error}{where}") from error


def parse_json(content: bytes) -> Any:
    """Parses strict JSON: no NaN, no infinity, no key twice.

    Args:
      content: in UTF-8, 16 or 32, with or without a mark of the byte order.

    Returns:
      As json.loads.

    Raises:
      ValueError: it is none; one line.
    """
    try:
        return json.loads(content, object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(gist(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict of pairs; of a key that comes twice, one would vanish unsaid."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        (twice, _), *_ = counts.most_common(1)
        raise ValueError(f"the key {bounds.shown(twice)} twice in an object")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant}, which is no number of JSON")


def is_number(value: Any) -> bool:
    """Tells whether a value of JSON is a number that a float can hold."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def is_amount(value: Any) -> bool:
    """Tells whether a value is a number from 1e-9 to 1e9.

    Relative figures, seconds, rates and watts are such; beyond, products of several of
    them leave what a float can hold, and a slip is likelier than such a device.
    """
    return is_number(value) and AMOUNTS[0] <= value <= AMOUNTS[1]
