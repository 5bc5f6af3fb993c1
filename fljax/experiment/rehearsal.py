"""Rounds without training: who arrives, who trains what, how long it takes.

When a client is ready does not depend on what it learns, so how devices, clock,
failures and policy get along is known from the host's part of the rounds, in seconds.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np

from fljax.algorithms import base
from fljax.engine import client, federation
from fljax.plans import catalogue


class Rehearsal(NamedTuple):
    """What rounds do; means are over the rounds.

    Attributes:
      state: after the rounds; nobody has trained.
      programs: what the programs are made for.
      steps: mean of the steps of all who arrive, each weighed with its plan's time.
      upload_bytes: sent by clients in all rounds.
      clock_seconds: of all rounds on the virtual clock.
      over: mean number of clients whose round is over, arrived or not.
      arrived: mean number of updates that reach the server.
      events: what went wrong -> mean number of clients.
      tiers: tier -> share of its clients' rounds that reach the server.
      blocks: [n] share of the updates that train each block.
    """

    state: base.State
    programs: frozenset
    steps: float
    upload_bytes: int
    clock_seconds: float
    over: float
    arrived: float
    events: dict[str, float]
    tiers: dict[str, float]
    blocks: np.ndarray


def rehearse(
    algorithm: base.Algorithm, fed: federation.Federation, rounds: int
) -> Rehearsal:
    """Plays rounds without training.

    Args:
      algorithm: of `fed`. A policy or a selection that asks for losses stays as it
        is at the start.
      fed: the clients and their devices.
      rounds: how many, at least 1.

    Returns:
      What they do.
    """
    state, given = algorithm.init(), fed
    listed = catalogue.make(fed.model.table, fed.model.by_width)
    programs: set = set()
    events: collections.Counter[str] = collections.Counter()
    names, tier_of = fed.population.fleet.known_as, fed.population.fleet.tier
    trained = np.zeros(fed.model.net.num_blocks)
    over, there = np.zeros((2, len(names)))
    steps, upload = 0.0, 0
    for index in range(rounds):
        assigned = algorithm.assign(state, index)
        programs |= set(algorithm.programs(assigned))
        if assigned.classes is not None:
            tier_of = assigned.classes
        state, books = algorithm.rehearse(state, assigned)
        upload += books.upload_bytes
        here = algorithm.at(state).federation or given
        if here.model.table is not fed.model.table:  # another stage begins
            fed, listed = here, catalogue.make(here.model.table, here.model.by_width)
        number = client.steps_of(
            np.asarray(fed.population.shards.counts)[assigned.ids], fed.training
        )
        alone = listed.time[listed.rows(assigned.plans)]
        steps += float(number @ federation.work(fed, assigned.plans, alone))
        for plan in assigned.plans:
            trained[plan.first : plan.last + 1] += 1
        outcome, done = assigned.outcome, assigned.outcome.finished
        over += np.bincount(tier_of[done.ids], minlength=len(names))
        there += np.bincount(tier_of[assigned.ids], minlength=len(names))
        for event, ids in outcome.events.items():
            events[event] += len(ids)
    shares = there / np.maximum(over, 1)
    return Rehearsal(
        state,
        frozenset(programs),
        steps / rounds,
        upload,
        float(state.timeline.now),
        float(over.sum()) / rounds,
        float(there.sum()) / rounds,
        {event: number / rounds for event, number in sorted(events.items())},
        dict(zip(names, shares.tolist(), strict=True)),
        trained / max(there.sum(), 1),
    )
