"""Signals of a network that is written down as a graph of ONNX.

A `Wire` is the name of a tensor of the graph beside what this library computes in its
place, of the examples at hand: so whatever a layer's codes depend on is known where its
node is written. Images lie in ONNX as [B, C, H, W].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from fljax import types
from fljax.exporting import graph as graphs
from fljax.kernels import convs, quant, specs
from fljax.nn import joins, layers, signals


@dataclasses.dataclass(frozen=True, eq=False)
class Wire:
    """A signal and the name of its tensor.

    Attributes:
      graph: it is a tensor of.
      name: of the tensor.
      value: a `signals.Signal` of the examples: floats, codes or `Ranged`.
      other: the same in codes or floats, once somebody asked for it.
    """

    graph: graphs.Graph
    name: str
    value: signals.Signal
    other: list[Wire] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value, channels last."""
        return self.value.shape

    @property
    def coded(self) -> bool:
        """Whether it is a tensor of codes."""
        return isinstance(self.value, quant.QArray)

    def then(self, kind: str, *inputs: str, value: Any, **more: Any) -> Wire:
        """Writes a node that reads this wire, and then `inputs`."""
        return made(self.graph, kind, self.name, *inputs, value=value, **more)

    def grid(self) -> tuple[str, str]:
        """Writes scale and zero point of codes."""
        scale = self.graph.constant(self.value.scale)
        return scale, self.graph.constant(self.value.zero_point, jnp.int8)

    def floats(self) -> Wire:
        """Gives it in floats."""
        if not self.coded:
            return self
        if not self.other:
            value = signals.Ranged(self.value.dequantize(), None, _nonnegative(self))
            self.other.append(self.then("DequantizeLinear", *self.grid(), value=value))
        return self.other[0]

    def codes(self, spec: specs.Spec) -> Wire:
        """Gives it in codes, by the range of the examples."""
        if self.coded:
            return self
        if not self.other:
            self.other.append(self.quantized(signals.to_codes(self.value, spec, None)))
        return self.other[0]

    def quantized(self, value: quant.QArray) -> Wire:
        """Writes the quantization to given codes."""
        name = Wire(self.graph, "", value)
        return self.then("QuantizeLinear", *name.grid(), value=value)

    def reshape(self, batch: int, features: int) -> Wire:
        """Flattens, in the order of channels last.

        Raises:
          ValueError: any other shape is asked for.
        """
        if (batch, features) != (self.shape[0], -1):
            raise ValueError(f"no form in ONNX of a reshape to {(batch, features)}")
        value = layers.on_values(lambda x: x.reshape(batch, -1), self.value)
        name = self.name
        if len(self.shape) == 4:
            name = self.graph.node("Transpose", name, perm=(0, 2, 3, 1))
        return made(self.graph, "Flatten", name, value=value)


def made(graph: graphs.Graph, kind: str, *inputs: str, value: Any, **more: Any) -> Wire:
    """Writes a node; gives the wire of its output."""
    name = graph.node(kind, *inputs, **more)
    if isinstance(value, quant.QArray):
        graph.codes[name] = value.codes
    return Wire(graph, name, value)


def _nonnegative(wire: Wire) -> bool:
    lowest = specs.DEFAULT.zero_point_of(nonnegative=True)
    return wire.value.zero_point == lowest


@signals.to_float.register
def _to_float(x: Wire) -> Wire:
    return x.floats()


@layers.max_pool.register
def _max_pool(x: Wire, window: int = 2) -> Wire:
    value = layers.on_values(lambda v: convs.max_pool(v, window), x.value)
    sides = (window, window)
    return x.then("MaxPool", value=value, kernel_shape=sides, strides=sides)


@joins.mean_pool.register
def _mean_pool(x: Wire, window: int = 2) -> Wire:
    value, sides = joins.mean_pool(x.value, window), (window, window)
    averaged = {"kernel_shape": sides, "strides": sides}
    if not x.coded:
        return x.then("AveragePool", value=value, **averaged)
    grid = x.grid()
    kind = {"domain": graphs.MICROSOFT, **averaged}
    return x.then("QLinearAveragePool", *grid, *grid, value=value, **kind)


@joins.global_mean_pool.register
def _global_mean_pool(x: Wire) -> Wire:
    x = x.floats()
    value = joins.global_mean_pool(x.value)
    pooled = x.then("GlobalAveragePool", value=value)
    return pooled.then("Flatten", value=value)


def start(graph: graphs.Graph, x: types.Array, model: Any) -> Wire:
    """Writes what brings the input of the graph to what the network reads.

    Args:
      graph: without a node.
      x: [B, *input_shape], the examples.
      model: which says how they are normalized.

    Returns:
      The wire that enters the first block.
    """
    value = model.normalized(x)
    wire = Wire(graph, "input", value)
    if x.dtype == jnp.uint8:
        wire = wire.then("Cast", value=value, to=1)  # TensorProto.FLOAT
        wire = wire.then("Div", graph.constant(255.0), value=value)
    wire = wire.then("Sub", graph.constant(model.mean), value=value)
    wire = wire.then("Div", graph.constant(model.std), value=value)
    if value.ndim == 4:
        return wire.then("Transpose", value=value, perm=(0, 3, 1, 2))
    return wire
