"""Sums of a round's updates: added up on each device of the mesh, then over all.

Devices meet once a round, when `total` adds up their sums: until then each goes
through its share of all groups at its own pace.

Legend: D devices, K clients of the cohort, n blocks.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fljax import types
from fljax.runtime import mesh
from fljax.updates import server

# Why an update was refused.
NOT_FINITE, TOO_LARGE, UNMEASURED = 1.0, 2.0, 3.0


class Sums(NamedTuple):
    """What the groups of a round have come to; [D, ...] until `total`.

    Attributes:
      totals: sums for the server.
      losses: [K] mean training loss of each client.
      failed: [K] 0: the update was taken; NOT_FINITE or TOO_LARGE: refused.
      l2: [K, 2, n] L2 norm of what each client changed in the parameters of each block,
        and in its statistics and ranges; 0 of a refused update.
    """

    totals: server.Totals
    losses: types.Array
    failed: types.Array
    l2: types.Array


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
        l2 = jnp.zeros((size, 2, len(blocks)))
        sums = Sums(server.zero_totals(blocks), zeros, zeros, l2)
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
