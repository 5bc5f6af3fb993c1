"""Local training of ONE client under a plan; pure, and written unbatched.

Blocks before the window run in fixed point and pass no gradient on; the window
trains in float32; blocks after it run in fixed point both ways (CoCoFL, Fig. 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fljax import layers, mixed, plans, quant, signals, trees, types
from fljax.models import network


class Data(NamedTuple):
    """Training data on the device, with what normalises it.

    Attributes:
      x: [examples, *features], uint8 or float32; other integers are tokens.
      y: [examples] int32.
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
      optimiser: (learning rate) -> optax transformation, instead of rule, weight decay
        and momentum.
      augment: (key, batch) -> batch, of `augment`; None: batches as they are.
      precision: dtype of activations and their gradients in networks of images;
        parameters, statistics and sums stay float32.
    """

    batch_size: int = 32
    local_epochs: int = 1
    weight_decay: float = 1e-3
    momentum: float = 0.0
    spec: quant.Spec = quant.DEFAULT
    rule: Literal["sgd", "adamw"] = "sgd"
    optimiser: Callable[[types.Array], optax.GradientTransformation] | None = None
    augment: Callable[[types.Key, types.Array], types.Array] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"


class Result(NamedTuple):
    """What a client gives back; one client's, without the client axis.

    Attributes:
      delta: new minus old state of the window's blocks, None for the others.
      loss: mean training loss over the examples of the round, [].
      examples: examples that were trained on, all epochs together, [].
      places: that `train` was given, for the next client.
    """

    delta: tuple
    loss: types.Array
    examples: types.Array
    places: tuple[mixed.Place, ...] | None = None


def inputs(data: Data, indices: types.Array) -> types.Array:
    """Gathers examples [B, *features] by index [B].

    Returns:
      float32, normalised; tokens come as int32, as they are.
    """
    x = data.x[indices]
    if x.dtype != jnp.uint8 and jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(jnp.int32)
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255.0
    return (x - data.mean) / data.std


def make_optimiser(
    training: Training, learning_rate: types.Array
) -> optax.GradientTransformation:
    """Makes the optimiser of the window's parameters."""
    if training.optimiser is not None:
        return training.optimiser(learning_rate)
    if training.rule == "adamw":
        return optax.adamw(learning_rate, weight_decay=training.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(training.weight_decay),
        optax.sgd(learning_rate, momentum=training.momentum or None),
    )


def partitioned(
    optimiser: optax.GradientTransformation, mask: tuple[bool, ...], params: tuple
) -> optax.GradientTransformation:
    """Lets the optimiser move the blocks of the mask and nothing else.

    `optax.masked` alone would pass raw gradients on where the mask is False, and
    weight decay would move what has no gradient.

    Args:
      optimiser: for the trained blocks.
      mask: which of the blocks are trained, static.
      params: parameters of all blocks; None where they are not in the program.

    Returns:
      A transformation over trees like params.
    """
    labels = tuple(
        jax.tree.map(lambda _, trained=trained: "train" if trained else "freeze", p)
        for trained, p in zip(mask, params, strict=True)
    )
    return optax.partition({"train": optimiser, "freeze": optax.set_to_zero()}, labels)


def cross_entropy(logits, labels, mask) -> types.Array:
    """Averages the cross-entropy of logits [B, C] over the rows of the mask [B]."""
    # With one-hot rows the gradient is a difference; with integers a scatter.
    rows = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = optax.softmax_cross_entropy(logits, rows)
    return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1.0)


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


def _window(plan: plans.Plan | plans.Mixed, num_blocks: int) -> tuple[bool, ...]:
    span = plans.span(plan, num_blocks)
    return tuple(span.start <= i < span.stop for i in range(num_blocks))


def _gradient_step(
    net,
    plan,
    spec,
    frozen,
    trained,
    x,
    labels,
    mask,
    key,
    observe=None,
    fresh=False,
):
    """Computes loss, gradients of the window, and its blocks' new norms and ranges."""
    roles = plans.roles(plan, net.num_blocks)
    first, last = plan.first, plan.last
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    calls = [
        layers.Call(role, spec, mask, observe=observe, first=i == first, fresh=fresh)
        for i, role in enumerate(roles)
    ]
    x, _ = network.run(net, frozen[:first], x, calls[:first], key=key)
    x = signals.cast(lax.stop_gradient(x), dtype)  # the border of the frozen prefix

    def loss_of(params, backward):
        state = [
            {**trained[i], "params": params[i], "backward": backward[i]}
            for i in range(first, last + 1)
        ]
        window = calls[first : last + 1]
        h, updates = network.run(
            net, state, x, window, first, mutable=("norms", "ranges"), key=key
        )
        if last + 1 < net.num_blocks:
            h = signals.known(h, network.nonnegative(net)[last])
        h, _ = network.run(
            net, frozen[last + 1 :], h, calls[last + 1 :], last + 1, key=key
        )
        logits = signals.to_float(h).astype(jnp.float32)
        return cross_entropy(logits, labels, mask), updates

    params, backward = (
        tuple(None if block is None else block[name] for block in trained)
        for name in ("params", "backward")
    )
    (loss, updates), gradients = jax.value_and_grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(params, backward)
    return loss, gradients, updates


def _next(trained, params, backward, updates, first: int, probed: bool):
    """Puts what a step changed into the state of the window's blocks."""
    blocks = list(trained)
    for i, update in enumerate(updates, start=first):
        blocks[i] = {
            **blocks[i],
            **update,
            "params": params[i],
            "backward": backward[i] if probed else blocks[i]["backward"],
        }
    return tuple(blocks)


def train(
    net: network.Network,
    plan: plans.Plan | plans.Mixed,
    training: Training,
    state: tuple[dict, ...],
    frozen: tuple,
    data: Data,
    indices: types.Array,
    count: types.Array,
    key: types.Key,
    learning_rate: types.Array,
    window: tuple[types.Array, types.Array] | None = None,
    places: tuple[mixed.Place, ...] | None = None,
) -> Result:
    """Trains one client for a round.

    Args:
      net: the network, static.
      plan: the window it trains, static; `plans.Mixed`: any.
      training: how, static.
      state: global state, a tuple over all blocks.
      frozen: `freeze` of it under the plan.
      data: all training data, shared by the clients.
      indices: [capacity] int32, the client's examples, padded.
      count: how many of them are real, []; the rest is never read.
      key: of this round and client.
      learning_rate: [].
      window: first and last block that it trains, [] each, if the plan is any.
      places: of `places`, if the plan is any and no other client runs beside it; what
        is in them does not matter.

    Returns:
      The client's result.
    """
    spec = plan_spec(plan, training)
    mask = _window(plan, net.num_blocks)
    start = trees.keep(state, mask)
    params = tuple(None if block is None else block["params"] for block in start)
    optimiser = partitioned(make_optimiser(training, learning_rate), mask, params)
    shuffle_key, noise_key = jax.random.split(key)
    batch = _batches(shuffle_key, indices, count, training)
    probed = spec.gradient_place != "nowhere"
    first = plans.span(plan, net.num_blocks).start

    def step(i, carry):
        trained, optimiser_state, total, places = carry
        rows, valid = batch(i)
        step_key, x = jax.random.fold_in(noise_key, i), inputs(data, rows)
        if training.augment is not None:  # the blocks' keys are 0 to num_blocks - 1
            x = training.augment(jax.random.fold_in(step_key, net.num_blocks), x)
            real = valid.reshape((-1,) + (1,) * (x.ndim - 1)) > 0
            x = jnp.where(real, x, x[:1])  # padding repeats the first, see `_batches`
        if net.vocabulary is None:
            x = x.astype(training.precision)
        batched = (frozen, trained, x, data.y[rows], valid, step_key)
        observe = i + 1 == steps
        if window is None:
            loss, (gradients, backward), updates = _gradient_step(
                net, plan, spec, *batched, observe=observe
            )
        else:
            loss, (gradients, backward), updates, places = mixed.gradient_step(
                net, spec, *batched, window, cross_entropy, observe, places
            )
        # Weights are read before they are updated: else XLA updates copies of them.
        gradients = lax.optimization_barrier(gradients)
        params = tuple(None if block is None else block["params"] for block in trained)
        moves, optimiser_state = optimiser.update(gradients, optimiser_state, params)
        params = optax.apply_updates(params, moves)
        new = _next(trained, params, backward, updates, first, probed)
        if window is not None:  # blocks outside it stay as they are
            inside = mixed.inside(window, net.num_blocks)
            new = tuple(map(trees.select, inside, new, trained))
        return new, optimiser_state, total + loss * jnp.sum(valid), places

    steps = steps_of(count, training)
    carry = (start, optimiser.init(params), jnp.zeros(()), places)
    # A loop of as many steps as the shard has: an uneven client costs what it trains.
    trained, _, total, places = lax.fori_loop(0, steps, step, carry)
    examples = (count * training.local_epochs).astype(jnp.float32)
    delta, loss = trees.subtract(trained, start), total / jnp.maximum(examples, 1.0)
    return Result(delta, loss, examples, places)


def freeze(
    net: network.Network,
    plan: plans.Plan | plans.Mixed,
    training: Training,
    state: tuple[dict, ...],
    key: types.Key | None,
) -> tuple:
    """Freezes what a program of the plan runs frozen; the same for all its clients.

    Args:
      net: the network, static.
      plan: of the program, static.
      training: how clients train, static.
      state: global state.
      key: of the round, for stochastic rounding.

    Returns:
      What `train` takes as `frozen`.
    """
    spec = plan_spec(plan, training)
    if isinstance(plan, plans.Mixed):
        return mixed.freeze(net, state, spec, key)
    return network.freeze(net, state, plans.roles(plan, net.num_blocks), spec, key)


def places(
    net: network.Network,
    plan: plans.Plan | plans.Mixed,
    training: Training,
    state: tuple[dict, ...],
    frozen: tuple,
) -> tuple[mixed.Place, ...] | None:
    """Makes places for the blocks of clients that run one after the other.

    Args:
      net: the network, static.
      plan: of the program, static.
      training: how clients train, static.
      state: global state.
      frozen: `freeze` of it under the plan.

    Returns:
      What `train` takes as `places`; None if the plan is a window.
    """
    if not isinstance(plan, plans.Mixed):
        return None
    dtype = training.precision if net.vocabulary is None else jnp.int32
    x = jnp.zeros((training.batch_size, *net.input_shape), dtype)
    spec = plan_spec(plan, training)
    return mixed.places(net, spec, frozen, state, x, jax.random.key(0))


def plan_spec(plan: plans.Plan | plans.Mixed, training: Training) -> quant.Spec:
    """Gives the fixed point choices of a plan: the training's, at the plan's width."""
    return dataclasses.replace(training.spec, bits=plan.bits)


# What the reference starts every range at: op_scale 0.1, of 63.5 codes.
UNCALIBRATED = 0.1 * 63.5


def calibrate(
    net: network.Network, state: tuple[dict, ...], spec: quant.Spec, key: types.Key
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
    plan = plans.full(net.num_blocks)
    input_key, label_key = jax.random.split(key)
    x = network.noise(net, input_key, 32)
    labels = jax.random.randint(label_key, (32,), 0, net.num_classes)
    nothing, valid = (None,) * net.num_blocks, jnp.ones(32)
    _, (_, backward), updates = _gradient_step(
        net, plan, spec, nothing, state, x, labels, valid, None, fresh=True
    )
    params = tuple(block["params"] for block in state)
    return _next(state, params, backward, updates, 0, spec.gradient_place != "nowhere")
