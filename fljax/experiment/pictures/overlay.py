"""Which runs belong together: what differs between their settings, seeds as one.

Runs that differ in nothing but their seeds are one curve with a band.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fljax.runs import writers

SEED = "seed"
_MOST = 3  # settings that a name spells out
# What may have been given in Python: only what ran tells of it.
_GIVEN = ("algorithm", "network", "dataset", "task")

Settings = Mapping[str, Any]  # setting, "section.name" of a section's -> value


def settings(described: writers.Described) -> dict[str, Any]:
    """Gives what somebody chose for a run, by the names of flags.

    What follows from it, such as hashes of the data, is left out.

    Args:
      described: what a run folder says of its run.
    """
    config = described.config
    if not described.settings:
        flat = writers.flat(config, ".")
        return {k: v for k, v in flat.items() if not k.endswith("_sha256")}
    given = {name: config[name] for name in _GIVEN if name in config}
    parts = {k: v for k, v in config.items() if k.startswith("parts.")}
    return writers.flat({**described.settings, **given, **parts}, ".")


def text(value: Any) -> str:
    """Writes a value as a flag has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(v, dict | list) for v in value):
        return ",".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def differing(runs: Sequence[Settings]) -> list[str]:
    """Names the settings that are not the same in all runs, in their own order."""
    names = dict.fromkeys(name for run in runs for name in run)
    return [name for name in names if len({_key(run, name) for run in runs}) > 1]


def _key(run: Settings, name: str) -> str:
    return repr(run[name]) if name in run else "absent"


def groups(runs: Mapping[str, Settings]) -> dict[str, list[str]]:
    """Puts runs together that differ in their seeds alone.

    Args:
      runs: by the paths of their folders.

    Returns:
      A name for each group -> its runs. It is the part of the path that they share,
      where that tells the groups apart, else what differs.
    """
    together: dict[frozenset, list[str]] = {}
    for path, run in runs.items():
        rest = frozenset((name, _key(run, name)) for name in run if name != SEED)
        together.setdefault(rest, []).append(path)
    members = list(together.values())
    shared = [_shared(paths) for paths in members]
    firsts = [runs[paths[0]] for paths in members]
    different = [name for name in differing(firsts) if name != SEED]
    named: dict[str, list[str]] = {}
    for paths, path, run in zip(members, shared, firsts, strict=True):
        spelled = [f"{n}={text(run[n])}" for n in different[:_MOST] if n in run]
        alone = bool(path) and shared.count(path) == 1
        name = path if alone else " ".join(spelled) or paths[0]
        while name in named:
            name += "'"
        named[name] = paths
    return named


def _shared(paths: Sequence[str]) -> str:
    """Gives the path that runs share, but for their own folders where several do."""
    if len(paths) == 1:
        return paths[0]
    common = os.path.commonpath(paths)
    return "" if common == "." else common
