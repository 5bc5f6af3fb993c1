"""Blocks in codes of 2 and 3 bits: closer to floats than max|x| gets, in all roles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import types
from fljax.kernels import quant, specs
from fljax.models import densenet, mobilenetv2, small_convnet, transformer
from fljax.nn import joins, layers, lone_norms, network, signals
from tests import conftest
from tests.nn import test_layers as floats

BEFORE, AFTER = types.Role.FROZEN_BEFORE, types.Role.FROZEN_AFTER


class Dense(small_convnet.ConvBlock):
    """A dense layer on every position, its norm and a ReLU."""

    @layers.nn.compact
    def __call__(self, x, call):
        """Maps [B, H, W, in] to [B, H, W, features]."""
        return layers.dense(self.features, norm=True, relu=True, name="dense")(x, call)


BLOCKS = {
    "conv": (small_convnet.ConvBlock(6, 1), 16),
    "dense": (Dense(6, 1), 16),
    "depthwise and sum": (mobilenetv2.InvertedResidual(2, 8, 1), 8),
}


def errors(block, channels, spec):
    """Gives relative squared errors of outputs, and one minus the gradient's cosine."""
    results = floats.roles_of(block, channels, spec)
    y, dx = results["float"]
    off = [
        float(jnp.sum((results[role.value][0] - y) ** 2) / jnp.sum(y**2))
        for role in (BEFORE, AFTER)
    ]
    return [*off, 1 - floats.similarity(results[AFTER.value][1], dx)]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_narrow_codes_are_closer_than_those_of_the_largest(name, bits):
    *plain, plain_slope = errors(*BLOCKS[name], specs.Spec(bits=bits, narrow=0))
    *ours, slope = errors(*BLOCKS[name], specs.Spec(bits=bits))
    assert np.all(np.array(ours) < 0.8 * np.array(plain)), (ours, plain)
    assert slope < plain_slope


def test_a_batch_gives_what_its_examples_give():
    # Ranges are of each example: neither padding nor the others move it.
    block, channels = BLOCKS["conv"]
    spec = specs.Spec(bits=2)
    call = layers.Call(AFTER, spec)
    x, g = floats.normal(0, 3, 6, 6, channels), floats.normal(1, 3, 6, 6, 6)
    x = x * jnp.float32([1, 10, 0.1]).reshape(3, 1, 1, 1)

    @jax.jit
    def run(variables, x, g):
        _, frozen = block.apply(variables, x, call, mutable=["frozen"])

        def pulled(x, g):
            apply = lambda x: floats.to_float(block.apply(frozen, x, call))  # noqa: E731
            y, pull = jax.vjp(apply, x)
            return y, pull(g)[0]

        alone = jax.vmap(lambda x, g: pulled(x[None], g[None]))(x, g)
        return pulled(x, g), jax.tree.map(lambda y: y[:, 0], alone)

    together, alone = run(floats.drawn(block, channels), x, g)
    conftest.assert_close(together, alone, 1e-6)


def test_sums_and_concatenations_before_the_window_have_half_steps():
    call = layers.Call(BEFORE, specs.Spec(bits=2))
    a, b = floats.normal(0, 2, 8), floats.normal(1, 2, 8)
    for module in (layers.Add(), joins.Concat()):
        variables = {"ranges": {"range": jnp.float32(4.4)}}
        y, _ = module.apply(variables, a, b, call, mutable=["frozen"])
        assert y.odd
        # An observed 4.4 counts as a deviation of 1: half steps of .9957, and .1188 of
        # the square is made up for.
        np.testing.assert_allclose(y.scale, 0.9957 / 2 / (1 - 0.1188), rtol=0.03)
        assert set(np.unique(np.asarray(y.codes))) <= {-3, -1, 1, 3}
    tiles = quant.QArray(jnp.int8([[1, 3], [3, 3]]).reshape(1, 2, 2, 1), 1.0, odd=True)
    assert joins.mean_pool(tiles).codes.item() == 3


def test_a_norm_alone_gives_the_range_of_its_scale_and_bias():
    norm = lone_norms.LayerNorm()
    x = floats.normal(0, 4, 8)
    call = layers.Call(BEFORE, specs.Spec(bits=2))
    variables = {
        "params": {"scale": jnp.full(8, 2.0), "bias": jnp.zeros(8)},
        "ranges": {"range": jnp.float32(100)},
    }
    y, _ = norm.apply(variables, x, call, mutable=["frozen"])
    np.testing.assert_allclose(y.scale, 2 * 0.9957 / 2 / (1 - 0.1188), rtol=0.03)


def small(blocks, **fields):
    return network.Network("small", blocks, **fields)


NETWORKS = {
    "norms first": small(
        (densenet.Stem(), densenet.DenseBlock(), densenet.Transition(),
         densenet.DenseBlock(), densenet.Classifier(3)),
        input_shape=(8, 8, 1), num_classes=3,
    ),
    "sequences": small(
        (transformer.Embedding(11, 8), transformer.EncoderLayer(12, 2),
         transformer.Classifier(3)),
        input_shape=(6,), num_classes=3, vocabulary=11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("role", [BEFORE, AFTER])
def test_networks_of_every_kind_run_in_two_bits(name, role):
    net = NETWORKS[name]
    spec = specs.Spec(bits=2)
    roles = (role,) * net.num_blocks

    @jax.jit
    def run(key):
        state = network.init(net, key)
        frozen = network.freeze(net, state, roles, spec)
        calls = [layers.Call(role, spec) for role in roles]
        x = network.noise(net, key, 3)
        return signals.to_float(network.run(net, frozen, x, calls)[0])

    assert np.isfinite(run(jax.random.key(0))).all()


def test_first_and_last_blocks_in_codes_may_be_wider():
    net = small_convnet.small_convnet()
    spec = specs.Spec(bits=2, edges=6)
    widths = [network.spec_of(net, spec, i).bits for i in range(net.num_blocks)]
    assert widths == [2, 6, 2, 2, 2, 2, 6, 2]  # 0 and 7 are in floats
    wide = dataclasses.replace(spec, bits=8)
    assert all(network.spec_of(net, wide, i) is wide for i in range(net.num_blocks))
