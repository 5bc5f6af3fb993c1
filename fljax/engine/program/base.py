"""What a compiled program is made for, and what it is handed.

A program trains clients of one window (`single.Single`) or of all windows at once
(`mixed.Mixed`). Which it is, is asked of nobody: each says itself what it freezes, how
it takes a step, and which blocks its clients train.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fljax import tasks, types
from fljax.kernels import specs
from fljax.nn import network, signals
from fljax.tasks import exits

Window = tuple[types.Array, types.Array]  # first and last trained block, [] each


class Blocks(NamedTuple):
    """A network as a client trains it.

    Attributes:
      frozen: what `Program.freeze` made of it.
      trained: state of the blocks that train, None for the others.
    """

    frozen: tuple
    trained: tuple


class Batch(NamedTuple):
    """What a local step trains on.

    Attributes:
      x: [B, *features], normalized, or tokens.
      labels: [B, ...].
      mask: [B] 1 for examples, 0 for padding.
      key: of this step; None: nothing is drawn.
      observe: [] whether ranges are recorded; None: they are.
      task: what the labels mean; static.
      scale: as of `layers.Call`; static.
      classes: [C] bool, logits of the others are 0; None: no logit is changed.
      columns: as of `layers.Call`, of the first block.
      soft: [B, C] logits that are to be met, in place of the labels; None: these.
      pull: [] weight of what exits of the network learn from each other; None: nothing.
    """

    x: types.Array
    labels: types.Array
    mask: types.Array
    key: types.Key | None
    observe: types.Array | None = None
    task: tasks.Task = tasks.DEFAULT
    scale: float = 1.0
    classes: types.Array | None = None
    columns: types.Array | None = None
    soft: types.Array | None = None
    pull: types.Array | None = None

    def loss(self, outputs: signals.Signal) -> types.Array:
        """Averages the loss of the network's outputs, in float32."""
        if isinstance(outputs, signals.Exited):
            logits = tuple(each.astype(jnp.float32) for each in outputs.logits)
            return exits.loss(self.task, logits, self.labels, self.mask, self.pull)
        outputs = signals.to_float(outputs).astype(jnp.float32)
        if self.classes is not None:
            outputs = jnp.where(self.classes, outputs, 0.0)
        if self.soft is not None:
            wanted = jax.nn.softmax(self.soft.astype(jnp.float32))
            each = -jnp.sum(wanted * jax.nn.log_softmax(outputs), axis=-1)
            each = each.reshape(len(each), -1).mean(axis=1)  # over positions, if any
            return jnp.sum(each * self.mask) / jnp.maximum(jnp.sum(self.mask), 1.0)
        return self.task.loss(outputs, self.labels, self.mask)


class Own(NamedTuple):
    """What of a program is one client's alone.

    Attributes:
      window: that it trains, where windows are data.
      places: of `Program.places`; None where clients run side by side.
      present: of `Program.present`, that all clients of a chunk share; None: any role
        may be.
    """

    window: Window | None = None
    places: tuple | None = None
    present: types.Array | None = None


class Stepped(NamedTuple):
    """What a local step gives.

    Attributes:
      loss: [].
      gradients: of the parameters of all blocks.
      backward: new backward ranges of all blocks.
      updates: new norms and ranges of the blocks of `Program.span`.
      places: for the next step.
      held: which values of the parameters the step trains, like gradients; None: all.
      outputs: of the network; None: nobody asks.
    """

    loss: types.Array
    gradients: tuple
    backward: tuple
    updates: Any
    places: tuple | None
    held: tuple | None = None
    outputs: types.Array | None = None


@functools.total_ordering
class Program(abc.ABC):
    """What a program is made for: static and hashable.

    Attributes:
      any_window: clients of any window run in it; else all have the same one.
      bits: width of the codes in the frozen blocks.
      width: share of the network's channels that its clients have.
      name: of the windows.
      capacity: examples that a client has at most.
      short: whether clients with more examples have programs of their own.
    """

    any_window: ClassVar[bool]
    capacity: int
    short: bool

    def __str__(self) -> str:
        """Names the windows, and the examples where there is a choice."""
        limit = f" of up to {self.capacity} examples" if self.short else ""
        return f"{self.name}{limit}"

    def holding(self, capacity: int, short: bool) -> Program:
        """Gives the program for clients of so many examples."""
        changes: Any = {"capacity": capacity, "short": short}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Names the windows."""

    @property
    @abc.abstractmethod
    def bits(self) -> int:
        """Gives the width of the codes in the frozen blocks."""

    @property
    @abc.abstractmethod
    def width(self) -> float:
        """Gives the share of the network's channels that its clients have."""

    def holds(self, net: network.Network) -> network.Network:
        """Gives what its clients have of a network: all of it."""
        return net

    @property
    @abc.abstractmethod
    def order(self) -> tuple:
        """Says where the program stands among others."""

    def __lt__(self, other: Program) -> bool:
        """Tells whether this program comes before another one."""
        return self.order < other.order

    @abc.abstractmethod
    def span(self, num_blocks: int) -> slice:
        """Gives the blocks that may train."""

    @abc.abstractmethod
    def freeze(
        self,
        net: network.Network,
        spec: specs.Spec,
        state: tuple[dict, ...],
        key: types.Key | None,
    ) -> tuple:
        """Freezes what runs frozen; the same for all clients of a round.

        Args:
          net: the network.
          spec: fixed point choices, at this program's width.
          state: global state, of all blocks.
          key: of the round, for stochastic rounding.

        Returns:
          `Blocks.frozen`.
        """

    @abc.abstractmethod
    def places(
        self, net: network.Network, spec: specs.Spec, blocks: Blocks, x: types.Array
    ) -> tuple | None:
        """Makes places for clients that run one after the other; None: needs none.

        Args:
          net: the network.
          spec: as of `freeze`.
          blocks: as of a step, values do not matter.
          x: a batch, likewise.
        """

    @abc.abstractmethod
    def step(
        self,
        net: network.Network,
        spec: specs.Spec,
        blocks: Blocks,
        batch: Batch,
        own: Own,
    ) -> Stepped:
        """Computes loss and gradients of a batch, and what training it records."""

    @abc.abstractmethod
    def settle(self, new: tuple, old: tuple, own: Own) -> tuple:
        """Gives the state after a step: the old one where the client does not train."""

    @abc.abstractmethod
    def present(
        self, windows: types.Array, real: types.Array, num_blocks: int
    ) -> types.Array | None:
        """Tells which roles the clients of a chunk have; None: that is known.

        Args:
          windows: [W, 2], of the clients.
          real: [W], which of them are no padding.
          num_blocks: n.

        Returns:
          [3, n] bool: frozen before the window, trained, frozen after it.
        """

    @abc.abstractmethod
    def trains(self, windows: types.Array, num_blocks: int) -> types.Array:
        """Tells which blocks of the span clients of windows [W, 2] train, [W, ..]."""
