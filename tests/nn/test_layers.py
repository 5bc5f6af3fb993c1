"""Layers: norms, observers and probes by hand; frozen roles against the float block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import types
from fljax.kernels import norms, quant, specs
from fljax.models import mobilenetv2, small_convnet
from fljax.nn import layers, signals
from tests import conftest

to_float = signals.to_float
BEFORE, TRAINED, AFTER = (
    types.Role.FROZEN_BEFORE,
    types.Role.TRAINED,
    types.Role.FROZEN_AFTER,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def plain_batch_norm(x, scale, bias, mask):
    """Normalizes in one obvious expression, for automatic differentiation."""
    axes = tuple(range(x.ndim - 1))
    weights = jnp.ones(len(x)) if mask is None else mask
    weights = jnp.broadcast_to(weights.reshape(-1, *[1] * (x.ndim - 1)), x.shape)
    count = jnp.sum(weights[..., 0])
    mean = jnp.sum(x * weights, axes) / count
    var = jnp.sum((x - mean) ** 2 * weights, axes) / count
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_and_its_gradient(shape, masked):
    x = 2 * normal(0, *shape) + 3
    scale, bias = normal(1, shape[-1]), normal(2, shape[-1])
    mask = jnp.arange(shape[0]) < shape[0] - 2
    rows = mask.reshape(-1, *[1] * (len(shape) - 1))
    mask = mask.astype(jnp.float32) if masked else None
    # Rows of padding get no gradient from the loss, which leaves them out.
    g = normal(3, *shape) * (rows if masked else 1)

    def pull(norm):
        y, back = jax.vjp(lambda *a: norm(*a, mask), x, scale, bias)
        return y, back(g)

    ours, gradients = jax.jit(lambda: pull(lambda *a: norms.batch_norm(*a)[0]))()
    theirs, expected = jax.jit(lambda: pull(plain_batch_norm))()
    conftest.assert_close(ours, theirs, 1e-5)
    conftest.assert_close(gradients, expected, 2e-5)
    if masked:
        np.testing.assert_array_equal(gradients[0][-2:], jnp.zeros_like(x[-2:]))


def product(norm=True, relu=False, kernel=((2.0,),), **fields):
    """Makes a dense layer with a given kernel, and its variables."""
    kernel = jnp.asarray(kernel)
    layer = layers.dense(kernel.shape[1], norm=norm, relu=relu, **fields)
    x = jnp.zeros((1, kernel.shape[0]))
    variables = layer.init(jax.random.key(0), x, layers.Call())
    assert variables["params"]["kernel"].shape == kernel.shape
    return layer, {**variables, "params": {**variables["params"], "kernel": kernel}}


def test_running_statistics_by_hand():
    # 2 * (1, 3, 8): mean 8, squares 36, 4, 64, unbiased variance 104 / 2.
    layer, variables = product(momentum=1.0)
    x = jnp.array([[1.0], [3.0], [8.0]])
    y, update = layer.apply(variables, x, layers.Call(), mutable=["norms"])
    np.testing.assert_allclose(update["norms"]["mean"], [8])
    np.testing.assert_allclose(update["norms"]["var"], [52])
    deviation = np.sqrt(104 / 3 + 1e-5)  # the batch is normalized by the biased one
    np.testing.assert_allclose(y[:, 0], np.array([-6, -2, 8]) / deviation, rtol=1e-6)


def test_momentum_weighs_the_newest_batch():
    layer, variables = product(momentum=0.1)
    variables["norms"] = {"mean": jnp.array([10.0]), "var": jnp.array([1.0])}
    x = jnp.array([[1.0], [3.0]])  # products 2 and 6: mean 4, unbiased variance 8
    _, update = layer.apply(variables, x, layers.Call(), mutable=["norms"])
    np.testing.assert_allclose(update["norms"]["mean"], [9.4], rtol=1e-6)
    np.testing.assert_allclose(update["norms"]["var"], [0.9 + 0.8], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_init_leaves_running_statistics_unset(momentum):
    # What init runs on is no data: with a momentum below 1 it would never wash out.
    _, variables = product(momentum=momentum)
    np.testing.assert_array_equal(variables["norms"]["mean"], [0])
    np.testing.assert_array_equal(variables["norms"]["var"], [1])


def test_padding_is_no_part_of_the_statistics():
    layer, variables = product()
    x = jnp.array([[1.0], [3.0], [8.0], [1.0]])
    call = layers.Call(mask=jnp.array([1.0, 1, 1, 0]))
    _, update = layer.apply(variables, x, call, mutable=["norms"])
    np.testing.assert_allclose(update["norms"]["var"], [52], rtol=1e-6)


def test_one_example_has_a_finite_variance():
    layer, variables = product()
    _, update = layer.apply(
        variables, jnp.ones((1, 1)), layers.Call(), mutable=["norms"]
    )
    np.testing.assert_array_equal(update["norms"]["var"], [0])


def test_running_call_uses_the_running_statistics():
    layer, variables = product()
    variables["norms"] = {"mean": jnp.array([4.0]), "var": jnp.array([9.0])}
    y = layer.apply(variables, jnp.array([[5.0]]), layers.Call(running=True))
    np.testing.assert_allclose(y, [[6 / np.sqrt(9 + 1e-5)]], rtol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("spec", [specs.DEFAULT, specs.REFERENCE])
def test_observed_range_by_hand(relu, spec):
    layer, variables = product(norm=False, relu=relu)
    variables["params"]["bias"] = jnp.array([1.0])
    x = jnp.array([[1.0], [-5.0]])  # outputs 3 and -9
    y, update = layer.apply(variables, x, layers.Call(spec=spec), mutable=["ranges"])
    np.testing.assert_allclose(y, [[3], [0 if relu else -9]])
    # The reference observes before the ReLU, the default after it.
    after = relu and spec is specs.DEFAULT
    assert update["ranges"]["range"] == (3 if after else 9)


def test_evaluation_records_nothing():
    layer, variables = product(relu=True)
    before = jax.tree.map(np.array, variables)
    layer.apply(variables, jnp.array([[5.0], [6.0]]), layers.Call())
    conftest.assert_same_bits(variables, before)


@pytest.mark.parametrize(
    ("place", "largest"),
    # g = (3, -4); scale 0.5 of the running norm, then the kernel 2 (see below)
    [("product", 2.0), ("input", 3.0), ("nowhere", 0.0)],
)
def test_probe_returns_the_largest_gradient(place, largest):
    layer, variables = product(kernel=((2.0, 0), (0, 1)))
    spec = specs.Spec(gradient_place=place)
    var = jnp.full(2, 4.0 - 1e-5)  # the norm divides by 2
    variables["norms"] = {"mean": jnp.zeros(2), "var": var}
    g = jnp.array([[3.0, -4.0]])

    def loss(backward, x):
        call = layers.Call(spec=spec, running=True)
        return jnp.sum(g * layer.apply({**variables, "backward": backward}, x, call))

    probed, dx = jax.grad(loss, (0, 1))({"range": jnp.float32(7)}, jnp.ones((1, 2)))
    np.testing.assert_allclose(dx, [[3, -2]], rtol=1e-6)
    np.testing.assert_allclose(probed["range"], largest)


BLOCKS = {
    "conv": (small_convnet.ConvBlock(6, 1), 4),
    "conv stride 2": (small_convnet.ConvBlock(6, 2), 4),
    "residual, shortcut": (mobilenetv2.InvertedResidual(2, 6, 1), 4),
    "residual, identity": (mobilenetv2.InvertedResidual(2, 4, 1), 4),
    "residual, stride 2": (mobilenetv2.InvertedResidual(2, 6, 2), 4),
}
SPECS = {
    "default": specs.DEFAULT,
    "reference": specs.REFERENCE,
    "requantized": specs.Spec(requantize_after=True, gradient_place="input"),
    "dynamic": specs.Spec(input_range="dynamic"),
}


def similarity(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def largest_error(ours, exact):
    """Largest difference, as a share of the largest value."""
    return float(jnp.max(jnp.abs(ours - exact)) / jnp.max(jnp.abs(exact)))


def roles_of(block, channels, spec):
    """Runs a block in all roles on the batch that it was observed on.

    Returns:
      name of the role -> (output, input gradient).
    """

    @jax.jit
    def run(variables, x, g):
        shape = jax.eval_shape(lambda: block.apply(variables, x, layers.Call())).shape
        cotangent = g[:, : shape[1], : shape[2], :1] * jnp.ones(shape)

        def train(backward):
            state = {**variables, "backward": backward}
            call = layers.Call(spec=spec)
            y, update = block.apply(state, x, call, mutable=["norms", "ranges"])
            return jnp.sum(y * cotangent), update

        backward, update = jax.grad(train, has_aux=True)(variables["backward"])
        state = {**variables, **update, "backward": backward}

        def pulled(variables, call):
            y, pull = jax.vjp(lambda x: to_float(block.apply(variables, x, call)), x)
            return y, pull(cotangent)[0]

        result = {"float": pulled(state, layers.Call(spec=spec, running=True))}
        for role in (BEFORE, AFTER):
            call = layers.Call(role, spec)
            _, frozen = block.apply(state, x, call, mutable=["frozen"])
            assert set(frozen) == {"frozen"}  # and this is all that the role reads
            result[role.value] = pulled(frozen, call)
        return result

    shape = (16, 6, 6, channels)
    return run(drawn(block, channels), normal(0, *shape), normal(1, *shape))


@functools.cache
def drawn(block, channels):
    """Draws variables with numpy: compiling `init` costs more than the tests do."""
    x = jax.ShapeDtypeStruct((1, 6, 6, channels), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: block.init(jax.random.key(0), x, layers.Call()), x
    )
    generator = np.random.default_rng(0)

    def leaf(path, shape):
        name = path[-1].key
        x = generator.standard_normal(shape.shape).astype(np.float32)
        if name == "kernel":
            return x / np.sqrt(np.prod(shape.shape[:-1]), dtype=np.float32)
        if name == "range":
            return np.float32(3)
        # Norms that do something: scales and biases that differ by channel.
        return 0.3 * x + (name in ("scale", "var"))

    variables = {k: v for k, v in shapes.items() if k != "counts"}
    return jax.tree_util.tree_map_with_path(leaf, variables)


def observed(block, variables, x, spec=specs.DEFAULT):
    """Gives the variables as a training step of length 0 on x leaves them."""
    call = layers.Call(spec=spec)
    _, update = block.apply(variables, x, call, mutable=["norms", "ranges"])
    return {**variables, **update}


# block, spec, tolerances: largest error of the output as a share of its largest value
# (a code is 1/255 or 1/127 of it, 1/63.5 for the reference), and cosine of the input
# gradient, which differs where a rounded value falls on the other side of a ReLU (and
# which the reference quantizes by the range of another tensor).
CASES = [
    ("conv", "default", 0.015, 0.99),
    ("residual, shortcut", "default", 0.025, 0.985),
    ("residual, identity", "default", 0.025, 0.985),
    ("residual, stride 2", "default", 0.025, 0.98),
    ("conv stride 2", "reference", 0.05, 0.95),
    ("residual, shortcut", "reference", 0.06, 0.95),
    ("residual, shortcut", "requantized", 0.025, 0.985),
    ("residual, shortcut", "dynamic", 0.025, 0.985),
]


@pytest.mark.parametrize(("block", "spec", "error", "cosine"), CASES)
def test_frozen_roles_are_the_float_block_within_a_few_codes(
    block, spec, error, cosine
):
    results = roles_of(*BLOCKS[block], SPECS[spec])
    y, dx = results["float"]
    for role in (BEFORE, AFTER):
        assert largest_error(results[role.value][0], y) <= error
    assert similarity(results[AFTER.value][1], dx) >= cosine
    np.testing.assert_array_equal(results[BEFORE.value][1], jnp.zeros_like(dx))


def test_frozen_before_hands_codes_on_and_after_hands_floats_on():
    block, channels = BLOCKS["conv"]
    for role, kind in ((BEFORE, quant.QArray), (AFTER, signals.Ranged)):

        @jax.jit
        def run(variables, x, call=layers.Call(role)):
            return block.apply(variables, x, call, mutable=["frozen"])[0]

        y = run(drawn(block, channels), normal(0, 2, 4, 4, channels))
        assert type(y) is kind
        assert y.shape == (2, 4, 4, 6)
    assert to_float(y) is y.value


def identity_layer(spec, role, largest=127.0, gradient=1.0, **fields):
    """Freezes a dense layer whose kernel is the identity on 2 channels.

    Returns:
      (x) -> its float output.
    """
    layer, variables = product(norm=False, kernel=((1.0, 0), (0, 1)), **fields)
    variables["params"]["bias"] = jnp.zeros(2)
    variables["ranges"] = {"range": jnp.float32(largest)}
    variables["backward"] = {"range": jnp.float32(gradient)}
    call = layers.Call(role, spec)
    _, frozen = layer.apply(variables, jnp.ones((1, 2)), call, mutable=["frozen"])
    return lambda x: to_float(layer.apply(frozen, x, call))


@pytest.mark.parametrize(("input_range", "small"), [("carried", 0), ("dynamic", 0.3)])
def test_carried_ranges_are_used_as_observed(input_range, small):
    # A code of the carried range is 1: 0.3 rounds to 0. One of the batch's is 0.0024.
    run = identity_layer(specs.Spec(input_range=input_range), AFTER)
    x = signals.Ranged(jnp.array([[0.3, 0.1]]), jnp.float32(127.0))
    np.testing.assert_allclose(run(x)[0, 0], small, atol=1e-3)


def test_an_unobserved_input_takes_the_range_of_the_batch():
    run = identity_layer(specs.Spec(input_range="carried"), AFTER)
    x = jnp.array([[0.3, 0.1]])
    np.testing.assert_allclose(run(x), x, atol=2e-3)
    np.testing.assert_allclose(run(signals.Ranged(x, None)), x, atol=2e-3)


def test_gradients_take_the_range_of_the_batch():
    # Observed at 127, but the codes go by what is there: 508 does not saturate.
    run = identity_layer(specs.DEFAULT, AFTER, gradient=127.0)
    _, pull = jax.vjp(run, jnp.ones((1, 2)))
    np.testing.assert_allclose(pull(jnp.array([[508.0, 0]]))[0][0, 0], 508)
    np.testing.assert_allclose(pull(jnp.array([[0.3, 0.1]]))[0][0, 0], 0.3, rtol=1e-3)


def test_the_output_range_of_a_frozen_block_is_the_observed_one():
    # Before the window the output has 255 codes up to 10 after a ReLU: 12 saturates.
    run = identity_layer(specs.DEFAULT, BEFORE, largest=10.0, relu=True)
    np.testing.assert_allclose(run(jnp.array([[12.0, -6.0]])), [[10, 0]], rtol=1e-6)


def test_frozen_weights_get_no_gradient():
    block, channels = BLOCKS["conv"]
    call = layers.Call(AFTER)

    @jax.jit
    def gradients(variables, x):
        state = observed(block, variables, x)
        _, frozen = block.apply(state, x, call, mutable=["frozen"])

        def loss(frozen, x):
            return jnp.sum(to_float(block.apply(frozen, x, call)) ** 2)

        of_frozen, of_x = jax.grad(loss, (0, 1), allow_int=True)(frozen, x)
        floats = [g for g in jax.tree.leaves(of_frozen) if g.dtype == jnp.float32]
        return floats, of_x

    floats, of_x = gradients(drawn(block, channels), normal(0, 2, 4, 4, channels))
    assert len(floats) >= 2  # scale and bias at least
    assert not any(g.any() for g in floats)
    assert jnp.any(of_x != 0)


@pytest.mark.parametrize("role", [TRAINED, BEFORE, AFTER])
@pytest.mark.parametrize("name", ["conv", "residual, stride 2"])
def test_padding_rows_change_nothing(role, name):
    block, channels = BLOCKS[name]

    def run(state, x, mask):
        call = layers.Call(role, mask=mask)
        if role is not TRAINED:
            _, state = block.apply(state, x, call, mutable=["frozen"])

        def forward(x):
            y, update = block.apply(state, x, call, mutable=["norms", "ranges"])
            return to_float(y)[:3], update

        y, pull, update = jax.vjp(forward, x, has_aux=True)
        return y, pull(jnp.cos(y))[0][:3], update

    @jax.jit
    def both(variables, x):
        state = observed(block, variables, x)
        padded = jnp.concatenate([x, x[:1], x[:1]])
        return run(state, padded, jnp.array([1.0, 1, 1, 0, 0])), run(state, x, None)

    padded, plain = both(drawn(block, channels), normal(0, 3, 4, 4, channels))
    conftest.assert_close(padded, plain, 2e-6)


def test_float_blocks_stay_float_when_frozen():
    # First and last blocks: batch statistics in every role, and gradients flow.
    block = mobilenetv2.Outer(3, 3)

    @jax.jit
    def run(variables, x):
        results = []
        for role in (TRAINED, BEFORE, AFTER):
            call, state = layers.Call(role), variables
            if role is not TRAINED:
                _, state = block.apply(variables, x, call, mutable=["frozen"])
                assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(state))

            def forward(x, state=state, call=call):
                return to_float(block.apply(state, x, call))

            y, pull = jax.vjp(forward, x)
            results.append((y, pull(jnp.cos(y))[0]))
        return results

    trained, before, after = run(drawn(block, 2), normal(0, 4, 5, 5, 2) + 1)
    assert jnp.any(trained[1] != 0)
    conftest.assert_close(before, trained, 1e-6)
    conftest.assert_close(after, trained, 1e-6)


def test_add_by_hand():
    add = layers.Add()
    a, b = jnp.array([[3.0, -1.0]]), jnp.array([[-5.0, 4.0]])
    y, update = add.apply({}, a, b, layers.Call(), mutable=["ranges"])
    np.testing.assert_array_equal(y, [[-2, 3]])
    assert update["ranges"]["range"] == 3
    variables = {"ranges": {"range": jnp.float32(127.0)}}
    before, _ = add.apply(variables, a, b, layers.Call(BEFORE), mutable=["frozen"])
    np.testing.assert_array_equal(before.codes, [[-2, 3]])  # a code is 1
    after, _ = add.apply(variables, a, b, layers.Call(AFTER), mutable=["frozen"])
    np.testing.assert_array_equal(after.value, [[-2, 3]])
    assert after.largest == 127


@pytest.mark.parametrize(("role", "base"), [(BEFORE, "default"), (AFTER, "reference")])
def test_stochastic_rounding_uses_every_key_once(role, base):
    # jax_debug_key_reuse raises where one key makes two draws: the same noise in a
    # layer's input and in its result, or forward and backward, is no unbiased rounding.
    block, channels = BLOCKS["residual, identity"]
    spec = dataclasses.replace(SPECS[base], rounding="stochastic")
    call = layers.Call(role, spec)
    variables = drawn(block, channels)

    @jax.jit
    def run(key, x):
        freeze_key, run_key = jax.random.split(key)
        rngs = {"rounding": freeze_key}
        _, frozen = block.apply(variables, x, call, mutable=["frozen"], rngs=rngs)

        def forward(x):
            y = block.apply(frozen, x, call, rngs={"rounding": run_key})
            return jnp.sum(jnp.sin(to_float(y)))

        return jax.value_and_grad(forward)(x)

    x = normal(0, 2, 4, 4, channels)
    (first, slope), (second, other) = (run(jax.random.key(i), x) for i in range(2))
    assert first != second
    assert np.any(slope != other) == (role is AFTER)  # nothing passes a prefix


KINDS = {
    "dense": (layers.dense(50, norm=False), (1, 400), 400),
    "conv": (layers.conv(40, 3), (1, 4, 4, 20), 180),
    "depthwise": (layers.depthwise(3), (1, 4, 4, 300), 9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_drawn_as_torch_draws_them(kind):
    # Uniform within 1 / sqrt(fan in), torch's default for linear layers and
    # convolutions; a depthwise output sees one channel.
    layer, shape, fan_in = KINDS[kind]
    params = layer.init(jax.random.key(0), jnp.zeros(shape), layers.Call())["params"]
    bound = fan_in**-0.5
    largest = float(jnp.abs(params["kernel"]).max())
    assert 0.99 * bound < largest <= bound
    np.testing.assert_allclose(jnp.std(params["kernel"]), bound / 3**0.5, rtol=0.05)
    if kind == "dense":
        assert 0.9 * bound < float(jnp.abs(params["bias"]).max()) <= bound
    else:
        np.testing.assert_array_equal(params["scale"], jnp.ones_like(params["scale"]))
        assert not params["bias"].any()


def test_norms_whose_statistics_are_not_sent_keep_them():
    layer = layers.conv(3, 1, quantized=False, tracked=False)
    x = jax.random.normal(jax.random.key(1), (4, 2, 2, 2))
    variables = layer.init(jax.random.key(0), x, layers.Call())
    assert not set(variables) & {"ranges", "backward"}
    y, changed = layer.apply(variables, x, layers.Call(), mutable=["norms"])
    variables |= changed
    alone = layer.apply(variables, x[:1], layers.Call(running=True))
    np.testing.assert_allclose(alone, y[:1], rtol=0.1, atol=0.1)  # 16 values: 16 / 15


@pytest.mark.parametrize("role", [BEFORE, AFTER])
def test_without_codes_a_frozen_block_is_the_float_block_by_running_statistics(role):
    block = mobilenetv2.InvertedResidual(2, 4, 1)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    variables = block.init(jax.random.key(1), x, layers.Call())
    _, updates = block.apply(variables, x, layers.Call(), mutable=["norms", "ranges"])
    variables |= updates
    expected = block.apply(variables, x, layers.Call(running=True))
    call = layers.Call(role, specs.FLOAT)
    _, frozen = block.apply(variables, x, call, mutable=["frozen"])
    y = block.apply(frozen, x, call)
    assert not isinstance(y, quant.QArray)
    np.testing.assert_allclose(to_float(y), expected, 1e-4, 1e-4)
