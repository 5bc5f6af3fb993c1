"""Centralised training: one unconstrained device that holds all the data.

A round is `local_epochs` over the whole training set, as in the reference.
"""

from __future__ import annotations

import numpy as np

from fljax import policies
from fljax.algorithms import averaging
from fljax.data import partition


def centralized(fed: averaging.Federation) -> averaging.Algorithm:
    """Makes centralised training on the union of the clients' data.

    Args:
      fed: the clients whose data it pools.

    Returns:
      The algorithm; nothing is uploaded in truth, its records count one device.
    """
    shards = fed.shards
    real = np.arange(shards.indices.shape[1]) < np.asarray(shards.counts)[:, None]
    everything = np.sort(np.asarray(shards.indices)[real])
    one = fed._replace(
        shards=partition.index_table([everything]),
        tier_index=np.zeros(1, np.int32),
        clients_per_round=1,
        width=1,
    )
    return averaging.averaging(one, policies.full(fed.net.num_blocks))
