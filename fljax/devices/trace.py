"""Traces of availability: when each device is there, in seconds on the clock.

A device is there from the start of an interval to its end, which excludes it, and comes
back after its period: the trace begins anew, as in FedScale (Lai et al., ICML 2022) and
FLASH (Yang et al., WWW 2021), whose traces are such intervals.

Legend: I intervals, D devices of the trace, N clients, K of them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds
from fljax.devices import tables
from fljax.runtime import reading

COLUMNS = ("device", "start", "end", "period")

_TRACE = "trace:"  # in the text of --fleet


class Trace(NamedTuple):
    """When devices are there; client n has the intervals of device n modulo D.

    Attributes:
      device: [I] int32, of each interval; rising, and so are its starts.
      start: [I] float64 seconds since its period began.
      end: [I] likewise.
      onward: [I] seconds that it goes on for beyond its period; inf: for ever.
      period: [D] float64 seconds after which a device's intervals come again.
    """

    device: np.ndarray
    start: np.ndarray
    end: np.ndarray
    onward: np.ndarray
    period: np.ndarray


def split(text: str) -> tuple[str, str | None]:
    """Splits what --fleet says into the devices and the file of their trace.

    >>> split("phones+trace:week.csv"), split("trace:week.csv"), split("phones")
    (('phones', 'week.csv'), ('tiers', 'week.csv'), ('phones', None))

    Args:
      text: BASE+trace:FILE, trace:FILE (of tiers), or BASE.

    Returns:
      The base, and the file or None.
    """
    base, found, path = text.partition(_TRACE)
    if not found or not (base == "" or base.endswith("+")):
        return text, None
    return base.removesuffix("+") or "tiers", path


def load(path: str | pathlib.Path) -> Trace:
    """Reads a trace from a file with a row an interval.

    Args:
      path: CSV with a line of column names, or JSON, a list of objects: device (a name
        or number), start and end (seconds), and if given period (seconds, the same in
        all rows of a device; else the last end in the file, for all devices).

    Returns:
      The trace; devices are numbered in the order in which they first appear.

    Raises:
      ValueError: the file is missing or not as described; names file, row and column.
    """
    path = pathlib.Path(path)
    with reading.one_line(str(path)):
        rows = tables.rows(path, COLUMNS, "interval")
        for name in COLUMNS[:3]:
            if name not in rows[0]:
                raise ValueError(f"{path}: expected a column {name}, got none")
        return _trace(path, rows)


def _trace(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> Trace:
    numbers: dict[str, int] = {}
    device = np.array(
        [
            numbers.setdefault(_name(path, row, i), len(numbers))
            for i, row in enumerate(rows, 1)
        ],
        np.int32,
    )
    start, end = (_seconds(path, rows, name) for name in ("start", "end"))
    for row in np.flatnonzero(start >= end)[:1]:
        raise ValueError(
            f"{path}: expected start below end in row {row + 1}, got {start[row]:g} "
            f"and {end[row]:g}"
        )
    period = np.full(len(numbers), end.max())
    if "period" in rows[0]:
        period = _periods(path, _seconds(path, rows, "period"), device, end)
    order = np.lexsort((start, device))
    device, start, end = device[order], start[order], end[order]
    again = np.append(False, device[1:] == device[:-1])  # the device has one before
    for i in np.flatnonzero(again[1:] & (start[1:] < end[:-1]))[:1]:
        first, second = sorted((order[i] + 1, order[i + 1] + 1))
        raise ValueError(
            f"{path}: expected intervals of a device apart, got row {second}, which "
            f"overlaps row {first}"
        )
    # An interval that begins where one ends goes on with it.
    fresh = np.flatnonzero(~again | np.append(True, start[1:] > end[:-1]))
    last = np.append(fresh[1:], len(start)) - 1
    device, start, end = device[fresh], start[fresh], end[last]
    return Trace(device, start, end, _onward(device, start, end, period), period)


def _onward(device, start, end, period) -> np.ndarray:
    """Gives how long intervals [I] that end with the period go on in the next one."""
    early = np.zeros(len(period))
    early[device[start == 0]] = end[start == 0]
    early[early == period] = np.inf
    return np.where(end == period[device], early[device], 0.0)


def _name(path: pathlib.Path, row: Mapping[str, Any], number: int) -> str:
    name = row["device"]
    if not (isinstance(name, str) and name) and not reading.is_number(name):
        raise ValueError(
            f"{path}: expected a name or number as device in row {number}, got "
            f"{bounds.shown(name)}"
        )
    return str(name)


def _seconds(
    path: pathlib.Path, rows: Sequence[Mapping[str, Any]], name: str
) -> np.ndarray:
    """Reads a column of seconds [I]."""
    values = np.array([tables.number(row[name]) for row in rows])
    most = reading.AMOUNTS[1]
    for row in np.flatnonzero(~((values >= 0) & (values <= most)))[:1]:
        raise ValueError(
            f"{path}: expected {name} from 0 to {most:g} in row {row + 1}, got "
            f"{bounds.shown(rows[row][name])}"
        )
    return values


def _periods(path: pathlib.Path, given, device, end) -> np.ndarray:
    """Gives the period [D] of each device, the same in all its rows [I]."""
    period = np.zeros(device.max() + 1)
    period[device] = given
    for row in np.flatnonzero(given != period[device])[:1]:
        raise ValueError(
            f"{path}: expected one period of a device, got {given[row]:g} in row "
            f"{row + 1} and {period[device[row]]:g} later"
        )
    for row in np.flatnonzero(end > given)[:1]:
        raise ValueError(
            f"{path}: expected an end within the period in row {row + 1}, got "
            f"{end[row]:g} of {given[row]:g}"
        )
    return period


def left(trace: Trace, seconds: float, clients: np.ndarray) -> np.ndarray:
    """Gives for how long clients will be there from a moment on.

    Args:
      trace: of the devices.
      seconds: on the clock.
      clients: [K] client numbers.

    Returns:
      [K] seconds; 0: who is not there; inf: who never leaves.
    """
    now = seconds % trace.period
    here = (trace.start <= now[trace.device]) & (now[trace.device] < trace.end)
    device = trace.device[here]
    stays = np.zeros(len(trace.period))
    stays[device] = trace.end[here] - now[device] + trace.onward[here]
    return stays[np.asarray(clients) % len(stays)]
