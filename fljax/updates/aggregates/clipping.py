"""Centered clipping (Karimireddy et al., ICML 2021)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fljax import trees
from fljax.updates.aggregates import base


@dataclasses.dataclass(frozen=True)
class CenteredClipping(base.Aggregate):
    """The last round's update, moved by what clients differ from it, clipped.

    v becomes v + mean(clip(D - v)), which shortens each difference to a radius; v is
    kept from round to round, by block, from 0.

    Attributes:
      radius: tau, the L2 norm that differences are shortened to.
      passes: how often v moves in a round.
    """

    radius: float
    passes: int = 1

    def __post_init__(self):
        if not self.radius > 0:
            raise ValueError(f"radius: expected above 0, got {self.radius}")
        if self.passes < 1:
            raise ValueError(f"passes: expected at least 1, got {self.passes}")

    def init(self, params):
        """Starts from 0."""
        return tuple(jnp.zeros(trees.size(block)) for block in params)

    def combine(self, state, seen):
        """Moves v."""
        center, count = state, seen.taken.astype(jnp.float32)
        number = jnp.maximum(seen.weights(count), 1.0)
        for _ in range(self.passes):
            apart = seen.lengths(center)
            shares = jnp.minimum(1.0, self.radius / jnp.maximum(apart, 1e-30)) * count
            parts = seen.sums(shares), seen.weights(shares), number
            center = tuple(
                v + (total - weight * v) / n
                for v, total, weight, n in zip(center, *parts, strict=True)
            )
        return base.Combined(center, count), center
