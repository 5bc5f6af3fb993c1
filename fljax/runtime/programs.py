"""Compiled programs: made side by side, kept on disk by JAX's own cache alone.

That cache names what it keeps by the program itself, so a function that somebody has
replaced is another program. A second store, of whole programs that need not be traced
again, would have to name all that a trace reads; see docs/lab/compilation.md.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.compilation_cache import compilation_cache

from fljax.runtime import private

# Where JAX reads its folder from, and how long a compilation takes that is kept.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
_LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_CONFIG = FOLDER.lower()  # the same within a process
KEPT = "*-cache"  # what JAX calls a program

# Of programs on disk; one of MobileNetV2 takes up to 8 MB.
MOST_BYTES = 2**31

# Tracing holds Python's lock, XLA does not: one program is traced while two compile.
WORKERS = 2


class Request(NamedTuple):
    """A program that is wanted.

    Attributes:
      function: jitted.
      arguments: positional, as it will be called.
      static: keyword arguments that are static.
    """

    function: Any
    arguments: tuple
    static: dict[str, Any]


def compile_all(requests: Sequence[Request]) -> list[jax.stages.Compiled]:
    """Makes programs.

    Args:
      requests: the programs.

    Returns:
      What can be called with the positional arguments, in the order of the requests.
    """
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        compiling = [
            pool.submit(_compile, function.lower(*arguments, **static))
            for function, arguments, static in requests
        ]
        result = [program.result() for program in compiling]
    _spent.append(time.perf_counter() - start)
    return result


_told: list[str] = []  # the folders that this process was told to keep programs in


def keep(folder: str) -> None:
    """Has JAX keep compiled programs from now on.

    Args:
      folder: where, or an address of a store that JAX knows; empty: nowhere.
    """
    _told.append(folder)
    jax.config.update(_CONFIG, folder or None)
    if _LEAST not in os.environ:
        jax.config.update(_LEAST.lower(), 0.5)
    compilation_cache.reset_cache()  # what has compiled before has settled it
    if folder and folder != os.environ.get(FOLDER):
        # JAX's own bound takes a package more, and fails over what was written before
        # it was set. A folder of the variable's may be of other programs too.
        trim(pathlib.Path(folder).glob(KEPT))


def keep_at_home() -> str:
    """Has JAX keep them below this user's ~/.cache, unless it was told otherwise.

    What lies in that folder is run, so one that others may write is not used, whoever
    has named it.

    Returns:
      A line for the user where that cannot be, once; empty: all is well.
    """
    if _told or not jax.config.values["jax_enable_compilation_cache"]:
        return ""
    asked = jax.config.values[_CONFIG]
    if "://" in (asked or "") or (not asked and os.environ.get(FOLDER) is not None):
        return ""
    folder = asked or private.home()
    try:
        why = private.own(pathlib.Path(folder), KEPT) if folder else "there is no home"
    except OSError as error:
        why = str(error)
    if why or not asked:
        keep("" if why else folder)
    return f"compiled programs are not kept: {why}" if why else ""


@contextlib.contextmanager
def anew() -> Iterator[None]:
    """Compiles without what is kept on disk, and keeps nothing."""
    folder = jax.config.values[_CONFIG]
    jax.config.update(_CONFIG, None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(_CONFIG, folder)
        compilation_cache.reset_cache()


def crowded(share: float = 0.5) -> bool:
    """Tells whether this process holds many of the memory maps that Linux allows it.

    On CPU a program of MobileNetV2 takes one to two thousand of 65,530, so that the
    40th would end the process with a segmentation fault.

    Args:
      share: of those allowed, that is many.

    Returns:
      Whether there are more; False where it is not told.
    """
    try:
        most = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
        held = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return False
    return held > share * most


_spent: list[float] = []


def seconds_spent() -> float:
    """Sums up how long this process has waited for programs, made or from disk."""
    return sum(_spent)


_found: list[bool] = []  # of each program that was wanted


def found_on_disk() -> int:
    """Counts the programs that this process did not compile, since they were kept."""
    return sum(_found)


class _Compilation(threading.local):
    """What is known of the compilation that runs in this thread."""

    from_cache = False


_compilation = _Compilation()


def _notice(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _compilation.from_cache = True


jax.monitoring.register_event_listener(_notice)


def _compile(lowered) -> jax.stages.Compiled:
    _compilation.from_cache = False
    compiled = lowered.compile(compiler_options=compiler_options())
    _found.append(_compilation.from_cache)
    return compiled


# XLA's CPU compiler strips optimization barriers before it fuses, and its fusion then
# computes a chain of operations anew for each that reads its end: for all nine taps
# of a convolution, for all three products of an attention. So the pass that strips
# them is left out, where what comes after it copes with them.
#
# It also prefers vectors of 256 bits where the processor has 512; one that has not
# compiles to the same with either.
_CPU_OPTIONS: dict[str, Any] = {
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_cpu_prefer_vector_width": 512,
}


@functools.cache
def compiler_options() -> dict[str, Any]:
    """Gives the options that programs of this library are compiled with.

    An option that this version of XLA refuses is left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU_OPTIONS.items() if _takes(name, value)}


@functools.cache
def once_options() -> dict[str, Any]:
    """Gives the options of programs that run once: quick to compile, not to run."""
    name = "xla_backend_optimization_level"
    quick = jax.default_backend() == "cpu" and _takes(name, 0)
    return compiler_options() | ({name: 0} if quick else {})


def _takes(name: str, value: Any) -> bool:
    """Tells whether XLA compiles a program that has a barrier with this option."""
    barrier = jax.jit(lambda x: lax.optimization_barrier(x + 1) * 2)
    try:
        barrier.lower(jnp.zeros(2)).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def trim(files: Iterable[pathlib.Path]) -> None:
    """Removes what was written or used longest ago, beyond what may be kept.

    A change of the source leaves programs behind that nothing will ask for again.
    """
    left = MOST_BYTES
    with contextlib.suppress(OSError):  # another process may remove one first
        stats = {path: path.stat() for path in files}
        for path in sorted(stats, key=lambda p: stats[p].st_mtime, reverse=True):
            left -= stats[path].st_size
            if left < 0:
                path.unlink(missing_ok=True)
