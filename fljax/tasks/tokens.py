"""Language modeling: the token that comes next, at every position.

The loss is the mean over the positions whose label is no padding, as in perplexity
(Jelinek et al., JASA 1977): two texts of 10 and 30 tokens count 1 to 3.
"""

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
    """Sums over positions.

    Attributes:
      correct: [] positions whose token was predicted.
      total: [] positions that are no padding.
      loss: [] sum of their cross-entropy.
    """

    correct: types.Array
    total: types.Array
    loss: types.Array


def _counted(labels, mask) -> types.Array:
    """Tells which positions count, [B, T]: not those of padding."""
    return mask[:, None] * (labels != 0)


@dataclasses.dataclass(frozen=True)
class Tokens(base.Task):
    """Labels are token ids [N, T], the inputs moved by one; 0 is padding.

    A record has test_loss, perplexity (its exponential) and token_accuracy.
    """

    measure = base.Measure("token_accuracy", "token accuracy")
    positions = True

    def loss(self, outputs, labels, mask) -> types.Array:
        """Averages the cross-entropy over the positions that are no padding."""
        rows = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        losses = optax.softmax_cross_entropy(outputs, rows)
        return base.mean(losses, _counted(labels, mask))

    def scores(self, outputs, labels, mask) -> Scores:
        """Counts positions."""
        counted = _counted(labels, mask)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        right = jnp.argmax(outputs, axis=-1) == labels
        return Scores(
            correct=jnp.sum(right * counted),
            total=jnp.sum(counted),
            loss=jnp.sum(jnp.where(counted > 0, losses, 0.0)),
        )

    def record(self, sums: Scores) -> dict[str, Any]:
        """Gives the mean loss of a token, perplexity and accuracy."""
        loss = base.ratio(sums.loss, sums.total)
        with np.errstate(over="ignore"):  # of a loss above 709
            perplexity = float(np.exp(loss))
        return {
            "test_loss": loss,
            "perplexity": perplexity,
            "token_accuracy": base.ratio(sums.correct, sums.total),
        }

    def check(self, name, data) -> types.Dataset:
        """Checks that each position has a token id as its label."""
        return kinds.token_ids(name, data)

    def noise(self, key, shape) -> types.Array:
        """Draws tokens that are no padding, where there are others."""
        return jax.random.randint(key, shape[:-1], min(1, shape[-1] - 1), shape[-1])
