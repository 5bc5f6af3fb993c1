"""What results depend on beside the configuration: versions, source, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform

import jax

from fljax import version

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def _source() -> str:
    """Hash the library's source."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCE = _source()  # as it is imported: it may be edited while a run goes on


def describe() -> dict[str, str | int]:
    """Name all of it.

    Returns:
      The versions of `fljax` and what it builds on, `python`, `source` (a hash of the
      library's files), `processor`, `cores` that this process may use, and `device`,
      number and kind of JAX's devices.
    """
    devices = jax.devices()
    return {
        "fljax": version.VERSION,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "source": _SOURCE,
        "processor": _processor(),
        "cores": _cores(),
        "device": f"{len(devices)} x {devices[0].platform} {devices[0].device_kind}",
    }


def _processor() -> str:
    """Name the model, where Linux tells it, else the architecture."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    )
    return next(models, platform.processor() or platform.machine())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
