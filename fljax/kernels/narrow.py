"""What keeps codes of 2 and 3 bits close to the values: ranges and scales by error.

max|x| is no good range for so few codes: most values would fall on the smallest one. Of
weights, which are at hand when a block is frozen, the scale of least squared error is
searched, for each channel and group of its inputs. A range of activations or gradients
follows from one pass over them (`fitted`), or from the norm that they come out of
(`expected`), as in Nagel et al., "Data-free quantization through weight equalization
and bias correction" (ICCV 2019, section 4.2.1).
"""

from __future__ import annotations

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fljax import types
from fljax.kernels import specs

TINY = 1e-12  # as of `quant`: a range below this is no range
_CANDIDATES = 32  # scales that are tried, up to that of max|w|
_MOST = 15  # multiples of a channel's scale have 4 bits

# Midpoints of so many equally likely parts of a standard normal, up to 2.9 deviations.
_POINTS = 256
# How many deviations an observed max|x| lies away, if x is normal: one of 100,000.
_OBSERVED = 4.4


@functools.cache
def _normal() -> np.ndarray:
    """Gives values [_POINTS] that stand for a standard normal."""
    inverse = statistics.NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / _POINTS) for i in range(_POINTS)], np.float32)


def _held(levels: float, odd: bool, end: float) -> np.ndarray:
    """Gives what codes make of the sizes of normal values, [_POINTS]."""
    steps = np.abs(_normal()) / (end / levels)
    codes = 2 * np.floor(steps / 2) + 1 if odd else np.round(steps)
    return np.minimum(codes, levels) * (end / levels)


@functools.cache
def reach(levels: float, odd: bool) -> float:
    """Gives the range of least squared error of a standard normal, in deviations.

    Args:
      levels: codes from 0 to the end of the range.
      odd: only odd codes are there.

    Returns:
      The range; half a normal, with or without zeros beside it, has the same.
    """
    x, tried = np.abs(_normal()), np.linspace(0.5, 4, 351)
    errors = [np.square(x - _held(levels, odd, end)).sum() for end in tried]
    return float(tried[np.argmin(errors)])


@functools.cache
def gain(levels: float, odd: bool) -> float:
    """Gives the factor that makes up for what rounding within `reach` shrinks.

    x x / x q, over the values x of a normal and what codes make of them, q: the scale
    of EDEN (Vargaftik et al., ICML 2022). Arguments as of `reach`.
    """
    x = np.abs(_normal())
    return float(x @ x / (x @ _held(levels, odd, reach(levels, odd))))


def fitted(
    x: types.Array,
    levels: float,
    odd: bool = False,
    axes: tuple[int, ...] | None = None,
) -> types.Array:
    """Estimates the range of least squared error by sum x^2 / sum |x|.

    Of a normal that is 1.25 deviations, of a Laplace distribution two of its scales,
    and zeros, of which a ReLU leaves many, do not move it. (Codes -1, 0, 1 have it as
    their best range of a Laplace distribution, and nearly of a normal.)

    Args:
      x: floats of any shape.
      levels: codes from 0 to the end of the range.
      odd: only odd codes are there.
      axes: to go over; all by default.

    Returns:
      The range, without these axes; no more than max|x|.
    """
    sizes = jnp.abs(x.astype(jnp.float32))
    spread = jnp.sum(sizes * sizes, axes) / jnp.maximum(jnp.sum(sizes, axes), TINY)
    wanted = reach(levels, odd) * (2 / np.pi) ** 0.5 * spread
    return jnp.minimum(jnp.max(sizes, axes), wanted)


def expected(
    observed: types.Array,
    spec: specs.Spec,
    nonnegative: bool,
    affine: tuple[types.Array, types.Array] | None = None,
) -> types.Array:
    """Gives the range of an output before any is there, of least squared error.

    Args:
      observed: max|output|, [].
      spec: of the output.
      nonnegative: a ReLU comes last.
      affine: scale and bias [C] of the norm that comes before it; None: there is none,
        and the output is taken for a normal of which the observed was the largest.

    Returns:
      The range, []; what was observed where nothing is clipped.
    """
    if not spec.clips:
        return observed
    levels, odd = spec.levels(nonnegative), spec.grid(nonnegative).odd
    if affine is None:
        return observed * min(1.0, reach(levels, odd) / _OBSERVED)
    scale, bias = affine
    x = scale * _normal()[:, None] + bias
    x = jax.nn.relu(x) if nonnegative else x
    return jnp.minimum(fitted(x, levels, odd), observed)


def raised(scale: types.Array, spec: specs.Spec, nonnegative: bool) -> types.Array:
    """Gives what codes made by a scale are worth, see `gain`.

    Args:
      scale: of the range that `fitted` or `expected` gives.
      spec: of the codes.
      nonnegative: they are of a tensor without negative values.

    Returns:
      The scale itself unless `spec.unbiased` acts.
    """
    if not (spec.clips and spec.unbiased):
        return scale
    return scale * gain(spec.levels(nonnegative), spec.grid(nonnegative).odd)


def _group(inputs: int, most: int) -> int:
    """Gives the size of groups: a divisor near `most`, or all inputs."""
    sizes = [n for n in range(1, most + 1) if inputs % n == 0]
    return sizes[-1] if sizes and 2 * sizes[-1] >= most else inputs


def _rounded(steps: types.Array, grid: specs.Grid) -> types.Array:
    codes = 2 * jnp.floor(steps / 2) + 1 if grid.odd else jnp.round(steps)
    return jnp.clip(codes, grid.lowest, grid.highest)


def least_error(w: types.Array, grid: specs.Grid) -> types.Array:
    """Searches the scale of least squared error.

    Args:
      w: floats [..., n, C].
      grid: of the codes.

    Returns:
      Scales [..., 1, C], of which each is the best of `_CANDIDATES` for its n values.
    """
    full = jnp.maximum(jnp.max(jnp.abs(w), -2, keepdims=True), TINY) / grid.highest

    def attempt(i, best):
        scale = full * ((i + 1) / _CANDIDATES)
        off = w - _rounded(w / scale, grid) * scale
        error = jnp.sum(off * off, -2, keepdims=True)
        better = error < best[0]
        return jnp.where(better, error, best[0]), jnp.where(better, scale, best[1])

    # What is not finite beats no error and keeps its scale, which tells of it.
    start = jnp.full(full.shape, jnp.inf), full
    return lax.fori_loop(0, _CANDIDATES, attempt, start)[1]


def scales(w: types.Array, spec: specs.Spec) -> tuple[types.Array, types.Array]:
    """Gives the scales of narrow weights.

    Args:
      w: float32 [..., out].
      spec: narrow.

    Returns:
      Scales [out] or [], and whole multiples of them, floats of the shape of w or 1.
      Codes times multiples are whole numbers below 128, so that a product adds them up
      as it does any codes.
    """
    grid = spec.grid(False)
    rows = w.reshape(-1, w.shape[-1] if spec.per_channel else 1)
    size = _group(len(rows), spec.group) if spec.per_channel else len(rows)
    groups = rows.reshape(-1, size, rows.shape[-1])
    if spec.clipping:
        own = least_error(groups, grid)[:, 0]
    else:
        largest = jnp.max(jnp.abs(groups), 1)
        own = jnp.maximum(largest, TINY) / spec.levels(False)
    if len(own) == 1:
        return own[0] if spec.per_channel else own[0, 0], jnp.ones(())
    most = min(_MOST, 127 // grid.highest)
    scale = jnp.max(own, 0) / most
    multiples = jnp.clip(jnp.round(own / scale), 1, most)
    return scale, jnp.repeat(multiples, size, 0).reshape(w.shape)
