"""Several labels: each of C may hold or not, independently of the others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax import types
from fljax.data import labels as kinds
from fljax.tasks import base


class Scores(NamedTuple):
    """Sums over examples.

    Attributes:
      right: [C] examples that have the label and were predicted to have it.
      there: [C] examples that have it.
      predicted: [C] examples that were predicted to have it.
      exact: [] examples of which all labels were predicted right.
      loss: [] sum of the losses.
      total: [] number of examples.
    """

    right: types.Array
    there: types.Array
    predicted: types.Array
    exact: types.Array
    loss: types.Array
    total: types.Array


@dataclasses.dataclass(frozen=True)
class MultiLabel(base.Task):
    """Labels are rows of 0 and 1 [N, C]; the loss is a sigmoid's cross-entropy.

    It is the mean over labels. A record has test_loss, macro_f1 (the mean of the
    labels' F1), micro_f1 (of all labels counted together) and subset_accuracy (the
    share of examples of which all labels are right).

    Attributes:
      threshold: a label is predicted whose probability is above it.
    """

    threshold: float = 0.5

    measure = base.Measure("macro_f1", "macro F1")

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"expected threshold between 0 and 1, got {self.threshold:g}"
            )

    def loss(self, outputs, labels, mask) -> types.Array:
        """Averages the cross-entropy over labels and examples."""
        return base.mean(_losses(outputs, labels), mask)

    def scores(self, outputs, labels, mask) -> Scores:
        """Counts by label what is there, predicted, and both."""
        labels = labels.astype(jnp.float32)
        limit = math.log(self.threshold / (1 - self.threshold))  # of the logit
        chosen = (outputs > limit).astype(jnp.float32)
        return Scores(
            right=base.total(labels * chosen, mask),
            there=base.total(labels, mask),
            predicted=base.total(chosen, mask),
            exact=base.total(jnp.all(labels == chosen, axis=-1) * 1.0, mask),
            loss=base.total(_losses(outputs, labels), mask),
            total=jnp.sum(mask),
        )

    def record(self, sums: Scores) -> dict[str, Any]:
        """Gives the mean loss, both F1 and the share of exact examples."""
        both = (sums.there + sums.predicted).sum()
        return {
            "test_loss": base.ratio(sums.loss, sums.total),
            "macro_f1": base.macro_f1(sums.right, sums.there, sums.predicted),
            "micro_f1": base.ratio(2 * sums.right, both),
            "subset_accuracy": base.ratio(sums.exact, sums.total),
        }

    def check(self, name, data) -> types.Dataset:
        """Checks that labels are rows of 0 and 1."""
        return kinds.multi_hot(name, data)

    def noise(self, key, shape) -> types.Array:
        """Draws labels, each there or not."""
        return jax.random.bernoulli(key, shape=shape).astype(jnp.int32)


def _losses(logits, labels) -> types.Array:
    rows = labels.astype(logits.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, rows), axis=-1)
