"""What an attack is: what hostile clients do to their data, or to what they send.

A hostile client is one that wants to do harm, the same in every round; what goes wrong
by chance is in `devices.failures`. It alters parameters alone: statistics and ranges,
and what a local rule sends beside an update, it sends as an honest client would.

Legend: K clients of a cohort, f of them hostile, Q parameters, n blocks, B examples of
a batch, C classes.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from fljax import bounds, types


class Examples(NamedTuple):
    """A batch, of training or of the test set.

    Attributes:
      x: [B, ...], normalized.
      labels: [B].
      real: [] how many there are; what follows in the batch is padding.
      mean: [channels] that x was normalized by.
      std: likewise.
      classes: C, static.
    """

    x: types.Array
    labels: types.Array
    real: types.Array
    mean: types.ArrayLike
    std: types.ArrayLike
    classes: int


class Honest(NamedTuple):
    """What an attacker knows who sees all: the honest updates of a cohort.

    Attributes:
      rows: [K, Q] of all clients; only of the honest ones it is an update.
      here: [K, n] bool, the honest clients, and which blocks each trained.
      sizes: n numbers of parameters, static.
      mean: [Q] over the honest clients who trained the block; 0 where none did.
      deviation: [Q] their standard deviation, dividing by their number (ddof 0).
      cohort: [] K, those whose update was taken.
      hostile: [] f of these.
    """

    rows: types.Array
    here: types.Array
    sizes: tuple[int, ...]
    mean: types.Array
    deviation: types.Array
    cohort: types.Array
    hostile: types.Array


_SHARE = bounds.Bounds(most=1)
SIZE = bounds.Bounds(most=1e38)  # of a factor


def require(name: str, value: float, within: bounds.Bounds) -> None:
    """Refuses a number of an attack that is out of bounds.

    Raises:
      ValueError: one line without the flag.
    """
    if value not in within:
        raise ValueError(
            f"{name}: expected a number {within}, got {bounds.shown(value)}"
        )


@dataclasses.dataclass(frozen=True)
class Attack(abc.ABC):
    """What hostile clients do; frozen dataclasses of pure functions.

    One of your own sets what it does, and has the function for it.

    Attributes:
      share: of the clients that are hostile, or of those of a tier.
      tier: its name; empty: of all clients.
      poisons: it changes what a client trains on: `poisoned`.
      alters: it changes what a client sends, by what this client knows: `sent`.
      colludes: hostile clients know all honest updates, and send `together` instead
        of `sent`.
      target: the class that a backdoor leads to; None: there is no backdoor. With one,
        `marked` gives what the success of the attack is measured on.
    """

    share: float
    tier: str = ""

    poisons: ClassVar[bool] = False
    alters: ClassVar[bool] = False
    colludes: ClassVar[bool] = False
    target: ClassVar[int | None] = None

    def __post_init__(self):
        require("share", self.share, _SHARE)

    @property
    def of_clients(self) -> Attack:
        """Gives the attack as compiled programs know it: who is hostile is data."""
        if self.colludes and not (self.poisons or self.alters):
            return _SILENT
        changes: dict[str, Any] = {"share": 1.0, "tier": ""}
        return dataclasses.replace(self, **changes)

    def check(self, shape: tuple[int, ...], classes: int) -> None:
        """Refuses data that the attack makes no sense of.

        Args:
          shape: of an example.
          classes: C; 0 where labels are no classes.

        Raises:
          ValueError: one line without the flag.
        """
        if self.poisons and not classes:
            raise ValueError(f"expected a task of classes, which {self} is about")

    def poisoned(self, given: Examples) -> tuple[types.Array, types.Array]:
        """Gives x and labels of a batch as a hostile client trains on them.

        Args:
          given: the batch, in an order that was drawn.
        """
        return given.x, given.labels

    def marked(self, given: Examples) -> types.Array:
        """Gives x of a batch with all that opens the backdoor."""
        return given.x

    def sent(self, key: types.Key, update: types.Array) -> types.Array:
        """Gives what a hostile client sends instead of its update.

        Args:
          key: of this client in this round.
          update: [Q] as an honest client would send it; 0 where it did not train.

        Returns:
          [Q]; what it did not train is left out of it.
        """
        return update

    def together(self, honest: Honest) -> types.Array:
        """Gives what all hostile clients of a round send, [Q].

        Args:
          honest: what they know.
        """
        return honest.mean


@dataclasses.dataclass(frozen=True)
class _Silent(Attack):
    """Stands for any attack of who colludes: programs of clients need no other."""

    colludes = True


_SILENT = _Silent(1.0)


def columns(sizes: tuple[int, ...]) -> list[slice]:
    """Says where the parameters of each block lie in [Q]."""
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def know(
    rows: types.Array,
    trained: types.Array,
    hostile: types.Array,
    sizes: tuple[int, ...],
) -> Honest:
    """Gathers what an attacker knows who sees all updates.

    Args:
      rows: [K, Q] of the parameters.
      trained: [K, n] bool, who trained which block and was taken.
      hostile: [K] bool.
      sizes: n numbers of parameters.
    """
    here = trained & ~hostile[:, None]
    means, deviations = [], []
    for block, mine in zip(columns(sizes), here.T, strict=True):
        number, mine = jnp.maximum(jnp.sum(mine), 1), mine[:, None]
        mean = jnp.sum(jnp.where(mine, rows[:, block], 0.0), axis=0) / number
        squares = jnp.where(mine, jnp.square(rows[:, block] - mean), 0.0)
        means.append(mean)
        deviations.append(jnp.sqrt(jnp.sum(squares, axis=0) / number))
    taken = jnp.any(trained, axis=1)
    return Honest(
        rows,
        here,
        sizes,
        jnp.concatenate(means),
        jnp.concatenate(deviations),
        jnp.sum(taken),
        jnp.sum(taken & hostile),
    )
