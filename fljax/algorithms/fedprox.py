"""FedProx (Li et al., MLSys 2020): clients are held near where they began."""

from __future__ import annotations

import dataclasses

import jax
import optax

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation
from fljax.updates import local_rule


@dataclasses.dataclass(frozen=True)
class Proximal(local_rule.LocalRule):
    """Adds mu (y - x), the gradient of mu/2 |y - x|^2, to the gradient at y.

    Attributes:
      mu: of the proximal term.
    """

    mu: float = 0.01

    def __post_init__(self):
        if not 0 <= self.mu < float("inf"):
            raise ValueError(f"mu: expected 0 or more, got {self.mu}")

    def transform(self, shared, own):
        """Pulls towards the parameters that the round began with."""

        def update(gradients, start, params):
            pulled = jax.tree.map(
                lambda g, y, x: g + self.mu * (y - x), gradients, params, start
            )
            return pulled, start

        return optax.GradientTransformation(lambda params: params, update)


def fedprox(fed: federation.Federation, mu: float = 0.01) -> base.Algorithm:
    """Makes FedProx.

    Args:
      fed: the clients and how they train.
      mu: of the proximal term.

    Returns:
      The algorithm.
    """
    plan = policies.full(fed.model.net.num_blocks)
    return averaging.averaging(fed, plan, constrained=False, local=Proximal(mu))
