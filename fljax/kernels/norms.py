"""Batch norm (padding rows left out) and group norm, in few passes over memory.

Statistics and what follows from them are float32 whatever the dtype of the activations,
which the result has again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types
from fljax.runtime import backends

EPSILON = 1e-5  # of every norm, as in the reference


def _sum_rows(x: types.Array, mask: types.Array | None) -> types.Array:
    """Sums x [B, ..., C] over all but the last axis, rows weighted by mask [B]."""
    if backends.accelerated():  # one pass, and two sums of one x share it
        axes = tuple(range(x.ndim - 1))
        return jnp.sum(x if mask is None else x * _as_rows(mask, x), axis=axes)
    # Over positions first: a mask of the size of x would cost a pass over memory.
    by_row = jnp.sum(x, axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
    # A product of the mask with the rows would be compiled anew for every norm.
    return jnp.sum(by_row if mask is None else mask[:, None] * by_row, axis=0)


def _as_rows(mask: types.Array, x: types.Array) -> types.Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))


def _statistics(x: types.Array, mask: types.Array | None):
    """Computes mean, variance [C] over all but the last axis, and the count."""
    positions = x.size // (x.shape[0] * x.shape[-1])
    rows = jnp.float32(x.shape[0]) if mask is None else jnp.sum(mask)
    count = jnp.maximum(rows, 1.0) * positions
    mean = _sum_rows(x, mask) / count
    # One pass: subtracting the mean first would write a copy of x. What float32 loses
    # is (mean / deviation)^2 times its precision: nothing at the inputs of a norm, 1e-3
    # of the variance where the mean is 100 deviations.
    square = _sum_rows(x * x, mask) / count
    return mean, jnp.maximum(square - mean * mean, 0.0), count


@jax.custom_vjp
def batch_norm(
    x: types.Array,
    scale: types.Array,
    bias: types.Array,
    mask: types.Array | None,
) -> tuple[types.Array, types.Array, types.Array, types.Array]:
    """Normalizes by the statistics of the batch (Ioffe and Szegedy, ICML 2015).

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      mask: [B] 1 for rows that count, 0 for padding; None: all count.

    Returns:
      The normalized x, mean [C], biased variance [C], and how many values of a
      channel counted, []. Gradients flow through the first alone.
    """
    return _forward(x, scale, bias, mask)[0]


def _forward(x, scale, bias, mask):
    given, x = x, x.astype(jnp.float32)
    mean, variance, count = _statistics(x, mask)
    inverse = lax.rsqrt(variance + EPSILON)
    y = ((x - mean) * (inverse * scale) + bias).astype(given.dtype)
    return (y, mean, variance, count), (given, scale, mean, inverse, mask, count)


def _backward(residuals, cotangents):
    # One formula instead of the five passes that differentiating the mean and the
    # variance would make, and sums that need no normalized copy of x. Padding rows
    # carry no gradient in, and get none out.
    given, scale, mean, inverse, mask, count = residuals
    x = given.astype(jnp.float32)
    g = lax.optimization_barrier(cotangents[0]).astype(jnp.float32)
    bias_gradient = _sum_rows(g, None)
    scale_gradient = inverse * (_sum_rows(g * x, None) - mean * bias_gradient)
    slope = inverse * scale_gradient / count
    shared = (bias_gradient / count - mean * slope) + x * slope
    if mask is not None:
        shared = shared * _as_rows(mask, x)
    dx = ((inverse * scale) * (g - shared)).astype(given.dtype)
    return dx, scale_gradient, bias_gradient, None


batch_norm.defvjp(_forward, _backward)


@jax.custom_vjp
def channel_norm(x: types.Array, scale: types.Array, bias: types.Array) -> types.Array:
    """Normalizes every channel of every image by its own mean and variance.

    Group norm (Wu and He, ECCV 2018) with as many groups as channels. Images do not
    meet, so rows that pad the batch need no mask.

    Args:
      x: [B, height, width, C].
      scale: [C].
      bias: [C].

    Returns:
      The normalized x, of its shape.
    """
    return _channel_forward(x, scale, bias)[0]


def _channel_forward(x, scale, bias):
    given, x = x, x.astype(jnp.float32)
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    # One pass, as in `_statistics`: here too the input comes out of a product.
    square = jnp.mean(x * x, axis=(1, 2), keepdims=True)
    inverse = lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
    y = ((x - mean) * (inverse * scale) + bias).astype(given.dtype)
    return y, (given, scale, mean, inverse)


def _channel_backward(residuals, g):
    # The formula of `_backward` for one image; the parameters add the images up.
    given, scale, mean, inverse = residuals
    x = given.astype(jnp.float32)
    g = lax.optimization_barrier(g).astype(jnp.float32)
    count = x.shape[1] * x.shape[2]
    bias_gradient = jnp.sum(g, axis=(1, 2), keepdims=True)
    products = jnp.sum(g * x, axis=(1, 2), keepdims=True)
    scale_gradient = inverse * (products - mean * bias_gradient)
    slope = inverse * scale_gradient / count
    shared = (bias_gradient / count - mean * slope) + x * slope
    dx = ((inverse * scale) * (g - shared)).astype(given.dtype)
    return dx, jnp.sum(scale_gradient, (0, 1, 2)), jnp.sum(bias_gradient, (0, 1, 2))


channel_norm.defvjp(_channel_forward, _channel_backward)


def layer_norm(x: types.Array, scale: types.Array, bias: types.Array) -> types.Array:
    """Normalizes every position by its own mean and variance (Ba et al., 2016).

    Args:
      x: [..., C].
      scale: [C].
      bias: [C].

    Returns:
      The normalized x, of its shape.
    """
    variance = jnp.var(x, axis=-1, keepdims=True)
    normal = jax.nn.standardize(x, axis=-1, variance=variance, epsilon=EPSILON)
    return normal * scale + bias


def folded(
    mean: types.Array,
    variance: types.Array,
    scale: types.Array,
    bias: types.Array,
    stepwise: bool = False,
) -> tuple[types.Array, types.Array]:
    """Gives factor and offset [C] of x * factor + offset, a norm by statistics.

    Args:
      mean: [C].
      variance: [C].
      scale: [C].
      bias: [C].
      stepwise: every operation is rounded to float32 by itself, as in PyTorch.

    Returns:
      Factor and offset.
    """
    if not stepwise:
        factor = scale * lax.rsqrt(variance + EPSILON)
        return factor, bias - mean * factor
    # Constants would be folded, and then seen through.
    mean, variance, scale, bias = lax.optimization_barrier(
        (mean, variance, scale, bias)
    )
    # XLA's rsqrt approximates on CPU.
    deviation = lax.optimization_barrier(jnp.sqrt(variance + EPSILON))
    inverse = 1 / deviation
    product = backends.opaque(-mean * inverse * scale, variance + EPSILON)
    return scale * inverse, product + bias


def beside(x: types.Array, mask: types.Array | None) -> tuple[types.Array, types.Array]:
    """Computes mean and corrected variance [C] of x for nothing but the record.

    Apart from the step: taken from its own sums, they would have XLA fuse these
    otherwise, and change the last bits of all that is trained.

    Args:
      x: [B, ..., C].
      mask: [B] as of `batch_norm`.
    """
    x = lax.stop_gradient(lax.optimization_barrier(x)).astype(jnp.float32)
    mean, variance, count = _statistics(x, mask)
    return mean, unbiased(variance, count)


def sent(channels: int) -> int:
    """Counts what a client sends of a norm: mean, variance, PyTorch's batch counter."""
    return 2 * channels + 1


def unbiased(variance: types.Array, count: types.Array) -> types.Array:
    """Corrects the variance of `count` values, as running statistics keep it."""
    return variance * count / jnp.maximum(count - 1, 1)
