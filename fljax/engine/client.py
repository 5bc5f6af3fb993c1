"""Local training of ONE client in a program; pure, and written unbatched."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fljax import plans, tasks, trees, types
from fljax.engine import program
from fljax.engine import seams as kinds
from fljax.engine.program import single
from fljax.kernels import specs
from fljax.nn import network
from fljax.updates import attacks, local_rule


class Data(NamedTuple):
    """Training data on the device, with what normalizes it.

    Attributes:
      x: [examples, *features], uint8 or float32; other integers are tokens.
      y: [examples, ...] int32 or float32.
      mean: [channels] float32, of x (of x / 255 for uint8).
      std: [channels] float32.
    """

    x: types.ArrayLike
    y: types.ArrayLike
    mean: types.ArrayLike
    std: types.ArrayLike


class Training(NamedTuple):
    """How clients train; static and hashable.

    Attributes:
      batch_size: examples of a local step.
      local_epochs: passes over the shard in a round.
      weight_decay: added to the gradient as weight_decay * parameter, as torch does;
        with adamw to what the moments make of it.
      momentum: of local SGD, from zero in every round.
      spec: fixed point choices of the frozen blocks; the plan sets the width.
      rule: "sgd", or "adamw" (Loshchilov and Hutter, ICLR 2019), whose moments start
        from zero in every round.
      optimizer: (learning rate) -> optax transformation, instead of rule, weight decay
        and momentum.
      augment: (key, batch) -> batch, of `augment`; None: batches as they are.
      precision: dtype of activations and their gradients in networks of images;
        parameters, statistics and sums stay float32.
      task: what labels mean, and the loss.
    """

    batch_size: int = 32
    local_epochs: int = 1
    weight_decay: float = 1e-3
    momentum: float = 0.0
    spec: specs.Spec = specs.DEFAULT
    rule: Literal["sgd", "adamw"] = "sgd"
    optimizer: Callable[[types.Array], optax.GradientTransformation] | None = None
    augment: Callable[[types.Key, types.Array], types.Array] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    task: tasks.Task = tasks.DEFAULT


class Static(NamedTuple):
    """What a compiled program depends on beside shapes; hashable.

    Attributes:
      net: the network.
      program: what it is made for.
      training: how clients train.
      width: W, clients that run side by side.
      seams: what they do beside training and sending.
    """

    net: network.Network
    program: program.Program
    training: Training
    width: int = 1
    seams: kinds.Seams = kinds.NONE

    @property
    def spec(self) -> specs.Spec:
        """Gives the fixed point choices: the training's, at the program's width."""
        return dataclasses.replace(self.training.spec, bits=self.program.bits)

    @property
    def span(self) -> slice:
        """Gives the blocks that may train."""
        return self.program.span(self.net.num_blocks)


class Start(NamedTuple):
    """What all clients of a group begin with.

    Attributes:
      state: of the global network, a tuple over all blocks.
      frozen: `freeze` of it.
      data: all training data.
      learning_rate: [].
      shared: what the server sends beside the network, a tuple over all blocks shaped
        like their parameters; None: nothing.
      columns: as of `layers.Call`.
      pull: as of `program.Batch`.
    """

    state: tuple[dict, ...]
    frozen: tuple
    data: Data
    learning_rate: types.Array
    shared: tuple | None = None
    columns: types.Array | None = None
    pull: types.Array | None = None


class Client(NamedTuple):
    """One client of a round: what is its alone.

    Attributes:
      indices: [capacity] int32, its examples, padded.
      size: how many of them are real, []; the rest is never read.
      key: of this round and client.
      window: first and last block that it trains, [] each, if the program is of any.
      own: what its local rule keeps, a tuple over all blocks; None: nothing.
      hostile: [] whether it is an attacker's; None: nobody is.
      personal: [L] what stays with it of the network; None: nothing.
    """

    indices: types.Array
    size: types.Array
    key: types.Key
    window: program.Window | None = None
    own: tuple | None = None
    hostile: types.Array | None = None
    personal: types.Array | None = None


class Result(NamedTuple):
    """What a client gives back; one client's, without the client axis.

    Attributes:
      delta: new minus old state of the program's blocks, None for the others.
      loss: mean training loss over the examples of the round, [].
      examples: examples that were trained on, all epochs together, [].
      places: that `train` was given, for the next client.
      own: as of `Client`, after the round; None outside of the program's blocks.
      message: of its local rule, shaped like the parameters of delta; None: nothing.
      numbers: [m] likewise.
      classes: as of `program.Batch`.
      personal: as of `Client`, after the round.
    """

    delta: tuple
    loss: types.Array
    examples: types.Array
    places: tuple | None = None
    own: tuple | None = None
    message: tuple | None = None
    numbers: types.Array | None = None
    classes: types.Array | None = None
    personal: types.Array | None = None


def inputs(data: Data, indices: types.Array) -> types.Array:
    """Gathers examples `[B, *features]` by index [B].

    Returns:
      float32, normalized; tokens come as int32, as they are.
    """
    x = data.x[indices]
    if x.dtype != jnp.uint8 and jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(jnp.int32)
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255.0
    return (x - data.mean) / data.std


def examples(
    net: network.Network, data: Data, x: types.Array, labels: types.Array, mask
) -> attacks.Examples:
    """Says what an attack is told of a batch."""
    real = jnp.sum(mask)
    return attacks.Examples(x, labels, real, data.mean, data.std, net.num_classes)


def make_optimizer(
    training: Training, learning_rate: types.Array
) -> optax.GradientTransformation:
    """Makes the optimizer of the window's parameters."""
    if training.optimizer is not None:
        return training.optimizer(learning_rate)
    if training.rule == "adamw":
        return optax.adamw(learning_rate, weight_decay=training.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(training.weight_decay),
        optax.sgd(learning_rate, momentum=training.momentum or None),
    )


def partitioned(
    optimizer: optax.GradientTransformation, mask: tuple[bool, ...], params: tuple
) -> optax.GradientTransformation:
    """Lets the optimizer move the blocks of the mask and nothing else.

    `optax.masked` alone would pass raw gradients on where the mask is False, and
    weight decay would move what has no gradient.

    Args:
      optimizer: for the trained blocks.
      mask: which of the blocks are trained, static.
      params: parameters of all blocks; None where they are not in the program.

    Returns:
      A transformation over trees like params.
    """
    labels = tuple(
        jax.tree.map(lambda _, trained=trained: "train" if trained else "freeze", p)
        for trained, p in zip(mask, params, strict=True)
    )
    return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)


def steps_of(count, training: Training):
    """Counts the local steps of a shard of `count` examples."""
    return training.local_epochs * (-(-count // training.batch_size))


def fitting(training: Training, capacity: int) -> Training:
    """Makes batches no larger than a shard can be; the rest would all be padding."""
    return training._replace(batch_size=min(training.batch_size, capacity))


# What a slot of a shuffle takes, of what a row of a batch does: a third in the smallest
# network, a hundredth in a small convolutional one.
_SLOT = 1 / 16


def capacities(counts: np.ndarray, batch_size: int) -> np.ndarray:
    """Chooses how many examples the program of each client has room for.

    A program shuffles as many slots as it has room for, and its batches are no larger,
    so that small clients beside a large one want programs of their own. One more
    has to be worth its compilation: it halves what a mean client takes.

    Args:
      counts: [N] examples of the clients.
      batch_size: of a local step.

    Returns:
      [N], each at least the count; few different ones, each the count of a client.
    """
    sizes, number = np.unique(counts, return_counts=True)

    def rounded(rooms: set[int]) -> np.ndarray:
        most = np.array(sorted(rooms))
        return most[np.searchsorted(most, sizes)]

    def cost(rooms: set[int]) -> float:
        room = rounded(rooms)
        batch = np.minimum(batch_size, room)
        return float(number @ (-(-sizes // batch) * batch + _SLOT * room))

    edges = 4 ** np.arange(1 + int(np.log2(sizes[-1])) // 2)
    below = np.maximum(np.searchsorted(sizes, edges, side="right") - 1, 0)
    candidates = [{int(sizes[i])} for i in below]
    chosen, better = {int(sizes[-1])}, True
    while better:
        best = min((chosen | more for more in candidates), key=cost)
        better = cost(best) <= cost(chosen) / 2
        chosen = best if better else chosen
    return rounded(chosen)[np.searchsorted(sizes, counts)]


def shuffle(key: types.Key, capacity: int, count: types.Array) -> types.Array:
    """Draws an order of the first `count` of `capacity` slots; the others come last.

    Slot i's draw depends on i and the key alone, not on the capacity, so padding a
    shard changes nothing.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(capacity))
    draws = jax.vmap(lambda k: jax.random.uniform(k))(keys)
    return jnp.argsort(jnp.where(jnp.arange(capacity) < count, draws, jnp.inf))


def _batches(key, indices, count, training: Training):
    """Returns (step) -> (example indices [B], mask [B])."""
    size = training.batch_size

    def of_epoch(epoch):
        return shuffle(jax.random.fold_in(key, epoch), indices.shape[0], count)

    order = indices[jax.vmap(of_epoch)(jnp.arange(training.local_epochs))]

    def batch(step):
        steps = jnp.maximum(-(-count // size), 1)
        epoch, start = step // steps, (step % steps) * size
        slots = start + jnp.arange(size)
        # Padding repeats the batch's first example, so that it cannot widen a range.
        rows = order[epoch, jnp.where(slots < count, slots, start)]
        return rows, (slots < count).astype(jnp.float32)

    return batch


def _next(trained, params, done: program.Stepped, first: int, probed: bool):
    """Puts what a step changed into the state of the blocks from the first on."""
    blocks = list(trained)
    for i, update in enumerate(done.updates, start=first):
        blocks[i] = {
            **blocks[i],
            **update,
            "params": params[i],
            "backward": done.backward[i] if probed else blocks[i]["backward"],
        }
    return tuple(blocks)


def _batch(
    static: Static, start: Start, rows, mask, key, hostile: types.Array | None
) -> program.Batch:
    """Gathers the batch of a step, augmented and in the precision of training."""
    net, training, x = static.net, static.training, inputs(start.data, rows)
    labels = start.data.y[rows]
    if training.augment is not None:  # the blocks' keys are 0 to num_blocks - 1
        x = training.augment(jax.random.fold_in(key, net.num_blocks), x)
        real = mask.reshape((-1,) + (1,) * (x.ndim - 1)) > 0
        x = jnp.where(real, x, x[:1])  # padding repeats the first, see `_batches`
    attack = static.seams.attack
    if hostile is not None and attack is not None and attack.poisons:
        # After what may move a pattern.
        given = examples(net, start.data, x, labels, mask)
        x, labels = trees.select(hostile, attack.poisoned(given), (x, labels))
    if net.vocabulary is None:
        x = x.astype(training.precision)
    narrow, width = static.seams.narrowing, static.program.width
    scale = 1 / width if narrow is not None and narrow.scaler else 1.0
    return program.Batch(
        x,
        labels,
        mask,
        key,
        task=training.task,
        scale=scale,
        columns=start.columns,
        pull=start.pull,
    )


def _classes(static: Static, start: Start, one: Client) -> types.Array | None:
    """Tells which classes [C] a client has examples of; None: nobody asks."""
    narrow = static.seams.narrowing
    if narrow is None or not narrow.masked:
        return None
    real = jnp.arange(one.indices.shape[0]) < one.size
    labels = start.data.y[one.indices]
    mine = jnp.zeros(static.net.num_classes, bool).at[labels].max(real)
    attack = static.seams.attack
    if one.hostile is not None and attack is not None and attack.poisons:
        mine |= one.hostile  # it has whatever it makes of them
    return mine


def _params(blocks: tuple) -> tuple:
    """Takes the parameters of blocks, None of those that are not in the program."""
    return tuple(None if block is None else block["params"] for block in blocks)


def train(
    static: Static,
    start: Start,
    one: Client,
    places: tuple | None = None,
    present: types.Array | None = None,
) -> Result:
    """Trains one client for a round.

    Args:
      static: the network, the program, and how clients train.
      start: what it begins with.
      one: its examples and draws.
      places: of `places`, if no other client runs beside it; what is in them does not
        matter.
      present: of `Program.present`, if others run beside it.

    Returns:
      The client's result.
    """
    net, span, seams = static.net, static.span, static.seams
    mask = tuple(span.start <= i < span.stop for i in range(net.num_blocks))
    begun = trees.keep(start.state, mask)
    if seams.withheld is not None:
        begun = seams.withheld.put(begun, one.personal)
    local, shared, own, rule = seams.local, start.shared, one.own, None
    if local is not None:
        shared, own = (x and trees.keep(x, mask) for x in (shared, own))
        rule = local.transform(shared, own)
    way = _way(static, start, one, present)
    carry = begun, jnp.zeros(()), places
    for leg in _legs(way, begun, rule):
        carry = _walk(way, carry, leg)
    trained, total, places = carry
    examples = (one.size * static.training.local_epochs).astype(jnp.float32)
    delta, loss = trees.subtract(trained, begun), total / jnp.maximum(examples, 1.0)
    result = Result(delta, loss, examples, places, classes=way.classes)
    if local is not None:
        done = local_rule.Local(
            _params(delta),
            way.steps,
            start.learning_rate,
            functools.partial(_mean_gradient, way, begun),
        )
        result = _finished(result, local.finish(shared, own, done))
    if seams.withheld is not None:
        zeros = jax.tree.map(jnp.zeros_like, result.delta)
        return result._replace(
            delta=seams.withheld.of_server(result.delta, zeros),
            personal=seams.withheld.take(trained),
        )
    if seams.personal is not None:
        return result._replace(personal=_beside(way, begun))
    return result


class _Way(NamedTuple):
    """What the steps of a client have in common.

    Attributes:
      static: as of `train`; so start, one and present.
      batch_of: (step) -> example indices [B], mask [B].
      keys: of the order of examples, and of noise.
      classes: as of `program.Batch`.
    """

    static: Static
    start: Start
    one: Client
    present: types.Array | None
    batch_of: Callable[[types.Array], tuple[types.Array, types.Array]]
    keys: tuple[types.Key, types.Key]
    classes: types.Array | None

    @property
    def steps(self) -> types.Array:
        """Counts the steps of the round."""
        return steps_of(self.one.size, self.static.training)


def _way(
    static: Static, start: Start, one: Client, present: types.Array | None
) -> _Way:
    shuffle_key, noise_key = jax.random.split(one.key)
    batch_of = _batches(shuffle_key, one.indices, one.size, static.training)
    classes = _classes(static, start, one)
    return _Way(
        static, start, one, present, batch_of, (shuffle_key, noise_key), classes
    )


class _Leg(NamedTuple):
    """Steps that a client takes by one optimizer.

    Attributes:
      first: of the steps.
      until: the first step after them.
      rule: that gradients go through before the optimizer; None: none.
      moves: what is trained, a tree of bools like the state of the blocks; None: all.
    """

    first: types.ArrayLike
    until: types.ArrayLike
    rule: optax.GradientTransformation | None = None
    moves: tuple | None = None


def _legs(
    way: _Way, begun: tuple, rule: optax.GradientTransformation | None
) -> list[_Leg]:
    """Says in which order a client trains what."""
    stays = way.static.seams.withheld
    if stays is None or not stays.alone:
        return [_Leg(0, way.steps, rule)]
    training = way.static.training._replace(local_epochs=stays.alone)
    mine = stays.stays(begun)
    others = jax.tree.map(lambda one: not one, mine)
    border = steps_of(way.one.size, training)
    return [_Leg(0, border, rule, mine), _Leg(border, way.steps, rule, others)]


def _walk(
    way: _Way, carry: tuple[tuple, types.Array, tuple | None], leg: _Leg
) -> tuple[tuple, types.Array, tuple | None]:
    """Takes the steps of a leg.

    Args:
      way: of the client.
      carry: state of the blocks that train; sum of the losses over examples; places.
      leg: which steps.

    Returns:
      The new carry.
    """
    static, start, one = way.static, way.start, way.one
    net, training, spec, span = static.net, static.training, static.spec, static.span
    params = _params(carry[0])
    optimizer = make_optimizer(training, start.learning_rate)
    if leg.rule is not None:
        optimizer = optax.chain(leg.rule, optimizer)
    mask = tuple(span.start <= i < span.stop for i in range(net.num_blocks))
    optimizer = partitioned(optimizer, mask, params)
    probed = spec.gradient_place != "nowhere"

    def step(i, carry):
        trained, optimizer_state, total, places = carry
        rows, valid = way.batch_of(i)
        key = jax.random.fold_in(way.keys[1], i)
        batch = _batch(static, start, rows, valid, key, one.hostile)
        batch = batch._replace(observe=i + 1 == leg.until, classes=way.classes)
        mine = program.Own(one.window, places, way.present)
        blocks = program.Blocks(start.frozen, trained)
        done = static.program.step(net, spec, blocks, batch, mine)
        if leg.moves is not None:  # else the pass back through the others would stay
            done = done._replace(gradients=_only(leg.moves, done.gradients))
        # Weights are read before they are updated: else XLA updates copies of them.
        gradients = lax.optimization_barrier(done.gradients)
        params = _params(trained)
        moves, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        moved = optax.apply_updates(params, moves)
        if done.held is not None:
            moved = jax.tree.map(jnp.where, done.held, moved, params)
        new = _next(trained, moved, done, span.start, probed)
        new = static.program.settle(new, trained, mine)
        if leg.moves is not None:
            new = jax.tree.map(lambda m, a, b: a if m else b, leg.moves, new, trained)
        return new, optimizer_state, total + done.loss * jnp.sum(valid), done.places

    trained, total, places = carry
    start_of_all = (trained, optimizer.init(params), total, places)
    # A loop of as many steps as the shard has: an uneven client costs what it trains.
    trained, _, total, places = lax.fori_loop(leg.first, leg.until, step, start_of_all)
    return trained, total, places


def _only(moves: tuple, gradients: tuple) -> tuple:
    """Puts zeros in place of the gradients of what does not move."""
    return jax.tree.map(
        lambda m, g: g if m else jnp.zeros_like(g), _params(moves), gradients
    )


def _finished(result: Result, sent: local_rule.Finished) -> Result:
    """Puts what a local rule says into the result."""
    delta = tuple(
        block and {**block, "params": p}
        for block, p in zip(result.delta, sent.delta, strict=True)
    )
    return result._replace(
        delta=delta, own=sent.own, message=sent.message, numbers=sent.numbers
    )


def _beside(way: _Way, begun: tuple) -> types.Array:
    """Trains the client's own network, beside the server's; gives it, [L]."""
    static, one, rule = way.static, way.one, way.static.seams.personal
    assert rule is not None
    epochs = rule.epochs(static.training.local_epochs)
    training = static.training._replace(local_epochs=epochs)
    way = way._replace(
        static=static._replace(training=training),
        # The same draws, so that without a pull it is what it would be alone.
        batch_of=_batches(way.keys[0], one.indices, one.size, training),
    )
    leg = _Leg(0, way.steps, rule.transform(_params(begun)))
    carry = rule.put(begun, one.personal), jnp.zeros(()), None
    return rule.take(_walk(way, carry, leg)[0])


def _mean_gradient(way: _Way, begun: tuple) -> tuple:
    """Averages the gradient over an epoch's batches, at what a client began with."""
    static, start, one = way.static, way.start, way.one
    blocks, mine = program.Blocks(start.frozen, begun), program.Own(one.window)
    key = jax.random.fold_in(way.keys[1], way.steps)

    def add(i, mean):
        rows, valid = way.batch_of(i)
        draws = jax.random.fold_in(key, i)
        batch = _batch(static, start, rows, valid, draws, one.hostile)
        done = static.program.step(static.net, static.spec, blocks, batch, mine)
        share = jnp.sum(valid) / one.size
        return jax.tree.map(lambda m, g: m + share * g, mean, done.gradients)

    once = static.training._replace(local_epochs=1)
    zeros = jax.tree.map(jnp.zeros_like, _params(begun))
    return lax.fori_loop(0, steps_of(one.size, once), add, zeros)


def freeze(static: Static, state: tuple[dict, ...], key: types.Key | None) -> tuple:
    """Freezes what a program runs frozen; the same for all its clients.

    Args:
      static: the network, the program, and how clients train.
      state: global state.
      key: of the round, for stochastic rounding.

    Returns:
      What `Start` takes as `frozen`.
    """
    return static.program.freeze(static.net, static.spec, state, key)


def places(static: Static, state: tuple[dict, ...], frozen: tuple) -> tuple | None:
    """Makes places for the blocks of clients that run one after the other.

    Args:
      static: the network, the program, and how clients train.
      state: global state.
      frozen: `freeze` of it.

    Returns:
      What `train` takes as `places`; None if the program needs none.
    """
    net, training = static.net, static.training
    dtype = training.precision if net.vocabulary is None else jnp.int32
    x = jnp.zeros((training.batch_size, *net.input_shape), dtype)
    return static.program.places(net, static.spec, program.Blocks(frozen, state), x)


# What the reference starts every range at: op_scale 0.1, of 63.5 codes.
UNCALIBRATED = 0.1 * 63.5


def calibrate(
    net: network.Network,
    state: tuple[dict, ...],
    spec: specs.Spec,
    key: types.Key,
    task: tasks.Task = tasks.DEFAULT,
) -> tuple[dict, ...]:
    """Sets norms and ranges before the first round.

    The server has no data, so one training step's forward and backward pass runs on
    standard normal inputs (or random tokens) and random labels. (The reference starts
    every range at 0.1 * 63.5, which rounds the gradients of the first rounds to zero;
    so it is done here under `spec.reference_quirks`.)

    Args:
      net: the network.
      state: of `network.init`.
      spec: what is to be observed, and where.
      key: for inputs and labels.
      task: what labels mean.

    Returns:
      The state with norms, ranges and backward ranges set, parameters unchanged.
    """
    if spec.reference_quirks:
        ranges = ("ranges", "backward")
        start = jax.tree.map(
            lambda x: jnp.full_like(x, UNCALIBRATED),
            tuple({name: block[name] for name in ranges} for block in state),
        )
        return tuple(old | new for old, new in zip(state, start, strict=True))
    input_key, label_key = jax.random.split(key)
    x = network.noise(net, input_key, 32)
    labels = task.noise(label_key, task.shape(net, 32))
    blocks = program.Blocks((None,) * net.num_blocks, state)
    batch = program.Batch(x, labels, jnp.ones(32), None, task=task)
    plan = plans.full(net.num_blocks)
    done = single.gradient_step(net, spec, plan, blocks, batch, fresh=True)
    params = tuple(block["params"] for block in state)
    return _next(state, params, done, 0, spec.gradient_place != "nowhere")
