"""Server rules: how the server moves the network along what a round brought.

A rule sees means over the cohort and keeps a state. Any optax optimizer is one:
`server_rule(optax.adam, 1e-2)` (Reddi et al., ICLR 2021, call this FedOpt).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax import types


class Received(NamedTuple):
    """What a round brought, as means over the cohort.

    Attributes:
      delta: new minus old parameters, a tuple over blocks; who did not train a block
        counts as 0.
      message: what a local rule sends beside them, like delta; None: nothing.
      numbers: likewise [m]; None: nothing.
      weight: of all whose update was taken, []; their number, where all weigh the same.
      trained: whether anybody trained them: [] for each block, or for each of its
        values, like delta, where networks differ in width.
    """

    delta: tuple
    message: tuple | None
    numbers: types.Array | None
    weight: types.Array
    trained: types.Tree


class ServerRule(abc.ABC):
    """What the server does at the end of a round; frozen dataclasses, pure functions.

    Blocks that nobody trained keep their parameters whatever a rule says; what it
    should do about its own state of them, `kept` does.

    Attributes:
      shares: whether clients are sent something shaped like the parameters beside them.
    """

    shares: ClassVar[bool] = False

    def init(self, params: tuple) -> Any:
        """Makes the state before the first round; nothing, unless a rule says so."""
        return ()

    def shared(self, state: Any) -> tuple | None:
        """Gives what clients are sent beside the network, if the rule shares."""
        return None

    @abc.abstractmethod
    def step(self, state: Any, params: tuple, got: Received) -> tuple[tuple, Any]:
        """Ends a round.

        Args:
          state: of the rule.
          params: of the network, a tuple over blocks.
          got: what the round brought.

        Returns:
          What is to be added to the parameters, times the server's learning rate; the
          rule's new state.
        """


@dataclasses.dataclass(frozen=True)
class Averaging(ServerRule):
    """Takes the mean (McMahan et al., AISTATS 2017)."""

    def step(self, state, params, got):
        """Moves by the mean delta."""
        return got.delta, state


def flags(trained: types.Tree, params: tuple) -> tuple:
    """Spreads what `Received.trained` says over the parameters, a flag for each leaf.

    Args:
      trained: for each block [], or a tree like its parameters.
      params: a tuple over blocks.

    Returns:
      Like params; [] or of the leaf's shape.
    """
    return tuple(
        t
        if jax.tree.structure(t) == jax.tree.structure(block)  # type: ignore[operator]
        else jax.tree.map(lambda _, t=t: t, block)
        for t, block in zip(trained, params, strict=True)
    )


def kept(trained: types.Tree, new: tuple, old: tuple) -> tuple:
    """Takes the new value of what somebody trained, else the old one; as of `flags`."""
    return jax.tree.map(jnp.where, flags(trained, new), new, old)


def zeros(params: tuple) -> tuple:
    """Makes a state of zeros, shaped as the parameters."""
    return jax.tree.map(jnp.zeros_like, params)


@dataclasses.dataclass(frozen=True)
class Optax(ServerRule):
    """An optax optimizer that takes the mean delta for a negative gradient.

    Attributes:
      factory: of the optimizer, such as `optax.adam`.
      arguments: of the factory.
      named: arguments by name, sorted.
    """

    factory: Callable[..., optax.GradientTransformation]
    arguments: tuple = ()
    named: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        """Name the optimizer as it is written."""
        words = [*map(repr, self.arguments), *(f"{k}={v!r}" for k, v in self.named)]
        module = getattr(self.factory, "__module__", "").partition(".")[0]
        name = getattr(self.factory, "__qualname__", repr(self.factory))
        return f"{module}.{name}({', '.join(words)})"

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return self.factory(*self.arguments, **dict(self.named))

    def init(self, params):
        """Makes the optimizer's state."""
        return self._optimizer.init(params)

    def step(self, state, params, got):
        """Takes a step of the optimizer; moments of untrained blocks stay."""
        gradients = jax.tree.map(jnp.negative, got.delta)
        updates, new = self._optimizer.update(gradients, state, params)
        moved = optax.tree_utils.tree_map_params(
            self._optimizer,
            lambda _, flag: flag,
            new,
            flags(got.trained, params),
            transform_non_params=lambda _: jnp.array(True),
        )
        return updates, jax.tree.map(jnp.where, moved, new, state)


def server_rule(
    factory: Callable[..., optax.GradientTransformation], *arguments: Any, **named: Any
) -> Optax:
    """Makes a server rule of an optax optimizer.

    >>> server_rule(optax.adam, 0.01, b2=0.99)
    optax.adam(0.01, b2=0.99)

    Args:
      factory: makes the optimizer; its name goes into the run folder.
      *arguments: of the factory.
      **named: likewise.

    Returns:
      The rule.

    Raises:
      ValueError: the factory is none.
    """
    if not callable(factory):
        raise ValueError(
            f"server_rule: expected what makes an optimizer, and its arguments, such "
            f"as server_rule(optax.adam, 1e-2), got a {type(factory).__name__}"
        )
    return Optax(factory, arguments, tuple(sorted(named.items())))
