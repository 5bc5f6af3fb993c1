"""How curves look, the same in every picture: colors, lines and markers of runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Style(NamedTuple):
    """A color, and a line and a marker as matplotlib names them."""

    color: str
    line: str
    marker: str


# Okabe and Ito's colors for every kind of color vision (without the yellow, too pale
# for a line); line styles and markers tell them apart in grey.
STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", "--", "s"),
    Style("#009E73", "-.", "^"),
    Style("#CC79A7", ":", "D"),
    Style("#56B4E9", "--", "v"),
    Style("#E69F00", "-.", "P"),
    Style("#000000", ":", "x"),
    Style("#7F7F7F", "-", "*"),
)
# An algorithm looks the same in every figure; others take the free styles in turn.
_FIXED = (
    "cocofl",
    "fedavg",
    "heterofl",
    "fjord",
    "fedprox",
    "fedavgdrop",
    "centralized",
    "fedrolex",
)


def _every() -> Iterator[Style]:
    """Gives the styles, then their colors with other lines and markers, for ever."""
    number = len(STYLES)
    for turn in itertools.count():
        for i, style in enumerate(STYLES):
            line, marker = (STYLES[(i + k * turn) % number] for k in (1, 3))
            yield Style(style.color, line.line, marker.marker)


def of(names: Iterable[str]) -> dict[str, Style]:
    """Gives every algorithm its style, the known ones always the same."""
    fixed = dict(zip(_FIXED, STYLES, strict=True))
    keys = {name: name.lower().replace("_", "").replace("-", "") for name in names}
    taken = {fixed[key] for key in keys.values() if key in fixed}
    others = (style for style in _every() if style not in taken)
    return {
        name: fixed[key] if key in fixed else next(others) for name, key in keys.items()
    }
