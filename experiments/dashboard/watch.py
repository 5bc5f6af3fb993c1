"""What is known of the run folders below some paths, and kept up with.

A run is a value; `fold` adds what a look at its folder has brought. Of the records
stay the numbers that are drawn.

Legend: R rounds that are recorded, Q quantities.
"""

from __future__ import annotations

import collections
import os
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import tasks
from fljax.experiment.pictures import overlay, panels
from fljax.runs import follow, status, writers

_NAMES = [quantity.name for quantity in panels.QUANTITIES]
_OFTEN = 0.3  # seconds between looks, however many ask
_LONG = 1.0  # seconds of a look after which folders not seen before wait for the next


class Alert(NamedTuple):
    """Alerts of one kind of one run: how many, the round and words of the last."""

    times: int
    round: int
    message: str


class Run(NamedTuple):
    """What is known of a run.

    Attributes:
      name: path of its folder.
      settings: what somebody chose, as of `overlay`.
      rounds: of the whole run.
      begun: when, in seconds since the epoch.
      changed: when its last record came, likewise.
      measure: what it is judged by; None: it has not been yet.
      table: [R, Q] of `panels.table`, for `panels.QUANTITIES`.
      tiers: tier -> [R] its measure, NaN where it was not evaluated.
      plans: plan -> clients that arrived with it, over all rounds.
      by_tier: tier -> clients that arrived, likewise.
      alerts: kind -> what came of it.
      ended: why a record says that it ended early; empty: none does.
      status: how it stands.
    """

    name: str
    settings: Mapping[str, Any]
    rounds: int
    begun: float
    changed: float = 0.0
    measure: tasks.Measure | None = None
    table: np.ndarray = np.zeros((0, len(_NAMES)))
    tiers: Mapping[str, np.ndarray] = {}
    plans: Mapping[str, int] = {}
    by_tier: Mapping[str, int] = {}
    alerts: Mapping[str, Alert] = {}
    ended: str = ""
    status: status.Status = status.Status(status.RUNNING)

    @property
    def done(self) -> int:
        """Gives the rounds that stand."""
        return len(self.table) - bool(self.ended)

    def column(self, name: str) -> np.ndarray:
        """Gives a quantity [R], added up where it is a total."""
        index = _NAMES.index(name)
        return panels.along(self.table[:, index], panels.QUANTITIES[index])

    def last(self, name: str) -> float:
        """Gives the newest number of a quantity; NaN: there is none."""
        column = self.column(name)
        known = column[~np.isnan(column)]
        return float(known[-1]) if len(known) else np.nan


def begin(name: str, seen: follow.Seen) -> Run:
    """Gives a run of which the configuration alone is known."""
    config, chosen = seen.described.config, overlay.settings(seen.described)
    rounds = config.get("rounds")
    known = rounds if type(rounds) is int else 0
    return Run(name, chosen, known, seen.mark[2] / 1e9)


def fold(run: Run, look: follow.Look) -> Run:
    """Adds what a look has brought."""
    if look.anew:
        run = begin(run.name, look.seen)
    records = look.records
    run = run._replace(
        changed=look.changed,
        measure=run.measure or _measure(records),
        alerts=_with_alerts(run.alerts, look.alerts),
    )
    if not records:
        return run
    quantities = panels.of(run.measure or panels.ACCURACY)
    new = panels.table(records, [quantities[name] for name in _NAMES])
    return run._replace(
        table=np.concatenate([run.table, new]),
        tiers=_with_tiers(run, records),
        plans=_added(run.plans, [record.get("plans") for record in records]),
        by_tier=_added(run.by_tier, [record.get("tiers") for record in records]),
        ended=str(records[-1].get("stopped", "")),
    )


def _measure(records: Sequence[panels.Record]) -> tasks.Measure | None:
    evaluated = next((r for r in records if "test_loss" in r), None)
    return tasks.measure_of(evaluated) if evaluated else None


def _with_alerts(
    before: Mapping[str, Alert], new: Sequence[Mapping[str, Any]]
) -> dict[str, Alert]:
    found = dict(before)
    for alert in new:
        kind, message = str(alert.get("kind", "alert")), str(alert.get("message", ""))
        times = found[kind].times + 1 if kind in found else 1
        found[kind] = Alert(times, alert["round"], message)
    return found


def _with_tiers(run: Run, records: Sequence[panels.Record]) -> dict[str, np.ndarray]:
    """Adds the tiers' measures: by class mix, where there are classes, else their own.

    A tier that comes late has none before.
    """
    key = run.measure.key if run.measure else ""
    rows = [r.get("tier_accuracy") or r.get(f"tier_{key}") or {} for r in records]
    names = dict.fromkeys([*run.tiers, *(name for row in rows for name in row)])
    scale = panels.of(run.measure or panels.ACCURACY)["measure"].scale
    before = np.full(len(run.table), np.nan)
    return {
        name: np.concatenate(
            [
                run.tiers.get(name, before),
                scale * np.array([row.get(name, np.nan) for row in rows], np.float64),
            ]
        )
        for name in names
    }


def _added(before: Mapping[str, int], counts: Sequence[Any]) -> dict[str, int]:
    total = collections.Counter(before)
    for count in counts:
        if isinstance(count, dict):
            total.update({k: v for k, v in count.items() if type(v) is int})
    return dict(total)


def judge(run: Run, held: bool | None, now: float) -> Run:
    """Says how a run stands at a time."""
    wall = run.column("wall")
    recent = wall[1:][-status.RECENT :]  # the first round compiles
    facts = status.Facts(
        run.rounds,
        run.done,
        run.ended,
        held,
        now - run.changed,
        [float(seconds) for seconds in recent if seconds == seconds],
        float(np.nanmax(wall)) if np.isfinite(wall).any() else 0.0,
    )
    return run._replace(status=status.of(facts))


class Board(NamedTuple):
    """All runs at a moment.

    Attributes:
      runs: by name.
      revision: another number where records, alerts or runs have changed.
      waiting: folders that have not been read yet.
    """

    runs: Mapping[str, Run]
    revision: int
    waiting: int = 0


class Watch:
    """Keeps up with the run folders below some paths; for several threads."""

    def __init__(self, roots: Sequence[str | os.PathLike[str]]) -> None:
        """Look at nothing yet."""
        self._roots = [pathlib.Path(os.path.abspath(root)) for root in roots]
        self._lock = threading.Lock()
        self._seen: dict[pathlib.Path, follow.Seen] = {}
        self._strangers: dict[pathlib.Path, follow.Mark | None] = {}
        self._runs: dict[pathlib.Path, Run] = {}
        self._board, self._at, self._revision = Board({}, 0), 0.0, 0

    def board(self) -> Board:
        """Look at all folders, and give what is known of them."""
        with self._lock:
            if time.monotonic() >= self._at + _OFTEN:
                self._board = self._look(time.time())
                self._at = time.monotonic()
            return self._board

    def catch_up(self) -> None:
        """Read what was not read before, a second at a time."""
        waiting = True
        while waiting:
            with self._lock:
                self._board = self._look(time.time())
            waiting = self._board.waiting > 0
            time.sleep(0.02)  # others may have the lock

    def _look(self, now: float) -> Board:
        paths = dict.fromkeys(
            path for root in self._roots for path in follow.find(root)
        )
        end, waiting = time.monotonic() + _LONG, 0
        changed = []
        for path in paths:
            if path not in self._seen and time.monotonic() > end:
                waiting += path not in self._strangers
            else:
                changed.append(self._look_at(path))
        gone = [path for path in self._runs if path not in paths]
        for path in gone:
            del self._runs[path], self._seen[path]
        if gone or any(changed):
            self._revision += 1
        locked = status.locks()
        runs = [
            judge(run, status.held(path, locked), now)
            for path, run in self._runs.items()
        ]
        return Board({run.name: run for run in runs}, self._revision, waiting)

    def _look_at(self, path: pathlib.Path) -> bool:
        """Read what is new of a folder; tell whether anything is."""
        if path in self._strangers:
            if self._strangers[path] == follow.mark_of(writers.files(path).config):
                return False
            del self._strangers[path]
        before = self._seen.get(path)
        try:
            look = follow.look(path, before)
        except (ValueError, OSError):  # another program's, or not for this user
            self._strangers[path] = follow.mark_of(writers.files(path).config)
            look = None
        if look is None:  # or gone since it was found
            self._seen.pop(path, None)
            return self._runs.pop(path, None) is not None
        if look.seen == before:
            return False
        if before is None or look.seen.mark != before.mark:  # it may have more rounds
            new = begin(self._name(path), look.seen)
            old = self._runs.get(path, new)
            self._runs[path] = old._replace(settings=new.settings, rounds=new.rounds)
        self._runs[path] = fold(self._runs[path], look)
        self._seen[path] = look.seen
        return True

    def _name(self, path: pathlib.Path) -> str:
        """Name a run by its path below the folder, or the folders, that were given."""
        if path in self._roots and len(self._roots) == 1:
            return path.name
        parents = [root.parent if root == path else root for root in self._roots]
        return path.relative_to(os.path.commonpath(parents)).as_posix()
