"""Learning rates of a study's variants: the best of a few, on seeds of their own.

What a method was published with may suit other data than the study's. Beside it stands
the method with the rate that did best on seeds that the comparison does not use.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments import studies
from fljax.experiment.comparing import text_tables

Score = Callable[[str, studies.Fields, int], float]


class Grid(NamedTuple):
    """What is tried.

    Attributes:
      rates: learning rates.
      seeds: none of the comparison's.
      usual: the rate of variants that name none.
      more: whether a higher score is better.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    usual: float
    more: bool = True


class Tuning(NamedTuple):
    """What came of one variant.

    Attributes:
      scores: mean over the seeds of each rate; NaN: one of them diverged.
      best: the rate of the best, the lower of equal ones; None: all diverged.
    """

    scores: Mapping[float, float]
    best: float | None


def tune(
    variants: Mapping[str, studies.Fields], grid: Grid, score: Score
) -> dict[str, Tuning]:
    """Finds the learning rate that does best for each variant of a setting.

    Args:
      variants: name -> fields of the configuration.
      grid: what is tried.
      score: (name of a run, fields, seed) -> how well it did; NaN: it diverged.

    Returns:
      name -> what came of it.
    """
    found, sign = {}, 1 if grid.more else -1
    for name, fields in variants.items():
        scores = {
            rate: statistics.fmean(
                score(f"{name}, lr {rate:g}", {**fields, "lr": rate}, seed)
                for seed in grid.seeds
            )
            for rate in sorted(grid.rates)
        }
        sound = {rate: sign * s for rate, s in scores.items() if not math.isnan(s)}
        best = max(sound, key=sound.__getitem__) if sound else None
        found[name] = Tuning(scores, best)
    return found


def beside(
    variants: Mapping[str, studies.Fields], found: Mapping[str, Tuning], usual: float
) -> dict[str, studies.Fields]:
    """Puts beside each variant the one of its best rate, where that is another.

    Args:
      variants: name -> fields.
      found: of `tune`.
      usual: as of `Grid`.

    Returns:
      The variants, each followed by its tuned one.
    """
    result: dict[str, studies.Fields] = {}
    for name, fields in variants.items():
        result[name], best = fields, found[name].best
        if best is not None and best != fields.get("lr", usual):
            result[f"{name}, lr {best:g}"] = {**fields, "lr": best}
    return result


def table(found: Mapping[str, Mapping[str, Tuning]], rates: tuple[float, ...]) -> str:
    """Lays out what came of all settings as Markdown, a row a variant."""
    rows = [["setting", "variant", *(f"lr {rate:g}" for rate in rates), "best"]]
    for setting, variants in found.items():
        for name, tuning in variants.items():
            scores = [tuning.scores[rate] for rate in rates]
            cells = ["diverged" if math.isnan(s) else f"{s:.3f}" for s in scores]
            best = "none" if tuning.best is None else f"{tuning.best:g}"
            rows.append([setting, name, *cells, best])
    return text_tables.markdown(rows) + "\n"
