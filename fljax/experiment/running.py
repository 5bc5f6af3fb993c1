"""Runs an experiment, in memory or in a run folder, and gives what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fljax import bounds, experiment, policies, tasks, types
from fljax.algorithms import base
from fljax.engine import federation
from fljax.experiment import compilations, environment, progress
from fljax.experiment import config as configs
from fljax.nn import network
from fljax.runs import simulation, writers
from fljax.runtime import durable

# A stopped run goes on with more rollbacks, and wherever its data lie.
_MAY_CHANGE = ("rollback.limit", "data_memory")
_ROUNDING = ("client_width", "programs", "devices")


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What came of a run.

    Attributes:
      experiment: what ran: its settings and all that was built from them.
      state: of the algorithm after the last round, of which `server.blocks` is the
        global network; None of a finished run whose checkpoints were removed.
      records: of all rounds, in order: losses, accuracies, bytes, seconds.
    """

    experiment: experiment.Experiment
    state: base.State | None
    records: list[simulation.Record]

    @property
    def final(self) -> simulation.Record:
        """Gives the record with the evaluation of the final network.

        Raises:
          ValueError: no round was evaluated.
        """
        if not any(self.measure.key in record for record in self.records):
            raise ValueError("expected a run with an evaluated round, got none")
        return simulation.final_evaluation(self.records, self.measure)

    @property
    def measure(self) -> tasks.Measure:
        """Gives what the network is judged by first, a field of `final`."""
        return self.experiment.federation.training.task.measure

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws accuracy, or the task's measure, and loss over the rounds.

        Args:
          path: of a file to write, whose suffix tells the format; None: none.

        Returns:
          The figure of matplotlib, which a notebook shows.
        """
        from fljax.experiment.pictures import plots

        name = experiment.name(self.experiment)
        figure = plots.history({name: self.records}, measure=self.measure)
        if path is not None:
            figure.savefig(path)
        return figure

    def frame(self, level: str = "round") -> Any:
        """Gives the records as a table, which needs pandas.

        Args:
          level: "round": a row for each round; "run": one row for the run.

        Returns:
          A pandas.DataFrame, as `fljax.read` gives it of the run's folder.
        """
        from fljax.experiment import results

        return results.frame(self, level)

    def __repr__(self) -> str:
        """Say in a line what ran and how well it ended."""
        rounds = len(self.records)
        text = (
            f"{experiment.name(self.experiment)}, {rounds} round{'s' * (rounds != 1)}"
        )
        with contextlib.suppress(ValueError):  # nothing was evaluated
            text += f", test {self.measure.title} {self.final[self.measure.key]:.4f}"
        return f"<fljax.Result: {text}>"


def run(
    what: configs.Config | experiment.Experiment,
    workdir: str | os.PathLike[str] | None = None,
    *,
    hooks: simulation.Hooks | None = None,
    label: str | None = None,
    tensorboard: bool = True,
    checkpoint_every: int = 1,
) -> Result:
    """Runs an experiment, with a bar on a terminal or in a notebook, lines elsewhere.

    Ctrl-C in a session (IPython, a notebook's stop) ends the run with the rounds that
    are finished; elsewhere it is a KeyboardInterrupt, after which a run folder holds
    them.

    >>> settings = configs.Config(network="logistic", algorithm="fedavg", rounds=2)
    >>> run(settings).records[-1]["round"]  # doctest: +SKIP
    1

    Args:
      what: settings, or what `build` made of them.
      workdir: the run folder, from which an earlier run goes on; None: nothing is kept.
      hooks: what else wants to hear of the run.
      label: of the bar; None: the algorithm's name.
      tensorboard: write TensorBoard events to the folder, too.
      checkpoint_every: rounds between the folder's checkpoints.

    Returns:
      The result.

    Raises:
      ValueError: the settings, the algorithm or the folder does not fit.
      DivergedError: training diverged.
    """
    told = Told(hooks, label, True, tensorboard, checkpoint_every)
    return run_built(built(what, workdir), workdir, told)


class Told(NamedTuple):
    """What a run tells, and keeps; as of `run`.

    Attributes:
      shown: whether this process shows the run's progress.
    """

    hooks: simulation.Hooks | None
    label: str | None
    shown: bool
    tensorboard: bool
    checkpoint_every: int


def run_built(
    ready: experiment.Experiment,
    workdir: str | os.PathLike[str] | None,
    told: Told,
) -> Result:
    """Runs what `build` made; arguments, result and errors as of `run`."""
    asked, made = ready.settings.rounds, experiment.algorithm(ready)
    rounds = min(asked, made.most_rounds or asked)
    keep = None
    if workdir is not None:
        keep = simulation.Folder(
            os.fspath(workdir),
            experiment.resolved(ready, made),
            dataclasses.asdict(ready.settings),
            _MAY_CHANGE,
            _ROUNDING,
            told.tensorboard,
            told.checkpoint_every,
        )
    watch, label = experiment.rollback(ready), told.label or experiment.name(ready)
    shows = told.shown and jax.process_index() == 0
    shown: Any = sys.stderr if shows else progress.Silent()
    measure = ready.evaluator.measure
    with progress.Progress(rounds, label=label, stream=shown, measure=measure) as bar:
        for note in made.notes:
            bar.message(f"note: {note}")
        if told.shown:
            made = compilations.told(made, ready.federation, bar.message)
        heard = _hooks(ready, keep, bar)
        if told.hooks is not None:
            heard = simulation.together(heard, told.hooks)
        way = made, rounds, ready.evaluator.of(made)
        ended: tuple[base.State | None, list[simulation.Record]]
        if keep is None:
            ended = simulation.run(*way, heard, watch)
        else:
            ended = simulation.run_in_folder(*way, keep, heard, watch)
        if rounds < asked:
            bar.message(
                f"stopped after {rounds:,} of {asked:,} rounds: another would exceed "
                f"--privacy.epsilon={ready.settings.privacy.epsilon:g}"
            )
        return Result(ready, *ended)


def built(what: Any, workdir: str | os.PathLike[str] | None) -> experiment.Experiment:
    """Builds what is to run, if it is not.

    Raises:
      ValueError: it is neither settings nor an experiment, or the workdir no folder.
    """
    if not isinstance(workdir, str | os.PathLike | None):
        raise ValueError(
            f"workdir: expected a folder, got a {type(workdir).__name__}; data, "
            f"network and algorithm go into fljax.build(settings, data)"
        )
    if isinstance(what, experiment.Experiment):
        return what
    if isinstance(what, configs.Config):
        return experiment.build(what, workdir=workdir)
    raise ValueError(
        f"expected a fljax.Config or what fljax.build made of one, got a "
        f"{type(what).__name__}"
    )


def _hooks(
    ready: experiment.Experiment,
    keep: simulation.Folder | None,
    bar: progress.Progress,
) -> simulation.Hooks:
    """Gives what shows a run."""
    rounds = ready.settings.rounds

    def start(first: int) -> None:  # the folder is this run's by now
        if keep is not None:
            _keep_tokenizer(keep.path, ready.tokenizer)
        if first < rounds:
            for line in _said(ready):
                bar.message(line)
        bar.start(first)

    def interrupted(done: int) -> bool:
        if not hasattr(sys, "ps1"):  # nobody stays to see what is finished
            return False
        where = "the result has them" if keep is None else f"{keep.path} has them, too"
        bar.message(f"interrupted: {done} of {rounds} rounds are finished; {where}")
        return True

    return simulation.Hooks(start, bar.update, bar.message, interrupted=interrupted)


def _said(ready: experiment.Experiment) -> list[str]:
    """Says what a run that begins is of, a line each."""
    fed = ready.federation
    lines = [describe(experiment.seen_by(ready)), *environment.notes()]
    lines += [f"note: {note}" for note in ready.notes]
    if ready.own.algorithm is None and ready.settings.algorithm == "cocofl":
        small = policies.too_small(fed.model.table, fed.population.fleet)
        if small.any():
            lines.append(
                f"{small.sum()} of {len(small)} devices have less memory than any "
                f"window needs: they drop out of every round"
            )
    return lines


def describe(fed: federation.Federation) -> str:
    """Says in a line what a run trains, on whose data, and on which devices."""
    params = sum(count.params for count in fed.model.counts)
    there, counts = fed.layout.devices.devices, fed.population.shards.counts
    clients = f"{len(counts):,} client{'s' * (len(counts) > 1)}"
    beside = f"{fed.layout.width} client{'s' * (fed.layout.width > 1)}"
    return (
        f"{fed.model.net.name} of {params:,} parameters; {counts.sum():,} examples of "
        f"{clients}; on {there.size} x {there.flat[0].device_kind}, {beside} at a "
        f"time on each"
    )


def _keep_tokenizer(workdir: str | os.PathLike[str], tokenizer: bytes | None) -> None:
    path = pathlib.Path(workdir, experiment.TOKENIZER)
    if tokenizer is not None and not path.exists():
        durable.replace(path, tokenizer)


def restore(
    folder: str | os.PathLike[str],
    ready: experiment.Experiment | None = None,
    *,
    data: types.Dataset | None = None,
    net: network.Network | None = None,
    algorithm: experiment.Make | None = None,
) -> Result:
    """Reads what a run folder holds, also while the run goes on.

    Args:
      folder: of the run.
      ready: what ran there; None: it is built from the settings in the folder.
      data: the run's, if it was given in Python.
      net: likewise.
      algorithm: likewise.

    Returns:
      The result, with the state of the newest checkpoint and the records up to it.

    Raises:
      ValueError: it is no run folder, it holds another run, or the settings cannot be
        read back.
    """
    if ready is None:
        _check_given(folder, {"dataset": data, "network": net, "algorithm": algorithm})
        settings = read_settings(folder)
        ready = experiment.build(settings, data, net, algorithm, workdir=folder)
    free = {*_MAY_CHANGE, *_ROUNDING, "rounds"}
    different = [
        line
        for line in writers.differences(folder, experiment.resolved(ready))
        if line.partition(":")[0] not in free
    ]
    if different:
        raise ValueError(
            f"{folder} holds another run ({'; '.join(different)}); pass what ran "
            f"there, with the data, net and algorithm that were given in Python"
        )
    state, rounds = simulation.restore(
        os.fspath(folder), experiment.algorithm(ready), experiment.rollback(ready)
    )
    return Result(ready, state, writers.read_metrics(folder)[:rounds])


def _check_given(
    folder: str | os.PathLike[str], given: Mapping[str, object | None]
) -> None:
    """Refuses to build what was given in Python from settings that cannot know it.

    Raises:
      ValueError: something is missing.
    """
    stored = writers.described(folder).config
    missing = [
        f"{name}: {stored[name]!r} in the folder"
        for name, value in given.items()
        if value is None and experiment.OWN in str(stored.get(name, ""))
    ]
    if missing:
        raise ValueError(
            f"{folder} holds another run ({'; '.join(missing)}); pass what ran there, "
            f"with the data, net and algorithm that were given in Python"
        )


def read_settings(folder: str | os.PathLike[str]) -> configs.Config:
    """Reads the settings back that a run was built from.

    Args:
      folder: of the run.

    Returns:
      The settings.

    Raises:
      ValueError: the folder has none, or not those of this version.
    """
    stored = writers.described(folder).settings
    try:
        made = _read_back(configs.Config, stored)
        configs.check(made)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: expected settings that can be read back, got {error}; pass "
            f"what fljax.build made of them"
        ) from error
    return made


def _read_back(kind: Any, stored: Mapping[str, Any]) -> Any:
    """Makes a dataclass of what `dataclasses.asdict` and JSON made of one.

    Raises:
      TypeError, ValueError: it is none.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if stored.keys() != fields.keys():
        odd = sorted(stored.keys() ^ fields.keys())
        raise ValueError(f"others in {', '.join(odd)}")
    return kind(**{name: _value(fields[name], stored[name]) for name in stored})


def _kind_of(field: Any, stored: Mapping[str, Any]) -> Any:
    """Finds the dataclass that a field may be and that these are the fields of.

    Raises:
      ValueError: there is none.
    """
    for kind in typing.get_args(bounds.kind(field)):
        if not dataclasses.is_dataclass(kind):
            continue
        if {one.name for one in dataclasses.fields(kind)} == stored.keys():
            return kind
    raise ValueError(f"others in {field.name}")


def _value(field: Any, stored: Any) -> Any:
    usual = field.default
    if dataclasses.is_dataclass(usual):
        return _read_back(type(usual), stored)
    if isinstance(stored, dict):  # of a field that may be one or the other
        return _read_back(_kind_of(field, stored), stored)
    if isinstance(stored, list):
        each = field.metadata.get("each")
        if dataclasses.is_dataclass(each):
            return tuple(_read_back(each, item) for item in stored)
        return tuple(stored)
    if isinstance(usual, float) and isinstance(stored, str):
        return float(stored)  # JSON has no infinity
    return stored
