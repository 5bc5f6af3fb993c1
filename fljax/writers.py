"""Run folders: configuration, metrics as JSON lines and TensorBoard, checkpoints.

A run folder holds `config.json`, `metrics.jsonl`, TensorBoard events and
`checkpoints/`. A checkpoint of round r is the state before round r runs. Everything
lives through kill -9 at any moment: whole files appear by `os.replace`, `metrics.jsonl`
grows a line at a time. So that no record is lost, write the records of all rounds
below r before saving checkpoint r. With several JAX processes only process 0 writes.

Example, which continues where an earlier call stopped:

    >>> import tempfile
    >>> import numpy as np
    >>> with open_run(tempfile.mkdtemp(), {"lr": 0.1}) as run:
    ...     state = {"w": np.zeros(3, np.float32)}
    ...     restored = restore_checkpoint(run.path, state)
    ...     first, state, _ = restored or Restored(0, state, ())
    ...     with (
    ...         MetricsWriter(run.path, first) as metrics,
    ...         AsyncCheckpointer(run.path) as checkpointer,
    ...     ):
    ...         for r in range(first, 4):
    ...             state = {"w": state["w"] + 1}
    ...             metrics.write({"round": r, "test_loss": 4.0 - r})
    ...             checkpointer.save(r + 1, state)
    ...     restore_checkpoint(run.path, state).round, len(read_metrics(run.path))
    (4, 4)
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import socket
import struct
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import IO, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from fljax import types

_CONFIG = "config.json"
_METRICS = "metrics.jsonl"
_LOCK = "lock"
_CHECKPOINTS = "checkpoints"
_PACKAGES = ("fljax", "jax", "flax", "optax", "numpy")
_MAGIC = b"fljaxckp"
_FORMAT = 1
_FRONT = struct.Struct("<8sIQQ")  # magic, format version, round, payload bytes
_DIGEST_BYTES = hashlib.sha256().digest_size

Folder = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder that this process holds until `close` or the end of `with`."""

    path: pathlib.Path
    notes: tuple[str, ...]  # lines worth logging
    lock: IO[str]  # the open file that carries the lock

    def close(self) -> None:
        """Let other processes write the folder."""
        self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Restored(NamedTuple):
    """What `restore_checkpoint` found."""

    round: int  # the next round to run
    state: types.Tree  # structure, shapes and dtypes of the template
    notes: tuple[str, ...]  # a line for each damaged checkpoint passed over


def open_run(workdir: Folder, config: Mapping[str, Any]) -> RunFolder:
    """Create or reopen a run folder and hold it for this process.

    Args:
      workdir: the folder; created when it is not there.
      config: everything resolved, as plain data (nested dicts, lists, numbers, text).

    Returns:
      The held folder. Its notes tell if the environment differs from the first run's.

    Raises:
      ValueError: if the folder holds another configuration (each difference is
        named), is no run folder, or is held by another process.
    """
    path = pathlib.Path(workdir)
    _check_ours(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        now = {"config": _plain(config, repr), "environment": _environment()}
        return RunFolder(path, _match_config(path / _CONFIG, now), lock)
    except BaseException:
        lock.close()
        raise


def _check_ours(path: pathlib.Path) -> None:
    """Refuse a file, and a folder with files but without a configuration."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; pass a folder for the run")
    names = set(os.listdir(path)) if path.exists() else set()
    # A kill before the first configuration was in place leaves these two.
    strangers = names - {_LOCK, _temporary(path / _CONFIG).name}
    if strangers and _CONFIG not in names:
        raise ValueError(
            f"{path} is not empty and no run folder: it has {min(strangers)!r} but "
            f"no {_CONFIG}; pass a new or empty folder"
        )


def _lock(folder: pathlib.Path) -> IO[str]:
    """Take the folder for this process; the kernel lets go even on kill -9."""
    lock = os.fdopen(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(
            f"{folder} is being written by {holder}; wait for it, stop it, or pass "
            f"another folder"
        ) from None
    lock.truncate(0)
    print(f"pid {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
    return lock


def _environment() -> dict[str, str]:
    """Name the versions and the devices that results depend on."""
    versions = {
        name: next(
            (found.version for found in importlib.metadata.distributions(name=name)),
            "not installed",  # a checkout on the path
        )
        for name in _PACKAGES
    }
    devices = jax.devices()
    device = f"{len(devices)} x {devices[0].platform} {devices[0].device_kind}"
    return {**versions, "python": platform.python_version(), "device": device}


def _match_config(path: pathlib.Path, now: dict[str, Any]) -> tuple[str, ...]:
    """Write the configuration, or compare it with the one that is there."""
    if not path.exists():
        _replace(path, json.dumps(now, indent=2).encode() + b"\n")
        return ()
    stored = _stored_config(path)
    if different := _differences(stored["config"], now["config"]):
        raise ValueError(
            f"{path.parent} holds another configuration ({'; '.join(different)}); "
            f"pass the same values or another folder"
        )
    changed = _differences(stored.get("environment", {}), now["environment"])
    return (f"environment changed: {'; '.join(changed)}",) if changed else ()


def _stored_config(path: pathlib.Path) -> dict[str, Any]:
    """Read `config.json`, refusing what `open_run` cannot have written."""
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); mend it or pass another folder"
        ) from None
    if not isinstance(stored, dict) or "config" not in stored:
        raise ValueError(f"{path} is no run's; pass a new or empty folder")
    return stored


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name every value that is not the same in both."""
    one, two = _flat(stored, "."), _flat(now, ".")

    def shown(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "absent"

    return [
        f"{name}: {shown(one, name)} in the folder, {shown(two, name)} now"
        for name in sorted(one.keys() | two.keys())
        if name not in one or name not in two or one[name] != two[name]
    ]


def _flat(tree: Any, separator: str, name: str = "") -> dict[str, Any]:
    """List the values of nested dicts under their joined names."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree} if name else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, separator, f"{name}{separator}{key}" if name else key)
    return flat


def _plain(value: Any, non_finite: Callable[[float], str | None]) -> Any:
    """Turn arrays, tuples and numpy numbers into what JSON can hold."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else non_finite(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, non_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, non_finite) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float64)  # exact; bfloat16 has no python float
        return _plain(array.tolist(), non_finite)
    raise ValueError(
        f"expected numbers, text, lists and dicts, got {value!r} of type "
        f"{type(value).__name__}; convert it first"
    )


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".tmp")


def _replace(path: pathlib.Path, data: bytes) -> None:
    """Put a whole file in place at once."""
    temporary = _temporary(path)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut can leave the new name without data
    os.replace(temporary, path)


class MetricsWriter:
    """Appends metrics records to `metrics.jsonl` and to TensorBoard events."""

    def __init__(
        self, folder: Folder, first_round: int = 0, tensorboard: bool = True
    ) -> None:
        """Drop the records that the coming rounds write again, then append.

        Args:
          folder: path of a run folder that this process holds.
          first_round: the round that runs next; records from it on are dropped, and
            so is a line that a kill tore.
          tensorboard: whether to write TensorBoard events too.
        """
        path = pathlib.Path(folder)
        self.notes: list[str] = []  # lines worth logging
        self._path = path / _METRICS
        self._board: Any = None
        if torn := _drop_from(self._path, first_round):
            self.notes.append(f"{_METRICS}: dropped {torn} torn or unreadable lines")
        if tensorboard:
            self._open_board(path, first_round)

    def _open_board(self, folder: pathlib.Path, first_round: int) -> None:
        try:
            import tensorboardX
        except (ImportError, TypeError) as error:  # TypeError: a protobuf that clashes
            self.notes.append(
                f"no TensorBoard events: tensorboardX does not import ({error}); "
                f"pip install -U tensorboardX"
            )
            return
        # The writer names its file by second and host, and truncates one that exists.
        before = len(list(folder.glob("*.tfevents.*")))
        self._board = tensorboardX.SummaryWriter(
            str(folder),
            purge_step=first_round if before else None,
            flush_secs=1,
            filename_suffix=f".{before}",
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a number that is not finite is written as null.

        Args:
          record: plain data or arrays, with `round`. Arrays on a device are fetched,
            so pass the record of a round that has finished.

        Raises:
          ValueError: if a value cannot be written as JSON.
        """
        plain = _plain(record, lambda _: None)
        with open(self._path, "ab") as file:
            file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        if self._board is None:
            return
        for tag, value in _flat(plain, "/").items():
            if tag != "round" and isinstance(value, int | float):
                self._board.add_scalar(tag, value, plain["round"])

    def close(self) -> None:
        """Write out the TensorBoard events."""
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Read the records of a run, also of one that is still being written.

    Args:
      folder: path of a run folder.

    Returns:
      The whole records in the order written; none if there is no `metrics.jsonl`.
    """
    return [record for _, record in _lines(folder) if record is not None]


def _lines(folder: Folder) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Pair every line of `metrics.jsonl` with its record, None if unreadable."""
    path = pathlib.Path(folder) / _METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [(line, _record(line)) for line in lines]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "round" in record else None


def _drop_from(path: pathlib.Path, first_round: int) -> int:
    """Keep the whole records before a round; return how many lines were unreadable."""
    lines = _lines(path.parent)
    kept = [
        line
        for line, record in lines
        if record is not None and record["round"] < first_round
    ]
    _replace(path, b"".join(line + b"\n" for line in kept))
    return sum(record is None for _, record in lines)


def save_checkpoint(
    folder: Folder, round: int, state: types.Tree, keep: int = 2
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
    _replace(path, _encode(round, state))
    checkpoints = _checkpoints(folder)
    kept = [other for other in checkpoints if other <= path][-keep:]
    leftovers = path.parent.glob("*.tmp")  # of a kill in the middle of a write
    for stale in {*checkpoints, *leftovers} - {*kept}:
        stale.unlink()
    return path


def restore_checkpoint(folder: Folder, template: types.Tree) -> Restored | None:
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
            f"no checkpoint in {folder} can be used ({'; '.join(failures)}); put a "
            f"good one back, or delete {pathlib.Path(folder) / _CHECKPOINTS} to start "
            f"at round 0"
        )
    return None


def _checkpoints(folder: Folder) -> list[pathlib.Path]:
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

    def __init__(self, folder: Folder, keep: int = 2) -> None:
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
        """Begin a checkpoint as `save_checkpoint`; waits for the one before it.

        Args:
          round: the next round to run from this state.
          state: pytree; its buffers may be donated or changed after this returns.

        Raises:
          OSError: if the write before failed; whatever it raised is raised here.
        """
        self.wait()
        self._flying = self._worker.submit(
            save_checkpoint, self._folder, round, _snapshot(state), self._keep
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
