"""Normalization layers that cannot be folded into the product before them.

DenseNet normalizes before it convolves (Huang et al., CVPR 2017); group norm has the
statistics of each image, layer norm of each position, and no weight can hold these.
Before the window they compute in floats between codes; after it they stay in float32
altogether, as in the reference code of CoCoFL (arXiv 2203.05468). Variables as of
`nn.layers`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.kernels import norms, quant
from fljax.nn import layers, signals


def _affine(module: nn.Module, channels: int) -> tuple[types.Array, types.Array]:
    """Declares scale and bias [C]."""
    scale = module.param("scale", nn.initializers.ones, (channels,))
    return scale, module.param("bias", nn.initializers.zeros, (channels,))


def _probed(module: nn.Module, x: types.Array, call: layers.Call) -> types.Array:
    """Observes the gradient of the input; nothing reads it, clients send it though."""
    if module.is_initializing():
        module.variable("backward", "range", jnp.zeros, ())
    if call.spec.gradient_place == "nowhere" or not module.has_variable(
        "backward", "range"
    ):
        return x
    return layers.probe(x, module.get_variable("backward", "range"))


def _observed(module, relu: bool, call: layers.Call) -> types.Array | None:
    """Gives the range of the output, where there is one."""
    if not module.quantized:
        return None
    return layers.frozen_range(module, call, relu, normal=True)


def _requantized(module, y, unit, relu: bool, call: layers.Call) -> quant.QArray:
    observed = layers.frozen_range(module, call, relu, normal=True)
    scale = quant.scale_of(call.spec, observed, relu)
    key = layers.rounding_key(module, call)
    return quant.requantize_values(y, unit, scale, call.spec, relu, key)


class GroupNorm(nn.Module):
    """Group norm with as many groups as channels, then ReLU.

    Attributes:
      relu: a ReLU follows.
      quantized: ranges are observed, and codes flow out of it before the window.
    """

    relu: bool = False
    quantized: bool = True
    normalize = staticmethod(norms.channel_norm)

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, ..., C] to the same shape; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            return self._trained(signals.to_float(x), call)
        scale, bias = self.variable(
            "frozen", "affine", _affine, self, x.shape[-1]
        ).value
        coded = self.quantized and call.spec.codes
        if coded and call.role is types.Role.FROZEN_BEFORE:
            x = signals.to_codes(x, call.spec, layers.rounding_key(self, call))
            y = self.normalize(x.dequantize(), scale, bias)
            return _requantized(self, y, x.scale, self.relu, call)
        y = self.normalize(signals.to_float(x), scale, bias)
        observed = _observed(self, self.relu, call)
        return signals.Ranged(jax.nn.relu(y) if self.relu else y, observed, self.relu)

    def _trained(self, x: types.Array, call: layers.Call) -> types.Array:
        scale, bias = _affine(self, x.shape[-1])
        _count(self, x, self.relu)
        x = _probed(self, x, call) if self.quantized else x
        y = self.normalize(x, scale, bias)
        activated = jax.nn.relu(y) if self.relu else y
        if self.quantized:
            seen = activated if call.spec.observes_after_relu else y
            seen = lax.stop_gradient(seen)
            layers.record_range(self, call, lambda: quant.amax(seen))
        return activated


class LayerNorm(GroupNorm):
    """Layer norm, over the channels of each position; otherwise as `GroupNorm`."""

    normalize = staticmethod(norms.layer_norm)


class BatchNorm(nn.Module):
    """Batch norm before a product, then ReLU.

    After the window it normalizes by the statistics of the batch, and the gradient
    goes through them, as if it were trained; before it by the running ones.

    Where its block is the first of the window it records nothing, and its statistics
    and ranges are not sent: the reference keeps none there (its upload figures say so).

    Attributes:
      quantized: the frozen role before the window runs on codes, by running
        statistics; else in float32, with batch statistics in every role.
      tracked: clients send the running statistics, see `layers.Product`.
      momentum: weight of the newest batch in them.
    """

    quantized: bool = True
    tracked: bool = True
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, ..., C] to the same shape; float, QArray or Ranged by role."""
        channels = x.shape[-1]
        if call.role is types.Role.TRAINED:
            return self._trained(signals.to_float(x), call)
        coded = self.quantized and call.spec.codes
        if coded and call.role is types.Role.FROZEN_BEFORE:
            x = signals.to_codes(x, call.spec, layers.rounding_key(self, call))
            factor, offset = self.variable(
                "frozen", "folded", self._folded, channels, call
            ).value
            y = x.dequantize() * factor + offset
            return _requantized(self, y, x.scale, True, call)
        scale, bias = self.variable("frozen", "affine", _affine, self, channels).value
        y = norms.batch_norm(signals.to_float(x), scale, bias, call.mask)[0]
        return signals.Ranged(jax.nn.relu(y), _observed(self, True, call), True)

    def _running(self, channels: int):
        mean = self.variable("norms", "mean", jnp.zeros, (channels,))
        return mean, self.variable("norms", "var", jnp.ones, (channels,))

    def _folded(self, channels: int, call: layers.Call):
        scale, bias = _affine(self, channels)
        mean, var = self._running(channels)
        return norms.folded(mean.value, var.value, scale, bias, call.spec.stepwise)

    def _trained(self, x: types.Array, call: layers.Call) -> types.Array:
        scale, bias = _affine(self, x.shape[-1])
        _count(self, x, relu=True)
        sent = norms.sent(x.shape[-1])
        # Not sent where the block is the window's first.
        entry = (sent if self.tracked else 0) + (2 if self.quantized else 0)
        layers.count(self, entry=entry, unsent=0 if self.tracked else sent)
        x = _probed(self, x, call) if self.quantized else x
        running = self._running(x.shape[-1])
        if call.running:
            mean, var = running
            factor, offset = norms.folded(mean.value, var.value, scale, bias)
            return jax.nn.relu((x * factor + offset).astype(x.dtype))
        y, *statistics = norms.batch_norm(x, scale, bias, call.mask)
        if call.first is not True:
            self._record(x, call, statistics, running, scale, bias)
        return jax.nn.relu(y)

    def _record(self, x, call: layers.Call, statistics, running, scale, bias) -> None:
        mean, var, count = statistics
        changes = self.is_mutable_collection("norms") and not self.is_initializing()
        if changes:
            m = 1.0 if call.fresh else self.momentum
            latest = (mean, norms.unbiased(var, count))
            if not self.tracked:
                latest = norms.beside(x, call.mask)
            for variable, newest in zip(running, latest, strict=True):
                new = (1 - m) * variable.value + m * newest
                variable.value = jnp.where(call.first, variable.value, new)
        if self.quantized:
            factor, offset = norms.folded(mean, var, scale, bias)
            relu = call.spec.observes_after_relu
            largest: types.Array = self.get_variable("ranges", "range")
            layers.record_range(
                self,
                call,
                lambda: jnp.where(
                    call.first, largest, layers.largest_affine(x, factor, offset, relu)
                ),
            )


def _count(module: GroupNorm | BatchNorm, x: types.Array, relu: bool) -> None:
    """Counts what a norm computes and keeps, of one example."""
    size = x.size // x.shape[0]
    values = size * (1 + relu)
    layers.count(
        module,
        kept=size,
        values=values,
        after_values=values,
        before_values=0 if module.quantized else values,
    )
