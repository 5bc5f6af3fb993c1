"""Compares algorithms on the same splits, devices and seeds.

    python -m experiments.compare --flagfile=experiments/presets/demo.flags

Prints a table; WORKDIR gets report.html, summary.json, curves.png and a run folder for
each algorithm and seed. Stop it anywhere, run the same command, and it goes on.

Columns of the table:
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from absl import flags

from experiments import define, main
from experiments import flags as config_flags
from fljax.experiment import as_flags
from fljax.experiment import config as configs
from fljax.experiment.comparing import comparison, paired, summary, text_tables
from fljax.experiment.pictures import plots
from fljax.experiment.report import page
from fljax.runs import writers
from fljax.runtime import durable

config_flags.define_flags(skip=("algorithm", "seed"))
_TARGET = config_flags.target()
_AGAINST = config_flags.against()
_TOGETHER = config_flags.together()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_ALGORITHMS = flags.DEFINE_list(
    "algorithms",
    ["cocofl", "fedavg", "fedavg_drop", "centralized"],
    "Which to compare; NAME:POLICY for a policy other than --policy, as in "
    "cocofl:balanced.",
)
_SEEDS = flags.DEFINE_list("seeds", ["11"], "Seeds to repeat with, comma separated.")
_CENTRALIZED_ROUNDS = define.number(
    "centralized_rounds",
    0,
    "Rounds of centralized, each of which passes over the data of all clients; 0: as "
    "--rounds.",
    least=0,
)

__doc__ = "\n".join([__doc__ or "", *summary.legend(comparison.COLUMNS)])  # for --help


def _names() -> list[str]:
    for name in _ALGORITHMS.value:
        configs.algorithm_fields(name)  # raises for what there is not
    if not _ALGORITHMS.value:
        raise ValueError("--algorithms: expected at least one name, got none")
    return list(dict.fromkeys(_ALGORITHMS.value))


def _config(name: str, seed: int) -> configs.Config:
    fields = configs.algorithm_fields(name)
    config = config_flags.from_flags(flags.FLAGS, **fields, seed=seed)
    if name == "centralized" and _CENTRALIZED_ROUNDS.value:
        return dataclasses.replace(config, rounds=_CENTRALIZED_ROUNDS.value)
    return config


def _main() -> None:
    names, seeds = _names(), summary.numbers("seeds", _SEEDS.value)
    workdir = main.folder("runs/compare")
    if _AGAINST.value and _AGAINST.value not in names:
        raise configs.unknown("against", _AGAINST.value, names)
    what = {name: _config(name, seeds[0]) for name in names}
    measure = config_flags.reached(_TARGET.value, what[names[0]])
    runs: dict[str, list] = {name: [] for name in names}
    with main.hooks() as hooks:
        together, cache = _TOGETHER.value, main.data_cache()
        done = comparison.each(
            what, seeds, workdir, hooks=hooks, cache=cache, together=together
        )
        for name, _, result in done:  # what is behind the records is let go
            runs[name].append(result.records)
    if not main.is_first():
        return
    figures = summary.summarize(runs, _TARGET.value, measure)
    content: dict[str, Any] = {
        "algorithms": {name: {**of, "seeds": seeds} for name, of in figures.items()}
    }
    against = _AGAINST.value
    if against:
        found = paired.differences(runs, against, measure)
        content["differences"] = {"against": against, "algorithms": found}
    durable.replace(workdir / "summary.json", writers.to_json(content))
    plots.curves(runs, workdir / "curves.png", measure)
    folders = [comparison.folder(workdir, n, s) for n in names for s in seeds]
    page.write(folders, workdir / "report.html", as_flags.ran(sys.argv))
    columns = summary.columns(comparison.COLUMNS, measure)
    print(comparison.table(figures, measure))
    print("\n".join(summary.legend(columns, list(figures.values()))))
    if against:
        print("", text_tables.aligned(paired.rows(found, measure)), sep="\n")
        print("\n".join(paired.legend(against)))
    files = ("report.html", "summary.json", "curves.png")
    print(f"wrote {', '.join(str(workdir / name) for name in files)}")


if __name__ == "__main__":
    main.run(_main)
