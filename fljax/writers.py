"""Run folders: configuration, lock, metrics as JSON lines and TensorBoard.

A run folder holds `config.json`, `metrics.jsonl`, `alerts.jsonl`, TensorBoard events
and what `checkpoints` writes. Everything lives through kill -9 at any moment: whole
files appear by `os.replace`, files of lines grow a line at a time. With several JAX
processes only process 0 writes.

Example, which appends to the records of an earlier call (`checkpoints` has one that
restores the state too):

    >>> import tempfile
    >>> with open_run(tempfile.mkdtemp(), {"lr": 0.1}) as run:
    ...     first = len(read_metrics(run.path))
    ...     with MetricsWriter(run.path, first) as metrics:
    ...         for r in range(first, 4):
    ...             metrics.write({"round": r, "test_loss": 4.0 - r})
    ...     len(read_metrics(run.path))
    4
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import socket
from collections.abc import Callable, Mapping
from typing import IO, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

_CONFIG = "config.json"
_METRICS = "metrics.jsonl"
_ALERTS = "alerts.jsonl"
_LOCK = "lock"
_PACKAGES = ("fljax", "jax", "flax", "optax", "numpy")

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


def open_run(
    workdir: Folder, config: Mapping[str, Any], may_change: tuple[str, ...] = ()
) -> RunFolder:
    """Create or reopen a run folder and hold it for this process.

    Args:
      workdir: the folder; created when it is not there.
      config: everything resolved, as plain data (nested dicts, lists, numbers, text).
      may_change: top-level names in `config` whose values may differ from the
        folder's, which then takes the new ones. `("rounds",)` lets a finished run
        go on.

    Returns:
      The held folder. Its notes tell which of these values changed, and if the
      environment differs from the first run's.

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
        return RunFolder(path, _match_config(path / _CONFIG, now, may_change), lock)
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


def _match_config(
    path: pathlib.Path, now: dict[str, Any], may_change: tuple[str, ...]
) -> tuple[str, ...]:
    """Write the configuration, or compare it with the one that is there."""
    if not path.exists():
        _write_config(path, now)
        return ()
    stored = _stored_config(path)
    held = [_without(part["config"], may_change) for part in (stored, now)]
    if different := _differences(*held):
        raise ValueError(
            f"{path.parent} holds another configuration ({'; '.join(different)}); "
            f"pass the same values or another folder"
        )
    notes = []
    if changed := _differences(stored["config"], now["config"]):
        _write_config(path, {**stored, "config": now["config"]})
        notes.append(f"configuration changed: {'; '.join(changed)}")
    if changed := _differences(stored.get("environment", {}), now["environment"]):
        notes.append(f"environment changed: {'; '.join(changed)}")
    return tuple(notes)


def _write_config(path: pathlib.Path, content: dict[str, Any]) -> None:
    replace_file(path, json.dumps(content, indent=2).encode() + b"\n")


def _without(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _stored_config(path: pathlib.Path) -> dict[str, Any]:
    """Read `config.json`, refusing what `open_run` cannot have written."""
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); mend it or pass another folder"
        ) from None
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
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


def to_json(content: Any) -> bytes:
    """Lays content out as JSON; numbers that are not finite become null."""
    plain = _plain(content, lambda _: None)
    return json.dumps(plain, indent=2, allow_nan=False).encode() + b"\n"


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".tmp")


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Put a whole file in place at once: a kill leaves the old one or the new one.

    Args:
      path: the file; until it is whole, it lies beside under its name and `.tmp`.
      data: its content.

    Raises:
      OSError: if it cannot be written; the old file is still there.
    """
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
        self.notes += _drop_from(self._path, first_round)
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
        plain = _append(self._path, record)
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


class AlertsWriter:
    """Appends alerts to `alerts.jsonl`, which appears with the first one."""

    def __init__(self, folder: Folder, first_round: int = 0) -> None:
        """Drop the alerts that the coming rounds bring again, then append.

        Args:
          folder: path of a run folder that this process holds.
          first_round: as of `MetricsWriter`.
        """
        self.notes: list[str] = []  # lines worth logging
        self._path = pathlib.Path(folder) / _ALERTS
        if self._path.exists():
            self.notes += _drop_from(self._path, first_round)

    def write(self, alert: Mapping[str, Any]) -> None:
        """Append one alert.

        Args:
          alert: plain data or arrays, with `round`.

        Raises:
          ValueError: if a value cannot be written as JSON.
        """
        _append(self._path, alert)


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Read the records of a run, also of one that is still being written.

    Args:
      folder: path of a run folder.

    Returns:
      The whole records in the order written; none if there is no `metrics.jsonl`.
    """
    return _read(pathlib.Path(folder) / _METRICS)


def read_alerts(folder: Folder) -> list[dict[str, Any]]:
    """Read the alerts of a run, as `read_metrics` does its records."""
    return _read(pathlib.Path(folder) / _ALERTS)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [record for _, record in _lines(path) if record is not None]


def _append(path: pathlib.Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write one line; return the record as plain data, null where not finite."""
    plain = _plain(record, lambda _: None)
    with open(path, "ab") as file:
        file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
    return plain


def _lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Pair every line of a file with its record, None if unreadable."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [(line, _record(line)) for line in lines]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "round" in record else None


def _drop_from(path: pathlib.Path, first_round: int) -> list[str]:
    """Keep the whole records before a round; say how many lines were unreadable."""
    lines = _lines(path)
    kept = [
        line
        for line, record in lines
        if record is not None and record["round"] < first_round
    ]
    replace_file(path, b"".join(line + b"\n" for line in kept))
    torn = sum(record is None for _, record in lines)
    return [f"{path.name}: dropped {torn} torn or unreadable lines"] if torn else []
