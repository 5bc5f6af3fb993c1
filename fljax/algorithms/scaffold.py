"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates against client drift.

A client adds c - c_i to its gradients; its c_i becomes its mean gradient of the round
(option II), or its gradient at the network it began with (option I).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from fljax import policies
from fljax.algorithms import averaging, base, refusals
from fljax.engine import federation
from fljax.updates import local_rule, server, server_rule


@dataclasses.dataclass(frozen=True)
class Corrected(local_rule.LocalRule):
    """Steps along g - c_i + c, and sends how c_i changed.

    Attributes:
      option: 1 or 2, the paper's of c_i.
    """

    option: int = 2

    keeps: ClassVar[bool] = True
    messages: ClassVar[bool] = True

    def __post_init__(self):
        if self.option not in (1, 2):
            raise ValueError(f"option: expected 1 or 2, got {self.option}")

    def own(self, blocks):
        """Makes a c_i of zeros."""
        return server_rule.zeros(server.params_of(blocks))

    def transform(self, shared, own):
        """Adds c - c_i to gradients."""

        def update(gradients, state, params=None):
            def corrected(g, mine, all_):
                return g - mine + all_

            return jax.tree.map(corrected, gradients, own, shared), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    def finish(self, shared, own, local):
        """Sends the update and how c_i changed."""
        if self.option == 1:
            new = local.gradient()
        else:
            walked = jnp.maximum(local.steps, 1) * local.learning_rate
            new = jax.tree.map(
                lambda mine, all_, d: mine - all_ - d / walked,
                *(own, shared, local.delta),
            )
        change = jax.tree.map(jnp.subtract, new, own)
        return local_rule.Finished(local.delta, new, change)


@dataclasses.dataclass(frozen=True)
class Control(server_rule.ServerRule):
    """Takes the mean, and moves c by the share of clients that changed theirs.

    Attributes:
      clients: N, of the population.
    """

    clients: int

    shares: ClassVar[bool] = True

    def init(self, params):
        """Makes a c of zeros."""
        return server_rule.zeros(params)

    def shared(self, state):
        """Sends c."""
        return state

    def step(self, state, params, got):
        """Moves by the mean delta; c by the sum of changes over N."""
        share = got.weight / self.clients
        new = jax.tree.map(lambda c, change: c + share * change, state, got.message)
        return got.delta, new


def scaffold(fed: federation.Federation, option: int = 2) -> base.Algorithm:
    """Makes SCAFFOLD; twice FedAvg's traffic either way, and a state per client.

    Args:
      fed: the clients and how they train: plain SGD, equal weights, nobody late.
      option: 1 or 2, of what c_i becomes; 1 takes another pass over the data.

    Returns:
      The algorithm.

    Raises:
      ValueError: the federation is of another kind.
    """
    name = "scaffold"
    refusals.plain_sgd(fed, name)
    refusals.plain_rounds(fed, name)
    everyone = len(fed.population.shards.counts)
    return averaging.averaging(
        fed,
        policies.full(fed.model.net.num_blocks),
        constrained=False,
        local=Corrected(option),
        server=Control(everyone),
    )
