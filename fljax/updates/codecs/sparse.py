"""Sparse updates: the largest coordinates, or some drawn by a seed both sides know.

Top-k with error feedback: Stich et al., 1809.07599. Random-k: Konecny et al.,
1610.05492, unbiased when scaled by d/k.
"""

from __future__ import annotations

import dataclasses
import fractions

import jax.numpy as jnp
from jax import lax

from fljax import bounds, types
from fljax.updates.codecs import base

_SHARE = bounds.Bounds(least=0, above=True, most=1)
_SEED = 8  # bytes of the seed that says which coordinates are sent
_ROWS = 250  # that many ones fit into the byte that counts them


@dataclasses.dataclass(frozen=True)
class TopK(base.Elementary):
    """The k = max(1, ceil(share d)) largest by size, with error feedback.

    Of equal sizes the first coordinates are taken.

    Attributes:
      share: of the coordinates sent.
    """

    share: float = bounds.field(dataclasses.MISSING, kind=float, within=_SHARE)

    def __post_init__(self):
        """Checks the share."""
        bounds.check(self)

    @property
    def memories(self):
        """Counts one: u - m."""
        return 1

    def code(self, key, vector, part):
        """Keeps the largest."""
        chosen = largest(_size(vector), part.here, kept(self.share, part.count))
        return jnp.where(chosen, vector, 0.0)

    def message(self, message, size):
        """Sends k values, and k places of ceil(log2 d) bits or, if less, d bits."""
        k = kept(self.share, size)
        places = min(k * (size - 1).bit_length(), size) / 8
        values = min(k, message.values)
        return base.Message(values, message.bits, message.beside + places)


@dataclasses.dataclass(frozen=True)
class RandomK(base.Elementary):
    """k = max(1, ceil(share d)) coordinates, drawn anew by each client and round.

    Attributes:
      share: of the coordinates sent.
      kind: `unbiased`: times d/k; `feedback`: as they are, with error feedback.
    """

    share: float = bounds.field(dataclasses.MISSING, kind=float, within=_SHARE)
    kind: str = bounds.field("unbiased", choices=("unbiased", "feedback"))

    def __post_init__(self):
        """Checks the fields."""
        bounds.check(self)

    @property
    def memories(self):
        """Counts one with error feedback."""
        return int(self.kind == "feedback")

    def code(self, key, vector, part):
        """Keeps those of the largest draws."""
        k = kept(self.share, part.count)
        draws = base.uniform(key, vector, part)
        chosen = jnp.where(largest(_size(draws), part.here, k), vector, 0.0)
        if self.kind == "feedback":
            return chosen
        return chosen * (jnp.float32(part.count) / jnp.float32(k))

    def message(self, message, size):
        """Sends k values and a seed: 4k + 8 bytes of floats."""
        values = min(kept(self.share, size), message.values)
        return base.Message(values, message.bits, message.beside + _SEED)


def kept(share: float, count: types.ArrayLike) -> types.ArrayLike:
    """Computes max(1, ceil(share * count)), exactly for a share written in decimals.

    Floats would keep 8 of 100 at a share of .07, and other numbers in a program than on
    the host.

    Args:
      share: from 0 to 1.
      count: a Python int, or [] int32.

    Returns:
      As the count.
    """
    exact = fractions.Fraction(repr(float(share))).limit_denominator(2**29)
    p, q = exact.numerator, exact.denominator
    if isinstance(count, int):
        return max(1, -(-p * count // q))

    def bit(i, carry):
        # Long division of p * count by q, a bit of the count at a time: 32 bits do.
        whole, rest = carry
        rest = 2 * rest + p * ((count >> (30 - i)) & 1)
        carried = (rest >= q).astype(jnp.int32) + (rest >= 2 * q)
        return 2 * whole + carried, rest - q * carried

    zero = jnp.zeros_like(count)
    whole, rest = lax.fori_loop(0, 31, bit, (zero, zero))
    return jnp.maximum(1, whole + (rest > 0))


def largest(
    sizes: types.Array, here: types.ArrayLike, k: types.ArrayLike
) -> types.Array:
    """Chooses the k largest; of equal ones the first.

    Args:
      sizes: [d] int32 from 0.
      here: [d] bool, which of them take part; or True.
      k: [] int32, of those that do.

    Returns:
      [d] bool.
    """
    sizes = jnp.where(here, sizes, -1)
    least = _kth(sizes, k, 31)
    # Of those of exactly that size, those of the largest numbers counted from the end.
    count = sizes.size
    from_end = jnp.where(sizes == least, count - jnp.arange(count), 0)
    last = _kth(from_end, k - _count(sizes > least), count.bit_length())
    return (sizes > least) | (from_end >= last)


def _size(x: types.Array) -> types.Array:
    """Gives whole numbers from 0 in the order of floats' sizes; NaN is largest."""
    return lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def _kth(values: types.Array, k: types.ArrayLike, bits: int) -> types.Array:
    """Finds the k-th largest of whole numbers, a bit at a time from the highest.

    Sorting takes fifty times as long on CPU; `lax.top_k` needs a static k, and is
    faster for shares below 1 in 300 alone.
    """

    def bit(i, found):
        candidate = found | (jnp.int32(1) << (bits - 1 - i))
        return jnp.where(_count(values >= candidate) >= k, candidate, found)

    return lax.fori_loop(0, bits, bit, jnp.int32(0))


def _count(mask: types.Array) -> types.Array:
    """Counts what holds; a CPU adds up bytes four times as fast as int32."""
    padded = jnp.pad(mask, (0, -mask.size % _ROWS))
    rows = padded.reshape(_ROWS, -1).astype(jnp.uint8)
    return jnp.sum(jnp.sum(rows, axis=0, dtype=jnp.uint8), dtype=jnp.int32)
