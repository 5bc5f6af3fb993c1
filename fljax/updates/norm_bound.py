"""A bound on the L2 norm of an update, relative to what robust medians find usual.

An update is refused whose L2 norm is beyond a bound times the usual one of the blocks
that it trains. What is usual is the median of a round's clients, block by block, moved
half the way from what it was, since the norms of a training fall and rise.

Legend: K clients of a round, n blocks; [2, ..]: parameters, and what is sent beside
them (statistics and ranges).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from fljax import types
from fljax.runtime import mesh

# A client whose parameters moved, in the mean, this many times as far as the median
# client's teaches nothing of what is usual; windows differ by less than that.
_OUTLYING = 100.0

# Statistics differ between clients more than what they train does, so that they are
# refused beyond the bound times this.
_STATISTICS = 10.0

# Until so many updates have been measured none is taken: one may be of any norm, and
# of two the smaller is believed.
FEWEST = 2

# Usual L2 norms grow by a half a round at most, for a few arrivals may all be far off.
_GROWTH = 2.0

Sizes = tuple[tuple[int, ...], tuple[int, ...]]  # of blocks: parameters, the rest


def usual(before: types.Array, l2: types.Array, sizes: Sizes) -> types.Array:
    """Moves usual L2 norms half the way to the medians of a round.

    Args:
      before: [2, n]; 0: not known yet.
      l2: [K, 2, n] L2 norms of the updates; 0: of a block outside the window.
      sizes: of the blocks.

    Returns:
      [2, n].
    """
    parts = [_usual_part(before[i], l2[:, i], size) for i, size in enumerate(sizes)]
    return jnp.stack(parts)


def _usual_part(
    before: types.Array, l2: types.Array, sizes: tuple[int, ...]
) -> types.Array:
    """Moves usual L2 norms [n] of one kind half the way to the medians of [K, n].

    A block's median is of few clients, so one of two that is far off would be half of
    it: who is far from the median of all clients is left out first.
    """
    trained = l2 > 0
    parameters = jnp.sum(jnp.where(trained, jnp.asarray(sizes, jnp.float32), 0.0), 1)
    steps = jnp.linalg.norm(l2, axis=1) / jnp.sqrt(jnp.maximum(parameters, 1.0))
    median = jnp.nanquantile(jnp.where(steps > 0, steps, jnp.nan), 0.5, method="lower")
    trained &= (steps <= _OUTLYING * median)[:, None]
    medians = jnp.nan_to_num(jnp.nanmedian(jnp.where(trained, l2, jnp.nan), 0))
    medians = jnp.where(before > 0, jnp.minimum(medians, _GROWTH * before), medians)
    mixed = jnp.where(before > 0, (before + medians) / 2, medians)
    return jnp.where(medians > 0, mixed, before)


def median(l2: types.Array) -> types.Array:
    """Gives the median L2 norm of a round's updates; NaN: there are none.

    Args:
      l2: [K, 2, n] L2 norms of the updates; 0: of a block outside the window.
    """
    norms = jnp.linalg.norm(l2, axis=(1, 2))
    return jnp.nanmedian(jnp.where(norms > 0, norms, jnp.nan))


@functools.partial(jax.jit, static_argnames=("sizes", "devices"))
def first(before, l2, *, sizes, devices):
    """Learns the usual L2 norms from a round in which nothing is taken yet.

    Args:
      before: [2, n] of such rounds before; the smaller of two is believed.
      l2: [D, K, 2, n] of the round's updates, a row on each device, 0 in those
        of the others.
      sizes: of the blocks.
      devices: the mesh.

    Returns:
      The norms [2, n], and the number of updates that were measured.
    """
    # One program: several that each wait for all devices may block each other.
    seen = jnp.sum(l2, axis=0)
    new = usual(jnp.zeros_like(before), seen, sizes)
    both = (before > 0) & (new > 0)
    new = jnp.where(both, jnp.minimum(before, new), jnp.maximum(before, new))
    result = new, jnp.sum(jnp.any(seen > 0, axis=(1, 2)))
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))


@functools.partial(jax.jit, static_argnames=("bound", "sizes"))
def limits(l2: types.Array, *, bound: float, sizes: Sizes) -> types.Array:
    """Computes the squared L2 norms [2, n] beyond which an update is refused.

    Args:
      l2: [2, n] usual L2 norms.
      bound: how many times these are allowed.
      sizes: of the blocks.
    """
    bounds = bound, bound * _STATISTICS
    parts = zip(l2, bounds, sizes, strict=True)
    return jnp.stack([_limits_part(*part) for part in parts])


def _limits_part(l2: types.Array, bound: float, sizes: tuple[int, ...]):
    """Computes the squared L2 norms [n] of one kind.

    A block that nobody has trained yet is taken to change as the others do, parameter
    by parameter; while no block is known nothing is refused.
    """
    root = jnp.sqrt(jnp.asarray(sizes, jnp.float32))
    typical = jnp.nanmedian(jnp.where(l2 > 0, l2 / root, jnp.nan))
    length = jnp.where(l2 > 0, l2, jnp.nan_to_num(typical, nan=jnp.inf) * root)
    return jnp.where(root > 0, jnp.square(bound * length), 0.0)
