"""How many clients run side by side: what fits the memory of a device."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax import types
from fljax.engine import client
from fljax.runtime import backends

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
