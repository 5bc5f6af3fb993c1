"""The loss of a network with exits: that of each, and what they learn from each other.

DepthFL (Kim et al., ICLR 2023, eq. 1 and 2): the sum over exits i of the task's loss,
plus l times the mean over the others j of KL(exit j || exit i), through which no
gradient goes to j.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.tasks import base


def loss(
    task: base.Task,
    logits: tuple[types.Array, ...],
    labels: types.Array,
    mask: types.Array,
    pull: types.Array | None = None,
) -> types.Array:
    """Averages the loss over the examples of a mask.

    Args:
      task: what labels mean.
      logits: of each exit, [B, C] float32.
      labels: [B, ...].
      mask: [B] 1 for examples, 0 for padding.
      pull: l, weight of what exits learn from each other, []; None: nothing.

    Returns:
      [].
    """
    total = sum((task.loss(each, labels, mask) for each in logits), jnp.zeros(()))
    if pull is None or len(logits) == 1:
        return total
    apart = [
        base.mean(divergence(lax.stop_gradient(other), mine), mask)
        for mine, other in itertools.permutations(logits, 2)
    ]
    return total + pull * sum(apart) / (len(logits) - 1)


def divergence(wanted: types.Array, given: types.Array) -> types.Array:
    """Gives KL(softmax(wanted) || softmax(given)) of logits [B, C], [B]."""
    wanted, given = (jax.nn.log_softmax(x) for x in (wanted, given))
    return jnp.sum(jnp.exp(wanted) * (wanted - given), axis=-1)
