"""Compares algorithms on the same splits, devices and seeds.

    python -m experiments.compare --flagfile=experiments/presets/demo.flags

Prints a table; WORKDIR gets summary.json, curves.png and a run folder for each
algorithm and seed. Stop it anywhere, run the same command, and it goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import config as configs
from experiments import experiment, main, plots
from fljax import algorithms, simulation, writers

configs.define_flags(skip=("algorithm", "seed"))
_ALGORITHMS = flags.DEFINE_list(
    "algorithms",
    ["cocofl", "fedavg", "fedavg_drop", "centralized"],
    "Which to compare.",
)
_SEEDS = flags.DEFINE_list("seeds", ["11"], "Seeds to repeat with, comma separated.")
_CENTRALIZED_ROUNDS = flags.DEFINE_integer(
    "centralized_rounds",
    0,
    "Rounds of centralized, each of which passes over the data of all clients; 0: as "
    "--rounds.",
    lower_bound=0,
)
flags.set_default(main.WORKDIR, "runs/compare")

Runs = dict[str, list[list[simulation.Record]]]  # algorithm -> seed -> records

# Column title, format, key of the statistics.
_COLUMNS = (
    ("accuracy", "{mean:.4f} ± {std:.4f}", "test_accuracy"),
    ("worst tier", "{mean:.4f} ± {std:.4f}", "worst_tier_accuracy"),
    ("tier spread", "{mean:.4f}", "tier_spread"),
    ("upload MB", "{mean:.2f}", "upload_megabytes"),
    ("compute share", "{mean:.3f}", "compute_share"),
    ("seconds", "{mean:.1f}", "wall_seconds"),
)


def _seeds() -> list[int]:
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds: expected different whole numbers such as 10,11, got "
            f"{','.join(_SEEDS.value)!r}"
        )
    return seeds


def _names() -> list[str]:
    for name in _ALGORITHMS.value:
        if name not in algorithms.BY_NAME:
            raise configs.unknown("algorithms", name, algorithms.BY_NAME)
    if not _ALGORITHMS.value:
        raise ValueError("--algorithms: expected at least one name, got none")
    return list(dict.fromkeys(_ALGORITHMS.value))


def _config(name: str, seed: int) -> configs.Config:
    config = configs.from_flags(flags.FLAGS, algorithm=name, seed=seed)
    if name == "centralized" and _CENTRALIZED_ROUNDS.value:
        return dataclasses.replace(config, rounds=_CENTRALIZED_ROUNDS.value)
    return config


def _of_run(records: Sequence[simulation.Record]) -> dict[str, float]:
    """Takes the figures of one run: the last evaluation, the sums of all rounds."""
    last = simulation.final_evaluation(records)
    upload = sum(record["upload_bytes"] for record in records)
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "macro_f1": last["macro_f1"],
        "worst_tier_accuracy": last["worst_tier_accuracy"],
        "tier_spread": last["tier_spread"],
        "upload_bytes": upload,
        "upload_megabytes": upload / 1e6,
        "compute_share": float(np.mean([r["compute_share"] for r in records])),
        "wall_seconds": sum(record["wall_seconds"] for record in records),
    }


def summarise(runs: Mapping[str, Sequence[Sequence[simulation.Record]]]) -> dict:
    """Computes mean and spread over seeds of every figure of every algorithm.

    Args:
      runs: algorithm -> seeds -> records.

    Returns:
      {algorithm: {figure: {"mean": m, "std": s}}}, with the total upload_bytes a
      plain mean, and tier_accuracy by tier.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, seeds in runs.items():
        figures = [_of_run(records) for records in seeds]
        summary[name] = {
            key: {
                "mean": float(np.mean([f[key] for f in figures])),
                "std": float(np.std([f[key] for f in figures])),
            }
            for key in figures[0]
        }
        summary[name]["upload_bytes"] = summary[name]["upload_bytes"]["mean"]
        last = [
            simulation.final_evaluation(records)["tier_accuracy"] for records in seeds
        ]
        summary[name]["tier_accuracy"] = {
            tier: float(np.mean([tiers[tier] for tiers in last])) for tier in last[0]
        }
    return summary


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays the summary out as text."""
    rows = [["algorithm", *(title for title, _, _ in _COLUMNS)]]
    for name, figures in summary.items():
        rows.append([name, *(form.format(**figures[key]) for _, form, key in _COLUMNS)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _main() -> None:
    names, seeds = _names(), _seeds()
    workdir = pathlib.Path(main.WORKDIR.value)
    runs: Runs = {name: [] for name in names}
    by_seed = {seed: {name: _config(name, seed) for name in names} for seed in seeds}
    for seed, settings in by_seed.items():
        ready = experiment.build(
            settings[names[0]],
            workdir=str(workdir / names[0] / f"seed_{seed}"),
            cache=main.DATA_CACHE.value,
        )
        for name in names:  # what a device cannot do is known before any training
            experiment.algorithm(settings[name], ready)
        for name in names:
            folder = workdir / name / f"seed_{seed}"
            label = f"{name} seed {seed}"
            records = experiment.run(
                settings[name],
                ready,
                str(folder),
                label=label,
                alert_command=main.ALERT_COMMAND.value,
            )
            runs[name].append(records)
    if not main.is_first():
        return
    summary = summarise(runs)
    for figures in summary.values():
        figures["seeds"] = seeds
    writers.replace_file(
        workdir / "summary.json",
        json.dumps({"algorithms": summary}, indent=2).encode() + b"\n",
    )
    plots.curves(runs, workdir / "curves.png")
    print(table(summary))
    print(f"wrote {workdir}{os.sep}summary.json and {workdir}{os.sep}curves.png")


if __name__ == "__main__":
    main.run(_main)
