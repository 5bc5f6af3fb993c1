"""Regression: numbers, each with a squared error."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fljax import types
from fljax.data import labels as kinds
from fljax.tasks import base


class Scores(NamedTuple):
    """Sums over examples, O outputs.

    Attributes:
      squares: [O] squared errors.
      sizes: [O] absolute errors.
      labels: [O] of the labels themselves.
      powers: [O] of their squares.
      total: [] number of examples.
    """

    squares: types.Array
    sizes: types.Array
    labels: types.Array
    powers: types.Array
    total: types.Array


@dataclasses.dataclass(frozen=True)
class Regression(base.Task):
    """Labels are numbers [N] or [N, O]; the loss is the mean of squared errors.

    A record has test_loss, rmse (its root), mae (mean of absolute errors) and r2: the
    share of the labels' variance that is explained, 1 - sum of squared errors / sum of
    squared distances from the test set's mean, averaged over outputs. Sums are float32:
    where the mean is a hundred times the deviation, r2 is good to a percent or so.
    """

    measure = base.Measure("rmse", "rmse", more=False, share=False)

    def loss(self, outputs, labels, mask) -> types.Array:
        """Averages squared errors over outputs and examples."""
        squares = jnp.square(outputs - labels.reshape(outputs.shape))
        return base.mean(jnp.mean(squares, axis=-1), mask)

    def scores(self, outputs, labels, mask) -> Scores:
        """Sums errors and labels up, by output."""
        labels = labels.reshape(outputs.shape)
        errors = outputs - labels
        return Scores(
            squares=base.total(jnp.square(errors), mask),
            sizes=base.total(jnp.abs(errors), mask),
            labels=base.total(labels, mask),
            powers=base.total(jnp.square(labels), mask),
            total=jnp.sum(mask),
        )

    def record(self, sums: Scores) -> dict[str, Any]:
        """Gives mean squared error, its root, mean absolute error and r2."""
        squares, sizes, labels, powers = (np.asarray(x, np.float64) for x in sums[:-1])
        total = float(sums.total)
        loss = float(np.mean(squares)) / total
        return {
            "test_loss": loss,
            "rmse": loss**0.5,
            "mae": float(np.mean(sizes)) / total,
            "r2": _explained(squares, powers - labels**2 / total),
        }

    def check(self, name, data) -> types.Dataset:
        """Checks that labels are finite numbers."""
        return kinds.numbers(name, data)


def _explained(squares: np.ndarray, distances: np.ndarray) -> float | None:
    """Averages 1 - squares / distances over outputs; None where no label differs."""
    differs = distances > 0
    if not differs.any():
        return None
    return float(np.mean(1 - squares[differs] / distances[differs]))
