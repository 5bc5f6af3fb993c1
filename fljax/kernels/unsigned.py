"""Products of int8 codes as unsigned by signed bytes, where processors have those.

x86 multiplies bytes four at a time only if one side is unsigned (AVX-512 VNNI's
`vpdpbusd`); the library that XLA computes products with on CPU takes it for nothing
else, and JAX turns operands of two types into int32 before XLA sees them. So codes
are moved up by 128, and what that adds to each sum is taken off again:

    sum x w = sum (x + 128) w - 128 sum w

in int32, so that the result is the same to the bit. A product is 2.5 times as fast on
jax 0.10 (`docs/lab/fixed_point.md`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import batching, mlir

from fljax import types
from fljax.runtime import backends

_OFFSET = 128

# AMX multiplies tiles of either kind; the library has it for both.
_FEATURES = ("avx512_vnni", "amx_int8")


def pays() -> bool:
    """Says whether `product` is faster here than signed codes by signed codes."""
    if backends.accelerated():
        return False
    return not backends.processor_features().isdisjoint(_FEATURES)


def product(x: types.Array, w: types.Array) -> types.Array:
    """Multiplies int8 codes x [..., in] by w [in, out], int8, in int32."""
    moved = lax.bitcast_convert_type(x ^ jnp.int8(-_OFFSET), jnp.uint8)
    column = jnp.sum(w, axis=0, dtype=jnp.int32)
    return _mixed_product.bind(moved, w, shared=0) - _OFFSET * column


# uint8 [*shared, ..., in] by int8 [*shared, in, out], in int32. A primitive of its own,
# because `lax.dot_general` converts both operands.
_mixed_product = core.Primitive("unsigned_product")
_mixed_product.def_impl(jax.jit(_mixed_product.bind, static_argnames="shared"))


@_mixed_product.def_abstract_eval
def _shape(x, w, *, shared: int):
    del shared
    return jax.core.ShapedArray((*x.shape[:-1], w.shape[-1]), jnp.int32)


def _lower(context, x, w, *, shared: int):
    rank = len(context.avals_in[0].shape)
    dimensions = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=list(range(shared)),
        rhs_batching_dimensions=list(range(shared)),
        lhs_contracting_dimensions=[rank - 1],
        rhs_contracting_dimensions=[shared],
    )
    result = mlir.aval_to_ir_type(context.module_context, context.avals_out[0])
    return [stablehlo.dot_general(result, x, w, dimensions)]


def _batch(arguments, axes, *, shared: int):
    x, w = arguments
    x_axis, w_axis = axes
    if w_axis is None and shared == 0:  # clients that share weights are further rows
        return _mixed_product.bind(jnp.moveaxis(x, x_axis, 0), w, shared=0), 0
    size = x.shape[x_axis] if w_axis is None else w.shape[w_axis]
    x, w = (
        jnp.broadcast_to(a, (size, *a.shape))
        if axis is None
        else jnp.moveaxis(a, axis, 0)
        for a, axis in ((x, x_axis), (w, w_axis))
    )
    return _mixed_product.bind(x, w, shared=shared + 1), 0


mlir.register_lowering(_mixed_product, _lower)
batching.primitive_batchers[_mixed_product] = _batch
