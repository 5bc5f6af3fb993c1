"""A round's updates, put together by an aggregate, in place of their sums.

What an aggregate makes of them counts as a mean does: by the share of the cohort that
trained a block. Statistics of norms and ranges of codes become the median of each over
those who count and trained the block, whatever the aggregate: it lies between theirs,
so that a variance is never below 0, and no few move it far.

Legend: K clients of a round, n blocks, d parameters of a block, R statistics and ranges
of all blocks, D devices.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fljax import trees, types
from fljax.updates import server
from fljax.updates.aggregates import base, by_coordinate


class Updates(NamedTuple):
    """The updates of a cohort one by one, for aggregates that see them.

    The first row is the server's, where it trains on a root set.

    Attributes:
      params: what each client changed in the parameters of each block, [K, d] each: as
        one array blocks would be copied out of it.
      others: [K, R] in statistics and ranges.
      trained: [K, n] 1 for the blocks that it trained, if its update was taken.
      ids: [K] int32 client numbers.
    """

    params: tuple[types.Array, ...]
    others: types.Array
    trained: types.Array
    ids: types.Array


def _others(block: dict) -> dict:
    """Takes all but the parameters of a block."""
    return {name: part for name, part in block.items() if name != "params"}


def _columns(blocks: tuple[dict, ...]) -> list[slice]:
    """Says which statistics and ranges are those of a block."""
    ends = np.cumsum([0, *(trees.size(_others(block)) for block in blocks)]).tolist()
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def zeros(blocks: tuple[dict, ...], size: int) -> Updates:
    """Makes room for the updates of `size` clients."""
    return Updates(
        tuple(jnp.zeros((size, trees.size(block["params"]))) for block in blocks),
        jnp.zeros((size, sum(trees.size(_others(block)) for block in blocks))),
        jnp.zeros((size, len(blocks))),
        jnp.zeros(size, jnp.int32),
    )


def noted(
    updates: Updates,
    positions: types.Array,
    values: types.Array,
    blocks: tuple[dict, ...],
    span: slice,
) -> Updates:
    """Puts what clients changed where it belongs.

    Args:
      updates: of a device.
      positions: [W] of the clients in the cohort; others than there are for nobody.
      values: [W, P] of the blocks of their program, strung together.
      blocks: global state; its values are not used.
      span: the blocks of the program.

    Returns:
      The updates.
    """
    params, others, begin = list(updates.params), [], 0
    for i, block in enumerate(blocks[span], start=span.start):
        sizes = [trees.size(block[name]) for name in sorted(block)]
        ends = (begin + np.cumsum(sizes)).tolist()
        for name, size, end in zip(sorted(block), sizes, ends, strict=True):
            part = values[:, end - size : end]
            if name == "params":
                params[i] = params[i].at[positions].set(part, mode="drop")
            else:
                others.append(part)
        begin = ends[-1]
    if others and updates.others.size:
        columns = _columns(blocks)[span]
        at = positions, slice(columns[0].start, columns[-1].stop)
        rows = updates.others.at[at].set(jnp.concatenate(others, 1), mode="drop")
        updates = updates._replace(others=rows)
    return updates._replace(params=tuple(params))


def shifted(
    updates: Updates, late: types.Array, then: tuple[dict, ...], now: tuple[dict, ...]
) -> Updates:
    """Counts statistics and ranges of late updates from the network of today.

    Args:
      updates: on each device, [D, ..].
      late: [D, K, n] how much of each of the late ones is taken; 0 of the others.
      then: state of the network that these began with.
      now: that of today.

    Returns:
      The updates, with late * (then - now) of all but parameters added.
    """
    if not updates.others.size:
        return updates
    shifts = [
        late[..., i, None]
        * trees.ravel(trees.subtract(_others(a), _others(b)))[None, None]
        for i, (a, b) in enumerate(zip(then, now, strict=True))
        if trees.size(_others(a))
    ]
    return updates._replace(others=updates.others + jnp.concatenate(shifts, axis=-1))


def combine(
    aggregate: base.Aggregate,
    state: Any,
    updates: Updates,
    totals: server.Totals,
    blocks: tuple[dict, ...],
) -> tuple[server.Totals, Any]:
    """Puts what an aggregate makes of the updates in place of their sums.

    Args:
      aggregate: how updates become one.
      state: what it keeps.
      updates: of the round.
      totals: their sums.
      blocks: global state; its values are not used.

    Returns:
      The sums of a cohort whose mean is what the aggregate gives; its new state.
    """
    trained, root = updates.trained > 0, None
    if aggregate.root_size:
        root = tuple(rows[0] for rows in updates.params)  # 0 if it was refused
        trained = trained.at[0].set(False)
    seen = base.Seen(updates.params, trained, updates.ids, root)
    got, state = aggregate.combine(state, seen)
    weights = jnp.where(seen.taken, got.weights, 0.0)
    cohort = jnp.sum(seen.taken.astype(jnp.float32))
    weights = weights * (cohort / jnp.maximum(jnp.sum(weights), 1e-30))
    by_block, deltas = seen.weights(weights), []
    for i, (block, middle) in enumerate(zip(blocks, got.values, strict=True)):
        rows, counts = (
            updates.others[:, _columns(blocks)[i]],
            trained[:, i] & (weights > 0),
        )
        like = _others(block)
        mean = trees.unravel(by_coordinate.median(rows, counts), like) if like else {}
        whole = trees.ravel({**mean, "params": middle})
        deltas.append(jnp.where(by_block[i] > 0, whole * by_block[i], 0.0))
    summed = jnp.concatenate(deltas)
    return totals._replace(deltas=summed, weights=by_block, cohort=cohort), state
