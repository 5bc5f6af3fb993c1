"""Products with a kernel: in floats, in codes, and frozen after the window."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.kernels import convs, quant
from fljax.nn import signals


@dataclasses.dataclass(frozen=True)
class Operation:
    """A product with a kernel, in floats and codes; static.

    Attributes:
      kind: "dense", "conv" or "depthwise".
      stride: of both axes.
      same: pad k // 2, or not at all.
    """

    kind: str
    stride: int = 1
    same: bool = True

    @property
    def _form(self) -> Callable[..., types.Array]:
        return convs.depthwise if self.kind == "depthwise" else convs.conv

    def floats(self, x: types.Array, kernel: types.Array) -> types.Array:
        """Multiplies floats."""
        if self.kind == "dense":
            return convs.dot(x, kernel)
        return self._form(x, kernel, self.stride, self.same)

    def codes(self, x: quant.QArray, w: quant.QArray, bias=None) -> quant.Accumulator:
        """Multiplies codes."""
        if self.kind == "dense":
            return quant.dot(x, w, bias)
        return quant.conv(x, w, bias, self.stride, self.same, self._form)

    def input_gradient(self, g: types.Array, kernel, size) -> types.Array:
        """Multiplies floats, or codes with zero point 0, by the transpose.

        Not of depthwise kernels, which stay in floats after the window.
        """
        if self.kind == "dense":
            return convs.dot_transposed(g, kernel)
        return convs.conv_input_gradient(g, kernel, size, self.stride, self.same)


class Frozen(NamedTuple):
    """What a frozen quantized layer reads: arrays of the `frozen` collection."""

    weights: quant.QArray
    bias: types.Array | None
    output: types.Array  # range of the output
    gradient: types.Array  # observed max|gradient|


def _split(key: types.Key | None):
    return (None, None) if key is None else jax.random.split(key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def after(operation, spec, relu, x, frozen, key):
    """Runs a frozen layer after the window: floats in and out, codes inside."""
    input_key, output_key = _split(key)
    scale = signals.input_scale(x, spec, spec.input_range == "carried")
    codes = quant.quantize(x.value, scale, spec, x.nonnegative, input_key)
    weights = frozen.weights
    if not spec.requantize_after:
        sums, unit, _ = operation.codes(codes, weights)
        y = sums.astype(jnp.float32) * unit
        y = y if frozen.bias is None else y + frozen.bias
        return y.astype(x.value.dtype)
    sums = operation.codes(codes, weights, frozen.bias)
    out_scale = quant.scale_of(spec, frozen.output, relu)
    y = quant.requantize(sums, out_scale, spec, relu, output_key).dequantize()
    return y.astype(x.value.dtype)


def _after_forward(operation, spec, relu, x, frozen, key):
    forward_key, backward_key = _split(key)
    y = after(operation, spec, relu, x, frozen, forward_key)
    return y, (x, frozen, backward_key)


def _after_backward(operation, spec, relu, residuals, g):
    del relu
    x, frozen, key = residuals
    input_key, output_key = _split(key)
    weights = frozen.weights
    # The sum runs over output channels, so their scales go into the cotangent. It is
    # read twice, for its range and its codes.
    g = lax.optimization_barrier(g * weights.scale if weights.scale.ndim else g)
    factor = 1.0 if weights.scale.ndim else weights.scale
    dense = operation.kind == "dense"
    spec = dataclasses.replace(spec, half_steps=False)  # a ReLU's gradient is 0 mostly
    # Convolutions pad with code 0, which has to mean 0.
    zero_point = spec.zero_point if dense else "middle"
    gradients = dataclasses.replace(spec, zero_point=zero_point)
    if dense and g.ndim > 2 and spec.reference_quirks:
        largest = quant.amax(g[0, 0])  # the first position of the first example
    else:
        largest = quant.range_of(g, gradients)
    scale = quant.scale_of(gradients, largest)
    codes = quant.quantize(g, scale, gradients, key=input_key)
    size = x.shape[1:3]
    sums = operation.input_gradient(codes.codes, weights.codes, size)
    if codes.zero_point:
        column = jnp.sum(weights.codes.astype(jnp.int32), axis=1)
        sums = sums - codes.zero_point * column
    result = quant.Accumulator(sums, codes.scale * factor)
    if spec.requantize_after:
        out_scale = quant.scale_of(spec, frozen.gradient)
        dx = quant.requantize(result, out_scale, spec, key=output_key).dequantize()
    else:
        dx = result.sums.astype(jnp.float32) * result.unit
    dx = dx.astype(x.value.dtype)
    unmoved = None if x.largest is None else jnp.zeros_like(x.largest)
    return signals.Ranged(dx, unmoved, x.nonnegative), None, None


after.defvjp(_after_forward, _after_backward)
