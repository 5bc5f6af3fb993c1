"""Quantized arrays: int8 codes, products in int32, requantization.

A quantized array stands for `value = scale * (codes - zero_point)`, with codes in
[-2^(bits-1), 2^(bits-1) - 1], or as many odd ones (`specs.Grid`). A product of two of
them is an int32 sum of products of codes, brought to the scale of the next tensor by
one float32 multiplication that no compiler can fuse with another operation; sums and
concatenations need integers alone. So every backend gives the same bits. What differs
between methods are the fields of a `specs.Spec`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fljax import types
from fljax.kernels import convs, narrow, specs
from fljax.runtime import backends

# A range below this is no range: a tensor of zeros, or one that nobody observed.
TINY = narrow.TINY


@struct.dataclass
class QArray:
    """Codes with their scale: value = scale * (codes - zero_point).

    Attributes:
      codes: int8 of any shape; of weights in the type in which they are multiplied.
      scale: float32, [], one for every index of the last axis or one for every example,
        [B, 1, ...].
      zero_point: static int; the code of 0.
      odd: static; all codes are odd.
    """

    codes: types.Array
    scale: types.Array
    zero_point: int = struct.field(pytree_node=False, default=0)
    odd: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def dequantize(self) -> types.Array:
        """Returns the float32 values."""
        return self.scale * (self.codes.astype(jnp.float32) - self.zero_point)


def amax(x: types.Array, axes=None) -> types.Array:
    """Computes max|x| in float32, over all axes by default."""
    if backends.accelerated():
        largest = jnp.max(jnp.abs(x), axis=axes)
    else:  # apart: max(abs(x)) keeps XLA CPU from vectorizing the reduction
        largest = jnp.maximum(jnp.max(x, axis=axes), -jnp.min(x, axis=axes))
    return largest.astype(jnp.float32)


def range_of(
    x: types.Array, spec: specs.Spec, nonnegative: bool = False
) -> types.Array:
    """Gives the range of what nobody observed.

    Args:
      x: floats [B, ...].
      spec: of the codes that x is to have.
      nonnegative: x has no negative values.

    Returns:
      max|x|, []; with `spec.clips` what keeps the squared error of each example least,
      [B, 1, ...].
    """
    if not spec.clips:
        return amax(x)
    axes = tuple(range(1, x.ndim))
    odd = spec.grid(nonnegative).odd
    largest = narrow.fitted(x, spec.levels(nonnegative), odd, axes)
    return largest.reshape(-1, *(1,) * len(axes))


def scale_of(spec: specs.Spec, largest: types.Array, nonnegative: bool = False):
    """Turns max|x| into the scale of its codes; never 0."""
    return _over(largest, spec.levels(nonnegative), spec)


def _over(largest: types.Array, levels: float, spec: specs.Spec) -> types.Array:
    """Divides max|x| by the number of codes that it maps to."""
    if not spec.stepwise:
        return jnp.maximum(largest, TINY) / levels
    # XLA would multiply by the reciprocal of a constant, and be off in the last bit.
    over = backends.opaque(jnp.float32(levels), largest + TINY)
    return jnp.maximum(largest, TINY) / over


def _inverse(scale: types.Array) -> types.Array:
    """Inverts a scale as it is: XLA would make levels / max|x| of it."""
    return lax.optimization_barrier(1 / lax.optimization_barrier(scale))


# 3 * 2^22: a float32 this large has no fraction, so that adding it rounds, half to
# even, and leaves what was rounded in the lowest bits.
_ROUNDER = 12582912.0


def _to_codes(x: types.Array, grid: specs.Grid, key: types.Key | None) -> types.Array:
    """Rounds x + zero to int8 codes; what lies outside [lowest, highest] saturates.

    Half to even, as the reference rounds, or stochastically with a key.
    """
    zero, lowest, highest, odd = grid
    if odd:
        whole = specs.Grid(0, (lowest - 1) // 2, (highest - 1) // 2)
        return 2 * _to_codes((x - 1) / 2, whole, key) + 1
    if key is not None:
        rounded = jnp.floor(x + jax.random.uniform(key, x.shape, x.dtype))
        return jnp.clip(rounded + zero, lowest, highest).astype(jnp.int8)
    # Rounding and conversion by instructions of their own take an eighth of a frozen
    # depthwise layer on CPU: XLA guards both against what was clipped already.
    inside = jnp.clip(x.astype(jnp.float32), lowest - zero, highest - zero)
    bits = lax.bitcast_convert_type(inside + _ROUNDER, jnp.int32)
    return (bits + zero).astype(jnp.int8)


_QUARTER = 64  # the zero point of quint8 in the reference


def _halves(x: types.Array) -> tuple[types.Array, types.Array]:
    """Splits float32 x into two of 12 bits whose sum it is; see `_fused_to_codes`."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    high = lax.bitcast_convert_type((bits + 0x800) & ~0xFFF, jnp.float32)
    return high, x - high


def _fused_to_codes(
    x: types.Array, scale: types.Array, zero: int, spec: specs.Spec
) -> types.Array:
    """Rounds x / scale + 64 as the reference does, by a fused multiply-add.

    The sum is rounded to float32 and then to the next integer, half to even. So a sum
    that is off n + 1/2 by no more than half a unit in its last place counts as a half,
    and goes to the even one of n and n + 1. Where that border is passed is decided
    exactly, with products of 12 by 12 bits, which float32 holds: it makes no difference
    whether a compiler fuses any of them with a sum.
    """
    inverse = _inverse(scale)
    ends = (spec.lowest - zero) * scale, (spec.highest - zero) * scale
    x = jnp.clip(x.astype(jnp.float32), *ends)
    below = jnp.floor(x * inverse)  # n; if it is one off, the border is far away
    n = below.astype(jnp.int32)
    bits = lax.bitcast_convert_type(below + (_QUARTER + 0.5), jnp.int32)
    half_unit = lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32) * 2.0**-24
    (x_high, x_low), (high, low) = _halves(x), _halves(inverse)
    past = x_high * high - (below + 0.5)
    past = past - jnp.where(n & 1, -half_unit, half_unit)
    past = past + x_high * low + x_low * high + x_low * low
    above = (past > 0) | ((past == 0) & (n & 1 == 1))
    return (n + above + zero).astype(jnp.int8)


def quantize(
    x: types.Array,
    scale: types.Array,
    spec: specs.Spec,
    nonnegative: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Quantizes floats with a given scale; what lies outside saturates.

    Args:
      x: float32 of any shape.
      scale: as of `QArray`.
      spec: widths and zero points.
      nonnegative: x has no negative values.
      key: for stochastic rounding; nearest (half to even) without.

    Returns:
      A QArray of the shape of x.
    """
    grid = spec.grid(nonnegative)
    if spec.stepwise and key is None:
        return QArray(_fused_to_codes(x, scale, grid.zero, spec), scale, grid.zero)
    codes = _to_codes(x * (1 / scale), grid, key)
    scale = narrow.raised(scale, spec, nonnegative)
    return QArray(codes, scale, grid.zero, grid.odd)


def quantize_weights(
    w: types.Array, spec: specs.Spec, key: types.Key | None = None
) -> QArray:
    """Quantizes weights [..., out] around zero point 0, scales per `spec.per_channel`.

    Args:
      w: float32 weights, norms folded; the last axis is the output channel.
      spec: range and granularity.
      key: for stochastic rounding.

    Returns:
      A QArray with scale [out] or [].
    """
    if spec.is_narrow:
        return _narrow_weights(w, spec, key)
    axes = tuple(range(w.ndim - 1)) if spec.per_channel else None
    levels = spec.highest / (2 if spec.reduced_range else 1)
    scale = _over(amax(w, axes), levels, spec)
    # The largest weight lies half between two codes: the last bit says which it is.
    steps = w * _inverse(scale) if spec.stepwise else w / scale
    grid = specs.Grid(0, spec.lowest, spec.highest)
    return QArray(_to_codes(steps, grid, key), scale)


def for_products(w: QArray, spec: specs.Spec) -> QArray:
    """Lays codes of weights into the type in which they are multiplied.

    Args:
      w: int8 codes, which bfloat16 holds exactly.
      spec: says which type.

    Returns:
      The same codes.
    """
    wanted = spec.products
    dtype = backends.code_products() if wanted == "auto" else wanted
    return QArray(w.codes.astype(dtype), w.scale, w.zero_point, w.odd)


def _narrow_weights(w: types.Array, spec: specs.Spec, key) -> QArray:
    """Quantizes weights to few codes, times the multiples of their groups."""
    scale, multiples = narrow.scales(w, spec)
    codes = _to_codes(w / (scale * multiples), spec.grid(False), key)
    codes = codes * multiples.astype(jnp.int8)
    if spec.clips and spec.unbiased:  # as `narrow.gain`, of these very weights
        axes = tuple(range(w.ndim - scale.ndim))
        along = jnp.sum(w * codes, axes) * scale
        square = jnp.sum(w * w, axes)
        scale = jnp.where(along > 0, square / along, 1.0) * scale
    return QArray(codes, scale)


# Fractional bits that a product keeps at least before the final shift: what the
# halves' products lose below them cannot turn a code.
_FRACTION = 19


def _exponent(x: types.Array) -> types.Array:
    """Reads e of |x| = m * 2^e, m in [1/2, 1), off the bits of a float32.

    jnp.frexp and jnp.ldexp do the same in dozens of operations, for subnormals; a
    network has hundreds of them to compile.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return ((bits >> 23) & 0xFF) - 126


def _power_of_two(exponent: types.Array) -> types.Array:
    """Makes the float32 2^exponent; the exponent is kept within what has one."""
    biased = jnp.clip(exponent, -126, 127) + 127
    return lax.bitcast_convert_type(biased << 23, jnp.float32)


def _fixed_point_ratio(ratio: types.Array):
    """Writes ratio = (high + low * 2^-15) * 2^-(shift + 16) * 2^left in int32.

    Two halves of 15 bits each: their products with the halves of a 32-bit accumulator
    fit int32, which is all there is without x64 mode. The 24 bits of a float32's
    mantissa fill them exactly.
    """
    bits = lax.bitcast_convert_type(ratio, jnp.int32)
    mantissa = (bits & 0x7FFFFF) | 0x800000
    high, low = mantissa >> 9, (mantissa & 0x1FF) << 6
    shift = -1 - _exponent(ratio)
    left = jnp.clip(_FRACTION - shift, 0, 30)
    return high, low, jnp.clip(shift + left, 1, 30), left


def _noise(shift: types.Array, shape, key: types.Key | None) -> types.Array:
    """Gives what to add before a right shift: one half, or uniform random bits."""
    if key is None:
        return jnp.left_shift(jnp.int32(1), shift - 1)
    bits = (jax.random.bits(key, shape, jnp.uint32) >> 2).astype(jnp.int32)
    return bits & (jnp.left_shift(jnp.int32(1), shift) - 1)


def rescale(
    accumulator: types.Array,
    ratio: types.Array,
    key: types.Key | None = None,
    odd: bool = False,
) -> types.Array:
    """Multiplies int32 by a positive ratio with integers alone.

    Rounds floor(x + 1/2) (ties up), or stochastically with a key. Where the ratio
    is large the accumulator is clipped first to what cannot overflow: results
    above 2^9 saturate, outside all codes.

    Args:
      accumulator: int32 [..., out].
      ratio: float32, [] or [out].
      key: for stochastic rounding.
      odd: rounds to the nearest odd number instead.

    Returns:
      int32 of the shape of the accumulator.
    """
    ratio = ratio / 2 if odd else ratio
    fine_high, fine_low, shift, left = _fixed_point_ratio(ratio)
    limit = jnp.left_shift(jnp.int32(1), 30 - left)
    x = jnp.left_shift(jnp.clip(accumulator, -limit, limit), left)
    high, low = x >> 16, x & 0xFFFF
    # What lies below a unit of the product is summed up before it is cut off: half a
    # unit of error is enough to turn a code, and one code of a key all that attend it.
    below = lax.shift_right_logical(low * fine_high, 1) + high * fine_low
    below = below + lax.shift_right_logical(low * fine_low, 16)
    product = high * fine_high + (below >> 15)
    rounded = product + _noise(shift, x.shape, key)
    if odd:
        return 2 * ((rounded - jnp.left_shift(jnp.int32(1), shift - 1)) >> shift) + 1
    return rounded >> shift


def _grid_of_result(spec: specs.Spec, relu: bool) -> specs.Grid:
    """Gives the codes of a result: none below that of 0 after a ReLU."""
    grid = spec.grid(relu)
    return grid._replace(lowest=max(grid.zero, grid.lowest)) if relu else grid


def _clip(x: types.Array, grid: specs.Grid) -> types.Array:
    return jnp.clip(x + grid.zero, grid.lowest, grid.highest).astype(jnp.int8)


def _keep_nonfinite(out_scale: types.Array, *scales: types.Array) -> types.Array:
    """Makes the scale NaN if one that led to it is not finite.

    Codes are always finite, so a tensor that is not shows in its scale alone.
    """
    return out_scale + 0.0 * sum(jnp.max(scale) for scale in scales)


class Accumulator(NamedTuple):
    """Sums of products of codes: value = unit * sums + bias.

    Attributes:
      sums: int32 [..., out].
      unit: float32, [] or [out].
      bias: float32 [out] or None.
    """

    sums: types.Array
    unit: types.Array
    bias: types.Array | None = None


def _fused_bias(sums: types.Array, unit: types.Array, bias: types.Array) -> types.Array:
    """Adds bias * (1 / unit) by a fused multiply-add, as the reference's kernels do.

    The product and what it lost to rounding are found once a channel, what their sum
    loses by Knuth's two-sum.
    """
    inverse = _inverse(unit)
    product = backends.opaque(bias * inverse, unit)
    (b_high, b_low), (high, low) = _halves(bias), _halves(inverse)
    lost = b_high * high - product + b_high * low + b_low * high + b_low * low
    total = sums + product
    back = total - product
    return total + ((sums - back) + (product - (total - back)) + lost)


def requantize(
    accumulator: Accumulator,
    out_scale: types.Array,
    spec: specs.Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Brings sums of products to codes of the next tensor.

    Args:
      accumulator: of `dot` or `conv`.
      out_scale: scale of the result, [].
      spec: widths and zero points.
      relu: cut negative values off.
      key: for stochastic rounding.

    Returns:
      A QArray of the shape of the sums.
    """
    sums, unit, bias = accumulator
    # The bias first: added after the product, some backends would fuse the two.
    if spec.stepwise and bias is not None:
        total = _fused_bias(sums.astype(jnp.float32), unit, bias)
    else:
        total = sums.astype(jnp.float32) + (0.0 if bias is None else bias / unit)
    ratio = lax.optimization_barrier(unit) / lax.optimization_barrier(out_scale)
    grid = _grid_of_result(spec, relu)
    codes = _to_codes(total * ratio, grid, key)
    out_scale = narrow.raised(out_scale, spec, relu)
    return QArray(codes, _keep_nonfinite(out_scale, unit), grid.zero, grid.odd)


def _accumulate(sums, x: QArray, w: QArray, bias) -> Accumulator:
    """Completes raw sums of products of codes by zero point and bias."""
    if x.zero_point:
        axes = tuple(range(w.codes.ndim - 1))
        sums = sums - x.zero_point * jnp.sum(w.codes.astype(jnp.int32), axis=axes)
    return Accumulator(sums, x.scale * w.scale, bias)


def dot(x: QArray, w: QArray, bias: types.Array | None = None) -> Accumulator:
    """Multiplies x [..., in] by w [in, out].

    Args:
      x: codes of any zero point.
      w: codes of zero point 0.
      bias: float32 [out].

    Returns:
      Sums [..., out].
    """
    return _accumulate(convs.dot(x.codes, w.codes), x, w, bias)


def conv(
    x: QArray,
    w: QArray,
    bias: types.Array | None = None,
    stride: int = 1,
    same: bool = True,
    form: Callable[..., types.Array] = convs.conv,
) -> Accumulator:
    """Convolves x [B, H, W, in] with w [k_h, k_w, in, out]; otherwise as `dot`.

    With `convs.depthwise` as form each channel of x with w [k_h, k_w, channels].
    """
    sums = form(x.codes, w.codes, stride, same, x.zero_point)
    return _accumulate(sums, x, w, bias)


# A sum of two codes times multipliers below 2^21 stays inside int32.
_ADD_BITS = 21


def add(
    a: QArray,
    b: QArray,
    out_scale: types.Array,
    spec: specs.Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Adds two quantized arrays of any scales, with integers alone.

    Args:
      a: codes of any zero point, scale [].
      b: likewise, of the same shape.
      out_scale: scale of the sum.
      spec: widths and zero points of the result.
      relu: cut negative values off.
      key: for stochastic rounding.

    Returns:
      A QArray of the shape of a.
    """
    ratio_a, ratio_b = a.scale / out_scale, b.scale / out_scale
    shift = jnp.clip(_ADD_BITS - _exponent(jnp.maximum(ratio_a, ratio_b)), 1, 30)

    def term(x, ratio):
        multiplier = jnp.round(ratio * _power_of_two(shift))
        multiplier = jnp.minimum(multiplier, 2.0**_ADD_BITS).astype(jnp.int32)
        return (x.codes.astype(jnp.int32) - x.zero_point) * multiplier

    noise = _noise(shift, a.shape, key)
    total = term(a, ratio_a) + term(b, ratio_b)
    grid = _grid_of_result(spec, relu)
    # Two shifts: the rounding term on top of the largest sum would leave int32.
    if grid.odd:
        lower = noise - jnp.left_shift(jnp.int32(1), shift - 1)
        whole = 2 * (((total >> 1) + lower) >> shift) + 1
    else:
        half = (total >> 1) + (noise >> 1)
        whole = half >> (shift - 1)
    out_scale = narrow.raised(out_scale, spec, relu)
    out_scale = _keep_nonfinite(out_scale, a.scale, b.scale)
    codes = _clip(whole, grid)
    # Several layers read a sum: see `programs.compiler_options`.
    return QArray(lax.optimization_barrier(codes), out_scale, grid.zero, grid.odd)


def requantize_values(
    value: types.Array,
    unit: types.Array,
    out_scale: types.Array,
    spec: specs.Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Quantizes what an operation made of dequantized codes in floats.

    For what has no integer form: norms by statistics of the values themselves.

    Args:
      value: float32.
      unit: scale of the codes that it was made of, [].
      out_scale: scale of the result, [].
      spec: widths and zero points.
      relu: cut negative values off.
      key: for stochastic rounding.

    Returns:
      A QArray of the shape of value.
    """
    value = jax.nn.relu(value) if relu else value
    grid = spec.grid(relu)
    # Here the reference, too, rounds before it adds the zero point.
    codes = _to_codes(value * (1 / out_scale), grid, key)
    out_scale = narrow.raised(out_scale, spec, relu)
    return QArray(codes, _keep_nonfinite(out_scale, unit), grid.zero, grid.odd)


def concat(
    a: QArray, b: QArray, out_scale: types.Array, spec: specs.Spec, key=None
) -> QArray:
    """Concatenates two quantized arrays of any scales along the last axis.

    Args:
      a: codes of any zero point, scale [].
      b: likewise; the other axes as of a.
      out_scale: scale of the result.
      spec: widths and zero points of the result.
      key: for stochastic rounding.

    Returns:
      A QArray [..., channels of a and b].
    """
    keys = (None, None) if key is None else jax.random.split(key)
    grid = spec.grid(False)

    def rescaled(x, key):
        codes = x.codes.astype(jnp.int32) - x.zero_point
        return _clip(rescale(codes, x.scale / out_scale, key, grid.odd), grid)

    codes = [rescaled(x, key) for x, key in zip((a, b), keys, strict=True)]
    out_scale = narrow.raised(out_scale, spec, False)
    out_scale = _keep_nonfinite(out_scale, a.scale, b.scale)
    return QArray(jnp.concatenate(codes, axis=-1), out_scale, grid.zero, grid.odd)
