"""What programs are made for: some forms are fast, or exact, on one backend alone."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types

_CACHE = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")


def accelerated() -> bool:
    """Tells whether programs run on a GPU or TPU: many small launches cost, not bytes.

    There one pass computes several reductions of a tensor, and nothing loops over
    images; on CPU such a pass is not vectorized, and loops keep tensors in the cache.
    """
    return jax.default_backend() != "cpu"


def code_products() -> str:
    """Names the type in which codes of int8 are multiplied here, by measurements.

    The sums are the same to the bit in all of them (`convs`). On CPU bytes are
    multiplied four at a time. On an H200 int8 and bfloat16 took the same, product by
    product; a round of each is still to be measured there (docs/lab/gpu.md), and until
    one is faster all devices take int8. It is not measured when a run starts: what
    noise decides would be compiled anew from run to run.
    """
    return "int8"


def opaque(x: types.Array, positive: types.Array) -> types.Array:
    """Returns float32 x, of which no compiler can tell where it comes from.

    So a product is not fused with the sum that follows (LLVM looks past barriers), nor
    a division by a constant turned into a product with its reciprocal.

    Args:
      x: any shape.
      positive: above 0, which is known here alone: x takes on its sign bit.

    Returns:
      x, of the shape that both broadcast to.
    """
    bits, sign = (lax.bitcast_convert_type(a, jnp.int32) for a in (x, positive))
    return lax.bitcast_convert_type(bits | (sign & jnp.int32(-(2**31))), jnp.float32)


@functools.cache
def last_cache_bytes() -> int:
    """Gives the size of the processor's last cache; 0 where it is not told."""
    sizes = [0]
    for path in _CACHE.glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.removesuffix("K")) * 1024)
        except (OSError, ValueError):
            continue
    return max(sizes)


@functools.cache
def processor_features() -> frozenset[str]:
    """Names the instruction sets of the processor; none where they are not told."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    lines = [line for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].partition(":")[2].split() if lines else ())
