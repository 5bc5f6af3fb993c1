"""What the environment asks of JAX: followed, told in a line, or refused in one.

Settings are read from JAX, which has them from JAX_* variables or from a script's
`jax.config.update`.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import jax

# What fljax cannot run with, its only value here, and why.
_REFUSED = {
    "jax_enable_x64": (False, "fljax computes in 32 bits"),
    "jax_disable_jit": (False, "fljax runs compiled programs"),
    "jax_no_tracing": (False, "fljax traces programs"),
    "jax_no_execution": (False, "fljax runs programs"),
    "jax_numpy_dtype_promotion": ("standard", "fljax mixes dtypes"),
    "jax_numpy_rank_promotion": ("allow", "fljax broadcasts vectors of channels"),
    "jax_transfer_guard": (None, "fljax moves data to the devices"),
    "jax_transfer_guard_host_to_device": (None, "fljax moves data to the devices"),
    "jax_transfer_guard_device_to_host": (None, "fljax reads what a round gives"),
    "jax_transfer_guard_device_to_device": (None, "fljax moves data between devices"),
}
_HARMLESS = {None, "allow", "log", "warn"}  # of those that are words

# Variables beside JAX's that change what is computed.
_OTHERS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")

# Of JAX's, what changes no result or is told by other lines.
_QUIET = re.compile(
    r"JAX_(PLATFORM|NUM_CPU_DEVICES|\w*_VISIBLE_DEVICES|\w*COMPILATION_CACHE|"
    r"PERSISTENT_CACHE|COORDINATOR|LOG|\w*TRACEBACK|DUMP|PPRINT)"
)


def check() -> None:
    """Checks what JAX has been asked for, and that it finds devices.

    Raises:
      ValueError: one line that names the variable, what was expected and what came.
    """
    for name, (wanted, why) in _REFUSED.items():
        value = getattr(jax.config, name, wanted)
        value = getattr(value, "value", value)  # some are enumerations
        harmless = isinstance(wanted, str | None) and value in _HARMLESS
        if value != wanted and not harmless:
            raise ValueError(
                f"{name.upper()}: expected {wanted}, since {why}, got {value}"
            )
    _check_flags(os.environ.get("XLA_FLAGS", ""))
    try:
        jax.devices()
    except RuntimeError as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if lost and jax.distributed.is_initialized():
            raise  # another process is gone
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        asked = {name: os.environ[name] for name in names if os.environ.get(name)}
        said = ", ".join(f"{name}={value}" for name, value in asked.items())
        raise ValueError(
            f"{said or 'JAX'}: expected a platform with devices that JAX can use, got: "
            f"{error}"
        ) from error


@functools.cache
def _check_flags(value: str) -> None:
    """Has another process read XLA's flags: one that is wrong ends the process."""
    if not value:
        return
    program = "from jaxlib import xla_client; xla_client.CompileOptions()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": value},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = re.search(r"^[EF]\d+.*?\] (.*)", done.stderr, re.MULTILINE)
        raise ValueError(
            f"XLA_FLAGS: expected flags of XLA, got {value!r}"
            + (f" ({said[1]})" if said else "")
        )


def notes() -> list[str]:
    """Names the variables that are followed and may change results, in a line."""
    said = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if value and (name in _OTHERS or name.startswith("JAX_"))
        if not _QUIET.match(name)
    ]
    return [f"results may differ by {', '.join(said)}"] if said else []
