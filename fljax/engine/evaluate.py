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

from fljax import types
from fljax.engine import client
from fljax.nn import layers, network
from fljax.runtime import mesh, streams


class Scores(NamedTuple):
    """Sums over a test set.

    Attributes:
      correct: [C] examples of each class that were classified right.
      total: [C] examples of each class.
      loss: [] sum of the cross-entropy.
      predicted: [C] examples that were classified as each class.
      tier_correct: [T] examples of each tier that were classified right.
      tier_total: [T] examples of each tier.
    """

    correct: types.Array
    total: types.Array
    loss: types.Array
    predicted: types.Array
    tier_correct: types.ArrayLike = ()
    tier_total: types.ArrayLike = ()


class Batches(NamedTuple):
    """A test set in an order.

    Attributes:
      indices: [batches, B] int32, padding repeats a batch's first.
      mask: [batches, B] 1 for examples, 0 for padding.
      tiers: [batches, B, T], as of `tiers_of_test`; None: there are none.
    """

    indices: types.ArrayLike
    mask: types.ArrayLike
    tiers: types.ArrayLike | None = None


def batches(
    size: int,
    batch_size: int,
    seed: int,
    devices: int = 1,
    tiers: np.ndarray | None = None,
) -> Batches:
    """Fixes the order of a test set.

    Args:
      size: examples of the test set.
      batch_size: B.
      seed: of the experiment.
      devices: D; empty batches make the number of batches a multiple of it.
      tiers: [examples, T] of `tiers_of_test`; None: there are none.

    Returns:
      The batches, on the host.
    """
    generator = streams.generator(seed, streams.EVALUATION_ORDER)
    order = generator.permutation(size).astype(np.int32)
    number = -(-size // batch_size)
    number = -(-number // devices) * devices
    slots = np.arange(number * batch_size).reshape(number, batch_size)
    valid = slots < size
    repeated = np.where(valid, slots, np.minimum(slots[:, :1], size - 1))
    rows = order[repeated]
    by_row = None if tiers is None else tiers[rows]
    return Batches(rows, valid.astype(np.float32), by_row)


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

    tiers = batches.tiers
    tiers = jnp.zeros((*batches.mask.shape, 0)) if tiers is None else tiers
    batches = batches._replace(tiers=tiers)

    def batch(blocks, data, total: Scores, inputs: Batches) -> tuple[Scores, None]:
        rows, valid, tiers = inputs
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
            tier_correct=(right * valid) @ tiers,
            tier_total=valid @ tiers,
        )
        return jax.tree.map(jnp.add, total, scores), None

    def on_device(blocks, data, batches: Batches):
        zeros, by_tier = jnp.zeros(net.num_classes), jnp.zeros(tiers.shape[2])
        start = Scores(zeros, zeros, jnp.zeros(()), zeros, by_tier, by_tier)
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


def tier_counts(
    class_counts: np.ndarray, tier_of: np.ndarray, tiers: int
) -> np.ndarray:
    """Adds up the training examples of each tier's clients by class.

    Args:
      class_counts: [N, C] examples of each class at each client.
      tier_of: [N] tier of each client.
      tiers: T.

    Returns:
      [T, C].
    """
    sums = np.zeros((tiers, class_counts.shape[1]))
    np.add.at(sums, tier_of, class_counts)
    return sums


def tier_mixes(class_counts: np.ndarray, tier_of: np.ndarray, tiers: int) -> np.ndarray:
    """Computes the class mix of each tier's training data.

    Args:
      class_counts: [N, C] examples of each class at each client.
      tier_of: [N] tier of each client.
      tiers: T.

    Returns:
      [T, C], rows sum to 1; a tier without clients has a row of zeros.
    """
    sums = tier_counts(class_counts, tier_of, tiers)
    return sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)


def tiers_of_test(labels: np.ndarray, by_tier: np.ndarray, seed: int) -> np.ndarray:
    """Deals the test examples out to the tiers as the training examples are.

    Of every class a tier gets the share that it has of the training examples of the
    class, so that its share of the test data is as large and as mixed as that of the
    training data. Which examples is drawn.

    Args:
      labels: [examples] of the test set.
      by_tier: [T, C] training examples of each class in each tier.
      seed: of the experiment.

    Returns:
      [examples, T] float32, 1 where the example is the tier's; zeros where no tier has
      training examples of its class.
    """
    generator = streams.generator(seed, streams.TEST_TIERS)
    tier = np.full(len(labels), len(by_tier))
    for kind in np.unique(labels):
        ends = np.cumsum(by_tier[:, kind])
        if not ends[-1]:
            continue
        rows = generator.permutation(np.flatnonzero(labels == kind))
        # Evenly spaced points: counts are off by less than 1, and on average right.
        points = (np.arange(len(rows)) + generator.random()) / len(rows)
        tier[rows] = np.searchsorted(ends, points * ends[-1], side="right")
    return one_hot(tier, len(by_tier))


def one_hot(tier: np.ndarray, tiers: int) -> np.ndarray:
    """Writes tiers [examples] as rows [examples, T]; of no tier as zeros."""
    return (np.asarray(tier)[:, None] == np.arange(tiers)).astype(np.float32)


def summary(scores: Scores, mixes: np.ndarray, names: tuple[str, ...]) -> dict:
    """Turns sums into the evaluation fields of a metrics record.

    A tier has two accuracies. That by its class mix weighs the accuracy of each class
    in the whole test set by the share of the class in the tier's training data (classes
    without test data left out): if the mix of the test set is another than that of the
    training set, all tiers may be above or below the test accuracy. That on its own
    test examples is plainly the share of them that were classified right, and the mean
    over the tiers, weighted by these examples, is the accuracy on all of them.

    Args:
      scores: of `evaluate`.
      mixes: [T, C] of `tier_mixes`.
      names: of the T tiers.

    Returns:
      test_accuracy, test_loss, macro_f1, class_accuracy [C]; by class mix
      tier_accuracy by name, worst_tier_accuracy and tier_spread (best minus worst); on
      their own test examples, if any tier has some, tier_test_accuracy by name and
      worst_tier_test_accuracy.
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
    } | _on_own(scores, names)


def _on_own(scores: Scores, names: tuple[str, ...]) -> dict:
    """Gives the tiers' accuracies on their own test examples."""
    sums = zip(names, scores.tier_correct, scores.tier_total, strict=False)
    own = {n: float(right) / float(total) for n, right, total in sums if total > 0}
    if not own:
        return {}
    return {"tier_test_accuracy": own, "worst_tier_test_accuracy": min(own.values())}
