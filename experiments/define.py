"""Defines flags whose errors say what was expected; absl's own tell Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags

from fljax import bounds

flags.disclaim_key_flags()  # `--help` lists a flag with the module that wants it


class _Number(flags.ArgumentParser):
    """Reads a number within bounds."""

    def __init__(self, kind: type, within: bounds.Bounds | None) -> None:
        """Keep what numbers are read."""
        self._kind, self._within = kind, within
        self.syntactic_help = bounds.words(kind, within)

    def parse(self, argument: Any) -> Any:
        """Read a number; a default is one already."""
        number = argument
        if isinstance(argument, str):
            number = bounds.read(self._kind, argument)
        if self._within is not None and number not in self._within:
            raise ValueError(
                f"expected {self.syntactic_help}, got {bounds.shown(number)}"
            )
        return number

    def flag_type(self) -> str:
        """Name the type, for `--help`."""
        return self._kind.__name__


class _Numbers(flags.ArgumentParser):
    """Reads a tuple of numbers within bounds, comma separated."""

    def __init__(self, each: type, within: bounds.Bounds | None) -> None:
        """Keep what numbers are read."""
        self._number = _Number(each, within)
        self.syntactic_help = bounds.words(tuple, within, each) + ", comma separated"

    def parse(self, argument: Any) -> tuple:
        """Read them; a default is a tuple already."""
        parts = argument
        if isinstance(argument, str):
            parts = argument.split(",") if argument.strip() else ()
        return tuple(self._number.parse(part) for part in parts)


class _Choice(flags.ArgumentParser):
    """Reads one of some names."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        """Keep the names."""
        self._choices = choices

    def parse(self, argument: Any) -> str:
        """Read a name."""
        if argument not in self._choices:
            raise ValueError(
                f"expected {', '.join(self._choices)}, got {argument!r}"
                f"{bounds.nearest(argument, self._choices)}"
            )
        return argument


class _Other(flags.ArgumentParser):
    """Reads what a function reads."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        """Keep the function."""
        self._read = read

    def parse(self, argument: Any) -> Any:
        """Read a text; a default is read already."""
        return self._read(argument) if isinstance(argument, str) else argument


class _List(flags.ArgumentSerializer):
    """Writes a tuple as it is read."""

    def serialize(self, value: Any) -> str:
        """Write it."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Boolean(flags.BooleanParser):
    """Reads true or false."""

    def parse(self, argument: Any) -> bool:
        """Read it."""
        try:
            return super().parse(argument)
        except (TypeError, ValueError):
            raise ValueError(
                f"expected true or false, got {bounds.shown(argument)}"
            ) from None


def number(name: str, default: float, text: str, **limits: Any) -> flags.FlagHolder:
    """Define a flag for a number; a whole one if the default is.

    Args:
      name: of the flag.
      default: its value where it is not given.
      text: help.
      **limits: fields of `bounds.Bounds`.

    Returns:
      What holds its value.
    """
    return of_field(name, bounds.field(default, text, **limits))


def boolean(name: str, default: bool, text: str) -> flags.FlagHolder:
    """Define a flag for true or false; arguments as of `number`."""
    return of_field(name, bounds.field(default, text))


def of_field(
    name: str, field: Any, read: Callable[[str], Any] | None = None
) -> flags.FlagHolder:
    """Define a flag for a field that `bounds.field` has declared.

    A later definition takes the place of an earlier one: two command lines may be in
    one process, as in tests.

    Args:
      name: of the flag.
      field: that it is for.
      read: (text) -> value, instead of what the field's type says.

    Returns:
      What holds its value.
    """
    kind, default, text = bounds.kind(field), field.default, field.metadata["help"]
    flag: Any
    if kind is bool:
        flag = flags.BooleanFlag(name, default, text, allow_override=True)
        flag.parser = _Boolean()
    else:
        parser = _parser(field) if read is None else _Other(read)
        flag = flags.Flag(parser, _List(), name, default, text, allow_override=True)
    return flags.DEFINE_flag(flag)


def _parser(field: Any) -> Any:
    kind, about = bounds.kind(field), field.metadata
    if about["each"] is not None:
        return _Numbers(about["each"], about["bounds"])
    if about["choices"]:
        return _Choice(about["choices"])
    return flags.ArgumentParser() if kind is str else _Number(kind, about["bounds"])
