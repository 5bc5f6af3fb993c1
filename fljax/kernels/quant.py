"""Fixed point: int8 codes, int32 accumulation, integer-only requantisation.

A quantised array stands for `value = scale * (codes - zero_point)`, with codes in
[-2^(bits-1), 2^(bits-1) - 1]. A product of two of them is an int32 sum of products
of codes; its result is brought to the scale of the next tensor by an integer
multiplier and a shift, so that every backend gives the same bits. The choices that
differ between methods (range, zero points, scales of weights, rounding, where
scales come from) are the fields of one frozen `Spec`.

`REFERENCE` reproduces the paper's choices (Pfeiffer et al., CoCoFL, TMLR 2023):
per-tensor scales 2 * max|x| / 127, zero point 64 of quint8 (here -64 of int8).
`DEFAULT` is the best that was measured; docs/performance.md has the figures.

Beside each kernel stands its slow float oracle, `*_oracle`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fljax import bounds, types
from fljax.kernels import convs
from fljax.runtime import backends

# A range below this is no range: a tensor of zeros, or one that nobody observed.
TINY = 1e-12


_NAMES = {
    "zero_point": ("middle", "quarter"),
    "relu_zero_point": ("middle", "quarter", "lowest"),
    "rounding": ("nearest", "stochastic"),
    "input_range": ("carried", "dynamic"),
    "gradient_range": ("observed", "dynamic"),
    "arithmetic": ("integers", "floats", "reference"),
    "gradient_place": ("input", "product", "output", "nowhere"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """How frozen blocks are quantised.

    Attributes:
      bits: width of a code, 2 to 8.
      reduced_range: max|x| maps to half the positive codes (reduce-range), which
        leaves headroom for tensors that outgrow an observed range.
      zero_point: of signed tensors; "middle" 0, "quarter" -2^(bits-2) (64 in
        quint8), which turns the headroom of the reduced range to the positive side.
      relu_zero_point: of tensors that cannot be negative; "lowest" -2^(bits-1)
        gives them all codes.
      per_channel: weights have a scale for every output channel.
      rounding: of quantisation and requantisation; "stochastic" needs keys.
      input_range: after the window, the scale of a layer's input is "carried" from
        what its producer observed, or "dynamic" (max|x| of the batch).
      gradient_range: likewise of the output cotangent, "observed" or "dynamic".
      requantise_after: after the window, results pass through codes of the observed
        output range, else they go from int32 straight to float32.
      depthwise_after: after the window, depthwise layers compute in codes too.
      arithmetic: what brings sums of products to the next scale: "integers" alone
        (ties up), or "floats", one multiplication (ties to even), as the reference's
        kernels do. Either gives the same bits everywhere. "reference" is "floats", and
        what leads to codes (scales, norms folded into weights, quantisation of floats)
        is rounded where PyTorch rounds it, which costs a few more instructions.
      codes: frozen blocks run in codes; if not, in float32 with their norms folded,
        which tells what quantisation itself costs and saves.
      gradient_place: where trained layers observe the range of the gradient: at the
        layer's "input" or "output", at the "product" before its norm (the
        reference's slip: it is used as range of the input's), or "nowhere".
      reference_quirks: reproduce the reference's other slips (docs/design.md).
    """

    bits: int = 8
    reduced_range: bool = False
    zero_point: Literal["middle", "quarter"] = "middle"
    relu_zero_point: Literal["middle", "quarter", "lowest"] = "lowest"
    per_channel: bool = True
    rounding: Literal["nearest", "stochastic"] = "nearest"
    input_range: Literal["carried", "dynamic"] = "carried"
    gradient_range: Literal["observed", "dynamic"] = "dynamic"
    requantise_after: bool = False
    depthwise_after: bool = False
    gradient_place: Literal["input", "product", "output", "nowhere"] = "nowhere"
    arithmetic: Literal["integers", "floats", "reference"] = "floats"
    codes: bool = True
    reference_quirks: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, names = getattr(self, field.name), _NAMES.get(field.name, ())
            if names and value not in names:
                raise ValueError(
                    f"{field.name}: expected {', '.join(names)}, got {value!r}"
                )
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: expected 2 to 8, got {self.bits}")
        quarter = "quarter" in (self.zero_point, self.relu_zero_point)
        if quarter and not self.reduced_range:
            raise ValueError("a 'quarter' zero point needs reduced_range=True")
        if self.gradient_range == "observed" and self.gradient_place != "output":
            raise ValueError(
                f"gradient_range='observed' needs gradient_place='output', "
                f"got {self.gradient_place!r}"
            )
        if self.requantise_after and self.gradient_place not in ("input", "product"):
            raise ValueError(
                f"requantise_after=True needs gradient_place='input' or 'product', "
                f"got {self.gradient_place!r}"
            )

    @property
    def stepwise(self) -> bool:
        """Whether floats on the way to codes are rounded as PyTorch rounds them."""
        return self.arithmetic == "reference"

    @property
    def observes_after_relu(self) -> bool:
        """Whether forward ranges are taken after a fused ReLU, not before."""
        return self.relu_zero_point == "lowest"

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    def zero_point_of(self, nonnegative: bool) -> int:
        """Gives the zero point of a signed or a nonnegative tensor."""
        name = self.relu_zero_point if nonnegative else self.zero_point
        return {"middle": 0, "quarter": self.lowest // 2, "lowest": self.lowest}[name]

    def levels(self, nonnegative: bool) -> float:
        """Gives how many codes above the zero point max|x| maps to."""
        if self.zero_point_of(nonnegative) == self.lowest:
            span = float(self.highest - self.lowest)
        else:
            span = float(self.highest)
        return span / 2 if self.reduced_range else span


DEFAULT = Spec()
FLOAT = Spec(codes=False)
REFERENCE = Spec(
    reduced_range=True,
    zero_point="quarter",
    relu_zero_point="quarter",
    per_channel=False,
    input_range="dynamic",
    requantise_after=True,
    arithmetic="reference",
    gradient_place="product",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """How a run freezes blocks: what of a `Spec` users choose."""

    fixed_point: str = bounds.field(
        "default",
        "Fixed point of frozen blocks: default (the best measured), reference (the "
        "paper's) or none (float32).",
        choices=("default", "reference", "none"),
    )
    bits: int = bounds.field(
        8, "Width of the codes of frozen blocks, 2 to 8.", least=2, most=8
    )
    weight_scales: str = bounds.field(
        "own",
        "Scales of frozen weights: one a channel, one a tensor, or fixed_point's own.",
        choices=("own", "channel", "tensor"),
    )
    rounding: str = bounds.field(
        "nearest",
        "Rounding to codes: nearest or stochastic.",
        choices=("nearest", "stochastic"),
    )
    reference_quirks: bool = bounds.field(
        False, "Reproduce the slips of the paper's code: see docs/design.md."
    )

    def __post_init__(self):
        bounds.check(self, "frozen.{}".format)

    @property
    def spec(self) -> Spec:
        """The choices in full."""
        base = {"default": DEFAULT, "reference": REFERENCE, "none": FLOAT}
        made = base[self.fixed_point]
        if made.gradient_place == "product" and not self.reference_quirks:
            made = dataclasses.replace(made, gradient_place="input")
        if self.weight_scales != "own":
            of_channels = self.weight_scales == "channel"
            made = dataclasses.replace(made, per_channel=of_channels)
        rounding: Any = self.rounding  # one of its choices
        return dataclasses.replace(
            made,
            bits=self.bits,
            rounding=rounding,
            reference_quirks=self.reference_quirks,
        )


@struct.dataclass
class QArray:
    """Codes with their scale: value = scale * (codes - zero_point).

    Attributes:
      codes: int8 of any shape.
      scale: float32, [] or one for every index of the last axis.
      zero_point: static int; the code of 0.
    """

    codes: types.Array
    scale: types.Array
    zero_point: int = struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    def dequantise(self) -> types.Array:
        """Returns the float32 values."""
        return self.scale * (self.codes.astype(jnp.float32) - self.zero_point)


def amax(x: types.Array, axes=None) -> types.Array:
    """Computes max|x| in float32, over all axes by default."""
    if backends.accelerated():
        largest = jnp.max(jnp.abs(x), axis=axes)
    else:  # apart: max(abs(x)) keeps XLA CPU from vectorising the reduction
        largest = jnp.maximum(jnp.max(x, axis=axes), -jnp.min(x, axis=axes))
    return largest.astype(jnp.float32)


def scale_of(spec: Spec, largest: types.Array, nonnegative: bool = False):
    """Turns max|x| into the scale of its codes; never 0."""
    return _over(largest, spec.levels(nonnegative), spec)


def _over(largest: types.Array, levels: float, spec: Spec) -> types.Array:
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


def _to_codes(
    x: types.Array, zero: int, lowest: int, highest: int, key: types.Key | None
) -> types.Array:
    """Rounds x + zero to int8 codes; what lies outside [lowest, highest] saturates.

    Half to even, as the reference rounds, or stochastically with a key.
    """
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
    x: types.Array, scale: types.Array, zero: int, spec: Spec
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


def quantise(
    x: types.Array,
    scale: types.Array,
    spec: Spec,
    nonnegative: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Quantises floats with a given scale; what lies outside saturates.

    Args:
      x: float32 of any shape.
      scale: [] or one for every index of the last axis.
      spec: widths and zero points.
      nonnegative: x has no negative values.
      key: for stochastic rounding; nearest (half to even) without.

    Returns:
      A QArray of the shape of x.
    """
    zero = spec.zero_point_of(nonnegative)
    if spec.stepwise and key is None:
        return QArray(_fused_to_codes(x, scale, zero, spec), scale, zero)
    codes = _to_codes(x * (1 / scale), zero, spec.lowest, spec.highest, key)
    return QArray(codes, scale, zero)


def quantise_weights(
    w: types.Array, spec: Spec, key: types.Key | None = None
) -> QArray:
    """Quantises weights [..., out] around zero point 0, scales per `spec.per_channel`.

    Args:
      w: float32 weights, norms folded; the last axis is the output channel.
      spec: range and granularity.
      key: for stochastic rounding.

    Returns:
      A QArray with scale [out] or [].
    """
    axes = tuple(range(w.ndim - 1)) if spec.per_channel else None
    levels = spec.highest / (2 if spec.reduced_range else 1)
    scale = _over(amax(w, axes), levels, spec)
    # The largest weight lies half between two codes: the last bit says which it is.
    steps = w * _inverse(scale) if spec.stepwise else w / scale
    return QArray(_to_codes(steps, 0, spec.lowest, spec.highest, key), scale)


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
    accumulator: types.Array, ratio: types.Array, key: types.Key | None = None
) -> types.Array:
    """Multiplies int32 by a positive ratio with integers alone.

    Rounds floor(x + 1/2) (ties up), or stochastically with a key. Where the ratio
    is large the accumulator is clipped first to what cannot overflow: results
    above 2^9 saturate, outside all codes.

    Args:
      accumulator: int32 [..., out].
      ratio: float32, [] or [out].
      key: for stochastic rounding.

    Returns:
      int32 of the shape of the accumulator.
    """
    fine_high, fine_low, shift, left = _fixed_point_ratio(ratio)
    limit = jnp.left_shift(jnp.int32(1), 30 - left)
    x = jnp.left_shift(jnp.clip(accumulator, -limit, limit), left)
    high, low = x >> 16, x & 0xFFFF
    # What lies below a unit of the product is summed up before it is cut off: half a
    # unit of error is enough to turn a code, and one code of a key all that attend it.
    below = lax.shift_right_logical(low * fine_high, 1) + high * fine_low
    below = below + lax.shift_right_logical(low * fine_low, 16)
    product = high * fine_high + (below >> 15)
    return (product + _noise(shift, x.shape, key)) >> shift


def rescale_oracle(accumulator: types.Array, ratio: types.Array) -> types.Array:
    """Does what `rescale` does, in floats."""
    return jnp.floor(accumulator.astype(jnp.float32) * ratio + 0.5).astype(jnp.int32)


def _lowest(zero: int, spec: Spec, relu: bool) -> int:
    """Gives the lowest code of a result: that of 0 after a ReLU."""
    return max(zero, spec.lowest) if relu else spec.lowest


def _clip(x: types.Array, zero: int, spec: Spec, relu: bool) -> types.Array:
    low = _lowest(zero, spec, relu)
    return jnp.clip(x + zero, low, spec.highest).astype(jnp.int8)


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
      largest: static bound of |sums|.
    """

    sums: types.Array
    unit: types.Array
    bias: types.Array | None = None
    largest: int = 2**30


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


def requantise(
    accumulator: Accumulator,
    out_scale: types.Array,
    spec: Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Brings sums of products to codes of the next tensor.

    Args:
      accumulator: of `dot`, `conv` or `depthwise`.
      out_scale: scale of the result, [].
      spec: widths and zero points.
      relu: cut negative values off.
      key: for stochastic rounding.

    Returns:
      A QArray of the shape of the sums.
    """
    zero = spec.zero_point_of(relu)
    sums, unit, bias, _ = accumulator
    if spec.arithmetic != "integers":
        # The bias first: added after the product, some backends would fuse the two.
        if spec.stepwise and bias is not None:
            total = _fused_bias(sums.astype(jnp.float32), unit, bias)
        else:
            total = sums.astype(jnp.float32) + (0.0 if bias is None else bias / unit)
        ratio = lax.optimization_barrier(unit) / lax.optimization_barrier(out_scale)
        low = _lowest(zero, spec, relu)
        codes = _to_codes(total * ratio, zero, low, spec.highest, key)
    else:
        sums, unit = _with_bias(accumulator)
        codes = _clip(rescale(sums, unit / out_scale, key), zero, spec, relu)
    return QArray(codes, _keep_nonfinite(out_scale, unit), zero)


def _with_bias(accumulator: Accumulator) -> tuple[types.Array, types.Array]:
    """Adds the bias to the sums in fixed point; returns them and their unit."""
    sums, unit, bias, largest = accumulator
    if bias is None:
        return sums, unit
    # Rounded to one unit the bias alone would flip every tenth code, so the sums get
    # as many fractional bits as their largest possible value leaves free; or lose some
    # where a bias outweighs a channel of tiny weights.
    free = max(30 - (largest - 1).bit_length(), 0)
    shift = jnp.minimum(free, 29 - _exponent(bias / unit))
    unit = unit * _power_of_two(-shift)
    shifted = (sums << jnp.maximum(shift, 0)) >> jnp.clip(-shift, 0, 31)
    return shifted + jnp.round(bias / unit).astype(jnp.int32), unit


def _accumulate(sums, x: QArray, w: QArray, bias) -> Accumulator:
    """Completes raw sums of products of codes by zero point and bias."""
    fan_in = w.codes.size // w.codes.shape[-1]
    if x.zero_point:
        axes = tuple(range(w.codes.ndim - 1))
        sums = sums - x.zero_point * jnp.sum(w.codes.astype(jnp.int32), axis=axes)
    largest = fan_in * max(127 - x.zero_point, x.zero_point + 128) * 128
    return Accumulator(sums, x.scale * w.scale, bias, largest)


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
) -> Accumulator:
    """Convolves x [B, H, W, in] with w [k_h, k_w, in, out]; otherwise as `dot`."""
    sums = convs.conv(x.codes, w.codes, stride, same, x.zero_point)
    return _accumulate(sums, x, w, bias)


def depthwise(
    x: QArray,
    w: QArray,
    bias: types.Array | None = None,
    stride: int = 1,
    same: bool = True,
) -> Accumulator:
    """Convolves each channel of x with w [k_h, k_w, channels]; otherwise as `dot`."""
    sums = convs.depthwise(x.codes, w.codes, stride, same, x.zero_point)
    return _accumulate(sums, x, w, bias)


# A sum of two codes times multipliers below 2^21 stays inside int32.
_ADD_BITS = 21


def add(
    a: QArray,
    b: QArray,
    out_scale: types.Array,
    spec: Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Adds two quantised arrays of any scales, with integers alone.

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
    zero = spec.zero_point_of(relu)
    # Two shifts: the rounding term on top of the largest sum would leave int32.
    half = (total >> 1) + (noise >> 1)
    out_scale = _keep_nonfinite(out_scale, a.scale, b.scale)
    codes = _clip(half >> (shift - 1), zero, spec, relu)
    # Several layers read a sum: see `programs.compiler_options`.
    return QArray(lax.optimization_barrier(codes), out_scale, zero)


def requantise_values(
    value: types.Array,
    unit: types.Array,
    out_scale: types.Array,
    spec: Spec,
    relu: bool = False,
    key: types.Key | None = None,
) -> QArray:
    """Quantises what an operation made of dequantised codes in floats.

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
    zero = spec.zero_point_of(relu)
    # Here the reference, too, rounds before it adds the zero point.
    codes = _to_codes(value * (1 / out_scale), zero, spec.lowest, spec.highest, key)
    return QArray(codes, _keep_nonfinite(out_scale, unit), zero)


def concat(
    a: QArray, b: QArray, out_scale: types.Array, spec: Spec, key=None
) -> QArray:
    """Concatenates two quantised arrays of any scales along the last axis.

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
    zero = spec.zero_point_of(False)

    def rescaled(x, key):
        codes = x.codes.astype(jnp.int32) - x.zero_point
        return _clip(rescale(codes, x.scale / out_scale, key), zero, spec, False)

    codes = [rescaled(x, key) for x, key in zip((a, b), keys, strict=True)]
    out_scale = _keep_nonfinite(out_scale, a.scale, b.scale)
    return QArray(jnp.concatenate(codes, axis=-1), out_scale, zero)


def apply_oracle(operation, x: QArray, w: QArray, bias=None) -> types.Array:
    """Computes a product of quantised arrays on their float values.

    Args:
      operation: `convs.dot`, or `convs.conv` and the like with stride bound.
      x: activations.
      w: weights.
      bias: float32 [out].

    Returns:
      float32, what `dot`, `conv` or `depthwise` times its unit approximates.
    """
    result = operation(x.dequantise(), w.dequantise())
    return result if bias is None else result + bias


def requantise_oracle(
    value: types.Array, out_scale: types.Array, spec: Spec, relu: bool = False
) -> QArray:
    """Quantises float results to codes of out_scale as `requantise` should."""
    zero = spec.zero_point_of(relu)
    codes = jnp.floor(value / out_scale + 0.5).astype(jnp.int32)
    return QArray(_clip(codes, zero, spec, relu), out_scale, zero)
