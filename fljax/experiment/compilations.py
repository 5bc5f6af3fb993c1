"""How long compilations take: remembered, to be told when the next one begins."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax

from fljax.algorithms import base
from fljax.engine import federation
from fljax.runs import writers
from fljax.runtime import durable, programs

_FILE = "compile_seconds.json"  # beside what JAX keeps of them
_MOST = 200  # that are remembered


@contextlib.contextmanager
def watched(
    fed: federation.Federation, wanted: Iterable, message: Callable[[str], None]
) -> Iterator[None]:
    """Tells how long a compilation took the last time, and remembers this one.

    Args:
      fed: whose programs are compiled.
      wanted: what the programs are made for.
      message: is given a line, if such a compilation is remembered.
    """
    path = _path()
    net, layout = fed.model.net, fed.layout
    name = ", ".join(
        (
            f"{net.name} of {net.num_blocks} blocks on {net.input_shape}",
            f"batches of {fed.training.batch_size}, {layout.width} at a time",
            f"on {layout.devices.size} x {layout.devices.devices.flat[0].device_kind}",
            *sorted(map(str, wanted)),
        )
    )
    if (seconds := _read(path).get(name)) is not None:
        message(f"the last such compilation took {seconds:.0f} s")
    spent, found = programs.seconds_spent(), programs.found_on_disk()
    yield
    seconds = programs.seconds_spent() - spent
    if path is not None and seconds and programs.found_on_disk() == found:
        known = _read(path)
        known.pop(name, None)
        newest = [*known.items(), (name, seconds)][-_MOST:]
        with contextlib.suppress(OSError):  # nothing but a line depends on it
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, writers.to_json(dict(newest)))


def told(
    made: base.Algorithm,
    fed: federation.Federation,
    message: Callable[[str], None],
) -> base.Algorithm:
    """Gives the algorithm with rounds that are watched where they compile."""
    seen: set = set()

    def round(state, assignment):
        wanted = set(made.programs(assignment)) - seen
        if not wanted:
            return made.round(state, assignment)
        seen.update(wanted)
        with watched(fed, wanted, message):
            return made.round(state, assignment)

    return made._replace(round=round)


def _path() -> pathlib.Path | None:
    folder = jax.config.values["jax_compilation_cache_dir"]
    return pathlib.Path(folder) / _FILE if folder else None


def _read(path: pathlib.Path | None) -> dict[str, float]:
    """Reads what is remembered; a damaged file says nothing."""
    try:
        known = json.loads(path.read_bytes()) if path else {}
        return {name: float(seconds) for name, seconds in known.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
