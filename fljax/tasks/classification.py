"""Classification: each example is of one class."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fljax import types
from fljax.data import labels as kinds
from fljax.tasks import base


class Scores(NamedTuple):
    """Sums over examples.

    Attributes:
      correct: [C] examples of each class that were classified right.
      total: [C] examples of each class.
      loss: [] sum of the cross-entropy.
      predicted: [C] examples that were classified as each class.
    """

    correct: types.Array
    total: types.Array
    loss: types.Array
    predicted: types.Array


def cross_entropy(logits, labels, mask) -> types.Array:
    """Averages the cross-entropy of logits [B, C] over the rows of the mask [B]."""
    # With one-hot rows the gradient is a difference; with integers a scatter.
    rows = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return base.mean(optax.softmax_cross_entropy(logits, rows), mask)


@dataclasses.dataclass(frozen=True)
class Classification(base.Task):
    """Labels are class numbers [N]; the loss is the cross-entropy of a softmax.

    A record has test_accuracy, test_loss, macro_f1 and class_accuracy, and what the
    classes say of the tiers.
    """

    measure = base.Measure("test_accuracy", "accuracy")
    classes = True

    def loss(self, outputs, labels, mask) -> types.Array:
        """Averages the cross-entropy."""
        return cross_entropy(outputs, labels, mask)

    def scores(self, outputs, labels, mask) -> Scores:
        """Counts examples by class and by what they were classified as."""
        number = outputs.shape[-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        classes = jax.nn.one_hot(labels, number) * mask[:, None]
        chosen = jnp.argmax(outputs, axis=-1)
        right = (chosen == labels).astype(jnp.float32)
        return Scores(
            correct=right @ classes,
            total=jnp.sum(classes, axis=0),
            # Where all rows are padding a norm has nothing to go by, and may overflow.
            loss=jnp.sum(jnp.where(mask > 0, losses, 0.0)),
            predicted=mask @ jax.nn.one_hot(chosen, number),
        )

    def record(self, sums: Scores) -> dict[str, Any]:
        """Gives accuracy, mean loss, macro-F1 and the accuracy of each class [C]."""
        total = float(np.sum(sums.total))
        return {
            "test_accuracy": float(np.sum(sums.correct)) / total,
            "test_loss": float(sums.loss) / total,
            "macro_f1": base.macro_f1(sums.correct, sums.total, sums.predicted),
            "class_accuracy": [
                None if np.isnan(a) else float(a) for a in per_class(sums)
            ],
        }

    def check(self, name, data) -> types.Dataset:
        """Checks that labels are class numbers from 0."""
        return kinds.class_numbers(name, data)

    def noise(self, key, shape) -> types.Array:
        """Draws classes."""
        return jax.random.randint(key, shape[:-1], 0, shape[-1])


def per_class(sums: Scores) -> np.ndarray:
    """Gives the accuracy of each class [C]; NaN where the test set has none of it."""
    correct, total = np.asarray(sums.correct), np.asarray(sums.total)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)
