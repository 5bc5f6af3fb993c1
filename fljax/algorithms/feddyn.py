"""FedDyn (Acar et al., ICLR 2021): dynamic regularization, from the clients' gradients.

A client minimizes its loss - <h_i, y> + alpha/2 |y - x|^2 and moves h_i by
-alpha (y - x); the server keeps h, their mean over all clients, and sends the mean of
the clients' networks less h / alpha.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import optax

from fljax import policies
from fljax.algorithms import averaging, base, refusals
from fljax.engine import federation
from fljax.updates import local_rule, server, server_rule


def _check(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha: expected a number above 0, got {alpha}")


@dataclasses.dataclass(frozen=True)
class Regularized(local_rule.LocalRule):
    """Adds alpha (y - x) - h_i to gradients, and keeps h_i.

    Attributes:
      alpha: of the regularization.
    """

    alpha: float = 0.01

    keeps: ClassVar[bool] = True

    def __post_init__(self):
        _check(self.alpha)

    def own(self, blocks):
        """Makes an h_i of zeros."""
        return server_rule.zeros(server.params_of(blocks))

    def transform(self, shared, own):
        """Pulls towards the start, and along h_i."""

        def update(gradients, start, params):
            def pulled(g, y, x, h):
                return g + self.alpha * (y - x) - h

            return jax.tree.map(pulled, gradients, params, start, own), start

        return optax.GradientTransformation(lambda params: params, update)

    def finish(self, shared, own, local):
        """Moves h_i against the update."""
        new = jax.tree.map(lambda h, d: h - self.alpha * d, own, local.delta)
        return local_rule.Finished(local.delta, new)


@dataclasses.dataclass(frozen=True)
class Dynamic(server_rule.ServerRule):
    """h -= (alpha / N) sum of deltas; the network moves by mean delta - h / alpha.

    The network carries h: it is the old one with h taken back, so that what is sent is
    the mean of the clients' networks less h / alpha.

    Attributes:
      clients: N, of the population.
      alpha: of the regularization.
    """

    clients: int
    alpha: float = 0.01

    def __post_init__(self):
        _check(self.alpha)

    def init(self, params):
        """Makes an h of zeros."""
        return server_rule.zeros(params)

    def step(self, state, params, got):
        """Moves by the mean delta, less h over alpha."""
        share = self.alpha * got.weight / self.clients
        new = jax.tree.map(lambda h, d: h - share * d, state, got.delta)
        moves = jax.tree.map(lambda d, h: d - h / self.alpha, got.delta, new)
        return moves, new


def feddyn(fed: federation.Federation, alpha: float = 0.01) -> base.Algorithm:
    """Makes FedDyn; FedAvg's traffic, and a state per client.

    Args:
      fed: the clients and how they train: equal weights, nobody late.
      alpha: of the regularization.

    Returns:
      The algorithm.

    Raises:
      ValueError: the federation is of another kind.
    """
    name = "feddyn"
    refusals.plain_rounds(fed, name)
    everyone = len(fed.population.shards.counts)
    return averaging.averaging(
        fed,
        policies.full(fed.model.net.num_blocks),
        constrained=False,
        local=Regularized(alpha),
        server=Dynamic(everyone, alpha),
    )
