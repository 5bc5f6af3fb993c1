"""FedAvgM (Hsu, Qi, Brown, 2019, arXiv:1909.06335): momentum at the server."""

from __future__ import annotations

import dataclasses

import jax

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation
from fljax.updates import server_rule


@dataclasses.dataclass(frozen=True)
class Momentum(server_rule.ServerRule):
    """v = beta v + mean delta; the network moves by v.

    Attributes:
      beta: of the momentum.
      nesterov: the network moves by mean delta + beta v instead.
    """

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self):
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: expected 0 to below 1, got {self.beta}")

    def init(self, params):
        """Makes a velocity of zeros."""
        return server_rule.zeros(params)

    def step(self, state, params, got):
        """Moves by the velocity; that of blocks that nobody trained stays."""
        new = jax.tree.map(lambda v, d: self.beta * v + d, state, got.delta)
        new = server_rule.kept(got.trained, new, state)
        if not self.nesterov:
            return new, new
        return jax.tree.map(lambda v, d: d + self.beta * v, new, got.delta), new


def fedavgm(
    fed: federation.Federation, beta: float = 0.9, nesterov: bool = False
) -> base.Algorithm:
    """Makes FedAvgM.

    Args:
      fed: the clients and how they train.
      beta: of the momentum.
      nesterov: in Nesterov's form.

    Returns:
      The algorithm.
    """
    plan, rule = policies.full(fed.model.net.num_blocks), Momentum(beta, nesterov)
    return averaging.averaging(fed, plan, constrained=False, server=rule)
