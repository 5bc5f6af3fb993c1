"""The network as a file of ONNX: in floats, or in int8 but for what stays in floats.

Written layer by layer while the network is traced (`nodes`); what has layers of other
kinds, such as Transformers, goes through jax2onnx, in floats alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fljax import plans, types
from fljax.exporting import graph as graphs
from fljax.exporting import model as models
from fljax.exporting import nodes, wires
from fljax.kernels import specs
from fljax.nn import exits, layers, network, signals
from fljax.runs import weights
from fljax.runtime import reading


class Traced(NamedTuple):
    """What is left of tracing a network.

    Attributes:
      graph: of it.
      numbers: values of the graph's constants.
      outputs: of this library for the examples: those of the file, up to rounding.
      codes: likewise of all tensors in codes, by name, channels last; empty unless
        they were asked for.
    """

    graph: graphs.Graph
    numbers: dict[str, np.ndarray]
    outputs: np.ndarray
    codes: dict[str, np.ndarray]


def roles(net: network.Network, plan: plans.Plan | None) -> tuple[types.Role, ...]:
    """Gives the role of each block: trained ones are in floats, the others in codes."""
    first, last = (0, -1) if plan is None else (plan.first, plan.last)
    if plan is not None and plan != plans.Plan(first, last):
        raise ValueError(f"plan: expected codes of 8 bits and full width, got {plan}")
    if last >= net.num_blocks:
        raise ValueError(
            f"plan: expected blocks 0 to {net.num_blocks - 1} of network "
            f"{net.name!r}, got {plan}"
        )
    return tuple(
        types.Role.TRAINED if first <= i <= last else types.Role.FROZEN_BEFORE
        for i in range(net.num_blocks)
    )


def int8(model: models.Model, plan: plans.Plan | None = None) -> bytes:
    """Writes the network in int8: what `layers.Product` and its like do frozen.

    Args:
      model: the network.
      plan: whose window stays in floats; None: none does.

    Returns:
      A file of ONNX; onnxruntime runs it.

    Raises:
      ValueError: the network has layers without a form in ONNX, or none in codes.
    """
    name = model.net.name
    if model.net.vocabulary is not None:
        raise ValueError(
            f"network {name!r}: expected one of images or numbers for int8, got one of "
            f"tokens, which is written in floats alone"
        )
    if exits.ends(model.net):
        raise ValueError(
            f"network {name!r}: expected one of one output for int8, got one with "
            f"exits, whose mean is written in floats alone"
        )
    found = traced(model, roles(model.net, plan))
    if not found.graph.codes:
        raise ValueError(
            f"network {name!r}: expected layers that run in codes for int8, got none"
        )
    return _file(model, found)


def floats(model: models.Model) -> bytes:
    """Writes the network in float32, norms folded into the products before them.

    Args:
      model: the network.

    Returns:
      A file of ONNX.

    Raises:
      ValueError: neither this library nor jax2onnx can write its layers.
    """
    plan = plans.full(model.net.num_blocks)
    if model.net.vocabulary is None:
        try:
            return _file(model, traced(model, roles(model.net, plan)))
        except ValueError:  # of a layer of another kind
            pass
    return _by_jax2onnx(model)


def traced(
    model: models.Model, of_blocks: tuple[types.Role, ...], observe: bool = False
) -> Traced:
    """Traces a network and writes its graph.

    Args:
      model: the network.
      of_blocks: role of each block.
      observe: keep the codes of all tensors, too.

    Returns:
      The graph, its numbers and what this library computes.

    Raises:
      ValueError: a layer has no form in ONNX, or a block computes outside of layers.
    """
    net, graph = model.net, graphs.Graph()
    calls = [layers.Call(role, specs.DEFAULT, running=True) for role in of_blocks]

    def trace(blocks, x):
        frozen = network.freeze(net, blocks, of_blocks, specs.DEFAULT)
        state = [b | (f or {}) for b, f in zip(blocks, frozen, strict=True)]
        with nn.intercept_methods(nodes.written):
            y, _ = network.run(net, state, wires.start(graph, x, model), calls)
        y = signals.to_float(y)
        graph.node("Identity", y.name, output="output")
        codes = graph.codes if observe else {}
        return graph.constants, signals.to_float(y.value), codes

    x = jnp.asarray(model.examples).astype(model.dtype)
    with reading.one_line(f"network {net.name!r}"):
        return Traced(graph, *jax.device_get(jax.jit(trace)(model.blocks, x)))


def _file(model: models.Model, found: Traced) -> bytes:
    net, outputs = model.net, found.outputs
    ends = [
        ("input", model.dtype, net.input_shape),
        ("output", outputs.dtype, outputs.shape[1:]),
    ]
    return graphs.model(found.graph, found.numbers, ends, weights.facts(net))


class _Input(NamedTuple):
    """What jax2onnx asks of an input."""

    shape: tuple[Any, ...]
    dtype: Any


def _by_jax2onnx(model: models.Model) -> bytes:
    """Writes what JAX computes, operation by operation."""
    given: Any = _Input(("batch", *model.net.input_shape), np.dtype(model.dtype))
    name = f"network {model.net.name!r} as ONNX"
    with reading.one_line(name, "pip install 'fljax[export]'"):
        import jax2onnx

        made: Any = jax2onnx.to_onnx(
            lambda x: models.outputs(model, x),
            [given],
            input_names=["input"],
            output_names=["output"],
        )
        return made.SerializeToString()
