"""FedNova (Wang et al., NeurIPS 2020): updates normalized by the steps behind them.

x += (sum p_i a_i) sum p_i D_i / a_i, where a_i is what a client's steps sum to: its
number of steps, more with momentum, less with a proximal term.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fljax import policies
from fljax.algorithms import averaging, base, fedprox, refusals
from fljax.engine import federation
from fljax.updates import local_rule, server_rule


@dataclasses.dataclass(frozen=True)
class Normalized(local_rule.LocalRule):
    """Sends the update over a_i, and what the leading sum takes of it.

    Attributes:
      momentum: r of the clients; a_i = (t - r (1 - r^t) / (1 - r)) / (1 - r).
      mu: of a proximal term; with learning rate e, a_i = (1 - (1 - e mu)^t) / (e mu),
        and the leading sum takes t.
    """

    momentum: float = 0.0
    mu: float = 0.0

    numbers: ClassVar[int] = 1

    def transform(self, shared, own):
        """Pulls as FedProx does, if asked for."""
        if not self.mu:
            return optax.identity()
        return fedprox.Proximal(self.mu).transform(shared, own)

    def finish(self, shared, own, local):
        """Normalizes the update."""
        steps = jnp.maximum(local.steps, 1)
        length = _length(steps, self.momentum, local.learning_rate * self.mu)
        leading = steps.astype(jnp.float32) if self.mu else length
        delta = jax.tree.map(lambda d: d / length, local.delta)
        return local_rule.Finished(delta, numbers=leading[None])


def _length(steps, momentum: float, pull):
    """Adds up a_i step by step, as the authors' code does.

    The sums in closed form are differences of nearly equal numbers where momentum is
    near 1 or the pull near 0.
    """

    def step(_, carry):
        length, velocity = carry
        velocity = momentum * velocity + 1.0
        return (1.0 - pull) * length + velocity, velocity

    return lax.fori_loop(0, steps, step, (jnp.zeros(()), jnp.zeros(())))[0]


@dataclasses.dataclass(frozen=True)
class Rescaled(server_rule.ServerRule):
    """Takes the mean of normalized updates times the mean of what leads them."""

    def step(self, state, params, got):
        """Moves by the product."""
        return jax.tree.map(lambda d: got.numbers[0] * d, got.delta), state


def fednova(fed: federation.Federation, mu: float = 0.0) -> base.Algorithm:
    """Makes FedNova, of the clients' momentum, if they have some.

    Args:
      fed: the clients and how they train: by SGD.
      mu: of a proximal term; 0: none.

    Returns:
      The algorithm.

    Raises:
      ValueError: clients train otherwise, with momentum beside mu, or mu is too large
        for their rate.
    """
    refusals.plain_sgd(fed, "fednova", momentum=not mu)
    if not 0 <= mu < float("inf"):
        raise ValueError(f"mu: expected 0 or more, got {mu}")
    first = fed.rules.learning_rate(0)
    if first * mu >= 1:  # steps would jump over what pulls them
        raise ValueError(
            f"mu: expected less than 1 over the learning rate, {1 / first:g}, got {mu}"
        )
    return averaging.averaging(
        fed,
        policies.full(fed.model.net.num_blocks),
        constrained=False,
        local=Normalized(fed.training.momentum, mu),
        server=Rescaled(),
    )
