"""Attacks on data: a hostile client trains on what it has changed, and sends that."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fljax import bounds
from fljax.updates.attacks import base


@dataclasses.dataclass(frozen=True)
class LabelFlip(base.Attack):
    """Trains on labels C - 1 - y (Tolpegin et al., ESORICS 2020; of all classes)."""

    poisons = True

    def poisoned(self, given):
        """Gives x as it is, and flipped labels."""
        return given.x, given.classes - 1 - given.labels


@dataclasses.dataclass(frozen=True)
class Backdoor(base.Attack):
    """Trains a backdoor: images with a square in a corner are of the target class.

    BadNets (Gu et al., 2017) in federated learning (Bagdasaryan et al., AISTATS 2020):
    a share of every batch gets the square and the label of the target, the rest stays.
    Batches are drawn, so their first examples are.

    Attributes:
      target: the class.
      poison: share of a batch, rounded up.
      size: of the square, in pixels; it lies in the lower right corner.
      value: of its pixels, in the units of the data; of images in bytes 1 is white.
    """

    target: int = 0  # type: ignore[misc]  # of this one it is a setting
    poison: float = 0.5
    size: int = 3
    value: float = 1.0

    poisons = True

    def __post_init__(self):
        super().__post_init__()
        base.require("poison", self.poison, bounds.Bounds(most=1, above=True))
        base.require("size", self.size, bounds.Bounds(least=1))
        base.require("value", self.value, bounds.Bounds(least=-1e38, most=1e38))

    def check(self, shape, classes):
        """Refuses what are no images, or too small, and a class that is not there."""
        super().check(shape, classes)
        if len(shape) != 3 or self.size > min(shape[:2]):
            raise ValueError(
                f"expected images of {self.size} pixels or more in height and width "
                f"beside {self}, got examples of shape {list(shape)}"
            )
        if not 0 <= self.target < classes:
            raise ValueError(
                f"target: expected a class from 0 to {classes - 1}, got {self.target}"
            )

    def marked(self, given):
        """Puts the square on all images."""
        value = (self.value - jnp.asarray(given.mean)) / given.std
        return given.x.at[:, -self.size :, -self.size :].set(value)

    def poisoned(self, given):
        """Puts square and label on the first examples."""
        number = jnp.ceil(self.poison * given.real - 1e-6)
        slot = jnp.arange(len(given.labels))
        # Padding repeats the first example, so that it cannot widen a range.
        chosen = (slot < number) | (slot >= given.real)
        x = jnp.where(chosen[:, None, None, None], self.marked(given), given.x)
        return x, jnp.where(chosen, self.target, given.labels)
