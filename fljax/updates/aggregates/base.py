"""What an aggregate is, and what it sees of a round.

Legend: K clients of a round, n blocks, d parameters of a block, Q of all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax

from fljax import trees, types

# Values that a function of coordinates takes at once, so that what it makes of them is
# little beside all updates.
_AT_ONCE = 1 << 22

# And values that are read once for each client.
_IN_CACHE = 1 << 16


class Seen(NamedTuple):
    """The updates of a round one by one: what clients changed in the parameters.

    Lengths and distances are taken over the blocks that a client, or both of a pair,
    trained, and raised by the root of the parameters that these leave out: of two
    clients of the same length per parameter none is the longer.

    Attributes:
      rows: a tuple over blocks, [K, d] each; 0 where a client did not train the block.
      trained: [K, n] bool, who trained which block and was taken.
      ids: [K] int32 client numbers, by which ties are broken.
      root: what the server changed on its root set, a tuple over blocks [d]; None: it
        has none.
    """

    rows: tuple[types.Array, ...]
    trained: types.Array
    ids: types.Array
    root: tuple[types.Array, ...] | None = None

    @property
    def taken(self) -> types.Array:
        """Tells whose updates there are, [K] bool."""
        return jnp.any(self.trained, axis=1)

    @property
    def sizes(self) -> types.Array:
        """Counts the parameters of the blocks, [n]."""
        return jnp.array([rows.shape[1] for rows in self.rows], jnp.float32)

    def weights(self, by_client: types.Array) -> types.Array:
        """Sums weights [K] over those who trained each block, [n]."""
        return trees.weighted_sum(self.trained.astype(jnp.float32), by_client)

    def sums(self, by_client: types.Array) -> tuple[types.Array, ...]:
        """Sums the updates with weights [K], a tuple over blocks [d]."""
        return tuple(
            trees.weighted_sum(rows, jnp.where(here, by_client, 0.0))
            for rows, here in zip(self.rows, self.trained.T, strict=True)
        )

    def means(self, by_client: types.Array) -> tuple[types.Array, ...]:
        """Averages each block over those who trained it, with weights [K]."""
        shares = by_client / jnp.maximum(jnp.sum(by_client), 1e-30)  # sums stay finite
        return tuple(
            total / jnp.where(weight > 0, weight, 1.0)
            for total, weight in zip(
                self.sums(shares), self.weights(shares), strict=True
            )
        )

    def lengths(self, center: tuple[types.Array, ...] | None = None) -> types.Array:
        """Measures L2 norms [K] of the updates.

        Args:
          center: is taken off each, a tuple over blocks [d]; None: nothing is.
        """
        apart = self.rows
        if center is not None:
            pairs = zip(self.rows, center, strict=True)
            apart = tuple(rows - at[None] for rows, at in pairs)
        squares = [jnp.sum(jnp.square(rows), axis=1) for rows in apart]
        return jnp.sqrt(self.of_all(jnp.stack(squares, axis=1)))

    def of_all(self, by_block: types.Array) -> types.Array:
        """Sums [K, n] over the blocks that each client trained, as if of all, [K]."""
        total = jnp.sum(jnp.where(self.trained, by_block, 0.0), axis=1)
        seen = self.trained.astype(jnp.float32) @ self.sizes
        return total * jnp.sum(self.sizes) / jnp.maximum(seen, 1.0)

    def distances(self) -> types.Array:
        """Measures squared L2 distances [K, K] between updates.

        A pair that shares no block is as far apart as the farthest that does.
        """
        here = self.trained.astype(jnp.float32)
        total = jnp.zeros((len(here),) * 2)
        for rows, h in zip(self.rows, self.trained.T, strict=True):
            # Not of products: float32 would cancel where updates are long and alike.
            total += jnp.where(h[:, None] & h[None], _squares(rows), 0.0)
        shared = (here * self.sizes[None]) @ here.T
        total = total * jnp.sum(self.sizes) / jnp.maximum(shared, 1.0)
        known = (shared > 0) & jnp.isfinite(total)
        farthest = jnp.max(jnp.where(known, total, 0.0))
        return jnp.where(shared > 0, total, farthest)


def _squares(rows: types.Array) -> types.Array:
    """Measures squared distances [K, K] between rows [K, d]."""
    number = len(rows)

    def add(part, begin, total):
        def to_all(row):
            return jnp.sum(jnp.square(part - row[None]), axis=1)

        return total + lax.map(to_all, part)

    return _fold(rows, add, jnp.zeros((number, number)), _IN_CACHE)


class Combined(NamedTuple):
    """What the updates of a round became.

    Attributes:
      values: where they lie, a tuple over blocks [d]; of those who trained a block.
      weights: [K] how much each client counts, from 0; in any unit. A block moves by
        the share that those who trained it have of all.
    """

    values: tuple[types.Array, ...]
    weights: types.Array


class Aggregate:
    """How updates become one; frozen dataclasses, pure functions.

    One says what becomes of a block (`locate`), or, where whole updates are compared,
    what becomes of all (`combine`).

    Attributes:
      sees_updates: whether it needs the updates one by one, in memory.
    """

    sees_updates: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        """Gives the least number of updates of a round that it makes sense for."""
        return 1

    @property
    def root_size(self) -> int:
        """Gives the number of examples that the server itself trains on; 0: none."""
        return 0

    def init(self, params: tuple) -> Any:
        """Makes what it keeps from round to round; nothing, unless a rule says so.

        Args:
          params: of the network, a tuple over blocks.

        Returns:
          A tree of arrays, which checkpoints hold.
        """
        return ()

    def locate(self, rows: types.Array, here: types.Array) -> types.Array:
        """Gives the middle of the updates of a block.

        Args:
          rows: [K, d] of the block's parameters.
          here: [K] bool, who trained the block and was taken; at least one.

        Returns:
          [d]; it depends on nobody's place in the cohort.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `locate`")

    def combine(self, state: Any, seen: Seen) -> tuple[Combined, Any]:
        """Makes one update of many.

        Args:
          state: what it keeps.
          seen: the updates.

        Returns:
          What they became, and what is kept after the round.
        """
        return Combined(self.located(seen), seen.taken.astype(jnp.float32)), state

    def located(self, seen: Seen) -> tuple[types.Array, ...]:
        """Takes the middle of each block over those who trained it; 0: nobody did."""
        return tuple(
            jnp.where(jnp.any(here), self.locate(rows, here), 0.0)
            for rows, here in zip(seen.rows, seen.trained.T, strict=True)
        )


def by_parts(
    function: Callable[[types.Array], types.Array], rows: types.Array
) -> types.Array:
    """Applies a function [K, d] -> [d] of single coordinates to a few at a time."""

    def put(part, begin, into):
        return lax.dynamic_update_slice_in_dim(into, function(part), begin, 0)

    return _fold(rows, put, jnp.zeros(rows.shape[1]))


def _fold(
    rows: types.Array, step: Callable, carry: types.Array, values: int = _AT_ONCE
) -> types.Array:
    """Runs (part [K, ..], where it begins, carry) -> carry over parts of [K, d]."""
    number, size = rows.shape
    width = max(1, values // number)
    whole = size // width

    def at(i, carry):
        part = lax.dynamic_slice_in_dim(rows, i * width, width, axis=1)
        return step(part, i * width, carry)

    if whole:
        carry = lax.fori_loop(0, whole, at, carry)
    if size > whole * width:
        carry = step(rows[:, whole * width :], whole * width, carry)
    return carry
