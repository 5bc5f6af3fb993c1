"""FedAdam, FedYogi, FedAdagrad (Reddi et al., ICLR 2021): adaptive server optimizers.

As published (Algorithm 2): no bias correction, and `tau` beside the root. Defaults for
the betas and tau are the paper's; of the learning rate none is good for every task.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation
from fljax.updates import server_rule


class Moments(NamedTuple):
    """First and second moment of the mean delta, as trees of the parameters."""

    m: tuple
    v: tuple


@dataclasses.dataclass(frozen=True)
class Adaptive(server_rule.ServerRule):
    """m = b1 m + (1 - b1) D, v by the kind; the network moves by lr m / (sqrt v + tau).

    Attributes:
      kind: of the second moment: v = b2 v + (1 - b2) D^2 (adam),
        v - (1 - b2) D^2 sign(v - D^2) (yogi), v + D^2 (adagrad).
      lr: learning rate.
      b1: of the first moment.
      b2: of the second moment.
      tau: beside the root; v begins at its square.
    """

    kind: Literal["adam", "yogi", "adagrad"]
    lr: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self):
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected 0 to below 1, got {value}")
        for name, value in (("lr", self.lr), ("tau", self.tau)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {value}")

    def init(self, params):
        """Makes moments of 0 and tau^2."""
        v = jax.tree.map(lambda p: jnp.full_like(p, self.tau**2), params)
        return Moments(server_rule.zeros(params), v)

    def _first(self, m, d):
        return self.b1 * m + (1 - self.b1) * d

    def _second(self, v, d):
        square = jnp.square(d)
        if self.kind == "adam":
            return self.b2 * v + (1 - self.b2) * square
        if self.kind == "yogi":
            return v - (1 - self.b2) * square * jnp.sign(v - square)
        return v + square

    def step(self, state, params, got):
        """Moves by the moments; those of blocks that nobody trained stay."""
        m = jax.tree.map(self._first, state.m, got.delta)
        v = jax.tree.map(self._second, state.v, got.delta)
        new = Moments(*(server_rule.kept(got.trained, a, b)
                        for a, b in zip((m, v), state, strict=True)))  # fmt: skip
        moves = jax.tree.map(
            lambda m, v: self.lr * m / (jnp.sqrt(v) + self.tau), new.m, new.v
        )
        return moves, new


def _adaptive(fed: federation.Federation, rule: Adaptive) -> base.Algorithm:
    plan = policies.full(fed.model.net.num_blocks)
    return averaging.averaging(fed, plan, constrained=False, server=rule)


def fedadam(
    fed: federation.Federation,
    lr: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
) -> base.Algorithm:
    """Makes FedAdam; the arguments are those of `Adaptive`."""
    return _adaptive(fed, Adaptive("adam", lr, b1, b2, tau))


def fedyogi(
    fed: federation.Federation,
    lr: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
) -> base.Algorithm:
    """Makes FedYogi; the arguments are those of `Adaptive`."""
    return _adaptive(fed, Adaptive("yogi", lr, b1, b2, tau))


def fedadagrad(
    fed: federation.Federation, lr: float = 0.1, b1: float = 0.0, tau: float = 1e-3
) -> base.Algorithm:
    """Makes FedAdagrad; the arguments are those of `Adaptive`."""
    return _adaptive(fed, Adaptive("adagrad", lr, b1, tau=tau))
