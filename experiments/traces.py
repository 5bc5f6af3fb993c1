"""A profile of what runs: the share of it in which a device waits, and what takes long.

The profile itself lies in a folder that TensorBoard and XProf read.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

_LONGEST = 8  # kinds of operations that are named

# Threads of JAX's CPU backend, and streams of a GPU or a TPU's line of operations.
_CPU_THREADS, _DEVICE_LINES = "tf_XLA", ("Stream", "XLA Ops")
_NO_WORK = ("ThreadpoolListener", "ThunkExecutor", "end: ")  # events that are none


class Event(NamedTuple):
    """Something that ran on one line (a thread, a stream) of a device.

    Attributes:
      name: of the operation.
      start: nanoseconds.
      end: nanoseconds.
    """

    name: str
    start: float
    end: float


def profile(run: Callable[[], Any], folder: str) -> dict[str, Any]:
    """Profiles a call.

    Args:
      run: what to call; its results are waited for.
      folder: that the profile goes to.

    Returns:
      `idle_share`: of the time from the first to the last operation, in which the
      first device, or the CPU, ran none; `longest`: kinds of operations -> their share
      of the time that all operations took.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # else the host takes longer than it does
    with jax.profiler.trace(folder, profiler_options=options):
        jax.block_until_ready(run())
    written = pathlib.Path(folder).rglob("*.xplane.pb")
    newest = max(written, key=lambda path: path.stat().st_mtime)
    lines = _lines(jax.profiler.ProfileData.from_file(str(newest)))
    return {"idle_share": idle(lines), "longest": longest(lines)}


def _lines(data: jax.profiler.ProfileData) -> list[list[Event]]:
    """Reads the lines of the first device, or where there is none of the CPU."""
    planes = {plane.name: plane for plane in data.planes}
    devices = sorted(name for name in planes if name.startswith("/device:"))
    chosen = planes[devices[0]] if devices else planes["/host:CPU"]
    wanted = _DEVICE_LINES if devices else (_CPU_THREADS,)
    return [
        [
            Event(event.name, event.start_ns, event.start_ns + event.duration_ns)
            for event in line.events
            if not event.name.startswith(_NO_WORK)
        ]
        for line in chosen.lines
        if line.name.startswith(wanted)
    ]


def idle(lines: Iterable[list[Event]]) -> float:
    """Computes the share of the time in which no line has an event."""
    events = sorted((e for line in lines for e in line), key=lambda e: e.start)
    if not events:
        return 1.0
    busy, reached = 0.0, events[0].start
    for event in events:
        busy += max(event.end - max(event.start, reached), 0.0)
        reached = max(reached, event.end)
    return 1 - busy / max(reached - events[0].start, 1.0)


def longest(lines: Iterable[list[Event]]) -> dict[str, float]:
    """Names the operations that take longest, those of a kind together.

    An event counts without the events that run within it on the same line.
    """
    spent: collections.defaultdict[str, float] = collections.defaultdict(float)
    for line in lines:
        open_events: list[Event] = []
        for event in sorted(line, key=lambda e: (e.start, -e.end)):
            while open_events and open_events[-1].end <= event.start:
                open_events.pop()
            spent[_kind(event.name)] += event.end - event.start
            if open_events:
                spent[_kind(open_events[-1].name)] -= event.end - event.start
            open_events.append(event)
    total = sum(spent.values())
    first = sorted(spent, key=lambda kind: -spent[kind])[:_LONGEST]
    return {kind: spent[kind] / total for kind in first if spent[kind] > 0}


def _kind(name: str) -> str:
    """Strips the number that XLA gives to each operation."""
    return re.sub(r"[._]\d+", "", name)
