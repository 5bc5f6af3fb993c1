"""What the fields of settings may be: declared beside each, checked in one place.

A field without bounds is held to the type of its default alone. Bounds are what makes
sense with room to spare; what a machine can hold is another question (`memory`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

MOST = 2**31 - 1  # of whole numbers: what counts rounds and clients has 32 bits
_REPR = reprlib.Repr()  # of values in errors
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A range of numbers; what is not a number is in none."""

    least: float = 0
    most: float = MOST
    above: bool = False  # not `least` itself
    below: bool = False  # not `most` itself
    off: bool = False  # or 0, which turns it off

    def __contains__(self, value: float) -> bool:
        """Tell whether a value is a number in the range."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        if self.off and value == 0:
            return True
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        """Say it in words, such as "from 1 to 10"."""
        low = f"{'above' if self.above else 'from'} {_number(self.least)}"
        high = _number(self.most)
        if self.below:
            return f"{low}, below {high}"
        return f"{low}, up to {high}" if self.above else f"{low} to {high}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def field(
    default: Any,
    text: str = "",
    *,
    kind: Any = None,
    each: type | None = None,
    choices: Iterable[str] = (),
    within: Bounds | None = None,
    **bounds: Any,
) -> Any:
    """Declare a field of a dataclass of settings.

    Args:
      default: of the field; None needs a `kind` and stays allowed.
      text: for users.
      kind: str, bool, int, float, tuple or a section, a dataclass of settings; the
        default's type if None.
      each: type of the entries of a tuple.
      choices: the texts that it may be; empty: any.
      within: bounds of a number, or of each of a tuple; None and no others: it may be
        what it likes.
      **bounds: instead, the fields of `Bounds`.

    Returns:
      The field.
    """
    about: dict[str, Any] = {"help": text, "kind": kind or type(default)}
    about |= {"each": each, "choices": tuple(choices)}
    about["bounds"] = Bounds(**bounds) if bounds else within
    return dataclasses.field(default=default, metadata=about)


def of(settings: Any, name: str) -> Bounds:
    """Give the bounds of a field of a dataclass, for another one that passes it on."""
    (found,) = [f for f in dataclasses.fields(settings) if f.name == name]
    return found.metadata["bounds"]


def kind(field: dataclasses.Field) -> type:
    """Give the type of what a field holds."""
    if "kind" in field.metadata:
        return field.metadata["kind"]
    untold = field.default is None or field.default is dataclasses.MISSING
    return object if untold else type(field.default)


def words(kind: Any, within: Bounds | None, each: type | None = None) -> str:
    """Say what a value may be, such as "a whole number from 1 to 10"."""
    if each in _TYPES:
        plural = "whole numbers" if each is int else "numbers"
        return plural if within is None else f"{plural} {within}"
    if each is not None:
        return f"a tuple of {each.__name__}"
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    if dataclasses.is_dataclass(kind):
        return f"a {getattr(kind, '__name__', kind)}"
    of = kinds.get(kind, "a text")
    return of if within is None else f"{'0 or ' * within.off}{of} {within}"


def wanted(field: dataclasses.Field) -> str:
    """Say in words what a field may be."""
    about = field.metadata
    if about.get("choices"):
        return ", ".join(about["choices"])
    return words(kind(field), about.get("bounds"), about.get("each"))


def nearest(value: Any, choices: Iterable[str]) -> str:
    """Say which of the choices a wrong one looks like, to end an error with."""
    text = value if isinstance(value, str) else ""
    close = difflib.get_close_matches(text, list(choices), 1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


_TYPES: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}


def holds(field: dataclasses.Field, value: Any) -> bool:
    """Tell whether a value has the type of a field and lies within its bounds."""
    if value is None:
        return field.default is None
    within, each = field.metadata.get("bounds"), field.metadata.get("each")
    if each is not None and isinstance(value, tuple):
        return all(_is(each, v, within) for v in value)
    choices = field.metadata.get("choices")
    right = _is(kind(field), value, within)
    return right and (not choices or value in choices)


def _is(kind: Any, value: Any, within: Bounds | None) -> bool:
    if not isinstance(value, _TYPES.get(kind, kind)):
        return False
    if kind in _TYPES:
        return value in within if within else not isinstance(value, bool)
    return True


def check(settings: Any, naming: Callable[[str], str] = str) -> None:
    """Check all fields of a dataclass of settings.

    Args:
      settings: an instance.
      naming: (name of a field) -> how its error calls it.

    Raises:
      ValueError: the first field that is of another type, out of its bounds or none of
        its choices.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not holds(field, value):
            near = nearest(value, field.metadata.get("choices", ()))
            raise ValueError(
                f"{naming(field.name)}: expected {wanted(field)}, got "
                f"{shown(value)}{near}"
            )


def shown(value: Any) -> str:
    """Write a value into an error: in one line that is not too long, however deep.

    >>> shown({"a": [[1]] * 100})
    "{'a': [[1], [1], [1], [1], [1], [1], ...]}"
    """
    try:
        return " ".join(_REPR.repr(value).split())
    except ValueError:  # Python writes no number of thousands of digits
        if isinstance(value, int):
            return f"a number of {value.bit_length()} bits"
        return f"a {type(value).__name__} of huge numbers"


def gist(error: Exception) -> str:
    """Write what an error of somebody else's says in one line that is not too long.

    >>> gist(TypeError("no  such\\nthing"))
    'no such thing'
    """
    return " ".join(str(error).split())[:300]


def read(kind: type, text: str) -> Any:
    """Read a number as people write it: 10, 1e3, -.5, 1_000.

    Args:
      kind: int or float; a text is given back as it is.
      text: of the number.

    Returns:
      The number.

    Raises:
      ValueError: it is none; with what was expected.
    """
    if kind not in _TYPES:
        return text
    try:
        text.encode("ascii")  # other scripts' digits look like what they are not
        try:
            return kind(text)
        except ValueError:  # 1e3 is a whole number, too
            number = float(text)
            if not number.is_integer() or math.isinf(number):
                raise
            return int(number)
    except ValueError:
        words = "whole number such as 10" if kind is int else "number such as 0.1"
        raise ValueError(f"expected a {words}, got {shown(text)}") from None
