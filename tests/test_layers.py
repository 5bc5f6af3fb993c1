"""Layers: norms, observers and probes by hand; frozen roles against the float block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fljax import layers, quant, types
from fljax.models import mobilenetv2, small_convnet
from tests import conftest

BEFORE, TRAINED, AFTER = (
    types.Role.FROZEN_BEFORE,
    types.Role.TRAINED,
    types.Role.FROZEN_AFTER,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def plain_batch_norm(x, scale, bias, mask):
    """Normalises in one obvious expression, for automatic differentiation."""
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

    ours, gradients = jax.jit(lambda: pull(lambda *a: layers._batch_norm(*a)[0]))()
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
    deviation = np.sqrt(104 / 3 + 1e-5)  # the batch is normalised by the biased one
    np.testing.assert_allclose(y[:, 0], np.array([-6, -2, 8]) / deviation, rtol=1e-6)


def test_momentum_weighs_the_newest_batch():
    layer, variables = product(momentum=0.1)
    x = jnp.array([[1.0], [3.0]])  # products 2 and 6: mean 4, unbiased variance 8
    _, update = layer.apply(variables, x, layers.Call(), mutable=["norms"])
    np.testing.assert_allclose(update["norms"]["mean"], [0.4], rtol=1e-6)
    np.testing.assert_allclose(update["norms"]["var"], [0.9 + 0.8], rtol=1e-6)


def test_padding_is_no_part_of_the_statistics():
    layer, variables = product()
    x = jnp.array([[1.0], [3.0], [8.0], [1.0]])
    call = layers.Call(mask=jnp.array([1.0, 1, 1, 0]))
    _, update = layer.apply(variables, x, call, mutable=["norms"])
    np.testing.assert_allclose(update["norms"]["var"], [52], rtol=1e-6)


def test_one_example_has_a_finite_variance():
    layer, variables = product()
    _, update = layer.apply(variables, jnp.ones((1, 1)), layers.Call(), mutable=["norms"])
    np.testing.assert_array_equal(update["norms"]["var"], [0])


def test_running_call_uses_the_running_statistics():
    layer, variables = product()
    variables["norms"] = {"mean": jnp.array([4.0]), "var": jnp.array([9.0])}
    y = layer.apply(variables, jnp.array([[5.0]]), layers.Call(running=True))
    np.testing.assert_allclose(y, [[6 / np.sqrt(9 + 1e-5)]], rtol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("spec", [quant.DEFAULT, quant.REFERENCE])
def test_observed_range_by_hand(relu, spec):
    layer, variables = product(norm=False, relu=relu)
    variables["params"]["bias"] = jnp.array([1.0])
    x = jnp.array([[1.0], [-5.0]])  # outputs 3 and -9
    y, update = layer.apply(variables, x, layers.Call(spec=spec), mutable=["ranges"])
    np.testing.assert_allclose(y, [[3], [0 if relu else -9]])
    # The reference observes before the ReLU, the default after it.
    after = relu and spec is quant.DEFAULT
    assert update["ranges"]["range"] == (3 if after else 9)


def test_evaluation_records_nothing():
    layer, variables = product(relu=True)
    before = jax.tree.map(np.array, variables)
    layer.apply(variables, jnp.array([[5.0], [6.0]]), layers.Call())
    conftest.assert_same_bits(variables, before)


@pytest.mark.parametrize(
    ("place", "largest"),
    # g = (3, -4); scale 0.5 of the running norm, then the kernel 2 (see below)
    [("output", 4.0), ("product", 2.0), ("input", 4.0), ("nowhere", 0.0)],
)
def test_probe_returns_the_largest_gradient(place, largest):
    layer, variables = product(kernel=((2.0, 0), (0, 1)))
    spec = quant.Spec(gradient_place=place)
    var = jnp.full(2, 4.0 - layers.EPSILON)  # the norm divides by 2
    variables["norms"] = {"mean": jnp.zeros(2), "var": var}
    g = jnp.array([[3.0, -4.0]])

    def loss(backward, x):
        call = layers.Call(spec=spec, running=True)
        return jnp.sum(g * layer.apply({**variables, "backward": backward}, x, call))

    probed, dx = jax.grad(loss, (0, 1))({"range": jnp.float32(7)}, jnp.ones((1, 2)))
    np.testing.assert_allclose(dx, [[3, -2]], rtol=1e-6)
    np.testing.assert_allclose(probed["range"], 3 if place == "input" else largest)


BLOCKS = {
    "conv": (small_convnet.ConvBlock(6, 1), 4),
    "conv stride 2": (small_convnet.ConvBlock(6, 2), 4),
    "residual, shortcut": (mobilenetv2.InvertedResidual(2, 6, 1), 4),
    "residual, identity": (mobilenetv2.InvertedResidual(2, 4, 1), 4),
    "residual, stride 2": (mobilenetv2.InvertedResidual(2, 6, 2), 4),
}
SPECS = {
    "default": quant.DEFAULT,
    "reference": quant.REFERENCE,
    "reference, probed at the input": dataclasses.replace(
        quant.REFERENCE, gradient_place="input"
    ),
    "requantised": quant.Spec(requantise_after=True, gradient_place="input"),
    "observed": quant.Spec(gradient_range="observed", gradient_place="output"),
    "all codes": quant.Spec(depthwise_after=True, input_range="dynamic"),
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
      name -> (output, input gradient or None).
    """
    x, g = normal(0, 16, 6, 6, channels), normal(1, 16, 6, 6, channels)

    @jax.jit
    def run(key):
        variables = block.init(key, x, layers.Call())
        # Norms that do something: drawn scales and biases.
        variables = {**variables, "params": perturbed(variables["params"])}
        shape = jax.eval_shape(lambda: block.apply(variables, x, layers.Call())).shape
        cotangent = g[:, : shape[1], : shape[2], :1] * jnp.ones(shape)

        def train(backward):
            state = {**variables, "backward": backward}
            call = layers.Call(spec=spec)
            y, update = block.apply(state, x, call, mutable=["norms", "ranges"])
            return jnp.sum(y * cotangent), update

        backward, update = jax.grad(train, has_aux=True)(variables["backward"])
        state = {**variables, **update, "backward": backward}

        def pulled(apply):
            y, pull = jax.vjp(lambda x: layers.to_float(apply(x)), x)
            return y, pull(cotangent)[0]

        result = {
            "float": pulled(
                lambda x: block.apply(state, x, layers.Call(spec=spec, running=True))
            )
        }
        for role in (BEFORE, AFTER):
            call = layers.Call(role, spec)
            _, frozen = block.apply(state, x, call, mutable=["frozen"])
            assert set(frozen) == {"frozen"}

            def apply(x, frozen=frozen, call=call):
                return block.apply(frozen, x, call)

            result[role.value] = pulled(apply)
        return result

    return run(jax.random.key(0))


def perturbed(params):
    """Moves the scales and biases of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        if path[-1].key != "kernel"
        else x,
        params,
    )


@pytest.mark.parametrize(
    ("block", "spec"),
    [(block, "default") for block in BLOCKS]
    + [(block, "reference") for block in ("conv", "residual, stride 2")]
    + [("residual, shortcut", spec) for spec in SPECS if spec != "default"],
)
def test_frozen_roles_are_the_float_block_within_a_few_codes(block, spec):
    results = roles_of(*BLOCKS[block], SPECS[spec])
    y, dx = results["float"]
    for role in (BEFORE, AFTER):
        print(block, spec, role, largest_error(results[role.value][0], y), similarity(results[role.value][0], y))
    print("dx", similarity(results[AFTER.value][1], dx), largest_error(results[AFTER.value][1], dx))
