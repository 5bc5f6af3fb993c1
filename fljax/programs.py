"""Compiled programs: made side by side, kept on disk beside JAX's own cache.

JAX's persistent cache saves XLA's part of a compilation; tracing and lowering a
network still take seconds a plan. Whole programs are therefore kept here as well,
under a name that covers all they depend on: the library's own source, the versions,
the device and its features, flags, static arguments, shapes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
from jax import lax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from fljax import backends

# Of programs on disk; one of MobileNetV2 takes up to 8 MB.
MOST_BYTES = 2**31

# Tracing holds Python's lock, XLA does not: one program is traced while two compile.
WORKERS = 2

# Packages whose versions, or sources, are in the name of a program.
_KNOWN = {"fljax", "jax", "jaxlib", "flax", "optax", "numpy", "builtins", "functools"}

# Settings of JAX that change what is traced or compiled.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_debug_nans",
    "jax_debug_infs",
)


class Request(NamedTuple):
    """A program that is wanted.

    Attributes:
      function: jitted.
      arguments: positional, as it will be called.
      static: keyword arguments that are static.
      result: what it returns, or anything of the same tree structure.
      keep: whether `static` says all about what is traced, by its repr: false if a
        function or a class of the user's is in it, see `is_known`.
      devices: that it runs on, in the order of its mesh; empty: the first one.
    """

    function: Any
    arguments: tuple
    static: dict[str, Any]
    result: Any
    keep: bool
    devices: tuple[jax.Device, ...] = ()


def compile_all(requests: Sequence[Request]) -> list[jax.stages.Compiled]:
    """Makes programs, from disk where they have been made before.

    Args:
      requests: the programs.

    Returns:
      What can be called with the positional arguments, in the order of the requests.
    """
    start = time.perf_counter()
    paths = [_path(request) for request in requests]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        made = list(pool.map(_load, paths, requests))
        _found.extend(True for program in made if program is not None)
        compiling = {}
        for i, (request, path) in enumerate(zip(requests, paths, strict=True)):
            if made[i] is None:
                lowered = request.function.lower(*request.arguments, **request.static)
                compiling[i] = pool.submit(_compile, lowered, path)
        result = [
            compiling[i].result() if program is None else program
            for i, program in enumerate(made)
        ]
    _spent.append(time.perf_counter() - start)
    return result


@contextlib.contextmanager
def anew() -> Iterator[None]:
    """Compiles without what is kept on disk, and keeps nothing."""
    name = "jax_compilation_cache_dir"
    folder = jax.config.values[name]
    jax.config.update(name, None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, folder)
        compilation_cache.reset_cache()


def is_known(value: Any) -> bool:
    """Tells whether a repr and the versions say what a static argument computes.

    Functions and classes of this library, JAX, Flax and optax are known by their names;
    those of the user's are not, wherever they stand in a module, a sequence or a
    partial: their code may change and their names stay.
    """
    if isinstance(value, functools.partial):
        return is_known((value.func, value.args, value.keywords))
    if isinstance(value, dict):
        return is_known((*value.keys(), *value.values()))
    if isinstance(value, tuple | list | set | frozenset):
        return _is_library(type(value)) and all(map(is_known, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (getattr(value, f.name, None) for f in dataclasses.fields(value))
        return _is_library(type(value)) and all(map(is_known, fields))
    if callable(value):
        return _is_library(value)
    return _is_library(type(value))


def _is_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.partition(".")[0] in _KNOWN


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


def _compile(lowered, path: pathlib.Path | None) -> jax.stages.Compiled:
    """Compiles a program and keeps it.

    A program that JAX's cache gave is not kept: on CPU what is serialised a second time
    has lost its functions ("Function ... not found" when it is called).
    """
    _compilation.from_cache = False
    compiled = lowered.compile(compiler_options=compiler_options())
    _found.append(_compilation.from_cache)
    if path is None or _compilation.from_cache:
        return compiled
    if _sources() == _SOURCES:  # else it would lie under the name of another source
        _store(path, serialize_executable.serialize(compiled)[0])
    return compiled


# XLA's CPU compiler strips optimisation barriers before it fuses, and its fusion then
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


def _store(path: pathlib.Path, payload: bytes) -> None:
    """Writes a whole file or none; a full or read-only disk costs only the cache."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(payload).digest() + payload)
                file.close()
                os.replace(file.name, path)
            except OSError:
                pathlib.Path(file.name).unlink(missing_ok=True)
        trim(path.parent.iterdir())


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


def _load(path: pathlib.Path | None, request: Request) -> jax.stages.Compiled | None:
    """Reads a program; None if there is none, or none that is whole."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # of a folder that is only to be read from
        os.utime(path)  # see `trim`
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return serialize_executable.deserialize_and_load(
            payload,
            jax.tree.structure((request.arguments, {})),
            jax.tree.structure(request.result),
            execution_devices=list(request.devices or jax.devices()[:1]),
        )
    except (jax.errors.JaxRuntimeError, ValueError):
        return None


def _path(request: Request) -> pathlib.Path | None:
    """Names the file of a program; None where it cannot be kept."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or not request.keep or jax.process_count() > 1:
        return None
    leaves, structure = jax.tree.flatten(request.arguments)
    parts = [
        _surroundings(),
        os.environ.get("XLA_FLAGS", ""),
        repr([jax.config.values[name] for name in _SETTINGS]),
        request.function.__qualname__,
        # Functions of the library go by their names; what they do is in its source.
        re.sub(
            r" at 0x[0-9a-f]+", "", repr(sorted(request.static.items(), key=_first))
        ),
        str(structure),
        str([device.id for device in request.devices]),
        *(f"{jax.typeof(x)}{getattr(x, 'sharding', None)}" for x in leaves),
    ]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return pathlib.Path(folder) / "programs" / name


def _first(item: tuple[str, Any]) -> str:
    return item[0]


@functools.cache
def _surroundings() -> str:
    """Describes what a program depends on beside its arguments."""
    versions = [m.__version__ for m in (jax, jaxlib, flax, optax, np)]
    devices = [(d.id, d.device_kind) for d in jax.devices()]
    client = jax.devices()[0].client
    features = sorted(backends.processor_features()) or platform.processor()
    machine = platform.machine(), features, backends.last_cache_bytes()
    return repr((_SOURCES, versions, devices, client.platform_version, machine))


def _sources() -> str:
    """Hashes the library's source."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCES = _sources()  # as it is imported: it may be edited before anything compiles
