"""Rollback: judges every round and, when training diverges, goes back and lowers.

After each round the guard asks whether an update, or the network after the server's
step, is not finite; whether the training loss is far above that of the rounds before;
whether the accuracy fell too far below the best of the last evaluations. If so, the
state goes back to the last good one, with a lower rate of the server or lower budgets
of the tier that did worst. The number of the round goes on, so that (seed, round) still
says what is drawn: the rounds that come differ from those that led astray.

The good state is the one of the best accuracy among the last `window` evaluations; at
equal accuracy the newer one. Should it be older than these, the next one that passes
takes its place; before any evaluation it is the initial state. Rounds without an
evaluation are judged, but never good: their loss is that of the network before them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds, tasks, types
from fljax.algorithms import base
from fljax.devices import arrivals, failures
from fljax.engine import sums as totals

_ROUNDING = 1e-6  # accuracies are kept in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollback:
    """When a run goes back, and what it lowers then.

    That no update of a round is finite is always a reason; single ones are refused.
    """

    drop: float = bounds.field(
        0.0,
        "Go back to the last good state when the test accuracy, or what else the task "
        "goes by, is by more than this, such as 0.1, worse than the best of the "
        "window; 0: it is no reason.",
        most=1,
        below=True,
    )
    loss: float = bounds.field(
        0.0,
        "Go back, too, when the training loss is above this times the median of the "
        "window, such as 3; 0: it is no reason.",
        off=True,
        least=1,
        above=True,
        most=1e6,
    )
    window: int = bounds.field(  # a checkpoint holds two numbers for each
        10,
        "Evaluations, and rounds for the loss, that are looked back.",
        least=1,
        most=100_000,
    )
    lowers: str = bounds.field(
        "server",
        "What a rollback lowers: the learning rate of the server, or the budgets of "
        "the tier with the most updates that are not finite or else the largest mean "
        "training loss.",
        choices=("server", "tier"),
    )
    factor: float = bounds.field(
        0.5, "What it is multiplied by, each time.", least=1e-6, most=1, below=True
    )
    limit: int = bounds.field(
        3, "Rollbacks of a run; the next reason stops it.", least=0
    )

    def __post_init__(self):
        bounds.check(self, "rollback.{}".format)

    @property
    def asked_for(self) -> bool:
        """Whether there is a reason to go back beside updates that are not finite."""
        return bool(self.drop or self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Guard(Rollback):
    """A `Rollback` of a run of T tiers and N clients.

    Attributes:
      tiers: T names; only for lowers="tier".
      tier_index: [N] tier of every client; likewise.
      measure: of the task, what good states are told by.
    """

    tiers: tuple[str, ...] = ()
    tier_index: np.ndarray | None = None
    measure: tasks.Measure = tasks.DEFAULT.measure

    def __post_init__(self):
        super().__post_init__()
        if self.lowers == "tier" and (not self.tiers or self.tier_index is None):
            raise ValueError(
                "rollback.lowers=tier: expected tiers and tier_index beside it"
            )


class Memory(NamedTuple):
    """What the guard keeps from round to round: part of a checkpoint; W the window.

    Attributes:
      good: the state to go back to.
      round: [] int32, the round that it is the end of; -1: the initial state.
      place: [] int32, of its accuracy in `accuracies`; below 0: in there no more.
      accuracies: [W] float32 of the last evaluations, the newest last; first NaN. Of a
        measure of which less is better its negative.
      losses: [W] float32 of the last rounds, likewise.
      count: [] int32 rollbacks so far.
    """

    good: base.State
    round: types.ArrayLike
    place: types.ArrayLike
    accuracies: types.ArrayLike
    losses: types.ArrayLike
    count: types.ArrayLike


class Guarded(NamedTuple):
    """What a guarded run carries from round to round, and checkpoints.

    Attributes:
      state: of the algorithm.
      memory: of the guard.
    """

    state: base.State
    memory: Memory


class Verdict(NamedTuple):
    """A round that must not stand.

    Attributes:
      reason: why, in words.
      finite: whether all numbers were; what is wrong is how large they are.
      stop: whether the limit is reached: there is no going back.
      state: that the next round starts from.
      fields: for the round's record: to_round, reason, lowered ("server" or the name
        of a tier), factor (the product of all rollbacks of it so far), count.
    """

    reason: str
    finite: bool
    stop: bool
    state: base.State
    fields: dict[str, Any]


def init(guard: Guard, state: base.State) -> Memory:
    """Makes the memory before the first round; `state` may be shapes alone."""
    none = np.full(guard.window, np.nan, np.float32)
    return Memory(state, _integer(-1), _integer(-1), none, none, _integer(0))


def _integer(value: int) -> np.ndarray:
    return np.array(value, np.int32)  # an array, as checkpoints give it back


def judge(
    guard: Guard,
    memory: Memory,
    state: base.State,
    record: Mapping[str, Any],
    report: base.Report,
) -> tuple[Memory, Verdict | None]:
    """Judges a round.

    Args:
      guard: what is demanded.
      memory: before the round.
      state: after it.
      record: its metrics: `train_loss`, and the task's measure where it was evaluated.
      report: of the round.

    Returns:
      The memory after the round, and a verdict if the round must not stand.
    """
    broken = not_finite(report)
    if reason := broken or _worse(guard, memory, record):
        count = _integer(int(memory.count) + 1)
        caution, lowered, factor = _lowered(guard, state.caution, report)
        fields = {
            "to_round": int(memory.round),
            "reason": reason,
            "lowered": lowered,
            "factor": factor,
            "count": int(count),
        }
        verdict = Verdict(
            reason,
            finite=broken is None,
            stop=int(count) > guard.limit,
            state=_back(memory.good, state, caution),
            fields=fields,
        )
        return memory._replace(count=count), verdict
    return _passed(guard, memory, state, record), None


def _back(good: base.State, state: base.State, caution: base.Caution) -> base.State:
    """Gives the good state at the present time.

    The clock does not go back, nor what was measured of devices; who is still at work
    began with a network that is given up, so nobody is waited for.
    """
    flight = arrivals.empty(len(state.timeline.flight.ids))
    return good._replace(
        timeline=state.timeline._replace(flight=flight),
        history=tuple(good.server.blocks for _ in good.history),
        caution=caution,
        classes=state.classes,
    )


def _of_clients(values: types.ArrayLike, report: base.Report) -> np.ndarray:
    """Cuts the padding off what a report says of its clients."""
    return np.asarray(values, np.float64)[: len(report.assignment.ids)]


def not_finite(report: base.Report) -> str | None:
    """Says what of a round is not finite; None: what was not has been refused.

    Updates that a failure spoilt on their way say nothing of the training.
    """
    assigned = report.assignment
    failed = _of_clients(report.failed, report)
    trained = assigned.outcome.arrived.faults != failures.Fault.NONFINITE
    if trained.any() and np.all(failed[trained] == totals.NOT_FINITE):
        names = [
            f"{number} (plan {plan})"
            for number, plan, one in zip(
                assigned.ids, assigned.plans, trained, strict=True
            )
            if one
        ]
        clients = f"client{'s' * (len(names) > 1)}"
        return f"loss or update is not finite for {clients} {', '.join(names)}"
    if not np.asarray(report.finite):
        return "every update is finite, but the network after the server's step is not"
    return None


def _worse(guard: Guard, memory: Memory, record: Mapping[str, Any]) -> str | None:
    """Says by what a round of finite numbers falls behind those before it."""
    losses = np.asarray(memory.losses)
    losses = losses[np.isfinite(losses)]
    loss, accuracy = record["train_loss"], _goodness(guard, record)
    if guard.loss and losses.size and loss is not None:
        usual = float(np.median(losses))
        if loss > guard.loss * usual:
            return (
                f"training loss {loss:.4g} is above {guard.loss:g} times "
                f"{usual:.4g}, the median of {_number(losses.size, 'round')} before"
            )
    seen = np.asarray(memory.accuracies)
    seen = seen[np.isfinite(seen)]
    if guard.drop and accuracy is not None and seen.size:
        best = float(seen.max())
        if best - accuracy > guard.drop + _ROUNDING:
            title, more = guard.measure.title, guard.measure.more
            sign = 1 if more else -1
            return (
                f"test {title} {sign * accuracy:.4f} is more than {guard.drop:g} "
                f"{'below' if more else 'above'} {sign * best:.4f}, the best of "
                f"{_number(seen.size, 'evaluation')}"
            )
    return None


def _goodness(guard: Guard, record: Mapping[str, Any]) -> float | None:
    """Gives the measure of a record, so that more is better; None: it has none."""
    value = record.get(guard.measure.key)
    return value if value is None or guard.measure.more else -value


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _passed(
    guard: Guard, memory: Memory, state: base.State, record: Mapping[str, Any]
) -> Memory:
    """Remembers a round that stands, as the good one if it is."""
    if record["train_loss"] is not None:  # None: nobody was left
        memory = memory._replace(losses=_push(memory.losses, record["train_loss"]))
    accuracy = _goodness(guard, record)
    if accuracy is None:
        return memory
    accuracies, place = _push(memory.accuracies, accuracy), int(memory.place) - 1
    memory = memory._replace(accuracies=accuracies, place=_integer(max(place, -1)))
    if place >= 0 and accuracies[-1] < accuracies[place]:
        return memory
    last = len(accuracies) - 1
    return memory._replace(
        good=state, round=_integer(record["round"]), place=_integer(last)
    )


def _push(values: types.ArrayLike, new: float) -> np.ndarray:
    """Drops the oldest of [W] values for a new one."""
    return np.append(np.asarray(values)[1:], np.float32(new))


def _lowered(
    guard: Guard, caution: base.Caution, report: base.Report
) -> tuple[base.Caution, str, float]:
    """Lowers what the guard says; returns it, its name and its factor by now."""
    if guard.lowers == "server":
        rate = np.float32(caution.server) * np.float32(guard.factor)
        return caution._replace(server=rate), "server", float(rate)
    tier = _worst_tier(guard, report)
    factors = np.array(caution.tiers)
    factors[tier] *= np.float32(guard.factor)
    return caution._replace(tiers=factors), guard.tiers[tier], float(factors[tier])


def _worst_tier(guard: Guard, report: base.Report) -> int:
    """Finds the tier with the most refused clients, or else the largest mean loss.

    Updates that a failure spoilt on their way say nothing of the training.
    """
    known = report.assignment.classes
    known = guard.tier_index if known is None else known
    tiers = np.asarray(known)[report.assignment.ids]
    size = len(guard.tiers)
    spoilt = np.isin(report.assignment.outcome.arrived.faults, [*failures.TAMPERED])
    refused = (_of_clients(report.failed, report) > 0) & ~spoilt
    failed = np.bincount(tiers, refused, size)
    if failed.any():
        return int(np.argmax(failed))
    sums = np.bincount(tiers, _of_clients(report.losses, report), size)
    counts = np.bincount(tiers, minlength=size)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
    return int(np.argmax(means))
