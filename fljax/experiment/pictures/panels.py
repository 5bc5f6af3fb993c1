"""What pictures of runs show: quantities of records, and which is drawn over which.

`QUANTITIES` is the one table of them, for matplotlib (`plots`) and for the live page
(`experiments.dashboard`); `of` puts a task's measure in the place of accuracy.

Legend: R rounds that are recorded, Q quantities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import tasks

ACCURACY = tasks.DEFAULT.measure
Record = Mapping[str, Any]


class Quantity(NamedTuple):
    """A number of each round.

    Attributes:
      name: of the quantity.
      title: of its axis.
      fields: of records; the first that a record has is the number. Of a list it is
        the length, of a dict 1: one thing happened.
      unit: of the axis; empty: none.
      scale: from the record's unit to the axis's.
      total: added up from the first round on.
      read: (record) -> number where fields do not say it; None: they do.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    unit: str = ""
    scale: float = 1.0
    total: bool = False
    read: Callable[[Record], float | None] | None = None

    @property
    def label(self) -> str:
        """Gives the title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def value(self, record: Record) -> float:
        """Gives the number of a record in the axis's unit; NaN: it has none."""
        found: Any = None
        if self.read is not None:
            found = self.read(record)
        else:
            for field in self.fields:
                found = record.get(field)
                if found is not None:
                    break
        if found is None:
            return 0.0 if self.total else math.nan
        if isinstance(found, dict):
            return 1.0
        return self.scale * (len(found) if isinstance(found, list) else found)


class Panel(NamedTuple):
    """A quantity drawn over another one, by their names."""

    x: str
    y: str


def _worst_tier(record: Record) -> float | None:
    """Takes the recorded worst tier, or the lowest of the tiers that are there."""
    if record.get("worst_tier_accuracy") is not None:
        return record["worst_tier_accuracy"]
    tiers = (record.get("tier_accuracy") or {}).values()
    return min((value for value in tiers if value is not None), default=None)


QUANTITIES = (
    # of the network
    Quantity("measure", "test accuracy", ("test_accuracy",), "%", 100),
    Quantity(
        "worst",
        "worst tier by class mix",
        ("worst_tier_accuracy", "tier_accuracy"),
        "%",
        100,
        read=_worst_tier,
    ),
    Quantity(
        "clients",
        "mean of clients' own test accuracy",
        ("client_test_accuracy",),
        "%",
        100,
    ),
    Quantity(
        "worst_tenth",
        "worst tenth of clients' own test accuracy",
        ("client_test_accuracy_worst_tenth",),
        "%",
        100,
    ),
    Quantity("test_loss", "test loss", ("test_loss",)),
    Quantity("train_loss", "training loss", ("train_loss",)),
    Quantity("update_norm", "median L2 norm of updates", ("update_norm",)),
    # of the devices
    Quantity("round", "round", ("round",)),
    Quantity("clock", "virtual time", ("clock_seconds",), "s"),
    Quantity("upload", "total upload", ("upload_bytes",), "MB", 1e-6, total=True),
    Quantity("download", "total download", ("download_bytes",), "MB", 1e-6, total=True),
    Quantity("compute", "computed of full training", ("compute_share",), "%", 100),
    Quantity("joules", "total energy", ("joules",), "kJ", 1e-3, total=True),
    # of who takes part
    Quantity("participants", "clients that took part", ("participants",)),
    Quantity("refused", "refused updates, total", ("refused",), total=True),
    Quantity("rollbacks", "rollbacks, total", ("rollback",), total=True),
    # of this machine
    Quantity("wall", "time of a round here", ("wall_seconds",), "s"),
)

# What is drawn over what: runs compared, one run as it went, the live page.
COMPARED = (
    Panel("round", "measure"),
    Panel("round", "worst"),
    Panel("upload", "measure"),
    Panel("clock", "measure"),
)
PER_CLIENT = (Panel("round", "clients"), Panel("round", "worst_tenth"))  # if recorded
HISTORY = (
    Panel("round", "measure"),
    Panel("round", "test_loss"),
    Panel("clock", "measure"),
)
AXES = ("round", "clock")  # of the live page, for its reader to choose
LIVE = (
    *(
        "measure",
        "worst",
        "clients",
        "worst_tenth",
        "test_loss",
        "train_loss",
        "upload",
        "clock",
        "compute",
    ),
    *("update_norm", "joules", "participants", "refused", "rollbacks", "wall"),
)


def of(measure: tasks.Measure = ACCURACY) -> dict[str, Quantity]:
    """Gives the quantities by name.

    Args:
      measure: of the task, in the place of accuracy; where it is another, the worst
        tier is that on its own test examples.
    """
    found = {quantity.name: quantity for quantity in QUANTITIES}
    if measure == ACCURACY:
        return found
    title, key = f"test {measure.title}", measure.key
    unit = ("%", 100.0) if measure.share else ("", 1.0)
    worst = f"worst tier's {title}", (f"worst_tier_{key}",)
    own, each = f"clients' own {title}", f"client_{key}"
    tenth = f"worst tenth of {own}", (f"{each}_worst_tenth",)
    return found | {
        "measure": Quantity("measure", title, (key,), *unit),
        "worst": Quantity("worst", *worst, *unit),
        "clients": Quantity("clients", f"mean of {own}", (each,), *unit),
        "worst_tenth": Quantity("worst_tenth", *tenth, *unit),
    }


def of_comparison(
    runs: Iterable[Sequence[Record]], quantities: Mapping[str, Quantity]
) -> tuple[Panel, ...]:
    """Says what is drawn of runs side by side.

    Args:
      runs: records of each.
      quantities: of `of`.

    Returns:
      `COMPARED`, and `PER_CLIENT` where clients were evaluated.
    """
    each = quantities["clients"]
    known = any(not math.isnan(each.value(r)) for records in runs for r in records)
    return (*COMPARED, *PER_CLIENT * known)


def measure_of(runs: Iterable[Sequence[Record]]) -> tasks.Measure:
    """Finds what all runs were judged by; of none that is evaluated, accuracy.

    Args:
      runs: records of each.

    Raises:
      ValueError: they are of different tasks.
    """
    evaluated = [
        next((r for r in records if "test_loss" in r), None) for records in runs
    ]
    found = {tasks.measure_of(record) for record in evaluated if record}
    if len(found) > 1:
        raise ValueError(
            f"expected runs of one task, got some with "
            f"{' and some with '.join(sorted(m.key for m in found))}"
        )
    return found.pop() if found else ACCURACY


def table(records: Sequence[Record], quantities: Sequence[Quantity]) -> np.ndarray:
    """Lists what records say of quantities, round for round, nothing added up.

    Returns:
      [R, Q] float64, NaN where there is none.
    """
    rows = [[quantity.value(record) for quantity in quantities] for record in records]
    return np.array(rows, np.float64).reshape(len(records), len(quantities))


def along(column: np.ndarray, quantity: Quantity) -> np.ndarray:
    """Adds a column [R] of `table` up, where its quantity is a total."""
    return np.cumsum(column) if quantity.total else column


class Curve(NamedTuple):
    """Points of one seed, [P] each, in order of rounds."""

    rounds: np.ndarray
    x: np.ndarray
    y: np.ndarray


def known(rounds: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> Curve:
    """Gives the points of columns [R] that have both numbers."""
    both = ~(np.isnan(xs) | np.isnan(ys))
    return Curve(rounds[both], xs[both], ys[both])


def curve(records: Sequence[Record], x: Quantity, y: Quantity) -> Curve:
    """Puts one quantity over another, at the rounds that have both.

    Over a total that stays 0, such as the upload of a run that sends nothing, there is
    no point.
    """
    xs, ys = (
        along(column, quantity)
        for column, quantity in zip(table(records, (x, y)).T, (x, y), strict=True)
    )
    rounds = np.array([record["round"] for record in records], int)
    if x.total and not xs.any():
        return Curve(rounds[:0], xs[:0], ys[:0])
    return known(rounds, xs, ys)


class Band(NamedTuple):
    """Curves of seeds as one, [P] each: mean x, and mean, lowest and highest y."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(seeds: Sequence[Curve], begun: bool = False, most: int = 0) -> Band | None:
    """Lays curves of seeds over each other.

    Args:
      seeds: a curve each.
      begun: at every round that some seed has; else at those that all have.
      most: points, of which the last is one; more are thinned. 0: all.

    Returns:
      None where there are no such rounds.
    """
    met = np.union1d if begun else np.intersect1d
    if not seeds:
        return None
    rounds: Any = functools.reduce(met, [seed.rounds for seed in seeds])
    if not len(rounds):
        return None
    step = -(-len(rounds) // most) if most else 1
    rounds = rounds[(len(rounds) - 1) % step :: step]
    points = np.full((2, len(seeds), len(rounds)), np.nan)
    for number, seed in enumerate(seeds):
        _, places, own = np.intersect1d(
            rounds, seed.rounds, assume_unique=True, return_indices=True
        )
        points[0, number, places] = seed.x[own]
        points[1, number, places] = seed.y[own]
    x, y = points  # [seeds, P]
    if len(seeds) == 1:
        return Band(x[0], *(y[0],) * 3)
    return Band(np.nanmean(x, 0), np.nanmean(y, 0), np.nanmin(y, 0), np.nanmax(y, 0))
