"""Signs with error feedback (EF-SGD, Karimireddy et al., 1901.09847)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fljax.updates.codecs import base


@dataclasses.dataclass(frozen=True)
class SignSgd(base.Elementary):
    """sign(u) * L1 norm / d, where the sign of 0 is +1: there is no third symbol."""

    @property
    def memories(self):
        """Counts one: u - m."""
        return 1

    def code(self, key, vector, part):
        """Takes signs, and the mean size."""
        vector, power = base.scaled(vector)
        mean = jnp.sum(jnp.abs(vector)) / jnp.float32(part.count)
        return jnp.where(vector >= 0, mean, -mean) * power

    def message(self, message, size):
        """Sends 4 bytes and a bit a value; 0 has a sign, too, so each is sent."""
        return base.Message(size, 1, 4)
