"""Aggregates: how the updates of a cohort become one.

The mean is a running sum. The others see each update: over those who trained a block,
coordinate by coordinate (Yin et al., ICML 2018). What nobody sent is missing, not 0.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from fljax import types


class Aggregate(abc.ABC):
    """How updates become one; frozen dataclasses, pure functions.

    Attributes:
      sees_updates: whether it needs the updates one by one, [K, d] in memory.
    """

    sees_updates: ClassVar[bool] = True

    @abc.abstractmethod
    def locate(self, rows: types.Array, here: types.Array) -> types.Array:
        """Gives the middle of the updates of a block.

        Args:
          rows: [K, d] of the block's parameters.
          here: [K] bool, who trained the block and was taken; at least one.

        Returns:
          [d]; it depends on nobody's place in the cohort.
        """


@dataclasses.dataclass(frozen=True)
class Mean(Aggregate):
    """The mean, weighted; a running sum."""

    sees_updates: ClassVar[bool] = False

    def locate(self, rows, here):
        """Gives the plain mean."""
        total = jnp.sum(jnp.where(here[:, None], rows, 0.0), axis=0)
        return total / jnp.sum(here)


def _ordered(rows: types.Array, here: types.Array) -> types.Array:
    """Sorts each coordinate; who is missing comes last."""
    return jnp.sort(jnp.where(here[:, None], rows, jnp.inf), axis=0)


@dataclasses.dataclass(frozen=True)
class Median(Aggregate):
    """The coordinate-wise median; of an even number the mean of the middle two."""

    def locate(self, rows, here):
        """Gives the median."""
        ordered, number = _ordered(rows, here), jnp.sum(here)
        low, high = (jnp.maximum(number - 1, 0) // 2, number // 2)
        return (ordered[low] + ordered[high]) / 2


@dataclasses.dataclass(frozen=True)
class TrimmedMean(Aggregate):
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
        ordered, number = _ordered(rows, here), jnp.sum(here)
        dropped = jnp.floor(self.share * number + 1e-6).astype(int)
        place = jnp.arange(len(rows))[:, None]
        inside = (place >= dropped) & (place < number - dropped)
        total = jnp.sum(jnp.where(inside, ordered, 0.0), axis=0)
        return total / jnp.maximum(number - 2 * dropped, 1)


BY_NAME = {"mean": Mean, "median": Median, "trimmed_mean": TrimmedMean}
