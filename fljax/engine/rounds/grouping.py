"""The groups of a round: who began at the same time and shares a program.

Legend: A who arrive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax.engine import client, cohort, federation, program, schedule
from fljax.engine.rounds import setting
from fljax.nn import narrowing
from fljax.runtime import mesh


class Members(NamedTuple):
    """Those of a round who began at the same time and share a program.

    Attributes:
      age: rounds since they began.
      kind: of the program that they share.
      keeper: who keeps the channels of a narrower network, `narrowing.NOBODY` if all
        keep the same.
      group: which clients they are, on the devices.
    """

    age: int
    kind: program.Program
    keeper: int
    group: cohort.Group


def programs(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> list[program.Program]:
    """Says what the program of each client is made for, of those who arrive."""
    kinds, most = federation.programs(rounds.fed, assignment.plans), rounds.rooms.max()
    rooms = rounds.rooms[assignment.ids].tolist()
    # Once for each of a few: a round has thousands of clients.
    pairs = list(zip(kinds, rooms, strict=True))
    held = {(kind, room): kind.holding(room, room < most) for kind, room in set(pairs)}
    return [held[pair] for pair in pairs]


def static(rounds: setting.Rounds, kind: program.Program) -> client.Static:
    """Says what the compiled program of clients depends on."""
    fed, (net, _) = rounds.fed, rounds.fed.model.at(kind.width)
    net, seams = kind.holds(net), rounds.seams.of_clients
    return client.Static(net, kind, fed.training, fed.layout.width, seams)


def groups(rounds: setting.Rounds, assignment: schedule.Assignment) -> list[Members]:
    """Sorts who arrives by age and program, and deals them out to the devices.

    Args:
      rounds: of the run.
      assignment: of the round, with the server where it trains.

    Returns:
      The groups, in an order that does not depend on that of the clients.
    """
    fed, ids = rounds.fed, assignment.ids
    work, roles = load(rounds, assignment)
    ages = (assignment.round - assignment.outcome.arrived.versions).tolist()
    kinds = programs(rounds, assignment)
    keepers = [
        _keeper(rounds, kind, number)
        for kind, number in zip(kinds, ids.tolist(), strict=True)
    ]
    keys = list(zip(ages, kinds, keepers, strict=True))
    by_key = cohort.group_by(keys, ids)
    devices, width = fed.layout.devices, fed.layout.width
    dealt = cohort.spread(
        [rows for _, rows in by_key], work, devices.size, width, rounds.size, roles
    )
    return [
        Members(*key, mesh.distribute(devices, rows))
        for (key, _), rows in zip(by_key, dealt, strict=True)
    ]


def load(
    rounds: setting.Rounds, assignment: schedule.Assignment
) -> tuple[np.ndarray, cohort.Roles | None]:
    """Says what each of those who arrive computes, [A], as of `cohort.spread`."""
    ids, assigned = assignment.ids, assignment.plans
    roles = federation.roles(rounds.fed, assigned)
    times = rounds.planned.time_shares(assigned) if roles is None else 1.0
    return np.asarray(rounds.fed.population.shards.counts)[ids] * times, roles


def _keeper(rounds: setting.Rounds, kind: program.Program, number: int) -> int:
    """Says whose channels a client has: its own, or those that all have."""
    rule = rounds.seams.narrowing
    own = rule is not None and rule.channels.each and kind.width < 1
    return number if own else narrowing.NOBODY
