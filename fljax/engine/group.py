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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fljax import trees, types
from fljax.engine import client, seams, sending
from fljax.engine import cohort as cohorts
from fljax.engine import program as kinds
from fljax.engine import sums as totals
from fljax.nn import slicing
from fljax.runtime import mesh, programs, streams
from fljax.updates import secure_sum, server
from fljax.updates.aggregates import combined


class _Carry(NamedTuple):
    """What a device's loop over chunks carries.

    Attributes:
      totals: of the program's blocks, [P], [b] and so on.
      each: what is known of each client; its totals are None.
      places: for the next client, where they run one after the other.
    """

    totals: server.Totals
    each: totals.Sums
    places: tuple | None


def _train_chunk(train, chunk: cohorts.Clients, places, static: client.Static):
    """Trains the W clients of a chunk; their results [W, ...], and the places."""
    if static.width > 1:
        real, n = chunk.counts > 0, static.net.num_blocks
        # What is not mapped stays one condition for all of them.
        present = static.program.present(chunk.windows, real, n)
        return jax.vmap(functools.partial(train, present=present))(chunk), None
    # A client axis of 1 would still batch every product.
    single = train(jax.tree.map(lambda x: x[0], chunk), places=places)
    row = jax.tree.map(lambda x: x[None], single._replace(places=None))
    return row, single.places


def _chunk(clients: cohorts.Clients, positions: types.Array) -> cohorts.Clients:
    """Takes the clients at positions [W]; padding trains on nothing and weighs 0."""
    real = positions < clients.ids.shape[0]

    def take(x):
        return x.at[positions].get(mode="clip")

    rows = jax.tree.map(take, clients._replace(indices=None))
    if rows.partners is not None:
        partners = jnp.where(real[:, None, None], rows.partners, secure_sum.NOBODY)
        rows = rows._replace(partners=partners)
    return rows._replace(
        counts=jnp.where(real, rows.counts, 0), weights=jnp.where(real, rows.weights, 0)
    )


# What is stacked of the starts of several runs.
_START_OF: Any = client.Start(0, 0, None, 0, 0)  # type: ignore[arg-type]


def _started(static: client.Static, begun: cohorts.Round, pooled: bool) -> client.Start:
    """Freezes the network that a round began with; pooled: that of each run."""
    if pooled:
        one = functools.partial(_started, static, pooled=False)
        axes = {"in_axes": (cohorts.ROUND_OF,), "out_axes": _START_OF}
        return jax.vmap(one, **axes)(begun)
    rounding = None
    if static.spec.rounding == "stochastic":
        rounding = jax.random.fold_in(begun.key, streams.ROUNDING)
    frozen = client.freeze(static, begun.blocks, rounding)
    rate, shared, columns = begun.learning_rate, begun.shared, None
    if begun.channels is not None:
        columns = slicing.columns(begun.channels)
    kept = begun.blocks, frozen, begun.data
    return client.Start(*kept, rate, shared, columns, begun.pull)


def _run_on_device(
    begun: cohorts.Round,
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
    begun = begun.narrowed.upto(static.net.num_blocks)
    pooled = clients.run is not None
    starts, span = _started(static, begun, pooled), static.span
    first = begun.of(jnp.int32(0)) if pooled else begun  # its shapes are everybody's

    def train(row: cohorts.Clients, places=None, present=None):
        mine, start = begun.of(row.run), starts
        if row.run is not None:
            start = cohorts.stacked(starts, _START_OF, row.run)
        slots = row.starts + jnp.arange(capacity)
        indices = clients.indices.at[slots].get(mode="clip")
        key = jax.random.fold_in(mine.key, row.ids)
        kept = seams.parted(static.seams, mine.everything, row.states)
        window = row.windows[0], row.windows[1]
        own = window, kept.own, row.hostile, kept.personal
        one = client.Client(indices, row.counts, key, *own)
        return client.train(static, start, one, places, present)

    def chunk_step(i, carry: _Carry) -> _Carry:
        positions = lax.dynamic_slice_in_dim(group.positions, i * width, width)
        chunk = _chunk(clients, positions)
        result, places = _train_chunk(train, chunk, carry.places, static)
        sent = _received(static, begun, chunk, result)
        return _Carry(
            _added(carry.totals, sent, chunk.run, static.seams.secure is not None),
            _noted(static.span, first.blocks, carry.each, positions, sent),
            places,
        )

    places = None
    if width == 1:
        frozen = (
            jax.tree.map(lambda x: x[0], starts.frozen) if pooled else starts.frozen
        )
        places = client.places(static, first.blocks, frozen)
    part = _part(sums.totals, begun, span, pooled)
    carry = _Carry(part, sums._replace(totals=None), places)  # type: ignore[arg-type]
    done = lax.fori_loop(0, -(-group.sizes // width), chunk_step, carry)
    join = functools.partial(totals.joined, span=span)
    if pooled:
        join = jax.vmap(join, in_axes=(0, 0, cohorts.ROUND_OF))
    new = join(sums.totals, done.totals, begun)
    return jax.tree.map(lambda x: x[None], done.each._replace(totals=new))


def _part(
    sums: server.Totals, begun: cohorts.Round, span: slice, pooled: bool
) -> server.Totals:
    """Takes the sums of a program's blocks; pooled: those of each run."""
    part = functools.partial(totals.part, span=span)
    if pooled:
        part = jax.vmap(part, in_axes=(0, cohorts.ROUND_OF))
    return part(sums, begun)


def _received(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
) -> sending.Received:
    """Takes what a chunk's clients send; those of several runs each as a chunk."""
    if chunk.run is None:
        return sending.received(static, begun, chunk, result)
    if len(chunk.run) == 1:
        return sending.received(static, begun.of(chunk.run[0]), chunk, result)

    def one(row: cohorts.Clients, result: client.Result):
        single = jax.tree.map(lambda x: x[None], (row, result))
        sent = sending.received(static, begun.of(row.run), *single)
        return jax.tree.map(lambda x: x[0], sent)

    return jax.vmap(one)(chunk, result)


def _added(
    sums: server.Totals,
    sent: sending.Received,
    run: types.Array | None,
    words: bool,
) -> server.Totals:
    """Adds what a chunk sent; sums of several runs are stacked, run is [W]."""
    if run is None:
        return _added_to(sums, sent, words)
    if len(run) == 1:
        mine = jax.tree.map(lambda x: x[run[0]], sums)
        new = _added_to(mine, sent, words)
        return jax.tree.map(lambda x, new: x.at[run[0]].set(new), sums, new)

    def own(index, mine):
        weights = jnp.where(run == index, sent.weights, 0.0)
        return _added_to(mine, sent._replace(weights=weights), words)

    return jax.vmap(own)(jnp.arange(sums.cohort.shape[0]), sums)


def _added_to(
    sums: server.Totals, sent: sending.Received, words: bool
) -> server.Totals:
    """Adds what a chunk sent: floats by weight, or words, which have theirs."""
    taken, message, numbers = sent.weights * sent.scales, sums.message, sums.numbers
    held, below = sums.held, sums.below
    if below is not None:
        below = below + trees.weighted_sum(sent.below, sent.weights)
    add: Callable = secure_sum.added if words else trees.weighted_sum
    if held is not None:
        held = held + trees.weighted_sum(sent.held, sent.weights)
    if message is not None:
        message = message + add(sent.message, taken)
    if numbers is not None:
        numbers = numbers + add(sent.numbers, sent.weights)
    return server.Totals(
        sums.deltas + add(sent.vectors, taken),
        sums.weights + jnp.sum(sent.weights[:, None] * sent.trained, axis=0),
        sums.cohort + jnp.sum(sent.weights),
        message,
        numbers,
        held,
        below,
    )


def _noted(
    span: slice,
    blocks: tuple[dict, ...],
    each: totals.Sums,
    positions: types.Array,
    sent: sending.Received,
) -> totals.Sums:
    """Notes what each of a chunk sent, at positions [W] of the cohort."""

    def put(into, values, *columns):
        return into.at[(positions, *columns)].set(values, mode="drop")

    updates, states = each.updates, each.states
    if updates is not None:
        taken = (sent.weights > 0)[:, None]
        rows = jnp.where(taken, sent.vectors * sent.scales[:, None], 0.0)
        trained = taken * sent.trained.astype(jnp.float32)
        updates = combined.noted(updates, positions, rows, blocks, span)._replace(
            trained=put(updates.trained, trained, span), ids=put(updates.ids, sent.ids)
        )
    if states is not None:
        states = put(states, sent.states)
    return totals.Sums(
        each.totals,
        put(each.losses, sent.losses),
        put(each.failed, sent.verdict),
        put(each.l2, sent.l2, slice(None), span),
        updates,
        states,
    )


@functools.partial(jax.jit, static_argnames=("static", "devices"), donate_argnums=(1,))
def run_group(
    begun: cohorts.Round,
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

Call = tuple[totals.Sums, cohorts.Clients, cohorts.Group]  # of `run_group`


def compile_groups(
    wanted: Sequence[tuple[client.Static, cohorts.Round]], call: Call, devices: Mesh
) -> list[jax.stages.Compiled]:
    """Compiles `run_group`, what is new side by side.

    Where a process can hold no more programs, those that were used longest ago go, once
    what they compute is done.

    Args:
      wanted: what is static, AT_ONCE at most of a network with a thousand kernels, and
        any round that such clients begin with.
      call: the other positional arguments of `run_group`, on the devices; any group.
      devices: the mesh.

    Returns:
      For each of those wanted what is called as `run_group`, with the positional
      arguments.
    """
    sums, clients, group = call
    begun = wanted[0][1]  # the key tells of how many runs
    leaves = jax.tree.leaves((begun.data, begun.key, clients, group))
    shapes = [(x.shape, x.dtype) for x in leaves]
    keys = [(static, devices, *shapes) for static, _ in wanted]
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
            programs.Request(
                run_group, (one, *call), {"static": static, "devices": devices}
            )
            for static, one in (wanted[i] for i in missing)
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
