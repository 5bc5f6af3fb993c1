"""Products with a kernel as other runtimes compute them: norms folded, no loops."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from jax import lax

from fljax import types
from fljax.kernels import norms
from fljax.nn import layers, operations, signals


def folded(module: nn.Module) -> tuple[types.Array, types.Array | None]:
    """Gives a product's kernel and bias with its norm's running statistics in them.

    Args:
      module: a bound `layers.Product` with params and norms.

    Returns:
      Kernel, and bias [out]; None: there is none.
    """
    params, running = module.variables["params"], module.variables.get("norms", {})
    kernel, bias = params["kernel"], params.get("bias")
    if "mean" not in running:
        return kernel, bias
    mean, var, scale = running["mean"], running["var"], params["scale"]
    factor, offset = norms.folded(mean, var, scale, params["bias"])
    return kernel * factor, offset


def floats(
    operation: operations.Operation, x: types.Array, kernel: types.Array
) -> types.Array:
    """Multiplies floats, convolutions in one native operation.

    Args:
      operation: dense, conv or depthwise.
      x: [B, ..., in].
      kernel: as of `Operation.floats`.

    Returns:
      [B, ..., out].
    """
    if operation.kind == "dense":
        return x @ kernel
    groups = kernel.shape[-1] if operation.kind == "depthwise" else 1
    pads = [(k // 2 if operation.same else 0,) * 2 for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None] if groups > 1 or kernel.ndim == 3 else kernel,
        (operation.stride,) * 2,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def running(next_fun: Any, given: tuple, named: dict, context: Any) -> Any:
    """Intercepts products (`linen.intercept_methods`): in floats, by running norms."""
    module = context.module
    if context.method_name != "__call__" or not isinstance(module, layers.Product):
        return next_fun(*given, **named)
    kernel, bias = folded(module)
    y = floats(module.operation, signals.to_float(given[0]), kernel)
    y = y if bias is None else y + bias
    return jax.nn.relu(y) if module.relu else y
