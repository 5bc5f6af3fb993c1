"""CoCoFL (Pfeiffer, Rapp, Khalili, Henkel, TMLR 2023): freezing and quantisation.

Each client trains the window of blocks that its budgets of the round allow, drawn at
random from the maximal ones; the rest is frozen and runs in fixed point.
"""

from __future__ import annotations

from fljax import federation, policies
from fljax.algorithms import averaging


def cocofl(fed: federation.Federation, bits: int = 8) -> averaging.Algorithm:
    """Makes CoCoFL.

    Args:
      fed: the clients and how they train.
      bits: width of the codes of frozen blocks.

    Returns:
      The algorithm.

    Raises:
      ValueError: no window fits a tier's smallest budgets.
    """
    policies.check_feasible(fed.table, fed.fleet)
    return averaging.averaging(fed, policies.random_maximal(fed.table, bits))
