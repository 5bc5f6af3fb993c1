"""A model of cost tables from operation counts, with prices for a class of devices.

What a step does is counted in a few terms: multiply-accumulates, values written, coded
and kept, parameters. A device class gives each term a price; time and memory of a
window are the priced sums. `fit` finds the prices from measured tables (no price is
negative), `from_counts` applies them to a network nobody has measured and states what
error that leaves. The classes that come along lie in `device_classes.json`.

Legend: P windows of a table, n blocks, T terms.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from fljax import bounds, plans, types
from fljax.plans import costs, generic_costs
from fljax.runtime import durable, reading

# The terms of a step's time. A trained block makes three passes over its work (forward,
# gradients of the weights and of the input), a block after the window two, one before
# it one. The first block of the window needs no gradient of its input.
TIME = (
    "float_macs",  # multiply-accumulates of dense products in float32
    "float_depthwise_macs",  # of depthwise ones, which stay in float32 after the window
    "int8_macs",  # of dense products in fixed point
    "int8_depthwise_macs",  # of depthwise ones
    "float_values",  # float32 values of norms, activations, sums
    "product_values",  # float32 values that enter and leave trained products
    "coded_values",  # values quantized and dequantized around products after the window
    "int8_values",  # codes of sums and lone norms before the window
    "updates",  # trained parameters, once a step whatever the batch
    "step",  # one
)
# The terms of a step's peak memory.
MEMORY = (
    "kept",  # inputs and outputs of products and norms in trained blocks
    "trained_values",  # values of norms, activations and sums there
    "after_values",  # of these, what is left of them in blocks after the window
    "largest_before",  # largest output of a block before the window: freed after use
    "trained_parameters",  # gradient and update
    "parameters",  # of the whole network
    "process",  # one
)

_SHIPPED = pathlib.Path(__file__).with_name("device_classes.json")
GENERIC = "generic"  # the prices of `generic_costs`, which are of no machine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """What the terms of a step cost on a kind of device.

    Only ratios matter to a cost table. Invariant: from 0 to 1e9, some positive.
    """

    name: str
    time: tuple[float, ...]  # seconds of one unit of each term of TIME
    memory: tuple[float, ...]  # GB (1e9 bytes) of one unit of each term of MEMORY
    note: str = ""  # where the prices come from

    def __post_init__(self):
        for field, terms in (("time", TIME), ("memory", MEMORY)):
            prices = getattr(self, field)
            good = len(prices) == len(terms) and all(
                0 <= price <= reading.AMOUNTS[1] for price in prices
            )
            if not good or not any(prices):
                raise ValueError(
                    f"device class {self.name}: expected {len(terms)} prices of "
                    f"{field}, from 0 to 1e9, not all 0, got {prices}"
                )


# A class, or what `load_class` takes; GENERIC.
Prices = str | pathlib.Path | DeviceClass


class Sample(NamedTuple):
    """A measured table with the counts of the network it is of."""

    counts: Sequence[types.BlockCounts]  # n, for one example each
    table: costs.CostTable
    batch: int = 32  # examples a step


def load_class(name_or_path: str | pathlib.Path) -> DeviceClass:
    """Read a device class that comes along, or one from a JSON file.

    Args:
      name_or_path: a name in `device_classes.json`, or the path of a file that
        `save_class` wrote.

    Returns:
      The class.

    Raises:
      ValueError: if there is neither such a name nor such a file, or it holds no class.
    """
    shipped = json.loads(_SHIPPED.read_text(encoding="utf-8"))
    name, path = str(name_or_path), os.fspath(name_or_path)
    if name in shipped:
        return _read_class(name, shipped[name])
    if not os.path.isfile(path):
        raise ValueError(
            f"expected {GENERIC}, a class ({', '.join(shipped)}) or a JSON file, "
            f"got {name!r}"
        )
    return _read_class(name, reading.read_json(path))


def _read_class(name: str, content: Any) -> DeviceClass:
    """Read {"note", "time": {term: price}, "memory": {term: price}}."""
    prices = {}
    for field, terms in (("time", TIME), ("memory", MEMORY)):
        given: Any = content.get(field) if isinstance(content, dict) else None
        numbers = isinstance(given, dict) and all(
            map(reading.is_number, given.values())
        )
        if not numbers or given.keys() != set(terms):
            raise ValueError(
                f"{name}: expected prices of {field} by term ({', '.join(terms)}), "
                f"got {bounds.shown(given)}"
            )
        prices[field] = tuple(float(given[term]) for term in terms)
    return DeviceClass(name=name, note=str(content.get("note", "")), **prices)


def save_class(device_class: DeviceClass, path: str | pathlib.Path) -> None:
    """Write a class as the JSON file that `load_class` reads, whole or not at all."""
    content = json.dumps(_plain(device_class), indent=2) + "\n"
    durable.replace(pathlib.Path(path), content.encode())


def _plain(device_class: DeviceClass) -> dict[str, Any]:
    return {
        "note": device_class.note,
        "time": dict(zip(TIME, device_class.time, strict=True)),
        "memory": dict(zip(MEMORY, device_class.memory, strict=True)),
    }


def from_counts(
    counts: Sequence[types.BlockCounts],
    batch: int = 32,
    device_class: Prices = GENERIC,
) -> costs.CostTable:
    """Model the costs of every window from what the blocks compute and keep.

    Upload is exact: bytes of the window over bytes of the network. Time and memory are
    sums of the terms `TIME` and `MEMORY` at the prices of the device class.

    Against the published tables, over all of their windows, at batch 32 (mean absolute
    error, largest error, Pearson correlation). One set of prices a class; on the right
    the mean absolute errors when the network's own table is left out of the fit:

    | class | table                | time           | memory         | left out  |
    |-------|----------------------|----------------|----------------|-----------|
    | x64   | MobileNet            | .030 .070 .998 | .028 .155 .994 | .045 .037 |
    | x64   | MobileNetLarge       | .025 .313 .991 | .022 .111 .994 | .030 .022 |
    | x64   | MobileNetGroupNorm   | .027 .179 .991 | .024 .087 .997 | .076 .026 |
    | x64   | ResNet50             | .039 .123 .980 | .034 .169 .986 | .157 .098 |
    | x64   | Transformer          | .033 .092 .993 | .032 .097 .996 | .048 .047 |
    | x64   | TransformerSeq2Seq   | .037 .129 .980 | .031 .099 .988 | .070 .064 |
    | arm   | ResNet18             | .015 .059 .994 | .025 .082 .983 | .220 .120 |
    | arm   | DenseNet40           | .011 .059 .998 | .017 .072 .997 | .099 .022 |

    A network unlike all others of its class (ResNet50; on arm, either one) is thus
    modeled badly. No table of arm has depthwise convolutions: there they are free.

    Machines themselves differ by 0.1 to 0.25 on the same network: prefer a measured
    table where there is one (`python -m experiments.profile`). A window may come out
    dearer than one that contains it, as in measured tables: freezing is not free.

    Args:
      counts: the counts of the n blocks, for one example each.
      batch: examples a step.
      device_class: a class, or what `load_class` takes; GENERIC: one set of prices for
        all, which grow with the network.

    Returns:
      The table of all windows that upload anything.

    Raises:
      ValueError: if there is no block, no upload, no example in a batch, or no such
        device class.
    """
    if not counts or not any(c.upload_bytes for c in counts) or batch < 1:
        raise ValueError(
            f"expected blocks that upload something and a batch of at least 1, "
            f"got {len(counts)} blocks, {sum(c.upload_bytes for c in counts)} bytes "
            f"and batch {batch}"
        )
    by_width, every = {1.0: counts}, plans.all_windows(len(counts))
    sent = [plan for plan in every if plans.upload_bytes(plan, counts)]
    return of_plans(sent, by_width, batch, device_class)


def of_plans(
    listed: Sequence[plans.Plan],
    by_width: Mapping[float, Sequence[types.BlockCounts]],
    batch: int = 32,
    device_class: Prices = GENERIC,
) -> costs.CostTable:
    """Model the costs of plans, of networks of any width, as `from_counts` does.

    Args:
      listed: P plans.
      by_width: width -> counts of the blocks of the network at it; 1.0 is among them.
      batch: as of `from_counts`.
      device_class: likewise.

    Returns:
      The table, relative to training everything at width 1.

    Raises:
      ValueError: if there is no such device class, or training everything costs
        nothing.
    """
    time, memory = predict(device_class, listed, by_width, batch)
    return costs.CostTable(
        num_blocks=len(by_width[1.0]),
        listed=listed,
        time=time,
        upload=upload_share(listed, by_width),
        memory=memory,
        source="operation counts",
    )


def of_prefixes(
    ends: Sequence[int],
    counts: Sequence[types.BlockCounts],
    batch: int = 32,
    device_class: Prices = GENERIC,
) -> costs.CostTable:
    """Model the costs of training the first blocks, where nothing is behind them.

    Args:
      ends: of each plan the last block, in ascending order; the network's is the last.
      counts: of the n blocks, for one example each.
      batch: as of `from_counts`.
      device_class: likewise.

    Returns:
      The table of the plans [0, end], relative to the last of them.

    Raises:
      ValueError: if there is no such device class.
    """
    price = _pricing(device_class)
    parts = [counts[: end + 1] for end in ends]
    priced = [np.concatenate(price(_full(part), part, batch)) for part in parts]
    time, memory = (np.array(priced) / priced[-1]).T
    listed = plans.of_windows((0, end) for end in ends)
    return costs.CostTable(
        num_blocks=len(counts),
        listed=listed,
        time=time,
        upload=upload_share(listed, {1.0: counts}),
        memory=memory,
        source="operation counts",
    )


def upload_share(
    listed: Sequence[plans.Plan], by_width: Mapping[float, Sequence[types.BlockCounts]]
) -> np.ndarray:
    """Return the bytes sent under each of P plans, over all of width 1: [P]."""
    sent = [plans.upload_bytes(plan, by_width[plan.width]) for plan in listed]
    everything = by_width[1.0]
    return np.array(sent) / plans.upload_bytes(plans.full(len(everything)), everything)


def predict(
    device_class: Prices,
    listed: Sequence[plans.Plan],
    by_width: Mapping[float, Sequence[types.BlockCounts]],
    batch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Price P plans; returns time and memory relative to the full one: two [P].

    Raises:
      ValueError: if there is no such device class, or the full network costs nothing
        by what is counted.
    """
    price = _pricing(device_class)
    everything = by_width[1.0]
    full = [float(x[0]) for x in price(_full(everything), everything, batch)]
    for field, cost in zip(("time", "memory"), full, strict=True):
        if cost <= 0:
            raise ValueError(
                f"device class {_called(device_class)}: expected a positive {field} "
                f"of the full network, got {cost} from counts {everything}"
            )
    windows, widths = plans.windows_of(listed), np.array([p.width for p in listed])
    result = np.zeros((2, len(listed)))
    for width in np.unique(widths):
        here = widths == width
        result[:, here] = price(windows[here], by_width[float(width)], batch)
    time, memory = result / np.array(full)[:, None]
    return time, memory


def _called(device_class: Prices) -> str:
    return getattr(device_class, "name", str(device_class))


def _pricing(device_class: Prices) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Give (windows [P, 2], counts, batch) -> time and memory, two [P]."""
    if device_class == GENERIC:
        return generic_costs.prices
    if not isinstance(device_class, DeviceClass):
        device_class = load_class(device_class)
    known = device_class

    def price(windows, counts, batch):
        time = time_terms(windows, counts, batch) @ np.array(known.time)
        return time, memory_terms(windows, counts, batch) @ np.array(known.memory)

    return price


def _full(counts: Sequence[types.BlockCounts]) -> np.ndarray:
    """Return the window of all blocks, [1, 2]."""
    return np.array([[0, len(counts) - 1]])


def _columns(counts: Sequence[types.BlockCounts]) -> dict[str, np.ndarray]:
    """Return every count by name, float64 [n]."""
    columns = np.array(counts, np.float64).T
    return dict(zip(types.BlockCounts._fields, columns, strict=True))


def time_terms(
    windows: np.ndarray, counts: Sequence[types.BlockCounts], batch: int
) -> np.ndarray:
    """Count the terms of a step's time under each window [P, 2].

    Returns:
      [P, T], in the order of `TIME`.
    """
    count = _columns(counts)
    before, trained, after = generic_costs.masks(windows, len(counts))
    passes = 3 * trained - (np.arange(len(counts)) == windows[:, :1])
    floats, depthwise = count["float_macs"], count["depthwise_macs"]
    fixed = count["macs"] - floats
    after_values, before_values = count["after_values"], count["before_values"]
    of_an_example = [
        passes @ count["macs"] + (before + 2 * after) @ floats,
        (3 * trained + 2 * after) @ depthwise,
        (before + 2 * after) @ fixed,
        before @ depthwise,
        3 * trained @ count["values"]
        + 2 * after @ after_values
        + before @ before_values,
        passes @ count["coded"],
        2 * after @ count["coded"],
        before @ (after_values - before_values),
    ]
    of_a_step = [trained @ count["params"], np.ones(len(windows))]
    return np.stack([batch * term for term in of_an_example] + of_a_step, axis=1)


def memory_terms(
    windows: np.ndarray, counts: Sequence[types.BlockCounts], batch: int
) -> np.ndarray:
    """Count the terms of a step's peak memory under each window [P, 2].

    Returns:
      [P, T], in the order of `MEMORY`.
    """
    count = _columns(counts)
    before, trained, after = generic_costs.masks(windows, len(counts))
    of_an_example = [
        trained @ count["kept"],
        trained @ count["values"],
        after @ count["after_values"],
        np.max(before * count["outputs"], axis=1),
    ]
    of_a_step = [
        trained @ count["params"],
        np.full(len(windows), count["params"].sum()),
        np.ones(len(windows)),
    ]
    return np.stack([batch * term for term in of_an_example] + of_a_step, axis=1)


def fit(samples: Sequence[Sample], name: str, note: str = "") -> DeviceClass:
    """Find the prices that explain measured tables best.

    One table or several of one class of devices, each of them relative to its own full
    network, so that tables of machines of different speed may be fitted together; the
    scale of the prices is the (geometric) mean of the tables' full steps.

    Args:
      samples: the tables; each weighs the same, however many windows it has.
      name: of the class.
      note: where the tables come from.

    Returns:
      The class.

    Raises:
      ValueError: if there is no table, or one is of another number of blocks.
    """
    if not samples:
        raise ValueError("expected at least one measured table to fit, got none")
    for counts, table, _ in samples:
        if len(counts) != table.num_blocks:
            raise ValueError(
                f"{table.source}: expected a table of the network's {len(counts)} "
                f"blocks, got one of {table.num_blocks}"
            )
    time = _prices(samples, time_terms, "time", "full_step_seconds")
    memory = _prices(samples, memory_terms, "memory", "full_step_memory_gb")
    return DeviceClass(name=name, time=time, memory=memory, note=note)


# Errors well above this count by their size, not its square: single windows of the
# published tables are off by a tenth.
_OUTLIER = 0.005


def _prices(
    samples: Sequence[Sample],
    count_terms: Callable[..., np.ndarray],
    field: str,
    scale: str,
) -> tuple[float, ...]:
    """Fit the prices of one kind of cost."""
    terms = [count_terms(s.table.windows, s.counts, s.batch) for s in samples]
    fulls = [count_terms(_full(s.counts), s.counts, s.batch)[0] for s in samples]
    costs_of = [getattr(sample.table, field) for sample in samples]
    steps = [getattr(sample.table, scale) or 1.0 for sample in samples]
    largest = np.max(np.concatenate([*terms, fulls]), axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # terms differ by ten orders
    weights = [len(cost) ** -0.5 for cost in costs_of]

    def errors(prices: np.ndarray) -> np.ndarray:
        shares = [
            (x @ prices / max(full @ prices, 1e-12) - cost) * weight
            for x, full, cost, weight in zip(
                scaled, ends, costs_of, weights, strict=True
            )
        ]
        return np.concatenate(shares)

    scaled, ends = [x / unit for x in terms], [full / unit for full in fulls]
    # Taken at their own speeds the tables give a linear problem: where to start.
    linear = [x * w / s for x, w, s in zip(scaled, weights, steps, strict=True)]
    aims = [cost * w for cost, w in zip(costs_of, weights, strict=True)]
    start, _ = optimize.nnls(np.concatenate(linear), np.concatenate(aims))
    starts = [start / start.max() + 1e-3, np.where(largest > 0, 0.5, 0.0)]
    found = [
        optimize.least_squares(
            errors, at, bounds=(0, np.inf), loss="soft_l1", f_scale=_OUTLIER
        )
        for at in starts
    ]
    prices = min(found, key=lambda result: result.cost).x
    prices = np.where((largest > 0) & (prices > 1e-9 * prices.max()), prices, 0.0)
    known = [
        math.log(getattr(sample.table, scale) / (full @ prices))
        for sample, full in zip(samples, ends, strict=True)
        if getattr(sample.table, scale)
    ]
    prices = prices / unit * math.exp(float(np.mean(known)) if known else 0.0)
    return tuple(float(price) for price in prices)


class Errors(NamedTuple):
    """How far a model is from a measured table, as absolute differences of shares."""

    time: np.ndarray  # [P]
    memory: np.ndarray  # [P]


def errors(device_class: DeviceClass, sample: Sample) -> Errors:
    """Compare a class to a measured table; one error a window, in the table's order."""
    listed = sample.table.listed
    counts = {1.0: sample.counts}
    time, memory = predict(device_class, listed, counts, sample.batch)
    return Errors(
        np.abs(time - sample.table.time), np.abs(memory - sample.table.memory)
    )


def held_out_errors(sample: Sample, folds: int = 20) -> Errors:
    """Compare each window to what a fit to other windows predicts for it.

    The full network, which all costs are relative to, is never held out.

    Args:
      sample: a measured table.
      folds: the windows are held out in so many turns, one at a time if they are fewer.

    Returns:
      One error for each window but the full one.

    Raises:
      ValueError: if there are not two such windows.
    """
    table = sample.table
    full = plans.full(table.num_blocks)
    rows = np.flatnonzero([plan != full for plan in table.listed])
    if len(rows) < 2:
        raise ValueError(
            f"{table.source}: expected two windows or more beside the full one, "
            f"got {len(rows)}"
        )
    parts = []
    for turn in range(min(folds, len(rows))):
        held = rows[turn::folds]
        rest = np.setdiff1d(np.arange(len(table.listed)), held)
        seen = sample._replace(table=table.take(rest))
        left = sample._replace(table=table.take(held))
        parts.append(errors(fit([seen], table.source), left))
    return Errors(*(np.concatenate(part) for part in zip(*parts, strict=True)))
