"""The program that walks through clients: fine-tunes each, if asked, and tests it.

Who has a network of its own, in part or in whole, is tested by that.

A client is written unbatched. Those of a chunk run side by side on accelerators; every
device has its share of the clients. What a client scores does not depend on who else is
evaluated, nor on padding.

Legend: K clients of a call, W of a chunk, B of a batch, n blocks of the network.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fljax import plans, types
from fljax.engine import client, evaluate, seams
from fljax.engine.program import single
from fljax.nn import layers, network, signals
from fljax.runtime import mesh


class Static(NamedTuple):
    """What the program depends on beside shapes; hashable.

    Attributes:
      whole: network, task and statistics, as the global network is evaluated.
      training: how clients train; its epochs are those of the fine-tuning.
      epochs: of the fine-tuning; 0: there is none.
      batch_size: B, of the test.
      capacity: training examples that a client has at most.
      width: W.
      seams: of the algorithm: what of the network is a client's own.
    """

    whole: evaluate.Static
    training: client.Training
    epochs: int
    batch_size: int
    capacity: int
    width: int = 1
    seams: seams.Seams = seams.NONE


class Data(NamedTuple):
    """Whose examples are whose; shared by all devices.

    Attributes:
      train: the training data.
      train_indices: int32, the clients' examples in it, one client's after the other's.
      test: the test data.
      test_indices: int32, likewise.
    """

    train: client.Data
    train_indices: types.ArrayLike
    test: client.Data
    test_indices: types.ArrayLike


class Slot(NamedTuple):
    """Where the examples of a client lie; of padding all is 0.

    Attributes:
      ids: int32 client number.
      test_starts: int32, in `Data.test_indices`.
      test_counts: int32.
      train_starts: int32, in `Data.train_indices`.
      train_counts: int32.
      states: [S] float32, the client's state; None: it keeps none.
    """

    ids: types.ArrayLike
    test_starts: types.ArrayLike
    test_counts: types.ArrayLike
    train_starts: types.ArrayLike
    train_counts: types.ArrayLike
    states: types.ArrayLike | None = None


class Given(NamedTuple):
    """What the clients of a call have in common; shared by all devices.

    Attributes:
      blocks: state of the global network.
      data: of training and test.
      key: of the fine-tuning; a client's is fold_in(key, number).
      learning_rate: of the fine-tuning, [].
    """

    blocks: tuple[dict, ...]
    data: Data
    key: types.Key
    learning_rate: types.ArrayLike


class Tested(NamedTuple):
    """Sums of the task's scores over clients' own test examples, [K, ...].

    Attributes:
      after: of the fine-tuning, or of the network as a client has it.
      before: as a client has it; None: nothing is fine-tuned.
    """

    after: types.Tree
    before: types.Tree = None


def _scores(static: Static, blocks: tuple[dict, ...], data: Data, slot: Slot):
    """Sums the scores of a network over a client's test examples."""
    net, task, size = static.whole.net, static.whole.task, static.batch_size
    start, end = slot.test_starts, slot.test_starts + slot.test_counts

    def batch(i):
        first = start + i * size
        slots = first + jnp.arange(size)
        valid = (slots < end).astype(jnp.float32)
        # Padding repeats the batch's first, as in `evaluate.batches`.
        places = jnp.where(slots < end, slots, first)
        rows = data.test_indices.at[places].get(mode="clip")
        call = layers.Call(mask=valid, running=static.whole.running)
        x = client.inputs(data.test, rows)
        outputs, _ = network.run(net, blocks, x, [call] * net.num_blocks)
        return task.scores(signals.to_float(outputs), data.test.y[rows], valid)

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(batch, jnp.int32(0))
    )
    number = -(-slot.test_counts // size)  # a loop: an uneven client costs what it has

    def add(i, total):
        return jax.tree.map(jnp.add, total, batch(i))

    return lax.fori_loop(0, number, add, zeros)


def _tuned(static: Static, given: Given, blocks: tuple[dict, ...], slot: Slot):
    """Trains a client's network as a round would, for the epochs of the fine-tuning."""
    net, data = static.whole.net, given.data
    training = static.training._replace(local_epochs=static.epochs)
    training = client.fitting(training, static.capacity)
    program = single.Single(plans.full(net.num_blocks), static.capacity)
    made = client.Static(net, program, training, static.width)
    start = client.Start(
        blocks,
        client.freeze(made, blocks, None),  # nothing: all is trained
        data.train,
        jnp.asarray(given.learning_rate),
    )
    slots = slot.train_starts + jnp.arange(static.capacity)
    indices = data.train_indices.at[slots].get(mode="clip")
    key = jax.random.fold_in(given.key, slot.ids)
    one = client.Client(indices, slot.train_counts, key)
    return jax.tree.map(jnp.add, blocks, client.train(made, start, one).delta)


def _one(static: Static, given: Given, slot: Slot) -> Tested:
    """Tests one client."""
    mine = seams.network_of(static.seams, given.blocks, slot.states)
    scores = functools.partial(_scores, static, data=given.data, slot=slot)
    if not static.epochs:
        return Tested(scores(blocks=mine))
    tuned = _tuned(static, given, mine, slot)
    return Tested(scores(blocks=tuned), scores(blocks=mine))


def _on_device(given: Given, slots: Slot, *, static: Static) -> Tested:
    """Walks through one device's clients; gives every device what all found."""
    one = functools.partial(_one, static, given)
    if static.width == 1:  # a client axis of 1 would still batch every product
        found = lax.map(one, slots)
    else:
        chunks = jax.tree.map(
            lambda x: x.reshape(-1, static.width, *x.shape[1:]), slots
        )
        found = lax.map(jax.vmap(one), chunks)
        found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    gather = functools.partial(lax.all_gather, axis_name=mesh.CLIENTS, tiled=True)
    return jax.tree.map(gather, found)


@functools.partial(jax.jit, static_argnames=("static", "devices"))
def run(given: Given, slots: Slot, *, static: Static, devices: Mesh) -> Tested:
    """Tests clients on their own test shards.

    Args:
      given: the network and the data.
      slots: the clients, [K], K a multiple of the devices times the width.
      static: network, training and sizes, static.
      devices: the mesh, static.

    Returns:
      What each scored, in the order of the slots.
    """
    return jax.shard_map(
        functools.partial(_on_device, static=static),
        mesh=devices,
        in_specs=(mesh.SHARED, mesh.PER_DEVICE),
        out_specs=mesh.SHARED,
        check_vma=False,
    )(given, slots)
