"""Rows of clients beside the checkpoints: files of rows that checkpoints name.

A checkpoint does not hold the rows of clients (`engine.client_rows`) but names
segments, files in its folder, in order: each has the rows that changed since the one
before and the numbers of clients whose rows went; what they say one after another is
the rows. So a checkpoint costs the rows that changed, and what it names is durable
before it is. A segment never changes; its name has the round and its digest.

New rows take in the segments before them while these are no larger and the whole is
small, as the digits of a number carry, so that a long run has few files; where
more than half of all rows are out of date, one segment takes them all in. So the
segments of a checkpoint take at most twice the bytes of the rows; those that the older
checkpoint alone names come on top.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax.engine import client_rows
from fljax.runtime import durable

_MAGIC = b"fljaxrow"
_FORMAT = 1
_FRONT = struct.Struct("<8sIQQQ")  # magic, format, values a row, rows, rows that went
_NUMBER = np.dtype("<u4")  # of a client
_NAME = re.compile(r"clients_\d{8,}_[0-9a-f]{16}\.rows")
_SMALL = 64e6  # bytes up to which segments are put together


class Segment(NamedTuple):
    """A file of rows.

    Attributes:
      name: of the file.
      digest: sha256 of the file.
      ids: [n + m] the n clients whose rows it has, then m that have none any more.
      rows: n.
    """

    name: str
    digest: bytes
    ids: np.ndarray
    rows: int


class Log(NamedTuple):
    """Rows, and the segments that say them, the oldest first."""

    rows: client_rows.Rows
    segments: tuple[Segment, ...]


@dataclasses.dataclass
class Shelf:
    """What a process knows of the segments of a folder.

    Attributes:
      logs: of the newest checkpoint: path in the state -> rows and their segments.
      named: checkpoint -> names of the segments that it needs, of those known.
    """

    logs: dict[str, Log] = dataclasses.field(default_factory=dict)
    named: dict[pathlib.Path, frozenset[str]] = dataclasses.field(default_factory=dict)


def write(
    folder: pathlib.Path,
    round: int,
    rows: Mapping[str, client_rows.Rows],
    logs: Mapping[str, Log],
) -> dict[str, Log]:
    """Make rows durable, writing what segments do not have yet.

    Args:
      folder: of the checkpoints.
      round: of the checkpoint that will name the segments.
      rows: path in the state -> rows.
      logs: of the checkpoint before; nothing: all rows are written.

    Returns:
      Path in the state -> rows with their segments.

    Raises:
      OSError: if something cannot be written; what was there is there still.
    """
    written: dict[str, Log] = {}
    for path, new in rows.items():
        known = [*written.values(), *logs.values()]
        same = (log for log in known if log.rows is new)  # as after a rollback
        base = next(same, logs.get(path))
        if base is None or not _stands(folder, base, new):
            base = Log(client_rows.Rows.empty(new.first), ())
        written[path] = _append(folder, round, new, base)
    return written


def _stands(folder: pathlib.Path, base: Log, rows: client_rows.Rows) -> bool:
    """Tells whether nobody removed or cut segments, and they are of such rows."""
    if base.rows.first.tobytes() != rows.first.tobytes():
        return False
    for segment in base.segments:
        path = folder / segment.name
        size = _size(rows.width, segment.rows, len(segment.ids))
        if not path.is_file() or path.stat().st_size != size:
            return False
    return True


def _size(width: int, count: int, ids: int) -> int:
    return _FRONT.size + _NUMBER.itemsize * ids + 4 * width * count


def _append(folder: pathlib.Path, round: int, rows: client_rows.Rows, base: Log) -> Log:
    """Writes the rows that changed, with those of the segments that this replaces."""
    changed = np.array(rows.changed(base.rows), _NUMBER)
    if not changed.size:
        return Log(rows, base.segments)
    sizes = [len(segment.ids) for segment in base.segments]
    small = int(_SMALL / (4 * rows.width + _NUMBER.itemsize))
    left = len(sizes) - _taken_in(sizes, len(changed), rows.visited, small)
    kept, replaced = base.segments[:left], base.segments[left:]
    ids = np.unique(np.concatenate([changed, *(old.ids for old in replaced)]))
    here = np.array([row is not None for row in rows.stored(ids.tolist())], bool)
    gone = ids[~here] if kept else ids[:0]  # where nothing is before, nothing goes
    if not kept and not here.any():
        return Log(rows, ())
    return Log(rows, (*kept, _write(folder, round, rows, ids[here], gone)))


def _taken_in(sizes: Sequence[int], new: int, live: int, small: int) -> int:
    """Counts the newest segments that a new one takes in.

    Args:
      sizes: rows of the segments, the oldest first.
      new: rows that changed.
      live: rows in all.
      small: rows up to which segments are put together.
    """
    if sum(sizes) + new > 2 * live:
        return len(sizes)
    count = 0
    for size in reversed(sizes):
        if size > new or size + new > small:
            break
        new += size
        count += 1
    return count


def _write(
    folder: pathlib.Path,
    round: int,
    rows: client_rows.Rows,
    ids: np.ndarray,
    gone: np.ndarray,
) -> Segment:
    """Writes a segment, durable when it has its name."""
    everybody, digest = np.concatenate([ids, gone]), hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for part in (
            _FRONT.pack(_MAGIC, _FORMAT, rows.width, len(ids), len(gone)),
            everybody.tobytes(),
            *rows.stored(ids.tolist()),
        ):
            assert part is not None
            digest.update(part)
            yield part

    path = durable.temporary(folder / "clients.rows")  # its name tells the digest
    durable.write(path, parts())
    name = f"clients_{round:08d}_{digest.hexdigest()[:16]}.rows"
    durable.rename(path, folder / name)
    return Segment(name, digest.digest(), everybody, len(ids))


def index(log: Log) -> dict[str, Any]:
    """Give what a checkpoint holds of rows: the first row, names and digests."""
    named = {segment.name: segment.digest for segment in log.segments}
    return {"first": log.rows.first, "segments": named}


def is_index(leaf: Any) -> bool:
    """Tell whether a leaf of a checkpoint stands for rows."""
    if not isinstance(leaf, dict) or leaf.keys() != {"first", "segments"}:
        return False
    first, named = leaf["first"], leaf["segments"]
    if not isinstance(first, np.ndarray) or not isinstance(named, dict):
        return False
    sound = all(isinstance(n, str) and isinstance(d, bytes) for n, d in named.items())
    return sound and first.ndim == 1 and first.dtype == np.float32


def names(index: Mapping[str, Any]) -> frozenset[str]:
    """Give the names of the segments of what `index` gave."""
    return frozenset(index["segments"])


def read(
    folder: pathlib.Path, indices: Mapping[str, Mapping[str, Any]]
) -> dict[str, Log]:
    """Load the rows that a checkpoint names.

    Args:
      folder: of the checkpoints.
      indices: path in the state -> what `index` gave.

    Returns:
      Path in the state -> rows and their segments. What two paths have alike is one
      object.

    Raises:
      ValueError: a segment is missing or damaged.
      OSError: one cannot be read.
    """
    logs: dict[str, Log] = {}
    same: dict[tuple, Log] = {}
    before: dict[int, bytes] = {}
    for path, one in indices.items():
        key = one["first"].tobytes(), *one["segments"].items()
        if key in same:
            logs[path] = same[key]
            continue
        loaded: dict[int, bytes] = {}
        first, segments = np.array(one["first"]), []
        for name, digest in one["segments"].items():
            segment, parts = _read(folder, name, digest, len(first))
            segments.append(segment)
            for number, row in zip(segment.ids.tolist(), parts, strict=False):
                loaded[number] = before[number] if before.get(number) == row else row
            for number in segment.ids[segment.rows :].tolist():
                loaded.pop(number, None)
        rows = client_rows.Rows.empty(first).holding(loaded)
        logs[path] = same[key] = Log(rows, tuple(segments))
        before = before or loaded
    return logs


def _read(
    folder: pathlib.Path, name: str, digest: bytes, width: int
) -> tuple[Segment, list[bytes]]:
    """Reads a segment, which has to be whole."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"names {name!r}, which is no segment")
    if not (folder / name).is_file():
        raise ValueError(f"{name} is missing")
    size, found = (folder / name).stat().st_size, hashlib.sha256()
    with open(folder / name, "rb") as file:
        front = file.read(_FRONT.size)
        if len(front) < _FRONT.size:
            raise ValueError(f"{name} is truncated to {size} bytes")
        magic, version, values, count, gone = _FRONT.unpack(front)
        expected = _size(values, count, count + gone)
        if (magic, version, values, expected) != (_MAGIC, _FORMAT, width, size):
            raise ValueError(f"{name} is damaged, truncated, or of another format")
        numbers = file.read(_NUMBER.itemsize * (count + gone))
        rows = [file.read(4 * width) for _ in range(count)]
    for part in (front, numbers, *rows):
        found.update(part)
    if found.digest() != digest:
        raise ValueError(f"{name} is damaged (wrong sha256)")
    return Segment(name, digest, np.frombuffer(numbers, _NUMBER), count), rows


def remove_others(folder: pathlib.Path, needed: frozenset[str]) -> None:
    """Remove the segments that no checkpoint needs."""
    for path in stored(folder):
        if path.name not in needed:
            path.unlink()


def stored(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the segments of a folder, needed or not."""
    paths = folder.glob("clients_*.rows")
    return [path for path in paths if _NAME.fullmatch(path.name) and path.is_file()]
