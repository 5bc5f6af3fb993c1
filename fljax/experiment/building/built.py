"""An experiment that is ready to run, and what was given for it in Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fljax import types
from fljax.algorithms import base, centralized
from fljax.engine import federation
from fljax.experiment import config as configs
from fljax.nn import network
from fljax.runs import simulation

# Settings that nothing is built from: one experiment serves all their values.
FREE = ("algorithm", "policy", "rounds", "rollback")

Make = Callable[[federation.Federation], base.Algorithm]


class Own(NamedTuple):
    """What was given in Python, instead of by a name in the settings; None: it was not.

    Attributes:
      data: the data set.
      net: the network.
      algorithm: (federation) -> the algorithm.
    """

    data: types.Dataset | None = None
    net: network.Network | None = None
    algorithm: Make | None = None


_NOTHING = Own()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What is ready to run, and the settings that it was built from.

    Attributes:
      settings: of the run; may differ from `built_from` in what is `FREE` alone, as in
        `dataclasses.replace(ready, settings=...)`.
      built_from: the settings that the rest was built from.
      federation: the clients, shared by all algorithms of a comparison.
      evaluator: of the global network.
      facts: what the settings left open, for `config.json`.
      notes: a line for each thing about the data that the user should know.
      tokenizer: that made tokens of the data, if they are of a trained one.
      own: what was given in Python.
    """

    settings: configs.Config
    built_from: configs.Config
    federation: federation.Federation
    evaluator: simulation.Evaluator
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    tokenizer: bytes | None = None
    own: Own = _NOTHING

    def __post_init__(self) -> None:
        """Refuse settings that it was not built from."""
        configs.check(self.settings)
        for name, was, now in unlike(self.built_from, self.settings):
            raise ValueError(
                f"--{name}: expected {was!r}, which the experiment was built with, got "
                f"{now!r}; build it again"
            )


def unlike(one: configs.Config, two: configs.Config) -> list[tuple[str, Any, Any]]:
    """Lists in what settings differ of which something is built: name and both."""
    names = [n for n in sorted(configs.fields()) if n.partition(".")[0] not in FREE]
    values = [(n, configs.get(one, n), configs.get(two, n)) for n in names]
    return [(name, was, now) for name, was, now in values if was != now]


def name(ready: Experiment) -> str:
    """Gives the algorithm's name, to be shown."""
    if ready.own.algorithm is None:
        return ready.settings.algorithm
    return getattr(ready.own.algorithm, "__name__", "algorithm")


def seen_by(ready: Experiment) -> federation.Federation:
    """Gives the federation as the algorithm has it: centralized pools the clients."""
    named = ready.own.algorithm is None
    pooled = named and ready.settings.algorithm == "centralized"
    return centralized.pooled(ready.federation) if pooled else ready.federation
