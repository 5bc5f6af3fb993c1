"""Compares runs on the same splits, devices and draws."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fljax import experiment, tasks
from fljax.experiment import config as configs
from fljax.experiment.comparing import paired, summary, text_tables
from fljax.runs import simulation

What = Mapping[str, "configs.Config | experiment.Experiment"]

# Column title, format, key of the statistics.
COLUMNS = (
    ("accuracy", "{mean:.4f} ± {std:.4f}", "test_accuracy"),
    ("worst tier (mix)", "{mean:.4f} ± {std:.4f}", "worst_tier_accuracy"),
    ("worst tier (own)", "{mean:.4f} ± {std:.4f}", "worst_tier_test_accuracy"),
    ("spread (mix)", "{mean:.4f}", "tier_spread"),
    ("upload MB", "{mean:.2f}", "upload_megabytes"),
    ("compute share", "{mean:.3f}", "compute_share"),
    ("clock s", "{mean:.4g}", "clock_seconds"),
    ("seconds", "{mean:.1f}", "wall_seconds"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What came of several runs.

    Attributes:
      results: name -> seed -> result.
    """

    results: Mapping[str, Mapping[int, experiment.Result]]

    @property
    def records(self) -> dict[str, list[list[simulation.Record]]]:
        """Gives the records by name, of each seed."""
        return {
            name: [result.records for result in seeds.values()]
            for name, seeds in self.results.items()
        }

    def table(self, target: float = 0.0) -> str:
        """Lays out means and deviations over the seeds, a row for each name.

        Args:
          target: accuracy, or what the task goes by, that is also asked how soon it was
            reached; 0: none.
        """
        figures = summary.summarize(self.records, target, self.measure)
        return table(figures, self.measure)

    def differences(self, against: str) -> str:
        """Lays out how far each is ahead of one of them, seed by seed.

        Args:
          against: name of the one whose figures are subtracted.

        Returns:
          A row for each other name, with 95 % intervals, and what the columns mean.

        Raises:
          ValueError: there is no such name.
        """
        found = paired.differences(self.records, against, self.measure)
        text = text_tables.aligned(paired.rows(found, self.measure))
        return "\n".join([text, *paired.legend(against)])

    @property
    def measure(self) -> tasks.Measure:
        """Gives what all networks are judged by first.

        Raises:
          ValueError: they are of different tasks.
        """
        runs = (result for seeds in self.results.values() for result in seeds.values())
        found = list(dict.fromkeys(run.measure for run in runs))
        if len(found) > 1:
            keys = " and ".join(measure.key for measure in found)
            raise ValueError(
                f"expected runs of one task in a table or picture, got some that go by "
                f"{keys}; `records` has them all"
            )
        return found[0] if found else tasks.DEFAULT.measure

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws accuracy by round, upload and virtual time, and of the worst tier.

        Args:
          path: of a file to write, whose suffix tells the format; None: none.

        Returns:
          The figure of matplotlib, which a notebook shows.
        """
        from fljax.experiment.pictures import plots

        figure = plots.compared(self.records, self.measure)
        if path is not None:
            figure.savefig(path)
        return figure

    def frame(self, level: str = "round") -> Any:
        """Gives all records as one table; arguments and result as of `Result.frame`."""
        from fljax.experiment import results

        return results.frame(self, level)

    def __repr__(self) -> str:
        """Name what was compared, in a line."""
        seeds = sorted({seed for runs in self.results.values() for seed in runs})
        names, numbers = ", ".join(self.results), ", ".join(map(str, seeds))
        plural = "s" * (len(seeds) != 1)
        return f"<fljax.Comparison: {names}; seed{plural} {numbers}>"


def compare(
    what: What,
    seeds: Sequence[int] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    *,
    hooks: simulation.Hooks | None = None,
    cache: str = "",
    together: bool = False,
) -> Comparison:
    """Runs settings or experiments one after the other, each with the same seeds.

    Args:
      what: by name. Where they differ in the algorithm, its policy, rounds and
        rollbacks alone, data and devices are made once a seed.
      seeds: of each; None: the seed of the first one.
      workdir: gets a run folder for each name and seed, from which an earlier call
        goes on; None: nothing is kept.
      hooks: what wants to hear of the runs.
      cache: folder that keeps decoded data; empty: none.
      together: the seeds of each run at once, as of `run_together`.

    Returns:
      The comparison.

    Raises:
      ValueError: settings, an algorithm or a folder does not fit.
      DivergedError: training diverged.
    """
    results: dict[str, dict[int, experiment.Result]] = {name: {} for name in what}
    done = each(what, seeds, workdir, hooks=hooks, cache=cache, together=together)
    for name, seed, result in done:
        results[name][seed] = result
    return Comparison(results)


def each(
    what: What,
    seeds: Sequence[int] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    *,
    hooks: simulation.Hooks | None = None,
    cache: str = "",
    together: bool = False,
) -> Iterator[tuple[str, int, experiment.Result]]:
    """Yields (name, seed, result) as they come; arguments as of `compare`."""
    if not isinstance(what, Mapping) or not what:
        raise ValueError(f"expected settings or experiments by name, got {what!r:.80}")
    found: list[dict[str, experiment.Experiment]] = []
    for seed in (chosen := _seeds(what, seeds)):
        folders = {
            name: None if workdir is None else folder(workdir, name, seed)
            for name in what
        }
        ready = _ready(what, seed, folders, cache)
        for made in ready.values():  # what cannot run is known before any training
            experiment.algorithm(made)
        if together:
            found.append(ready)
            continue
        for name, made in ready.items():
            label = f"{name} seed {seed}"
            yield (
                name,
                seed,
                experiment.run(made, folders[name], hooks=hooks, label=label),
            )
    for name in what if together else ():
        where = None
        if workdir is not None:
            where = [folder(workdir, name, seed) for seed in chosen]
        label = f"{name} seeds {', '.join(map(str, chosen))}"
        runs = [ready[name] for ready in found]
        done = experiment.run_together(runs, where, hooks=hooks, label=label)
        yield from ((name, *one) for one in zip(chosen, done, strict=True))


def folder(workdir: str | os.PathLike[str], name: str, seed: int) -> pathlib.Path:
    """Gives a run's folder: of cocofl:balanced cocofl_balanced/seed_11."""
    return pathlib.Path(workdir, name.replace(":", "_"), f"seed_{seed}")


def table(
    figures_by_name: Mapping[str, Mapping[str, Any]],
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> str:
    """Lays a summary out as text."""
    names = ("algorithm", *figures_by_name)
    columns = summary.columns(COLUMNS, measure)
    cells = summary.rows(columns, list(figures_by_name.values()))
    return text_tables.aligned([[n, *row] for n, row in zip(names, cells, strict=True)])


def _seeds(what: What, seeds: Sequence[int] | None) -> list[int]:
    settings = [_parts(given)[0] for given in what.values()]
    found = [settings[0].seed] if seeds is None else [*seeds]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds: expected different whole numbers, got {seeds!r}")
    for seed, one in itertools.product(found, settings):  # before any training
        configs.check(dataclasses.replace(one, seed=seed))
    return found


def _parts(given: Any) -> tuple[configs.Config, experiment.Own]:
    """Gives the settings of what is compared, and what was given in Python."""
    if isinstance(given, experiment.Experiment):
        return given.settings, given.own
    if isinstance(given, configs.Config):
        return given, experiment.Own()
    raise ValueError(
        f"expected a fljax.Config or what fljax.build made of one, got a "
        f"{type(given).__name__}"
    )


def _ready(
    what: What,
    seed: int,
    folders: Mapping[str, pathlib.Path | None],
    cache: str,
) -> dict[str, experiment.Experiment]:
    """Makes the experiments of a seed, with as little built twice as can be."""
    built = [made for made in what.values() if isinstance(made, experiment.Experiment)]
    ready = {}
    for name, given in what.items():
        settings, own = _parts(given)
        settings = dataclasses.replace(settings, seed=seed)
        made = next((m for b in built if (m := _again(b, settings, own))), None)
        if made is None:
            made = experiment.build(settings, *own, workdir=folders[name], cache=cache)
            built.append(made)
        ready[name] = made
    return ready


def _again(
    built: experiment.Experiment, settings: configs.Config, own: experiment.Own
) -> experiment.Experiment | None:
    """Gives what was built with other settings, if it serves them too."""
    same = built.own.data is own.data and built.own.net is own.net
    if not same or experiment.unlike(built.built_from, settings):
        return None
    return dataclasses.replace(built, settings=settings, own=own)
