"""Checkpoints of a run: the whole state in one file, restored bit by bit.

A checkpoint of round r is the state before round r runs; it lies in `checkpoints/` of a
run folder and lives through kill -9 at any moment, as all of `writers` does. So that no
record is lost, write the records of all rounds below r before saving checkpoint r. With
several JAX processes only process 0 writes. Rows of clients lie in files of their own
beside it (`segments`), which are durable before the checkpoint that names them.

Example, which continues where an earlier call stopped:

    >>> import tempfile
    >>> import numpy as np
    >>> with writers.open_run(tempfile.mkdtemp(), {"lr": 0.1}) as run:
    ...     state = {"w": np.zeros(3, np.float32)}
    ...     restored = restore(run.path, state)
    ...     first, state, *_ = restored or Restored(0, state, ())
    ...     with (
    ...         writers.MetricsWriter(run.path, first) as metrics,
    ...         AsyncCheckpointer(run.path) as checkpointer,
    ...     ):
    ...         for r in range(first, 4):
    ...             state = {"w": state["w"] + 1}
    ...             metrics.write({"round": r, "test_loss": 4.0 - r})
    ...             checkpointer.save(r + 1, state)
    ...     restore(run.path, state).round, len(writers.read_metrics(run.path))
    (4, 4)
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import struct
from collections.abc import Mapping
from concurrent import futures
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from flax import serialization

from fljax import types
from fljax.engine import client_rows
from fljax.runs import segments, writers
from fljax.runtime import durable

_CHECKPOINTS = "checkpoints"
_MAGIC = b"fljaxckp"
# 2 had plans in three numbers; 3 named L2 norms `norms`; 4 had no selection.
_FORMAT = 5
_FRONT = struct.Struct("<8sIQQ")  # magic, format version, round, payload bytes
_DIGEST_BYTES = hashlib.sha256().digest_size
_UNKNOWN = bytes(_DIGEST_BYTES)
_MOST_ROUNDS = 2**31 - 1
_NAME = re.compile(r"round_(\d+)\.ckpt")


class Origin(NamedTuple):
    """Where a checkpoint comes from; zeros: unknown."""

    run: bytes = _UNKNOWN  # digest of the run's name
    records: bytes = _UNKNOWN  # of all records before it, as of `writers.History`


class Restored(NamedTuple):
    """What `restore` found."""

    round: int  # the next round to run
    state: types.Tree  # structure, shapes and dtypes of the template
    notes: tuple[str, ...]  # a line for each damaged checkpoint passed over
    logs: Mapping[str, segments.Log] = {}  # where rows of clients lie, by path


def save(
    folder: writers.Folder,
    round: int,
    state: types.Tree,
    keep: int = 2,
    records: bytes = _UNKNOWN,
    shelf: segments.Shelf | None = None,
) -> pathlib.Path:
    """Write a checkpoint and remove old ones; records before it are durable then.

    Args:
      folder: path of a run folder that this process holds.
      round: the next round to run from this state.
      state: pytree of arrays, python numbers and rows of clients; no typed PRNG keys.
      keep: how many checkpoints stay, this one included. Those of later rounds go:
        they were passed over when this run resumed.
      records: digest of the records of all rounds before, `MetricsWriter.digest`.
      shelf: where rows of clients lie already, brought up to date; None: all are
        written.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: if `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = pathlib.Path(folder) / _CHECKPOINTS / f"round_{round:08d}.ckpt"
    path.parent.mkdir(exist_ok=True)
    writers.sync_records(folder)
    origin = Origin(_run(writers.run_name(folder)), records)
    shelf = segments.Shelf() if shelf is None else shelf
    leaves = _by_path(state)
    rows = {n: leaf for n, leaf in leaves.items() if isinstance(leaf, client_rows.Rows)}
    logs = segments.write(path.parent, round, rows, shelf.logs)
    leaves |= {name: segments.index(log) for name, log in logs.items()}
    durable.replace(path, _encode(round, origin, leaves))
    shelf.logs = logs
    shelf.named[path] = _named(leaves)
    _tidy(folder, round, keep, shelf)
    return path


def _tidy(folder: writers.Folder, round: int, keep: int, shelf: segments.Shelf) -> None:
    """Removes old checkpoints, then what none of the others needs."""
    checkpoints, place = _checkpoints(folder), pathlib.Path(folder) / _CHECKPOINTS
    lowest = min(round, 1)  # the start is no end to fall back to
    kept = [other for number, other in checkpoints if lowest <= number <= round][-keep:]
    # Of a kill in the middle of a write; others' files are left alone.
    leftovers = [*place.glob("round_*.ckpt.tmp"), *place.glob("clients.rows.tmp")]
    for stale in {*(other for _, other in checkpoints), *leftovers} - {*kept}:
        if stale.is_file():
            stale.unlink()
    if segments.stored(place):
        known = shelf.named
        shelf.named = {p: known[p] if p in known else _named_in(p) for p in kept}
        segments.remove_others(place, frozenset().union(*shelf.named.values()))


def _named(leaves: Mapping[str, Any]) -> frozenset[str]:
    """Gives the names of all segments that the leaves of a checkpoint need."""
    indices = filter(segments.is_index, leaves.values())
    return frozenset().union(*map(segments.names, indices))


def _named_in(path: pathlib.Path) -> frozenset[str]:
    """Reads them; none of a damaged checkpoint, which cannot be restored anyway."""
    try:
        return _named(_unpacked(_decode(durable.read(path))[2]))
    except (OSError, ValueError):
        return frozenset()


def restore(
    folder: writers.Folder,
    template: types.Tree,
    history: writers.History | None = None,
) -> Restored | None:
    """Read the newest checkpoint that is whole, this run's and fits the template.

    Args:
      folder: path of a run folder.
      template: a state, or `jax.eval_shape` of one; its values are not used. Leaves
        come back as jax arrays, placed alike, where it has jax arrays or shapes.
      history: what the folder has recorded, which has to be whole up to the
        checkpoint; None: that does not matter.

    Returns:
      Round, state and notes, or None if there is no checkpoint.

    Raises:
      ValueError: if there are checkpoints and none of them can be used.
    """
    failures: list[str] = []
    run = _run(history.run if history else writers.run_name(folder))
    for number, path in reversed(_checkpoints(folder)):
        try:
            round, origin, payload = _decode(durable.read(path))
            if round != number:
                raise ValueError(f"says that it is of round {round}")
            _check_origin(round, origin, run, history)
            state, logs = _fit(_unpacked(payload), template, path.parent)
        except (OSError, ValueError) as error:
            failures.append(f"{path.name}: {error}")
            continue
        notes = [f"passed over {failure}; using {path.name}" for failure in failures]
        return Restored(round, state, tuple(notes), logs)
    if failures:
        raise ValueError(
            f"no checkpoint in {pathlib.Path(folder) / _CHECKPOINTS} can be used "
            f"({'; '.join(failures)})"
        )
    return None


def _checkpoints(folder: writers.Folder) -> list[tuple[int, pathlib.Path]]:
    """List the checkpoints of a run folder with their rounds, oldest first."""
    paths = (pathlib.Path(folder) / _CHECKPOINTS).glob("round_*.ckpt")
    return sorted(
        (int(name[1]), path) for path in paths if (name := _NAME.fullmatch(path.name))
    )


def _run(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() if name else _UNKNOWN


def _check_origin(
    round: int, origin: Origin, run: bytes, history: writers.History | None
) -> None:
    """Raise a ValueError if a checkpoint is another run's or records are missing."""
    if _UNKNOWN not in (origin.run, run) and origin.run != run:
        raise ValueError("is of another run")
    if history is None:
        return
    whole = len(history.digests) - 1
    if round > whole:
        lost = f"{whole}" if round == whole + 1 else f"{whole} to {round - 1}"
        raise ValueError(f"metrics.jsonl lacks whole records of rounds {lost}")
    if origin.records not in (_UNKNOWN, history.digests[round]):
        raise ValueError("metrics.jsonl has other records than those it was saved with")


def _encode(round: int, origin: Origin, leaves: dict[str, Any]) -> bytes:
    """Lay out a checkpoint: front, sha256 of all else, origin, path -> leaf."""
    leaves = jax.device_get(leaves)
    payload = b"".join(origin) + serialization.msgpack_serialize(leaves, in_place=True)
    front = _FRONT.pack(_MAGIC, _FORMAT, round, len(payload))
    return b"".join((front, _digest(front, payload), payload))


def _decode(data: bytes) -> tuple[int, Origin, bytes]:
    """Undo `_encode` up to the leaves; a ValueError says what is wrong."""
    front, rest = data[: _FRONT.size], data[_FRONT.size :]
    digest, payload = rest[:_DIGEST_BYTES], rest[_DIGEST_BYTES:]
    if len(digest) < _DIGEST_BYTES:
        raise ValueError(f"truncated to {len(data)} bytes")
    magic, version, round, size = _FRONT.unpack(front)
    if magic != _MAGIC:
        raise ValueError("not a checkpoint of fljax (wrong magic)")
    if version != _FORMAT:
        raise ValueError(f"format version {version}, this fljax reads {_FORMAT}")
    if len(payload) != size:
        raise ValueError(f"truncated: {len(payload)} of {size} payload bytes")
    if digest != _digest(front, payload):
        raise ValueError("damaged (wrong sha256)")
    if round > _MOST_ROUNDS:
        raise ValueError(f"of round {round}, there are at most {_MOST_ROUNDS}")
    run, records = payload[:_DIGEST_BYTES], payload[_DIGEST_BYTES : 2 * _DIGEST_BYTES]
    return round, Origin(run, records), payload[2 * _DIGEST_BYTES :]


def _unpacked(payload: bytes) -> dict[str, Any]:
    """Read the leaves by path."""
    try:
        leaves = serialization.msgpack_restore(payload)
    except Exception as error:  # anything, from msgpack or from what makes the arrays
        raise ValueError(f"holds no state ({error})") from error
    if not isinstance(leaves, dict) or not all(isinstance(k, str) for k in leaves):
        raise ValueError("holds no state")
    return leaves


def _digest(front: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(front)
    digest.update(payload)
    return digest.digest()


def _by_path(tree: types.Tree) -> dict[str, Any]:
    """Name the leaves of any pytree by their paths, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _fit(
    leaves: dict[str, Any], template: types.Tree, folder: pathlib.Path
) -> tuple[types.Tree, dict[str, segments.Log]]:
    """Put the leaves into the template's tree if they are its leaves.

    Returns:
      The tree, and where its rows of clients lie in the folder of the checkpoint.
    """
    wanted = _by_path(template)
    if odd := sorted(leaves.keys() ^ wanted.keys()):
        raise ValueError(
            f"another tree than the template: {len(odd)} leaves are in one only, "
            f"such as {odd[0]}"
        )
    for name, like in wanted.items():
        if _kind(leaves[name]) != _kind(like):
            raise ValueError(
                f"leaf {name} is {_kind(leaves[name])}, the template has {_kind(like)}"
            )
    indices = {n: leaf for n, leaf in leaves.items() if segments.is_index(leaf)}
    logs = segments.read(folder, indices)
    leaves = leaves | {name: log.rows for name, log in logs.items()}
    placed = [_place(leaves[name], like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(template), placed), logs


def _kind(leaf: Any) -> str:
    """Write dtype and shape of an array, or the type of a python number or of rows."""
    if isinstance(leaf, client_rows.Rows):
        return f"rows of {leaf.width} values"
    if segments.is_index(leaf):
        return f"rows of {len(leaf['first'])} values"
    if hasattr(leaf, "dtype"):
        return f"{leaf.dtype.name}{list(leaf.shape)}"
    return type(leaf).__name__


def _place(value: Any, like: Any) -> Any:
    """Copy a leaf out of the file's bytes to where the template's leaf lies."""
    if isinstance(like, jax.Array):
        return jax.device_put(
            np.array(value), like.sharding if like.committed else None
        )
    if isinstance(like, jax.ShapeDtypeStruct):
        return jax.device_put(np.array(value), like.sharding)
    if isinstance(like, np.ndarray):
        return np.array(value)
    return value[()] if isinstance(like, np.generic) else value


class AsyncCheckpointer:
    """Saves checkpoints from one worker thread, at most one write in flight."""

    def __init__(
        self,
        folder: writers.Folder,
        keep: int = 2,
        logs: Mapping[str, segments.Log] = {},
    ) -> None:
        """Start no thread yet.

        Args:
          folder: path of a run folder that this process holds.
          keep: how many checkpoints stay.
          logs: `Restored.logs` of what the run goes on from; without them, all rows
            of clients are written anew.
        """
        self._folder = folder
        self._keep = keep
        self._shelf = segments.Shelf(dict(logs))
        self._worker = futures.ThreadPoolExecutor(max_workers=1)
        self._flying: futures.Future[pathlib.Path] | None = None

    def save(self, round: int, state: types.Tree, records: bytes = _UNKNOWN) -> None:
        """Begin a checkpoint as the function `save`; waits for the one before it.

        Args:
          round: the next round to run from this state.
          state: pytree; its buffers may be donated or changed after this returns.
          records: digest of the records of all rounds before.

        Raises:
          OSError: if the write before failed; whatever it raised is raised here.
        """
        self.wait()
        snapshot, shelf = _snapshot(state), self._shelf
        self._flying = self._worker.submit(
            save, self._folder, round, snapshot, self._keep, records, shelf
        )

    def wait(self) -> None:
        """Wait until the checkpoint in flight is on disk.

        Raises:
          OSError: if the write failed; whatever it raised is raised here.
        """
        flying, self._flying = self._flying, None
        if flying is not None:
            flying.result()

    def close(self) -> None:
        """Wait for the checkpoint in flight and end the thread."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _snapshot(state: types.Tree) -> types.Tree:
    """Copy every array where it lies.

    A copy on the device is queued behind the computation that makes the state, so the
    host goes on to the next round; fetching here would stop it until the round ends.
    `device_put` compiles nothing, `jnp.copy` one program for each shape. Rows of
    clients never change.
    """

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, may_alias=False)
        return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(copy, state)
