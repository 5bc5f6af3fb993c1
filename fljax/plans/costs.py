"""Cost tables: what training under a plan costs, relative to training everything.

A table lists plans with their time, upload and memory, measured (`load`) or modeled
(`cost_model`); `feasible` and `maximal` lead from a client's budgets to its plans as
in CoCoFL (arXiv 2203.05468) and its reference code.

Legend: P plans of a table, K clients, n blocks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fljax import bounds, plans
from fljax.runtime import durable, reading

_MOST = 2**31  # whole numbers of a table are below


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostTable:
    """What each known plan costs, relative to training every block (1.0).

    The plans are of the default width of codes, which changes no cost; policies choose
    rows, and `at` gives the plans of the rows at any width.

    The arrays are checked, copied and made read-only. Measured values may exceed 1 by
    noise and are kept as they are: `feasible` clips them. Not every window of the
    network needs to be there.

    >>> table = CostTable(
    ...     num_blocks=2, listed=plans.all_windows(2), time=[0.6, 1.0, 0.3],
    ...     upload=[0.2, 1.0, 0.8], memory=[0.7, 1.0, 0.4],
    ... )
    >>> [str(plan) for plan in table.listed]
    ['0-0', '0-1', '1-1']
    >>> table.rows([plans.Plan(1, 1), plans.Plan(0, 0, bits=4)]).tolist()
    [2, 0]
    """

    num_blocks: int  # n
    listed: Sequence[plans.Plan]  # P of them, kept as a tuple
    time: np.ndarray  # [P] float64
    upload: np.ndarray  # [P] float64
    memory: np.ndarray  # [P] float64
    full_step_seconds: float | None = None  # one step, everything trained
    full_step_memory_gb: float | None = None  # GB (1e9 bytes) of that step
    batch: int = 32  # examples of that step (the published tables' 32)
    source: str = "cost table"  # where it comes from: opens every error message
    # plan -> its row
    row: dict[plans.Plan, int] = dataclasses.field(init=False, repr=False)
    # [P, P] bool: which plan covers which other one
    covers: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "listed", tuple(self.listed))
        for name in ("time", "upload", "memory"):
            _freeze(self, name, np.float64)
        _check_shapes(self)
        object.__setattr__(self, "row", _checked_plans(self))
        _check_costs(self)
        object.__setattr__(self, "covers", plans.covering(self.listed))

    @property
    def windows(self) -> np.ndarray:
        """Give the windows of the rows, [P, 2] int64: first and last trained block."""
        return plans.windows_of(self.listed)

    def at(self, bits: int) -> tuple[plans.Plan, ...]:
        """List the plans of the rows, P of them, at one width of codes."""
        return tuple(plan.at(bits) for plan in self.listed)

    def rows(self, assigned: Sequence[plans.Plan]) -> np.ndarray:
        """Find the rows [K] int64 of plans, at whatever width of codes."""
        found = [self.row[plan.at(plans.DEFAULT_BITS)] for plan in assigned]
        return np.array(found, np.int64)

    def take(self, rows: Sequence[int] | np.ndarray, source: str = "") -> CostTable:
        """Give the table of some of the rows, under its own source or another."""
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            listed=[self.listed[row] for row in rows.tolist()],
            time=self.time[rows],
            upload=self.upload[rows],
            memory=self.memory[rows],
            source=source or self.source,
        )


def _freeze(table: CostTable, name: str, dtype: type) -> None:
    """Replace a field by a read-only copy of a fixed dtype."""
    array: np.ndarray = np.array(getattr(table, name), dtype)
    array.flags.writeable = False
    object.__setattr__(table, name, array)


def _check_shapes(table: CostTable) -> None:
    """Raise unless there are P >= 1 plans with one cost of each kind."""
    size = len(table.listed)
    if size == 0:
        raise ValueError(f"{table.source}: expected at least one plan, got none")
    for name in ("time", "upload", "memory"):
        if getattr(table, name).shape != (size,):
            raise ValueError(
                f"{table.source}: expected {name} of shape ({size},), one a plan, "
                f"got {getattr(table, name).shape}"
            )


def _checked_plans(table: CostTable) -> dict[plans.Plan, int]:
    """Return each plan's row; raise at the first that is none or comes again."""
    row_of: dict[plans.Plan, int] = {}
    for row, plan in enumerate(table.listed):
        if not isinstance(plan, plans.Plan) or plan.bits != plans.DEFAULT_BITS:
            raise ValueError(
                f"{table.source}: expected plans of {plans.DEFAULT_BITS} bits, got "
                f"{bounds.shown(plan)} in row {row}"
            )
        if plan.last >= table.num_blocks:
            raise ValueError(
                f"{table.source}: expected plans of {table.num_blocks} blocks, 0 to "
                f"{table.num_blocks - 1}, got {plan} in row {row}"
            )
        if plan in row_of:
            raise ValueError(
                f"{table.source}: expected each plan once, got {plan} again in row "
                f"{row}"
            )
        row_of[plan] = row
    return row_of


def _check_costs(table: CostTable) -> None:
    """Raise at the first cost that is not from 1e-9 to 1e9."""
    for name in ("time", "upload", "memory"):
        cost = getattr(table, name)
        bad = ~((cost >= reading.AMOUNTS[0]) & (cost <= reading.AMOUNTS[1]))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{table.source}: expected {name} from 1e-9 to 1e9 for plan "
                f"{table.listed[row]}, got {cost[row]}"
            )
    for name in ("full_step_seconds", "full_step_memory_gb"):
        value = getattr(table, name)
        if value is not None and not reading.is_amount(value):
            raise ValueError(
                f"{table.source}: expected {name} from 1e-9 to 1e9 or none, "
                f"got {bounds.shown(value)}"
            )
    if type(table.batch) is not int or not 1 <= table.batch < _MOST:
        raise ValueError(
            f"{table.source}: expected batch_size to be a positive integer, got "
            f"{bounds.shown(table.batch)}"
        )


def load(path: str | pathlib.Path) -> CostTable:
    """Read a cost table from a JSON file.

    The file is an object with `blocks` (n) and `windows`, a list of
    [first, last, time, upload, memory]; `full_step_seconds`, `full_step_memory_gb` and
    the `batch_size` of that step (else 32) are optional.

    Args:
      path: the file.

    Returns:
      The table, rows in the order of the file.

    Raises:
      ValueError: if the file is missing or not as described; names the file.
    """
    content = reading.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a JSON object, got a {type(content).__name__}"
        )
    for key in ("blocks", "windows"):
        if key not in content:
            raise ValueError(
                f"{path}: expected the keys blocks and windows, got "
                f"{bounds.shown(sorted(content))}"
            )
    if type(content["blocks"]) is not int or not 1 <= content["blocks"] < _MOST:
        raise ValueError(
            f"{path}: expected blocks to be a positive integer, got "
            f"{bounds.shown(content['blocks'])}"
        )
    rows = _checked_rows(path, content["windows"], content["blocks"])
    return CostTable(
        num_blocks=content["blocks"],
        listed=plans.of_windows(row[:2] for row in rows),
        time=np.array([row[2] for row in rows]),
        upload=np.array([row[3] for row in rows]),
        memory=np.array([row[4] for row in rows]),
        full_step_seconds=content.get("full_step_seconds"),
        full_step_memory_gb=content.get("full_step_memory_gb"),
        batch=content.get("batch_size", 32),
        source=str(path),
    )


def _checked_rows(path: str | pathlib.Path, rows: Any, blocks: int) -> list[list]:
    """Raise unless rows is a filled list of [int, int, number, number, number].

    The first two are a window of the blocks.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected windows to be a list with at least one row")
    for number, row in enumerate(rows):
        if (
            not isinstance(row, list)
            or len(row) != 5
            or not all(type(value) is int and abs(value) < _MOST for value in row[:2])
            or not all(reading.is_number(value) for value in row[2:])
        ):
            raise ValueError(
                f"{path}: expected [first, last, time, upload, memory] with whole "
                f"first and last, got {bounds.shown(row)} in row {number} of windows"
            )
        if not 0 <= row[0] <= row[1] < blocks:
            raise ValueError(
                f"{path}: expected windows with 0 <= first <= last < {blocks} (the "
                f"blocks), got {row[0]}-{row[1]} in row {number}"
            )
    return rows


def save(table: CostTable, path: str | pathlib.Path) -> None:
    """Write a cost table in the layout that `load` reads; every digit survives.

    Args:
      table: the table.
      path: the file to write, whole or not at all.
    """
    costs = np.stack([table.time, table.upload, table.memory], axis=1)
    content = {
        "blocks": table.num_blocks,
        "full_step_seconds": table.full_step_seconds,
        "full_step_memory_gb": table.full_step_memory_gb,
        "batch_size": table.batch,
        "windows": [
            [*window, *cost]
            for window, cost in zip(table.windows.tolist(), costs.tolist(), strict=True)
        ],
    }
    durable.replace(pathlib.Path(path), json.dumps(content).encode() + b"\n")


def _clipped(table: CostTable) -> np.ndarray:
    """Return time, upload and memory [3, P], at most 1.

    No plan costs more than training everything, so what a table shows above 1 is
    noise of the measurement. Clipping leaves the maximal windows of the published
    tables as they are (the expected sets hold with and without it); it lets a client
    of budget 1 run any plan.
    """
    return np.minimum([table.time, table.upload, table.memory], 1.0)


def feasible(
    table: CostTable,
    time: np.ndarray | float,
    upload: np.ndarray | float,
    memory: np.ndarray | float,
) -> np.ndarray:
    """Tell which plans fit into the budgets.

    Args:
      table: costs of P plans.
      time: relative limit, a number or [K].
      upload: relative limit, a number or [K].
      memory: relative limit, a number or [K].

    Returns:
      bool [P], or [K, P] if the budgets are [K]: all three costs within the limits.
    """
    costs = _clipped(table)
    limits = (np.asarray(limit)[..., None] for limit in (time, upload, memory))
    fits = [cost <= limit for cost, limit in zip(costs, limits, strict=True)]
    return fits[0] & fits[1] & fits[2]


def maximal(covers: np.ndarray, feasible: np.ndarray) -> np.ndarray:
    """Keep the feasible plans that no other feasible plan covers.

    Args:
      covers: [P, P] bool, of the table.
      feasible: bool [P] or [K, P].

    Returns:
      bool, shaped like `feasible`.
    """
    # float32 rather than bool: a product of bools misses the fast matrix product.
    covered = feasible.astype(np.float32) @ covers.astype(np.float32)
    return feasible & (covered == 0)


def floored(
    table: CostTable, time: np.ndarray, upload: np.ndarray, memory: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raise budgets into which no window fits until the nearest one does.

    A device whose speed or bandwidth fell that low is still asked for the least that
    there is to do, and will be late; one with less memory than that needs drops out.

    Args:
      table: costs of P plans.
      time: relative limits [K].
      upload: relative limits [K].
      memory: relative limits [K].

    Returns:
      time, upload and memory [K], all three of a client grown by the same factor; as
      they are where a window fits.
    """
    limits = np.stack([time, upload, memory])
    growth = np.max(_clipped(table)[:, None] / limits[..., None], axis=0).min(axis=1)
    grown = limits * np.nextafter(growth, np.inf) * (1 + 1e-12)
    time, upload, memory = np.where(growth > 1, grown, limits)
    return time, upload, memory


def nearest_fit(table: CostTable, time: float, upload: float, memory: float) -> str:
    """Say what is missing for budgets into which no window fits.

    Args:
      table: costs of P plans.
      time: relative limit.
      upload: relative limit.
      memory: relative limit.

    Returns:
      One line: the budgets, the window that the smallest common growth of all three
      would make fit, what that window needs, and the growth.
    """
    costs = _clipped(table)
    growth = np.max(costs / np.array([time, upload, memory])[:, None], axis=0)
    row = int(np.argmin(growth))
    needs = _spell(*(_round_up(cost) for cost in costs[:, row]))
    return (
        f"no plan fits {_spell(time, upload, memory)} by {table.source}; the nearest "
        f"is {table.listed[row]}, which needs {needs}: multiply the budgets by "
        f"{_round_up(growth[row])}, or take a network of more blocks"
    )


def _round_up(value: float) -> float:
    """Round up to four decimals, so that what a message asks for is enough."""
    return math.ceil(value * 1e4) / 1e4


def _spell(time: float, upload: float, memory: float) -> str:
    return f"time {time:.4g}, upload {upload:.4g}, memory {memory:.4g}"
