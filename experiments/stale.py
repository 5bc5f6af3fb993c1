"""Old looks at devices: believe the last one, or forecast? The share that is late.

    python -m experiments.stale

plays rounds without training, on the digits with `small_convnet` and 100 devices of
the paper's tiers, and prints the table of docs/devices.md: four minutes of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from experiments import define, main
from fljax import experiment, policies
from fljax.algorithms import cocofl
from fljax.devices import clock, fleet
from fljax.engine import federation
from fljax.experiment import config as configs
from fljax.experiment import rehearsal
from fljax.experiment.comparing import text_tables
from fljax.policies import learning, windows

_FLEETS = define.number("fleets", 3, "How many, drawn by seeds from 0.", least=1)
_ROUNDS = define.number("played", 300, "Rounds of each.", least=1)

Make = Callable[[policies.Setting], policies.Policy]

POLICIES: dict[str, Make] = {
    "`random_maximal`, the last look": windows.BY_NAME["random_maximal"],
    "`online`, the last look": lambda of: learning.online(
        of.table, of.num_clients, of.bits
    ),
    "`online`, forecasts": lambda of: windows.BY_NAME["online"](
        of._replace(stale=True)
    ),
}
REFRESHES = (1, 10, 50, 200)
CHANGES = {
    "drift .3": {"drift": 0.3},
    "bandwidth .3": {"bandwidth": 0.3},
    "both": {"drift": 0.3, "bandwidth": 0.3},
}


class Played(NamedTuple):
    """What rounds without training come to.

    Attributes:
      late: share of the updates that miss the deadline.
      work: full steps a round of those that arrive.
    """

    late: float
    work: float


def play(fed: federation.Federation, make: Make, rounds: int) -> Played:
    """Plays rounds under a policy.

    Args:
      fed: the clients, with a deadline.
      make: of the policy.
      rounds: how many.
    """
    made = cocofl.cocofl(fed, policy=make)
    seen = rehearsal.rehearse(made, fed, rounds)
    return Played(seen.events.get("late", 0.0) / seen.over, seen.steps)


def federations(
    changes: fleet.Changes, seeds: Iterable[int]
) -> Iterable[federation.Federation]:
    """Builds the clients of each seed, whose devices change so."""
    for seed in seeds:
        settings = configs.Config(
            changes=changes, clock=clock.Clock(deadline=1.0), seed=seed
        )
        yield experiment.build(settings).federation


def table(seeds: Iterable[int], rounds: int) -> list[str]:
    """Writes the table, a line of Markdown each."""
    seeds = list(seeds)
    titles = [f"{refresh} round{'s' * (refresh > 1)}" for refresh in REFRESHES]
    rows = [["devices change by", "policy goes by", *titles]]
    for name, given in CHANGES.items():
        cells: dict[str, list[str]] = {policy: [] for policy in POLICIES}
        for refresh in REFRESHES:
            changes = fleet.Changes(refresh=refresh, **given)
            feds = list(federations(changes, seeds))
            for policy, make in POLICIES.items():
                played = [play(fed, make, rounds) for fed in feds]
                late, work = np.mean(played, axis=0)
                cells[policy].append(f"{late:.1%} ({work:.1f})")
        for policy, row in cells.items():
            rows.append([name, policy, *row])
    return text_tables.markdown(rows).splitlines()


def _main() -> None:
    print(*table(range(_FLEETS.value), _ROUNDS.value), sep="\n")


if __name__ == "__main__":
    main.run(_main)
