"""Values rounded to few levels, up or down at random so that the mean is kept."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from fljax import bounds, types
from fljax.updates.codecs import base

_MOST = 2**16  # levels that draws of 23 bits round to without a bias that shows
_TERNARY_CLIP = 2.5  # standard deviations, of TernGrad's gradients


@dataclasses.dataclass(frozen=True)
class Qsgd(base.Elementary):
    """L2 norm, signs, and levels 0..L of L abs(v)/norm (Alistarh et al., 1610.02132).

    Without the paper's buckets and Elias codes: one norm, and levels of equal bits.

    Attributes:
      levels: L, above 0.
    """

    levels: int = bounds.field(dataclasses.MISSING, kind=int, least=1, most=_MOST)

    def __post_init__(self):
        """Checks the levels."""
        bounds.check(self)

    def code(self, key, vector, part):
        """Rounds to the levels at random."""
        vector, power = base.scaled(vector)
        norm = jnp.linalg.norm(vector)
        place = base.ratio(self.levels * jnp.abs(vector), norm)
        level = _rounded(place, self.levels, base.uniform(key, vector, part))
        return jnp.sign(vector) * (norm * level / self.levels) * power

    def message(self, message, size):
        """Sends 4 bytes and 1 + ceil(log2(L + 1)) bits a value."""
        bits = 1 + self.levels.bit_length()
        return base.Message(min(message.values, size), bits, message.beside + 4)


@dataclasses.dataclass(frozen=True)
class Uniform(base.Elementary):
    """Levels evenly between the least and the largest value (Suresh, 1611.00429).

    Attributes:
      levels: L, with both ends.
    """

    levels: int = bounds.field(dataclasses.MISSING, kind=int, least=2, most=_MOST)

    def __post_init__(self):
        """Checks the levels."""
        bounds.check(self)

    def code(self, key, vector, part):
        """Rounds to the levels at random."""
        vector, power = base.scaled(vector)
        low = jnp.min(jnp.where(part.here, vector, jnp.inf))
        width = jnp.max(jnp.where(part.here, vector, -jnp.inf)) - low
        most = self.levels - 1
        place = base.ratio((vector - low) * most, width)
        level = _rounded(place, most, base.uniform(key, vector, part))
        return (low + width * level / most) * power

    def message(self, message, size):
        """Sends 8 bytes and log2(L) bits a value; 0 is no level, so each is sent."""
        return base.Message(size, math.log2(self.levels), 8)


@dataclasses.dataclass(frozen=True)
class Ternary(base.Elementary):
    """-s, 0 or s, s the largest size (TernGrad, Wen et al., 1705.07878).

    Values are clipped at 2.5 standard deviations before, about their mean as published:
    a vector of nearly equal values loses most of its length.
    """

    def code(self, key, vector, part):
        """Rounds to -s, 0, s at random."""
        vector, power = base.scaled(vector)
        count = jnp.float32(part.count)
        mean = jnp.sum(vector) / count
        squares = jnp.where(part.here, jnp.square(vector - mean), 0.0)
        limit = _TERNARY_CLIP * jnp.sqrt(jnp.sum(squares) / count)
        clipped = jnp.minimum(jnp.abs(vector), limit)
        largest = jnp.max(clipped)
        place = base.ratio(clipped, largest)
        level = _rounded(place, 1, base.uniform(key, vector, part))
        return jnp.sign(vector) * (largest * level) * power

    def message(self, message, size):
        """Sends 4 bytes and log2(3) bits a value."""
        return base.Message(min(message.values, size), math.log2(3), message.beside + 4)


def _rounded(place: types.Array, most: int, draws: types.Array) -> types.Array:
    """Rounds up with the probability of the fraction, to `most` at most.

    Args:
      place: [d] from 0.
      most: the highest level, which rounding of floats may have passed.
      draws: [d] from [0, 1).
    """
    low = jnp.floor(place)
    return jnp.minimum(low + (draws < place - low), most)
