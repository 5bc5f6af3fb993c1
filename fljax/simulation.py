"""The host loop: rounds, evaluation cadence, checkpoints, metrics one round late.

While round r computes, the host reads what round r - 1 reported, so the device never
waits for it.
"""

from __future__ import annotations

import collections
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax import checkpoints, cohort, evaluate, mesh, writers
from fljax.algorithms import averaging

Record = dict[str, Any]


def _ignore(_: Any) -> None:
    """Does nothing with what a hook is given."""


class NonFiniteError(RuntimeError):
    """A round brought a loss or an update that is not finite."""


class Evaluator(NamedTuple):
    """When and how the global network is evaluated.

    Attributes:
      scores: (state) -> sums over the test set; may still be computing.
      fields: (sums) -> evaluation fields of the record.
      every: evaluate after every so many rounds, and after the last.
      examples: of the test set, for estimates of its cost.
    """

    scores: Callable[[averaging.State], evaluate.Scores]
    fields: Callable[[evaluate.Scores], Record]
    every: int = 1
    examples: int = 0

    def due(self, index: int, rounds: int) -> bool:
        """Tells whether the state after round `index` is evaluated."""
        return (index + 1) % self.every == 0 or index + 1 == rounds


class Hooks(NamedTuple):
    """What the host wants to hear.

    Attributes:
      start: is given the index of the first round that will run.
      record: is given every finished round's record.
      message: is given lines for the user.
    """

    start: Callable[[int], None] = _ignore
    record: Callable[[Record], None] = _ignore
    message: Callable[[str], None] = _ignore


class _Pending(NamedTuple):
    """A round that was dispatched."""

    state: averaging.State
    report: averaging.Report
    scores: evaluate.Scores | None


def _training_fields(report: averaging.Report) -> Record:
    """Reads the losses of a round; raises NonFiniteError."""
    assigned = report.assignment
    size = len(assigned.ids)
    failed = np.asarray(report.failed)[:size]
    broken = np.flatnonzero(failed == cohort.NOT_FINITE)
    if size and len(broken) == size:  # a few are refused; all: training diverges
        names = [f"{assigned.ids[k]} (plan {assigned.plans[k]})" for k in broken]
        raise NonFiniteError(
            f"round {assigned.round}: loss or update is not finite for "
            f"client{'s' * (len(names) > 1)} {', '.join(names)}; lower the learning "
            f"rate or look at their data"
        )
    if not np.asarray(report.finite):
        raise NonFiniteError(
            f"round {assigned.round}: every update is finite, but the network "
            f"after the server's step is not; lower the server's learning rate"
        )
    plans_used = collections.Counter(map(str, sorted(assigned.plans)))
    losses = np.asarray(report.losses, np.float64)[:size][failed == 0]
    refused = {
        name: sorted(assigned.ids[failed == why].tolist())
        for name, why in (("nonfinite", cohort.NOT_FINITE), ("large", cohort.TOO_LARGE))
    }
    events = dict(assigned.outcome.events)
    record: Record = {
        "round": assigned.round,
        "train_loss": float(np.mean(losses)) if len(losses) else None,
        "participants": len(losses),
        "upload_bytes": report.upload_bytes,
        "download_bytes": report.download_bytes,
        "compute_share": report.compute_share,
        "round_seconds": report.seconds,
        "clock_seconds": report.clock_seconds,
        "plans": dict(plans_used),
    }
    if report.joules is not None:
        record["joules"] = report.joules
    if events:
        record["events"] = events
    if any(refused.values()):
        record["refused"] = sorted(itertools.chain(*refused.values()))
        record["refused_for"] = {why: ids for why, ids in refused.items() if ids}
    return record


def iterate(
    algorithm: averaging.Algorithm,
    state: averaging.State,
    first: int,
    rounds: int,
    evaluator: Evaluator | None = None,
    message: Callable[[str], None] = _ignore,
) -> Iterator[tuple[averaging.State, Record]]:
    """Runs rounds; yields each one's new state and record once it is finished.

    Args:
      algorithm: what to run.
      state: before round `first`.
      first: index of the first round to run.
      rounds: index after the last.
      evaluator: None: no evaluation.
      message: is given a line when a plan compiles.

    Yields:
      (state after the round, record), one round behind what was dispatched.

    Raises:
      NonFiniteError: after the last good round was yielded.
    """
    pending: _Pending | None = None
    seen: set = set()
    clock = time.perf_counter()

    def finish(done: _Pending) -> tuple[averaging.State, Record]:
        nonlocal clock
        record = _training_fields(done.report)
        if done.scores is not None and evaluator is not None:
            record |= evaluator.fields(jax.device_get(done.scores))
        now = time.perf_counter()
        record["wall_seconds"], clock = now - clock, now
        return done.state, record

    for index in range(first, rounds):
        assignment = algorithm.assign(state, index)
        new = sorted(set(assignment.plans) - seen)
        if new:
            names = ", ".join(map(str, new))
            message(f"round {index}: compiling for plan{'s' * (len(new) > 1)} {names}")
            seen.update(new)
        state, report = algorithm.round(state, assignment)
        due = evaluator is not None and evaluator.due(index, rounds)
        scores = evaluator.scores(state) if evaluator is not None and due else None
        if pending is not None:
            yield finish(pending)
        pending = _Pending(state, report, scores)
    if pending is not None:
        yield finish(pending)


def run(
    algorithm: averaging.Algorithm,
    rounds: int,
    evaluator: Evaluator | None = None,
    hooks: Hooks | None = None,
) -> tuple[averaging.State, list[Record]]:
    """Runs an algorithm in memory, as notebooks do.

    Args:
      algorithm: what to run.
      rounds: how many.
      evaluator: None: no evaluation.
      hooks: what to tell the user.

    Returns:
      The final state and the record of every round.

    Raises:
      NonFiniteError: training diverged.
    """
    hooks = hooks or Hooks()
    last, records = algorithm.init(), []
    hooks.start(0)
    for state, record in iterate(algorithm, last, 0, rounds, evaluator, hooks.message):
        last = state
        records.append(record)
        hooks.record(record)
    return last, records


def run_in_folder(
    algorithm: averaging.Algorithm,
    rounds: int,
    evaluator: Evaluator | None,
    workdir: str,
    config: Record,
    *,
    may_change: tuple[str, ...] = (),
    tensorboard: bool = True,
    checkpoint_every: int = 1,
    hooks: Hooks | None = None,
) -> tuple[averaging.State, list[Record]]:
    """Runs an algorithm in a run folder, from where an earlier call stopped.

    Of several hosts the first one reads and writes, the others follow it.

    Args:
      algorithm: what to run.
      rounds: how many the whole run has.
      evaluator: None: no evaluation.
      workdir: the run folder.
      config: what the run depends on, as plain data; a folder that holds another
        one is refused (`rounds` may grow).
      may_change: names in `config` whose values may change from call to call.
      tensorboard: write TensorBoard events too.
      checkpoint_every: rounds between checkpoints; a kill loses at most these.
      hooks: what to tell the user.

    Returns:
      The final state, and the records of all rounds, those before a resume included
      (a host that follows has only those it saw).

    Raises:
      ValueError: the folder is another run's, in use, or its checkpoints are damaged.
      NonFiniteError: training diverged; the last good state is saved.
    """
    hooks = hooks or Hooks()
    if jax.process_index() > 0:
        return _follow(algorithm, rounds, evaluator)
    if rounds >= len(writers.read_metrics(workdir)):  # fewer: another run's
        may_change = ("rounds", *may_change)
    with writers.open_run(workdir, config, may_change) as folder:
        first, state, notes = _restore(algorithm, folder.path)
        first, state = _agreed(first, state)
        for note in (*folder.notes, *notes):
            hooks.message(note)
        hooks.start(first)
        if first >= rounds:  # finished: there is nothing to write
            return state, writers.read_metrics(folder.path)
        with writers.MetricsWriter(folder.path, first, tensorboard) as metrics:
            for note in metrics.notes:
                hooks.message(note)
            if first:
                hooks.message(f"resuming {workdir} at round {first} of {rounds}")
            outcomes = iterate(
                algorithm, state, first, rounds, evaluator, hooks.message
            )
            kept = _keep(outcomes, metrics, folder.path, checkpoint_every, hooks)
        return kept or state, writers.read_metrics(folder.path)


def _agreed(first: int, state: averaging.State) -> tuple[int, averaging.State]:
    """Gives every host the round and the state to start from."""
    round, state = mesh.from_first_host((np.int32(first), state))
    return int(round), state


def _follow(algorithm, rounds: int, evaluator) -> tuple[averaging.State, list[Record]]:
    """Takes part in the rounds of the first host's run."""
    first, state = _agreed(0, algorithm.init())
    records = []
    for new, record in iterate(algorithm, state, first, rounds, evaluator):
        state = new
        records.append(record)
    return state, records


def _restore(algorithm: averaging.Algorithm, path: pathlib.Path):
    """Reads the newest sound checkpoint, or starts anew."""
    start = algorithm.init()  # also tells which leaves lie on the host
    return checkpoints.restore(path, start) or checkpoints.Restored(0, start, ())


def _keep(outcomes, metrics, path, every: int, hooks: Hooks) -> averaging.State | None:
    """Writes records and checkpoints as rounds finish; returns the last state."""
    last, unsaved, done = None, False, 0
    with checkpoints.AsyncCheckpointer(path) as checkpointer:
        try:
            for state, record in outcomes:
                metrics.write(record)
                last, done = state, record["round"] + 1
                unsaved = done % every != 0
                if not unsaved:
                    checkpointer.save(done, mesh.local(state))
                hooks.record(record)
        finally:  # at the end, diverged, or stopped by Ctrl-C: keep what is good
            if unsaved:
                checkpointer.save(done, mesh.local(last))
    return last
