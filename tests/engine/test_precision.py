"""Activations in bfloat16: which dtype flows where, how near it comes to float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import experiment, models, types
from fljax.engine import sums as totals
from fljax.experiment import config as configs
from fljax.kernels import convs, norms, specs
from fljax.nn import layers, network, signals
from tests import conftest
from tests.engine.test_cohort import run
from tests.engine.test_mixed import run_mixed

# Every kind of layer; the others are made of the same, and take long to trace.
IMAGES = ("mobilenetv2", "mobilenetv2_gn", "resnet18", "densenet40", "cnn", "logistic")


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("spec", [specs.DEFAULT, specs.REFERENCE, specs.FLOAT])
def test_blocks_keep_the_dtype_and_record_float32(name, spec):
    net = models.BY_NAME[name]((32, 32, 3), 10)
    kinds = list(dict.fromkeys(net.blocks[:-1]))[:6]  # the others are alike
    net = net._replace(blocks=(*kinds, net.blocks[-1]))

    def through(x):
        state = network.init(net, jax.random.key(0))
        trained = [layers.Call(types.Role.TRAINED, spec)] * net.num_blocks
        changing = ("norms", "ranges")
        y, updates = network.run(net, state, x, trained, mutable=changing)
        roles = [types.Role.FROZEN_AFTER] * net.num_blocks
        frozen = network.freeze(net, state, roles, spec)
        calls = [layers.Call(role, spec) for role in roles]
        z, _ = network.run(net, frozen, x, calls)
        return y, signals.to_float(z), updates

    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.bfloat16)
    y, z, updates = jax.eval_shape(through, x)
    assert (y.dtype, z.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))


def _gradients(function, x, kernel, dtype):
    y, back = jax.vjp(function, x.astype(dtype), kernel)
    assert y.dtype == dtype
    dx, d_kernel = back(jnp.ones_like(y) * jnp.arange(y.shape[-1], dtype=y.dtype))
    assert dx.dtype == dtype
    assert d_kernel.dtype == jnp.float32
    return [a.astype(jnp.float32) for a in (y, dx, d_kernel)]


@pytest.mark.parametrize(
    ("form", "kernel"),
    [
        (convs.conv, (1, 1, 6, 12)),
        (convs.conv, (3, 3, 6, 12)),
        (convs.depthwise, (3, 3, 6)),
    ],
)
@pytest.mark.parametrize("images", [2, 64])
def test_products_come_near_float32(form, kernel, images):
    x = jax.random.normal(jax.random.key(0), (images, 16, 16, 6))
    w = jax.random.normal(jax.random.key(1), kernel)
    half = _gradients(form, x, w, jnp.bfloat16)
    for ours, exact in zip(half, _gradients(form, x, w, jnp.float32), strict=True):
        error = jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)
        assert 0 < error < 5e-3  # 2^-8: a code of 8 bits of mantissa


def test_sums_of_many_rows_are_not_in_bfloat16():
    # In bfloat16 a sum of ones stays at 256.
    x, w = jnp.ones((4096, 4), jnp.bfloat16), jnp.zeros((4, 2))
    _, back = jax.vjp(convs.dot, x, w)
    assert back(jnp.ones((4096, 2), jnp.bfloat16))[1].tolist() == [[4096.0] * 2] * 4
    _, mean, *_ = norms.batch_norm(x, jnp.ones(4), jnp.zeros(4), None)
    assert mean.tolist() == [1.0] * 4
    y, back = jax.vjp(lambda b: norms.batch_norm(x, jnp.ones(4), b, None)[0], w[:, 0])
    assert back(jnp.ones_like(y))[0].tolist() == [4096.0] * 4


@pytest.mark.parametrize("plan", [conftest.FULL, conftest.MIDDLE, conftest.LATE])
def test_a_clients_update_comes_near_that_in_float32(problem, plan):
    half = problem._replace(training=problem.training._replace(precision="bfloat16"))
    exact, ours = (
        np.asarray(run(p, plan, [0, 1]).totals.deltas) for p in (problem, half)
    )
    assert ours.dtype == np.float32
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    # Two steps of a network of 8 channels; codes turn where values lie between two.
    assert 0 < error < 0.25


@pytest.mark.parametrize("width", [1, 2])
def test_windows_share_a_program(problem, width):
    half = problem._replace(training=problem.training._replace(precision="bfloat16"))
    assigned = {0: conftest.LATE, 1: conftest.MIDDLE}
    ours = run_mixed(half, assigned, width)
    own = None
    for number, plan in assigned.items():
        own = run(half, plan, [number], cohort_ids=tuple(assigned), sums=own)
    own = totals.total(own)
    ours, own = (np.asarray(sums.totals.deltas) for sums in (ours, own))
    assert np.linalg.norm(ours - own) < 0.25 * np.linalg.norm(own)


def test_networks_of_tokens_are_refused():
    x, y = np.ones((8, 6), np.int32), np.zeros(8, np.int32)
    data = types.Dataset(x, y, x, y, 5, vocabulary=5)
    settings = configs.Config(
        network="char_transformer",
        num_clients=2,
        clients_per_round=2,
        precision="bfloat16",
    )
    with pytest.raises(ValueError, match="--precision: expected float32 for network"):
        experiment.build(settings, data)


def test_unknown_precision_is_named():
    with pytest.raises(ValueError, match="--precision: expected float32, bfloat16"):
        configs.check(configs.Config(precision="half"))
