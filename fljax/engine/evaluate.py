"""Evaluation of the global network: what its task says of it, per class, per tier.

Batch norms use the statistics of the test batch (the reference's protocol, with the
order of the test set fixed by the seed here) or running statistics.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fljax import tasks, types
from fljax.data import test_shards
from fljax.engine import client
from fljax.nn import layers, network, signals
from fljax.runtime import mesh, streams
from fljax.updates import attacks


class Scores(NamedTuple):
    """Sums over a test set.

    Attributes:
      whole: of `Task.scores`, of all examples.
      by_tier: the same of each tier's own examples, [T, ...]; None: it has none.
      tier_total: [T] examples of each tier.
      mixes: [T, C] of `tier_mixes` at that time; None: there are none.
      opened: [2] examples of other classes that a backdoor makes the target, and how
        many there are; None: there is no backdoor.
      clients: of `per_client.program`, of each client on its own test shard; None: it
        is not asked for.
      width: of the network, as share of the whole one's; None: it is the whole one.
    """

    whole: types.Tree
    by_tier: types.Tree = None
    tier_total: types.ArrayLike = ()
    mixes: np.ndarray | None = None
    opened: types.ArrayLike | None = None
    clients: types.Tree = None
    width: float | None = None


class Static(NamedTuple):
    """What the compiled program depends on beside shapes; hashable.

    Attributes:
      net: the network.
      task: what labels mean.
      running: use running statistics instead of the batch's.
      backdoor: an attack with a target, which is looked for; None: there is none.
    """

    net: network.Network
    task: tasks.Task = tasks.DEFAULT
    running: bool = False
    backdoor: attacks.Attack | None = None


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


@functools.partial(jax.jit, static_argnames=("static", "devices"))
def evaluate(
    blocks: tuple[dict, ...],
    data: client.Data,
    batches: Batches,
    *,
    static: Static,
    devices: Mesh | None = None,
) -> Scores:
    """Runs the network in float32 over a test set.

    Args:
      blocks: state of the network.
      data: the test data on the device.
      batches: of the function `batches`.
      static: network, task and statistics, static.
      devices: the mesh that the batches are spread over, a multiple of its size;
        static; None: one device.

    Returns:
      The sums.
    """
    net, task = static.net, static.task

    def batch(blocks, data, inputs: Batches) -> Scores:
        rows, valid, tiers = inputs
        call = layers.Call(mask=valid, running=static.running)
        x, labels = client.inputs(data, rows), data.y[rows]

        def outputs(x):
            found, _ = network.run(net, blocks, x, [call] * net.num_blocks)
            return signals.to_float(found)

        opened, scores = None, functools.partial(task.scores, outputs(x), labels)
        if static.backdoor is not None:
            given = client.examples(net, data, x, labels, valid)
            opened = _opened(static.backdoor, outputs, given, valid)
        if tiers is None:
            return Scores(scores(valid), opened=opened)
        mine = valid[:, None] * tiers
        by_tier = jax.vmap(scores, in_axes=1)(mine)
        return Scores(scores(valid), by_tier, jnp.sum(mine, axis=0), opened=opened)

    def on_device(blocks, data, batches: Batches):
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(batch, blocks, data, first)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def step(total, inputs):
            scores = batch(blocks, data, inputs)
            return jax.tree.map(jnp.add, total, scores), None

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


def _opened(backdoor: attacks.Attack, outputs, given: attacks.Examples, valid):
    """Counts the examples [2] of other classes that become the target, and all such."""
    others = valid * (given.labels != backdoor.target)
    found = jnp.argmax(outputs(backdoor.marked(given)), axis=-1) == backdoor.target
    return jnp.stack([jnp.sum(others * found), jnp.sum(others)])


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
    return one_hot(test_shards.dealt(labels, by_tier, generator), len(by_tier))


def one_hot(tier: np.ndarray, tiers: int) -> np.ndarray:
    """Writes tiers [examples] as rows [examples, T]; of no tier as zeros."""
    return (np.asarray(tier)[:, None] == np.arange(tiers)).astype(np.float32)


def summary(
    scores: Scores,
    mixes: np.ndarray | None,
    names: tuple[str, ...],
    task: tasks.Task = tasks.DEFAULT,
) -> dict:
    """Turns sums into the evaluation fields of a metrics record.

    Of classification a tier has two accuracies. That by its class mix weighs the
    accuracy of each class in the whole test set by the share of the class in the tier's
    training data (classes without test data left out): if the mix of the test set is
    another than that of the training set, all tiers may be above or below the test
    accuracy. That on its own test examples is plainly the share of them that were
    classified right, and the mean over the tiers, weighted by these examples, is the
    accuracy on all of them. Other tasks have their measure on own examples alone.

    Args:
      scores: of `evaluate`.
      mixes: [T, C] of `tier_mixes`; None: there are no classes.
      names: of the T tiers.
      task: what labels mean.

    Returns:
      The fields of the task's record. By class mix, where it has class_accuracy,
      tier_accuracy by name, worst_tier_accuracy and tier_spread (best minus worst). On
      their own test examples, if any tier has some, tier_test_accuracy by name and
      worst_tier_test_accuracy, or as the task's measure is called. Of a backdoor
      attack_success, the share of the test examples of other classes that it opens for.

    Raises:
      ValueError: the record lacks the task's measure.
    """
    fields = task.record(scores.whole)
    if task.measure.key not in fields:
        raise ValueError(
            f"task {task!r}: expected a record with {task.measure.key!r}, which its "
            f"measure names, got {', '.join(fields)}"
        )
    if mixes is not None and "class_accuracy" in fields:
        fields |= _by_class_mix(fields["class_accuracy"], mixes, names)
    if scores.opened is not None:
        hits, total = map(float, scores.opened)
        fields |= {"attack_success": hits / total if total else None}
    return fields | _on_own(scores, names, task)


def _by_class_mix(class_accuracy, mixes: np.ndarray, names: tuple[str, ...]) -> dict:
    """Weighs the classes' accuracies by the tiers' class mixes."""
    accuracy = np.array(class_accuracy, np.float64)  # of None NaN
    known = mixes * ~np.isnan(accuracy)
    share = known.sum(axis=1)
    by_tier = (known @ np.nan_to_num(accuracy)) / np.maximum(share, 1e-12)
    tiers = {
        n: float(a) for n, a, s in zip(names, by_tier, share, strict=True) if s > 0
    }
    return {
        "tier_accuracy": tiers,
        "worst_tier_accuracy": min(tiers.values()),
        "tier_spread": max(tiers.values()) - min(tiers.values()),
    }


def _on_own(scores: Scores, names: tuple[str, ...], task: tasks.Task) -> dict:
    """Gives the tiers' measures on their own test examples."""
    if scores.by_tier is None:
        return {}
    key, own = task.measure.key, {}
    for tier, (name, total) in enumerate(zip(names, scores.tier_total, strict=True)):
        if total > 0:
            sums = jax.tree.map(lambda x, tier=tier: x[tier], scores.by_tier)
            own[name] = task.record(sums)[key]
    if not own:
        return {}
    worst = task.measure.worst(own.values())
    return {f"tier_{key}": own, f"worst_tier_{key}": worst}
