"""What flows between the layers of a network, by role of the block.

Float arrays in trained blocks, `quant.QArray` before the window, `Ranged` after it;
of sequences `Padded`, which holds one of these. What is done with them outside of
layers (`to_float`, pooling) dispatches by kind: `exporting.wires` adds one, of networks
that are written down for other runtimes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import struct

from fljax import types
from fljax.kernels import quant, specs


@struct.dataclass
class Ranged:
    """A float array between frozen layers, with what is known of its range.

    Attributes:
      value: floats, of the dtype of the network's input.
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


@struct.dataclass
class Padded:
    """What flows between the blocks of a network of sequences.

    Attributes:
      value: signal [B, L, C].
      valid: [B, L] bool; False where a position is padding.
    """

    value: Signal
    valid: types.Array


@struct.dataclass
class Exited:
    """What flows on behind an exit, see `nn.exits`; as outputs, the mean of the exits.

    Attributes:
      value: the signal, or a padded one.
      logits: of each exit so far, the first one first, [B, C] or [B, L, C].
    """

    value: Any
    logits: tuple[types.Array, ...]


def bare(x: Signal | Padded | Exited) -> Signal:
    """Returns the signal alone, without what flows beside it."""
    x = x.value if isinstance(x, Exited) else x
    return x.value if isinstance(x, Padded) else x


@functools.singledispatch
def to_float(x: Signal) -> Any:
    """Returns the float values of whatever flows between layers."""
    if isinstance(x, quant.QArray):
        return x.dequantize()
    if isinstance(x, Exited):
        return jnp.mean(jnp.stack(x.logits), axis=0)
    return x.value if isinstance(x, Ranged) else x


def cast(x: Signal | Padded, dtype) -> Signal | Padded:
    """Gives what a frozen prefix hands to the window as floats of a dtype.

    In float32 all stays as it is: the window's first layer dequantizes codes. Sequences
    know nothing else.
    """
    if dtype == jnp.float32:
        return x
    return to_float(x).astype(dtype)


def to_ranged(x: Signal) -> Ranged:
    if isinstance(x, Ranged):
        return x
    return Ranged(to_float(x), None)


def known(x: Signal | Padded, nonnegative: bool) -> Signal | Padded:
    """Says of what a trained block gives whether it can be negative."""
    if isinstance(x, Padded):
        return dataclasses.replace(x, value=known(x.value, nonnegative))
    return x if isinstance(x, Ranged) else Ranged(x, None, nonnegative)


def input_scale(x: Ranged, spec: specs.Spec, carried: bool) -> types.Array:
    """Gives the scale of x: what it was observed to need, or what this batch needs."""
    largest = x.largest if carried else None
    if largest is None:
        largest = quant.range_of(x.value, spec, x.nonnegative)
    return quant.scale_of(spec, largest, x.nonnegative)


def to_codes(x: Signal, spec: specs.Spec, key: types.Key | None) -> quant.QArray:
    """Quantizes what is not quantized yet, by the range of this batch."""
    if isinstance(x, quant.QArray):
        return x
    x = to_ranged(x)
    scale = input_scale(x, spec, carried=False)
    return quant.quantize(x.value, scale, spec, x.nonnegative, key)
