"""What kind of backend programs are made for: some forms are fast on one kind alone."""

from __future__ import annotations

import jax


def accelerated() -> bool:
    """Tells whether programs run on a GPU or TPU: many small launches cost, not bytes.

    There one pass computes several reductions of a tensor, and nothing loops over
    images; on CPU such a pass is not vectorised, and loops keep tensors in the cache.
    """
    return jax.default_backend() != "cpu"
