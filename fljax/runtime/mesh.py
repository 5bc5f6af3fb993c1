"""The devices that a round is spread over: a mesh with one axis, the clients.

Everything that all clients share (network, data) is replicated; what belongs to one
device (its share of the cohort, its sums) is a row of an array [D, ...]. Works alike
on one device, on several, and on those of several hosts.

Legend: D devices of the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fljax import types

CLIENTS = "clients"
SHARED = PartitionSpec()
PER_DEVICE = PartitionSpec(CLIENTS)


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh.

    Args:
      devices: which; None: all, those of other hosts included.

    Returns:
      A mesh of shape [D].
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (CLIENTS,))


def replicate(mesh: Mesh, tree: types.Tree) -> types.Tree:
    """Puts a tree onto every device; leaves that lie there already stay as they are.

    Args:
      mesh: the devices.
      tree: arrays on the host or anywhere; every host must have the same.

    Returns:
      The tree in the memory of the devices.
    """
    return _place(tree, NamedSharding(mesh, SHARED))


def distribute(mesh: Mesh, tree: types.Tree) -> types.Tree:
    """Puts row d of every leaf [D, ...] onto device d."""
    return _place(tree, NamedSharding(mesh, PER_DEVICE))


def _place(tree: types.Tree, sharding: NamedSharding) -> types.Tree:
    def place(leaf):
        if isinstance(leaf, jax.Array):
            if leaf.sharding == sharding:
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = place(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            if sharding.is_fully_addressable:
                return jax.device_put(leaf, sharding)
        values = np.asarray(leaf)
        kind = jax.dtypes.canonicalize_dtype(values.dtype)
        values = values.astype(kind, copy=False)
        # Each host fills its own devices; device_put would first compare the hosts'.
        return jax.make_array_from_callback(
            values.shape, sharding, lambda index: np.asarray(values[index])
        )

    return jax.tree.map(place, tree)


def local(tree: types.Tree) -> types.Tree:
    """Gives this host's copy of leaves that are replicated over several hosts."""

    def copy(leaf):
        shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if shared else leaf

    return jax.tree.map(copy, tree)


def from_first_host(tree: types.Tree) -> types.Tree:
    """Gives every host what the first one has.

    Args:
      tree: of the same structure, shapes and dtypes on all hosts; the values of the
        others do not matter.

    Returns:
      The first host's tree, in host memory if there are several hosts.
    """
    if jax.process_count() == 1:
        return tree

    def halves(leaf):
        # JAX would round what is 64 bits wide; as pairs of 32 they arrive whole.
        if not _is_wide(leaf):
            return leaf
        return np.ascontiguousarray(leaf).reshape(-1).view(np.uint32)

    def whole(leaf, sent):
        if not _is_wide(leaf):
            return sent
        return np.asarray(sent).view(leaf.dtype).reshape(leaf.shape)

    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(halves, tree))
    return jax.tree.map(whole, tree, sent)


def _is_wide(leaf) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.itemsize == 8
