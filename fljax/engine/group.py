"""A group: the clients of one compiled program, trained and summed by one call.

The ONE place that batches clients. A call freezes blocks once, then every device loops
over its chunks of W clients, vectorized over the chunk, and adds up what they send. The
number of clients is an argument of the program, not part of its shape, so it compiles
once. W is 1 on CPU (vmap over clients is slower there than one at a time) and wide on
accelerators.

Legend: K clients of the cohort, W of a chunk, n blocks of the network, b of a program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fljax import trees, types
from fljax.engine import client
from fljax.engine import cohort as cohorts
from fljax.engine import program as kinds
from fljax.engine import sums as totals
from fljax.runtime import mesh, programs, streams
from fljax.updates import server


class Round(NamedTuple):
    """The round that a group of clients began with; shared by all devices.

    Attributes:
      blocks: global state, a tuple over blocks.
      data: training data.
      key: of the round; a client's is fold_in(key, number).
      learning_rate: of the clients, [].
      limits: [2, n] squared L2 norms that a client may change a block's parameters, and
        its statistics and ranges, by. An update is refused if one of its two squared
        norms is above the sum of the limits over the blocks of its window.
    """

    blocks: tuple[dict, ...]
    data: client.Data
    key: types.Key
    learning_rate: types.ArrayLike
    limits: types.ArrayLike


class _Carry(NamedTuple):
    """What a device's loop over chunks carries.

    Attributes:
      deltas: [P] of the program's blocks, as `server.Totals`.
      by_block: [b] weights of those who trained each block.
      weight: [] of all whose update was taken.
      losses: [K], as of `sums.Sums`; so are `failed` and `l2`.
      places: for the next client, where they run one after the other.
    """

    deltas: types.Array
    by_block: types.Array
    weight: types.Array
    losses: types.Array
    failed: types.Array
    l2: types.Array
    places: tuple | None


class _Sent(NamedTuple):
    """What the W clients of a chunk send.

    Attributes:
      vectors: [W, P] of the program's blocks.
      weights: [W], 0 of those who are refused.
      trained: [W, b] bool.
      verdict: [W] 0: taken.
      l2: L2 norms [W, 2, b], 0 of those who teach nothing of what is usual.
    """

    vectors: types.Array
    weights: types.Array
    trained: types.Array
    verdict: types.Array
    l2: types.Array


def _l2(delta: tuple) -> types.Array:
    """Measures how far parameters, and all else of each block, went: [W, 2, blocks]."""
    width = jax.tree.leaves(delta)[0].shape[0]

    def length(part):
        rows = [leaf.reshape(width, -1) for leaf in jax.tree.leaves(part)]
        squares = [jnp.sum(jnp.square(row), axis=1) for row in rows]
        return jnp.sqrt(sum(squares, jnp.zeros(width)))

    params = [length(block["params"]) for block in delta]
    others = [length({**block, "params": None}) for block in delta]
    return jnp.stack([jnp.stack(kind, axis=1) for kind in (params, others)], axis=1)


def _train_chunk(train, chunk: cohorts.Clients, places):
    """Trains the W clients of a chunk; their results [W, ...], and the places."""
    arguments = (chunk.ids, chunk.starts, chunk.counts, chunk.windows)
    if chunk.ids.shape[0] > 1:
        return jax.vmap(functools.partial(train, places=None))(*arguments), None
    # A client axis of 1 would still batch every product.
    single = train(*(x[0] for x in arguments), places=places)
    row = jax.tree.map(lambda x: x[None], single._replace(places=None))
    return row, single.places


def _chunk(clients: cohorts.Clients, positions: types.Array) -> cohorts.Clients:
    """Takes the clients at positions [W]; padding trains on nothing and weighs 0."""
    real = positions < clients.ids.shape[0]

    def take(x):
        return x.at[positions].get(mode="clip")

    rows = jax.tree.map(take, clients._replace(indices=None))
    return rows._replace(
        counts=jnp.where(real, rows.counts, 0), weights=jnp.where(real, rows.weights, 0)
    )


def _received(
    span: slice, chunk: cohorts.Clients, result: client.Result, trained, limits
) -> _Sent:
    """Takes what a chunk's clients send, and refuses what is no use."""
    factor = chunk.tampering[:, None]
    sent = jax.vmap(trees.ravel)(result.delta[span]) * factor
    l2 = _l2(result.delta[span]) * factor[:, None]
    finite = jnp.all(jnp.isfinite(sent), axis=1) & jnp.isfinite(result.loss)
    limit = jnp.sum(jnp.where(trained[:, None], limits[:, span], 0.0), axis=2)
    small = jnp.all(jnp.sum(jnp.square(l2), axis=2) <= limit, axis=1)
    verdict = jnp.where(
        finite, jnp.where(small, 0.0, totals.TOO_LARGE), totals.NOT_FINITE
    )
    verdict = jnp.where(chunk.weights != 0, verdict, 0.0)  # or padding
    weights = jnp.where(verdict == 0, chunk.weights, 0.0)
    teaches = finite & (chunk.weights != 0)  # refused or not
    l2 = jnp.where(teaches[:, None, None], l2, 0.0)
    return _Sent(sent, weights, trained, verdict, l2)


def _started(static: client.Static, begun: Round) -> client.Start:
    """Freezes the network that a round began with."""
    rounding = None
    if static.spec.rounding == "stochastic":
        rounding = jax.random.fold_in(begun.key, streams.ROUNDING)
    frozen = client.freeze(static, begun.blocks, rounding)
    return client.Start(begun.blocks, frozen, begun.data, begun.learning_rate)


def _run_on_device(
    begun: Round,
    sums: totals.Sums,
    clients: cohorts.Clients,
    group: cohorts.Group,
    *,
    static: client.Static,
) -> totals.Sums:
    """Runs one device's share of a group: its row of the sums and of the group."""
    sums, group = (jax.tree.map(lambda x: x[0], tree) for tree in (sums, group))
    capacity = static.program.capacity
    fitting = client.fitting(static.training, capacity)
    static, width = static._replace(training=fitting), static.width
    start, span = _started(static, begun), static.span

    def train(number, begin, count, window, places):
        slots = begin + jnp.arange(capacity)
        indices = clients.indices.at[slots].get(mode="clip")
        key = jax.random.fold_in(begun.key, number)
        one = client.Client(indices, count, key, (window[0], window[1]))
        return client.train(static, start, one, places)

    def chunk_step(i, carry: _Carry) -> _Carry:
        positions = lax.dynamic_slice_in_dim(group.positions, i * width, width)
        chunk = _chunk(clients, positions)
        result, places = _train_chunk(train, chunk, carry.places)
        trained = static.program.trains(chunk.windows, static.net.num_blocks)
        sent = _received(span, chunk, result, trained, begun.limits)
        taken = sent.weights * chunk.scales
        by_block = jnp.sum(sent.weights[:, None] * trained, axis=0)
        return _Carry(
            carry.deltas + trees.weighted_sum(sent.vectors, taken),
            carry.by_block + by_block,
            carry.weight + jnp.sum(sent.weights),
            carry.losses.at[positions].set(result.loss, mode="drop"),
            carry.failed.at[positions].set(sent.verdict, mode="drop"),
            carry.l2.at[positions, :, span].set(sent.l2, mode="drop"),
            places,
        )

    before = sums.totals
    first, size = trees.size(begun.blocks[: span.start]), trees.size(begun.blocks[span])
    done = lax.fori_loop(
        0,
        -(-group.sizes // width),
        chunk_step,
        _Carry(
            lax.slice_in_dim(before.deltas, first, first + size),
            jnp.zeros(span.stop - span.start),
            jnp.zeros(()),
            *(sums.losses, sums.failed, sums.l2),
            client.places(static, begun.blocks, start.frozen) if width == 1 else None,
        ),
    )
    new = server.Totals(
        lax.dynamic_update_slice_in_dim(before.deltas, done.deltas, first, 0),
        before.weights.at[span].add(done.by_block),
        before.cohort + done.weight,
    )
    result = totals.Sums(new, done.losses, done.failed, done.l2)
    return jax.tree.map(lambda x: x[None], result)


@functools.partial(jax.jit, static_argnames=("static", "devices"), donate_argnums=(1,))
def run_group(
    begun: Round,
    sums: totals.Sums,
    clients: cohorts.Clients,
    group: cohorts.Group,
    *,
    static: client.Static,
    devices: Mesh,
) -> totals.Sums:
    """Trains the clients of one program and adds what they send to the sums.

    Args:
      begun: the round that they began with.
      sums: of the groups before; given up to the result.
      clients: the cohort.
      group: which of them, S a multiple of the width.
      static: network, program, training and width, static.
      devices: the mesh, static.

    Returns:
      The new sums.
    """
    shared, own = mesh.SHARED, mesh.PER_DEVICE
    return jax.shard_map(
        functools.partial(_run_on_device, static=static),
        mesh=devices,
        in_specs=(shared, own, shared, own),
        out_specs=own,
        # Nothing here talks to another device: what differs needs no marking.
        check_vma=False,
    )(begun, sums, clients, group)


# Programs of this process, by what is static and by shapes.
_programs: dict[tuple, jax.stages.Compiled] = {}  # used last comes last
_made: list[int] = []  # how many, each time that some were

# Programs that are held at the same time at least, see `programs.crowded`.
AT_ONCE = 8

Call = tuple[Round, totals.Sums, cohorts.Clients, cohorts.Group]  # of `run_group`


def compile_groups(
    wanted: Sequence[client.Static], call: Call, devices: Mesh
) -> list[jax.stages.Compiled]:
    """Compiles `run_group`, what is new side by side.

    Where a process can hold no more programs, those that were used longest ago go, once
    what they compute is done.

    Args:
      wanted: what is static, AT_ONCE at most of a network with a thousand kernels.
      call: positional arguments of `run_group`, on the devices; any group.
      devices: the mesh.

    Returns:
      For each of those wanted what is called as `run_group`, with the positional
      arguments.
    """
    begun, sums, clients, group = call
    leaves = jax.tree.leaves((begun.data, clients, group))
    shapes = [(x.shape, x.dtype) for x in leaves]
    keys = [(static, devices, *shapes) for static in wanted]
    held = [_programs.pop(key, None) for key in keys]  # networks take long to hash
    missing = [i for i, program in enumerate(held) if program is None]
    if missing and programs.crowded():
        jax.block_until_ready(sums)
        others = list(_programs)
        for key in others[: len(others) // 2 + 1]:
            del _programs[key]
        # JAX keeps what it has compiled for a function; its types do not name this.
        run_group.clear_cache()  # type: ignore[attr-defined]
    if missing:
        requests = [
            programs.Request(run_group, call, {"static": wanted[i], "devices": devices})
            for i in missing
        ]
        for i, made in zip(missing, programs.compile_all(requests), strict=True):
            held[i] = made
        _made.append(len(missing))
    found = [program for program in held if program is not None]
    _programs.update(zip(keys, found, strict=True))
    return found


def compiled_programs() -> list[tuple[kinds.Program, jax.stages.Compiled]]:
    """Lists the programs of groups that this process holds."""
    return [(key[0].program, compiled) for key, compiled in _programs.items()]


def forget() -> None:
    """Forgets all programs: what somebody has replaced in a module is traced anew."""
    _programs.clear()
    jax.clear_caches()


def num_programs() -> int:
    """Counts the programs of groups that this process has compiled or loaded so far.

    Those that have made room for others are among them.
    """
    return sum(_made)
