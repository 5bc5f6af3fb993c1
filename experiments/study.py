"""Studies: algorithms, widths of codes, policies, under several settings.

    python -m experiments.study --study=methods --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=imbalance --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=bits --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=narrow --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=policies --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=algorithms --dataset=npz:fashion_mnist.npz
    python -m experiments.study --study=robust --dataset=npz:fashion_mnist.npz

With --rates=0.03,0.1,0.3 each variant has another one beside it, of the learning rate
that did best on --tuning_seeds. With --against=fedavg_drop the table also says how far
every variant is ahead of that one on the same seeds.

All flags of `experiments.train` hold for every run; a study changes what it is about.
WORKDIR gets report.html, table.md, summary.json, curves.png and a run folder for each
run. Stop it anywhere, run the same command, and it goes on.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

import fljax
from experiments import flags as config_flags
from experiments import main, robustness, studies, tuning
from fljax import bounds, tasks
from fljax.experiment import as_flags
from fljax.experiment import config as configs
from fljax.experiment.comparing import paired, summary, text_tables
from fljax.experiment.pictures import plots
from fljax.experiment.report import page
from fljax.runs import simulation, writers
from fljax.runtime import durable

# setting -> variant -> seeds -> records
Results = dict[str, dict[str, list[list[simulation.Record]]]]

config_flags.define_flags(skip=("seed",))
_TARGET = config_flags.target()
_AGAINST = config_flags.against()
_TOGETHER = config_flags.together()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_STUDY = flags.DEFINE_string("study", "imbalance", ", ".join(studies.STUDIES) + ".")
_ONLY = flags.DEFINE_string(
    "only", "", "Settings of the study whose name has this in it; empty: all."
)
_VARIANTS = flags.DEFINE_list(
    "variants",
    [],
    """Variants of the study, comma separated, in quotes where a name has a comma:
    'cocofl,"cocofl, drive"'; empty: all.""",
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["1"], "Seeds, comma separated.", allow_override=True
)

_RATES = flags.DEFINE_list(
    "rates",
    [],
    "Learning rates: each variant has another beside it, of the rate that did best.",
    allow_override=True,
)
_TUNING_SEEDS = flags.DEFINE_list(
    "tuning_seeds",
    ["101"],
    "Seeds that --rates are compared on, none of --seeds.",
    allow_override=True,
)

_ACCURACY = tasks.DEFAULT.measure
_COLUMNS = (
    ("accuracy", "{mean:.3f} ± {std:.3f}", "test_accuracy"),
    ("worst tier (mix)", "{mean:.3f}", "worst_tier_accuracy"),
    ("worst tier (own)", "{mean:.3f}", "worst_tier_test_accuracy"),
    ("spread (mix)", "{mean:.3f}", "tier_spread"),
    ("in the same time", "{mean:.3f}", "in_time"),
    ("late", "{mean:.3f} ± {std:.3f}", "late_accuracy"),
    ("late worst (mix)", "{mean:.3f} ± {std:.3f}", "late_worst_tier"),
    ("upload MB", "{mean:.1f}", "upload_megabytes"),
    ("clock s", "{mean:.4g}", "clock_seconds"),
    ("arrived", "{mean:.2f}", "arrived"),
)


def folder(workdir: pathlib.Path, setting: str, name: str, seed: int) -> pathlib.Path:
    """Gives the folder of a run, below one for its setting and its variant."""

    def plain(text: str) -> str:
        return "".join(c if c.isalnum() else "_" for c in text)

    return workdir / plain(setting) / plain(name) / f"seed_{seed}"


def _arrived(records: list[simulation.Record], wanted: int) -> float:
    """Gives the share of the wanted updates that entered the state."""
    return sum(r["participants"] for r in records) / (wanted * len(records))


def run(
    study: studies.Study,
    base: configs.Config,
    seeds: list[int],
    workdir: pathlib.Path,
    cache: str = "",
    hooks: simulation.Hooks | None = None,
) -> Results:
    """Runs every variant of every setting with every seed.

    Args:
      study: what to run.
      base: the fields that the study leaves alone.
      seeds: of the experiments.
      workdir: gets a run folder for each.
      cache: folder that keeps decoded data; empty: none.
      hooks: what wants to hear of the runs.

    Returns:
      setting -> variant -> seeds -> records.
    """

    def some(setting: str, name: str, fields: studies.Fields, seeds: Sequence[int]):
        """Runs a variant with some seeds at once."""
        where = [folder(workdir, setting, name, seed) for seed in seeds]
        ready = []
        for seed, path in zip(seeds, where, strict=True):
            config = configs.replace(base, {**fields, "seed": seed})
            configs.check(config)
            ready.append(fljax.build(config, workdir=path, cache=cache))
        told: Any = {"hooks": hooks, "label": f"{setting}: {name}"}
        told["tensorboard"] = False
        if len(seeds) == 1:
            return [fljax.run(ready[0], where[0], **told).records]
        return [one.records for one in fljax.run_together(ready, where, **told)]

    batches = [seeds] if _TOGETHER.value else [[seed] for seed in seeds]
    result: Results = {}
    for setting, variants in study.items():
        runs: dict[str, list[list[simulation.Record]]] = {name: [] for name in variants}
        for batch in batches:
            for name, fields in variants.items():
                runs[name] += some(setting, name, fields, batch)
        result[setting] = runs
    return result


def tuned(
    study: studies.Study,
    grid: tuning.Grid,
    train: Callable[[studies.Study, int], Results],
    measure: tasks.Measure,
) -> tuple[studies.Study, str]:
    """Puts beside each variant the one of the learning rate that does best.

    Args:
      study: the study.
      grid: rates and seeds that are tried.
      train: runs a study with one seed, as `run`.
      measure: whose mean over the late evaluations says how well a run did.

    Returns:
      The study, and a table of what the rates came to.
    """
    found = {}
    for setting, variants in study.items():

        def score(
            name: str, fields: studies.Fields, seed: int, at: str = setting
        ) -> float:
            try:
                (records,) = train({at: {name: fields}}, seed)[at][name]
            except simulation.DivergedError:
                return math.nan
            return summary.of_run(records, 0.0, measure)[summary.late_key(measure)]

        found[setting] = tuning.tune(variants, grid, score)
    wider = {s: tuning.beside(v, found[s], grid.usual) for s, v in study.items()}
    return wider, tuning.table(found, grid.rates)


def _in_time(
    records: list[simulation.Record], seconds: float, measure: tasks.Measure
) -> float:
    """Gives the last evaluation before the devices' clock says so much; NaN: none."""
    values = [
        record[measure.key]
        for record in records
        if measure.key in record
        and "rollback" not in record
        and record["clock_seconds"] <= seconds
    ]
    return values[-1] if values else float("nan")


def summarize(
    result, wanted: int, target: float = 0.0, measure: tasks.Measure = _ACCURACY
) -> dict[str, dict[str, Any]]:
    """Computes the figures of every setting and variant, as `summary.summarize`.

    Beside them the share of the updates that arrived, and where each was when the
    first of the setting's runs was through: at the same time of the devices' clock.
    """
    figures: dict[str, dict[str, Any]] = {}
    for setting, runs in result.items():
        figures[setting] = summary.summarize(runs, target, measure)
        ends = [seed[-1]["clock_seconds"] for seeds in runs.values() for seed in seeds]
        for name, seeds in runs.items():
            shares = [_arrived(records, wanted) for records in seeds]
            then = [_in_time(records, min(ends), measure) for records in seeds]
            figures[setting][name]["arrived"] = summary.over_seeds(shares)
            figures[setting][name]["in_time"] = summary.over_seeds(then)
    return figures


def table(
    figures_by_setting: Mapping[str, Mapping[str, Any]],
    measure: tasks.Measure = _ACCURACY,
) -> str:
    """Lays a summary out as Markdown."""
    names = [
        (setting if index == 0 else "", name)
        for setting, variants in figures_by_setting.items()
        for index, name in enumerate(variants)
    ]
    figures = [of for each in figures_by_setting.values() for of in each.values()]
    columns = summary.columns(_COLUMNS, measure)
    cells = summary.rows(columns, figures)
    names.insert(0, ("setting", "variant"))
    rows = [(*name, *row) for name, row in zip(names, cells, strict=True)]
    return _with_legend(rows, summary.legend(columns, figures))


def _with_legend(rows: text_tables.Rows, legend: Sequence[str]) -> str:
    """Lays out a table of Markdown, a blank line and what its columns mean."""
    return "\n".join(
        [text_tables.markdown(rows), "", *(f"- {of}" for of in legend), ""]
    )


Differences = dict[str, dict[str, dict[str, Any]]]  # setting -> variant -> figure


def differences(result: Results, against: str, measure: tasks.Measure) -> Differences:
    """Subtracts a variant from the others of each setting that has it, seed by seed."""
    return {
        setting: paired.differences(runs, against, measure)
        for setting, runs in result.items()
        if against in runs
    }


def _ahead(found: Differences, against: str, measure: tasks.Measure) -> str:
    """Lays differences out as Markdown."""
    rows: list[list[str]] = []
    for setting, of in found.items():
        titles, *cells = paired.rows(of, measure)
        rows = rows or [["setting", *titles]]
        rows += [["" if i else setting, *row] for i, row in enumerate(cells)]
    return _with_legend(rows, paired.legend(against))


def _grid(
    base: configs.Config, seeds: list[int], measure: tasks.Measure
) -> tuning.Grid:
    """Reads the learning rates to try."""
    over = summary.numbers("tuning_seeds", _TUNING_SEEDS.value)
    if shared := sorted({*over} & {*seeds}):
        raise ValueError(
            f"--tuning_seeds: expected none of --seeds, which would be judged by what "
            f"they were chosen for, got {', '.join(map(str, shared))} in both"
        )
    try:
        rates = sorted({bounds.read(float, text) for text in _RATES.value})
        for rate in rates:
            configs.check(configs.replace(base, {"lr": rate}))
    except ValueError as error:
        raise ValueError(
            f"--rates: expected learning rates such as 0.03,0.1,0.3, got "
            f"{','.join(_RATES.value)!r} ({error})"
        ) from error
    return tuning.Grid(tuple(rates), tuple(over), base.lr, measure.more)


def _chosen() -> studies.Study:
    """Gives the settings and variants of the study that are wanted."""
    if _STUDY.value not in studies.STUDIES:
        raise configs.unknown("study", _STUDY.value, studies.STUDIES)
    every = studies.STUDIES[_STUDY.value]
    study = {s: of for s, of in every.items() if _ONLY.value in s}
    if not study:
        raise ValueError(
            f"--only: expected part of a setting's name ({'; '.join(every)}), got "
            f"{_ONLY.value!r}"
        )
    names = list(dict.fromkeys(name for of in study.values() for name in of))
    wanted = _VARIANTS.value or names
    for name in wanted:
        if name not in names:
            raise configs.unknown("variants", name, names)
    if _AGAINST.value and _AGAINST.value not in wanted:
        raise configs.unknown("against", _AGAINST.value, wanted)
    some = {s: {n: f for n, f in of.items() if n in wanted} for s, of in study.items()}
    return {setting: of for setting, of in some.items() if of}


def _main() -> None:
    study = _chosen()
    seeds = summary.numbers("seeds", _SEEDS.value)
    base = config_flags.from_flags(flags.FLAGS, seed=seeds[0])
    measure = config_flags.reached(_TARGET.value, base)
    workdir = main.folder(f"runs/{_STUDY.value}")
    grid = _grid(base, seeds, measure)
    with main.hooks() as hooks:

        def train(some: studies.Study, over: Sequence[int]) -> Results:
            return run(some, base, list(over), workdir, main.data_cache(), hooks)

        rates = ""
        if grid.rates:
            study, rates = tuned(study, grid, lambda some, s: train(some, [s]), measure)
        result = train(study, seeds)
    if not main.is_first():
        return
    if rates:
        durable.replace(workdir / "rates.md", rates.encode())
    wanted = base.clock.buffer or base.clients_per_round
    figures = summarize(result, wanted, _TARGET.value, measure)
    robust = _STUDY.value == "robust"  # which has a table and a picture of its own
    text = (robustness.table if robust else table)(figures, measure)
    content: dict[str, Any] = {"settings": figures, "seeds": seeds}
    if against := _AGAINST.value:
        found = differences(result, against, measure)
        content["differences"] = {"against": against, "settings": found}
        text += "\n" + _ahead(found, against, measure)
    durable.replace(workdir / "table.md", text.encode())
    durable.replace(workdir / "summary.json", writers.to_json(content))
    draw = robustness.picture if robust else plots.settings
    draw(result, workdir / "curves.png", measure)
    folders = [
        folder(workdir, setting, name, seed)
        for setting, variants in study.items()
        for name in variants
        for seed in seeds
    ]
    page.write(folders, workdir / "report.html", as_flags.ran(sys.argv))
    print(text)
    files = ("report.html", "table.md", "summary.json", "curves.png")
    print(f"wrote {', '.join(str(workdir / name) for name in files)}")


if __name__ == "__main__":
    main.run(_main)
