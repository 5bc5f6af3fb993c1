"""Differentiable branches: a conditional whose gradient costs what the branch costs.

JAX's gradient of `lax.cond` hands what the backward pass reads over as results of the
branches, and the branch that does not compute them fills them with zeros: for a network
whose blocks branch, more traffic than the frozen blocks take. Here every result has a
place, which a loop carries from step to step: what is not run leaves there what was
there before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fljax import types


def when(condition: types.Array, function: Callable, operands: tuple, place):
    """Runs a function if a condition holds.

    Args:
      condition: [] bool.
      function: of the operands.
      operands: arrays.
      place: what to return otherwise, of the structure of the function's results.

    Returns:
      The results of the function, or the place.
    """
    # One branch hands all on, one writes all: else XLA copies what is handed on.
    return lax.cond(
        condition,
        lambda operands, place: function(*operands),
        lambda operands, place: place,
        operands,
        place,
    )


def or_zeros(condition, function: Callable, operands: tuple):
    """Runs a function if a condition holds, and gives zeros otherwise.

    Args:
      condition: [] bool, the same for all clients of a chunk; None: it holds; False: it
        never does, and nothing is compiled for it.
      function: of the operands.
      operands: arrays.

    Returns:
      The results of the function, or zeros of their shapes.
    """
    if condition is None:
        return function(*operands)
    shapes = jax.eval_shape(function, *operands)

    def zeros(*_):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    if condition is False:
        return zeros()
    return lax.cond(condition, function, zeros, *operands)


class Differentiable:
    """A function whose gradient is taken in two halves that only arrays connect.

    An object, because the second half unpacks what the first half packed while it was
    traced.
    """

    def __init__(self, function: Callable, fixed: int = 0):
        """Makes the two halves.

        Args:
          function: of arrays, gives (result, other results).
          fixed: how many of its first operands have no gradient.
        """
        self._function, self.fixed = function, fixed
        self._packing: Any = None

    def __call__(self, *operands):
        """Calls the function alone."""
        return self._function(*operands)

    def forward(self, *operands):
        """Calls the function.

        Returns:
          What it gives; the arrays that `backward` needs beside the operands.
        """
        fixed, moving = operands[: self.fixed], operands[self.fixed :]
        function = functools.partial(self._function, *fixed)
        result, pull, others = jax.vjp(function, *moving, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        given = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(operands))}
        read = _read(
            lambda leaves, g: jax.tree.unflatten(tree, leaves)(g), leaves, result
        )
        # How `backward` comes by each leaf. An int: it is this one of the operands;
        # True: the next of `kept`; a shape: nothing reads it, zeros will do.
        packing = [
            given.get(id(x), True if used else jax.typeof(x))
            for x, used in zip(leaves, read, strict=True)
        ]
        self._packing = tree, packing
        kept = [x for x, how in zip(leaves, packing, strict=True) if how is True]
        return (result, others), kept

    def backward(self, operands: tuple, kept: list, cotangent) -> tuple:
        """Gives the gradients of the operands, after `forward` in the same trace.

        Those of the fixed operands are left out.
        """
        tree, packing = self._packing
        left, given = iter(kept), jax.tree.leaves(operands)

        def unpack(how):
            if how is True:
                return next(left)
            return (
                given[how] if isinstance(how, int) else jnp.zeros(how.shape, how.dtype)
            )

        return jax.tree.unflatten(tree, list(map(unpack, packing)))(cotangent)


def _read(function: Callable, leaves: Sequence, *others) -> list[bool]:
    """Tells which of the leaves, its first argument, a function's results depend on."""
    jaxpr = jax.make_jaxpr(function)(leaves, *others).jaxpr
    live = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name == "optimization_barrier":  # ties nothing together
            pairs = zip(equation.invars, equation.outvars, strict=True)
            live.update(id(v) for v, out in pairs if id(out) in live)
        elif equation.effects or any(id(v) in live for v in equation.outvars):
            live.update(map(id, equation.invars))
    return [id(v) in live for v in jaxpr.invars[: len(leaves)]]
