"""FedBN (Li et al., ICLR 2021): norms stay with the clients, with their statistics."""

from __future__ import annotations

import dataclasses

from fljax import policies
from fljax.algorithms import averaging, base
from fljax.engine import federation, initial
from fljax.updates import personal


@dataclasses.dataclass(frozen=True)
class Norms(personal.Personal):
    """Scale, bias and statistics of norms stay."""

    def stays(self, blocks):
        """Marks them."""
        return personal.norms(blocks)


def fedbn(fed: federation.Federation) -> base.Algorithm:
    """Makes FedBN.

    Args:
      fed: the clients and how they train.

    Returns:
      The algorithm.

    Raises:
      ValueError: the network has no norms.
    """
    rule, shapes = Norms(), initial.shapes(fed)
    if not any(params for params, _, _ in personal.sizes(rule, shapes)):
        raise ValueError(
            f"--network: expected one with norms beside fedbn, whose clients keep "
            f"them, got {fed.model.net.name!r}"
        )
    plan = policies.full(fed.model.net.num_blocks)
    return averaging.averaging(fed.having(personal=rule), plan, constrained=False)
