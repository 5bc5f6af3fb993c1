"""Aggregates of single coordinates (Yin et al., ICML 2018)."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp

from fljax import types
from fljax.updates.aggregates import base


@dataclasses.dataclass(frozen=True)
class Mean(base.Aggregate):
    """The mean, weighted; a running sum."""

    sees_updates: ClassVar[bool] = False

    def locate(self, rows, here):
        """Gives the plain mean."""
        total = jnp.sum(jnp.where(here[:, None], rows, 0.0), axis=0)
        return total / jnp.sum(here)


def _ordered(rows: types.Array, here: types.Array) -> types.Array:
    """Sorts each coordinate; who is missing comes last."""
    return jnp.sort(jnp.where(here[:, None], rows, jnp.inf), axis=0)


def median(rows: types.Array, here: types.Array) -> types.Array:
    """Gives the median [d] of rows [K, d], of an even number the mean of two."""
    ordered, number = _ordered(rows, here), jnp.sum(here)
    low, high = (jnp.maximum(number - 1, 0) // 2, number // 2)
    return (ordered[low] + ordered[high]) / 2


@dataclasses.dataclass(frozen=True)
class Median(base.Aggregate):
    """The coordinate-wise median; of an even number the mean of the middle two."""

    def locate(self, rows, here):
        """Gives the median."""
        return base.by_parts(functools.partial(median, here=here), rows)


@dataclasses.dataclass(frozen=True)
class TrimmedMean(base.Aggregate):
    """The coordinate-wise mean without the lowest and the highest of the values.

    Attributes:
      share: that is dropped at either end, below a half; of 10 clients .25 drops 2.
    """

    share: float = 0.2

    def __post_init__(self):
        if not 0 <= self.share < 0.5:
            raise ValueError(
                f"share: expected at least 0 and below 0.5, got {self.share}"
            )

    def locate(self, rows, here):
        """Gives the trimmed mean."""
        return base.by_parts(functools.partial(self._trimmed, here=here), rows)

    def _trimmed(self, rows, here):
        ordered, number = _ordered(rows, here), jnp.sum(here)
        dropped = jnp.floor(self.share * number + 1e-6).astype(int)
        place = jnp.arange(len(rows))[:, None]
        inside = (place >= dropped) & (place < number - dropped)
        total = jnp.sum(jnp.where(inside, ordered, 0.0), axis=0)
        return total / jnp.maximum(number - 2 * dropped, 1)
