"""Pytree maths: keep by a mask, subtract, select, sum by weight, string up, name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from fljax import types


def keep(tree: tuple, mask: tuple[bool, ...]) -> tuple:
    """Keeps the items of a tuple by a static mask, None in place of the others.

    None is a tree without leaves, so what is left can be differentiated, carried
    through a loop or summed on its own.

    Example:
      >>> keep(("a", "b", "c"), (True, False, True))
      ('a', None, 'c')
    """
    return tuple(x if m else None for x, m in zip(tree, mask, strict=True))


def subtract(a: types.Tree, b: types.Tree) -> types.Tree:
    """Subtracts tree b from tree a leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def select(condition: types.Array, a: types.Tree, b: types.Tree) -> types.Tree:
    """Takes a where the scalar condition holds, else b; not NaN-safe arithmetic."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def weighted_sum(tree: types.Tree, weights: types.Array) -> types.Tree:
    """Sums leaves [W, ...] over the client axis with weights [W]; 0 drops NaN too."""

    def leaf(x):
        w = weights.reshape(weights.shape + (1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(w == 0, 0.0, x * w), axis=0)

    return jax.tree.map(leaf, tree)


def ravel(tree: types.Tree) -> types.Array:
    """Strings all leaves together to one vector, in the order of `jax.tree.leaves`."""
    return jax.flatten_util.ravel_pytree(tree)[0]


def unravel(vector: types.Array, like: types.Tree) -> types.Tree:
    """Undoes `ravel` for a tree of the shapes of `like`."""
    return jax.flatten_util.ravel_pytree(like)[1](vector)


def all_finite(tree: types.Tree) -> types.Array:
    """Tells in one boolean whether every float of the tree is finite."""
    checks = [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def size(tree: Any) -> int:
    """Counts the values of a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: types.Tree) -> dict[str, Any]:
    """Gives the leaves by name: keys and indices with / between them.

    Example:
      >>> named(({"w": 1.0}, {"w": 2.0}))
      {'0/w': 1.0, '1/w': 2.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def fill(tree: types.Tree, values: Mapping[str, Any]) -> Any:
    """Puts values in place of the leaves of their names; the others stay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(_name(path), leaf), tree
    )
