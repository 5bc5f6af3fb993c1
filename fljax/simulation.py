"""The host loop: rounds, evaluation cadence, checkpoints, metrics one round late.

While round r computes, the host reads what round r - 1 reported, so the device never
waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax import checkpoints, evaluate, writers
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
    """

    scores: Callable[[averaging.State], evaluate.Scores]
    fields: Callable[[evaluate.Scores], Record]
    every: int = 1

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
    losses, names = [], []
    for plan, ids, slots in report.groups:
        finite = np.asarray(slots.finite)[: len(ids)]
        losses.append(np.asarray(slots.loss)[: len(ids)])
        names += [f"{i} (plan {plan})" for i in ids[~finite]]
    if names:
        raise NonFiniteError(
            f"round {report.assignment.round}: loss or update is not finite for "
            f"client{'s' * (len(names) > 1)} {', '.join(names)}; lower the learning "
            f"rate or look at their data"
        )
    plans_used: dict[str, int] = {
        str(plan): len(ids) for plan, ids, _ in report.groups
    }
    return {
        "round": report.assignment.round,
        "train_loss": float(np.mean(np.concatenate(losses), dtype=np.float64)),
        "upload_bytes": report.upload_bytes,
        "download_bytes": report.download_bytes,
        "compute_share": report.compute_share,
        "plans": plans_used,
    }


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
    *,
    workdir: str | None = None,
    config: Record | None = None,
    tensorboard: bool = True,
    checkpoint_every: int = 1,
    hooks: Hooks | None = None,
) -> tuple[averaging.State, list[Record]]:
    """Runs an algorithm, in memory or in a run folder where it can be resumed.

    Args:
      algorithm: what to run.
      rounds: how many rounds the whole run has.
      evaluator: None: no evaluation.
      workdir: the run folder; None: nothing is written.
      config: what the run depends on, as plain data; a folder that holds another
        one is refused (`rounds` may grow).
      tensorboard: write TensorBoard events too.
      checkpoint_every: rounds between checkpoints; a kill loses at most these.
      hooks: what to tell the user.

    Returns:
      The final state, and the records of all rounds, those before a resume included.

    Raises:
      ValueError: the folder is another run's, in use, or its checkpoints are damaged.
      NonFiniteError: training diverged; the last good state is saved.
    """
    hooks = hooks or Hooks()
    if workdir is None:
        state, records = algorithm.init(), []
        for state, record in iterate(
            algorithm, state, 0, rounds, evaluator, hooks.message
        ):
            records.append(record)
            hooks.record(record)
        return state, records
    with writers.open_run(workdir, config or {}, may_change=("rounds",)) as folder:
        for note in folder.notes:
            hooks.message(note)
        state = _run_in_folder(
            algorithm,
            rounds,
            evaluator,
            folder,
            tensorboard=tensorboard,
            checkpoint_every=checkpoint_every,
            hooks=hooks,
        )
        return state, writers.read_metrics(folder.path)


def _run_in_folder(
    algorithm, rounds, evaluator, folder, *, tensorboard, checkpoint_every, hooks
) -> averaging.State:
    template = jax.eval_shape(algorithm.init)
    restored = checkpoints.restore(folder.path, template)
    if restored is None:
        first, state = 0, algorithm.init()
    else:
        first, state = restored.round, restored.state
        for note in restored.notes:
            hooks.message(note)
        hooks.message(f"resuming {folder.path} at round {first} of {rounds}")
    hooks.start(first)
    good = saved = first
    with (
        writers.MetricsWriter(folder.path, first, tensorboard) as metrics,
        checkpoints.AsyncCheckpointer(folder.path) as checkpointer,
    ):
        for note in metrics.notes:
            hooks.message(note)
        try:
            for state, record in iterate(
                algorithm, state, first, rounds, evaluator, hooks.message
            ):
                metrics.write(record)
                good = record["round"] + 1
                if good % checkpoint_every == 0 or good == rounds:
                    checkpointer.save(good, state)
                    saved = good
                hooks.record(record)
        finally:
            # Diverged, or stopped by Ctrl-C: keep what is good.
            if good > saved:
                checkpointer.save(good, state)
    return state
