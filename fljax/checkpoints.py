"""Checkpoints of a run: the whole state in one file, restored bit by bit.

A checkpoint of round r is the state before round r runs; it lies in `checkpoints/` of a
run folder and lives through kill -9 at any moment, as all of `writers` does. So that no
record is lost, write the records of all rounds below r before saving checkpoint r. With
several JAX processes only process 0 writes.

Example, which continues where an earlier call stopped:

    >>> import tempfile
    >>> import numpy as np
    >>> with writers.open_run(tempfile.mkdtemp(), {"lr": 0.1}) as run:
    ...     state = {"w": np.zeros(3, np.float32)}
    ...     restored = restore(run.path, state)
    ...     first, state, _ = restored or Restored(0, state, ())
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
import struct
from concurrent import futures
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from flax import serialization

from fljax import types, writers

_CHECKPOINTS = "checkpoints"
_MAGIC = b"fljaxckp"
_FORMAT = 2
_FRONT = struct.Struct("<8sIQQ")  # magic, format version, round, payload bytes
_DIGEST_BYTES = hashlib.sha256().digest_size


class Restored(NamedTuple):
    """What `restore` found."""

    round: int  # the next round to run
    state: types.Tree  # structure, shapes and dtypes of the template
    notes: tuple[str, ...]  # a line for each damaged checkpoint passed over


def save(
    folder: writers.Folder, round: int, state: types.Tree, keep: int = 2
) -> pathlib.Path:
    """Write a checkpoint and remove old ones.

    Args:
      folder: path of a run folder that this process holds.
      round: the next round to run from this state.
      state: pytree of arrays and python numbers; no typed PRNG keys.
      keep: how many checkpoints stay, this one included. Those of later rounds go:
        they were passed over when this run resumed.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: if `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = pathlib.Path(folder) / _CHECKPOINTS / f"round_{round:08d}.ckpt"
    path.parent.mkdir(exist_ok=True)
    writers.replace_file(path, _encode(round, state))
    checkpoints = _checkpoints(folder)
    kept = [other for other in checkpoints if other <= path][-keep:]
    leftovers = path.parent.glob("*.tmp")  # of a kill in the middle of a write
    for stale in {*checkpoints, *leftovers} - {*kept}:
        stale.unlink()
    return path


def restore(folder: writers.Folder, template: types.Tree) -> Restored | None:
    """Read the newest checkpoint that is whole and fits the template.

    Args:
      folder: path of a run folder.
      template: a state, or `jax.eval_shape` of one; its values are not used. Leaves
        come back as jax arrays, placed alike, where it has jax arrays or shapes.

    Returns:
      Round, state and notes, or None if there is no checkpoint.

    Raises:
      ValueError: if there are checkpoints and none of them can be used.
    """
    failures: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            round, state = _decode(path.read_bytes(), template)
        except (OSError, ValueError) as error:
            failures.append(f"{path.name}: {error}")
            continue
        notes = [f"passed over {failure}; using {path.name}" for failure in failures]
        return Restored(round, state, tuple(notes))
    if failures:
        raise ValueError(
            f"no checkpoint in {pathlib.Path(folder) / _CHECKPOINTS} can be used "
            f"({'; '.join(failures)})"
        )
    return None


def _checkpoints(folder: writers.Folder) -> list[pathlib.Path]:
    """List the checkpoints of a run folder, oldest round first."""
    return sorted((pathlib.Path(folder) / _CHECKPOINTS).glob("round_*.ckpt"))


def _encode(round: int, state: types.Tree) -> bytes:
    """Lay out a checkpoint: front, sha256 of all else, msgpack of path -> leaf."""
    leaves = jax.device_get(_by_path(state))
    payload = serialization.msgpack_serialize(leaves, in_place=True)
    front = _FRONT.pack(_MAGIC, _FORMAT, round, len(payload))
    return b"".join((front, _digest(front, payload), payload))


def _decode(data: bytes, template: types.Tree) -> tuple[int, types.Tree]:
    """Undo `_encode`; a ValueError says what is wrong."""
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
    return round, _fit(serialization.msgpack_restore(payload), template)


def _digest(front: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(front)
    digest.update(payload)
    return digest.digest()


def _by_path(tree: types.Tree) -> dict[str, Any]:
    """Name the leaves of any pytree by their paths, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _fit(leaves: dict[str, Any], template: types.Tree) -> types.Tree:
    """Put the leaves into the template's tree if they are its leaves."""
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
    placed = [_place(leaves[name], like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(template), placed)


def _kind(leaf: Any) -> str:
    """Write dtype and shape of an array, or the type of a python number."""
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

    def __init__(self, folder: writers.Folder, keep: int = 2) -> None:
        """Start no thread yet.

        Args:
          folder: path of a run folder that this process holds.
          keep: how many checkpoints stay.
        """
        self._folder = folder
        self._keep = keep
        self._worker = futures.ThreadPoolExecutor(max_workers=1)
        self._flying: futures.Future[pathlib.Path] | None = None

    def save(self, round: int, state: types.Tree) -> None:
        """Begin a checkpoint as the function `save`; waits for the one before it.

        Args:
          round: the next round to run from this state.
          state: pytree; its buffers may be donated or changed after this returns.

        Raises:
          OSError: if the write before failed; whatever it raised is raised here.
        """
        self.wait()
        self._flying = self._worker.submit(
            save, self._folder, round, _snapshot(state), self._keep
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
    `device_put` compiles nothing, `jnp.copy` one program for each shape.
    """

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, may_alias=False)
        return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(copy, state)
