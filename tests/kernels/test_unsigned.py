"""Products of codes as unsigned by signed bytes: the same sums, of bytes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.kernels import convs, unsigned
from fljax.runtime import backends

EXTREMES = np.array([-128, -127, -1, 0, 1, 127])


def codes(*shape, seed=0):
    values = np.random.default_rng(seed).choice(
        np.concatenate([EXTREMES, np.arange(-128, 128)]), size=shape
    )
    return jnp.asarray(values, jnp.int8)


def exact(x, w):
    return np.asarray(x, np.int64) @ np.asarray(w, np.int64)


def test_by_hand():
    x = jnp.asarray([[-128, 127, 3]], jnp.int8)
    w = jnp.asarray([[1, -128], [2, -128], [-4, 0]], jnp.int8)
    expected = [[-128 + 254 - 12, 128 * 128 - 127 * 128]]
    np.testing.assert_array_equal(unsigned.product(x, w), expected)


@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 4, 8), (1, 1), (2, 700)])
def test_sums_are_exact(shape):
    x, w = codes(*shape), codes(shape[-1], 9, seed=1)
    result = jax.jit(unsigned.product)(x, w)
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(result, exact(x, w))


@pytest.mark.parametrize(
    ("x_axis", "w_axis"), [(0, None), (1, None), (None, 2), (1, 0)]
)
def test_clients(x_axis, w_axis):
    x, w = codes(4, 6, 5), codes(5, 7, seed=1)
    xs = x[0] if x_axis is None else jnp.stack([x, x[::-1]], x_axis)
    ws = w if w_axis is None else jnp.stack([w, w[::-1]], w_axis)
    result = jax.vmap(unsigned.product, (x_axis, w_axis))(xs, ws)
    for client in (0, 1):
        one = xs if x_axis is None else jnp.take(xs, client, x_axis)
        weights = ws if w_axis is None else jnp.take(ws, client, w_axis)
        np.testing.assert_array_equal(result[client], exact(one, weights))


def test_clients_of_clients():
    x, w = codes(2, 3, 4, 5), codes(2, 5, 6, seed=1)
    inner = jax.vmap(unsigned.product, (0, None))
    result = jax.vmap(inner, (1, 0), 1)(x.swapaxes(0, 1), w)
    np.testing.assert_array_equal(result, exact(x, w[:, None]).swapaxes(0, 1))


def test_operands_stay_bytes():
    lowered = jax.jit(unsigned.product).lower(codes(4, 8), codes(8, 3)).as_text()
    product = next(line for line in lowered.splitlines() if "dot_general" in line)
    assert "tensor<4x8xui8>, tensor<8x3xi8>" in product


FORMS = {
    "dot": lambda x, w: convs.dot(x, w[0, 0]),
    "transposed": lambda x, w: convs.dot_transposed(x, w[0, 0].T),
    "conv": lambda x, w: convs.conv(x, w, pad_value=-7),
    "strided": lambda x, w: convs.conv(x, w, 2),
    "gradient": lambda x, w: convs.conv_input_gradient(x, w.swapaxes(2, 3), (9, 9), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_product_of_codes_is_the_same_either_way(form, monkeypatch):
    x, w = codes(2, 5, 5, 4), codes(3, 3, 4, 6, seed=1)
    results, made_of = [], []
    for pays in (False, True):
        monkeypatch.setattr(unsigned, "pays", lambda pays=pays: pays)

        def fresh(x, w):  # traced anew
            return FORMS[form](x, w)

        results.append(jax.jit(fresh)(x, w))
        made_of.append("unsigned_product" in str(jax.make_jaxpr(fresh)(x, w)))
    assert made_of == [False, True]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("features", "accelerated", "pays"),
    [
        ({"avx512_vnni", "avx2"}, False, True),
        ({"amx_int8"}, False, True),
        ({"avx2"}, False, False),
        (set(), False, False),
        ({"avx512_vnni"}, True, False),
    ],
)
def test_pays(features, accelerated, pays, monkeypatch):
    monkeypatch.setattr(backends, "processor_features", lambda: frozenset(features))
    monkeypatch.setattr(backends, "accelerated", lambda: accelerated)
    assert unsigned.pays() is pays
