"""Figures of runs: what a comparison and a study say of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from fljax import bounds, tasks
from fljax.runs import simulation

Column = tuple[str, str, str]  # of tables: title, form, figure

MEANINGS = {  # of the figures that tables show
    "test_accuracy": "share of the test examples that the global network gets right "
    "at the end",
    "worst_tier_accuracy": "lowest of the tiers' accuracies by class mix: accuracies "
    "of the classes in the whole test set, weighted by the classes of the tier's "
    "training data",
    "worst_tier_test_accuracy": "lowest of the tiers' accuracies on their own test "
    "examples: those of the tier's users, or where clients are no users of each class "
    "as large a share as the tier has in the training data",
    "tier_spread": "highest minus lowest of the tiers' accuracies by class mix",
    "late_accuracy": "mean accuracy over the evaluations in the last third of the "
    "rounds",
    "late_worst_tier": "mean of worst tier (mix) over the same",
    "upload_megabytes": "sent by all clients in all rounds, 1e6 bytes",
    "compute_share": "what a client of a round computes, in the mean, if training "
    "everything is 1",
    "clock_seconds": "time until the last round ends on the virtual clock of the "
    "devices",
    "wall_seconds": "that this machine took for the rounds, compilation included",
    "arrived": "updates that entered the state, of those that were wanted",
    "attack_success": "test examples of other classes that the backdoor of --attack "
    "makes its target, of all such; mean over the evaluations in the last third of the "
    "rounds",
    "joules": "that the devices spent on training in all rounds",
    "rounds_to_target": "rounds done when --target_accuracy was first reached",
    "seconds_to_target": "clock s when it was",
}

# Where the power of devices is known, a backdoor or a target accuracy is given.
_OPTIONAL: tuple[Column, ...] = (
    ("joules", "{mean:.4g}", "joules"),
    ("attack success", "{mean:.3f}", "attack_success"),
    ("rounds to", "{mean:.1f}", "rounds_to_target"),
    ("seconds to", "{mean:.4g}", "seconds_to_target"),
)


_OF_CLASSES = ("worst_tier_accuracy", "tier_spread", "late_worst_tier")


def columns(of_classes: Sequence[Column], measure: tasks.Measure) -> list[Column]:
    """Gives the columns of a table for a task.

    Args:
      of_classes: those of classification.
      measure: of the task.
    """
    if measure == tasks.DEFAULT.measure:
        return list(of_classes)
    own = {
        "test_accuracy": (measure.title, measure.key),
        "worst_tier_test_accuracy": ("worst tier (own)", f"worst_tier_{measure.key}"),
        "late_accuracy": ("late", late_key(measure)),
    }
    return [
        (own[key][0], form, own[key][1]) if key in own else (title, form, key)
        for title, form, key in of_classes
        if key not in _OF_CLASSES
    ]


def late_key(measure: tasks.Measure) -> str:
    """Names the figure of a measure over the last third of the rounds."""
    return f"late_{measure.key.removeprefix('test_')}"


def _meaning(key: str) -> str:
    """Says what a figure means, of any task."""
    if key in MEANINGS:
        return MEANINGS[key]
    if key.startswith("late_"):
        return f"mean of {key[5:]} over the evaluations in the last third of the rounds"
    if key.startswith("worst_tier_"):
        return f"worst of the tiers' {key[11:]} on their own test examples"
    return f"{key} of the global network at the end"


def rows(
    columns: Sequence[Column], variants: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Lays figures out as rows of cells, the titles first.

    Args:
      columns: of the table; the optional ones that any variant has come behind them.
      variants: of each its figures, as `summarize` gives them.

    Returns:
      A row of titles and one for each variant; a figure that it has not is empty.
    """
    shown = _shown(columns, variants)
    return [
        [title for title, _, _ in shown],
        *(
            [_cell(form, of[key]) if key in of else "" for _, form, key in shown]
            for of in variants
        ),
    ]


def legend(
    columns: Sequence[Column], variants: Sequence[Mapping[str, Any]] | None = None
) -> list[str]:
    """Says what the columns of a table mean, a line each.

    Args:
      columns: as of `rows`.
      variants: as of `rows`; None: the optional columns are there.
    """
    return [
        *(f"{title}: {_meaning(key)}" for title, _, key in _shown(columns, variants)),
        "±: sample standard deviation over the seeds",
    ]


def _shown(columns, variants) -> list[Column]:
    return [
        *columns,
        *(
            column
            for column in _OPTIONAL
            if variants is None or any(column[2] in figures for figures in variants)
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
        seeds = [bounds.read(int, text) for text in texts]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--{flag}: expected different whole numbers such as 10,11, got "
            f"{','.join(texts)!r}"
        )
    return seeds


def _reached(
    records: Sequence[simulation.Record],
    target: float,
    measure: tasks.Measure,
    key: str,
) -> float:
    """Gives rounds or clock seconds until a target was reached; NaN: never."""
    for record in records:
        value = record.get(measure.key)
        if value is None or "rollback" in record:
            continue
        if measure.reaches(value, target):
            return float(record[key]) + (key == "round")
    return float("nan")


def of_run(
    records: Sequence[simulation.Record],
    target: float = 0.0,
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> dict[str, float]:
    """Takes the figures of one run: the last evaluation, the sums of all rounds.

    What begins with late is the mean over the evaluations after two thirds of the
    rounds and later, since one evaluation swings with who took part in its round.
    """
    last = simulation.final_evaluation(records, measure)
    begin = records[-1]["round"] - len(records) // 3
    late = [
        record
        for record in records
        if measure.key in record
        and "rollback" not in record
        and record["round"] >= begin
    ] or [last]
    upload = sum(record["upload_bytes"] for record in records)
    worst = "worst_tier_accuracy"  # by class mix
    wanted = (
        *(measure.key, "test_loss", "macro_f1", worst, "tier_spread"),
        f"worst_tier_{measure.key}",
    )
    figures = {
        **{key: last[key] for key in wanted if key in last},
        late_key(measure): _mean(late, measure.key),
        **({"late_worst_tier": _mean(late, worst)} if worst in last else {}),
        "upload_bytes": upload,
        "upload_megabytes": upload / 1e6,
        "compute_share": _mean(records, "compute_share"),
        "clock_seconds": records[-1]["clock_seconds"],
        "wall_seconds": sum(record["wall_seconds"] for record in records),
    }
    if any("joules" in record for record in records):
        figures["joules"] = sum(record.get("joules", 0.0) for record in records)
    if all(record.get("attack_success") is not None for record in late):
        figures["attack_success"] = _mean(late, "attack_success")
    if target:
        reached = functools.partial(_reached, records, target, measure)
        figures["rounds_to_target"] = reached("round")
        figures["seconds_to_target"] = reached("clock_seconds")
    return figures


def _mean(records: Sequence[simulation.Record], key: str) -> float:
    return float(np.mean([record[key] for record in records]))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Gives mean, sample standard deviation and 95 % interval of the mean.

    Args:
      values: one of each seed; of a single one there is a mean alone.
    """
    mean, seeds = float(np.mean(values)), len(values)
    if seeds == 1:
        return {"mean": mean}
    std = float(np.std(values, ddof=1))
    half = float(special.stdtrit(seeds - 1, 0.975)) * std / seeds**0.5  # Student's t
    return {"mean": mean, "std": std, "interval_95": [mean - half, mean + half]}


def summarize(
    runs: Mapping[str, Sequence[Sequence[simulation.Record]]],
    target: float = 0.0,
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> dict:
    """Computes mean and deviation over seeds of every figure of every algorithm.

    Args:
      runs: algorithm -> seeds -> records.
      target: accuracy whose rounds and hours are wanted, too; 0: none.
      measure: of the task; a target is one of it.

    Returns:
      {algorithm: {figure: {"mean": m, "std": s, "interval_95": [low, high]}}}, s being
      the sample's, m alone where there is one seed; the total upload_bytes a plain
      mean, and tier_accuracy and tier_test_accuracy by tier.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, seeds in runs.items():
        figures = [of_run(records, target, measure) for records in seeds]
        summary[name] = {
            key: over_seeds([f[key] for f in figures])
            for key in figures[0]
            if all(key in f for f in figures)
        }
        summary[name]["upload_bytes"] = summary[name]["upload_bytes"]["mean"]
        last = [simulation.final_evaluation(records, measure) for records in seeds]
        for key in ("tier_accuracy", f"tier_{measure.key}"):
            if all(key in record for record in last):
                summary[name][key] = _by_tier([record[key] for record in last])
    return summary


def _by_tier(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages over the seeds that have the tier."""
    names = dict.fromkeys(name for tiers in seeds for name in tiers)
    return {n: float(np.mean([t[n] for t in seeds if n in t])) for n in names}
