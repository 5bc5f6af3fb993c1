"""FedAvg with the constrained devices left out, and with them their data."""

from __future__ import annotations

import numpy as np

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation


def unconstrained(fed: federation.Federation) -> np.ndarray:
    """Finds the clients whose smallest budgets allow training everything.

    Raises:
      ValueError: there are none.
    """
    able = np.all(fed.population.fleet.profile.limits[..., 0] >= 1.0, axis=1)
    ids = np.flatnonzero(able[fed.population.fleet.row])
    if not len(ids):
        raise ValueError(
            "fedavg_drop: expected devices with budgets of 1 for time, upload and "
            f"memory, got none among {', '.join(fed.population.fleet.names)}"
        )
    return ids


def fedavg_drop(fed: federation.Federation) -> base.Algorithm:
    """Makes FedAvg among the devices that can train the full network every round.

    Args:
      fed: the clients and how they train; a round takes K of the able ones, or all
        of them if they are fewer.

    Returns:
      The algorithm.

    Raises:
      ValueError: no device is able.
    """
    ids = unconstrained(fed)
    size = min(fed.rules.clients_per_round, len(ids))
    return averaging.averaging(
        fed.having(clients_per_round=size), policies.full(fed.model.net.num_blocks), ids
    )
