"""Codes multiplied in floats: the sums of int8, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import types
from fljax.kernels import convs, quant, specs
from fljax.nn import layers, network, signals
from fljax.runtime import backends
from tests import conftest, small
from tests.kernels.test_unsigned import codes, exact

FLOATS = ["bfloat16", "float32"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("depth", [1, 33, 1024])
def test_sums_are_exact(depth, dtype):
    x, w = codes(3, 5, depth), codes(depth, 9, seed=1)
    result = jax.jit(convs.dot)(x, w.astype(dtype))
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(result, exact(x, w))
    turned = jax.jit(convs.dot_transposed)(x, w.T.astype(dtype))
    np.testing.assert_array_equal(turned, exact(x, w))


def test_the_largest_sums_that_floats_hold_and_those_that_they_do_not():
    def both(depth, last):
        x = jnp.full((1, depth), -128, jnp.int8).at[0, -1].set(last)
        w = jnp.full((depth, 1), -128, jnp.int8).at[-1, 0].set(1)
        jaxpr = jax.make_jaxpr(convs.dot)(x, w.astype(jnp.float32))
        floats = "preferred_element_type=float32" in str(jaxpr)
        return floats, int(convs.dot(x, w.astype(jnp.float32))[0, 0])

    assert both(1024, 3) == (True, 1023 * 2**14 + 3)
    assert both(1026, 3) == (False, 1025 * 2**14 + 3)  # odd, and above 2^24


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(stride, dtype):
    x, kernel = codes(2, 7, 6, 5), codes(3, 3, 5, 4, seed=1)
    ours = convs.conv(x, kernel.astype(dtype), stride, pad_value=-3)
    np.testing.assert_array_equal(ours, convs.conv(x, kernel, stride, pad_value=-3))
    g = codes(*ours.shape, seed=2)
    sides = x.shape[1:3]
    ours = convs.conv_input_gradient(g, kernel.astype(dtype), sides, stride)
    plain = convs.conv_input_gradient(g, kernel, sides, stride)
    assert ours.dtype == plain.dtype == jnp.int32
    np.testing.assert_array_equal(ours, plain)


def test_clients_that_share_weights():
    x, w = codes(4, 6, 5), codes(5, 7, seed=1)
    ours = jax.vmap(convs.dot, (0, None))(x, w.astype(jnp.bfloat16))
    np.testing.assert_array_equal(ours, exact(x, w))


def frozen_before(products):
    """Makes what freezes a network with norms and runs it on images, in codes."""
    net = small.CONVNET
    spec = dataclasses.replace(specs.DEFAULT, products=products)
    role = types.Role.FROZEN_BEFORE

    def run(x):
        state = network.init(net, jax.random.key(0))
        frozen = network.freeze(net, state, (role,) * net.num_blocks, spec)
        calls = [layers.Call(role, spec)] * net.num_blocks
        y, _ = network.run(net, list(frozen), x, calls)
        return signals.to_float(y), frozen

    return run


def test_a_frozen_network_gives_the_same_bits():
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    plain, of_bytes = jax.jit(frozen_before("int8"))(x)
    ours, of_floats = jax.jit(frozen_before("bfloat16"))(x)
    assert jnp.std(plain) > 0
    np.testing.assert_array_equal(ours, plain)
    types_of = [
        {leaf.dtype for leaf in jax.tree.leaves(frozen)}
        for frozen in (of_bytes, of_floats)
    ]
    assert [jnp.dtype("bfloat16") in met for met in types_of] == [False, True]


@pytest.mark.parametrize("width", [1, 2])
def test_rounds_give_the_same(width):
    def trained(products):
        ready = small.build(
            small.CONVNET,
            algorithm="cocofl",
            client_width=width,
            frozen=specs.Frozen(products=products),
        )
        ((_, assignment, new, _),) = small.rounds(ready, 1)
        assert any(plan.first > 0 for plan in assignment.plans)
        return new.server.blocks

    conftest.assert_close(trained("bfloat16"), trained("auto"))


def test_on_cpu_codes_stay_bytes():
    w = quant.quantize_weights(jnp.ones((3, 2)), specs.DEFAULT)
    assert backends.code_products() == "int8"
    assert quant.for_products(w, specs.DEFAULT).codes.dtype == jnp.int8


def test_bad_type():
    with pytest.raises(ValueError, match="products: expected auto, int8, bfloat16"):
        specs.Spec(products="int4")
    with pytest.raises(ValueError, match=r"frozen.products: expected .*, got 'int4'"):
        specs.Frozen(products="int4")
