"""Texts with labels, a JSON object a line.

{"text": "...", "label": 1, "split": "train", "user": "..."}; split and user are
optional, but then for all lines. Labels are integers from 0, or names, numbered in
sorted order. Empty lines are passed over.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from fljax import bounds
from fljax.data import progress, sources
from fljax.runtime import reading

EXPECTED = '{"text": "...", "label": 0, "split": "train" or "test"}'
FIELDS = {"text": (str,), "label": (int, str), "split": (str,), "user": (int, str)}


def read(
    name: str,
    path: pathlib.Path,
    watch: progress.Watch = progress.ignore,
    labelled: bool = True,
) -> dict[str, np.ndarray]:
    """Read the file.

    Args:
      name: opens every error.
      path: the file.
      watch: is told of the progress, in bytes.
      labelled: whether labels are wanted; else they may be missing, and are 0.

    Returns:
      x_train and x_test (texts, arrays of objects), y_train and y_test, and with users
      users and users_test; without splits all is training data.

    Raises:
      ValueError: there is no file, or a line is not as above; names the line.
    """
    reading.check(name, path)
    lines: list[dict[str, Any]] = []
    size, done = path.stat().st_size, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                lines.append(_line(name, number, line, lines, labelled))
            done += len(line)
            watch(f"reading {name} (bytes)", done, size)
    if not lines:
        raise ValueError(f"{name}: expected lines such as {EXPECTED}, got none")
    split = np.array([line.get("split", "train") for line in lines])
    y = _labels([line["label"] if labelled else 0 for line in lines])
    columns = {"x": _texts(lines), "y": y}
    arrays = {
        f"{key}_{part}": column[split == part]
        for key, column in columns.items()
        for part in ("train", "test")
    }
    if "user" in lines[0]:
        users = _numbered([str(line["user"]) for line in lines])
        arrays["users"] = users[split == "train"]
        arrays["users_test"] = users[split == "test"]
    return arrays


def _line(
    name: str, number: int, line: bytes, before: list, labelled: bool
) -> dict[str, Any]:
    """Parses a line and checks it, also against the first one."""
    try:
        value = reading.parse_json(line)
    except ValueError as error:
        raise _refuse(name, number, f"{_short(line)} ({error})") from None
    first = {"text", "label"} if labelled else {"text"}
    wanted = set(before[0]) if before else first
    if not isinstance(value, dict) or not wanted <= value.keys():
        raise _refuse(name, number, _short(line))
    fields = {key: value[key] for key in FIELDS if key in value}
    if before and fields.keys() != wanted:
        raise _refuse(name, number, f"fields that line 1 has not: {_short(line)}")
    for key, field in fields.items():
        too_long = key == "label" and isinstance(field, int) and abs(field) >= 2**31
        if type(field) not in FIELDS[key] or too_long:
            raise _refuse(name, number, f"{key} {bounds.shown(field)}")
    if fields.get("split", "train") not in ("train", "test"):
        raise _refuse(name, number, f"split {bounds.shown(fields['split'])}")
    if before and type(before[0].get("label")) is not type(fields.get("label")):
        other = bounds.shown(fields["label"])
        raise _refuse(name, number, f"label {other} of another type")
    if not _is_unicode(fields["text"]):
        raise _refuse(
            name, number, f"half a character in {bounds.shown(value['text'])}"
        )
    return fields


def _texts(lines: list[dict[str, Any]]) -> np.ndarray:
    return sources.texts([line["text"] for line in lines])


def _labels(labels: list) -> np.ndarray:
    if isinstance(labels[0], int):
        return np.array(labels)
    return _numbered(labels)


def _numbered(names: list[str]) -> np.ndarray:
    """Numbers names from 0 in sorted order."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names])


def _is_unicode(text: str) -> bool:
    """Tells whether a text is one; JSON may hold halves of pairs, such as "\\ud800"."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _short(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _refuse(name: str, number: int, got: str) -> ValueError:
    return ValueError(f"{name}: expected {EXPECTED} in line {number}, got {got}")
