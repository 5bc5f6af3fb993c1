"""The host loop: rounds, evaluation cadence, checkpoints, metrics one round late.

While round r computes, the host reads what round r - 1 reported, so the device never
waits for it. Only with a guard is every round judged before the next one is dispatched.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax import tasks, types
from fljax.algorithms import base
from fljax.engine import client_rows, evaluate
from fljax.engine import sums as totals
from fljax.runs import alerts, checkpoints, guard, segments, writers
from fljax.runtime import mesh
from fljax.updates import attacks

Record = dict[str, Any]


def _ignore(_: Any) -> None:
    """Does nothing with what a hook is given."""


class DivergedError(RuntimeError):
    """Training went wrong, and rollbacks, if there were any, did not help.

    Attributes:
      round: that brought it.
      record: of that round, with `stopped`, the reason.
    """

    def __init__(self, record: Record, message: str) -> None:
        """Make the error of the round of a record."""
        super().__init__(f"round {record['round']}: {message}")
        self.round = record["round"]
        self.record = record | {"stopped": message}


class NonFiniteError(DivergedError):
    """A round brought a loss or an update that is not finite."""


class Evaluator(NamedTuple):
    """When and how the global network is evaluated.

    Attributes:
      scores: (state) -> sums over the test set; may still be computing.
      fields: (sums) -> evaluation fields of the record.
      every: evaluate after every so many rounds, and after the last.
      examples: of the test set, for estimates of its cost.
      measure: what tells of a record whether it was evaluated, and good states.
      backdoor: an attack with a target, whose success is measured; None: there is none.
      other: (algorithm, attack) -> the evaluator of an algorithm's network, its leading
        channels or first blocks, and of its clients, under another attack; None: there
        is none.
    """

    scores: Callable[[base.State], evaluate.Scores]
    fields: Callable[[evaluate.Scores], Record]
    every: int = 1
    examples: int = 0
    measure: tasks.Measure = tasks.DEFAULT.measure
    backdoor: attacks.Attack | None = None
    other: Callable[[base.Algorithm, attacks.Attack | None], Evaluator] | None = None

    def of(self, algorithm: base.Algorithm) -> Evaluator:
        """Gives the evaluator of an algorithm's networks, and of who attacks them."""
        if algorithm.stage is not None:
            return self._by_stage(algorithm)
        attack, fed = self.backdoor, algorithm.federation
        if fed is not None:
            attack = attacks.backdoor(fed.rules.attack)
        seams, whole = algorithm.seams, algorithm.evaluated == 1
        same = whole and algorithm.depth is None and attack == self.backdoor
        same = same and seams.personal is None and seams.attack is None
        if same or self.other is None:
            return self
        return self.other(algorithm, attack)

    def _by_stage(self, algorithm: base.Algorithm) -> Evaluator:
        """Gives the evaluator of an algorithm whose network changes during a run."""
        known: dict[int, tuple[base.Algorithm, Evaluator]] = {}  # by identity

        def scores(state: base.State) -> evaluate.Scores:
            stage = algorithm.at(state)
            if id(stage) not in known:
                known[id(stage)] = stage, self.of(stage)
            return known[id(stage)][1].scores(state)

        return self._replace(scores=scores)

    def due(self, index: int, rounds: int) -> bool:
        """Tells whether the state after round `index` is evaluated."""
        return self.regular(index) or index + 1 == rounds

    def regular(self, index: int) -> bool:
        """Tells whether that is so however many rounds the run has."""
        return (index + 1) % self.every == 0


class Hooks(NamedTuple):
    """What the host wants to hear.

    Attributes:
      start: is given the index of the first round that will run.
      record: is given every finished round's record.
      message: is given lines for the user.
      alert: is given every alert, as `alerts` describes them.
      interrupted: is asked at a Ctrl-C, with the number of rounds that are finished,
        whether the run ends with them; else the KeyboardInterrupt goes on.
    """

    start: Callable[[int], None] = _ignore
    record: Callable[[Record], None] = _ignore
    message: Callable[[str], None] = _ignore
    alert: Callable[[alerts.Alert], None] = _ignore
    interrupted: Callable[[int], bool | None] = _ignore


def together(one: Hooks, two: Hooks) -> Hooks:
    """Makes hooks that pass all they hear on to both; either may end an interrupt."""

    def both(name: str) -> Callable[[Any], Any]:
        pair = getattr(one, name), getattr(two, name)

        def hook(given: Any) -> bool:
            answers = [hear(given) for hear in pair]
            return any(answers)

        return hook

    return Hooks(*map(both, Hooks._fields))


class Folder(NamedTuple):
    """A run folder, and what it keeps of a run.

    Attributes:
      path: of the folder.
      config: what the run depends on, as plain data; a folder that holds another one
        is refused (`rounds` may grow).
      settings: that the run was built from, as plain data, to read them back.
      may_change: names in `config` whose values may change from call to call.
      rounding: names that may change too, but change the order of sums: a note says so.
      tensorboard: write TensorBoard events too.
      checkpoint_every: rounds between checkpoints; a kill loses at most these.
    """

    path: str | os.PathLike[str]
    config: Record
    settings: Record | None = None
    may_change: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()
    tensorboard: bool = True
    checkpoint_every: int = 1


class _Start(NamedTuple):
    """What a run starts from.

    Attributes:
      round: the next one.
      state: that it carries.
      notes: lines for the user.
      logs: where its rows of clients lie.
      removed: whether there are records alone, of a run that is finished.
    """

    round: int
    state: types.Tree
    notes: tuple[str, ...]
    logs: Mapping[str, segments.Log] = {}
    removed: bool = False


class _Pending(NamedTuple):
    """A round that was dispatched."""

    state: base.State
    report: base.Report
    scores: evaluate.Scores | None


def _require_finite(report: base.Report, record: Record) -> Record:
    """Gives the record back, or raises NonFiniteError."""
    if reason := guard.not_finite(report):
        raise NonFiniteError(record, _advise(report, reason))
    return record


def _advise(report: base.Report, reason: str) -> str:
    """Adds what would help to what of a round is not finite."""
    if np.asarray(report.failed).any():
        return f"{reason}; lower the learning rate or look at their data"
    return f"{reason}; lower the server's learning rate"


REFUSED = {  # names in records
    "nonfinite": totals.NOT_FINITE,
    "large": totals.TOO_LARGE,
    "unmeasured": totals.UNMEASURED,
}


# What every record has of its round.
_RECORDED = frozenset(
    (
        *("round", "train_loss", "participants", "upload_bytes", "download_bytes"),
        *("compute_share", "round_seconds", "clock_seconds", "plans", "wall_seconds"),
    )
)


def _training_fields(report: base.Report) -> Record:
    """Reads the losses of a round."""
    assigned, books = report.assignment, report.books
    size = len(assigned.ids)
    # All at once: the device is waited for once.
    found = report.losses, report.failed, dict(report.said)
    losses, failed, said = jax.device_get(found)
    failed = np.asarray(failed)[:size]
    plans_used = collections.Counter[str]()
    for plan, number in sorted(collections.Counter(assigned.plans).items()):
        plans_used[str(plan)] += number
    losses = np.asarray(losses, np.float64)[:size][failed == 0]
    refused = {
        name: sorted(assigned.ids[failed == why].tolist())
        for name, why in REFUSED.items()
    }
    events = dict(assigned.outcome.events)
    record: Record = {
        "round": assigned.round,
        "train_loss": float(np.mean(losses)) if len(losses) else None,
        "participants": len(losses),
        "upload_bytes": books.upload_bytes,
        "download_bytes": books.download_bytes,
        "compute_share": books.compute_share,
        "round_seconds": books.seconds,
        "clock_seconds": books.clock_seconds,
        "plans": dict(plans_used),
    }
    for name, value in said.items():
        record[name] = None if math.isnan(value) else float(value)
    if assigned.tiers:
        record["tiers"] = dict(assigned.tiers)
    if books.joules is not None:
        record["joules"] = sum(books.joules.values())
        # A list: names of clients would each be a curve of TensorBoard.
        record["client_joules"] = sorted(books.joules.items())
    if events:
        record["events"] = events
    if report.hostile is not None:
        record["hostile"] = int(np.sum(report.hostile))
        if wrong := assigned.ids[report.hostile & (failed != 0)].tolist():
            record["hostile_refused"] = sorted(wrong)
    if any(refused.values()):
        record["refused"] = sorted(itertools.chain(*refused.values()))
        record["refused_for"] = {why: ids for why, ids in refused.items() if ids}
    return record


def iterate(
    algorithm: base.Algorithm,
    state: base.State,
    rounds: range,
    evaluator: Evaluator | None = None,
    message: Callable[[str], None] = _ignore,
) -> Iterator[tuple[base.State, Record]]:
    """Runs rounds; yields each one's new state and record once it is finished.

    Args:
      algorithm: what to run.
      state: before the first of them.
      rounds: indices of the rounds to run.
      evaluator: None: no evaluation.
      message: is given a line when a plan compiles.

    Yields:
      (state after the round, record), one round behind what was dispatched.

    Raises:
      NonFiniteError: after the last good round was yielded.
    """
    dispatch = _dispatcher(algorithm, rounds.stop, evaluator, message)
    read = _reader(evaluator)
    pending: _Pending | None = None
    for index in rounds:
        new = dispatch(state, index)
        state = new.state
        if pending is not None:
            yield pending.state, _require_finite(pending.report, read(pending))
        pending = new
    if pending is not None:
        yield pending.state, _require_finite(pending.report, read(pending))


def iterate_guarded(
    algorithm: base.Algorithm,
    rollback: guard.Guard,
    carry: guard.Guarded,
    rounds: range,
    evaluator: Evaluator | None = None,
    message: Callable[[str], None] = _ignore,
) -> Iterator[tuple[guard.Guarded, Record]]:
    """Runs rounds as `iterate`, but judges each before the next one is dispatched.

    Args:
      algorithm: what to run.
      rollback: the guard.
      carry: before the first round.
      rounds: indices of the rounds to run.
      evaluator: whose measure tells good states.
      message: is given a line when a plan compiles, and at a rollback.

    Yields:
      (what the next round starts from, record). The record of a round that must not
      stand has `rollback`, the fields of the guard's verdict.

    Raises:
      ValueError: there is no evaluator.
      DivergedError: after the guard's limit of rollbacks; NonFiniteError if the last
        reason is one.
    """
    if evaluator is None:
        raise ValueError("rollback: expected an evaluator, got none")
    dispatch = _dispatcher(algorithm, rounds.stop, evaluator, message)
    read = _reader(evaluator)
    for index in rounds:
        done = dispatch(carry.state, index)
        record = read(done)
        judged = record
        if not evaluator.regular(index):  # a longer run would go on without it
            key = rollback.measure.key
            judged = {k: v for k, v in record.items() if k != key}
        memory, verdict = guard.judge(
            rollback, carry.memory, done.state, judged, done.report
        )
        carry = guard.Guarded(done.state, memory)
        if verdict is not None:
            if verdict.stop:
                raise _limit_reached(rollback, verdict, done.report, record)
            carry = carry._replace(state=verdict.state)
            record["rollback"] = verdict.fields
        yield carry, record


def _limit_reached(
    rollback: guard.Guard,
    verdict: guard.Verdict,
    report: base.Report,
    record: Record,
) -> DivergedError:
    tries = rollback.limit
    after = f" (after {tries} rollback{'s' * (tries != 1)})"
    if verdict.finite:
        text = f"{verdict.reason}{after}; lower the learning rates"
        return DivergedError(record, text)
    return NonFiniteError(record, _advise(report, verdict.reason + after))


def _dispatcher(
    algorithm: base.Algorithm,
    rounds: int,
    evaluator: Evaluator | None,
    message: Callable[[str], None],
) -> Callable[[base.State, int], _Pending]:
    """Makes (state, round index) -> the round, still computing."""
    seen: set = set()

    def dispatch(state: base.State, index: int) -> _Pending:
        assignment = algorithm.assign(state, index)
        new = sorted(set(algorithm.programs(assignment)) - seen)
        if new:
            names = ", ".join(map(str, new))
            message(f"round {index}: compiling for plan{'s' * (len(new) > 1)} {names}")
            seen.update(new)
        state, report = algorithm.round(state, assignment)
        due = evaluator is not None and evaluator.due(index, rounds)
        scores = evaluator.scores(state) if evaluator is not None and due else None
        return _Pending(state, report, scores)

    return dispatch


def _reader(evaluator: Evaluator | None) -> Callable[[_Pending], Record]:
    """Makes (round) -> its record, which waits for the round."""
    clock = time.perf_counter()

    def read(done: _Pending) -> Record:
        nonlocal clock
        record = _training_fields(done.report)
        if done.scores is not None and evaluator is not None:
            record |= evaluator.fields(jax.device_get(done.scores))
        now = time.perf_counter()
        record["wall_seconds"], clock = now - clock, now
        return record

    return read


def final_evaluation(
    records: Sequence[Record], measure: tasks.Measure = tasks.DEFAULT.measure
) -> Record:
    """Finds the record with the evaluation of the state that a run ended with.

    Args:
      records: of a whole run; the last one was evaluated.
      measure: of their task.

    Returns:
      The last one, or if it was rolled back the one of the round it went back to (the
      last one all the same if that is the start).
    """
    last = [record for record in records if measure.key in record][-1]
    back = last.get("rollback", {}).get("to_round", last["round"])
    return next((record for record in records if record["round"] == back), last)


def _carry(state: base.State, rollback: guard.Guard | None) -> types.Tree:
    """Gives what a run carries from round to round: the state, or `guard.Guarded`."""
    if rollback is None:
        return state
    return guard.Guarded(state, guard.init(rollback, state))


def _state(carry: types.Tree) -> base.State:
    return carry.state if isinstance(carry, guard.Guarded) else carry


def _outcomes(algorithm, rollback, carry, *more) -> Iterator[tuple[types.Tree, Record]]:
    """Runs rounds with or without a guard."""
    if rollback is None:
        return iterate(algorithm, carry, *more)
    return iterate_guarded(algorithm, rollback, carry, *more)


def run(
    algorithm: base.Algorithm,
    rounds: int,
    evaluator: Evaluator | None = None,
    hooks: Hooks | None = None,
    rollback: guard.Guard | None = None,
) -> tuple[base.State, list[Record]]:
    """Runs an algorithm in memory, as notebooks do.

    Args:
      algorithm: what to run.
      rounds: how many.
      evaluator: None: no evaluation.
      hooks: what to tell the user.
      rollback: when to go back to a good state; None: never.

    Returns:
      The final state and the record of every round; of those that are finished, if
      `hooks.interrupted` says so.

    Raises:
      DivergedError: training diverged; NonFiniteError if in numbers that are not
        finite.
    """
    hooks = hooks or Hooks()
    last, done = _carry(algorithm.init(), rollback), 0
    records: list[Record] = []
    hooks.start(0)
    every = range(rounds)
    outcomes = _outcomes(algorithm, rollback, last, every, evaluator, hooks.message)
    try:
        for carry, record in _telling(outcomes, hooks):
            records.append(record)
            last, done = carry, done + 1  # together, as Ctrl-C may come in the middle
            hooks.record(record)
    except KeyboardInterrupt:
        if not hooks.interrupted(done):
            raise
    return _state(last), records[:done]


def _telling(
    outcomes: Iterator[tuple[types.Tree, Record]], hooks: Hooks
) -> Iterator[tuple[types.Tree, Record]]:
    """Tells the alerts of each round, then passes it on to be kept."""
    try:
        for carry, record in outcomes:
            for alert in alerts.of_record(record):
                if alert["kind"] == "rollback":
                    hooks.message(alert["message"])
                hooks.alert(alert)
            yield carry, record
    except DivergedError as error:
        hooks.alert(alerts.stopped(error.round, str(error)))
        raise


def run_in_folder(
    algorithm: base.Algorithm,
    rounds: int,
    evaluator: Evaluator | None,
    keep: Folder,
    hooks: Hooks | None = None,
    rollback: guard.Guard | None = None,
) -> tuple[base.State | None, list[Record]]:
    """Runs an algorithm in a run folder, from where an earlier call stopped.

    Of several hosts the first one reads and writes, the others follow it.

    Args:
      algorithm: what to run.
      rounds: how many the whole run has.
      evaluator: None: no evaluation.
      keep: the run folder.
      hooks: what to tell the user; a resumed run tells the alerts of the rounds that
        it runs again once more.
      rollback: when to go back to a good state; None: never.

    Returns:
      The final state (None of a finished run whose checkpoints were removed), and the
      records of all rounds, those before a resume included (a host that follows has
      only those it saw).

    Raises:
      ValueError: the folder is another run's, in use, cannot be written although
        rounds are left, or its checkpoints are damaged or removed.
      DivergedError: training diverged; NonFiniteError if in numbers that are not
        finite. The state before that round is saved.
    """
    hooks = hooks or Hooks()
    if jax.process_index() > 0:
        return _follow(algorithm, rounds, evaluator, rollback)
    free = keep.may_change
    if rounds >= writers.read_history(keep.path).finished:  # fewer: another run's
        free = ("rounds", *free)
    held = writers.open_run(keep.path, keep.config, free, keep.rounding, keep.settings)
    with held as folder:
        judged = () if evaluator is None else (evaluator.measure.key,)
        ends = _RECORDED.union(judged)
        start = _restore(algorithm, rollback, folder.path, rounds, ends)
        first, carry = _agreed(start.round, start.state)
        for note in (*folder.notes, *start.notes):
            hooks.message(note)
        hooks.start(first)
        if first >= rounds:  # finished: there is nothing to write
            return _shown(folder.path, start._replace(state=carry), evaluator)
        if folder.read_only:
            raise ValueError(
                f"{keep.path} cannot be written ({folder.read_only}), and rounds "
                f"{first} to {rounds - 1} are left; pass another folder"
            )
        alarm = writers.AlertsWriter(folder.path, first)

        def tell(alert: alerts.Alert) -> None:
            alarm.write(alert)
            _pass_on(alarm.notes, hooks)
            hooks.alert(alert)

        with writers.MetricsWriter(folder.path, first, keep.tensorboard) as metrics:
            _pass_on(metrics.notes, hooks)
            _pass_on(alarm.notes, hooks)
            if first:
                hooks.message(f"resuming {keep.path} at round {first} of {rounds}")
            else:  # so that records without a checkpoint tell that it was removed
                checkpoints.save(folder.path, 0, mesh.local(carry), 2, metrics.digest())
            left = range(first, rounds)
            outcomes = _outcomes(
                algorithm, rollback, carry, left, evaluator, hooks.message
            )
            told = _telling(outcomes, hooks._replace(alert=tell))
            saves = checkpoints.AsyncCheckpointer(folder.path, logs=start.logs)
            begun = [_Kept(carry, first, metrics.digest())]
            del start, carry  # or the rows that a round replaces would stay to the end
            every = keep.checkpoint_every
            kept = _keep(told, metrics, saves, every, hooks, begun.pop())
        _pass_on(metrics.notes, hooks)
        return _state(kept.carry), writers.read_metrics(folder.path)[: kept.rounds]


def _pass_on(notes: list[str], hooks: Hooks) -> None:
    """Tells what a writer has noted, once."""
    while notes:
        hooks.message(notes.pop(0))


def _shown(
    path: pathlib.Path, end: _Start, evaluator: Evaluator | None
) -> tuple[base.State | None, list[Record]]:
    """Gives what a finished run left."""
    records = _finished(path)
    scores = _stopped(end.state, end.round, evaluator)  # all hosts take part
    if end.removed:
        return None, records
    if records and scores is not None:
        records[-1] |= scores
    return _state(end.state), records


def restore(
    workdir: str,
    algorithm: base.Algorithm,
    rollback: guard.Guard | None = None,
) -> tuple[base.State, int]:
    """Reads the state that a run folder holds, also while the run goes on.

    Args:
      workdir: the run folder.
      algorithm: of the same settings as the run's.
      rollback: the run's guard, if it has one.

    Returns:
      The state, of which `server.blocks` is the network, and the rounds behind it.

    Raises:
      ValueError: there is no checkpoint, or none that fits the algorithm.
    """
    path = pathlib.Path(workdir)
    found = checkpoints.restore(path, _carry(algorithm.init(), rollback))
    if found is None:
        raise ValueError(f"expected a run folder with checkpoints, got {workdir}")
    return _state(found.state), found.round


def _finished(workdir: str | pathlib.Path) -> list[Record]:
    """Reads the records of a run without that of a round that ended it."""
    return [r for r in writers.read_metrics(workdir) if "stopped" not in r]


def _stopped(carry, first: int, evaluator: Evaluator | None) -> Record | None:
    """Evaluates the end of a run that was to have more rounds; None: that was done."""
    if evaluator is None or evaluator.regular(first - 1):
        return None
    return evaluator.fields(jax.device_get(evaluator.scores(_state(carry))))


def _agreed(first: int, carry: types.Tree) -> tuple[int, types.Tree]:
    """Gives every host the round and what to start it from."""
    leaves, tree = jax.tree.flatten(carry)
    rows = [isinstance(leaf, client_rows.Rows) for leaf in leaves]
    arrays = [leaf for leaf, one in zip(leaves, rows, strict=True) if not one]
    round, arrays = mesh.from_first_host((np.int32(first), arrays))
    rest = iter(arrays)
    whole = [
        client_rows.from_first_host(leaf) if one else next(rest)
        for leaf, one in zip(leaves, rows, strict=True)
    ]
    return int(round), jax.tree.unflatten(tree, whole)


def _follow(algorithm, rounds: int, evaluator, rollback):
    """Takes part in the rounds of the first host's run; returns as `run_in_folder`."""
    first, carry = _agreed(0, _carry(algorithm.init(), rollback))
    if first >= rounds:
        _stopped(carry, first, evaluator)
    records = []
    left = range(first, rounds)
    for new, record in _outcomes(algorithm, rollback, carry, left, evaluator, _ignore):
        carry = new
        records.append(record)
    return _state(carry), records


def _restore(
    algorithm: base.Algorithm,
    rollback: guard.Guard | None,
    path: pathlib.Path,
    rounds: int,
    ends: Set[str],
) -> _Start:
    """Reads the newest sound checkpoint, or starts anew where nothing was recorded.

    Of a run whose last record has all in `ends` the records alone can be shown.
    """
    start = _carry(algorithm.init(), rollback)  # also tells what lies on the host
    history = writers.read_history(path)
    anew = f"delete {path}{os.sep}metrics.jsonl and checkpoints to start at round 0"
    try:
        found = checkpoints.restore(path, start, history)
    except ValueError as error:
        raise ValueError(f"{error}; put a good one back, or {anew}") from error
    if found is not None:
        return _Start(*found)
    if not history.lines:
        return _Start(0, start, ())
    whole = history.finished == len(history.digests) - 1 == rounds
    if whole and _shows(_finished(path), ends):
        note = f"{path} has no checkpoints any more: shows its records alone"
        return _Start(rounds, start, (note,), removed=True)
    raise ValueError(
        f"{path} has records of {history.finished} rounds but no checkpoints to go on "
        f"from; put them back, pass another folder, or {anew}"
    )


def _shows(records: list[Record], ends: Set[str]) -> bool:
    """Tells whether records have what their readers need."""
    return ends <= records[-1].keys() and all(r.keys() >= _RECORDED for r in records)


class _Kept(NamedTuple):
    """What is kept of a run in its folder: what it carries, and the rounds done."""

    carry: types.Tree
    rounds: int
    digest: bytes


def _keep(outcomes, metrics, saves, every: int, hooks: Hooks, last: _Kept) -> _Kept:
    """Writes records and checkpoints as rounds finish; returns the last."""
    unsaved = False
    with saves as checkpointer:

        def save(kept: _Kept) -> None:
            checkpointer.save(kept.rounds, mesh.local(kept.carry), kept.digest)

        try:
            for carry, record in outcomes:
                metrics.write(record)
                _pass_on(metrics.notes, hooks)
                # Together, as Ctrl-C may come in the middle.
                last, unsaved = (
                    _Kept(carry, record["round"] + 1, metrics.digest()),
                    True,
                )
                if last.rounds % every == 0:
                    save(last)
                    unsaved = False
                hooks.record(record)
        except DivergedError as error:
            metrics.write(error.record)  # a resumed run drops it and tries again
            raise
        except KeyboardInterrupt:
            if not hooks.interrupted(last.rounds):
                raise
        finally:  # at the end, diverged, or stopped by Ctrl-C: keep what is good
            if unsaved:
                save(last)
    return last
