"""Paired differences: how far runs are ahead of others of the same seeds.

Runs of a seed share splits, devices and draws, so what a seed makes easy or hard for
all of them is not in a difference, as it is in the spread of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fljax import bounds, tasks
from fljax.experiment.comparing import summary
from fljax.runs import simulation

Runs = Mapping[str, Sequence[Sequence[simulation.Record]]]

_COLUMNS: tuple[summary.Column, ...] = (
    ("accuracy", "{mean:+.3f}", "test_accuracy"),
    ("late", "{mean:+.3f}", "late_accuracy"),
    ("late worst (mix)", "{mean:+.3f}", "late_worst_tier"),
)


def differences(
    runs: Runs, against: str, measure: tasks.Measure = tasks.DEFAULT.measure
) -> dict[str, dict[str, Any]]:
    """Subtracts the figures of one variant from those of all others, seed by seed.

    Args:
      runs: variant -> seeds, the same in the same order -> records.
      against: the variant that is subtracted.
      measure: of the task.

    Returns:
      {variant: {figure: mean, sample deviation and 95 % interval by Student's t of the
      differences, as `summary.over_seeds`}}, figures being those of `summary.of_run`.

    Raises:
      ValueError: there is no such variant, or others have more seeds or less.
    """
    if against not in runs:
        raise ValueError(
            f"expected one of {', '.join(runs)}, got {against!r}"
            f"{bounds.nearest(against, runs)}"
        )
    figures = {
        name: [summary.of_run(records, 0.0, measure) for records in seeds]
        for name, seeds in runs.items()
    }
    base = figures.pop(against)
    return {
        name: {
            key: summary.over_seeds(
                [a[key] - b[key] for a, b in zip(of, base, strict=True)]
            )
            for key in base[0]
            if all(key in figure for figure in (*of, *base))
        }
        for name, of in figures.items()
    }


def rows(
    found: Mapping[str, Mapping[str, Any]],
    measure: tasks.Measure = tasks.DEFAULT.measure,
) -> list[list[str]]:
    """Lays differences out as rows of cells, the titles first.

    Args:
      found: of `differences`.
      measure: of the task.

    Returns:
      A row of titles and one for each variant.
    """
    columns = summary.columns(_COLUMNS, measure)
    titles = ["less the same seed's", *(title for title, _, _ in columns)]
    return [
        titles,
        *(
            [name, *(_cell(form, of.get(key)) for _, form, key in columns)]
            for name, of in found.items()
        ),
    ]


def legend(against: str) -> list[str]:
    """Says what a table of differences from a variant means, a line each."""
    return [
        f"less the same seed's: each figure less that of {against}, mean over the "
        "seeds",
        "±: half of the 95 % interval of that mean, by Student's t",
        "*: the interval lies on one side of 0, as by chance one of twenty does where "
        "nothing differs",
    ]


def _cell(form: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    text = form.format(**figure)
    if "interval_95" not in figure:
        return text
    low, high = figure["interval_95"]
    mark = " *" if low > 0 or high < 0 else ""
    return f"{text} ± {(high - low) / 2:.3f}{mark}"
