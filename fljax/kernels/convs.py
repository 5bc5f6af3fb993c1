"""Convolution as matrix products and shifts, fast inside loops and under vmap.

XLA's native CPU convolution is 35 to 140 times slower than these forms inside a
scan (jax issue 12868), and batching it over clients makes grouped convolutions,
which are slow on GPUs (jax issues 13800 and 26266). So: a pointwise kernel is a
matrix product, a dense k x k kernel is one matrix product over gathered patches, a
depthwise kernel is k * k shifted multiply-adds. All work on floats and on integer
codes alike; integer products accumulate in int32, and codes times codes that lie in
floats give the same sums. Floats compute in the dtype of
the activations, kernels being cast to it; what is added up by hand, and gradients of
kernels, are float32.

Activations are [B, height, width, channels]; dense kernels
[k_h, k_w, in, out], depthwise kernels [k_h, k_w, channels]. Padding is k // 2 on
every side (`same=True`, PyTorch's rule, also at stride 2) or none.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.kernels import unsigned, winograd
from fljax.runtime import backends


def _accumulator(x: types.Array):
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.int32
    return jnp.promote_types(x.dtype, jnp.float32)


# So many products of two int8 codes add up to 2^10 * 2^7 * 2^7 = 2^24 at most: whatever
# the order, every sum on the way is an integer that float32 holds. Codes have 8 bits,
# as many as bfloat16, and TF32 has more, so the products are exact as well.
_EXACT = 2**10


def _product(x: types.Array, w: types.Array, contract: int) -> types.Array:
    """Contracts the last axis of x with axis `contract` of the matrix w."""
    dimensions = (((x.ndim - 1,), (contract,)), ((), ()))
    integers = jnp.issubdtype(x.dtype, jnp.integer)
    if integers and w.dtype != x.dtype:
        if x.shape[-1] > _EXACT:
            return _product(x, w.astype(x.dtype), contract)
        sums = lax.dot_general(
            x.astype(w.dtype), w, dimensions, preferred_element_type=jnp.float32
        )
        return sums.astype(jnp.int32)
    if integers and unsigned.pays():
        return unsigned.product(x, w.T if contract else w)
    dtype = jnp.int32 if integers else x.dtype
    return lax.dot_general(x, w, dimensions, preferred_element_type=dtype)


def _rows_product(x: types.Array, y: types.Array) -> types.Array:
    """Sums the outer products of the rows of x and y, in float32 at least."""
    return jnp.matmul(x.T, y, preferred_element_type=_accumulator(x))


# Up to so many outputs, if inputs are more: XLA CPU is faster at the transposed product
# of the weights' gradient, and the barrier keeps it from turning it round again (10
# classes of 784 inputs: 7 against 16 microseconds; docs/lab/steps.md).
_NARROW = 64


@jax.custom_vjp
def _dot_float(x: types.Array, w: types.Array) -> types.Array:
    return _product(x, w.astype(x.dtype), 0)


def _dot_backward(residuals, g):
    # Contracting over several axes at once makes XLA CPU copy a transposed cotangent;
    # over one axis it does not. The barrier makes both products read one cotangent.
    x, w = residuals
    g = lax.optimization_barrier(g)
    rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    dx = _product(g, w.astype(g.dtype), 1)
    if w.shape[1] <= min(_NARROW, w.shape[0] - 1):
        return dx, lax.optimization_barrier(_rows_product(rows[1], rows[0])).T
    return dx, _rows_product(*rows)


_dot_float.defvjp(lambda x, w: (_dot_float(x, w), (x, w)), _dot_backward)


def dot(x: types.Array, w: types.Array) -> types.Array:
    """Multiplies x [..., in] by w [in, out]; int8 accumulates in int32."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return _product(x, w, 0)
    return _dot_float(x, w)


def dot_transposed(g: types.Array, w: types.Array) -> types.Array:
    """Multiplies g [..., out] by the transpose of w [in, out]."""
    return _product(g, w, 1)


def _padding(kernel: types.Array, same: bool) -> tuple[int, int]:
    return (kernel.shape[0] // 2, kernel.shape[1] // 2) if same else (0, 0)


def _pad(x: types.Array, pad: tuple[int, int], value) -> types.Array:
    if pad == (0, 0):
        return x
    widths = ((0, 0, 0), (pad[0], pad[0], 0), (pad[1], pad[1], 0), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


def _taps(padded, sides: tuple[int, int], stride: int):
    """Yields padded x shifted so that each tap of a kernel lies on the output."""
    k_h, k_w = sides
    batch, height, width, channels = padded.shape
    rows = (height - k_h) // stride * stride + 1
    columns = (width - k_w) // stride * stride + 1
    for i in range(k_h):
        for j in range(k_w):
            yield lax.slice(
                padded,
                (0, i, j, 0),
                (batch, i + rows, j + columns, channels),
                (1, stride, stride, 1),
            )


def conv(
    x: types.Array,
    kernel: types.Array,
    stride: int = 1,
    same: bool = True,
    pad_value=0,
) -> types.Array:
    """Convolves x [B, H, W, in] with kernel [k_h, k_w, in, out].

    Args:
      x: float activations or integer codes.
      kernel: of the same kind as x.
      stride: of both axes.
      same: pad k // 2 on every side, else not at all.
      pad_value: what lies outside x: 0, or the zero point of codes.

    Returns:
      [B, H', W', out], int32 for integers.
    """
    k_h, k_w, channels, features = kernel.shape
    padded = _pad(x, _padding(kernel, same), pad_value)
    matrix = kernel.reshape(k_h * k_w * channels, features)
    window = (k_h, k_w, stride)
    if winograd.pays(padded, kernel, stride):
        return winograd.conv(padded, kernel)
    if k_h * k_w > 1:  # else XLA would compute for every tap what leads to x
        padded = lax.optimization_barrier(padded)
    images = _images_in_cache(padded, window)
    if k_h * k_w == 1 or images == x.shape[0]:
        return dot(_patches(padded, window), matrix)
    return _conv_in_cache(padded, matrix, window, images)


def _patches(padded, window) -> types.Array:
    """Gathers what each output sees: [B, H', W', k_h * k_w * in]."""
    k_h, k_w, stride = window
    taps = list(_taps(padded, (k_h, k_w), stride))
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


# Patches are k * k times as large as x. Where all of them are too many bytes, they are
# gathered on CPU for a few images at a time, so that the product finds them in a cache.
_TOO_MANY, _CACHED = 2**23, 3 * 2**20

# A last cache so many times as large holds them as they are.
_ROOM = 8


def _images_in_cache(padded, window) -> int:
    """Says how many images' patches are gathered at a time; a divisor of the batch."""
    batch = padded.shape[0]
    shape = jax.eval_shape(lambda x: _patches(x, window), padded)
    size = shape.size * shape.dtype.itemsize
    too_many = max(_TOO_MANY, backends.last_cache_bytes() // _ROOM)
    if backends.accelerated() or size <= too_many:
        return batch
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    return max([n for n in divisors if size // batch * n <= _CACHED], default=1)


def _split(x, images: int):
    return x.reshape(x.shape[0] // images, images, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_in_cache(padded, matrix, window, images):
    def few(padded):
        patches = lax.optimization_barrier(_patches(padded, window))
        return _product(patches, matrix.astype(padded.dtype), 0)

    out = lax.map(few, _split(padded, images))
    return out.reshape(padded.shape[0], *out.shape[2:])


def _conv_in_cache_backward(window, images, residuals, g):
    padded, matrix = lax.optimization_barrier(residuals)

    def few(total, blocks):
        padded, g = blocks
        patches, spread = jax.vjp(lambda x: _patches(x, window), padded)
        rows = lax.optimization_barrier(patches).reshape(-1, matrix.shape[0])
        total = total + _rows_product(rows, g.reshape(-1, matrix.shape[1]))
        d_patches = _product(g, matrix.astype(g.dtype), 1)
        return total, spread(lax.optimization_barrier(d_patches))[0]

    blocks = _split(padded, images), _split(lax.optimization_barrier(g), images)
    d_matrix, d_padded = lax.scan(few, jnp.zeros_like(matrix), blocks)
    return d_padded.reshape(padded.shape), d_matrix


_conv_in_cache.defvjp(
    lambda padded, matrix, window, images: (
        _conv_in_cache(padded, matrix, window, images),
        (padded, matrix),
    ),
    _conv_in_cache_backward,
)


def _dilate(g: types.Array, stride: int, kernel, size, same: bool) -> types.Array:
    """Spreads g so that a stride 1 VALID convolution with it gives input gradients."""
    pads = []
    for axis in (0, 1):
        k, pad = kernel.shape[axis], _padding(kernel, same)[axis]
        spread = (g.shape[axis + 1] - 1) * stride + 1
        low = k - 1 - pad
        pads.append((low, size[axis] + k - 1 - spread - low, stride - 1))
    return lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def conv_input_gradient(
    g: types.Array,
    kernel: types.Array,
    size: tuple[int, int],
    stride: int = 1,
    same: bool = True,
) -> types.Array:
    """Computes the gradient of `conv` for its input (a transposed convolution).

    Args:
      g: cotangent of the output [B, H', W', out], float or codes with zero point 0.
      kernel: [k_h, k_w, in, out], of the same kind as g.
      size: (H, W) of the input.
      stride: of the forward convolution.
      same: as in the forward convolution.

    Returns:
      [B, H, W, in], int32 for integers.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return dot_transposed(g, kernel[0, 0])
    spread = _dilate(g, stride, kernel, size, same)
    return conv(spread, kernel[::-1, ::-1].swapaxes(2, 3), same=False)


def _depthwise(padded, kernel, stride: int):
    dtype = _accumulator(padded)
    padded = lax.optimization_barrier(padded)  # as in `conv`
    weights = kernel.astype(dtype).reshape(-1, kernel.shape[-1])
    taps = _taps(padded, kernel.shape[:2], stride)
    terms = [tap.astype(dtype) * w for tap, w in zip(taps, weights, strict=True)]
    total = functools.reduce(jnp.add, terms)
    return total if dtype == jnp.int32 else total.astype(padded.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_float(x, kernel, stride, same):
    return _depthwise(_pad(x, _padding(kernel, same), 0), kernel, stride)


def _depthwise_forward(x, kernel, stride, same):
    # The padded x is what both passes read; keeping x as well would write it twice.
    padded = _pad(x, _padding(kernel, same), 0)
    return _depthwise(padded, kernel, stride), (padded, kernel)


def _kernel_gradient(padded, g, kernel, stride: int, inside) -> types.Array:
    """Computes the gradient of `depthwise` for its kernel.

    `inside` slices the rows and columns of g that count out of a rim of zeros.
    """
    rows, columns = inside
    if backends.accelerated():
        g = g[:, rows, columns]
        taps = _taps(padded.astype(kernel.dtype), kernel.shape[:2], stride)
        g = g.astype(kernel.dtype)
        by_image = jnp.stack([jnp.sum(tap * g, axis=(1, 2)) for tap in taps])
        return jnp.sum(by_image, axis=1).reshape(kernel.shape)

    # A few images at a time into sums of the size of an image, which stay in the
    # cache: x and g are read once, where k * k reductions would read them k * k times.
    images = _images_at_a_time(g)

    def add_images(sums, block):
        # As arrays of their own: indices into a part of the batch are not vectorized.
        x, g = lax.optimization_barrier(block) if images > 1 else block
        g = g.astype(kernel.dtype)[:, rows, columns]
        taps = _taps(x.astype(kernel.dtype), kernel.shape[:2], stride)
        return tuple(
            functools.reduce(jnp.add, (tap[i] * g[i] for i in range(images)), total)
            for total, tap in zip(sums, taps, strict=True)
        ), None

    zero = jnp.zeros(g[0, rows, columns].shape, kernel.dtype)
    zeros = (zero,) * (kernel.shape[0] * kernel.shape[1])
    sums, _ = lax.scan(add_images, zeros, (_split(padded, images), _split(g, images)))
    return jnp.stack([jnp.sum(s, axis=(0, 1)) for s in sums]).reshape(kernel.shape)


# Of the cotangent of a depthwise product; with larger images several gained nothing.
_FEW_BYTES, _FEW_IMAGES = 3 * 2**19, 8


def _images_at_a_time(g: types.Array) -> int:
    """Says of how many images a depthwise kernel's gradient adds up the products."""
    batch = g.shape[0]
    most = min(_FEW_IMAGES, _FEW_BYTES * batch // g.nbytes)
    return max([n for n in range(1, most + 1) if batch % n == 0], default=1)


def _depthwise_backward(stride, same, residuals, g):
    # Automatic differentiation scatters k * k padded copies of g and adds them up;
    # gathering from one padded g is the same sum in one pass over memory. The barrier
    # keeps XLA from computing g's own producers again for every tap.
    padded, kernel = residuals
    pad = _padding(kernel, same)
    size = (padded.shape[1] - 2 * pad[0], padded.shape[2] - 2 * pad[1])
    sides, rim = g.shape[1:3], (0, 0)
    if stride == 1:  # padded where it is made, in one pass; read below without its rim
        rim = tuple(k - 1 - p for k, p in zip(kernel.shape[:2], pad, strict=True))
        g = _dilate(g, 1, kernel, size, same)
    padded, g = lax.optimization_barrier((padded, g))
    spread = g if stride == 1 else _dilate(g, stride, kernel, size, same)
    dx = _depthwise(spread, kernel[::-1, ::-1], 1)
    inside = tuple(slice(n, n + side) for n, side in zip(rim, sides, strict=True))
    return dx, _kernel_gradient(padded, g, kernel, stride, inside)


_depthwise_float.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise(
    x: types.Array,
    kernel: types.Array,
    stride: int = 1,
    same: bool = True,
    pad_value=0,
) -> types.Array:
    """Convolves each channel of x [B, H, W, channels] with kernel [k_h, k_w, channels].

    Args and result as in `conv`.
    """
    if jnp.issubdtype(x.dtype, jnp.integer):
        padded = _pad(x, _padding(kernel, same), pad_value)
        return _depthwise(padded, kernel, stride)
    return _depthwise_float(x, kernel, stride, same)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: types.Array, window: int = 2) -> types.Array:
    """Takes the largest value of every window x window tile, stride = window.

    Rows and columns that fill no tile are left out. The gradient goes to the first
    largest value of a tile (PyTorch's rule).

    Args:
      x: [B, H, W, C], floats or codes.
      window: side of a tile.

    Returns:
      [B, H // window, W // window, C].
    """
    return _max_pool_forward(x, window)[0]


def _max_pool_forward(x, window: int):
    rows, columns = (side // window * window for side in x.shape[1:3])
    largest = x[:, 0:rows:window, 0:columns:window]
    place = jnp.zeros(largest.shape, jnp.int8)
    for k in range(1, window * window):
        value = x[:, k // window : rows : window, k % window : columns : window]
        place = jnp.where(value > largest, jnp.int8(k), place)
        largest = jnp.maximum(value, largest)
    # The backward pass needs where the largest was, not x: a byte for every tile.
    # (jnp.max's own gradient divides by the number of ties, in five passes over x.)
    return largest, (place, jnp.zeros((0, *x.shape[1:3], 0)))


def _max_pool_backward(window: int, residuals, g):
    place, shape = residuals
    batch, rows, columns, channels = g.shape

    def spread(values):
        tiles = (batch, rows, window, columns, window, channels)
        values = jnp.broadcast_to(values[:, :, None, :, None], tiles)
        return values.reshape(batch, rows * window, columns * window, channels)

    row = lax.broadcasted_iota(jnp.int32, (1, rows * window, columns * window, 1), 1)
    column = lax.broadcasted_iota(jnp.int32, row.shape, 2)
    here = (row % window * window + column % window).astype(jnp.int8)
    dx = jnp.where(spread(place) == here, spread(g), 0.0)
    left = [(0, a - b) for a, b in zip(shape.shape[1:3], dx.shape[1:3], strict=True)]
    return (jnp.pad(dx, ((0, 0), *left, (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def mean_pool(x: types.Array, window: int = 2, odd: bool = False) -> types.Array:
    """Averages every window x window tile, stride = window; codes stay codes.

    Averages of codes are rounded half to even, as the reference rounds them, or to odd
    numbers where all codes are odd.
    """
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x[:, : rows * window, : columns * window]
    tiles = x.reshape(x.shape[0], rows, window, columns, window, x.shape[3])
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.mean(tiles, axis=(2, 4))
    sums = jnp.sum(tiles, axis=(2, 4), dtype=jnp.int32)
    if odd:
        return (2 * (sums // (2 * window**2)) + 1).astype(x.dtype)
    return jnp.round(sums / window**2).astype(x.dtype)
