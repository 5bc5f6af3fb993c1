"""Attacks of hostile clients who know the honest updates of their round, and collude.

All of them send one vector, made of the mean and the standard deviation (ddof 0) of
the honest updates, each coordinate over those who trained it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import special

from fljax import types
from fljax.updates.attacks import base


def alie_z(cohort: types.Array, hostile: types.Array) -> types.Array:
    """Computes how many deviations from the mean still look honest.

    A little is enough (Baruch et al., NeurIPS 2019): q = floor(K/2 + 1) - f honest
    clients that lie farther off make a majority with the hostile ones, so
    z = Phi^-1((K - f - q) / (K - f)).

    Args:
      cohort: [] K.
      hostile: [] f.

    Returns:
      [], below 0 where hostile clients are few; finite where they are a majority.
    """
    honest = jnp.maximum(cohort - hostile, 1)
    supporters = cohort // 2 + 1 - hostile
    edge = 0.5 / honest  # Phi^-1 of 0 or 1 is infinite
    return special.ndtri(jnp.clip((honest - supporters) / honest, edge, 1 - edge))


@dataclasses.dataclass(frozen=True)
class Alie(base.Attack):
    """A little is enough: mean - z deviation, see `alie_z`."""

    colludes = True

    def together(self, honest):
        """Gives the vector."""
        z = alie_z(honest.cohort, honest.hostile)
        return honest.mean - z * honest.deviation


@dataclasses.dataclass(frozen=True)
class Ipm(base.Attack):
    """Inner product manipulation: -EPS times the mean (Xie et al., UAI 2019).

    Attributes:
      eps: of which a small one hides among honest updates.
    """

    eps: float = 1.0

    colludes = True

    def __post_init__(self):
        super().__post_init__()
        base.require("eps", self.eps, base.SIZE)

    def together(self, honest):
        """Gives the vector."""
        return -self.eps * honest.mean


@dataclasses.dataclass(frozen=True)
class MinMax(base.Attack):
    """Min-max: mean - g deviation, g the largest that stays among the honest.

    No honest update is farther from it than the two farthest honest ones are from each
    other (Shejwalkar and Houmansadr, NDSS 2021). Distances are squared, a mean over the
    coordinates that both trained. Where the paper bisects, each honest client bounds g
    by a quadratic equation, and the least of the bounds is taken.
    """

    colludes = True

    def together(self, honest):
        """Gives the vector."""
        return honest.mean - _farthest(honest) * honest.deviation


def _farthest(honest: base.Honest) -> types.Array:
    """Solves for g, []; 0 where nobody is honest, or all are alike."""
    number = len(honest.rows)
    pairs, shared = jnp.zeros((number, number)), jnp.zeros((number, number))
    # |mean - g deviation - row|^2 = (|row - mean|^2, 2 <row - mean, deviation>,
    # |deviation|^2) . (1, g, g^2), summed over the coordinates of each client.
    own, along, spread = jnp.zeros((3, number))
    for block, here in zip(base.columns(honest.sizes), honest.here.T, strict=True):
        deviation = honest.deviation[block]
        # Distances by products, which are exact enough around the mean.
        row = jnp.where(here[:, None], honest.rows[:, block] - honest.mean[block], 0.0)
        products = jnp.dot(row, row.T, precision=jax.lax.Precision.HIGHEST)
        squares = jnp.diagonal(products)
        both = here[:, None] & here
        distance = squares[:, None] + squares - 2 * products
        pairs += jnp.where(both, distance, 0.0)
        shared += both * float(deviation.size)
        own += squares
        along += jnp.dot(row, deviation, precision=jax.lax.Precision.HIGHEST)
        spread += here * jnp.sum(jnp.square(deviation))
    diameter = jnp.max(pairs / jnp.maximum(shared, 1.0))
    size = jnp.maximum(jnp.diagonal(shared), 1.0)
    own, along, spread = own / size, along / size, spread / size
    # With windows a client may be farther from the mean than any two are apart.
    room = jnp.maximum(diameter - own, 0.0)
    root = jnp.sqrt(jnp.square(along) + spread * room)
    bound = (root - along) / jnp.where(spread > 0, spread, 1.0)
    least = jnp.min(jnp.where(spread > 0, bound, jnp.inf))
    return jnp.where(jnp.isfinite(least), jnp.maximum(least, 0.0), 0.0)
