"""Figures of runs: what a comparison and a study say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import define
from fljax import simulation

TARGET = define.number(
    "target_accuracy",
    0.0,
    "Also say after how many rounds and seconds on the clock it was reached; 0: not.",
    least=0,
    most=1,
)

Column = tuple[str, str, str]  # of tables: title, form, figure

# Where the power of devices is known or a target accuracy is given.
_OPTIONAL: tuple[Column, ...] = (
    ("joules", "{mean:.4g}", "joules"),
    ("rounds to", "{mean:.1f}", "rounds_to_target"),
    ("seconds to", "{mean:.4g}", "seconds_to_target"),
)


def rows(
    columns: Sequence[Column], variants: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Lays figures out as rows of cells, the titles first.

    Args:
      columns: of the table; the optional ones that any variant has come behind them.
      variants: of each its figures, as `summarise` gives them.

    Returns:
      A row of titles and one for each variant; a figure that it has not is empty.
    """
    shown = [
        *columns,
        *(c for c in _OPTIONAL if any(c[2] in figures for figures in variants)),
    ]
    return [
        [title for title, _, _ in shown],
        *(
            [_cell(form, of[key]) if key in of else "" for _, form, key in shown]
            for of in variants
        ),
    ]


def _cell(form: str, figure: Mapping[str, float]) -> str:
    """Writes a figure; of one seed there is no spread to tell."""
    if "std" not in figure:
        form = form.partition(" ±")[0]
    return form.format(**figure)


def numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """Reads a flag of different whole numbers, 0 or more.

    Raises:
      ValueError: it is none.
    """
    try:
        seeds = [int(text) for text in texts]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--{flag}: expected different whole numbers such as 10,11, got "
            f"{','.join(texts)!r}"
        )
    return seeds


def _reached(records: Sequence[simulation.Record], target: float, key: str) -> float:
    """Gives rounds or clock seconds until an accuracy was reached; NaN: never."""
    for record in records:
        stands = "rollback" not in record
        if stands and record.get("test_accuracy", 0.0) >= target:
            return float(record[key]) + (key == "round")
    return float("nan")


def _of_run(
    records: Sequence[simulation.Record], target: float = 0.0
) -> dict[str, float]:
    """Takes the figures of one run: the last evaluation, the sums of all rounds.

    What begins with late is the mean over the evaluations after two thirds of the
    rounds and later, since one evaluation swings with who took part in its round.
    """
    last = simulation.final_evaluation(records)
    begin = records[-1]["round"] - len(records) // 3
    late = [
        record
        for record in records
        if "test_accuracy" in record
        and "rollback" not in record
        and record["round"] >= begin
    ] or [last]
    upload = sum(record["upload_bytes"] for record in records)
    figures = {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "macro_f1": last["macro_f1"],
        "worst_tier_accuracy": last["worst_tier_accuracy"],
        "tier_spread": last["tier_spread"],
        "late_accuracy": float(np.mean([r["test_accuracy"] for r in late])),
        "late_worst_tier": float(np.mean([r["worst_tier_accuracy"] for r in late])),
        "upload_bytes": upload,
        "upload_megabytes": upload / 1e6,
        "compute_share": float(np.mean([r["compute_share"] for r in records])),
        "clock_seconds": records[-1]["clock_seconds"],
        "wall_seconds": sum(record["wall_seconds"] for record in records),
    }
    if any("joules" in record for record in records):
        figures["joules"] = sum(record.get("joules", 0.0) for record in records)
    if target:
        figures["rounds_to_target"] = _reached(records, target, "round")
        seconds = _reached(records, target, "clock_seconds")
        figures["seconds_to_target"] = seconds
    return figures


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    mean = {"mean": float(np.mean(values))}
    return mean | {"std": float(np.std(values))} if len(values) > 1 else mean


def summarise(
    runs: Mapping[str, Sequence[Sequence[simulation.Record]]], target: float = 0.0
) -> dict:
    """Computes mean and spread over seeds of every figure of every algorithm.

    Args:
      runs: algorithm -> seeds -> records.
      target: accuracy whose rounds and hours are wanted, too; 0: none.

    Returns:
      {algorithm: {figure: {"mean": m, "std": s}}}, without "std" where there is one
      seed; the total upload_bytes a plain mean, and tier_accuracy by tier.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, seeds in runs.items():
        figures = [_of_run(records, target) for records in seeds]
        summary[name] = {
            key: _over_seeds([f[key] for f in figures])
            for key in figures[0]
            if all(key in f for f in figures)
        }
        summary[name]["upload_bytes"] = summary[name]["upload_bytes"]["mean"]
        last = [
            simulation.final_evaluation(records)["tier_accuracy"] for records in seeds
        ]
        summary[name]["tier_accuracy"] = {
            tier: float(np.mean([tiers[tier] for tiers in last])) for tier in last[0]
        }
    return summary
