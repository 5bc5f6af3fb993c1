"""Codes of a few bits a value, after a random rotation that makes values alike.

DRIVE (Vargaftik et al., 2105.08339) sends the signs of R = H S v / sqrt(d'), with S
random signs, H Hadamard's matrix and d' the next power of two; EDEN (ICML 2022) codes
of b bits. Each client has its own rotation, so that errors average out. "Unbiased"
holds for a rotation that is uniform; with Hadamard's it is an approximation that is
good for large d.

Y = sqrt(d') R stands for R throughout: only additions, and all else cancels.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import stats

from fljax import bounds, types
from fljax.updates.codecs import base, sparse


@dataclasses.dataclass(frozen=True)
class Rotated(base.Elementary):
    """A codec of the rotated vector."""

    last: ClassVar[bool] = True

    @abc.abstractmethod
    def codes(
        self, key: types.Key, rotated: types.Array, norm: types.Array, part: base.Part
    ) -> types.Array:
        """Encodes and decodes Y [d'] of a vector of that L2 norm, up to the rotation.

        The part is the first d' of what a dynamic window may hold.
        """

    def code(self, key, vector, part):
        """Rotates, codes and rotates back."""
        draw, more = jax.random.split(key)
        vector, power = base.scaled(vector)
        size = 1 << (vector.size - 1).bit_length()
        front = jnp.roll(vector, -part.first)
        signs = _signs(draw, vector.size)
        padding = (0, size - vector.size)
        rotated = hadamard(jnp.pad(front * signs, padding), part.count)
        norm = jnp.linalg.norm(vector)
        span = _power_of_two(part.count, size)
        live = True if isinstance(span, int) else jnp.arange(size) < span
        coded = self.codes(more, rotated, norm, base.Part(live, 0, span))
        back = hadamard(jnp.where(live, coded, 0.0), part.count)[: vector.size] * signs
        return jnp.roll(back, part.first) * power


@dataclasses.dataclass(frozen=True)
class Drive(Rotated):
    """Signs of Y, times a scale.

    Attributes:
      kind: `unbiased`: L2(v)^2 / L1(R); `least_error`: L1(R) / d'.
    """

    kind: str = bounds.field("unbiased", choices=("unbiased", "least_error"))

    def __post_init__(self):
        """Checks the kind."""
        bounds.check(self)

    def codes(self, key, rotated, norm, part):
        """Takes signs; the scale over sqrt(d') is norm^2 / L1(Y), or L1(Y) / d'^2."""
        total = jnp.sum(jnp.abs(rotated))
        if self.kind == "unbiased":
            scale = base.ratio(jnp.square(norm), total)
        else:
            scale = total / jnp.square(jnp.float32(part.count))
        return jnp.where(rotated >= 0, scale, -scale)

    def message(self, message, size):
        """Sends 4 bytes and a bit for each of the d'."""
        return base.Message(1 << (size - 1).bit_length(), 1, 4)


@dataclasses.dataclass(frozen=True)
class Eden(Rotated):
    """The nearest of 2^b values that suit normal ones best (Lloyd-Max).

    Attributes:
      bits: b, 1 to 8; below 1: one bit for a share b of the values, drawn by a seed
        that both sides know, times 1/b.
    """

    bits: float = bounds.field(
        dataclasses.MISSING, kind=float, least=0, above=True, most=8
    )

    def __post_init__(self):
        """Checks the bits.

        Raises:
          ValueError: one line.
        """
        bounds.check(self)
        if self.bits > 1 and self.bits != int(self.bits):
            raise ValueError(f"bits: expected 1 to 8, or below 1, got {self.bits}")

    def codes(self, key, rotated, norm, part):
        """Takes the nearest values Q; the scale over sqrt(d') is norm^2 / <Q, Y>."""
        place = base.ratio(rotated, norm)
        first, *others = centroids(max(1, int(self.bits))).tolist()
        near, below = jnp.full_like(place, first), first
        for value in others:
            near = jnp.where(place >= (below + value) / 2, value, near)
            below = value
        near = jnp.where(part.here, near, 0.0)
        coded = near * base.ratio(jnp.square(norm), jnp.sum(near * rotated))
        if self.bits >= 1:
            return coded
        return sparse.RandomK(self.bits).code(key, coded, part)

    def message(self, message, size):
        """Sends 4 bytes and b bits for each of the d'."""
        values = 1 << (size - 1).bit_length()
        if self.bits >= 1:
            return base.Message(values, int(self.bits), 4)
        return base.Message(sparse.kept(self.bits, values), 1, 4)


def hadamard(vector: types.Array, count: types.ArrayLike) -> types.Array:
    """Multiplies by Hadamard's matrix of the next power of two from count, d'.

    Args:
      vector: [a power of two], 0 from d' on.
      count: an int, or [] int32.

    Returns:
      [the same], 0 from d' on; not divided by sqrt(d').
    """
    stages = vector.size.bit_length() - 1
    if not stages:
        return vector

    def stage(i, x):
        # Neighbours differ in bit i of their places. What is above d' keeps its value;
        # sums go to one half and differences to the other, which turns the bits of the
        # places by one, and all the way after the last stage. So each stage is the same
        # loop, and the bits of a vector do not depend on what is padded to it.
        a, b = x[0::2], x[1::2]
        mixes = (1 << i) < count
        return jnp.concatenate([jnp.where(mixes, a + b, a), jnp.where(mixes, a - b, b)])

    return lax.fori_loop(0, stages, stage, vector)


@functools.cache
def centroids(bits: int) -> np.ndarray:
    """Computes the 2^bits values of least squared error for normal ones (Lloyd-Max).

    Returns:
      float64, ascending.
    """
    values = stats.norm.ppf((np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(20_000):
        edges = np.r_[-np.inf, (values[1:] + values[:-1]) / 2, np.inf]
        new = -np.diff(stats.norm.pdf(edges)) / np.diff(stats.norm.cdf(edges))
        if np.max(np.abs(new - values)) < 1e-9:
            break
        values = new
    return values


def _signs(key: types.Key, size: int) -> types.Array:
    """Draws [size] of -1 and 1, the first the same however many: a bit each."""
    words = jax.random.bits(key, (math.ceil(size / 32),))
    ones = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return 1.0 - 2.0 * ones.reshape(-1)[:size].astype(jnp.float32)


def _power_of_two(count: types.ArrayLike, most: int) -> types.ArrayLike:
    """Finds the next power of two, of an array up to the static `most`."""
    if isinstance(count, int):
        return 1 << (count - 1).bit_length()
    doubled = [jnp.where((1 << i) < count, 2, 1) for i in range(most.bit_length() - 1)]
    return functools.reduce(jnp.multiply, doubled, jnp.int32(1))
