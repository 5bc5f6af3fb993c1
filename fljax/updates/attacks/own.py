"""Attacks by a client on its own update, of which it needs to know nothing else."""

from __future__ import annotations

import dataclasses

import jax

from fljax import bounds
from fljax.updates.attacks import base


@dataclasses.dataclass(frozen=True)
class SignFlip(base.Attack):
    """Sends -FACTOR times the update: a step away from what was learned.

    Attributes:
      factor: how far.
    """

    factor: float = 1.0

    alters = True

    def __post_init__(self):
        super().__post_init__()
        base.require("factor", self.factor, base.SIZE)

    def sent(self, key, update):
        """Gives the flipped update."""
        return -self.factor * update


@dataclasses.dataclass(frozen=True)
class Gaussian(base.Attack):
    """Sends noise, N(MEAN, DEVIATION^2) for each parameter.

    The numbers are those of Blades (Li et al., IoTDI 2024).

    Attributes:
      mean: of the noise.
      deviation: of the noise.
    """

    mean: float = 0.1
    deviation: float = 0.1

    alters = True

    def __post_init__(self):
        super().__post_init__()
        base.require("mean", self.mean, bounds.Bounds(least=-1e38, most=1e38))
        base.require("deviation", self.deviation, base.SIZE)

    def sent(self, key, update):
        """Draws the noise."""
        return self.mean + self.deviation * jax.random.normal(key, update.shape)
