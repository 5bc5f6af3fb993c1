"""Convolutions against XLA's own, forward and backward, in floats and codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fljax.kernels import convs
from fljax.runtime import backends

ODD, EVEN, MIXED = (7, 5), (8, 6), (6, 9)
# (height, width), kernel, stride, same
GEOMETRIES = [
    (ODD, 1, 1, True),
    (ODD, 1, 2, True),
    (EVEN, 1, 2, False),
    (MIXED, 3, 1, True),
    (ODD, 3, 1, False),
    (ODD, 3, 2, True),
    (EVEN, 3, 2, True),
    (MIXED, 3, 2, False),
    (ODD, 5, 1, True),
    (EVEN, 5, 2, True),
    (ODD, 5, 2, False),
]
geometry = pytest.mark.parametrize(("size", "k", "stride", "same"), GEOMETRIES)
IN, OUT = 3, 4


def reference(x, kernel, stride, same, pad_value=0):
    """Convolves with XLA: dense kernels [k, k, in, out], depthwise [k, k, channels]."""
    pad = kernel.shape[0] // 2 if same else 0
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    groups = 1
    if kernel.ndim == 3:
        groups, kernel = kernel.shape[2], kernel[:, :, None]
    return lax.conv_general_dilated(
        jnp.pad(x, widths, constant_values=pad_value),
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


CODES = np.arange(-54, 54, dtype=np.int8).reshape(3, 3, 3, 4)


def floats(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def codes(*shape):
    generator = np.random.default_rng(len(shape))
    return generator.integers(-128, 128, shape).astype(np.int8)


def shapes(size, k, kind):
    """Gives the shapes of x and of the kernel."""
    kernel = (k, k, IN, OUT) if kind == "conv" else (k, k, IN)
    return (2, *size, IN), kernel


FORMS = {"conv": convs.conv, "depthwise": convs.depthwise}
kinds = pytest.mark.parametrize("kind", FORMS)


@kinds
@geometry
def test_floats_and_their_gradients(size, k, stride, same, kind):
    form = FORMS[kind]
    x, kernel = (floats(*shape) for shape in shapes(size, k, kind))

    @jax.jit
    def both(x, kernel):
        theirs, pull = jax.vjp(lambda x, w: reference(x, w, stride, same), x, kernel)
        ours, own_pull = jax.vjp(lambda x, w: form(x, w, stride, same), x, kernel)
        g = jnp.cos(jnp.arange(theirs.size, dtype=jnp.float32)).reshape(theirs.shape)
        if kind == "depthwise":
            return (ours, *own_pull(g)), (theirs, *pull(g))
        explicit = convs.conv_input_gradient(g, kernel, size, stride, same)
        return (ours, *own_pull(g), explicit), (theirs, *pull(g), pull(g)[0])

    for ours, theirs in zip(*both(x, kernel), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-4)


@kinds
@geometry
def test_codes_are_exact(size, k, stride, same, kind):
    form = FORMS[kind]
    x, kernel = (codes(*shape) for shape in shapes(size, k, kind))
    # Sums stay below 2^24, so float32 holds them exactly whatever the order.
    exact_x, exact_kernel = (v.astype(np.float32) for v in (x, kernel))

    @jax.jit
    def theirs(g):
        _, pull = jax.vjp(lambda x: reference(x, exact_kernel, stride, same), exact_x)
        return reference(exact_x, exact_kernel, stride, same, -128), pull(g)[0]

    @jax.jit
    def ours(x, kernel, g):
        y = form(x, kernel, stride, same, -128)
        if kind == "depthwise":
            return (y,)
        return y, convs.conv_input_gradient(g, kernel, size, stride, same)

    shape = jax.eval_shape(lambda: reference(exact_x, exact_kernel, stride, same)).shape
    g = codes(*shape)
    for mine, exact in zip(
        ours(x, kernel, g), theirs(g.astype(np.float32)), strict=kind == "conv"
    ):
        assert mine.dtype == jnp.int32
        np.testing.assert_array_equal(mine, exact)


@pytest.mark.parametrize(("fitting", "blocks"), [(0.5, 6), (2, 3), (5, 2)])
@pytest.mark.parametrize(("stride", "outputs"), [(1, 20), (2, 6)])
def test_patches_of_few_images_at_a_time(monkeypatch, stride, outputs, fitting, blocks):
    x, kernel = floats(6, 5, 4, 3), floats(3, 3, 3, 4)

    def results(x, kernel):
        y, pull = jax.vjp(lambda x, w: convs.conv(x, w, stride), x, kernel)
        return y, *pull(jnp.cos(y)), convs.conv((x * 9).astype(jnp.int8), CODES, stride)

    at_once = jax.jit(results)(x, kernel)
    monkeypatch.setattr(convs, "_TOO_MANY", 0)
    monkeypatch.setattr(backends, "last_cache_bytes", lambda: 0)
    # Every output of an image sees 27 values of 4 bytes.
    monkeypatch.setattr(convs, "_CACHED", fitting * outputs * 27 * 4)
    few = jax.jit(lambda *arguments: results(*arguments))
    if jax.default_backend() == "cpu":
        assert f"length={blocks}" in str(jax.make_jaxpr(few)(x, kernel))
    for one, other in zip(few(x, kernel), at_once, strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-5)
    batched = jax.vmap(few)(x[None].repeat(2, 0), kernel[None].repeat(2, 0))
    for one, other in zip(batched, at_once, strict=True):
        np.testing.assert_allclose(one[1], other, 1e-5, 1e-5)


def test_zero_point_lies_outside_codes():
    x = jnp.full((1, 2, 2, 1), 5, jnp.int8)
    kernel = jnp.ones((3, 3, 1, 1), jnp.int8)
    # Each output sees the four codes and five places outside.
    np.testing.assert_array_equal(
        convs.conv(x, kernel, pad_value=-7).ravel(), [4 * 5 - 5 * 7] * 4
    )
    np.testing.assert_array_equal(
        convs.depthwise(x, kernel[..., 0], pad_value=-7).ravel(), [4 * 5 - 5 * 7] * 4
    )


def test_same_is_the_rule_of_pytorch_at_stride_2():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    top_left = jnp.zeros((3, 3, 1)).at[0, 0].set(1)
    # One row and column of padding on every side: outputs sit on rows 0 and 2, and
    # their top left tap on rows -1 and 1. XLA's "SAME" would pad below and right only.
    np.testing.assert_array_equal(
        convs.depthwise(x, top_left, 2)[0, :, :, 0], [[0, 0], [0, 5]]
    )


def test_dot_and_its_transpose_accumulate_in_int32():
    x = jnp.full((2, 3, 400), -128, jnp.int8)
    w = jnp.full((400, 2), -128, jnp.int8)
    assert convs.dot(x, w).dtype == jnp.int32
    np.testing.assert_array_equal(convs.dot(x, w), np.full((2, 3, 2), 400 * 2**14))
    g = jnp.array([[1, -2]], jnp.int8)
    np.testing.assert_array_equal(
        convs.dot_transposed(g, jnp.array([[3, 4], [-5, 6]], jnp.int8)), [[-5, -17]]
    )


@kinds
def test_a_client_axis_changes_nothing(kind):
    form = FORMS[kind]
    x_shape, kernel_shape = shapes((6, 6), 3, kind)
    x, kernels = floats(4, *x_shape), floats(4, *kernel_shape)
    together = jax.vmap(lambda x, w: form(x, w, 2))(x, kernels)
    for i in range(4):
        np.testing.assert_allclose(together[i], form(x[i], kernels[i], 2), 1e-5, 1e-5)


def test_max_pool_drops_what_does_not_fill_a_tile():
    x = jnp.array([[1.0, 5, 9], [7, 2, 9], [9, 9, 9]]).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(convs.max_pool(x), [[[[7.0]]]])
    wide = jnp.arange(36.0).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(
        convs.max_pool(wide, 3)[0, :, :, 0], [[14, 17], [32, 35]]
    )


@pytest.mark.parametrize(("side", "window"), [(8, 2), (7, 2), (9, 3), (260, 2)])
def test_max_pool_gradient_is_that_of_the_largest(side, window):
    x = jax.random.normal(jax.random.key(side), (2, side, side, 3))
    g = jax.random.normal(jax.random.key(1), (2, side // window, side // window, 3))

    def plain(x):
        n = side // window
        tiles = x[:, : n * window, : n * window].reshape(2, n, window, n, window, 3)
        return jnp.max(tiles, axis=(2, 4))

    ours, pull = jax.vjp(lambda x: convs.max_pool(x, window), x)
    theirs, plain_pull = jax.vjp(plain, x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(pull(g)[0], plain_pull(g)[0])


def test_max_pool_gradient_goes_to_the_first_of_equals():
    dx = jax.grad(lambda x: jnp.sum(convs.max_pool(x)))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(
        dx[0, :, :, 0], np.kron(np.ones((2, 2)), [[1, 0], [0, 0]])
    )


@pytest.mark.parametrize("outputs", [3, 15, 16, 40])
def test_gradients_of_narrow_and_wide_products(outputs):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7))
    w = jax.random.normal(jax.random.key(1), (7, outputs))
    g = jax.random.normal(jax.random.key(2), (2, 5, outputs))
    dx, dw = jax.vjp(convs.dot, x, w)[1](g)
    np.testing.assert_allclose(dx, np.einsum("abo,io->abi", g, w), 1e-5, 1e-5)
    np.testing.assert_allclose(dw, np.einsum("abi,abo->io", x, g), 1e-5, 1e-5)
