"""Layers without weights: concatenation and average pooling."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.kernels import convs, quant
from fljax.nn import layers, signals


class Concat(nn.Module):
    """Two branches side by side, in one range, as in the reference code of CoCoFL."""

    @nn.compact
    def __call__(
        self, a: signals.Signal, b: signals.Signal, call: layers.Call
    ) -> signals.Signal:
        """Joins a and b [B, ..., channels]; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            y = jnp.concatenate([signals.to_float(x) for x in (a, b)], axis=-1)
            size = y.size // y.shape[0]
            layers.count(self, values=size, after_values=size)
            seen = lax.stop_gradient(y)
            layers.record_range(self, call, lambda: quant.amax(seen))
            return y
        observed = layers.frozen_range(self, call)
        if call.role is types.Role.FROZEN_BEFORE and call.spec.codes:
            a, b = (
                signals.to_codes(x, call.spec, layers.rounding_key(self, call))
                for x in (a, b)
            )
            scale = quant.scale_of(call.spec, observed)
            key = layers.rounding_key(self, call)
            return quant.concat(a, b, scale, call.spec, key)
        y = jnp.concatenate([signals.to_float(x) for x in (a, b)], axis=-1)
        return signals.Ranged(y, observed)


@functools.singledispatch
def global_mean_pool(x: signals.Signal) -> Any:
    """Averages [B, H, W, C] over positions, in floats: [B, C]."""
    return jnp.mean(signals.to_float(x), axis=(1, 2))


@functools.singledispatch
def mean_pool(x: signals.Signal, window: int = 2) -> signals.Signal:
    """Averages every window x window tile; scales and ranges stay."""
    odd = isinstance(x, quant.QArray) and x.odd
    return layers.on_values(lambda values: convs.mean_pool(values, window, odd), x)
