"""The forms that accelerators take give what those of the CPU give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.kernels import convs, norms, quant
from fljax.nn import layers
from fljax.runtime import backends


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(params=[None, "clients"])
def both(request, monkeypatch):
    """Gives what computes a function in the CPU's form and in the accelerators'."""

    def compute(function, *arguments):
        if request.param:
            arguments = [jnp.stack([x, x[::-1] * 2]) for x in arguments]
        results = []
        for accelerated in (False, True):
            monkeypatch.setattr(backends, "accelerated", lambda a=accelerated: a)
            # A new function each: what is traced depends on the backend.
            fresh = jax.jit(
                lambda *a: (jax.vmap(function) if request.param else function)(*a)
            )
            results.append(fresh(*arguments))
        return results

    return compute


def close(pair):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5), *pair)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gradients(both, stride):
    def gradients(x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convs.depthwise(x, kernel, stride)))

        return jax.grad(loss, (0, 1))(x, kernel)

    close(both(gradients, draw(4, 7, 6, 5), draw(3, 3, 5)))


def test_batch_norm_and_its_gradients(both):
    def values(x, scale, bias, mask):
        y, pull = jax.vjp(lambda *a: norms.batch_norm(*a, mask)[0], x, scale, bias)
        return norms.batch_norm(x, scale, bias, mask), pull(jnp.cos(y) * mask[:, None])

    mask = jnp.asarray([1.0, 1.0, 0.0, 1.0])
    close(both(values, draw(4, 5), draw(5), draw(5, seed=1), mask))


def test_ranges(both):
    def ranges(x, factor, offset):
        return (
            layers.largest_affine(x, factor, offset, True),
            layers.largest_affine(x, factor, offset, False),
            quant.amax(x),
            quant.amax(x, (0, 1, 2)),
        )

    close(both(ranges, draw(4, 3, 3, 5), draw(5), draw(5, seed=1)))


def test_the_last_cache_is_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "_CACHE", tmp_path)
    assert backends.last_cache_bytes.__wrapped__() == 0
    for name, text in {"index0": "48K", "index3": "32768K", "index9": "?"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text)
    assert backends.last_cache_bytes.__wrapped__() == 2**25
