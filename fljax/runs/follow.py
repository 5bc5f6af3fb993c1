"""Run folders as they grow: files are read from where they stopped, none is written.

What is known of a folder is a value: `look` takes one and gives the next. A last line
that is torn waits until it is whole; a file that was cut or put in place anew is read
from its start; a folder that is gone is None.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "config.json").write_text('{"config": {"lr": 0.1}}')
    >>> _ = (folder / "metrics.jsonl").write_text('{"round": 0}\\n{"rou')
    >>> first = look(folder)
    >>> first.records
    [{'round': 0}]
    >>> with open(folder / "metrics.jsonl", "a") as file:
    ...     _ = file.write('nd": 1}\\n')
    >>> look(folder, first.seen).records
    [{'round': 1}]
"""

from __future__ import annotations

import os
import pathlib
import stat
from typing import Any, NamedTuple

from fljax.runs import writers

Mark = tuple[int, int, int]  # inode, bytes, nanoseconds: another one, another file

MOST = 2**26  # bytes that are read of a file at a time; a line is shorter
_SKIPPED = ("checkpoints",)  # folders of a run folder that hold no runs


class Place(NamedTuple):
    """How far a file of lines was read.

    Attributes:
      mark: of the file then; None: there was none.
      end: bytes that were read.
      last: the line that ends there, by which the file is known again.
    """

    mark: Mark | None = None
    end: int = 0
    last: bytes = b""


class Lines(NamedTuple):
    """What a file has that was not read before.

    Attributes:
      place: how far it was read now.
      records: of the new lines.
      anew: what was read before does not count any more; `records` are all there are.
      unreadable: new lines that no run has written.
    """

    place: Place
    records: list[dict[str, Any]]
    anew: bool = False
    unreadable: int = 0


class Seen(NamedTuple):
    """What is known of a run folder.

    Attributes:
      mark: of its configuration.
      described: what that says.
      metrics: how far its records were read.
      alerts: how far its alerts were.
    """

    mark: Mark
    described: writers.Described
    metrics: Place = Place()
    alerts: Place = Place()


class Look(NamedTuple):
    """What a look at a run folder has brought.

    Attributes:
      seen: what is known now.
      records: new ones.
      alerts: new ones.
      anew: what was read before does not count any more.
      unreadable: new lines that no run has written.
    """

    seen: Seen
    records: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    anew: bool
    unreadable: int

    @property
    def changed(self) -> float:
        """Gives the time of the newest record, or of the start, since the epoch."""
        mark = self.seen.metrics.mark or self.seen.mark
        return mark[2] / 1e9


def find(root: writers.Folder) -> list[pathlib.Path]:
    """Lists the folders at and below a path that have a configuration, by name."""
    name = writers.files(root).config.name
    found = []
    for path, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and f[0] != ".")
        if name in names:
            found.append(pathlib.Path(path))
    return found


def look(folder: writers.Folder, seen: Seen | None = None) -> Look | None:
    """Reads what came to a run folder since it was seen.

    Args:
      folder: of a run.
      seen: what is known of it; None: nothing.

    Returns:
      What is new; None: there is no such folder any more.

    Raises:
      ValueError: it is no run folder.
    """
    files = writers.files(folder)
    mark = mark_of(files.config)
    if mark is None:
        return None
    if seen is None or seen.mark != mark:
        try:
            described = writers.described(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        seen = Seen(mark, described, *(seen or ())[2:])
    metrics = read(files.metrics, seen.metrics)
    alerts = read(files.alerts, seen.alerts)
    anew = metrics.anew or alerts.anew
    if anew:  # together: a resumed run cuts both
        metrics, alerts = read(files.metrics), read(files.alerts)
    return Look(
        seen._replace(metrics=metrics.place, alerts=alerts.place),
        metrics.records,
        alerts.records,
        anew,
        metrics.unreadable + alerts.unreadable,
    )


def read(path: pathlib.Path, place: Place = Place()) -> Lines:
    """Reads the whole lines of a file behind a place.

    Args:
      path: of the file; it need not be there.
      place: how far it was read; the start, if it was not.

    Returns:
      What is new.
    """
    mark = mark_of(path)  # before the lines: what comes meanwhile is seen the next time
    if mark is None:  # it is gone, or not there yet
        return Lines(Place(), [], anew=place.end > 0)
    if mark == place.mark:
        return Lines(place, [])
    try:
        with open(path, "rb") as file:
            file.seek(place.end - len(place.last))
            data = file.read(MOST)
            left = file.read(1) != b""
    except OSError:
        return Lines(Place(), [], anew=place.end > 0)
    if not data.startswith(place.last):
        return read(path)._replace(anew=True)
    whole = data[len(place.last) : data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    found = [writers.parsed(line) for line in lines]
    records = [record for record in found if record is not None]
    end, last = place.end + len(whole), lines[-1] if lines else place.last
    if left and lines:  # the next look goes on there
        mark = None
    return Lines(Place(mark, end, last), records, unreadable=len(found) - len(records))


def mark_of(path: pathlib.Path) -> Mark | None:
    """Tells a file from others, and from itself before it was written to.

    Returns:
      None where there is none; a pipe, which would wait for ever, is none.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
