"""Layers as nodes of ONNX, in floats or in codes; an interceptor puts them there.

Codes, scales and biases are those of a frozen block before the window
(`nn.layers`), so int8 operators give what a frozen block gives: sums in int32, brought
to the next scale (Jacob et al., CVPR 2018).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fljax import types
from fljax.exporting import graph as graphs
from fljax.exporting import products, wires
from fljax.kernels import norms, quant, specs
from fljax.nn import flax_block, joins, layers, lone_norms, operations, signals

_MOST = 2.0**30  # of a bias in int32: the sums of a product have room beside it


def written(next_fun: Any, given: tuple, named: dict, context: Any) -> Any:
    """Intercepts layers (`linen.intercept_methods`) and writes their nodes.

    Blocks, which call layers, run as they are.

    Raises:
      ValueError: a layer has no form in ONNX.
    """
    module = context.module
    if context.method_name != "__call__":
        return next_fun(*given, **named)
    if isinstance(module, lone_norms.LayerNorm | flax_block.FlaxBlock):
        raise ValueError(f"no form in ONNX of a {type(module).__name__}")
    for kind, write in _WRITERS.items():
        if isinstance(module, kind):
            *inputs, call = given
            return write(module, next_fun, inputs, call)
    return next_fun(*given, **named)


def _in_codes(module: Any, call: layers.Call) -> bool:
    frozen = call.role is types.Role.FROZEN_BEFORE and call.spec.codes
    return frozen and getattr(module, "quantized", True)


def _onnx_kernel(operation: operations.Operation, kernel: types.Array) -> types.Array:
    """Lays a kernel out as ONNX has it: [out, in, k_h, k_w], or [in, out]."""
    if operation.kind == "dense":
        return kernel
    if operation.kind == "depthwise":
        kernel = kernel[:, :, None]
    return jnp.transpose(kernel, (3, 2, 0, 1))


def _attributes(operation: operations.Operation, kernel: types.Array) -> dict:
    """Gives the attributes of a convolution; of a dense product there are none."""
    if operation.kind == "dense":
        return {}
    sides = kernel.shape[:2]
    pads = [side // 2 if operation.same else 0 for side in sides]
    return {
        "kernel_shape": sides,
        "strides": (operation.stride,) * 2,
        "pads": (*pads, *pads),
        "group": kernel.shape[-1] if operation.kind == "depthwise" else 1,
    }


def _product(module: layers.Product, run: Any, inputs: list, call) -> wires.Wire:
    (x,) = inputs
    if module.operation.kind == "dense" and len(x.shape) != 2:
        raise ValueError("no form in ONNX of a dense layer at several positions")
    if _in_codes(module, call):
        return _coded_product(module, run, x.codes(call.spec), call)
    x, operation = x.floats(), module.operation
    kernel, bias = products.folded(module)
    # What stays in floats behind codes has codes of weights at least: a file is a
    # quarter then, and nothing that is computed in codes changes.
    coded = call.role is types.Role.FROZEN_BEFORE and bool(x.graph.codes)
    if coded:
        weights = quant.quantize_weights(kernel, specs.DEFAULT)
        name = _dequantized(x.graph, operation, weights)
        kernel = weights.dequantize()
    else:
        name = x.graph.constant(_onnx_kernel(operation, kernel))
    y = products.floats(operation, signals.to_float(x.value), kernel)
    names = [name]
    if bias is not None:
        y = y + bias
        names.append(x.graph.constant(bias))
    kind = "Gemm" if operation.kind == "dense" else "Conv"
    wire = x.then(kind, *names, value=y, **_attributes(operation, kernel))
    return _relu(wire) if module.relu else wire


def _dequantized(graph: graphs.Graph, operation, weights: quant.QArray) -> str:
    """Writes weights in codes, and the node that makes floats of them."""
    codes = graph.constant(_onnx_kernel(operation, weights.codes), jnp.int8)
    scale = graph.constant(weights.scale)
    axis = 1 if operation.kind == "dense" else 0
    return graph.node("DequantizeLinear", codes, scale, axis=axis)


def _relu(wire: wires.Wire) -> wires.Wire:
    y = jax.nn.relu(signals.to_float(wire.value))
    return wire.then("Relu", value=signals.Ranged(y, None, True))


def _coded_product(module: layers.Product, run, x: wires.Wire, call) -> wires.Wire:
    frozen: operations.Frozen = module.get_variable("frozen", "layer")
    value = run(x.value, call)
    operation, graph = module.operation, x.graph
    weights, sums = _with_bias(x.value, frozen.weights, frozen.bias)
    dense = operation.kind == "dense"
    codes = graph.constant(_onnx_kernel(operation, weights.codes), jnp.int8)
    zeros = jnp.zeros(weights.scale.shape)
    of_weights = codes, graph.constant(weights.scale), graph.constant(zeros, jnp.int8)
    of_output = wires.Wire(graph, "", value).grid()
    bias = [] if sums is None else [graph.constant(sums, jnp.int32)]
    names: tuple[str, ...] = (*x.grid(), *of_weights)
    if dense:  # whose bias stands before the scale of the output
        names, kind = (*names, *(bias or [""]), *of_output), "QGemm"
        return x.then(kind, *names, value=value, domain=graphs.MICROSOFT)
    attributes = _attributes(operation, frozen.weights.codes)
    names = (*names, *of_output, *bias)
    return x.then("QLinearConv", *names, value=value, **attributes)


def _with_bias(
    x: quant.QArray, weights: quant.QArray, bias: types.Array | None
) -> tuple[quant.QArray, types.Array | None]:
    """Rounds a bias to int32 in units of the sums.

    Weights of a channel that are next to nothing beside its bias have a coarser scale,
    in which they are 0: else the bias would not fit.
    """
    if bias is None:
        return weights, None
    least = jnp.abs(bias) / (x.scale * _MOST)
    scale = jnp.maximum(weights.scale, least)
    codes = jnp.round(weights.codes * (weights.scale / scale))
    return quant.QArray(codes, scale), jnp.round(bias / (x.scale * scale))


def _add(module: layers.Add, run: Any, inputs: list, call) -> wires.Wire:
    if _in_codes(module, call):
        a, b = (x.codes(call.spec) for x in inputs)
        value = run(a.value, b.value, call)
        return _joined("QLinearAdd", a, b, value)
    a, b = (x.floats() for x in inputs)
    y = signals.to_float(a.value) + signals.to_float(b.value)
    wire = a.then("Add", b.name, value=y)
    return _relu(wire) if module.relu else wire


def _joined(kind: str, a: wires.Wire, b: wires.Wire, value) -> wires.Wire:
    of_output = wires.Wire(a.graph, "", value).grid()
    names = (*a.grid(), b.name, *b.grid(), *of_output)
    return a.then(kind, *names, value=value, domain=graphs.MICROSOFT)


def _concat(module: joins.Concat, run: Any, inputs: list, call) -> wires.Wire:
    if _in_codes(module, call):
        a, b = (x.codes(call.spec) for x in inputs)
        value, graph = run(a.value, b.value, call), a.graph
        of_output = wires.Wire(graph, "", value).grid()
        names = (*of_output, a.name, *a.grid(), b.name, *b.grid())
        more = {"domain": graphs.MICROSOFT, "axis": 1}
        return wires.made(graph, "QLinearConcat", *names, value=value, **more)
    a, b = (x.floats() for x in inputs)
    y = jnp.concatenate([signals.to_float(x.value) for x in (a, b)], axis=-1)
    return a.then("Concat", b.name, value=y, axis=1)


def _group_norm(module: lone_norms.GroupNorm, run: Any, inputs: list, call):
    params, (x,) = module.variables["params"], inputs
    coded = _in_codes(module, call)
    x = x.codes(call.spec) if coded else x
    floats, graph = x.floats(), x.graph
    given = signals.to_float(floats.value)
    y = module.normalize(given, params["scale"], params["bias"])
    names = (graph.constant(params[name]) for name in ("scale", "bias"))
    kind = "InstanceNormalization"
    wire = floats.then(kind, *names, value=y, epsilon=norms.EPSILON)
    wire = _relu(wire) if module.relu else wire
    return wire.quantized(run(x.value, call)) if coded else wire


def _batch_norm(module: lone_norms.BatchNorm, run: Any, inputs: list, call):
    params, running = module.variables["params"], module.variables["norms"]
    (x,), coded = inputs, _in_codes(module, call)
    x = x.codes(call.spec) if coded else x
    floats, graph = x.floats(), x.graph
    factor, offset = norms.folded(
        running["mean"], running["var"], params["scale"], params["bias"]
    )
    y = signals.to_float(floats.value) * factor + offset
    # Of images, whose channels are the second axis there.
    shape = (-1, 1, 1) if len(x.shape) == 4 else (-1,)
    wire = floats.then("Mul", graph.constant(factor.reshape(shape)), value=y)
    wire = wire.then("Add", graph.constant(offset.reshape(shape)), value=y)
    wire = _relu(wire)
    return wire.quantized(run(x.value, call)) if coded else wire


_WRITERS: dict[type, Any] = {
    layers.Product: _product,
    layers.Add: _add,
    joins.Concat: _concat,
    lone_norms.GroupNorm: _group_norm,
    lone_norms.BatchNorm: _batch_norm,
}
