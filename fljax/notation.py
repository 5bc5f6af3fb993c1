"""Objects by name in a setting: `top_k:0.01` is what the table's `top_k` makes of 0.01.

Arguments follow the name, separated by colons, in the order of the factory's parameters
or with their names: `fedadam:0.1:tau=0.001`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fljax import bounds

T = TypeVar("T")


def make(text: str, table: Mapping[str, Callable[..., T]], *first: Any) -> T:
    """Makes what a text such as `trimmed_mean:0.2` names.

    Args:
      text: a name of the table, and the factory's arguments.
      table: name -> factory; its parameters are annotated with int, float or str.
      *first: arguments before those of the text, such as a federation.

    Returns:
      What the factory returns.

    Raises:
      ValueError: one line without the flag: what was expected and what came.
    """
    name, *given = text.split(":")
    if name not in table:
        raise ValueError(
            f"expected {', '.join(table)}, got {name!r}{bounds.nearest(name, table)}"
        )
    factory = table[name]
    kinds = typing.get_type_hints(factory)
    expected = list(inspect.signature(factory).parameters)[len(first) :]
    arguments: dict[str, Any] = {}
    for place, item in enumerate(given):
        key, equals, value = item.partition("=")
        if not equals:
            if place >= len(expected):
                raise ValueError(_asked(name, expected, text))
            key, value = expected[place], item
        if key not in expected or key in arguments:
            raise ValueError(_asked(name, expected, text))
        try:
            arguments[key] = bounds.read(kinds.get(key, str), value)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from error
    try:
        bound = inspect.signature(factory).bind(*first, **arguments)
    except TypeError as error:
        raise ValueError(_asked(name, expected, text)) from error
    try:
        return factory(*bound.args, **bound.kwargs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _asked(name: str, parameters: list[str], text: str) -> str:
    """Says how an object is written."""
    usage = ":".join([name, *map(str.upper, parameters)])
    return f"expected {usage}, got {text!r}"
