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

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from fljax.runs import surroundings
from fljax.runtime import durable

_CONFIG = "config.json"
_METRICS = "metrics.jsonl"
_ALERTS = "alerts.jsonl"
_LOCK = "lock"
MAY_DIFFER = (
    "rounds from here on may differ in their last bits from those of a run without "
    "the change, and by more where blocks are frozen in codes"
)
_MENDED = "{} was changed by others while the run goes on: wrote it anew"

# Fields of records that plots and tables compute with.
_NUMBERS = frozenset(
    (
        *("train_loss", "test_loss", "test_accuracy", "macro_f1", "participants"),
        *("worst_tier_accuracy", "tier_spread", "upload_bytes", "download_bytes"),
        *("token_accuracy", "perplexity", "rmse", "mae", "r2"),
        *("micro_f1", "subset_accuracy"),
        *("compute_share", "round_seconds", "clock_seconds", "wall_seconds", "joules"),
    )
)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_MOST_NESTED = 50  # levels of a configuration
_SHARE = 0.2  # of memory that a file of JSON may take; as objects it takes more

Folder = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder that this process holds until `close` or the end of `with`."""

    path: pathlib.Path
    notes: tuple[str, ...]  # lines worth logging
    locks: contextlib.ExitStack  # what keeps other processes out
    read_only: str = ""  # why nothing can be written, so that nothing is held either

    def close(self) -> None:
        """Let other processes write the folder."""
        self.locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Files(NamedTuple):
    """Files of a run folder, which need not be there yet.

    Attributes:
      config: the configuration, without which a folder is no run's.
      metrics: records, a line each.
      alerts: likewise.
      lock: what keeps other processes out; says which process took it last.
    """

    config: pathlib.Path
    metrics: pathlib.Path
    alerts: pathlib.Path
    lock: pathlib.Path


def files(folder: Folder) -> Files:
    """Names the files of a run folder."""
    names = (_CONFIG, _METRICS, _ALERTS, _LOCK)
    return Files(*(pathlib.Path(folder) / name for name in names))


def open_run(
    workdir: Folder,
    config: Mapping[str, Any],
    may_change: tuple[str, ...] = (),
    rounding: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Create or reopen a run folder and hold it for this process.

    Args:
      workdir: the folder; created when it is not there.
      config: everything resolved, as plain data (nested dicts, lists, numbers, text).
      may_change: names in `config` whose values may differ from the folder's, which
        then takes the new ones; "rollback.limit" is one within a dict. `("rounds",)`
        lets a finished run go on.
      rounding: names that may change too, but change the order of sums.
      settings: that `config` was resolved from, kept beside it to be read back.

    Returns:
      The held folder, or one that says why it can only be read. Its notes tell which
      of these values changed, and if the surroundings differ from the first call's.

    Raises:
      ValueError: if the folder holds another configuration (each difference is
        named), is no run folder, or is held by another process.
    """
    path = pathlib.Path(workdir)
    _check_ours(path)
    path.mkdir(parents=True, exist_ok=True)
    plain = _plain(config, repr)
    free = (*may_change, *rounding)
    now = {
        "run": _name(_without(plain, free)),
        "config": plain,
        "environment": surroundings.describe(),
    }
    if settings is not None:
        now["settings"] = _plain(settings, repr)
    with contextlib.ExitStack() as locks:
        read_only = ""
        try:
            locks.callback(_lock(path).release)
            _config_lock(path).release()  # nobody else has it
        except OSError as error:
            if error.errno not in _READ_ONLY or not (path / _CONFIG).exists():
                raise
            read_only = str(error)
        before = _match_config(path / _CONFIG, now, free, not read_only)
        if not read_only:
            locks.callback(_config_lock(path).release)
        notes = _notes(before, now, rounding)
        return RunFolder(path, notes, locks.pop_all(), read_only)


def _check_ours(path: pathlib.Path) -> None:
    """Refuse a file, and a folder with files but without a configuration."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; pass a folder for the run")
    names = set(os.listdir(path)) if path.exists() else set()
    # A kill before the first configuration was in place leaves these two.
    strangers = names - {_LOCK, durable.temporary(path / _CONFIG).name}
    if strangers and _CONFIG not in names:
        raise ValueError(
            f"{path} is not empty and no run folder: it has {min(strangers)!r} but "
            f"no {_CONFIG}; pass a new or empty folder"
        )


def _name(config: dict[str, Any]) -> str:
    """Name a run by what it depends on: of one name, runs are alike bit for bit."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _lock(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Take the folder for this process; the kernel lets go even on kill -9."""
    path = folder / _LOCK
    holder = _holder(path)
    os.close(durable.no_link(str(path), os.O_RDWR | os.O_CREAT))
    lock = _taken(filelock.FileLock(path, timeout=0), folder, holder)
    text = f"pid {os.getpid()} on {socket.gethostname()}\n"
    with (
        contextlib.suppress(OSError),  # Windows lets nobody read or write it now
        open(path, "w", opener=durable.no_link) as file,
    ):
        file.write(text)
    return lock


def _config_lock(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Take the configuration as well: somebody may delete the other lock.

    Without a configuration a folder is no run's. Windows deletes no file that is open,
    and would let nobody read this one.
    """
    path = folder / _CONFIG
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    if os.name == "nt" or not path.exists():
        return lock
    try:
        return _taken(lock, folder, "another process")
    except OSError as error:
        if error.errno != errno.ENOSYS:  # of file systems without locks
            raise
        return lock


def _taken(
    lock: filelock.BaseFileLock, folder: pathlib.Path, holder: str
) -> filelock.BaseFileLock:
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is being written by {holder}; wait for it, stop it, or pass "
            f"another folder"
        ) from None
    return lock


def _holder(path: pathlib.Path) -> str:
    """Read who wrote a lock file last, if that can be told."""
    with contextlib.suppress(OSError, ValueError):
        text = durable.read(path).decode().strip()
        if text.startswith("pid ") and text.isprintable():
            return text
    return "another process"


def _match_config(
    path: pathlib.Path,
    now: dict[str, Any],
    may_change: tuple[str, ...],
    writable: bool,
) -> dict[str, Any]:
    """Write the configuration, or compare it with the one that is there: the result."""
    if not path.exists():
        _write_config(path, now)
        return now
    stored = _stored_config(path)
    _check_sections(path.parent, stored["config"], now["config"])
    held = [_without(part["config"], may_change) for part in (stored, now)]
    if different := _differences(*held):
        raise ValueError(
            f"{path.parent} holds another configuration ({'; '.join(different)}); "
            f"pass the same values or another folder"
        )
    changed = _differences(stored["config"], now["config"])
    if writable and (changed or "run" not in stored):
        new = _without(now, ("run", "environment"))
        _write_config(path, {"run": now["run"], **stored, **new})
    return stored


def _check_sections(
    folder: pathlib.Path, stored: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse a folder of a version that laid settings out otherwise, in one line."""
    of = [{k for k, v in part.items() if isinstance(v, dict)} for part in (stored, now)]
    if flat := (of[1] - of[0]) & stored.keys():
        raise ValueError(
            f"{folder} is of another version of fljax, whose {', '.join(sorted(flat))} "
            f"had no settings of their own; pass another folder, or go on with that "
            f"version"
        )


def _notes(
    before: dict[str, Any], now: dict[str, Any], rounding: tuple[str, ...]
) -> tuple[str, ...]:
    """Say what differs from the call before, and what that may change."""
    notes = []
    if changed := _differences(before["config"], now["config"]):
        held = [
            {name: part["config"].get(name) for name in rounding}
            for part in (before, now)
        ]
        clause = f"; {MAY_DIFFER}" if _differences(*held) else ""
        notes.append(f"configuration changed: {'; '.join(changed)}{clause}")
    # What an older version did not name is not known.
    known = before.get("environment", {}).keys() & now["environment"].keys()
    held = (
        [{name: part["environment"][name] for name in known} for part in (before, now)]
        if known
        else [{}, {}]
    )
    if changed := _differences(*held):
        notes.append(f"environment changed: {'; '.join(changed)}; {MAY_DIFFER}")
    return tuple(notes)


def _write_config(path: pathlib.Path, content: dict[str, Any]) -> None:
    durable.replace(path, json.dumps(content, indent=2).encode() + b"\n")


def _without(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Leave out values by their names, "section.name" within a dict."""
    return {
        key: _without(value, _within(key, names)) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in names
    }


def _within(section: str, names: tuple[str, ...]) -> tuple[str, ...]:
    start = f"{section}."
    return tuple(n.removeprefix(start) for n in names if n.startswith(start))


def _stored_config(path: pathlib.Path) -> dict[str, Any]:
    """Read `config.json`, refusing what `open_run` cannot have written."""
    try:
        stored = json.loads(durable.read(path, _SHARE))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); mend it or pass another folder"
        ) from None
    kinds = {"config": dict, "environment": dict, "settings": dict, "run": str}
    if (
        not isinstance(stored, dict)
        or "config" not in stored
        or not all(isinstance(stored.get(k, kind()), kind) for k, kind in kinds.items())
        or _deeper_than(_MOST_NESTED, stored)
    ):
        raise ValueError(f"{path} is no run's; pass a new or empty folder")
    return stored


def _deeper_than(levels: int, value: Any) -> bool:
    """Tell whether containers are nested in more levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(levels - 1, item) for item in inner)


class Described(NamedTuple):
    """What `config.json` says of a run.

    Attributes:
      config: all that it depends on.
      settings: that this was resolved from; empty: not known.
      environment: versions and machine of the first call; likewise.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any] = {}  # noqa: RUF012


def described(folder: Folder) -> Described:
    """Read what a run folder says of its run.

    Raises:
      ValueError: it is no run folder.
    """
    path = pathlib.Path(folder) / _CONFIG
    if not path.is_file():
        raise ValueError(f"expected a run folder with a {_CONFIG}, got {folder}")
    stored = _stored_config(path)
    parts = (stored.get(name, {}) for name in ("settings", "environment"))
    return Described(stored["config"], *parts)


def differences(folder: Folder, config: Mapping[str, Any]) -> list[str]:
    """Name what a configuration has that a run folder's has not, and the reverse."""
    return _differences(described(folder).config, kept_config(config))


def run_name(folder: Folder) -> str:
    """Read the name of the run that a folder holds; empty if it tells none."""
    try:
        return _stored_config(pathlib.Path(folder) / _CONFIG).get("run", "")
    except (OSError, ValueError):
        return ""


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name every value that is not the same in both."""
    one, two = flat(stored, "."), flat(now, ".")

    def shown(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "absent"

    return [
        f"{name}: {shown(one, name)} in the folder, {shown(two, name)} now"
        for name in sorted(one.keys() | two.keys())
        if name not in one or name not in two or one[name] != two[name]
    ]


def flat(tree: Any, separator: str, name: str = "") -> dict[str, Any]:
    """List the values of nested dicts under their joined names."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree} if name else {}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, separator, f"{name}{separator}{key}" if name else key)
    return found


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


def kept_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a configuration as `config.json` has it."""
    return _plain(config, repr)


def kept_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a record as `metrics.jsonl` has it: null where a number is not finite."""
    return _plain(record, lambda _: None)


def to_json(content: Any) -> bytes:
    """Lays content out as JSON; numbers that are not finite become null."""
    plain = _plain(content, lambda _: None)
    return json.dumps(plain, indent=2, allow_nan=False).encode() + b"\n"


def sync_records(folder: Folder) -> None:
    """Make the records and alerts that a run has written durable."""
    for name in (_METRICS, _ALERTS):
        durable.sync(pathlib.Path(folder) / name)


class History(NamedTuple):
    """What a run folder holds, for a checkpoint to belong to.

    Attributes:
      run: name of the run; empty: unknown.
      digests: the r-th of the records of rounds 0 to r - 1, as far as they are whole.
      finished: records of rounds that stand: not of one that ended the run.
      lines: of the file, readable or not.
    """

    run: str
    digests: tuple[bytes, ...]
    finished: int
    lines: int


def read_history(folder: Folder) -> History:
    """Read what a run has recorded; records behind a gap do not count."""
    found = _lines(pathlib.Path(folder) / _METRICS)
    whole = [record for _, record in found if record and "stopped" not in record]
    digest = hashlib.sha256()
    digests = [digest.digest()]
    for number, record in enumerate(whole):
        if record["round"] != number:
            break
        digest.update(_lasting(record))
        digests.append(digest.digest())
    return History(run_name(folder), tuple(digests), len(whole), len(found))


def _lasting(record: dict[str, Any]) -> bytes:
    """Lay out what of a record comes again bit for bit: all but the time it took."""
    lasting = {key: value for key, value in record.items() if key != "wall_seconds"}
    return json.dumps(lasting).encode()


class _Survivor:
    """Stands before a file of TensorBoard events, for the thread that writes it.

    An error would end that thread, and whoever gives it events would wait for ever: so
    it is kept, to be raised by who writes next.
    """

    def __init__(self, events: Any) -> None:
        """Keep the file."""
        self._events = events
        self.error: OSError | None = None

    def write_event(self, event: Any) -> None:
        """Write an event, unless one could not be written."""
        self._tried(self._events.write_event, event)

    def flush(self) -> None:
        """Write out what was written, likewise."""
        self._tried(self._events.flush)

    def _tried(self, call: Callable[..., Any], *given: Any) -> None:
        if self.error is None:
            try:
                call(*given)
            except OSError as error:
                self.error = error


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
        self.notes: list[str] = []  # lines worth logging, to be taken
        self._board: Any = None
        self._events: Any = None
        name = path / _METRICS
        self._file, records = _kept(name, first_round, self.notes, first_round)
        self._digest = hashlib.sha256(b"".join(map(_lasting, records)))
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
        worker = self._board.file_writer.event_writer._worker
        self._events = worker._record_writer = _Survivor(worker._record_writer)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a number that is not finite is written as null.

        Args:
          record: plain data or arrays, with `round`. Arrays on a device are fetched,
            so pass the record of a round that has finished.

        Raises:
          ValueError: if a value cannot be written as JSON.
        """
        plain = _append(self._file, record, self.notes)
        self._digest.update(_lasting(plain))
        if self._board is None:
            return
        if self._events.error is not None:  # the disk is full, or gone
            raise self._events.error
        for tag, value in flat(plain, "/").items():
            if tag != "round" and isinstance(value, int | float):
                self._board.add_scalar(tag, value, plain["round"])

    def digest(self) -> bytes:
        """Digest all records so far, as `History` does."""
        return self._digest.digest()

    def close(self) -> None:
        """Write out the TensorBoard events."""
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None and self._file.mend():  # else a line may be half written
            self.notes.append(_MENDED.format(_METRICS))


class AlertsWriter:
    """Appends alerts to `alerts.jsonl`, which appears with the first one."""

    def __init__(self, folder: Folder, first_round: int = 0) -> None:
        """Drop the alerts that the coming rounds bring again, then append.

        Args:
          folder: path of a run folder that this process holds.
          first_round: as of `MetricsWriter`.
        """
        self.notes: list[str] = []  # lines worth logging, to be taken
        path = pathlib.Path(folder) / _ALERTS
        self._file, _ = _kept(path, first_round, self.notes)

    def write(self, alert: Mapping[str, Any]) -> None:
        """Append one alert.

        Args:
          alert: plain data or arrays, with `round`.

        Raises:
          ValueError: if a value cannot be written as JSON.
        """
        _append(self._file, alert, self.notes)


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """Read the records of a run, also of one that is still being written.

    Args:
      folder: path of a run folder.

    Returns:
      The whole records in the order written; none if there is no `metrics.jsonl`.

    Raises:
      ValueError: a line other than the last, which may be torn, is no record.
    """
    return _read(pathlib.Path(folder) / _METRICS)


def read_alerts(folder: Folder) -> list[dict[str, Any]]:
    """Read the alerts of a run, as `read_metrics` does its records."""
    return _read(pathlib.Path(folder) / _ALERTS)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    found = _lines(path)
    for number, (line, record) in enumerate(found[:-1], start=1):
        if record is None:
            shown = line[:60].decode(errors="replace")
            raise ValueError(
                f'{path}: line {number}: expected a record such as {{"round": 2}}, got '
                f"{shown!r}"
            )
    return [record for _, record in found if record is not None]


def _append(
    file: durable.Lines, record: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Write one line; return the record as it is kept."""
    plain = kept_record(record)
    if file.append(json.dumps(plain, allow_nan=False).encode()):
        notes.append(_MENDED.format(file.path.name))
    return plain


def _lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Pair every line of a file with its record, None if unreadable."""
    whole = durable.read(path, _SHARE)
    return [(line, parsed(line)) for line in whole.splitlines()]


def parsed(line: bytes) -> dict[str, Any] | None:
    """Read a line of records or alerts; None if no run has written it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not _is_round(record.get("round")):
        return None
    return record if all(_fits(*item) for item in record.items()) else None


def _is_round(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _fits(name: str, value: Any) -> bool:
    """Tell whether a field is what its readers take it for."""
    if name == "tier_accuracy":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    if name == "rollback":
        return isinstance(value, dict) and type(value.get("to_round")) is int
    return name not in _NUMBERS or _is_number(value)


def _is_number(value: Any) -> bool:
    """Tell whether it is a finite number, or null where it was none."""
    if value is None:
        return True
    if type(value) not in (int, float):
        return False
    return abs(value) < 1e300  # compares whole numbers of any length, and NaN


def _kept(
    path: pathlib.Path, first_round: int, notes: list[str], most: int | None = None
) -> tuple[durable.Lines, list[dict[str, Any]]]:
    """Keep the whole records before a round; note how many lines were unreadable."""
    found = _lines(path)
    kept = [
        (line, record)
        for line, record in found
        if record is not None and record["round"] < first_round
    ][:most]
    lines = [line for line, _ in kept]
    if path.exists() or path.name == _METRICS:
        durable.replace(path, b"".join(line + b"\n" for line in lines))
    if torn := sum(record is None for _, record in found):
        notes.append(f"{path.name}: dropped {torn} torn or unreadable lines")
    return durable.Lines(path, lines), [record for _, record in kept]
