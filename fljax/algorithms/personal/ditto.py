"""Ditto (Li et al., ICML 2021): a network of one's own, held near the server's.

The server's is plain FedAvg. Beside it a client k trains its v_k in every round that it
takes part in, by steps along grad F_k(v) + lambda (v - x), x being what the server sent
(Algorithm 1). v_k begins as the first network.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from fljax import policies
from fljax.algorithms import averaging, base, fedprox
from fljax.engine import federation
from fljax.updates import personal


@dataclasses.dataclass(frozen=True)
class Beside(personal.Personal):
    """A second network of the client's.

    Attributes:
      pull: lambda, of its distance to the server's.
      own_epochs: that it trains in a round; 0: as many as the server's.
    """

    pull: float = 0.1
    own_epochs: int = 0

    beside: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.pull < float("inf"):
            raise ValueError(f"pull: expected 0 or more, got {self.pull}")
        if not 0 <= self.own_epochs <= 100_000:
            raise ValueError(f"epochs: expected 0 to 100000, got {self.own_epochs}")

    def stays(self, blocks):
        """Marks all."""
        return personal.everything(blocks)

    def epochs(self, local_epochs):
        """Gives the epochs of its own."""
        return self.own_epochs or local_epochs

    def transform(self, params):
        """Pulls towards what the server sent."""
        pull = fedprox.Proximal(self.pull).transform(None, None)
        return pull._replace(init=lambda _: params)


def ditto(
    fed: federation.Federation, pull: float = 0.1, epochs: int = 0
) -> base.Algorithm:
    """Makes Ditto.

    Args:
      fed: the clients and how they train.
      pull: lambda; 0: the client's own network is trained by it alone.
      epochs: of the client's own network in a round; 0: as many as of the server's.

    Returns:
      The algorithm.
    """
    plan = policies.full(fed.model.net.num_blocks)
    mine = fed.having(personal=Beside(pull, epochs))
    return averaging.averaging(mine, plan, constrained=False)
