"""FLTrust (Cao et al., NDSS 2021)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fljax.updates.aggregates import base


@dataclasses.dataclass(frozen=True)
class FLTrust(base.Aggregate):
    """The mean of the updates, each as far as it points where the server's own does.

    The server trains on a root set as a client would, which gives D_0. A client counts
    by the cosine of its update to D_0, not at all below 0, and is brought to the length
    of D_0. Where nobody counts the network stays as it is.

    Attributes:
      examples: of the root set.
    """

    examples: int = 100

    def __post_init__(self):
        if self.examples < 1:
            raise ValueError(f"examples: expected at least 1, got {self.examples}")

    @property
    def root_size(self):
        """Gives the examples of the root set."""
        return self.examples

    def combine(self, state, seen):
        """Weighs by the cosine."""
        products, squares = [], []
        for rows, root in zip(seen.rows, seen.root, strict=True):
            products.append(jnp.sum(rows * root[None], axis=1))
            squares.append(jnp.full(len(rows), jnp.sum(jnp.square(root))))
        product = seen.of_all(jnp.stack(products, axis=1))
        wanted = jnp.sqrt(seen.of_all(jnp.stack(squares, axis=1)))
        length = seen.lengths()
        usable = (length > 0) & (wanted > 0) & jnp.isfinite(length)
        length = jnp.where(usable, length, 1.0)
        cosine = product / jnp.where(usable, length * wanted, 1.0)
        weights = jnp.where(usable, jnp.maximum(cosine, 0.0), 0.0)
        raised = seen.sums(weights * wanted / length)
        means = tuple(
            total / jnp.where(weight > 0, weight, 1.0)
            for total, weight in zip(raised, seen.weights(weights), strict=True)
        )
        return base.Combined(means, weights), state
