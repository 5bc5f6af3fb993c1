"""The layers of every network, each written once for all three roles.

A block is a linen module whose `__call__(x, call)` runs layers of this file; `Call`
says in which role. Between the layers of a trained block flow float arrays, between
those of a frozen block before the window `quant.QArray`, after the window `Ranged`
(see `nn.signals`). Floats are of the dtype of the network's input, float32 or less;
parameters and all that is recorded are float32.

Variables of a layer, by collection::

  params    kernel, bias, scale: what clients train
  norms     mean, var: running statistics, used to fold norms into frozen weights
  ranges    range []: max|output| of the last training batch
  backward  range []: max|gradient|, which comes back as the "gradient" of this very
            variable (see `probe`)
  frozen    what the frozen roles read, and all they read: folded and quantized from
            the other collections by running a block once with `frozen` mutable

Ranges are taken over the whole batch: rows that only pad a batch must repeat a
valid row of it (`Call.mask` keeps them out of the norms' statistics).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.kernels import convs, narrow, norms, quant, specs
from fljax.nn import operations, signals
from fljax.runtime import backends


class Call(NamedTuple):
    """How a block is run.

    Attributes:
      role: what it does under the plan.
      spec: fixed point choices of the frozen roles.
      mask: [B] 1 for real rows of the batch, 0 for padding; None: all are real.
      running: normalize by running statistics instead of the batch's.
      observe: [] bool, whether ranges are recorded in this step; None: they are.
      first: the block is the first of the window, see `lone_norms.BatchNorm`; [] bool
        where the window is data.
      fresh: running statistics become the batch's whatever the momentum: calibration.
      key: for dropout and stochastic rounding, which `network.run` splits by block;
        None: neither.
      scale: static; what a trained product gives is multiplied by it, before its norm:
        1 / s in a network of width s is HeteroFL's scaler. Not of the last block,
        which gives logits.
      columns: [n] int32, the channels of the full network that a sliced block gives,
        for an embedding, whose positions have no parameters; None: the leading ones.
    """

    role: types.Role = types.Role.TRAINED
    spec: specs.Spec = specs.DEFAULT
    mask: types.Array | None = None
    running: bool = False
    observe: types.Array | None = None
    first: bool | types.Array = False
    fresh: bool = False
    key: types.Key | None = None
    scale: float = 1.0
    columns: types.Array | None = None


@jax.custom_vjp
def probe(x: types.Array, dummy: types.Array) -> types.Array:
    """Returns x; the gradient of `dummy` is max|gradient of x|."""
    del dummy
    return x


probe.defvjp(lambda x, dummy: (x, None), lambda _, g: (g, quant.amax(g)))


def record_range(module: nn.Module, call: Call, measure) -> None:
    """Stores what `measure` gives in the module's `ranges`, where they may change.

    Only a client's last step counts, so the pass over memory is left out of the others.
    """
    if not module.is_mutable_collection("ranges"):
        return
    if module.is_initializing():  # calibration measures; here it would be compiled
        module.put_variable("ranges", "range", jnp.zeros(()))
        return
    if call.observe is None:
        module.put_variable("ranges", "range", measure())
        return
    old: types.Array = module.get_variable("ranges", "range")
    if backends.accelerated():  # the host would wait for every condition
        new = jnp.where(call.observe, measure(), old)
    else:
        new = lax.cond(call.observe, measure, lambda: old)
    module.put_variable("ranges", "range", new)


def _extremes(x: types.Array, axes: tuple[int, ...]):
    """Computes the largest and the smallest x over axes."""
    if not backends.accelerated():
        return jnp.max(x, axis=axes), jnp.min(x, axis=axes)

    def widen(a, b):
        return jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1])

    infinity = jnp.asarray(jnp.inf, x.dtype)  # one pass: XLA does not merge the two
    return lax.reduce((x, x), (-infinity, infinity), widen, axes)


def largest_affine(x, factor, offset, relu: bool) -> types.Array:
    """Computes max|x * factor + offset| over x [B, ..., C], after a ReLU if asked.

    From the extremes of each channel of x: the affine values need not be written.
    """
    x, factor, offset = lax.stop_gradient((x, factor, offset))
    axes = tuple(range(x.ndim - 1))
    ends = [end * factor + offset for end in _extremes(x, axes)]
    high = jnp.max(jnp.maximum(*ends))
    return (
        jnp.maximum(high, 0.0)
        if relu
        else jnp.maximum(high, -jnp.min(jnp.minimum(*ends)))
    )


def rounding_key(module: nn.Module, call: Call) -> types.Key | None:
    """Draws a new key of the module where rounding is stochastic."""
    stochastic = call.spec.rounding == "stochastic"
    return module.make_rng("rounding") if stochastic else None


def expected_range(
    module: nn.Module, call: Call, relu: bool = False, normal: bool = False
) -> types.Array:
    """Gives the range that the module's output is quantized by: most often as observed.

    Args:
      module: with a range.
      call: with the choices.
      relu: a ReLU comes last.
      normal: a norm comes before it, with `scale` and `bias` of the module's.

    Returns:
      The range, [].
    """
    observed: types.Array = module.get_variable("ranges", "range")
    affine: tuple[types.Array, types.Array] | None = None
    if normal and call.spec.clips:
        scale: types.Array = module.get_variable("params", "scale")
        bias: types.Array = module.get_variable("params", "bias")
        affine = (scale, bias)
    return narrow.expected(observed, call.spec, relu, affine)


def frozen_range(
    module: nn.Module, call: Call, relu: bool = False, normal: bool = False
) -> types.Array:
    """Reads `expected_range` from what was frozen."""
    return module.variable(
        "frozen", "output", expected_range, module, call, relu, normal
    ).value


def count(module: nn.Module, **counted: int) -> None:
    """Stores in `counts`, where asked for, what a layer does: see `network.COUNTED`."""
    if module.is_mutable_collection("counts"):
        for name, value in counted.items():
            module.put_variable("counts", name, value)


def _count(module: Product, x: types.Array, y: types.Array, kernel) -> None:
    """Counts what a product computes and keeps, of one example."""
    inputs, outputs = x.size // x.shape[0], y.size // y.shape[0]
    macs = outputs // y.shape[-1] * kernel.size
    depthwise = module.operation.kind == "depthwise"
    floats = not module.quantized
    values = outputs * (module.norm + module.relu)
    # A frozen product holds the norm in its weights, in codes the ReLU as well.
    count(
        module,
        macs=0 if depthwise else macs,
        depthwise_macs=macs if depthwise else 0,
        float_macs=macs if floats and not depthwise else 0,
        kept=inputs + outputs,
        values=values,
        after_values=values if floats else outputs * module.relu,
        before_values=values if floats else 0,
        coded=0 if floats else inputs + outputs,
        unsent=0 if module.tracked or not module.norm else norms.sent(y.shape[-1]),
    )


def _kernel_uniform(fan_in: int):
    draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    # As a matrix: a draw of four axes takes four times as long to compile.
    return lambda key, shape: draw(key, (fan_in, shape[-1])).reshape(shape)


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
      bias: without a norm, a bias follows.
      relu: a ReLU follows.
      quantized: the frozen roles run in fixed point; else in float32, always with
        batch statistics (the paper keeps the first and last blocks so).
      tracked: clients send the running statistics of the norm, which count as upload.
        Quantized layers need them; the others keep them beside, so that any network
        can run an example alone.
      momentum: weight of the newest batch in the running statistics; 1 as in the
        reference's MobileNetV2.
    """

    features: int
    operation: operations.Operation
    kernel_size: int = 1
    norm: bool = True
    bias: bool = True
    relu: bool = False
    quantized: bool = True
    tracked: bool = True
    momentum: float = 1.0

    @nn.compact
    def __call__(self, x: signals.Signal, call: Call) -> signals.Signal:
        """Maps [B, ..., in] to [B, ..., out]; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            return self._trained(signals.to_float(x), call)
        if not self.quantized:
            y = self._frozen_float(signals.to_float(x), call)
            return signals.Ranged(y, None, self.relu)
        if not call.spec.codes:
            after = self._folded_float(signals.to_ranged(x), call)
        elif call.role is types.Role.FROZEN_BEFORE:
            return self._before(
                signals.to_codes(x, call.spec, rounding_key(self, call)), call
            )
        else:
            after = self._frozen_after(signals.to_ranged(x), call)
        value = jax.nn.relu(after.value) if self.relu else after.value
        return signals.Ranged(value, after.largest, self.relu)

    def _parameters(self, channels: int):
        """Declares the parameters: kernel, and scale and bias, or bias, or no more."""
        k = self.kernel_size
        kind = self.operation.kind
        if kind == "dense":
            shape: tuple[int, ...] = (channels, self.features)
            fan_in = channels
        elif kind == "depthwise":
            # The one input channel of each output is no axis of the kernel.
            shape, fan_in = (k, k, channels), k * k
        else:
            shape, fan_in = (k, k, channels, self.features), k * k * channels
        kernel = self.param("kernel", _kernel_uniform(fan_in), shape)
        outputs = (shape[-1],)
        if not (self.norm or self.bias):
            return kernel, None, None
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

    def _normalize(self, x, scale, bias, call: Call):
        """Applies the norm; records running statistics where they may change.

        Returns:
          The result, and the factor and offset [C] that lead to it.
        """
        mean, var = self._running(x.shape[-1])
        if call.running:
            factor, offset = norms.folded(mean.value, var.value, scale, bias)
            return (x * factor + offset).astype(x.dtype), factor, offset
        y, batch_mean, batch_var, count = norms.batch_norm(x, scale, bias, call.mask)
        changes = self.is_mutable_collection("norms") and not self.is_initializing()
        if changes:
            m = 1.0 if call.fresh else self.momentum
            newest = (batch_mean, norms.unbiased(batch_var, count))
            if not self.tracked:
                newest = norms.beside(x, call.mask)
            mean.value = (1 - m) * mean.value + m * newest[0]
            var.value = (1 - m) * var.value + m * newest[1]
        return y, *norms.folded(batch_mean, batch_var, scale, bias)

    def _trained(self, x: types.Array, call: Call) -> types.Array:
        kernel, scale, bias = self._parameters(x.shape[-1])
        probed = self._probing(call.spec)
        x = probed(x, "input")
        product = self.operation.floats(x, kernel)
        if call.scale != 1.0:
            product = product * call.scale
            bias = bias if self.norm or bias is None else bias * call.scale
        _count(self, x, product, kernel)
        y = probed(product, "product")
        if self.norm:
            y, factor, offset = self._normalize(y, scale, bias, call)
        else:
            factor, offset = jnp.float32(1), jnp.float32(0) if bias is None else bias
            y = y if bias is None else (y + bias).astype(y.dtype)
        if self.quantized:
            relu = self.relu and call.spec.observes_after_relu
            record_range(
                self, call, lambda: largest_affine(product, factor, offset, relu)
            )
        return jax.nn.relu(y) if self.relu else y

    def _probing(self, spec: specs.Spec):
        """Declares the gradient's range; returns what probes it where spec says."""
        if self.quantized and self.is_initializing():
            self.variable("backward", "range", jnp.zeros, ())
        if not self.quantized or not self.has_variable("backward", "range"):
            return lambda x, place: x
        dummy: types.Array = self.get_variable("backward", "range")
        # The slip of "product" is one of norms: the reference observes the gradient at
        # the input of what it wraps, which without a norm is the product itself.
        slips = spec.gradient_place == "product" and not self.norm
        observed = "input" if slips else spec.gradient_place
        return lambda x, place: probe(x, dummy) if place == observed else x

    def _frozen_float(self, x: types.Array, call: Call) -> types.Array:
        frozen = self.variable(
            "frozen", "parameters", lambda: self._parameters(x.shape[-1])
        ).value
        kernel, scale, bias = frozen
        y = self.operation.floats(x, kernel)
        if self.norm:
            y = norms.batch_norm(y, scale, bias, call.mask)[0]
        elif bias is not None:
            y = (y + bias).astype(y.dtype)
        return jax.nn.relu(y) if self.relu else y

    def _folded(self, channels: int, call: Call):
        """Folds the norm into kernel and bias (Jacob et al., CVPR 2018, 3.2)."""
        kernel, scale, bias = self._parameters(channels)
        if not self.norm:
            return kernel, bias
        mean, var = self._running(kernel.shape[-1])
        factor, offset = norms.folded(
            mean.value, var.value, scale, bias, call.spec.stepwise
        )
        return kernel * factor, offset

    def _freeze(self, channels: int, call: Call) -> operations.Frozen:
        kernel, bias = self._folded(channels, call)
        weights = quant.quantize_weights(kernel, call.spec, rounding_key(self, call))
        if self.operation.kind != "depthwise":  # which multiplies by hand, in int32
            weights = quant.for_products(weights, call.spec)
        output = expected_range(self, call, self.relu, self.norm)
        return operations.Frozen(
            weights, bias, output, self.get_variable("backward", "range")
        )

    def _before(self, x: quant.QArray, call: Call) -> quant.QArray:
        frozen = self.variable("frozen", "layer", self._freeze, x.shape[-1], call).value
        sums = self.operation.codes(x, frozen.weights, frozen.bias)
        return quant.requantize(
            sums,
            quant.scale_of(call.spec, frozen.output, self.relu),
            call.spec,
            self.relu,
            rounding_key(self, call),
        )

    def _frozen_after(self, x: signals.Ranged, call: Call) -> signals.Ranged:
        if self.operation.kind == "depthwise":
            return self._folded_float(x, call)
        frozen = self.variable("frozen", "layer", self._freeze, x.shape[-1], call).value
        y = operations.after(
            self.operation, call.spec, self.relu, x, frozen, rounding_key(self, call)
        )
        return signals.Ranged(y, frozen.output)

    def _folded_float(self, x: signals.Ranged, call: Call) -> signals.Ranged:
        kernel, bias = self.variable(
            "frozen", "folded", self._folded, x.shape[-1], call
        ).value
        y = self.operation.floats(x.value, kernel)
        y = y if bias is None else (y + bias).astype(y.dtype)
        return signals.Ranged(y, frozen_range(self, call, self.relu, self.norm))


def conv(features: int, kernel_size: int, stride: int = 1, **fields) -> Product:
    """Makes a convolution with its norm and ReLU; fields as of `Product`."""
    same = fields.pop("same", True)
    operation = operations.Operation("conv", stride, same)
    return Product(features, operation, kernel_size, **fields)


def depthwise(kernel_size: int, stride: int = 1, **fields) -> Product:
    """Makes a depthwise convolution with its norm and ReLU."""
    return Product(0, operations.Operation("depthwise", stride), kernel_size, **fields)


def dense(features: int, **fields) -> Product:
    """Makes a dense layer; without a norm unless `norm=True` is given."""
    return Product(
        features,
        operations.Operation("dense"),
        norm=fields.pop("norm", False),
        **fields,
    )


def on_values(function, x: signals.Signal) -> signals.Signal:
    """Applies what only moves or selects values to whatever flows between layers."""
    if isinstance(x, quant.QArray):
        return dataclasses.replace(x, codes=function(x.codes))
    return (
        dataclasses.replace(x, value=function(x.value))
        if isinstance(x, signals.Ranged)
        else function(x)
    )


@functools.singledispatch
def max_pool(x: signals.Signal, window: int = 2) -> signals.Signal:
    """Takes the largest value of every window x window tile; scales stay."""
    return on_values(lambda values: convs.max_pool(values, window), x)


def flatten(x: signals.Signal) -> signals.Signal:
    """Maps [B, ...] to [B, features]."""
    return on_values(lambda values: values.reshape(values.shape[0], -1), x)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014), where a key for it is given.

    Training gives one, evaluation does not. Before the window nothing is dropped: the
    prefix is a fixed function (as in the reference).

    Attributes:
      rate: share of the values that are dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x: signals.Signal, call: Call) -> signals.Signal:
        """Maps [B, ...] to the same shape; kept values grow by 1 / (1 - rate)."""
        before = call.role is types.Role.FROZEN_BEFORE
        if before or not self.has_rng("dropout"):
            return x

        def drop(values):
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1 - self.rate, values.shape
            )
            return jnp.where(kept, values / (1 - self.rate), 0.0)

        y = on_values(drop, x)
        if isinstance(y, signals.Ranged) and y.largest is not None:
            return dataclasses.replace(y, largest=y.largest / (1 - self.rate))
        return y


class Add(nn.Module):
    """The sum of two branches.

    Its range is observed where those of products are: before the ReLU or after it.

    Attributes:
      relu: a ReLU follows.
    """

    relu: bool = False

    @nn.compact
    def __call__(
        self, a: signals.Signal, b: signals.Signal, call: Call
    ) -> signals.Signal:
        """Adds a and b, both [B, ..., C]; float, QArray or Ranged by role."""
        if call.role is types.Role.TRAINED:
            return self._trained(signals.to_float(a) + signals.to_float(b), call)
        observed = frozen_range(self, call, self.relu)
        if call.role is types.Role.FROZEN_BEFORE and call.spec.codes:
            a, b = (
                signals.to_codes(x, call.spec, rounding_key(self, call)) for x in (a, b)
            )
            scale = quant.scale_of(call.spec, observed, self.relu)
            key = rounding_key(self, call)
            return quant.add(a, b, scale, call.spec, self.relu, key)
        # Several read it: see `programs.compiler_options`.
        y = lax.optimization_barrier(signals.to_float(a) + signals.to_float(b))
        return signals.Ranged(jax.nn.relu(y) if self.relu else y, observed, self.relu)

    def _trained(self, y: types.Array, call: Call) -> types.Array:
        values = y.size // y.shape[0] * (1 + self.relu)
        count(self, values=values, after_values=values)
        activated = jax.nn.relu(y) if self.relu else y
        seen = lax.stop_gradient(activated if call.spec.observes_after_relu else y)
        record_range(self, call, lambda: quant.amax(seen))
        return activated
