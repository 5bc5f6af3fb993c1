"""3 x 3 convolution with 16 products for every 2 x 2 outputs, where 36 are usual.

Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray, CVPR 2016, section 4.1):
with d a 4 x 4 tile of the input, g a kernel and * the product of entries, summed over
the input's channels,

    Y = A' [ (G g G') * (B' d B) ] A

so that a convolution is sixteen matrix products, one for each entry of a tile. The
transforms are linear, so gradients are the same products between their transposes.
Sums and halves only: it rounds about as much as the plain sum does.

In float32 on CPU it is 1.4 to 2 times as fast as patches (`docs/lab/steps.md`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.runtime import backends

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B'
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A'

Matrix = Sequence[Sequence[float]]
Grid = list[list[types.Array]]  # rows of arrays of one shape

# Patches of fewer bytes stay in a cache, and their one long product is as fast.
_ENOUGH = 6 * 2**20


def pays(padded: types.Array, kernel: types.Array, stride: int) -> bool:
    """Says whether `conv` computes this convolution, and faster than patches would.

    Args:
      padded: input [B, H + 2, W + 2, in].
      kernel: [k_h, k_w, in, out].
      stride: of both axes.
    """
    if backends.accelerated() or kernel.shape[:2] != (3, 3) or stride != 1:
        return False
    if not padded.dtype == kernel.dtype == jnp.float32:
        return False
    batch, height, width, channels = padded.shape
    outputs = batch * (height - 2) * (width - 2)
    # With fewer tiles than channels it is the kernels whose transforms take the time.
    enough_tiles = outputs // 4 >= min(kernel.shape[2:])
    return enough_tiles and 9 * outputs * channels * 4 >= _ENOUGH


def _combine(matrix: Matrix, parts: Sequence[types.Array]) -> list[types.Array]:
    """Multiplies a matrix by a vector of arrays."""
    rows = []
    for row in matrix:
        terms = [
            part if c == 1 else -part if c == -1 else c * part
            for c, part in zip(row, parts, strict=True)
            if c
        ]
        rows.append(functools.reduce(jnp.add, terms))
    return rows


def _transform(matrix: Matrix, grid) -> Grid:
    """Computes matrix @ grid @ matrix'."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _factors(padded: types.Array, kernel: types.Array) -> tuple[Grid, Grid]:
    """Transforms the input and the kernel; the barrier has XLA do it once."""
    factors = _transform(_INPUT, _tiles(padded)), _transform(_KERNEL, kernel)
    return lax.optimization_barrier(factors)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _each(function, *grids: Grid) -> Grid:
    """Calls a function on what stands at one place of the grids."""
    return [
        [function(*entries) for entries in zip(*rows, strict=True)]
        for rows in zip(*grids, strict=True)
    ]


def _tiles(padded: types.Array) -> Grid:
    """Gives each entry of the overlapping 4 x 4 tiles: 16 x [B, H / 2, W / 2, C]."""
    rows, columns = (side - 3 for side in padded.shape[1:3])
    return [
        [padded[:, i : i + rows : 2, j : j + columns : 2] for j in range(4)]
        for i in range(4)
    ]


def _interleave(even: types.Array, odd: types.Array, axis: int) -> types.Array:
    both = jnp.stack([even, odd], axis + 1)
    shape = [n * (1 + (i == axis)) for i, n in enumerate(even.shape)]
    return both.reshape(shape)


def _joined(grid: Grid) -> types.Array:
    """Puts 2 x 2 tiles of outputs together."""
    upper, lower = (_interleave(left, right, 2) for left, right in grid)
    return _interleave(upper, lower, 1)


def _fold(parts: Sequence[types.Array], axis: int) -> types.Array:
    """Adds four entries of tiles up where tiles overlap along an axis."""

    def shift(part, by: int):
        pads = [(0, 0, 0)] * part.ndim
        pads[axis] = (by, 1 - by, 0)
        return lax.pad(part, jnp.zeros((), part.dtype), pads)

    even, odd = (shift(parts[i], 0) + shift(parts[i + 2], 1) for i in (0, 1))
    return _interleave(even, odd, axis)


def conv(padded: types.Array, kernel: types.Array) -> types.Array:
    """Convolves padded [B, H + 2, W + 2, in] with kernel [3, 3, in, out], at stride 1.

    Returns:
      [B, H, W, out].
    """
    rows, columns = (side - 2 for side in padded.shape[1:3])
    odd = ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0))
    if rows % 2 or columns % 2:
        return _conv_even(jnp.pad(padded, odd), kernel)[:, :rows, :columns]
    return _conv_even(padded, kernel)


@jax.custom_vjp
def _conv_even(padded, kernel):
    products = _each(jnp.matmul, *_factors(padded, kernel))
    products = lax.optimization_barrier(products)
    return lax.optimization_barrier(_joined(_transform(_OUTPUT, products)))


def _backward(residuals, g):
    # Transformed again rather than kept: as fast, and a quarter of the memory.
    padded, kernel, g = lax.optimization_barrier((*residuals, g))
    inputs, kernels = _factors(padded, kernel)
    tiles = [[g[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
    outputs = lax.optimization_barrier(_transform(_transposed(_OUTPUT), tiles))

    def kernel_gradient(x, g):
        g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        return lax.optimization_barrier(g.T @ x).T

    d_kernels = _each(kernel_gradient, inputs, outputs)
    d_inputs = _each(lambda g, w: g @ w.T, outputs, kernels)
    d_inputs = lax.optimization_barrier(d_inputs)
    d_kernel = jnp.stack(
        [jnp.stack(row) for row in _transform(_transposed(_KERNEL), d_kernels)]
    )
    d_rows = [_fold(_combine(_transposed(_INPUT), row), 2) for row in d_inputs]
    d_rows = lax.optimization_barrier(d_rows)
    d_padded = _fold(_combine(_transposed(_INPUT), d_rows), 1)
    return lax.optimization_barrier((d_padded, d_kernel))


_conv_even.defvjp(lambda x, w: (_conv_even(x, w), (x, w)), _backward)
