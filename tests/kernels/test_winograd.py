"""Winograd's convolution against the sum it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.kernels import convs, winograd
from fljax.runtime import backends

SIZES = [(4, 6), (5, 6), (6, 3), (1, 1), (2, 7)]


def _draw(height, width, dtype=np.float32):
    generator = np.random.default_rng(height * 10 + width)
    padded = generator.standard_normal((2, height + 2, width + 2, 3)).astype(dtype)
    kernel = generator.standard_normal((3, 3, 3, 5)).astype(dtype)
    return padded, kernel, generator.standard_normal((2, height, width, 5), dtype)


def _sum(padded, kernel):
    """Adds up nine shifted products in float64."""
    _, height, width, _ = (side - 2 for side in padded.shape)
    return sum(
        np.einsum("bhwi,io->bhwo", padded[:, i : i + height, j : j + width], taps)
        for i, row in enumerate(kernel.astype(np.float64))
        for j, taps in enumerate(row)
    )


@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients(size):
    padded, kernel, g = _draw(*size)
    out, pull = jax.vjp(jax.jit(winograd.conv), padded, kernel)
    np.testing.assert_allclose(out, _sum(padded, kernel), 1e-5, 1e-5)
    # A convolution is linear in each factor: <conv(x, w), g> = <x, dx> = <w, dw>.
    dx, dw = pull(g)
    for i, (value, slope) in enumerate(((padded, dx), (kernel, dw))):
        assert slope.shape == value.shape
        other = np.random.default_rng(1).standard_normal(value.shape, np.float32)
        moved = [padded, kernel]
        moved[i] = other
        np.testing.assert_allclose(
            np.vdot(other, slope), np.vdot(_sum(*moved), g), 1e-4, 1e-4
        )


def test_one_tile_by_hand():
    padded = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 2].set(2.0).at[0, 0].set(1.0)
    # Twice what lies right of the center and once what lies above and left of it.
    np.testing.assert_array_equal(
        winograd.conv(padded, kernel)[0, :, :, 0],
        [[2 * 6 + 0, 2 * 7 + 1], [2 * 10 + 4, 2 * 11 + 5]],
    )


def test_clients_side_by_side():
    padded, kernel, g = (
        jnp.stack([jnp.asarray(v), jnp.asarray(v) + 1]) for v in _draw(5, 4)
    )

    def both(x, w, g):
        out, pull = jax.vjp(winograd.conv, x, w)
        return out, *pull(g)

    together = jax.vmap(both)(padded, kernel, g)
    for i in range(2):
        for one, other in zip(together, both(padded[i], kernel[i], g[i]), strict=True):
            np.testing.assert_allclose(one[i], other, 1e-4, 1e-4)


@pytest.fixture
def cpu(monkeypatch):
    monkeypatch.setattr(backends, "accelerated", lambda: False)


def _pays(x, kernel, stride=1, dtype=jnp.float32):
    arrays = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
    return winograd.pays(*arrays, stride)


def test_where_it_pays(cpu):
    x, kernel = (32, 18, 18, 32), (3, 3, 32, 64)
    assert _pays(x, kernel)
    assert not _pays(x, kernel, stride=2)
    assert not _pays(x, kernel, dtype=jnp.bfloat16)
    assert not _pays(x, kernel, dtype=jnp.int8)
    assert not _pays((32, 18, 18, 32), (1, 1, 32, 64))
    assert not _pays((32, 10, 10, 32), kernel)  # patches fit the cache
    assert not _pays((32, 6, 6, 512), (3, 3, 512, 512))  # mostly kernels


def test_not_on_accelerators(monkeypatch):
    monkeypatch.setattr(backends, "accelerated", lambda: True)
    assert not _pays((32, 18, 18, 32), (3, 3, 32, 64))


def test_conv_takes_it_where_it_pays(monkeypatch, cpu):
    padded, kernel, _ = _draw(6, 6)
    plain = convs.conv(padded, kernel, same=False)
    monkeypatch.setattr(winograd, "_ENOUGH", 0)
    jaxpr = jax.make_jaxpr(lambda x, w: convs.conv(x, w, same=False))(padded, kernel)
    assert str(jaxpr).count("dot_general") == 16
    fast = convs.conv(padded, kernel, same=False)
    np.testing.assert_allclose(fast, plain, 1e-5, 1e-5)
