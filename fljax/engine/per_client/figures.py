"""What the scores of clients come to: mean, worst tenth, spread, tiers.

Legend: E clients that are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fljax import tasks, types


def values(scores: types.Tree, task: tasks.Task) -> np.ndarray:
    """Gives the task's measure of each client, [E].

    Args:
      scores: [E, ...] sums of each client.
      task: what labels mean.
    """
    number = len(jax.tree.leaves(scores)[0])

    def one(place: int) -> float:
        sums = jax.tree.map(lambda x: np.asarray(x)[place], scores)
        return task.record(sums)[task.measure.key]

    return np.array([one(place) for place in range(number)], np.float64)


def summary(
    found: np.ndarray,
    counts: np.ndarray,
    tier: np.ndarray,
    names: Sequence[str],
    measure: tasks.Measure,
) -> dict[str, Any]:
    """Sums up what clients score, each on its own test examples.

    >>> found, one = np.array([0.5, 1.0]), np.zeros(2, int)
    >>> made = summary(found, np.array([3, 1]), one, ["all"], tasks.DEFAULT.measure)
    >>> made["mean"], made["by_samples"], made["worst_tenth"], made["spread"]
    (0.75, 0.625, 0.5, 0.25)

    Args:
      found: [E] the measure of each client.
      counts: [E] test examples of each.
      tier: [E] its tier.
      names: of the tiers.
      measure: whether more is better.

    Returns:
      mean, over clients; by_samples, weighted by their test examples; worst_tenth, the
      mean of the worst tenth of the clients, one at least; spread, the standard
      deviation over clients; by_tier, name -> mean, of those with clients here.
    """
    tenth = -(-len(found) // 10)
    ordered = np.sort(found) if measure.more else np.sort(found)[::-1]
    means = {
        name: float(found[tier == place].mean())
        for place, name in enumerate(names)
        if (tier == place).any()
    }
    return {
        "mean": float(found.mean()),
        "by_samples": float(np.average(found, weights=counts)),
        "worst_tenth": float(ordered[:tenth].mean()),
        "spread": float(found.std()),
        "by_tier": means,
    }


def fields(made: dict[str, Any], key: str) -> dict[str, Any]:
    """Names what `summary` makes as a record has it, for the key of a measure.

    >>> sorted(fields({"mean": 0.5, "spread": 0.1}, "test_accuracy"))
    ['client_test_accuracy', 'client_test_accuracy_spread']
    """
    return {
        f"client_{key}" + f"_{name}" * (name != "mean"): value
        for name, value in made.items()
    }
