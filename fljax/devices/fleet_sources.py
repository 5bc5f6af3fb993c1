"""Fleets out of distributions and files: one row of the profile for each device.

Devices are numbered from the fastest to the slowest, as tiers are, so that
`resource_correlated` splits mean the same; results are reported by thirds of them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fljax import bounds
from fljax.devices import fleet, tables
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


def of_columns(
    columns: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    tiers: np.ndarray,
    reference: fleet.Reference,
) -> fleet.Fleet:
    """Makes the fleet of columns [N]: compute, upload, download, memory, ... ."""
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


def thirds(size: int) -> np.ndarray:
    """Gives the third [N] of each of N devices, which are in order."""
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


def read_lognormal(text: str) -> Lognormal:
    """Reads lognormal:COMPUTE:BANDWIDTH:MEMORY, of which numbers may be left out.

    Raises:
      ValueError: the text is not as described.
    """
    rest = text.partition(":")[2]
    parts = rest.split(":") if rest else []
    try:
        deviations = [bounds.read(float, part) for part in parts]
    except ValueError:
        deviations = []
    if len(deviations) != len(parts) or len(parts) > 3:
        raise ValueError(
            f"expected up to three numbers, such as lognormal:.5:.5:.3, got {rest!r}"
        )
    return Lognormal(*deviations)


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
    return drawn(*draws)


def drawn(speed: np.ndarray, rate: np.ndarray, memory: np.ndarray) -> fleet.Fleet:
    """Makes the fleet of what was drawn for each device, relative to 1.0.

    Args:
      speed: [N] of computing.
      rate: [N] bandwidth, both ways.
      memory: [N].

    Returns:
      A fleet of N rows, fastest device first.
    """
    order = np.argsort(-speed, kind="stable")
    speed, rate, memory = speed[order], rate[order], memory[order]
    columns = {
        "compute": speed,
        "upload": rate,
        "download": rate,
        "memory": memory,
        "availability": np.ones(len(order)),
        "failure": np.zeros(len(order)),
        "watts": np.full(len(order), np.nan),
    }
    return of_columns(columns, THIRDS, thirds(len(order)), fleet.Reference())


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
        return _fleet(path, tables.rows(path, COLUMNS), num_clients)


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
    tiers = tiers[order] if "tier" in given else thirds(num_clients)
    return of_columns(columns, names, tiers, reference)


def _is_name(label: Any) -> bool:
    return isinstance(label, str) and label != "" and label.isprintable()


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
        values[number] = value = tables.number(row[name])
        if name == "watts" and row[name] in ("", None):
            continue  # NaN: not known
        if not (0 <= value <= 1 if share else reading.is_amount(value)):
            raise ValueError(
                f"{path}: expected {name} from {wanted} for device {number + 1}, got "
                f"{bounds.shown(row[name])}"
            )
    return values
