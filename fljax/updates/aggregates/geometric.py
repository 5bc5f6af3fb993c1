"""The geometric median (Pillutla et al., IEEE Trans. Signal Processing 2022)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from fljax.updates.aggregates import base


@dataclasses.dataclass(frozen=True)
class GeometricMedian(base.Aggregate):
    """The point of least summed distance to the updates, by Weiszfeld's steps (RFA).

    A step takes the mean of the updates, each by the inverse of its distance to the
    mean before; the first mean is the plain one.

    Attributes:
      passes: number of steps.
      floor: nu, that distances are raised to.
    """

    passes: int = 4
    floor: float = 1e-5

    def __post_init__(self):
        if self.passes < 1:
            raise ValueError(f"passes: expected at least 1, got {self.passes}")
        if not self.floor > 0:
            raise ValueError(f"floor: expected above 0, got {self.floor}")

    def combine(self, state, seen):
        """Takes the steps from the mean."""
        # What is so long that float32 has no square of it would make the mean useless.
        usable = seen.taken & jnp.isfinite(seen.lengths())

        def step(_, weights):
            apart = seen.lengths(seen.means(weights))
            return jnp.where(usable, 1 / jnp.maximum(apart, self.floor), 0.0)

        weights = lax.fori_loop(0, self.passes, step, usable.astype(jnp.float32))
        return base.Combined(seen.means(weights), weights), state
