"""Aggregates that choose clients by their neighbors: Krum, Multi-Krum, Bulyan."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.updates.aggregates import base, by_coordinate


def scores(distances: types.Array, here: types.Array, hostile: int) -> types.Array:
    """Scores clients by those nearest to them (Blanchard et al., NIPS 2017).

    Args:
      distances: [K, K] squared, between updates.
      here: [K] bool, who is among the k of them that count.
      hostile: f of these.

    Returns:
      [K], the sum of the distances to the k - f - 2 nearest, at least one; infinite of
      those who are not here.
    """
    number, places = jnp.sum(here), jnp.arange(len(here))
    near = jnp.clip(number - hostile - 2, 1, jnp.maximum(number - 1, 0))
    others = here[None] & (places[:, None] != places[None])
    ordered = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    total = jnp.sum(jnp.where((places < near)[None], ordered, 0.0), axis=1)
    return jnp.where(here, total, jnp.inf)


def least(values: types.Array, ids: types.Array, number: types.ArrayLike):
    """Tells of whom the least values [K] are, [K] bool; ties go to the lower number."""
    order = jnp.lexsort((ids, values))
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return ranks < number


def _check(hostile: int) -> None:
    if hostile < 0:
        raise ValueError(f"hostile: expected at least 0, got {hostile}")


@dataclasses.dataclass(frozen=True)
class Krum(base.Aggregate):
    """The update that is nearest to its neighbors, or the mean of several such.

    Blanchard et al. (NIPS 2017): Krum, and Multi-Krum where several are chosen. What a
    client left out trained alone does not move.

    Attributes:
      hostile: f, how many of a round's clients may be.
      chosen: m, how many updates are averaged.
    """

    hostile: int
    chosen: int = 1

    def __post_init__(self):
        _check(self.hostile)
        if self.chosen < 1:
            raise ValueError(f"chosen: expected at least 1, got {self.chosen}")

    @property
    def fewest(self):
        """Gives 2f + 3, the paper's, or m + f: all who are chosen may be honest."""
        return max(2 * self.hostile + 3, self.chosen + self.hostile)

    def combine(self, state, seen):
        """Averages those of the least scores."""
        found = scores(seen.distances(), seen.taken, self.hostile)
        weights = least(found, seen.ids, self.chosen) & seen.taken
        weights = weights.astype(jnp.float32)
        return base.Combined(seen.means(weights), weights), state


@dataclasses.dataclass(frozen=True)
class Bulyan(base.Aggregate):
    """Krum again and again, then of each coordinate what is nearest to the median.

    El Mhamdi et al. (ICML 2018): of k clients Krum chooses k - 2f, one after the other;
    of their values the k - 4f nearest to the median are averaged.

    Attributes:
      hostile: f, how many of a round's clients may be.
    """

    hostile: int

    def __post_init__(self):
        _check(self.hostile)

    @property
    def fewest(self):
        """Gives 4f + 3, the paper's."""
        return 4 * self.hostile + 3

    def combine(self, state, seen):
        """Chooses by Krum, and averages what is near the median."""
        chosen = self._chosen(seen)
        few = seen._replace(trained=seen.trained & chosen[:, None])
        return base.Combined(self.located(few), chosen.astype(jnp.float32)), state

    def _chosen(self, seen: base.Seen) -> types.Array:
        distances, taken = seen.distances(), seen.taken

        def choose(_, left):
            found = scores(distances, left, self.hostile)
            return left & ~least(found, seen.ids, 1)

        number = jnp.maximum(jnp.sum(taken) - 2 * self.hostile, 1)
        return taken & ~lax.fori_loop(0, number, choose, taken)

    def locate(self, rows, here):
        """Averages the values nearest to the median."""
        return base.by_parts(functools.partial(self._near, here=here), rows)

    def _near(self, rows, here):
        middle = by_coordinate.median(rows, here)
        away = jnp.where(here[:, None], jnp.abs(rows - middle[None]), jnp.inf)
        _, ordered = lax.sort((away, rows), dimension=0, num_keys=2)
        number = jnp.maximum(jnp.sum(here) - 2 * self.hostile, 1)
        inside = jnp.arange(len(rows))[:, None] < number
        return jnp.sum(jnp.where(inside, ordered, 0.0), axis=0) / number
