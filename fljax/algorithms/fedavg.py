"""FedAvg (McMahan et al., AISTATS 2017), every device as if it were unconstrained."""

from __future__ import annotations

from fljax import policies
from fljax.algorithms import averaging


def fedavg(fed: averaging.Federation) -> averaging.Algorithm:
    """Makes FedAvg: the upper bound, since real devices could not follow."""
    return averaging.averaging(fed, policies.full(fed.net.num_blocks))
