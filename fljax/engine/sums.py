"""Sums of a round's updates: added up on each device of the mesh, then over all.

Devices meet once a round, when `total` adds up their sums: until then each goes
through its share of all groups at its own pace.

Legend: D devices, K clients of the cohort, n blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fljax import trees, types
from fljax.engine import cohort
from fljax.engine import seams as kinds
from fljax.nn import slicing
from fljax.runtime import mesh, streams
from fljax.updates import attacks, codecs, secure_sum, server
from fljax.updates.aggregates import combined

# Why an update was refused.
NOT_FINITE, TOO_LARGE, UNMEASURED = 1.0, 2.0, 3.0


class Attackers(NamedTuple):
    """The cohort as hostile clients need it who collude.

    Attributes:
      hostile: [K] bool.
      ids: [K] int32, client numbers.
      weights: [K] float32.
      tampering: [K] float32, as of `cohort.Clients`.
      key: of the round.
    """

    hostile: types.ArrayLike
    ids: types.ArrayLike
    weights: types.ArrayLike
    tampering: types.ArrayLike
    key: types.Key


class Sums(NamedTuple):
    """What the groups of a round have come to; [D, ...] until `total`.

    Attributes:
      totals: sums for the server.
      losses: [K] mean training loss of each client.
      failed: [K] 0: the update was taken; why it was refused (NOT_FINITE and so on).
      l2: [K, 2, n] L2 norm of what each client changed in the parameters of each block,
        and in its statistics and ranges; 0 of a refused update.
      updates: one by one; None: nobody looks at them.
      states: [K, S] the clients' states after the round; None: they keep none.
    """

    totals: server.Totals
    losses: types.Array
    failed: types.Array
    l2: types.Array
    updates: combined.Updates | None = None
    states: types.Array | None = None


class Earlier(NamedTuple):
    """What of sums tells later who came since.

    Attributes:
      weights: [D, n] of those who trained each block.
      held: [D, P] who have each value; None: who trained a block has all of it.
      trained: [D, K, n] as of `Updates`; None: nobody looks at them.
    """

    weights: types.Array
    held: types.Array | None
    trained: types.Array | None


@functools.partial(jax.jit, static_argnames=("size", "seams", "devices"))
def zero_sums(
    blocks: tuple[dict, ...],
    *,
    size: int,
    seams: kinds.Seams = kinds.NONE,
    devices: Mesh,
) -> Sums:
    """Makes the sums of no client.

    Args:
      blocks: global state; its values are not used.
      size: K, static.
      seams: what clients send and keep beside their updates, static.
      devices: the mesh, static.

    Returns:
      Zeros [D, ...], a row on each device.
    """

    def on_device(blocks):
        zeros, local, n = jnp.zeros(size), seams.local, len(blocks)
        params = trees.size(server.params_of(blocks))
        kind = jnp.float32 if seams.secure is None else jnp.uint32
        totals = server.Totals(
            jnp.zeros(trees.size(blocks), kind),
            jnp.zeros(n),
            jnp.zeros(()),
            jnp.zeros(params, kind) if local and local.messages else None,
            jnp.zeros(local.numbers, kind) if local and local.numbers else None,
            jnp.zeros(trees.size(blocks)) if seams.narrowing else None,
            jnp.zeros(()) if seams.privacy else None,
        )
        updates, kept = None, kinds.state_size(seams, blocks)
        if seams.sees_updates:
            updates = combined.zeros(blocks, size)
        states = jnp.zeros((size, kept)) if kept else None
        sums = Sums(totals, zeros, zeros, jnp.zeros((size, 2, n)), updates, states)
        return jax.tree.map(lambda x: x[None], sums)

    return jax.shard_map(
        on_device,
        mesh=devices,
        in_specs=mesh.SHARED,
        out_specs=mesh.PER_DEVICE,
        check_vma=False,
    )(blocks)


@jax.jit
def weights_so_far(sums: Sums) -> Earlier:
    """Copies the weights of those who trained each block, and who have each value."""
    trained = None if sums.updates is None else sums.updates.trained
    earlier = Earlier(sums.totals.weights, sums.totals.held, trained)
    return jax.tree.map(jnp.copy, earlier)


def columns(blocks: tuple[dict, ...], span: slice) -> tuple[int, int]:
    """Says where the blocks of a program begin in all, and how many values they are."""
    return trees.size(blocks[: span.start]), trees.size(blocks[span])


def part(sums: server.Totals, begun: cohort.Round, span: slice) -> server.Totals:
    """Takes the sums of a program's blocks out of those of all; weights are counted.

    Args:
      sums: of all blocks.
      begun: the round, `narrowed`.
      span: the blocks of the program.

    Returns:
      The sums so far; of a narrower network zeros, which `joined` adds to what there
      is.
    """
    first, size = columns(begun.blocks, span)
    count, message = jnp.zeros(span.stop - span.start), sums.message
    if begun.channels is not None:
        empty = jnp.zeros(size)
        return server.Totals(empty, count, jnp.zeros(()), held=empty)
    if message is not None:
        begin, width = columns(server.params_of(begun.blocks), span)
        message = lax.slice_in_dim(message, begin, begin + width)

    def taken(values):
        return lax.slice_in_dim(values, first, first + size)

    held = None if sums.held is None else taken(sums.held)
    deltas = taken(sums.deltas)
    return server.Totals(
        deltas, count, jnp.zeros(()), message, sums.numbers, held, sums.below
    )


def joined(
    sums: server.Totals, part: server.Totals, begun: cohort.Round, span: slice
) -> server.Totals:
    """Puts the sums of a program's blocks back into those of all.

    Args:
      sums: of all blocks.
      part: of the program's.
      begun: the round, `narrowed`.
      span: the blocks of the program.

    Returns:
      The sums of all.
    """
    first, _ = columns(begun.everything, span)
    message = sums.message
    if message is not None and part.message is not None:
        begin, _ = columns(server.params_of(begun.blocks), span)
        message = lax.dynamic_update_slice_in_dim(message, part.message, begin, 0)

    def put(into, values):
        if into is None or values is None:
            return into
        if begun.channels is None:
            return lax.dynamic_update_slice_in_dim(into, values, first, 0)
        small, like = trees.unravel(values, begun.blocks[span]), begun.everything[span]
        wide = trees.ravel(slicing.put(small, begun.channels[span], like))
        return into.at[first : first + wide.size].add(wide)

    return server.Totals(
        put(sums.deltas, part.deltas),
        sums.weights.at[span].add(part.weights),
        sums.cohort + part.cohort,
        message,
        sums.numbers if part.numbers is None else part.numbers,
        put(sums.held, part.held),
        part.below,
    )


@functools.partial(jax.jit, donate_argnums=(0,))
def catch_up(
    sums: Sums,
    earlier: Earlier,
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
      earlier: `weights_so_far` without them.
      then: state of the network that they began with.
      now: that of today.
      scale: how much of each is taken, [].

    Returns:
      The sums, with scale * weight * (then - now) of all but parameters added.
    """
    weights, held, before = earlier
    late = scale * (sums.totals.weights - weights)

    def moved(i: int, name: str, old: types.Array, new: types.Array) -> types.Array:
        shift = jnp.ravel(old - new) * (name != "params")
        return shift if held is not None else late[:, i, None] * shift

    by_block = [
        {name: jax.tree.map(functools.partial(moved, i, name), a[name], b[name])
         for name in a}
        for i, (a, b) in enumerate(zip(then, now, strict=True))
    ]  # fmt: skip
    rows = jax.tree.leaves(by_block)  # [D, size] each, in the order of `trees.ravel`
    if held is None or sums.totals.held is None:
        deltas = sums.totals.deltas + jnp.concatenate(rows, axis=1)
    else:
        late = scale * (sums.totals.held - held)
        deltas = sums.totals.deltas + late * jnp.concatenate(rows)
    updates = sums.updates
    if updates is not None and before is not None:
        late = scale * (updates.trained - before)
        updates = combined.shifted(updates, late, then, now)
    return sums._replace(totals=sums.totals._replace(deltas=deltas), updates=updates)


def total(sums: Sums) -> Sums:
    """Adds up the rows of the devices."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


class Left(NamedTuple):
    """Masks that are left in a secure sum, of who dropped out.

    Attributes:
      key: of the round.
      pairs: [L, 4] int32, as of `secure_sum.unmasked`.
    """

    key: types.Key
    pairs: types.ArrayLike


def opened(
    totals: server.Totals,
    words: secure_sum.Words | None,
    left: Left | None,
    blocks: tuple[dict, ...],
) -> server.Totals:
    """Turns sums of words into those of floats.

    Args:
      totals: over all devices.
      words: of the run; None: they are floats.
      left: masks to take off; None: there are none.
      blocks: global state; its values are not used.

    Returns:
      The sums, of floats.
    """
    if words is None:
        return totals
    named = {name: getattr(totals, name) for name in ("deltas", "message", "numbers")}
    sums = {name: total for name, total in named.items() if total is not None}
    if left is not None:
        drawn = mask_streams(left.key, blocks, slice(0, len(blocks)), sums)
        sums = {
            name: secure_sum.unmasked(drawn[name], total, left.pairs)
            for name, total in sums.items()
        }
    values = {name: secure_sum.opened(words, total) for name, total in sums.items()}
    return totals._replace(**values)


def mask_streams(
    key: types.Key, blocks: tuple[dict, ...], span: slice, sent: Mapping[str, Any]
) -> dict[str, secure_sum.Stream]:
    """Says which numbers mask what is sent of a program's blocks.

    Args:
      key: of the round.
      blocks: of the whole network.
      span: the blocks of the program.
      sent: field of `server.Totals` -> what is sent of it.

    Returns:
      field -> its stream.
    """
    key, found = jax.random.fold_in(key, streams.MASKS), {}
    for tag, name in enumerate(("deltas", "message", "numbers")):
        if name not in sent:
            continue
        own = jax.random.fold_in(key, tag)
        if name == "numbers":  # of no block
            size = sent[name].shape[-1]
            found[name] = secure_sum.Stream(own, size, 0, size, None)
            continue
        whole = blocks if name == "deltas" else server.params_of(blocks)
        first, size = columns(whole, span)
        lengths = [*map(trees.size, whole[span])]
        block_of = np.repeat(np.arange(span.start, span.stop, dtype=np.int32), lengths)
        found[name] = secure_sum.Stream(own, trees.size(whole), first, size, block_of)
    return found


def filled(
    sums: Sums, seams: kinds.Seams, attackers: Attackers, blocks: tuple[dict, ...]
) -> Sums:
    """Puts in what hostile clients send who know the honest updates of the round.

    All send the same, of the blocks that each trained, through the codec; who sends
    another thing every round keeps no error memory. It is made of updates as the server
    takes them, less of stale ones.

    Args:
      sums: of all devices; those of the hostile are zeros.
      seams: with an attack of who colludes.
      attackers: who is hostile.
      blocks: global state.

    Returns:
      The sums, with updates one by one only if the aggregate asks for them.
    """
    updates, attack, codec = sums.updates, seams.attack, seams.codec
    if updates is None or attack is None:
        raise ValueError(f"expected updates one by one beside {attack}")
    sizes = tuple(map(trees.size, server.params_of(blocks)))
    trained, hostile = updates.trained > 0, jnp.asarray(attackers.hostile)
    if seams.aggregate.root_size:  # the first row is the server's, whom nobody knows
        trained = trained.at[0].set(False)
    params = jnp.concatenate(updates.params, axis=1)
    known = attacks.know(params, trained, hostile, sizes)
    vector, block_of = attack.together(known), np.repeat(np.arange(len(sizes)), sizes)
    key = jax.random.fold_in(attackers.key, streams.ATTACK)
    places: Any = slice(None)  # of what is sent; nothing else is coded
    if seams.withheld is not None:
        places = seams.withheld.shared(blocks)

    def one(client):
        number, mine, factor = client
        here = mine[block_of]
        sent = jnp.where(here, vector, 0.0)
        if codec is not None:
            few, here = sent[places], here[places]
            memory = (jnp.zeros_like(few),) * codec.memories
            part = codecs.Part(here, jnp.argmax(here), jnp.maximum(jnp.sum(here), 1))
            draws = jax.random.fold_in(key, number)
            coded, _ = codec.apply(draws, few, part, memory)
            sent = sent.at[places].set(coded)
        return factor * sent

    bad = hostile & jnp.any(trained, axis=1)
    sent = lax.map(one, (attackers.ids, trained, attackers.tampering))
    sent = jnp.where(bad[:, None], sent, 0.0)  # a factor of others may not be finite
    zeros = jax.tree.map(jnp.zeros_like, blocks)
    total = trees.unravel(
        trees.weighted_sum(sent, attackers.weights), server.params_of(blocks)
    )
    whole = tuple(
        {**block, "params": params} for block, params in zip(zeros, total, strict=True)
    )
    totals = sums.totals._replace(deltas=sums.totals.deltas + trees.ravel(whole))
    rows = None
    if seams.aggregate.sees_updates:
        parts = jnp.split(sent, np.cumsum(sizes)[:-1].tolist(), axis=1)
        both = zip(updates.params, parts, strict=True)
        rows = updates._replace(params=tuple(old + new for old, new in both))
    return sums._replace(totals=totals, updates=rows)
