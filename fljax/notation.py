"""Objects by name in a setting: `top_k:0.01` is what the table's `top_k` makes of 0.01.

Arguments follow the name, separated by colons, in the order of the factory's parameters
or with their names: `fedadam:0.1:tau=0.001`.
"""

from __future__ import annotations

import functools
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
      table: name -> factory; its parameters are annotated with int, float, bool or str.
      *first: arguments before those of the text, such as a federation.

    Returns:
      What the factory returns.

    Raises:
      ValueError: one line without the flag: what was expected and what came.
    """
    call = bind(text, table, len(first))
    try:
        return call(*first)
    except ValueError as error:
        if text.partition(":")[1] and not str(error).startswith("--"):
            raise ValueError(f"{text.partition(':')[0]}: {error}") from error
        raise


def bind(
    text: str, table: Mapping[str, Callable[..., T]], before: int = 0
) -> Callable[..., T]:
    """Reads a text as `make` does, and calls nothing yet.

    Args:
      text: as of `make`.
      table: as of `make`.
      before: how many arguments come before those of the text.

    Returns:
      (those arguments) -> what the factory returns.

    Raises:
      ValueError: as of `make`.
    """
    name, *given = text.split(":")
    if name not in table:
        raise ValueError(
            f"expected {', '.join(table)}, got {name!r}{bounds.nearest(name, table)}"
        )
    factory = table[name]
    signature, kinds = inspect.signature(factory), typing.get_type_hints(factory)
    expected = list(signature.parameters)[before:]
    usage = f"expected {':'.join([name, *map(str.upper, expected)])}, got {text!r}"
    arguments: dict[str, Any] = {}
    for place, item in enumerate(given):
        key, equals, value = item.partition("=")
        if not equals:
            key, value = "".join(expected[place : place + 1]), item
        if key not in expected or key in arguments:
            raise ValueError(usage)
        try:
            arguments[key] = _value(kinds.get(key, str), value)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from error
    try:
        signature.bind(*[None] * before, **arguments)
    except TypeError as error:
        raise ValueError(usage) from error
    return functools.partial(factory, **arguments)


def _value(kind: Any, text: str) -> Any:
    if kind is not bool:
        return bounds.read(kind, text)
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"
