"""Local training: steps by hand, batches, padding, and what a client sends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fljax import plans
from fljax.engine import client
from fljax.engine.program import single
from fljax.kernels import specs
from fljax.models import logistic, mobilenetv2, small_convnet
from fljax.nn import network
from fljax.tasks import classification
from tests import conftest


def key():
    return jax.random.key(7)


X = np.array([[1.0, -2.0], [0.5, 3.0]])
Y = np.array([2, 0])
KERNEL = np.array([[0.1, -0.3, 0.2], [0.4, 0.0, -0.1]])
BIAS = np.array([0.05, -0.05, 0.0])


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def gradient_step(kernel, bias, x, y):
    """Gives loss and gradients of softmax regression, in float64."""
    p = softmax(x @ kernel + bias)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    error = (p - np.eye(3)[y]) / len(y)
    return loss, x.T @ error, error.sum(0)


def train_logistic(training, x=X, y=Y, rate=0.5):
    net = logistic.logistic((2,), 3)
    params = {"dense": {"kernel": jnp.float32(KERNEL), "bias": jnp.float32(BIAS)}}
    blocks = ({"params": params, "norms": {}, "ranges": {}, "backward": {}},)
    data = client.Data(
        jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.zeros(1), jnp.ones(1)
    )
    result = conftest.train_one(
        blocks,
        data,
        jnp.arange(len(y), dtype=jnp.int32),
        jnp.int32(len(y)),
        key(),
        jnp.float32(rate),
        net=net,
        plan=plans.full(1),
        training=training,
    )
    return result, result.delta[0]["params"]["dense"]


def test_one_step_by_hand():
    training = client.Training(batch_size=2, weight_decay=0.01)
    result, delta = train_logistic(training)
    loss, kernel, bias = gradient_step(KERNEL, BIAS, X, Y)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(
        delta["kernel"], -0.5 * (kernel + 0.01 * KERNEL), rtol=1e-5
    )
    np.testing.assert_allclose(delta["bias"], -0.5 * (bias + 0.01 * BIAS), rtol=1e-5)
    assert result.examples == 2


def test_momentum_by_hand():
    training = client.Training(
        batch_size=2, local_epochs=2, weight_decay=0.0, momentum=0.9
    )
    result, delta = train_logistic(training)
    first, *gradients = gradient_step(KERNEL, BIAS, X, Y)
    moved = [w - 0.5 * g for w, g in zip((KERNEL, BIAS), gradients, strict=True)]
    second, *later = gradient_step(*moved, X, Y)
    for name, g, h in zip(("kernel", "bias"), gradients, later, strict=True):
        np.testing.assert_allclose(delta[name], -0.5 * (1.9 * g + h), rtol=1e-5)
    np.testing.assert_allclose(result.loss, (first + second) / 2, rtol=1e-6)
    assert result.examples == 4


def test_two_steps_of_adamw_by_hand():
    training = client.Training(
        batch_size=2, local_epochs=2, weight_decay=0.1, rule="adamw"
    )
    _, delta = train_logistic(training, rate=0.05)
    start = weights = np.concatenate([KERNEL, BIAS[None]])
    mean = square = np.zeros_like(weights)
    for step in (1, 2):
        _, kernel, bias = gradient_step(weights[:-1], weights[-1], X, Y)
        gradient = np.concatenate([kernel, bias[None]])
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        move = mean / (1 - 0.9**step) / unbiased + 0.1 * weights
        weights = weights - 0.05 * move
    moved = np.concatenate([delta["kernel"], delta["bias"][None]])
    np.testing.assert_allclose(moved, weights - start, rtol=1e-4)


def test_a_partial_batch_averages_over_its_examples():
    # Three equal examples in batches of 2: the second step sees one of them.
    training = client.Training(batch_size=2, weight_decay=0.0)
    x, y = X[[0, 0, 0]], Y[[0, 0, 0]]
    result, delta = train_logistic(training, x, y)
    first, *gradients = gradient_step(KERNEL, BIAS, x, y)
    moved = [w - 0.5 * g for w, g in zip((KERNEL, BIAS), gradients, strict=True)]
    second, *later = gradient_step(*moved, x, y)
    np.testing.assert_allclose(result.loss, (2 * first + second) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        delta["bias"], -0.5 * (gradients[1] + later[1]), rtol=1e-5
    )


def test_an_own_optimizer_takes_the_place_of_sgd():
    training = client.Training(
        batch_size=2, optimizer=lambda rate: optax.sign_sgd(rate), weight_decay=0.9
    )
    _, delta = train_logistic(training)
    _, kernel, _ = gradient_step(KERNEL, BIAS, X, Y)
    np.testing.assert_allclose(delta["kernel"], -0.5 * np.sign(kernel), rtol=1e-6)


def test_inputs_are_normalized_by_hand():
    x = np.array([[[[0, 255]]], [[[51, 102]]]], np.uint8)
    moments = jnp.array([0.5, 0.25]), jnp.array([0.5, 2.0])
    data = client.Data(jnp.asarray(x), jnp.zeros(2, jnp.int32), *moments)
    rows = client.inputs(data, jnp.array([1, 0]))
    np.testing.assert_allclose(
        rows[:, 0, 0], [[-0.6, 0.075], [-1, 0.375]], rtol=1e-6, atol=1e-7
    )
    floats = client.inputs(data._replace(x=jnp.float32(x)), jnp.array([0]))
    np.testing.assert_allclose(floats[0, 0, 0], [-1, 127.375])


def test_cross_entropy_leaves_padding_out():
    logits = jnp.array([[0.0, 0.0], [0.0, np.log(3.0)], [99.0, -99.0]])
    labels = jnp.array([0, 1, 1])
    loss = classification.cross_entropy(logits, labels, jnp.array([1.0, 1, 0]))
    np.testing.assert_allclose(loss, (np.log(2) + np.log(4 / 3)) / 2, rtol=1e-6)
    assert classification.cross_entropy(logits, labels, jnp.zeros(3)) == 0


def test_partitioned_moves_the_mask_and_nothing_else():
    params = ({"w": jnp.float32(2.0)}, {"w": jnp.float32(3.0)}, None)
    gradients = ({"w": jnp.float32(0.5)}, {"w": jnp.float32(0.25)}, None)
    training = client.Training(weight_decay=0.1, momentum=0.9)
    optimizer = client.partitioned(
        client.make_optimizer(training, jnp.float32(1.0)), (False, True, False), params
    )
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    assert updates[0]["w"] == 0  # neither its gradient nor its decay
    np.testing.assert_allclose(updates[1]["w"], -(0.25 + 0.3), rtol=1e-6)
    assert updates[2] is None
    again, _ = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(again[1]["w"], -0.55 * 1.9, rtol=1e-6)
    assert again[0]["w"] == 0


@pytest.mark.parametrize(
    ("count", "size", "epochs", "steps"),
    [(500, 32, 1, 16), (8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 5, 15), (1, 32, 2, 2)],
)
def test_steps_of(count, size, epochs, steps):
    training = client.Training(batch_size=size, local_epochs=epochs)
    assert client.steps_of(count, training) == steps
    assert client.steps_of(jnp.int32(count), training) == steps


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 10])
def test_batches_cover_the_shard_once_an_epoch(count):
    training = client.Training(batch_size=4, local_epochs=3)
    indices = jnp.concatenate([jnp.arange(100, 100 + count), jnp.full(11 - count, -1)])
    steps = client.steps_of(count, training)

    @jax.jit
    def run(key, indices, count):
        batch = client._batches(key, indices, count, training)
        return jax.lax.map(batch, jnp.arange(steps))

    rows, mask = (np.asarray(x) for x in run(key(), indices, jnp.int32(count)))
    per_epoch = steps // 3
    orders = []
    for epoch in range(3):
        part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        orders.append(rows[part][mask[part] == 1].tolist())
        assert sorted(orders[-1]) == list(range(100, 100 + count))
    # Padding repeats the first of its batch, and only the last batch has any.
    padding = mask == 0
    np.testing.assert_array_equal(
        rows[padding], np.broadcast_to(rows[:, :1], rows.shape)[padding]
    )
    assert mask.sum() == 3 * count
    assert mask[:, 0].all()
    if count >= 8:
        assert orders[0] != orders[1] != orders[2] != orders[0]


def test_uneven_shards_get_few_programs_and_even_ones_a_single_one():
    def rooms(*counts, batch_size=32):
        return client.capacities(np.concatenate(counts), batch_size).tolist()

    small, large = np.ones(6000, int), np.array([60_000])
    assert rooms(small, large) == [1] * 6000 + [60_000]
    assert rooms(large) == [60_000]
    assert rooms(np.array([50, 49, 50])) == [50] * 3
    # No power of 4 has to fall between them.
    counts = np.random.default_rng(0).integers(1, 21, 500)
    assert rooms(counts, large) == [20] * 500 + [60_000]
    # Longer and shorter ones as users have them are not worth a program more.
    counts = np.random.default_rng(0).integers(19, 466, 500)
    assert set(rooms(counts)) == {counts.max()}


def test_shuffle_depends_on_its_key_and_not_on_the_capacity():
    short, long, other = (
        np.asarray(client.shuffle(jax.random.key(seed), capacity, jnp.int32(9)))
        for seed, capacity in ((0, 9), (0, 30), (1, 9))
    )
    np.testing.assert_array_equal(long[:9], short)
    assert sorted(long[9:]) == list(range(9, 30))
    assert short.tolist() != other.tolist()
    assert sorted(short) == list(range(9))


def test_shuffle_is_uniform():
    keys = jax.random.split(key(), 3000)
    orders = np.asarray(jax.vmap(lambda k: client.shuffle(k, 5, jnp.int32(3)))(keys))
    _, times = np.unique(orders[:, :3], axis=0, return_counts=True)
    assert len(times) == 6
    assert np.abs(times - 500).max() < 5 * np.sqrt(500 * 5 / 6)


def train(problem, plan=conftest.MIDDLE, number=1, training=None):
    """Trains a client of the problem."""
    return conftest.train_one(
        problem.blocks,
        problem.data,
        *conftest.shard(problem.shards, number),
        key(),
        jnp.float32(0.1),
        net=problem.net,
        plan=plan,
        training=problem.training if training is None else training,
    )


def test_only_the_window_is_sent(problem):
    result = train(problem)
    assert [i for i, d in enumerate(result.delta) if d is not None] == [2]
    delta = result.delta[2]
    assert set(delta) == set(network.STATE)
    assert all(np.any(d != 0) for d in jax.tree.leaves(delta["params"]))
    assert np.any(delta["norms"]["conv"]["mean"] != 0)
    assert delta["ranges"]["conv"]["range"] != 0
    assert delta["backward"]["conv"]["range"] == 0  # nothing is probed
    assert np.isfinite(result.loss)
    assert result.examples == 2 * problem.shards.counts[1]


def test_padding_is_never_read_and_its_width_does_not_matter(problem):
    data = problem.data._replace(
        x=jnp.concatenate([problem.data.x, jnp.full((1, 8, 8, 1), jnp.nan)]),
        y=jnp.concatenate([problem.data.y, jnp.array([2], jnp.int32)]),
    )
    # More padding, that points to an image of NaN.
    indices, count = conftest.shard(problem.shards, 1, 16)
    wide = jnp.where(jnp.arange(16) < count, indices, 40)
    padded = conftest.train_one(
        *(problem.blocks, data, wide, count, key(), jnp.float32(0.1)),
        net=problem.net,
        plan=conftest.MIDDLE,
        training=problem.training,
    )
    conftest.assert_close(padded, train(problem), 1e-6)


def test_a_shard_below_the_batch_is_a_batch(problem):
    # Client 1 has three examples: in batches of 4 one row of each is padding.
    three = problem.training._replace(batch_size=3)
    conftest.assert_close(train(problem, training=three), train(problem), 2e-5)


def test_plan_sets_the_width_of_the_codes(problem):
    narrow = single.Single(plans.Plan(0, 1, 4))
    spec = client.Static(problem.net, narrow, problem.training).spec
    assert spec == specs.Spec(bits=4)


TWO = network.Network(
    "two", (small_convnet.ConvBlock(4, 1), mobilenetv2.Classifier(3)), (5, 5, 2), 3
)


@pytest.mark.parametrize("place", ["nowhere", "input"])
def test_calibration_sets_norms_and_ranges_only(place):
    spec = specs.Spec(gradient_place=place)

    @jax.jit
    def run(key):
        first, second, third = jax.random.split(key, 3)
        blocks = network.init(TWO, first)
        return (
            blocks,
            client.calibrate(TWO, blocks, spec, second),
            client.calibrate(TWO, blocks, spec, third),
        )

    before, after, other = run(key())
    conftest.assert_same_bits(
        [block["params"] for block in after], [block["params"] for block in before]
    )
    state = after[0]
    # Standard normal inputs: the product's variance is about the kernel's square sum.
    kernel = np.asarray(before[0]["params"]["conv"]["kernel"])
    expected = (kernel**2).sum((0, 1, 2))
    np.testing.assert_allclose(state["norms"]["conv"]["var"], expected, rtol=0.5)
    assert np.abs(state["norms"]["conv"]["mean"]).max() < 0.3
    # After norm and ReLU the largest of 3200 values is about 3.5.
    assert 2.5 < state["ranges"]["conv"]["range"] < 6
    assert (state["backward"]["conv"]["range"] > 0) == (place == "input")
    assert other[0]["ranges"]["conv"]["range"] != state["ranges"]["conv"]["range"]


def test_round_zero_moves_every_block_of_every_window(problem):
    # Gradients survive the frozen blocks behind the window from the first round on,
    # where the reference's initial ranges round them to zero.
    result = train(problem, plans.Plan(0, 0), number=0)
    kernel = result.delta[0]["params"]["conv"]["kernel"]
    assert np.abs(kernel).max() > 1e-4
