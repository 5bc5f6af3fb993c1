"""What a sweep searches: fields of the configuration and what they may be.

    lr = 0.001..1 log          a range, even on the logarithm
    momentum = 0..0.9          a range
    local_epochs = 1..5        of whole numbers where the field is one
    batch_size = 8 | 16 | 32   one of some values, each as its flag takes it
    alpha = 0.1..10 log in 5   five values over a range; a grid needs them

A line of a file each, in which # begins a comment; or each in a flag of its own.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds
from fljax.experiment import config as configs

Parse = Callable[[str, str], Any]  # name of a field and a text -> its value

_RANGE = re.compile(r"(\S+?)\.\.(\S+?)(\s+log)?(\s+in\s+(\d+))?")
_USAGE = "NAME=LOW..HIGH, LOW..HIGH log, either with in N, or A | B | C"
_MOST = 1000  # values of a field in a grid


class Range(NamedTuple):
    """Numbers from low to high, both included.

    Attributes:
      low: the least.
      high: the most.
      log: even on the logarithm.
      whole: whole numbers alone.
    """

    low: float
    high: float
    log: bool
    whole: bool


class Choices(NamedTuple):
    """Texts as flags take them."""

    texts: tuple[str, ...]


Space = Mapping[str, Range | Choices]


def read(given: Sequence[str], parse: Parse) -> Space:
    """Reads a space from files and entries.

    Args:
      given: paths of files, or entries such as `lr=0.01..1 log`.
      parse: reads the value of a field; raises ValueError.

    Returns:
      What each field may be, in order.

    Raises:
      ValueError: one line: an entry is not as above, its field is none, or its values
        are none of the field's.
    """
    entries = [entry for text in given for entry in _entries(text)]
    if not entries:
        raise ValueError(f"--space: expected {_USAGE}, or a file of such, got nothing")
    space: dict[str, Range | Choices] = {}
    for entry in entries:
        name, _, text = (part.strip() for part in entry.partition("="))
        if name not in configs.fields() or name == "seed":
            raise ValueError(
                f"--space: expected a field of the configuration other than the seed, "
                f"got {name!r}{bounds.nearest(name, configs.fields())}"
            )
        if name in space:
            raise ValueError(f"--space: expected {name} once, got it twice")
        with configs.naming(f"space: {name}"):
            space[name] = _values(name, text, parse)
    return space


def _entries(text: str) -> list[str]:
    path = pathlib.Path(text)
    if "=" in text and not path.is_file():
        return [text]
    with configs.naming("space"):
        if not path.is_file():
            raise ValueError(f"expected {_USAGE}, or a file of such, got {text!r}")
        lines = path.read_text().splitlines()
    return [line for raw in lines if (line := raw.partition("#")[0].strip())]


def _values(name: str, text: str, parse: Parse) -> Range | Choices:
    kind = bounds.kind(configs.fields()[name])
    found = _RANGE.fullmatch(text)
    if found is None or "|" in text:
        texts = tuple(part.strip() for part in text.split("|"))
        if not text or len(set(texts)) < len(texts):
            raise ValueError(f"expected {_USAGE}, got {text!r}")
        for one in texts:
            parse(name, one)
        return Choices(texts)
    if kind not in (int, float):
        raise ValueError(f"expected A | B | C, since it is no number, got {text!r}")
    low, high, log, _, points = found.groups()
    made = Range(parse(name, low), parse(name, high), bool(log), kind is int)
    if not made.low < made.high or (made.log and made.low <= 0):
        raise ValueError(
            f"expected LOW below HIGH{', both above 0' * made.log}, got {text!r}"
        )
    if points is None:
        return made
    if not 2 <= int(points) <= _MOST:
        raise ValueError(f"expected in 2 to in {_MOST}, got {text!r}")
    return Choices(_spread(made, int(points)))


def grid(space: Space) -> dict[str, Choices]:
    """Gives a space of choices alone, which a grid takes all combinations of.

    Raises:
      ValueError: a range has no end of values.
    """
    values = {}
    for name, of in space.items():
        if isinstance(of, Choices):
            values[name] = of
            continue
        count = int(of.high - of.low) + 1
        if not of.whole or count > _MOST:
            raise ValueError(
                f"--space: {name}: expected {of.low:g}..{of.high:g} in N for a grid, "
                f"which needs to know how many values to take, got no N"
            )
        values[name] = Choices(_spread(of._replace(log=False), count))
    return values


def _spread(of: Range, points: int) -> tuple[str, ...]:
    """Takes values evenly from a range."""
    space = np.geomspace if of.log else np.linspace
    values = [float(f"{x:.6g}") for x in space(of.low, of.high, points)]
    if of.whole:
        return tuple(str(x) for x in dict.fromkeys(map(round, values)))
    return tuple(map(str, values))
