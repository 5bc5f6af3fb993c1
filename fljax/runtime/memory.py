"""What a machine can hold, asked before it is allocated."""

from __future__ import annotations

import math
import os
import pathlib

import jax

from fljax.runtime import backends

_CONTAINER = pathlib.Path("/sys/fs/cgroup/memory.max")


def of_host() -> float:
    """Give the bytes of this machine, or of its container; infinite if untold."""
    try:
        most = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not on every system
        most = math.inf
    try:
        return min(most, float(_CONTAINER.read_text()))
    except (OSError, ValueError):  # "max"
        return most


def of_device() -> float:
    """Give the bytes of the device that programs run on; infinite if untold."""
    if not backends.accelerated():
        return of_host()
    told = jax.local_devices()[0].memory_stats() or {}
    return float(told.get("bytes_limit", math.inf))


def require(opening: str, what: str, size: float, most: float) -> None:
    """Refuse what cannot fit, before anything is allocated for it.

    Args:
      opening: of the error: the flag or the file.
      what: needs it, such as "60,000 images of 224 x 224".
      size: bytes that it needs at least.
      most: bytes that there are.

    Raises:
      ValueError: there are fewer; with both figures.
    """
    if size > most:
        raise ValueError(
            f"{opening}: expected what fits into {written(most)} of memory, got "
            f"{what}, which would take {written(size)}"
        )


def written(size: float) -> str:
    """Write a number of bytes as 20 kB, 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
