"""Local training: nobody sends anything, every client has a network of its own.

The baseline that personal models must beat. Clients are drawn as in FedAvg, so that
each trains as often.
"""

from __future__ import annotations

import dataclasses

from fljax import policies
from fljax.algorithms import averaging, base, refusals
from fljax.engine import federation
from fljax.updates import personal


@dataclasses.dataclass(frozen=True)
class Everything(personal.Personal):
    """All of the network stays."""

    def stays(self, blocks):
        """Marks all."""
        return personal.everything(blocks)


def local(fed: federation.Federation) -> base.Algorithm:
    """Makes local training.

    Args:
      fed: the clients and how they train.

    Returns:
      The algorithm; nothing is sent either way.

    Raises:
      ValueError: it asks for what becomes of updates.
    """
    refusals.sends(fed, "local")
    plan = policies.full(fed.model.net.num_blocks)
    mine = fed.having(personal=Everything())
    return averaging.averaging(mine, plan, constrained=False)
