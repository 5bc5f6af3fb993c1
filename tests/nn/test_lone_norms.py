"""Lone norms, concatenation and pooling: by hand, and against plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import plans, types
from fljax.engine import client
from fljax.engine.program import single
from fljax.kernels import convs, norms, specs
from fljax.models import densenet, mobilenetv2, resnet
from fljax.nn import joins, layers, lone_norms, network
from tests import conftest
from tests.nn import test_layers

BEFORE, AFTER = types.Role.FROZEN_BEFORE, types.Role.FROZEN_AFTER


def test_channel_norm_and_its_gradient():
    x = 2 * test_layers.normal(0, 3, 4, 2, 5) + 3
    scale, bias = test_layers.normal(1, 5), test_layers.normal(2, 5)
    g = test_layers.normal(3, *x.shape)

    def plain(x, scale, bias):
        mean = x.mean((1, 2), keepdims=True)
        var = ((x - mean) ** 2).mean((1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    def pull(norm):
        y, back = jax.vjp(norm, x, scale, bias)
        return y, back(g)

    ours, theirs = jax.jit(lambda: (pull(norms.channel_norm), pull(plain)))()
    conftest.assert_close(ours[0], theirs[0], 1e-5)
    conftest.assert_close(ours[1], theirs[1], 3e-5)


def test_channel_norm_by_hand():
    # 1 and 3: mean 2, variance 1; the other image does not matter.
    x = jnp.array([1.0, 3, 10, 50]).reshape(2, 2, 1, 1)
    y = norms.channel_norm(x, jnp.array([2.0]), jnp.array([5.0]))
    np.testing.assert_allclose(y[0].ravel(), [3, 7], rtol=1e-4)


def test_mean_pool_rounds_codes_half_to_even():
    x = jnp.array([[1, 2], [1, 2]], jnp.int8)[None, :, :, None]  # mean 1.5
    assert convs.mean_pool(x).ravel().tolist() == [2]
    assert convs.mean_pool(x + 1).ravel().tolist() == [2]
    assert convs.mean_pool(x).dtype == jnp.int8
    np.testing.assert_allclose(convs.mean_pool(x.astype(jnp.float32)).ravel(), [1.5])


def test_concat_brings_both_to_the_observed_range():
    concat, spec = joins.Concat(), specs.REFERENCE
    a, b = jnp.array([[2.0]]), jnp.array([[-4.0]])
    y, update = concat.apply({}, a, b, layers.Call(spec=spec), mutable=["ranges"])
    np.testing.assert_array_equal(y, [[2, -4]])
    assert update["ranges"]["range"] == 4
    call = layers.Call(BEFORE, spec)
    codes, _ = concat.apply({**update}, a, b, call, mutable=["frozen"])
    assert float(codes.scale) == pytest.approx(4 / 63.5)
    np.testing.assert_allclose(codes.dequantize(), y, atol=4 / 63.5)


@pytest.mark.parametrize("first", [False, True])
def test_the_entry_norm_of_the_first_block_records_nothing(first):
    norm = lone_norms.BatchNorm(momentum=1.0)
    x = jnp.array([[1.0], [3.0]])
    variables = norm.init(jax.random.key(0), x, layers.Call())
    call = layers.Call(first=first)
    y, update = norm.apply(variables, x, call, mutable=["norms", "ranges"])
    np.testing.assert_allclose(y, [[0], [1]], atol=1e-4)
    if first:
        conftest.assert_same_bits(update["norms"], variables["norms"])
    else:
        np.testing.assert_allclose(update["norms"]["mean"], [2])
        np.testing.assert_allclose(update["norms"]["var"], [2])
        np.testing.assert_allclose(update["ranges"]["range"], 1, rtol=1e-4)


# block, largest error of the frozen outputs, smallest cosine of the input gradient.
# (The cotangent of `roles_of` is the same in all channels, of which group norm keeps
# little: what is left shows the rounding more. Drawn by channel the cosine is 0.996.)
CASES = {
    "group norm": (mobilenetv2.InvertedResidual(2, 6, 1, True), 4, 0.04, 0.95),
    "basic": (resnet.BasicBlock(6, 2), 4, 0.03, 0.98),
}


@pytest.mark.parametrize("name", CASES)
def test_frozen_blocks_are_the_float_block_within_a_few_codes(name):
    block, channels, error, cosine = CASES[name]
    results = test_layers.roles_of(block, channels, specs.DEFAULT)
    y, dx = results["float"]
    for role in (BEFORE, AFTER):
        assert test_layers.largest_error(results[role.value][0], y) <= error
    assert test_layers.similarity(results[AFTER.value][1], dx) >= cosine


# Three blocks of each network: every role beside a trained window, cheap to compile.
NETS = {
    "group norm": (
        mobilenetv2.Outer(4, 3, group_norm=True),
        mobilenetv2.InvertedResidual(2, 4, 1, True),
        mobilenetv2.InvertedResidual(2, 6, 2, True),
        mobilenetv2.InvertedResidual(1, 6, 1, True),
        mobilenetv2.Classifier(3),
    ),
    "resnet": (
        mobilenetv2.Outer(4, 3),
        resnet.BasicBlock(4),
        resnet.BasicBlock(6, 2),
        resnet.Bottleneck(2),
        mobilenetv2.Classifier(3),
    ),
    "densenet": (
        densenet.Stem(),
        densenet.DenseBlock(),
        densenet.Transition(),
        densenet.DenseBlock(),
        densenet.Classifier(3),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("group norm", specs.REFERENCE),
        ("resnet", specs.DEFAULT),
        ("densenet", specs.REFERENCE),
    ],
)
def test_networks_train_in_every_role(name, spec):
    net = network.Network(name, NETS[name], (8, 8, 1), 3)
    training = client.Training(batch_size=4, spec=spec)
    data = conftest.make_data()
    plan = plans.Plan(2, 2)

    @jax.jit
    def run(key):
        state = network.init(net, key)
        state = client.calibrate(net, state, spec, key)
        frozen = network.freeze(net, state, plans.roles(plan, 5), spec)
        static = client.Static(net, single.Single(plan), training)
        start = client.Start(state, frozen, data, 0.1)
        return client.train(
            static, start, client.Client(jnp.arange(8), jnp.int32(7), key)
        )

    with jax.debug_key_reuse(False):  # one key for all draws: nothing is compared
        result = run(jax.random.key(0))
    assert np.isfinite(result.loss)
    moved = jax.tree.leaves(result.delta[2]["params"])
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in moved)
    assert [i for i, block in enumerate(result.delta) if block] == [2]
    if name == "densenet":
        assert not np.any(result.delta[2]["norms"]["norm"]["mean"])


def test_quirks_leave_ranges_as_the_reference_starts_them():
    net = network.Network("resnet", NETS["resnet"], (8, 8, 1), 3)
    spec = specs.Spec(reference_quirks=True)
    shapes = jax.eval_shape(lambda: network.init(net, jax.random.key(0)))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    start = client.calibrate(net, state, spec, jax.random.key(1))
    ranges = jax.tree.leaves([[b["ranges"], b["backward"]] for b in start])
    assert ranges
    np.testing.assert_allclose(ranges, 6.35, rtol=1e-6)
    conftest.assert_same_bits([b["norms"] for b in start], [b["norms"] for b in state])
