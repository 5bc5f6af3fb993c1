"""FedAvg (McMahan et al., AISTATS 2017), every device as if it were unconstrained."""

from __future__ import annotations

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation


def fedavg(fed: federation.Federation) -> base.Algorithm:
    """Makes FedAvg: the upper bound, since real devices could not follow."""
    plan = policies.full(fed.model.net.num_blocks)
    return averaging.averaging(fed, plan, constrained=False)
