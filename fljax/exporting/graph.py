"""A graph of ONNX while it is written: nodes in order, and the numbers they read.

It is written while JAX traces the network, so numbers may be tracers; what the traced
function returns are their values, and `model` puts both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fljax import version

OPSET, IR = 17, 8  # of which every runtime of the last years knows all that is used
MICROSOFT = "com.microsoft"  # onnxruntime's own operators: QLinearAdd and the like


class Graph:
    """Nodes and constants, which only grow."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.codes: dict[str, Any] = {}  # of the tensors that are quantized, by name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node.

        Args:
          kind: the operator.
          inputs: names of what it reads.
          output: name of what it gives; empty: one is made.
          attributes: of the operator, and perhaps its domain.

        Returns:
          The name of what it gives.
        """
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        made = helper.make_node(kind, inputs, [name], name=name, **attributes)
        self.nodes.append(made)
        return name

    def constant(self, value: Any, dtype: Any = jnp.float32) -> str:
        """Adds numbers; gives their name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = jnp.asarray(value).astype(dtype)
        return name


def model(graph: Graph, numbers: Mapping[str, Any], ends: Any, facts: Any) -> bytes:
    """Puts a graph and its numbers together.

    Args:
      graph: whose last node gives the output.
      numbers: the values of `graph.constants`.
      ends: (name, dtype, shape) of input and output; the number of examples is any.
      facts: key -> text, the file's metadata.

    Returns:
      A file of ONNX.
    """
    import onnx
    from onnx import helper, numpy_helper

    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ("batch", *shape)
        )
        for name, dtype, shape in ends
    ]
    tensors = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in numbers.items()
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "fljax", values[:1], values[1:], tensors),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(MICROSOFT, 1),
        ],
        ir_version=IR,
        producer_name="fljax",
        producer_version=version.VERSION,
    )
    helper.set_model_props(made, dict(facts))
    onnx.checker.check_model(made)
    return made.SerializeToString()
