"""Evaluation of the global network: loss, accuracy, macro-F1, per class, per tier.

Batch norms use the statistics of the test batch (the reference's protocol, with the
order of the test set fixed by the seed here) or running statistics.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from fljax import client, layers, mesh, types
from fljax.models import network


class Scores(NamedTuple):
    """Sums over a test set.

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


class Batches(NamedTuple):
    """A test set in an order.

    Attributes:
      indices: [batches, B] int32, padding repeats a batch's first.
      mask: [batches, B] 1 for examples, 0 for padding.
    """

    indices: types.ArrayLike
    mask: types.ArrayLike


def batches(size: int, batch_size: int, seed: int, devices: int = 1) -> Batches:
    """Fixes the order of a test set.

    Args:
      size: examples of the test set.
      batch_size: B.
      seed: of the experiment.
      devices: D; empty batches make the number of batches a multiple of it.

    Returns:
      The batches, on the host.
    """
    order = np.random.default_rng([seed, 2]).permutation(size).astype(np.int32)
    number = -(-size // batch_size)
    number = -(-number // devices) * devices
    slots = np.arange(number * batch_size).reshape(number, batch_size)
    valid = slots < size
    repeated = np.where(valid, slots, np.minimum(slots[:, :1], size - 1))
    return Batches(order[repeated], valid.astype(np.float32))


@functools.partial(jax.jit, static_argnames=("net", "running", "devices"))
def evaluate(
    blocks: tuple[dict, ...],
    data: client.Data,
    batches: Batches,
    *,
    net: network.Network,
    running: bool = False,
    devices: Mesh | None = None,
) -> Scores:
    """Runs the network in float32 over a test set.

    Args:
      blocks: state of the network.
      data: the test data on the device.
      batches: of the function `batches`.
      net: static.
      running: use running statistics, static.
      devices: the mesh that the batches are spread over, a multiple of its size;
        static; None: one device.

    Returns:
      The sums.
    """

    def batch(blocks, data, total: Scores, inputs) -> tuple[Scores, None]:
        rows, valid = inputs
        call = layers.Call(mask=valid, running=running)
        x = client.inputs(data, rows)
        logits, _ = network.run(net, blocks, x, [call] * net.num_blocks)
        labels = data.y[rows]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        classes = jax.nn.one_hot(labels, net.num_classes) * valid[:, None]
        chosen = jnp.argmax(logits, axis=-1)
        right = (chosen == labels).astype(jnp.float32)
        scores = Scores(
            correct=right @ classes,
            total=jnp.sum(classes, axis=0),
            # Where all rows are padding a norm has nothing to go by, and may overflow.
            loss=jnp.sum(jnp.where(valid > 0, losses, 0.0)),
            predicted=valid @ jax.nn.one_hot(chosen, net.num_classes),
        )
        return jax.tree.map(jnp.add, total, scores), None

    def on_device(blocks, data, batches):
        zeros = jnp.zeros(net.num_classes)
        start = Scores(zeros, zeros, jnp.zeros(()), zeros)
        step = functools.partial(batch, blocks, data)
        return lax.scan(step, start, batches)[0]

    if devices is None:
        return on_device(blocks, data, batches)
    return jax.shard_map(
        lambda *arguments: lax.psum(on_device(*arguments), mesh.CLIENTS),
        mesh=devices,
        in_specs=(mesh.SHARED, mesh.SHARED, mesh.PER_DEVICE),
        out_specs=mesh.SHARED,
        check_vma=False,
    )(blocks, data, batches)


def per_class(scores: Scores) -> np.ndarray:
    """Gives the accuracy of each class [C]; NaN where the test set has none of it."""
    correct, total = np.asarray(scores.correct), np.asarray(scores.total)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


def macro_f1(scores: Scores) -> float:
    """Averages F1, the harmonic mean of precision and recall, over the classes.

    Unlike accuracy it weighs a rare class as much as a frequent one. A class that is
    neither in the test set nor predicted is left out (as scikit-learn does).

    Args:
      scores: of `evaluate`; over the whole test set (the authors' code averages F1
        over batches, which depends on their size).

    Returns:
      0 to 1.
    """
    correct, total, predicted = (
        np.asarray(x, np.float64)
        for x in (scores.correct, scores.total, scores.predicted)
    )
    known = total + predicted > 0
    return float(np.mean(2 * correct[known] / (total + predicted)[known]))


def tier_mixes(class_counts: np.ndarray, tier_of: np.ndarray, tiers: int) -> np.ndarray:
    """Computes the class mix of each tier's training data.

    Args:
      class_counts: [N, C] examples of each class at each client.
      tier_of: [N] tier of each client.
      tiers: T.

    Returns:
      [T, C], rows sum to 1; a tier without clients has a row of zeros.
    """
    sums = np.zeros((tiers, class_counts.shape[1]))
    np.add.at(sums, tier_of, class_counts)
    return sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)


def summary(scores: Scores, mixes: np.ndarray, names: tuple[str, ...]) -> dict:
    """Turns sums into the evaluation fields of a metrics record.

    A tier's accuracy is that on test data weighted by the tier's class mix: the sum
    over classes of mix * accuracy (classes without test data left out).

    Args:
      scores: of `evaluate`.
      mixes: [T, C] of `tier_mixes`.
      names: of the T tiers.

    Returns:
      test_accuracy, test_loss, macro_f1, class_accuracy [C], tier_accuracy by name,
      worst_tier_accuracy and tier_spread (best minus worst).
    """
    total = float(np.sum(scores.total))
    accuracy = per_class(scores)
    known = mixes * ~np.isnan(accuracy)
    share = known.sum(axis=1)
    by_tier = (known @ np.nan_to_num(accuracy)) / np.maximum(share, 1e-12)
    tiers = {
        n: float(a) for n, a, s in zip(names, by_tier, share, strict=True) if s > 0
    }
    return {
        "test_accuracy": float(np.sum(scores.correct)) / total,
        "test_loss": float(scores.loss) / total,
        "macro_f1": macro_f1(scores),
        "class_accuracy": [None if np.isnan(a) else float(a) for a in accuracy],
        "tier_accuracy": tiers,
        "worst_tier_accuracy": min(tiers.values()),
        "tier_spread": max(tiers.values()) - min(tiers.values()),
    }
