"""Narrowing: which channels the network of a client keeps, and how it trains it.

A client whose device is too small for the network trains one of fewer channels, cut
out of it (`slicing`). Methods differ in which channels these are, in a round or for a
client: the leading ones (HeteroFL, Diao et al., ICLR 2021), a window that rolls
(FedRolex, Alam et al., NeurIPS 2022), any (Federated Dropout, Caldas et al., 2018).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from fljax.nn import slicing
from fljax.runtime import streams

# Instead of a client's number, where all clients of a round keep the same channels.
NOBODY = 2**32 - 1


class Channels(abc.ABC):
    """Which channels are kept; frozen dataclasses, pure functions.

    Attributes:
      each: whether every client keeps its own; else all of a round and width the same.
      roams: whether all channels get their turn, on devices of any width.
    """

    each = False
    roams: ClassVar[bool] = True

    @abc.abstractmethod
    def choose(self, seed: int, index: int, client: int) -> slicing.Choose:
        """Says which channels are kept.

        Args:
          seed: of the experiment.
          index: of the round that a client begins with.
          client: its number, or NOBODY unless `each`.

        Returns:
          (name of a layer, its channels, how many) -> their numbers, in the order that
          the client has them in.
        """


@dataclasses.dataclass(frozen=True)
class Leading(Channels):
    """The first ones, in every round (HeteroFL, FjORD)."""

    roams: ClassVar[bool] = False

    def choose(self, seed, index, client):
        """Takes the first ones."""
        return slicing.leading


@dataclasses.dataclass(frozen=True)
class Rolling(Channels):
    """A window that moves by one channel a round and wraps (FedRolex)."""

    def choose(self, seed, index, client):
        """Takes the window of the round."""
        return slicing.rolling(index)


@dataclasses.dataclass(frozen=True)
class Random(Channels):
    """Any, drawn anew in every round (Federated Dropout).

    Attributes:
      each: every client draws its own.
    """

    each: bool = False

    def choose(self, seed, index, client):
        """Draws."""
        return slicing.random(streams.generator(seed, streams.CHANNELS, index, client))


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """How clients of narrow networks train.

    Attributes:
      channels: that they keep.
      scaler: what a product gives is divided by the width while it trains, so that its
        size does not depend on it (HeteroFL's Scaler).
      masked: logits of classes that a client has no example of are 0 while it trains,
        and it sends nothing of their rows of the classifier (HeteroFL's masked loss).
      ordered: every batch is trained at a level that is drawn, up to the client's own
        (FjORD's ordered dropout).
      distill: and what the client's own level gives is distilled into that one.
    """

    channels: Channels = Leading()
    scaler: bool = False
    masked: bool = False
    ordered: bool = False
    distill: bool = False
