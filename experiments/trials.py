"""Trials of a sweep: who runs which, in a journal that all workers share.

A worker takes a trial under a lock of the sweep and holds a lock of the trial while it
runs it. So a trial that is running but that nobody holds is of a worker that was
killed: the next one takes it over, and its run folder goes on where it was.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import filelock

from experiments import space as spaces

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")
INSTALL = "pip install -e '.[sweep]'"
_STARTUP = 5  # trials before any is compared with them


class Settings(NamedTuple):
    """How a sweep is made.

    Attributes:
      workdir: of the sweep.
      space: that it searches.
      more: whether more of the objective is better.
      trials: how many are wanted.
      sampler: one of SAMPLERS.
      pruner: one of PRUNERS.
      seed: of the sampler.
      warmup: rounds before a trial is stopped.
    """

    workdir: pathlib.Path
    space: spaces.Space
    more: bool
    trials: int
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    warmup: int = 0


class Taken(NamedTuple):
    """A trial that this process holds.

    Attributes:
      trial: of Optuna.
      values: of the fields, as flags take them.
      lock: to be released.
    """

    trial: Any
    values: Mapping[str, str]
    lock: filelock.BaseFileLock

    @property
    def number(self) -> int:
        """From 0."""
        return self.trial.number


def optuna() -> Any:
    """Imports Optuna.

    Raises:
      ValueError: it is not there.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            f"a sweep needs Optuna, which does not import ({error}): {INSTALL}"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def study(settings: Settings) -> Any:
    """Opens the study of a sweep, which all its workers share."""
    library = optuna()
    path = str(settings.workdir / "journal.log")
    journal = library.storages.journal
    symbolic = os.name != "nt"  # also right on NFS; Windows lets few users make them
    kind = journal.JournalFileSymlinkLock if symbolic else journal.JournalFileOpenLock
    backend = journal.JournalFileBackend(path, lock_obj=kind(path))
    pruner = library.pruners.NopPruner()
    if settings.pruner == "median":
        pruner = library.pruners.MedianPruner(_STARTUP, settings.warmup)
    return library.create_study(
        storage=library.storages.JournalStorage(backend),
        study_name="sweep",
        direction="maximize" if settings.more else "minimize",
        pruner=pruner,
        load_if_exists=True,
    )


def lock(settings: Settings) -> filelock.BaseFileLock:
    """Gives the lock under which workers take trials and write what is shared."""
    return filelock.FileLock(settings.workdir / "sweep.lock")


def take(settings: Settings, shared: Any) -> Taken | None:
    """Takes the next trial: one that a killed worker left, else a new one.

    Args:
      settings: of the sweep.
      shared: the study.

    Returns:
      The trial, held; None: all are done, or other workers run what is left.
    """
    library = optuna()
    states = library.trial.TrialState
    with lock(settings):
        everyone = shared.get_trials(deepcopy=False)
        for frozen in everyone:
            if frozen.state == states.RUNNING and (held := _held(settings, frozen)):
                trial = library.trial.Trial(shared, frozen._trial_id)
                return Taken(trial, _suggested(trial, settings), held)
        waiting = any(frozen.state == states.WAITING for frozen in everyone)
        full = len(everyone) >= settings.trials
        if not waiting and (full or not _enqueue(settings, shared)):
            return None
        shared.sampler = _sampler(library, settings, len(everyone))
        trial = shared.ask()
        held = _held(settings, trial)
        if held is None:
            raise AssertionError("a new trial is held by nobody else")
        return Taken(trial, _suggested(trial, settings), held)


def _held(settings: Settings, trial: Any) -> filelock.BaseFileLock | None:
    """Holds a trial for this process; None: another one does."""
    folder = settings.workdir / "claims"
    folder.mkdir(exist_ok=True)
    held = filelock.FileLock(folder / f"{trial.number:04d}.lock", timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        return None
    return held


def _sampler(library: Any, settings: Settings, number: int) -> Any:
    """Makes the sampler of a trial, by its number: no two workers draw alike."""
    seed = settings.seed + number
    if settings.sampler == "tpe":
        return library.samplers.TPESampler(seed=seed, constant_liar=True)
    return library.samplers.RandomSampler(seed=seed)


def _enqueue(settings: Settings, shared: Any) -> bool:
    """Has the next trial be the next point of a grid; False: there is none left."""
    if settings.sampler != "grid":
        return True
    values = {name: of.texts for name, of in spaces.grid(settings.space).items()}
    tried = [frozen.params for frozen in shared.get_trials(deepcopy=False)]
    for point in itertools.product(*values.values()):
        params = dict(zip(values, point, strict=True))
        if params not in tried:
            shared.enqueue_trial(params)
            return True
    return False


def _suggested(trial: Any, settings: Settings) -> dict[str, str]:
    """Gives the values of a trial, drawn where it has none yet."""
    drawn: dict[str, Any] = {}
    for name, of in settings.space.items():
        if isinstance(of, spaces.Choices):
            drawn[name] = trial.suggest_categorical(name, of.texts)
        elif of.whole:
            drawn[name] = trial.suggest_int(name, of.low, of.high, log=of.log)
        else:
            drawn[name] = trial.suggest_float(name, of.low, of.high, log=of.log)
    return {name: str(value) for name, value in drawn.items()}
