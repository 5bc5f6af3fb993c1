"""Self-attention between its products, always in floats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from fljax import types
from fljax.nn import layers, signals


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al., NeurIPS 2017, equation 1).

    Frozen blocks compute it in float32 too, and what reads its result quantizes it anew
    (as in the reference code of CoCoFL).

    Attributes:
      heads: how many; they share the channels.
      causal: no position attends to a later one.
    """

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        query: signals.Signal,
        key: signals.Signal,
        value: signals.Signal,
        valid: types.Array,
        call: layers.Call,
    ) -> signals.Signal:
        """Maps query, key, value [B, L, C] to [B, L, C]; float, or Ranged if frozen.

        Positions that are not valid [B, L] are not attended to.
        """
        batch, length, channels = query.shape
        split = (batch, length, self.heads, channels // self.heads)
        q, k, v = (signals.to_float(x).reshape(split) for x in (query, key, value))
        weights = self.heads * length * length
        macs = 2 * weights * split[-1]
        layers.count(
            self,
            macs=macs,
            float_macs=macs,
            kept=weights,
            values=weights,
            after_values=weights,
            before_values=weights,
        )
        mask = valid[:, None, None, :]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=self.causal)
        y = jnp.reshape(y, (batch, length, channels))
        trained = call.role is types.Role.TRAINED
        return y if trained else signals.Ranged(y, None)
