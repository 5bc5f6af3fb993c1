"""The layers of every network, each written once for all three roles.

A block is a linen module whose `__call__(x, call)` runs layers of this file; `Call`
says in which role. Between the layers of a trained block flow float arrays, between
those of a frozen block before the window `quant.QArray`, after the window `Ranged`
(a float array that knows the range it was observed to have).

Variables of a layer, by collection:
  params    kernel, bias, scale: what clients train
  norms     mean, var: running statistics, used to fold norms into frozen weights
  ranges    range []: max|output| of the last training batch
  backward  range []: max|gradient|, which comes back as the "gradient" of this very
            variable (see `_probe`)
  frozen    what the frozen roles read, and all they read: folded and quantised from
            the other collections by running a block once with `frozen` mutable

Ranges are taken over the whole batch: rows that only pad a batch must repeat a
valid row of it (`Call.mask` keeps them out of the norms' statistics).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from fljax import convs, norms, quant, types


class Call(NamedTuple):
    """How a block is run.

    Attributes:
      role: what it does under the plan.
      spec: fixed point choices of the frozen roles.
      mask: [B] 1 for real rows of the batch, 0 for padding; None: all are real.
      running: normalise by running statistics instead of the batch's.
      observe: [] bool, whether ranges are recorded in this step; None: they are.
    """

    role: types.Role = types.Role.TRAINED
    spec: quant.Spec = quant.DEFAULT
    mask: types.Array | None = None
    running: bool = False
    observe: types.Array | None = None


@struct.dataclass
class Ranged:
    """A float array between frozen layers, with what is known of its range.

    Attributes:
      value: float32.
      largest: observed max|value|, [], or None if nobody observed it.
      nonnegative: static; it comes out of a ReLU.
    """

    value: types.Array
    largest: types.Array | None
    nonnegative: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.value.shape


Signal = Any  # Array | Ranged | quant.QArray


def to_float(x: Signal) -> types.Array:
    """Returns the float values of whatever flows between layers."""
    if isinstance(x, quant.QArray):
        return x.dequantise()
    return x.value if isinstance(x, Ranged) else x


def _to_ranged(x: Signal) -> Ranged:
    if isinstance(x, Ranged):
        return x
    return Ranged(to_float(x), None)


def _scale(x: Ranged, spec: quant.Spec, carried: bool) -> types.Array:
    """Gives the scale of x: what it was observed to need, or what this batch needs."""
    largest = x.largest if carried else None
    if largest is None:
        largest = quant.amax(x.value)
    return quant.scale_of(spec, largest, x.nonnegative)


def to_codes(x: Signal, spec: quant.Spec, key: types.Key | None) -> quant.QArray:
    """Quantises what is not quantised yet, by the range of this batch."""
    if isinstance(x, quant.QArray):
        return x
    x = _to_ranged(x)
    scale = _scale(x, spec, carried=False)
    return quant.quantise(x.value, scale, spec, x.nonnegative, key)


@jax.custom_vjp
def _probe(x: types.Array, dummy: types.Array) -> types.Array:
    """Returns x; the gradient of `dummy` is max|gradient of x|."""
    del dummy
    return x


_probe.defvjp(lambda x, dummy: (x, None), lambda _, g: (g, quant.amax(g)))


def _record_range(module: nn.Module, call: Call, measure) -> None:
    """Stores what `measure` gives in the module's `ranges`, where they may change.

    Only a client's last step counts, so the pass over memory is left out of the others.
    """
    if not module.is_mutable_collection("ranges"):
        return
    if call.observe is None or module.is_initializing():
        module.put_variable("ranges", "range", measure())
        return
    old: types.Array = module.get_variable("ranges", "range")
    module.put_variable("ranges", "range", lax.cond(call.observe, measure, lambda: old))


def _largest_affine(x, factor, offset, relu: bool) -> types.Array:
    """Computes max|x * factor + offset| over x [B, ..., C], after a ReLU if asked.

    From the extremes of each channel of x: the affine values need not be written.
    """
    x, factor, offset = lax.stop_gradient((x, factor, offset))
    axes = tuple(range(x.ndim - 1))
    ends = [end(x, axis=axes) * factor + offset for end in (jnp.max, jnp.min)]
    high = jnp.max(jnp.maximum(*ends))
    return (
        jnp.maximum(high, 0.0)
        if relu
        else jnp.maximum(high, -jnp.min(jnp.minimum(*ends)))
    )


def _rounding_key(module: nn.Module, call: Call) -> types.Key | None:
    """Draws a new key of the module where rounding is stochastic."""
    stochastic = call.spec.rounding == "stochastic"
    return module.make_rng("rounding") if stochastic else None


def _frozen_range(module: nn.Module) -> types.Array:
    """Reads the module's observed range from what was frozen."""

    def read() -> types.Array:
        return module.get_variable("ranges", "range")

    return module.variable("frozen", "output", read).value


def _count(module, operation, x, y, kernel) -> None:
    """Stores in `counts`, where asked for, what the product computes and keeps."""
    if module.is_mutable_collection("counts"):
        positions = y.size // (y.shape[0] * y.shape[-1])
        macs = positions * kernel.size
        depthwise = operation.kind == "depthwise"
        module.put_variable("counts", "depthwise_macs", macs if depthwise else 0)
        module.put_variable("counts", "macs", 0 if depthwise else macs)
        module.put_variable("counts", "kept", (x.size + y.size) // x.shape[0])


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

    def floats(self, x: types.Array, kernel: types.Array) -> types.Array:
        """Multiplies floats."""
        if self.kind == "dense":
            return convs.dot(x, kernel)
        form = convs.depthwise if self.kind == "depthwise" else convs.conv
        return form(x, kernel, self.stride, self.same)

    def codes(self, x: quant.QArray, w: quant.QArray, bias=None) -> quant.Accumulator:
        """Multiplies codes."""
        if self.kind == "dense":
            return quant.dot(x, w, bias)
        form = quant.depthwise if self.kind == "depthwise" else quant.conv
        return form(x, w, bias, self.stride, self.same)

    def input_gradient(self, g: types.Array, kernel, size) -> types.Array:
        """Multiplies floats, or codes with zero point 0, by the transpose."""
        if self.kind == "dense":
            return convs.dot_transposed(g, kernel)
        form = (
            convs.depthwise_input_gradient
            if self.kind == "depthwise"
            else convs.conv_input_gradient
        )
        return form(g, kernel, size, self.stride, self.same)


class _Frozen(NamedTuple):
    """What a frozen quantised layer reads: arrays of the `frozen` collection."""

    weights: quant.QArray
    bias: types.Array
    output: types.Array  # observed max|output|
    gradient: types.Array  # observed max|gradient|


def _split(key: types.Key | None):
    return (None, None) if key is None else jax.random.split(key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _after(operation, spec, relu, x, frozen, key):
    """Runs a frozen layer after the window: float32 in and out, codes inside."""
    input_key, output_key = _split(key)
    scale = _scale(x, spec, spec.input_range == "carried")
    codes = quant.quantise(x.value, scale, spec, x.nonnegative, input_key)
    weights = frozen.weights
    if not spec.requantise_after:
        sums, unit = operation.codes(codes, weights)
        return sums.astype(jnp.float32) * unit + frozen.bias
    sums = operation.codes(codes, weights, frozen.bias)
    out_scale = quant.scale_of(spec, frozen.output, relu)
    return quant.requantise(sums, out_scale, spec, relu, output_key).dequantise()


def _after_forward(operation, spec, relu, x, frozen, key):
    forward_key, backward_key = _split(key)
    y = _after(operation, spec, relu, x, frozen, forward_key)
    return y, (x, frozen, backward_key)


def _after_backward(operation, spec, relu, residuals, g):
    del relu
    x, frozen, key = residuals
    input_key, output_key = _split(key)
    weights = frozen.weights
    # The sum runs over output channels, so their scales go into the cotangent.
    g = g * weights.scale if weights.scale.ndim else g
    factor = 1.0 if weights.scale.ndim else weights.scale
    if spec.gradient_range == "observed":
        largest = frozen.gradient * jnp.max(weights.scale) / factor
    else:
        largest = quant.amax(g)
    centred = quant.Spec(bits=spec.bits, reduced_range=spec.reduced_range)
    codes = quant.quantise(g, quant.scale_of(centred, largest), centred, key=input_key)
    size = x.shape[1:3]
    sums = operation.input_gradient(codes.codes, weights.codes, size)
    result = quant.Accumulator(sums, codes.scale * factor)
    if spec.requantise_after:
        out_scale = quant.scale_of(spec, frozen.gradient)
        dx = quant.requantise(result, out_scale, spec, key=output_key).dequantise()
    else:
        dx = result.sums.astype(jnp.float32) * result.unit
    largest = None if x.largest is None else jnp.zeros_like(x.largest)
    return Ranged(dx, largest, x.nonnegative), None, None


_after.defvjp(_after_forward, _after_backward)


def _bias_uniform(fan_in: int):
    bound = fan_in**-0.5
    return lambda key, shape: jax.random.uniform(
        key, shape, minval=-bound, maxval=bound
    )


class Product(nn.Module):
    """A product with a kernel, then norm or bias, then ReLU: the unit of folding.

    Attributes:
      features: output channels; ignored by depthwise products.
      operation: dense, conv or depthwise.
      kernel_size: of convolutions.
      norm: a batch norm follows; else a bias.
      relu: a ReLU follows.
      quantised: the frozen roles run in fixed point; else in float32, always with
        batch statistics (the paper keeps the first and last blocks so).
      tracked: running statistics of the norm are kept. Quantised layers need them.
      momentum: weight of the newest batch in the running statistics; 1 as in the
        reference's MobileNetV2.
    """

    features: int
    operation: Operation
    kernel_size: int = 1
    norm: bool = True
    relu: bool = False
    quantised: bool = True
    tracked: bool = True
    momentum: float = 1.0

    @nn.compact
    def __call__(self, x: Signal, call: Call) -> Signal:
        """Maps [B, ..., in] to [B, ..., out]; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            return self._trained(to_float(x), call)
        if not self.quantised:
            y = self._frozen_float(to_float(x), call)
            return Ranged(y, None, self.relu)
        if call.role is types.Role.FROZEN_BEFORE:
            return self._before(to_codes(x, call.spec, _rounding_key(self, call)), call)
        after = self._frozen_after(_to_ranged(x), call)
        value = jax.nn.relu(after.value) if self.relu else after.value
        return Ranged(value, after.largest, self.relu)

    def _parameters(self, channels: int):
        """Declares the parameters: kernel, and scale and bias, or bias alone."""
        k = self.kernel_size
        kind = self.operation.kind
        axes: dict[str, Any] = {}
        if kind == "dense":
            shape: tuple[int, ...] = (channels, self.features)
            fan_in = channels
        elif kind == "depthwise":
            # The one input channel of each output is no axis of the kernel.
            shape, fan_in = (k, k, channels), k * k
            axes = {"in_axis": (0, 1), "out_axis": 2}
        else:
            shape, fan_in = (k, k, channels, self.features), k * k * channels
        initial = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", **axes)
        kernel = self.param("kernel", initial, shape)
        outputs = (shape[-1],)
        if not self.norm:
            return kernel, None, self.param("bias", _bias_uniform(fan_in), outputs)
        return (
            kernel,
            self.param("scale", nn.initializers.ones, outputs),
            self.param("bias", nn.initializers.zeros, outputs),
        )

    def _running(self, outputs: int):
        mean = self.variable("norms", "mean", jnp.zeros, (outputs,))
        var = self.variable("norms", "var", jnp.ones, (outputs,))
        return mean, var

    def _normalise(self, x, scale, bias, call: Call):
        """Applies the norm; records running statistics where they may change.

        Returns:
          The result, and the factor and offset [C] that lead to it.
        """
        if self.tracked:
            mean, var = self._running(x.shape[-1])
            if call.running:
                factor = lax.rsqrt(var.value + norms.EPSILON) * scale
                offset = bias - mean.value * factor
                return x * factor + offset, factor, offset
        y, batch_mean, batch_var, count = norms.batch_norm(x, scale, bias, call.mask)
        changes = self.is_mutable_collection("norms") and not self.is_initializing()
        if self.tracked and changes:
            m = self.momentum
            unbiased = batch_var * count / jnp.maximum(count - 1, 1)
            mean.value = (1 - m) * mean.value + m * batch_mean
            var.value = (1 - m) * var.value + m * unbiased
        factor = lax.rsqrt(batch_var + norms.EPSILON) * scale
        return y, factor, bias - batch_mean * factor

    def _trained(self, x: types.Array, call: Call) -> types.Array:
        kernel, scale, bias = self._parameters(x.shape[-1])
        probe = self._probing(call.spec)
        x = probe(x, "input")
        product = self.operation.floats(x, kernel)
        _count(self, self.operation, x, product, kernel)
        y = probe(product, "product")
        if self.norm:
            y, factor, offset = self._normalise(y, scale, bias, call)
        else:
            y, factor, offset = y + bias, jnp.float32(1), bias
        if self.quantised:
            relu = self.relu and call.spec.observes_after_relu
            _record_range(
                self, call, lambda: _largest_affine(product, factor, offset, relu)
            )
        y = probe(y, "output")
        return jax.nn.relu(y) if self.relu else y

    def _probing(self, spec: quant.Spec):
        """Declares the gradient's range; returns what probes it where spec says."""
        if self.quantised and self.is_initializing():
            self.variable("backward", "range", jnp.zeros, ())
        if not self.quantised or not self.has_variable("backward", "range"):
            return lambda x, place: x
        dummy: types.Array = self.get_variable("backward", "range")
        return lambda x, place: _probe(x, dummy) if place == spec.gradient_place else x

    def _frozen_float(self, x: types.Array, call: Call) -> types.Array:
        frozen = self.variable(
            "frozen", "parameters", lambda: self._parameters(x.shape[-1])
        ).value
        kernel, scale, bias = frozen
        y = self.operation.floats(x, kernel)
        y = norms.batch_norm(y, scale, bias, call.mask)[0] if self.norm else y + bias
        return jax.nn.relu(y) if self.relu else y

    def _folded(self, channels: int):
        """Folds the norm into the kernel and a bias (fact 1.4 of the reference)."""
        kernel, scale, bias = self._parameters(channels)
        if not self.norm:
            return kernel, bias
        mean, var = self._running(kernel.shape[-1])
        factor = scale * lax.rsqrt(var.value + norms.EPSILON)
        return kernel * factor, bias - mean.value * factor

    def _freeze(self, channels: int, call: Call) -> _Frozen:
        kernel, bias = self._folded(channels)
        weights = quant.quantise_weights(kernel, call.spec, _rounding_key(self, call))
        observed: types.Array = self.get_variable("ranges", "range")
        return _Frozen(weights, bias, observed, self.get_variable("backward", "range"))

    def _before(self, x: quant.QArray, call: Call) -> quant.QArray:
        frozen = self.variable("frozen", "layer", self._freeze, x.shape[-1], call).value
        sums = self.operation.codes(x, frozen.weights, frozen.bias)
        return quant.requantise(
            sums,
            quant.scale_of(call.spec, frozen.output, self.relu),
            call.spec,
            self.relu,
            _rounding_key(self, call),
        )

    def _frozen_after(self, x: Ranged, call: Call) -> Ranged:
        if self.operation.kind == "depthwise" and not call.spec.depthwise_after:
            return self._folded_float(x, call)
        frozen = self.variable("frozen", "layer", self._freeze, x.shape[-1], call).value
        y = _after(
            self.operation, call.spec, self.relu, x, frozen, _rounding_key(self, call)
        )
        return Ranged(y, frozen.output)

    def _folded_float(self, x: Ranged, call: Call) -> Ranged:
        kernel, bias = self.variable(
            "frozen", "folded", self._folded, x.shape[-1]
        ).value
        output = _frozen_range(self)
        return Ranged(self.operation.floats(x.value, kernel) + bias, output)


def conv(features: int, kernel_size: int, stride: int = 1, **fields) -> Product:
    """Makes a convolution with its norm and ReLU; fields as of `Product`."""
    same = fields.pop("same", True)
    operation = Operation("conv", stride, same)
    return Product(features, operation, kernel_size, **fields)


def depthwise(kernel_size: int, stride: int = 1, **fields) -> Product:
    """Makes a depthwise convolution with its norm and ReLU."""
    return Product(0, Operation("depthwise", stride), kernel_size, **fields)


def dense(features: int, **fields) -> Product:
    """Makes a dense layer; without a norm unless `norm=True` is given."""
    return Product(
        features, Operation("dense"), norm=fields.pop("norm", False), **fields
    )


def _on_values(function, x: Signal) -> Signal:
    """Applies what only moves or selects values to whatever flows between layers."""
    if isinstance(x, quant.QArray):
        return dataclasses.replace(x, codes=function(x.codes))
    return (
        dataclasses.replace(x, value=function(x.value))
        if isinstance(x, Ranged)
        else function(x)
    )


def max_pool(x: Signal, window: int = 2) -> Signal:
    """Takes the largest value of every window x window tile; scales stay."""
    return _on_values(lambda values: convs.max_pool(values, window), x)


def flatten(x: Signal) -> Signal:
    """Maps [B, ...] to [B, features]."""
    return _on_values(lambda values: values.reshape(values.shape[0], -1), x)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014), where a key for it is given.

    Training gives one, evaluation does not. Before the window nothing is dropped: the
    prefix is a fixed function (as in the reference).

    Attributes:
      rate: share of the values that are dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Signal, call: Call) -> Signal:
        """Maps [B, ...] to the same shape; kept values grow by 1 / (1 - rate)."""
        before = call.role is types.Role.FROZEN_BEFORE
        if before or not self.has_rng("dropout"):
            return x

        def drop(values):
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1 - self.rate, values.shape
            )
            return jnp.where(kept, values / (1 - self.rate), 0.0)

        y = _on_values(drop, x)
        if isinstance(y, Ranged) and y.largest is not None:
            return dataclasses.replace(y, largest=y.largest / (1 - self.rate))
        return y


class Add(nn.Module):
    """The sum of two branches.

    Attributes:
      relu: a ReLU follows.
    """

    relu: bool = False

    @nn.compact
    def __call__(self, a: Signal, b: Signal, call: Call) -> Signal:
        """Adds a and b, both [B, ..., C]; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            return self._trained(to_float(a) + to_float(b), call)
        observed = _frozen_range(self)
        if call.role is types.Role.FROZEN_BEFORE:
            a, b = (to_codes(x, call.spec, _rounding_key(self, call)) for x in (a, b))
            scale = quant.scale_of(call.spec, observed, self.relu)
            key = _rounding_key(self, call)
            return quant.add(a, b, scale, call.spec, self.relu, key)
        y = to_float(a) + to_float(b)
        return Ranged(jax.nn.relu(y) if self.relu else y, observed, self.relu)

    def _trained(self, y: types.Array, call: Call) -> types.Array:
        _record_range(self, call, lambda: quant.amax(lax.stop_gradient(y)))
        return jax.nn.relu(y) if self.relu else y
