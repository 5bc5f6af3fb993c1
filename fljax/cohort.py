"""The clients of a round: sample, group by plan, run in chunks, sum.

The ONE place that batches clients. A group of clients with the same plan is one call
of one compiled program: it freezes the blocks outside the window once, then loops
over chunks of W clients, vectorised over the chunk, and adds up what they send. The
number of clients is an argument of the program, not part of its shape, so a plan
compiles once. W is 1 on CPU (vmap over clients is slower there than one at a time) and
wide on accelerators.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fljax import client, plans, server, trees, types
from fljax.models import network

# Keys of a round by use, away from client ids (see devices.BUDGET_TAG).
ROUNDING_TAG = 0xFFFF0003


class Group(NamedTuple):
    """The clients of a round that share a plan; slots after them are padding.

    Attributes:
      ids: [slots] int32, client numbers, 0 for padding.
      indices: [slots, capacity] int32, their examples.
      counts: [slots] int32, how many are real; 0 for padding.
      weights: [slots] float32; 0 for padding.
      size: [] int32, how many of the slots are clients.
    """

    ids: types.ArrayLike
    indices: types.ArrayLike
    counts: types.ArrayLike
    weights: types.ArrayLike
    size: types.ArrayLike


class Reports(NamedTuple):
    """What the host hears of each slot of a group.

    Attributes:
      loss: [slots] mean training loss; 0 for padding.
      finite: [slots] whether loss and delta are finite; True for padding.
    """

    loss: types.Array
    finite: types.Array


def sample(
    seed: int, round_index: int, candidates: np.ndarray, size: int
) -> np.ndarray:
    """Draws the cohort of a round without replacement.

    Args:
      seed: of the experiment.
      round_index: 0 for the first.
      candidates: [N] client numbers that may take part.
      size: K.

    Returns:
      [K] client numbers in drawing order.
    """
    generator = np.random.default_rng([seed, 1, round_index])
    return generator.choice(candidates, size, replace=False)


def group_by_plan(
    assigned: Sequence[plans.Plan], ids: np.ndarray
) -> list[tuple[plans.Plan, np.ndarray]]:
    """Sorts clients by plan, and by number within a plan.

    The order of the cohort then leaves no trace in the order of summation.
    """
    members: dict[plans.Plan, list[int]] = {}
    for plan, number in zip(assigned, ids.tolist(), strict=True):
        members.setdefault(plan, []).append(number)
    return [
        (plan, np.sort(np.asarray(members[plan], np.int32))) for plan in sorted(members)
    ]


def make_group(
    ids: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    slots: int,
) -> Group:
    """Pads the clients `ids` to `slots`.

    Args:
      ids: [k] client numbers.
      indices: [N, capacity] of all clients.
      counts: [N] of all clients.
      weights: [N] of all clients.
      slots: at least k.

    Returns:
      A group in host memory.
    """
    size = len(ids)
    padded = np.zeros(slots, np.int32)
    padded[:size] = ids
    real = np.arange(slots) < size
    return Group(
        padded,
        indices[padded],
        np.where(real, counts[padded], 0).astype(np.int32),
        np.where(real, weights[padded], 0).astype(np.float32),
        np.asarray(size, np.int32),
    )


def _chunk(group: Group, start, width: int) -> Group:
    def rows(x):
        return lax.dynamic_slice_in_dim(x, start, width)

    return Group(
        rows(group.ids),
        rows(group.indices),
        rows(group.counts),
        rows(group.weights),
        group.size,
    )


def _train_chunk(net, plan, training, blocks, frozen, data, chunk, key, learning_rate):
    """Trains the W clients of a chunk; a result with a leading axis W."""

    def one(number, indices, count):
        return client.train(
            net,
            plan,
            training,
            blocks,
            frozen,
            data,
            indices,
            count,
            jax.random.fold_in(key, number),
            learning_rate,
        )

    arguments = (chunk.ids, chunk.indices, chunk.counts)
    if chunk.ids.shape[0] == 1:  # a client axis of 1 would still batch every product
        single = one(*(x[0] for x in arguments))
        return jax.tree.map(lambda x: x[None], single)
    return jax.vmap(one)(*arguments)


def _finite(result: client.Result) -> types.Array:
    """Tells for each client of a chunk whether its result is finite, [W]."""
    return jax.vmap(lambda r: trees.all_finite((r.delta, r.loss)))(result)


@functools.partial(
    jax.jit, static_argnames=("net", "plan", "training", "width"), donate_argnums=(1,)
)
def run_group(
    blocks: tuple[dict, ...],
    totals: server.Totals,
    data: client.Data,
    group: Group,
    round_key: types.Key,
    learning_rate: types.Array,
    *,
    net: network.Network,
    plan: plans.Plan,
    training: client.Training,
    width: int,
) -> tuple[server.Totals, Reports]:
    """Trains the clients of one plan and adds their deltas to the totals.

    Args:
      blocks: global state, a tuple over blocks.
      totals: of the groups before; given up to the result.
      data: training data on the device.
      group: the clients, slots a multiple of the width.
      round_key: of this round; a client's is fold_in(round_key, number).
      learning_rate: of the clients, [].
      net: static.
      plan: of all these clients, static.
      training: static.
      width: W, clients that run side by side, static.

    Returns:
      The new totals, and a report for each slot.
    """
    roles = plans.roles(plan, net.num_blocks)
    spec = client.plan_spec(plan, training)
    rounding = None
    if spec.rounding == "stochastic":
        rounding = jax.random.fold_in(round_key, ROUNDING_TAG)
    frozen = network.freeze(net, blocks, roles, spec, rounding)
    inside = slice(plan.first, plan.last + 1)

    def chunk_step(i, carry):
        deltas, weight, reports = carry
        chunk = _chunk(group, i * width, width)
        result = _train_chunk(
            net, plan, training, blocks, frozen, data, chunk, round_key, learning_rate
        )
        summed = trees.weighted_sum(result.delta[inside], chunk.weights)
        finite = _finite(result) | (chunk.weights == 0)
        reports = Reports(
            lax.dynamic_update_slice(reports.loss, result.loss, (i * width,)),
            lax.dynamic_update_slice(reports.finite, finite, (i * width,)),
        )
        return trees.add(deltas, summed), weight + jnp.sum(chunk.weights), reports

    slots = group.ids.shape[0]
    carry = (
        totals.deltas[inside],
        jnp.zeros(()),
        Reports(jnp.zeros(slots), jnp.ones(slots, bool)),
    )
    deltas, weight, reports = lax.fori_loop(
        0, -(-group.size // width), chunk_step, carry
    )
    new = server.Totals(
        (*totals.deltas[: plan.first], *deltas, *totals.deltas[plan.last + 1 :]),
        tuple(
            w + weight if plan.first <= i <= plan.last else w
            for i, w in enumerate(totals.weights)
        ),
    )
    return new, reports


def num_programs() -> int:
    """Counts the programs of groups that this process has compiled or loaded."""
    return run_group._cache_size()  # type: ignore[attr-defined]


def default_width() -> int:
    """Gives the number of clients that run side by side on this backend."""
    return 1 if jax.default_backend() == "cpu" else 16
