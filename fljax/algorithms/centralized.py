"""Centralized training: one unconstrained device that holds all the data.

A round is `local_epochs` over the whole training set, as in the reference.
"""

from __future__ import annotations

import numpy as np

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.data import partition
from fljax.devices import clock, failures, fleet
from fljax.engine import federation
from fljax.policies import selection
from fljax.updates import aggregates


def pooled(fed: federation.Federation) -> federation.Federation:
    """Gives the examples of all clients to a single one."""
    everything = np.sort(np.asarray(fed.population.shards.indices))
    return fed.having(
        shards=partition.index_table([everything]),
        fleet=fleet.one_device(),
        failures=failures.Rates(),
        clock=clock.Clock(  # nothing is sent
            step_seconds=federation.clock(fed).step_seconds,
            upload_rate=np.inf,
            download_rate=np.inf,
        ),
        clients_per_round=1,
        selection=selection.Uniform(),
        width=1,
        codec=None,
        aggregate=aggregates.Mean(),
        attack=None,
        secure_sum=None,
        privacy=None,
        personal=None,
    )


def centralized(fed: federation.Federation) -> base.Algorithm:
    """Makes centralized training on the union of the clients' data.

    Args:
      fed: the clients whose data it pools.

    Returns:
      The algorithm; its reports count no bytes, since nothing is sent in a round.
    """
    plan = policies.full(fed.model.net.num_blocks)
    one = averaging.averaging(pooled(fed), plan, constrained=False)

    def unsent(books):
        return books._replace(upload_bytes=0, download_bytes=0)

    def round(state, assignment):
        state, report = one.round(state, assignment)
        return state, report._replace(books=unsent(report.books))

    def rehearse(state, assignment):
        state, books = one.rehearse(state, assignment)
        return state, unsent(books)

    return one._replace(round=round, rehearse=rehearse)
