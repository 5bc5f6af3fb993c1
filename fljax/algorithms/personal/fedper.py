"""FedPer (Arivazhagan et al., 2019): each client has a head of its own.

The last blocks stay with the client; the body below them is averaged.
"""

from __future__ import annotations

import dataclasses

from fljax import policies
from fljax.algorithms import averaging, base, refusals
from fljax.engine import federation
from fljax.updates import personal


@dataclasses.dataclass(frozen=True)
class Head(personal.Personal):
    """The last blocks stay.

    Attributes:
      blocks: how many.
      first: epochs in which the head trains alone, before the body does; 0: both train
        together.
    """

    blocks: int = 1
    first: int = 0

    def __post_init__(self):
        if self.blocks < 1:
            raise ValueError(f"blocks: expected 1 or more, got {self.blocks}")
        if not 0 <= self.first <= 100_000:
            raise ValueError(f"first: expected 0 to 100000, got {self.first}")

    @property
    def alone(self):
        """Gives the epochs of the head."""
        return self.first

    def stays(self, blocks):
        """Marks the last blocks, with their statistics."""
        return personal.last(blocks, self.blocks)


def fedper(fed: federation.Federation, blocks: int = 1) -> base.Algorithm:
    """Makes FedPer.

    Args:
      fed: the clients and how they train.
      blocks: the last of the network, which stay with each client.

    Returns:
      The algorithm.

    Raises:
      ValueError: the network has no block below them.
    """
    refusals.body(fed, blocks, "fedper")
    plan = policies.full(fed.model.net.num_blocks)
    mine = fed.having(personal=Head(blocks))
    return averaging.averaging(mine, plan, constrained=False)
