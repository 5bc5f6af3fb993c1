"""Searches settings; each trial is a run. Start it several times to share the work.

    python -m experiments.sweep --space='lr=0.001..1 log' --space='momentum=0..0.9' \\
        --trials=20 --algorithm=fedavg --rounds=30 --workdir=runs/sweep
    python -m experiments.sweep --space=space.txt --sampler=grid --workdir=runs/grid

All flags of `experiments.train` hold for every trial. WORKDIR gets a run folder for
each, trials.csv, parallel.png and best.flags. Stop it anywhere, run the same command,
and it goes on; so do the trials of workers that were killed.

Lines of --space:
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

import fljax
from experiments import define, main, sweep_results, trials
from experiments import flags as config_flags
from experiments import space as spaces
from fljax import tasks
from fljax.experiment import config as configs
from fljax.experiment import progress
from fljax.experiment.report import found
from fljax.runs import simulation, writers
from fljax.runtime import durable

config_flags.define_flags()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_SPACE = flags.DEFINE_multi_string(
    "space", [], "What is searched: a file, or an entry such as 'lr=0.01..1 log'."
)
_TRIALS = define.number(
    "trials", 20, "Trials in all, of all workers; of a grid at most.", least=1
)
_SAMPLER = define.of_field(
    "sampler",
    fljax.bounds.field(
        "tpe",
        "Where to look: tpe (near what did well), random or grid (every combination).",
        choices=trials.SAMPLERS,
    ),
)
_PRUNER = define.of_field(
    "pruner",
    fljax.bounds.field(
        "median",
        "Which trials end early: those worse than the median of the others at the same "
        "round, or none.",
        choices=trials.PRUNERS,
    ),
)
_WARMUP = define.number(
    "prune_after", 5, "Rounds that every trial may run at least.", least=0
)
_OBJECTIVE = flags.DEFINE_string(
    "objective",
    "",
    "Field of the records to go by, such as worst_tier_test_accuracy, macro_f1 or "
    "test_loss; empty: what the task goes by.",
)
_SWEEP_SEED = define.number(
    "sampler_seed", 0, "Of the draws of the sampler.", least=0, most=2**31
)

_LESS = ("test_loss", "train_loss", "rmse", "mae", "perplexity", "tier_spread")
_ACROSS = ("test_accuracy", "macro_f1", "worst_tier_accuracy", "tier_spread")

__doc__ = f"{__doc__}\n{(spaces.__doc__ or '').partition(chr(10) * 2)[2]}"  # for --help


class _PrunedError(Exception):
    """A trial is worse than the others."""


def _parse(name: str, text: str) -> Any:
    return flags.FLAGS[name].parser.parse(text)


def _objective(base: configs.Config) -> tasks.Measure:
    """Gives the field of the records that a sweep goes by.

    Raises:
      ValueError: no record has it.
    """
    measure = tasks.named(base.task).measure
    key = _OBJECTIVE.value or measure.key
    if key == measure.key:
        return measure
    known = {*_LESS, *_ACROSS, f"worst_tier_{measure.key}", "micro_f1", "r2"}
    if key not in known:
        raise configs.unknown("objective", key, sorted({measure.key, *known}))
    return tasks.Measure(key, key.replace("_", " "), more=key not in _LESS)


def _config(base: configs.Config, values: Mapping[str, str]) -> configs.Config:
    """Gives the settings of a trial.

    Raises:
      ValueError: they do not go together.
    """
    given = {name: _parse(name, text) for name, text in values.items()}
    config = configs.replace(base, given)
    configs.check(config)
    return config


def _keep(settings: trials.Settings, base: configs.Config, key: str) -> None:
    """Writes down what is searched, or compares it with what an earlier call did.

    Raises:
      ValueError: the folder holds another sweep.
    """
    path = settings.workdir / "sweep.json"
    space = {name: list(of) for name, of in settings.space.items()}
    usual = configs.Config()
    changes = {name: configs.get(usual, name) for name in settings.space}
    fixed = dataclasses.asdict(configs.replace(base, changes))
    kind = "grid" if settings.sampler == "grid" else "drawn"
    content = {"objective": key, "points": kind, "space": space, "base": fixed}
    now = json.loads(writers.to_json(content))
    if not path.exists():
        durable.replace(path, writers.to_json(now))
        return
    there, here = (found.flat(x) for x in (json.loads(path.read_bytes()), now))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{settings.workdir} holds another sweep ({name}: {there.get(name)!r} "
                f"in the folder, {here.get(name)!r} now); pass another --workdir"
            )


def _run(
    taken: trials.Taken,
    config: configs.Config,
    folder: pathlib.Path,
    measure: tasks.Measure,
    hooks: simulation.Hooks,
) -> float:
    """Runs a trial, or what is left of it; returns what it came to."""
    reported = set(
        taken.trial.storage.get_trial(taken.trial._trial_id).intermediate_values
    )

    def report(record: simulation.Record) -> None:
        value = record.get(measure.key)
        if value is None or "rollback" in record or record["round"] in reported:
            return
        taken.trial.report(value, record["round"])
        reported.add(record["round"])

    def hear(record: simulation.Record) -> None:
        report(record)
        # What has run to its end is done: there is nothing to save.
        if record["round"] + 1 < config.rounds and taken.trial.should_prune():
            raise _PrunedError

    for record in writers.read_metrics(folder):  # of a worker that was killed
        report(record)
    ready = fljax.build(config, workdir=folder, cache=main.data_cache())
    both = simulation.together(hooks, simulation.Hooks(record=hear))
    done = fljax.run(
        ready, folder, hooks=both, label=f"trial {taken.number}", tensorboard=False
    )
    final = done.final.get(measure.key)
    if final is None:
        raise ValueError(
            f"--objective: expected a field of the records, got {measure.key}"
        )
    return final


def _trial(
    taken: trials.Taken,
    base: configs.Config,
    where: trials.Settings,
    measure: tasks.Measure,
    hooks: simulation.Hooks,
) -> dict[str, Any]:
    """Runs a trial and gives what the study is told of it."""
    states = trials.optuna().trial.TrialState
    folder = sweep_results.folder(where.workdir, taken.number)
    shown = ", ".join(f"{name} {value}" for name, value in taken.values.items())
    progress.say(f"trial {taken.number}: {shown}")
    try:
        config = _config(base, taken.values)
        value = _run(taken, config, folder, measure, hooks)
    except _PrunedError:
        return {"state": states.PRUNED}
    except simulation.DivergedError as error:
        taken.trial.set_user_attr("why", str(error))
        return {"state": states.PRUNED}
    except ValueError as error:
        if "being written by" in str(error):
            raise
        taken.trial.set_user_attr("why", str(error))
        progress.say(f"trial {taken.number} cannot run: {error}")
        return {"state": states.FAIL}
    return {"values": value, "state": states.COMPLETE}


def _main() -> None:
    if jax.process_count() > 1:
        raise ValueError(
            "--coordinator: expected none; start the same command on each host, and "
            "they share the trials"
        )
    base = config_flags.from_flags(flags.FLAGS)
    space = spaces.read(_SPACE.value, _parse)
    if _SAMPLER.value == "grid":
        space = spaces.grid(space)
    measure = _objective(base)
    workdir = main.folder("runs/sweep")
    settings = trials.Settings(
        workdir=workdir,
        space=space,
        more=measure.more,
        trials=_TRIALS.value,
        sampler=_SAMPLER.value,
        pruner=_PRUNER.value,
        seed=_SWEEP_SEED.value,
        warmup=_WARMUP.value,
    )
    trials.optuna()
    workdir.mkdir(parents=True, exist_ok=True)
    with trials.lock(settings):
        _keep(settings, base, measure.key)
        study = trials.study(settings)

    def write() -> list[str]:
        with trials.lock(settings):
            return sweep_results.write(
                workdir, study, space, measure, lambda values: _config(base, values)
            )

    with main.hooks() as hooks:
        while (taken := trials.take(settings, study)) is not None:
            try:
                told = _trial(taken, base, settings, measure, hooks)
                study.tell(taken.trial, **told)
            finally:
                taken.lock.release()
            write()
    print("\n".join(write()))


if __name__ == "__main__":
    main.run(_main)
