"""Compares algorithms on the same splits, devices and seeds.

    python -m experiments.compare --flagfile=experiments/presets/demo.flags

Prints a table; WORKDIR gets summary.json, curves.png and a run folder for each
algorithm and seed. Stop it anywhere, run the same command, and it goes on.

Columns of the table:
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import define, main
from experiments import flags as config_flags
from fljax import experiment
from fljax.experiment import config as configs
from fljax.experiment import plots, summary
from fljax.runs import simulation, writers
from fljax.runtime import durable

config_flags.define_flags(skip=("algorithm", "seed"))
_TARGET = config_flags.target()
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
flags.set_default(main.WORKDIR, "runs/compare")

Runs = dict[str, list[list[simulation.Record]]]  # algorithm -> seed -> records

# Column title, format, key of the statistics.
_COLUMNS = (
    ("accuracy", "{mean:.4f} ± {std:.4f}", "test_accuracy"),
    ("worst tier (mix)", "{mean:.4f} ± {std:.4f}", "worst_tier_accuracy"),
    ("worst tier (own)", "{mean:.4f} ± {std:.4f}", "worst_tier_test_accuracy"),
    ("spread (mix)", "{mean:.4f}", "tier_spread"),
    ("upload MB", "{mean:.2f}", "upload_megabytes"),
    ("compute share", "{mean:.3f}", "compute_share"),
    ("clock s", "{mean:.4g}", "clock_seconds"),
    ("seconds", "{mean:.1f}", "wall_seconds"),
)
__doc__ = "\n".join([__doc__ or "", *summary.legend(_COLUMNS)])  # --help shows it


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


def folder_of(name: str) -> str:
    """Names the run folders of an algorithm: cocofl:balanced is in cocofl_balanced."""
    return name.replace(":", "_")


def table(figures_by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays the summary out as text."""
    names = ("algorithm", *figures_by_name)
    cells = summary.rows(_COLUMNS, list(figures_by_name.values()))
    rows = [[name, *row] for name, row in zip(names, cells, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _main() -> None:
    names, seeds = _names(), summary.numbers("seeds", _SEEDS.value)
    workdir = pathlib.Path(main.WORKDIR.value or "runs/compare")
    runs: Runs = {name: [] for name in names}
    by_seed = {seed: {name: _config(name, seed) for name in names} for seed in seeds}
    for seed, settings in by_seed.items():
        ready = experiment.build(
            settings[names[0]],
            workdir=str(workdir / folder_of(names[0]) / f"seed_{seed}"),
            cache=main.data_cache(),
        )
        each = {
            name: dataclasses.replace(ready, settings=settings[name]) for name in names
        }
        for name in names:  # what a device cannot do is known before any training
            experiment.algorithm(each[name])
        for name in names:
            folder = workdir / folder_of(name) / f"seed_{seed}"
            label = f"{name} seed {seed}"
            records = experiment.run(
                each[name],
                str(folder),
                label=label,
                alert_command=main.ALERT_COMMAND.value,
            )
            runs[name].append(records)
    if not main.is_first():
        return
    figures_by_name = summary.summarise(runs, _TARGET.value)
    for figures in figures_by_name.values():
        figures["seeds"] = seeds
    durable.replace(
        workdir / "summary.json",
        writers.to_json({"algorithms": figures_by_name}),
    )
    plots.curves(runs, workdir / "curves.png")
    print(table(figures_by_name))
    print("\n".join(summary.legend(_COLUMNS, list(figures_by_name.values()))))
    print(f"wrote {workdir}{os.sep}summary.json and {workdir}{os.sep}curves.png")


if __name__ == "__main__":
    main.run(_main)
