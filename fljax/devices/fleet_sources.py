"""Fleets out of distributions and files: one row of the profile for each device.

Devices are numbered from the fastest to the slowest, as tiers are, so that
`resource_correlated` splits mean the same; results are reported by thirds of them.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fljax import bounds
from fljax.devices import fleet
from fljax.runtime import reading, streams

THIRDS = ("fast", "middle", "slow")

# Column -> (default, whether it may be 0).
_RELATIVE = {"compute": 1.0, "upload": 1.0, "download": 1.0, "memory": 1.0}
_SHARES = {"availability": 1.0, "failure": 0.0}
# Column in units -> the relative one that it stands for.
_UNITS = {
    "step_seconds": "compute",
    "upload_mbps": "upload",
    "download_mbps": "download",
    "memory_gb": "memory",
}
COLUMNS = (*_RELATIVE, *_UNITS, *_SHARES, "watts", "tier")

_MEGABIT = 1e6 / 8  # bytes


def _of_columns(
    columns: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    tiers: np.ndarray,
    reference: fleet.Reference,
) -> fleet.Fleet:
    size = len(tiers)
    constant = np.stack([columns[name] for name in ("compute", "upload", "memory")], 1)
    profile = fleet.DeviceProfile(
        limits=np.stack([constant, constant], axis=-1),
        download=columns["download"],
        availability=columns["availability"],
        failure=columns["failure"],
        watts=columns["watts"],
    )
    row = np.arange(size, dtype=np.int32)
    return fleet.Fleet(profile, row, names, tiers.astype(np.int32), reference=reference)


def _thirds(size: int) -> np.ndarray:
    return np.arange(size) * len(THIRDS) // size


@dataclasses.dataclass(frozen=True, slots=True)
class Lognormal:
    """How much devices differ: standard deviations of logs."""

    compute: float = bounds.field(0.5, "Of speed.", most=fleet.MOST_DEVIATION)
    bandwidth: float = bounds.field(0.5, "Of bandwidth.", most=fleet.MOST_DEVIATION)
    memory: float = bounds.field(0.3, "Of memory.", most=fleet.MOST_DEVIATION)

    def __post_init__(self):
        bounds.check(self, "lognormal {}".format)

    def __str__(self) -> str:
        return f"lognormal:{self.compute}:{self.bandwidth}:{self.memory}"


def lognormal(
    num_clients: int, seed: int, spread: Lognormal = Lognormal()
) -> fleet.Fleet:
    """Draws a fleet whose speeds, bandwidths and memories are lognormal.

    The fleet's best speed, bandwidth and memory are 1.0. Upload and download of a
    device go together; speed, bandwidth and memory are drawn independently.

    Args:
      num_clients: N.
      seed: of the experiment.
      spread: how much they differ.

    Returns:
      A fleet of N rows, fastest device first.
    """
    deviations = dataclasses.astuple(spread)
    generator = streams.generator(seed, streams.SPREAD)
    draws = np.exp(
        np.array(deviations)[:, None] * generator.standard_normal((3, num_clients))
    )
    draws /= draws.max(axis=1, keepdims=True)
    speed, rate, size = draws[:, np.argsort(-draws[0], kind="stable")]
    columns = {
        "compute": speed,
        "upload": rate,
        "download": rate,
        "memory": size,
        "availability": np.ones(num_clients),
        "failure": np.zeros(num_clients),
        "watts": np.full(num_clients, np.nan),
    }
    return _of_columns(columns, THIRDS, _thirds(num_clients), fleet.Reference())


def load(path: str | pathlib.Path, num_clients: int) -> fleet.Fleet:
    """Reads a fleet from a file with one row a device.

    Args:
      path: CSV with a line of column names, or JSON, a list of objects. Columns, all
        optional: compute, upload, download, memory (relative, 1.0 being a device that
        trains, sends and holds the whole network within a round's limits) or in units
        step_seconds (of the full network), upload_mbps, download_mbps (megabits a
        second), memory_gb, of which the file's best device is 1.0; availability and
        failure (probabilities a round), watts (while training), tier (a name, for
        reports; without it thirds of the devices by speed).
      num_clients: N, the rows that are expected.

    Returns:
      The fleet, fastest device first (devices of a tier together, in the order in
      which the tiers first appear, where the file has tiers).

    Raises:
      ValueError: the file is missing or not as described; names file, row and column.
    """
    path = pathlib.Path(path)
    with reading.one_line(str(path)):
        return _fleet(path, _rows(path), num_clients)


def _fleet(
    path: pathlib.Path, rows: list[dict[str, Any]], num_clients: int
) -> fleet.Fleet:
    if len(rows) != num_clients:
        raise ValueError(
            f"{path}: expected a row for each of the {num_clients} clients, got "
            f"{len(rows)} rows"
        )
    given = set(rows[0])
    for old, new in _UNITS.items():
        if {old, new} <= given:
            raise ValueError(f"{path}: expected {old} or {new}, got both")
    columns = {
        **{name: _column(path, rows, name, default) for name, default in
           (*_RELATIVE.items(), *_SHARES.items())},
        "watts": _column(path, rows, "watts", math.nan),
    }  # fmt: skip
    best: dict[str, float] = {}
    for unit, name in _UNITS.items():
        if unit in given:
            values = _column(path, rows, unit, None)
            if unit == "step_seconds":
                values = 1 / values
            best[unit] = float(values.max())
            columns[name] = values / best[unit]
    reference = fleet.Reference(
        1 / best["step_seconds"] if "step_seconds" in best else None,
        best["upload_mbps"] * _MEGABIT if "upload_mbps" in best else None,
        best["download_mbps"] * _MEGABIT if "download_mbps" in best else None,
    )
    if "tier" in given:
        labels = [row["tier"] for row in rows]
        if bad := [label for label in labels if not _is_name(label)]:
            raise ValueError(
                f"{path}: expected names as tier, got {bounds.shown(bad[0])}"
            )
        names = tuple(dict.fromkeys(labels))
        tiers = np.array([names.index(label) for label in labels])
    else:
        names, tiers = THIRDS, np.zeros(num_clients, int)
    order = np.lexsort((-columns["compute"], tiers))
    columns = {name: values[order] for name, values in columns.items()}
    tiers = tiers[order] if "tier" in given else _thirds(num_clients)
    return _of_columns(columns, names, tiers, reference)


def _is_name(label: Any) -> bool:
    return isinstance(label, str) and label != "" and label.isprintable()


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads rows of equal, known columns."""
    rows = reading.read_json(path) if path.suffix.lower() == ".json" else _csv(path)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise ValueError(
            f"{path}: expected a list of devices, one row each, got "
            f"{type(rows).__name__ if rows else 'none'}"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            got = list(row) if isinstance(row, dict) else row
            raise ValueError(
                f"{path}: expected the columns {bounds.shown(list(rows[0]))} of "
                f"device 1 for device {number}, got {bounds.shown(got)}"
            )
    if unknown := [name for name in rows[0] if name not in COLUMNS]:
        raise ValueError(
            f"{path}: expected columns among {', '.join(COLUMNS)}, got "
            f"{bounds.shown(unknown[0])}"
        )
    return rows


def _csv(path: pathlib.Path) -> list[dict[str, Any]]:
    reading.check(str(path), path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets mark
            reader = csv.DictReader(file, skipinitialspace=True)
            names = list(reader.fieldnames or ())
            counts = collections.Counter(names).most_common(1)
            if counts and counts[0][1] > 1:
                raise ValueError(f"the column {bounds.shown(counts[0][0])} twice")
            return list(reader)
    except (ValueError, csv.Error) as error:  # also what is not UTF-8 raises
        raise ValueError(
            f"{path}: expected CSV or JSON, got: {reading.gist(error)}"
        ) from error


def _column(
    path: pathlib.Path, rows: list[dict[str, Any]], name: str, default: float | None
) -> np.ndarray:
    """Reads a column of numbers [N]; above 0, or 0 where that makes sense."""
    if name not in rows[0]:
        return np.full(len(rows), default, np.float64)
    share = name in _SHARES
    wanted = "0 to 1" if share else "1e-9 to 1e9"
    values = np.empty(len(rows))
    for number, row in enumerate(rows):
        values[number] = value = _number(row[name])
        if name == "watts" and row[name] in ("", None):
            continue  # NaN: not known
        if not (0 <= value <= 1 if share else reading.is_amount(value)):
            raise ValueError(
                f"{path}: expected {name} from {wanted} for device {number + 1}, got "
                f"{bounds.shown(row[name])}"
            )
    return values


def _number(value: Any) -> float:
    """Reads a number of JSON or the text of one; NaN: it is none."""
    try:
        return (
            float(value)
            if isinstance(value, str) or reading.is_number(value)
            else math.nan
        )
    except ValueError:
        return math.nan
