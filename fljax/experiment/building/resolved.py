"""What a run folder holds of an experiment: settings, facts, and pieces by name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from fljax import bounds
from fljax.algorithms import base
from fljax.experiment import facts
from fljax.experiment.building import built, learning


def resolved(
    ready: built.Experiment, made: base.Algorithm | None = None
) -> dict[str, Any]:
    """Gives the settings as plain data, with what they left open.

    Args:
      ready: the experiment.
      made: its algorithm, if that is made already.

    Returns:
      What a run folder holds of the run.

    Raises:
      ValueError: an algorithm of the user's own, or what it is made of, has no name.
    """
    named = {**dataclasses.asdict(ready.settings), **ready.facts}
    if ready.own.algorithm is not None:
        named["algorithm"] = f"{_full_name(ready.own.algorithm)} ({facts.OWN})"
    parts = (made or learning.algorithm(ready)).parts
    return named | {f"parts.{part}": _part(part, parts[part]) for part in parts}


def _part(name: str, part: Any) -> str:
    """Names a part of an algorithm.

    Raises:
      ValueError: its repr is of this process alone, or that of others as well.
    """
    if callable(part) and not dataclasses.is_dataclass(part):
        return _full_name(part)
    if re.search(r" at 0x[0-9a-f]+|<lambda>|<locals>", repr(part)):
        raise ValueError(
            f"{name}: expected one that a run folder can tell from others, got "
            f"{bounds.shown(part)}; define it outside of functions, as a frozen "
            f"dataclass of numbers, texts and dataclasses"
        )
    return repr(part)


def _full_name(make: built.Make) -> str:
    """Names a function of the user's by its module and its name there.

    Raises:
      ValueError: it has none, so that a run folder could not tell it from another.
    """
    module = getattr(make, "__module__", None)
    found = getattr(make, "__qualname__", "")
    if not module or not found or "<" in found:
        raise ValueError(
            f"algorithm: expected a function with a name of its own for a run folder, "
            f"got {found or type(make).__name__!r}; define it with def outside of "
            f"other functions, or give it a __qualname__"
        )
    return f"{module}.{found}"
