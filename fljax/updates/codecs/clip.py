"""Clipping the length of an update, as what is private needs (1710.06963)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fljax import bounds
from fljax.updates.codecs import base


@dataclasses.dataclass(frozen=True)
class Clip(base.Elementary):
    """v min(1, norm / L2 norm of v), of the whole vector; sends what came.

    Attributes:
      norm: the largest L2 norm.
    """

    norm: float = bounds.field(dataclasses.MISSING, kind=float, above=True, most=1e30)

    def __post_init__(self):
        """Checks the norm."""
        bounds.check(self)

    def code(self, key, vector, part):
        """Shortens what is too long, and leaves all else its bits."""
        vector_scaled, power = base.scaled(vector)
        length = jnp.linalg.norm(vector_scaled)
        # In this order: neither the norm nor its ratio need fit into a float32.
        short = vector_scaled * (self.norm / length)
        return jnp.where(length * power <= self.norm, vector, short)

    def message(self, message, size):
        """Changes no size."""
        return message
