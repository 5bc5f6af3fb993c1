"""The clients of a round: sample, group by program, spread over devices, run, sum.

The ONE place that batches clients. A group of clients with the same program, a plan's
or that of all windows, is one call of it: it freezes blocks once, then every device
loops over its chunks of W clients, vectorised over the chunk, and adds up what they
send. The number of clients is an argument of the program, not part of its shape, so it
compiles once. W is 1 on CPU (vmap over clients is slower there than one at a time) and
wide on accelerators.

Devices meet once a round, when `total` adds up their sums: until then each goes
through its share of all groups at its own pace.

Legend: D devices, S slots of a device, K clients of the cohort, W of a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fljax import backends, client, mesh, mixed, plans, programs, server, trees, types
from fljax.data import partition
from fljax.models import network

# Keys of a round by use, away from client ids (see devices.BUDGET_TAG).
ROUNDING_TAG = 0xFFFF0003

# Why an update was refused.
NOT_FINITE, TOO_LARGE, UNMEASURED = 1.0, 2.0, 3.0


@dataclasses.dataclass(frozen=True, order=True)
class Program:
    """What the program of a group of clients is made for.

    Attributes:
      plan: of all its clients; `plans.Mixed`: each has its own window.
      capacity: examples that a client has at most.
      short: whether clients with more examples have programs of their own.
    """

    plan: plans.Plan | plans.Mixed
    capacity: int
    short: bool = False

    def __str__(self) -> str:
        limit = f" of up to {self.capacity} examples" if self.short else ""
        return f"{self.plan}{limit}"


class Clients(NamedTuple):
    """The cohort; shared by all devices.

    Attributes:
      indices: int32, the examples of all clients of the run, one after the other.
      ids: [K] int32, client numbers.
      starts: [K] int32, where their examples begin.
      counts: [K] int32, how many they are.
      weights: [K] float32.
      tampering: [K] float32, what goes wrong with an update: its factor.
      scales: [K] float32, how much of an update is taken: less of a stale one.
      windows: [K, 2] int32, first and last block that they train.
    """

    indices: types.ArrayLike
    ids: types.ArrayLike
    starts: types.ArrayLike
    counts: types.ArrayLike
    weights: types.ArrayLike
    tampering: types.ArrayLike
    scales: types.ArrayLike
    windows: types.ArrayLike


class Group(NamedTuple):
    """Which clients of the cohort each device trains in one program.

    Attributes:
      positions: [D, S] int32, their places in the cohort; K for padding.
      sizes: [D] int32, how many of a device's slots are clients.
    """

    positions: types.ArrayLike
    sizes: types.ArrayLike


class Sums(NamedTuple):
    """What the groups of a round have come to; [D, ...] until `total`.

    Attributes:
      totals: sums for the server.
      losses: [K] mean training loss of each client.
      failed: [K] 0: the update was taken; NOT_FINITE or TOO_LARGE: refused.
      norms: [K, 2, n] length of what each client changed in the parameters of each
        block, and in its statistics and ranges; 0 of a refused update.
    """

    totals: server.Totals
    losses: types.Array
    failed: types.Array
    norms: types.Array


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


Plan = TypeVar("Plan")


def group_by_plan(
    assigned: Sequence[Plan], ids: np.ndarray
) -> list[tuple[Plan, np.ndarray]]:
    """Sorts clients by plan, and by number within a plan.

    The order of the cohort then leaves no trace in the order of summation.

    Args:
      assigned: K plans, or anything that can be sorted and tells groups apart.
      ids: [K] client numbers.

    Returns:
      (plan, places in the cohort of its clients) for every plan, in order.
    """
    members: dict[Plan, list[int]] = {}
    for position, plan in enumerate(assigned):
        members.setdefault(plan, []).append(position)
    return [
        (plan, np.array(sorted(members[plan], key=lambda k: ids[k]), np.int32))
        for plan in sorted(members)  # type: ignore[type-var]
    ]


def gather(
    ids: np.ndarray,
    shards: partition.Shards,
    weights: np.ndarray,
    tampering: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    size: int | None = None,
    windows: np.ndarray | None = None,
) -> Clients:
    """Takes the cohort's rows out of the tables of all clients.

    Args:
      ids: [A] client numbers.
      shards: of all clients.
      weights: [N] of all clients.
      tampering: [A] factors; None: 1.
      scales: [A] factors; None: 1.
      size: K, A or more, filled up with rows that no group may name; None: A.
      windows: [A, 2] of the clients; None: no program asks for them.

    Returns:
      The cohort in host memory, [K]; the examples lie where they lay.
    """
    if windows is None:
        windows = np.zeros((len(ids), 2))
    padding = (0, (len(ids) if size is None else size) - len(ids))
    padded = np.pad(ids, padding)

    def factors(x):
        x = np.ones(len(ids)) if x is None else x
        return np.pad(x, padding).astype(np.float32)

    return Clients(
        indices=shards.indices,
        ids=padded.astype(np.int32),
        starts=shards.starts[padded],
        counts=shards.counts[padded],
        weights=weights[padded].astype(np.float32),
        tampering=factors(tampering),
        scales=factors(scales),
        windows=np.pad(windows, (padding, (0, 0))).astype(np.int32),
    )


def spread(
    groups: Sequence[np.ndarray],
    work: np.ndarray,
    devices: int,
    width: int,
    size: int | None = None,
) -> list[Group]:
    """Deals the chunks of all groups out to the devices, evenly by work.

    Within a group the clients with the most work come first, so that those of a chunk
    take about as long, and each chunk goes to the device with the least work so far
    (Graham, SIAM J. Appl. Math. 1969), as long as it has room.

    Args:
      groups: for each plan the places in the cohort of its clients.
      work: [A] of each client, in any unit.
      devices: D.
      width: W.
      size: K, of the cohort with its padding; None: A.

    Returns:
      A group for each plan, all of the same shape.
    """
    size = len(work) if size is None else size
    chunks = -(-size // width)
    room = -(-chunks // devices) * width
    queue, result = [(0.0, d) for d in range(devices)], []  # a heap of (load, device)
    for members in groups:
        ordered = members[np.argsort(-work[members], kind="stable")]
        positions = np.full((devices, room), size, np.int32)
        sizes = np.zeros(devices, np.int32)
        without_room: list[tuple[float, int]] = []
        for start, most in zip(
            range(0, len(ordered), width), work[ordered[::width]].tolist(), strict=True
        ):
            chunk = ordered[start : start + width]
            load, d = heapq.heappop(queue)
            positions[d, sizes[d] : sizes[d] + len(chunk)] = chunk
            sizes[d] += len(chunk)
            left = queue if sizes[d] < room else without_room
            heapq.heappush(left, (load + width * most, d))
        for device in without_room:
            heapq.heappush(queue, device)
        result.append(Group(positions, sizes))
    return result


@functools.partial(jax.jit, static_argnames=("size", "devices"))
def zero_sums(blocks: tuple[dict, ...], *, size: int, devices: Mesh) -> Sums:
    """Makes the sums of no client.

    Args:
      blocks: global state; its values are not used.
      size: K, static.
      devices: the mesh, static.

    Returns:
      Zeros [D, ...], a row on each device.
    """

    def on_device(blocks):
        zeros = jnp.zeros(size)
        norms = jnp.zeros((size, 2, len(blocks)))
        sums = Sums(server.zero_totals(blocks), zeros, zeros, norms)
        return jax.tree.map(lambda x: x[None], sums)

    return jax.shard_map(
        on_device,
        mesh=devices,
        in_specs=mesh.SHARED,
        out_specs=mesh.PER_DEVICE,
        check_vma=False,
    )(blocks)


@jax.jit
def weights_so_far(sums: Sums) -> types.Array:
    """Copies the weights [D, blocks] of those who trained each block."""
    return jnp.copy(sums.totals.weights)


@functools.partial(jax.jit, donate_argnums=(0,))
def catch_up(
    sums: Sums,
    weights: types.Array,
    then: tuple[dict, ...],
    now: tuple[dict, ...],
    scale: types.Array,
) -> Sums:
    """Counts statistics and ranges of late updates from the network of today.

    A parameter moves along what a client changed, whatever it began with. Statistics
    and ranges are averaged, which deltas from an old network do not do: several of them
    would take the old value off several times, and leave a variance below 0.

    Args:
      sums: with the late updates; given up to the result.
      weights: `weights_so_far` without them.
      then: state of the network that they began with.
      now: that of today.
      scale: how much of each is taken, [].

    Returns:
      The sums, with scale * weight * (then - now) of all but parameters added.
    """
    late = scale * (sums.totals.weights - weights)

    def moved(i: int, name: str, old: types.Array, new: types.Array) -> types.Array:
        shift = jnp.ravel(old - new) * (name != "params")
        return late[:, i, None] * shift

    by_block = [
        {name: jax.tree.map(functools.partial(moved, i, name), a[name], b[name])
         for name in a}
        for i, (a, b) in enumerate(zip(then, now, strict=True))
    ]  # fmt: skip
    rows = jax.tree.leaves(by_block)  # [D, size] each, in the order of `trees.ravel`
    deltas = sums.totals.deltas + jnp.concatenate(rows, axis=1)
    return sums._replace(totals=sums.totals._replace(deltas=deltas))


def total(sums: Sums) -> Sums:
    """Adds up the rows of the devices."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _norms(delta: tuple) -> types.Array:
    """Measures how far parameters, and all else of each block, went: [W, 2, blocks]."""
    width = jax.tree.leaves(delta)[0].shape[0]

    def length(part):
        rows = [leaf.reshape(width, -1) for leaf in jax.tree.leaves(part)]
        squares = [jnp.sum(jnp.square(row), axis=1) for row in rows]
        return jnp.sqrt(sum(squares, jnp.zeros(width)))

    params = [length(block["params"]) for block in delta]
    others = [length({**block, "params": None}) for block in delta]
    return jnp.stack([jnp.stack(kind, axis=1) for kind in (params, others)], axis=1)


def _train_chunk(train, chunk: Clients, places):
    """Trains the W clients of a chunk; their results [W, ...], and the places."""
    arguments = (chunk.ids, chunk.starts, chunk.counts, chunk.windows)
    if chunk.ids.shape[0] > 1:
        return jax.vmap(functools.partial(train, places=None))(*arguments), None
    # A client axis of 1 would still batch every product.
    single = train(*(x[0] for x in arguments), places=places)
    row = jax.tree.map(lambda x: x[None], single._replace(places=None))
    return row, single.places


def _chunk(clients: Clients, positions: types.Array) -> Clients:
    """Takes the clients at positions [W]; padding trains on nothing and weighs 0."""
    real = positions < clients.ids.shape[0]

    def take(x):
        return x.at[positions].get(mode="clip")

    rows = jax.tree.map(take, clients._replace(indices=None))
    return rows._replace(
        counts=jnp.where(real, rows.counts, 0), weights=jnp.where(real, rows.weights, 0)
    )


def _run_on_device(
    blocks,
    sums: Sums,
    data,
    clients: Clients,
    group: Group,
    round_key,
    learning_rate,
    limits,
    *,
    net,
    program: Program,
    training,
    width: int,
) -> Sums:
    """Runs one device's share of a group: its row of the sums and of the group."""
    sums, group = (jax.tree.map(lambda x: x[0], tree) for tree in (sums, group))
    plan, training = program.plan, client.fitting(training, program.capacity)
    rounding = None
    if client.plan_spec(plan, training).rounding == "stochastic":
        rounding = jax.random.fold_in(round_key, ROUNDING_TAG)
    frozen = client.freeze(net, plan, training, blocks, rounding)
    inside = plans.span(plan, net.num_blocks)
    start = trees.size(blocks[: inside.start])
    totals = sums.totals

    def train(number, begin, count, window, places):
        """Trains one client; its window counts if the program is not of one."""
        slots = begin + jnp.arange(program.capacity)
        indices = clients.indices.at[slots].get(mode="clip")
        return client.train(
            *(net, plan, training, blocks, frozen, data, indices, count),
            jax.random.fold_in(round_key, number),
            learning_rate,
            (window[0], window[1]) if isinstance(plan, plans.Mixed) else None,
            places,
        )

    def trains(chunk):
        """Tells which of the program's blocks the clients train: [W, blocks]."""
        if isinstance(plan, plans.Mixed):
            return jax.vmap(lambda w: mixed.inside((w[0], w[1]), net.num_blocks))(
                chunk.windows
            )
        return jnp.ones((width, inside.stop - inside.start), bool)

    def chunk_step(i, carry):
        deltas, by_block, weight, losses, failed, norms, places = carry
        positions = lax.dynamic_slice_in_dim(group.positions, i * width, width)
        chunk = _chunk(clients, positions)
        result, places = _train_chunk(train, chunk, places)
        factor = chunk.tampering[:, None]
        sent = jax.vmap(trees.ravel)(result.delta[inside]) * factor
        lengths = _norms(result.delta[inside]) * factor[:, None]
        finite = jnp.all(jnp.isfinite(sent), axis=1) & jnp.isfinite(result.loss)
        trained = trains(chunk)
        limit = jnp.sum(jnp.where(trained[:, None], limits[:, inside], 0.0), axis=2)
        small = jnp.all(jnp.sum(jnp.square(lengths), axis=2) <= limit, axis=1)
        verdict = jnp.where(finite, jnp.where(small, 0.0, TOO_LARGE), NOT_FINITE)
        verdict = jnp.where(chunk.weights != 0, verdict, 0.0)  # or padding
        taken = verdict == 0
        weights = jnp.where(taken, chunk.weights, 0.0)
        teaches = finite & (chunk.weights != 0)  # refused or not
        lengths = jnp.where(teaches[:, None, None], lengths, 0.0)
        return (
            deltas + trees.weighted_sum(sent, weights * chunk.scales),
            by_block + jnp.sum(weights[:, None] * trained, axis=0),
            weight + jnp.sum(weights),
            losses.at[positions].set(result.loss, mode="drop"),
            failed.at[positions].set(verdict, mode="drop"),
            norms.at[positions, :, inside].set(lengths, mode="drop"),
            places,
        )

    window = lax.slice_in_dim(totals.deltas, start, start + trees.size(blocks[inside]))
    by_block = jnp.zeros(inside.stop - inside.start)
    places = None
    if width == 1:
        places = client.places(net, plan, training, blocks, frozen)
    kinds = (sums.losses, sums.failed, sums.norms)
    carry = (window, by_block, jnp.zeros(()), *kinds, places)
    window, by_block, weight, losses, failed, norms, _ = lax.fori_loop(
        0, -(-group.sizes // width), chunk_step, carry
    )
    new = server.Totals(
        lax.dynamic_update_slice_in_dim(totals.deltas, window, start, 0),
        totals.weights.at[inside].add(by_block),
        totals.cohort + weight,
    )
    return jax.tree.map(lambda x: x[None], Sums(new, losses, failed, norms))


@functools.partial(
    jax.jit,
    static_argnames=("net", "program", "training", "width", "devices"),
    donate_argnums=(1,),
)
def run_group(
    blocks: tuple[dict, ...],
    sums: Sums,
    data: client.Data,
    clients: Clients,
    group: Group,
    round_key: types.Key,
    learning_rate: types.Array,
    limits: types.Array,
    *,
    net: network.Network,
    program: Program,
    training: client.Training,
    width: int,
    devices: Mesh,
) -> Sums:
    """Trains the clients of one program and adds what they send to the sums.

    Args:
      blocks: global state, a tuple over blocks.
      sums: of the groups before; given up to the result.
      data: training data on the devices.
      clients: the cohort.
      group: which of them, S a multiple of the width.
      round_key: of this round; a client's is fold_in(round_key, number).
      learning_rate: of the clients, [].
      limits: [2, n] squared length that a client may change a block's parameters by,
        and its statistics and ranges; an update either of whose squared lengths is
        above the sum over its window is refused.
      net: static.
      program: what these clients have in common, static.
      training: static.
      width: W, clients that run side by side, static.
      devices: the mesh, static.

    Returns:
      The new sums.
    """
    shared, own = mesh.SHARED, mesh.PER_DEVICE
    return jax.shard_map(
        functools.partial(
            _run_on_device, net=net, program=program, training=training, width=width
        ),
        mesh=devices,
        in_specs=(shared, own, shared, shared, own, shared, shared, shared),
        out_specs=own,
        # Nothing here talks to another device: what differs needs no marking.
        check_vma=False,
    )(blocks, sums, data, clients, group, round_key, learning_rate, limits)


# Programs of this process, by what they are made for and all that is static beside it.
_programs: dict[tuple, jax.stages.Compiled] = {}  # used last comes last
_made: list[int] = []  # how many, each time that some were

# Programs that are held at the same time at least, see `programs.crowded`.
PLANS_AT_ONCE = 8


def compile_groups(
    wanted: Sequence[Program], *arguments: Any, **static: Any
) -> dict[Program, jax.stages.Compiled]:
    """Compiles the programs of groups, those that are new side by side.

    Where a process can hold no more programs, those that were used longest ago go, once
    what they compute is done.

    Args:
      wanted: PLANS_AT_ONCE at most of a network with a thousand kernels.
      *arguments: of `run_group`, on the devices; any of the groups.
      **static: its static arguments, without the program.

    Returns:
      For each what is called as `run_group`, with the positional arguments.
    """
    _, sums, data, clients, group, *_ = arguments
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves((data, clients, group))]
    keys = {program: (program, *static.values(), *shapes) for program in wanted}
    for program in wanted:
        if keys[program] in _programs:
            _programs[keys[program]] = _programs.pop(keys[program])
    missing = [program for program in wanted if keys[program] not in _programs]
    if not missing:
        return {program: _programs[keys[program]] for program in wanted}
    if programs.crowded():
        jax.block_until_ready(sums)
        others = [key for key in _programs if key not in keys.values()]
        for key in others[: len(others) // 2 + 1]:
            del _programs[key]
        # JAX keeps what it has compiled for a function; its types do not name this.
        run_group.clear_cache()  # type: ignore[attr-defined]
    made = programs.compile_all(
        [
            programs.Request(run_group, arguments, static | {"program": program})
            for program in missing
        ]
    )
    _programs.update(zip((keys[program] for program in missing), made, strict=True))
    _made.append(len(made))
    return {program: _programs[keys[program]] for program in wanted}


def compiled_programs() -> list[tuple[Program, jax.stages.Compiled]]:
    """Lists the programs of groups that this process holds."""
    return [(key[0], program) for key, program in _programs.items()]


def forget() -> None:
    """Forgets all programs: what somebody has replaced in a module is traced anew."""
    _programs.clear()
    jax.clear_caches()


def num_programs() -> int:
    """Counts the programs of groups that this process has compiled or loaded so far.

    Those that have made room for others are among them.
    """
    return sum(_made)


# Clients side by side at most: what is wider waits longer for the slowest of a chunk.
MOST_SIDE_BY_SIDE = 128

# Of a device's memory, what the clients of a chunk may take, and what a device is taken
# to have that does not tell.
_SHARE, _UNTOLD = 0.5, 16e9

# Memory of a chunk is up to twice what `bytes_of_client` says (as XLA counts it for an
# H100: mobilenetv2 1.0, its mixed windows 1.9, cnn_dropout 1.1 and 1.3, cnn 1.7).
_EXCESS = 2.0


def bytes_of_client(
    counts: Sequence[types.BlockCounts], training: client.Training
) -> int:
    """Estimates the memory of training one client: activations, weights, gradients."""
    kept = sum(count.kept for count in counts) * training.batch_size
    parameters = sum(count.params for count in counts)
    return jnp.dtype(training.precision).itemsize * kept + 4 * 3 * parameters


def default_width(
    counts: Sequence[types.BlockCounts], training: client.Training, clients: int
) -> int:
    """Gives the number of clients that run side by side on this backend.

    On CPU one: there vmap over clients is slower than one at a time. On accelerators as
    many as a round has for a device and as fit its memory.

    Args:
      counts: of the network's blocks.
      training: its batch size and precision.
      clients: of a round, on each device.

    Returns:
      W, 1 or more.
    """
    if not backends.accelerated():
        return 1
    told = jax.local_devices()[0].memory_stats() or {}
    memory = _SHARE * told.get("bytes_limit", _UNTOLD)
    fit = int(memory / (_EXCESS * bytes_of_client(counts, training)))
    return max(1, min(clients, fit, MOST_SIDE_BY_SIDE))
