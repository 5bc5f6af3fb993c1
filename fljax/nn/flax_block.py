"""Any Flax module as a block; frozen it stays in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fljax import types
from fljax.nn import layers, signals


class FlaxBlock(nn.Module):
    """A linen module that knows nothing of roles.

    Frozen blocks run it in float32 on parameters that no gradient reaches: they save
    the gradients of its parameters and their upload, not what int8 saves.

    Attributes:
      module: maps float32 [B, ...], or token ids [B, L] int32, to float32 [B, ...];
        parameters are all it has.
    """

    module: nn.Module

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps what flows between blocks by the module; float or Ranged by role.

        Raises:
          ValueError: the module has more than parameters, as batch norms do.
        """
        given = signals.to_float(x)
        tokens = jnp.issubdtype(given.dtype, jnp.integer)
        inputs = given if tokens else given.astype(jnp.float32)
        module = self.module.clone(parent=None)

        def init(key: types.Key):
            variables = module.init(key, inputs)
            extra = sorted(variables.keys() - {"params"})
            if extra:
                raise ValueError(
                    f"FlaxBlock: expected a module with params alone, got {extra} in "
                    f"{type(module).__name__}; fljax.nn.layers has norms"
                )
            return variables.get("params", {})

        def parameters():
            return self.param("inner", init)

        trained = call.role is types.Role.TRAINED
        if trained:
            values = parameters()
        else:
            values = self.variable("frozen", "inner", parameters).value
        rngs = {}
        fixed = call.role is types.Role.FROZEN_BEFORE  # as of `layers.Dropout`
        if self.has_rng("dropout") and not fixed:
            rngs["dropout"] = self.make_rng("dropout")
        y: Any = module.apply({"params": values}, inputs, rngs=rngs)
        if self.is_mutable_collection("counts"):
            self._count(module, values, inputs, y)
        y = y.astype(jnp.float32 if tokens else given.dtype)
        return y if trained else signals.Ranged(y, None)

    def _count(self, module: nn.Module, values, x: types.Array, y: types.Array) -> None:
        """Stores in `counts` what XLA counts, and what goes in and comes out."""
        shapes = jax.tree.map(jax.typeof, ({"params": values}, x))
        lowered = jax.jit(module.apply).lower(
            *jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype), shapes)
        )
        flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
        macs, values = int(flops / 2) // x.shape[0], y.size // x.shape[0]
        layers.count(
            self,
            macs=macs,
            float_macs=macs,
            kept=(x.size + y.size) // x.shape[0],
            values=values,
            after_values=values,
            before_values=values,
        )
