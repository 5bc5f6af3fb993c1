"""Results as tables and pictures: of run folders, also while runs go on, and in memory.

>>> read("runs")  # doctest: +SKIP
>>> read("runs", level="run")[["run", "test_accuracy", "config.lr"]]  # doctest: +SKIP
>>> plot("runs/a", "runs/b")  # doctest: +SKIP
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fljax import experiment
from fljax.experiment import running
from fljax.experiment.comparing import comparison, summary
from fljax.experiment.pictures import overlay, panels
from fljax.runs import follow, simulation, writers

INSTALL = "pip install -e '.[analysis]'"
_LEVELS = ("round", "run")
_PREFIX = "config."

Folder = str | os.PathLike[str]
What = running.Result | comparison.Comparison | Folder


def read(folder: Folder, level: str = "round") -> Any:
    """Reads a run folder, or all below a folder, as a table; runs may still go on.

    Fields within fields are columns with a slash, `tier_accuracy/weak`; lists stay
    lists. What a run has not is missing, NaN among numbers.

    Args:
      folder: of a run or of several.
      level: "round": a row for each finished round of each run; "run": a row for each
        run, with its last evaluation, and sums and means over its rounds as
        `summary.json` has them.

    Returns:
      A pandas.DataFrame: `run`, the folder's path below `folder`; `round`, or `rounds`
      that are done; metrics; and `config.NAME` for all that the run depends on.

    Raises:
      ValueError: there is no run folder, a line of records is none, or pandas is not
        installed.
    """
    if level not in _LEVELS:
        raise ValueError(f"level: expected {' or '.join(_LEVELS)}, got {level!r}")
    pandas = _pandas()
    parts = {
        name: (described.config, records)
        for name, (described, records) in _runs(folder).items()
    }
    return _table(pandas, parts, level)


def frame(what: running.Result | comparison.Comparison, level: str = "round") -> Any:
    """Gives a result, or several, as the table that `read` makes of their folders."""
    pandas = _pandas()
    parts = {
        name: (
            writers.kept_config(experiment.resolved(result.experiment)),
            list(map(writers.kept_record, result.records)),
        )
        for name, result in _results(what).items()
    }
    return _table(pandas, parts, level)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ValueError(
            f"a table: expected pandas to be installed, got {error}; {INSTALL}"
        ) from error
    return pandas


def _results(
    what: running.Result | comparison.Comparison,
) -> dict[str, running.Result]:
    if isinstance(what, running.Result):
        return {experiment.name(what.experiment): what}
    return {
        f"{name}/seed_{seed}": result
        for name, seeds in what.results.items()
        for seed, result in seeds.items()
    }


def _runs(
    folder: Folder,
) -> dict[str, tuple[writers.Described, list[simulation.Record]]]:
    """Reads the run folders at and below a path."""
    root = pathlib.Path(os.path.abspath(folder))
    found = {}
    paths = follow.find(root)
    for path in paths:
        try:
            seen = follow.look(path)
        except ValueError:  # another program's config.json
            if path == root:
                raise
            continue
        if seen is None:
            continue
        if seen.unreadable:
            writers.read_metrics(path)  # which names the line
        name = root.name if path == root else path.relative_to(root).as_posix()
        found[name] = seen.seen.described, seen.records
    if not found:
        raise ValueError(f"expected a run folder, or some below a folder, got {folder}")
    return found


def _table(pandas: Any, runs: Mapping[str, Any], level: str) -> Any:
    """Lays runs out: name -> (configuration, records)."""
    rows = [
        {"run": name, **writers.flat(row, "/")}
        for name, (_, records) in runs.items()
        for row in (records if level == "round" else [_figures(records)])
    ]
    config = pandas.DataFrame.from_dict(
        {
            name: {f"{_PREFIX}{k}": v for k, v in writers.flat(config, ".").items()}
            for name, (config, _) in runs.items()
        },
        orient="index",
    )
    columns = ["run", "round"] if level == "round" else ["run", "rounds"]
    metrics = pandas.DataFrame(rows, columns=None if rows else columns)
    return metrics.join(config, on="run")


def _figures(records: Sequence[simulation.Record]) -> dict[str, Any]:
    """Gives the figures of a run as far as it has come."""
    done = [record for record in records if "stopped" not in record]
    figures: dict[str, Any] = {"rounds": len(done)}
    measure = panels.measure_of([done])
    if not any(measure.key in record for record in done):
        return figures
    last = simulation.final_evaluation(done, measure)
    tiers = {key: last[key] for key in last if key.startswith("tier_")}
    return figures | summary.of_run(done, measure=measure) | tiers


def plot(*what: What, path: Folder | None = None) -> Any:
    """Draws runs: one as it went, several over each other with seeds as bands.

    Args:
      *what: results, comparisons, run folders or folders with some below.
      path: of a file to write, whose suffix tells the format; None: none.

    Returns:
      The figure of matplotlib, which a notebook shows.

    Raises:
      ValueError: there is nothing to draw, or the runs are of different tasks.
    """
    from fljax.experiment.pictures import plots

    if not what:
        raise ValueError("expected results or run folders to draw, got none")
    curves: dict[str, list[Sequence[simulation.Record]]] = {}
    for one in what:
        for name, seeds in _curves(one).items():
            curves[_free(name, curves)] = seeds
    measure = panels.measure_of(records for s in curves.values() for records in s)
    if sum(map(len, curves.values())) == 1:
        ((name, (records,)),) = curves.items()
        picture = plots.history({name: records}, measure=measure)
    else:
        picture = plots.compared(curves, measure)
    if path is not None:
        picture.savefig(path)
    return picture


def _curves(one: What) -> dict[str, list[Sequence[simulation.Record]]]:
    """Gives the records of seeds by name."""
    if isinstance(one, comparison.Comparison):
        return {name: list(seeds) for name, seeds in one.records.items()}
    if isinstance(one, running.Result):
        return {experiment.name(one.experiment): [one.records]}
    runs = _runs(one)
    chosen = {
        name: overlay.settings(described) for name, (described, _) in runs.items()
    }
    return {
        group: [runs[name][1] for name in names]
        for group, names in overlay.groups(chosen).items()
    }


def _free(name: str, taken: Mapping[str, Any]) -> str:
    numbers = (f"{name} {n}" for n in range(2, len(taken) + 3))
    return next(n for n in (name, *numbers) if n not in taken)
