"""The table of runs: which are shown, in what order, and what differs between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.dashboard import figures, watch
from fljax.experiment.pictures import overlay
from fljax.runs import status

MOST = 100  # rows
STATUS = "status"
_WORST = (status.STOPPED, status.STALLED)
# Alerts from the gravest kind to the least.
_KINDS = ("stopped", "stalled", "rollback", "nobody", "refused")
_FIGURES = ("measure", "worst", "upload", "clock")
_TITLES = ("accuracy", "worst tier", "upload MB", "virtual s")
_OF_OTHERS = "score"  # where runs are of several tasks


class Row(NamedTuple):
    """A run in the table.

    Attributes:
      name: of the run.
      status: of `status.NAMES`.
      share: of its rounds that are done, 0 to 1.
      cells: its other columns, as text.
      keys: what the columns are sorted by.
    """

    name: str
    status: str
    share: float
    cells: tuple[str, ...]
    keys: tuple[tuple[bool, float, str], ...]


class Table(NamedTuple):
    """What is shown of runs.

    Attributes:
      titles: of the columns.
      rows: in order, at most `MOST`.
      left_out: runs that are not shown.
      differing: settings that are not the same in all of the runs.
      same: settings that are, with their values.
    """

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: int
    differing: tuple[str, ...]
    same: tuple[tuple[str, str], ...]


class Line(NamedTuple):
    """Alerts of one kind of one run.

    Attributes:
      kind: of the alerts.
      run: that they are of.
      times: that it was told.
      message: of the last.
    """

    kind: str
    run: str
    times: int
    message: str


def choices(runs: Iterable[watch.Run]) -> list[dict[str, str]]:
    """Lists what the table can be filtered by: every value of every setting.

    Returns:
      Options of a menu, those first that not all runs share.
    """
    found: dict[str, dict[str, int]] = {STATUS: {}}
    count = 0
    for run in runs:
        count += 1
        for name, value in _fields(run).items():
            of = found.setdefault(name, {})
            of[value] = of.get(value, 0) + 1
    options = [
        (number == count, {"label": f"{name} = {value or '(none)'}", "value": key})
        for name, values in found.items()
        for value, number in sorted(values.items(), key=lambda item: _key(item[0]))
        if (key := json.dumps([name, value]))
    ]
    return [option for _, option in sorted(options, key=lambda pair: pair[0])]


def _fields(run: watch.Run) -> dict[str, str]:
    settings = {name: overlay.text(value) for name, value in run.settings.items()}
    return {STATUS: run.status.name, **settings}


def chosen(
    runs: Mapping[str, watch.Run], filters: Sequence[str]
) -> dict[str, watch.Run]:
    """Gives the runs that pass: one of the values of each setting that is filtered."""
    wanted: dict[str, set[str]] = {}
    for name, value in map(json.loads, filters):
        wanted.setdefault(name, set()).add(value)
    return {
        path: run
        for path, run in runs.items()
        if all(_fields(run).get(name) in values for name, values in wanted.items())
    }


def grouped(
    runs: Mapping[str, watch.Run], together: bool, names: Sequence[str] = ()
) -> dict[str, list[watch.Run]]:
    """Gives the curves that are drawn: of the groups the newest, by name.

    Args:
      runs: by name.
      together: whether runs that differ in their seeds alone are one curve.
      names: of groups that are wanted; none: the newest `figures.MOST`.
    """
    groups: Mapping[str, Sequence[str]] = {name: [name] for name in runs}
    if together:
        groups = overlay.groups({name: run.settings for name, run in runs.items()})
    made = {name: [runs[path] for path in paths] for name, paths in groups.items()}
    wanted = [name for name in made if name in names] or list(made)
    newest = sorted(wanted, key=lambda name: -max(run.begun for run in made[name]))
    return {name: made[name] for name in sorted(newest[: figures.MOST], key=_key)}


def lay_out(
    runs: Iterable[watch.Run], column: int = 0, descending: bool = False
) -> Table:
    """Lays runs out as a table.

    Args:
      runs: that it shows.
      column: that it is sorted by, an index of its titles.
      descending: the other way round.
    """
    shown = list(runs)
    different = overlay.differing([run.settings for run in shown])
    measures = {run.measure for run in shown if run.measure}
    titles = list(_TITLES)
    if len(measures) == 1:
        titles[0] = next(iter(measures)).title
    elif measures:
        titles[0] = _OF_OTHERS
    rows = [_row(run, different) for run in shown]
    column = min(column, 3 + len(_FIGURES) + len(different))
    known = [row for row in rows if not row.keys[column][0]]
    rest = [row for row in rows if row.keys[column][0]]  # what is not known comes last
    known.sort(key=lambda row: row.keys[column], reverse=descending)
    first = shown[0].settings if shown else {}
    return Table(
        ("run", STATUS, "done", "left", *titles, *different),
        tuple([*known, *rest][:MOST]),
        max(len(rows) - MOST, 0),
        tuple(different),
        tuple((n, overlay.text(first[n])) for n in first if n not in different),
    )


def _row(run: watch.Run, different: Sequence[str]) -> Row:
    seconds = run.status.seconds_left
    numbers = [run.last(name) for name in _FIGURES]
    settings = _fields(run)
    values = [settings.get(name, "") for name in different]
    share = run.done / run.rounds if run.rounds else 0.0
    order = float(status.NAMES.index(run.status.name))
    return Row(
        run.name,
        run.status.name,
        min(share, 1.0),
        (
            f"{run.done} / {run.rounds}",
            left(run),
            *map(_number, numbers),
            *values,
        ),
        (
            _key(run.name),
            (False, order, ""),
            (False, share, ""),
            (seconds is None, seconds or 0.0, ""),
            *((math.isnan(x), 0.0 if math.isnan(x) else x, "") for x in numbers),
            *map(_key, values),
        ),
    )


def left(run: watch.Run) -> str:
    """Says how long a run will take yet; nothing where that is not known."""
    seconds = run.status.seconds_left
    return "" if seconds is None else span(seconds)


def _key(text: str) -> tuple[bool, float, str]:
    """Sorts numbers as numbers, before words."""
    try:
        return (False, float(text), "")
    except ValueError:
        return (False, math.inf, text)


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4g}"


def span(seconds: float) -> str:
    """Writes a time as it is said: 40 s, 5 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def alerts(runs: Iterable[watch.Run]) -> list[Line]:
    """Lists what somebody should look at, the gravest first, of each the newest run."""
    found = []
    for run in runs:
        for kind, alert in run.alerts.items():
            if kind != "stopped":  # unless it goes on since: see below
                line = Line(kind, run.name, alert.times, alert.message)
                found.append((_grave(kind), -run.changed, line))
        if run.status.name in _WORST:
            line = Line(run.status.name, run.name, 1, run.status.why)
            found.append((_grave(run.status.name), -run.changed, line))
    return [line for *_, line in sorted(found)]


def _grave(kind: str) -> int:
    return _KINDS.index(kind) if kind in _KINDS else 0
