"""What this machine can do at most, and how much memory this process takes of it."""

from __future__ import annotations

import functools
import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fljax.runtime import mesh

_SIDE, _VALUES = 2048, 2**26  # of the product and of the copy that are timed
_TIMED = 6


def seconds(run: Callable[[], Any]) -> float:
    """Times a call, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def ceilings(devices: Mesh, precision: str = "float32") -> dict[str, float]:
    """Measures what products and copies reach at most.

    Args:
      devices: all of which work at a time.
      precision: dtype of the product.

    Returns:
      Of all devices together: operations of a large product in GFLOP/s, and bytes of
      a large copy, read and written, in GB/s.
    """

    def best(function, *shape, dtype) -> float:
        # A leading axis of one would make a batched product of it.
        own = jax.shard_map(
            lambda x: function(x[0])[None],
            mesh=devices,
            in_specs=mesh.PER_DEVICE,
            out_specs=mesh.PER_DEVICE,
        )
        row = jax.jit(own)
        x = mesh.distribute(devices, np.ones((devices.size, *shape), dtype))
        return min(seconds(functools.partial(row, x)) for _ in range(_TIMED))

    product = best(lambda x: x @ x, _SIDE, _SIDE, dtype=jnp.dtype(precision))
    copy = best(lambda x: x + 1, _VALUES, dtype=np.float32)
    return {
        "matmul_gflops": devices.size * 2 * _SIDE**3 / product / 1e9,
        "copy_gb_per_s": devices.size * 2 * 4 * _VALUES / copy / 1e9,
    }


def resident_mb() -> float:
    """Gives the memory of this process now, or where that is not told its peak."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mb()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def forget_peak() -> None:
    """Lets `peak_mb` count from now on, where the system can."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Gives the most memory that this process held since `forget_peak`."""
    try:
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in status if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def device_peak_mb() -> dict[str, float]:
    """Gives the most memory that this host's first device held since the start.

    Returns:
      The figure by name; nothing where the backend does not tell.
    """
    usage = jax.local_devices()[0].memory_stats() or {}
    peak = usage.get("peak_bytes_in_use")
    return {} if peak is None else {"device_peak_mb": peak / 1e6}
