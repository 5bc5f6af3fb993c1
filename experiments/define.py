"""Defines flags whose errors say what was expected; absl's own tell Python's."""

from __future__ import annotations

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


def of_field(name: str, field: Any) -> flags.FlagHolder:
    """Define a flag for a field that `bounds.field` has declared.

    A later definition takes the place of an earlier one: two command lines may be in
    one process, as in tests.
    """
    kind, default, text = bounds.kind(field), field.default, field.metadata["help"]
    flag: Any
    if kind is bool:
        flag = flags.BooleanFlag(name, default, text, allow_override=True)
        flag.parser = _Boolean()
    else:
        parser: Any = flags.ArgumentParser()
        if kind is not str:
            parser = _Number(kind, field.metadata["bounds"])
        serializer: Any = flags.ArgumentSerializer()
        flag = flags.Flag(parser, serializer, name, default, text, allow_override=True)
    return flags.DEFINE_flag(flag)
