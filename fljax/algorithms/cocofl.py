"""CoCoFL (Pfeiffer, Rapp, Khalili, Henkel, TMLR 2023): freezing and quantization.

Each client trains the window of blocks that its budgets of the round allow (in the
paper drawn at random from the maximal ones); the rest is frozen, in fixed point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fljax import policies, types
from fljax.algorithms import averaging, base
from fljax.devices import fleet
from fljax.engine import federation
from fljax.plans import costs

Make = Callable[[policies.Setting], policies.Policy]


def setting(fed: federation.Federation, bits: int = 8) -> policies.Setting:
    """Gives what policies are made from.

    Args:
      fed: the clients and their devices.
      bits: width of the codes of frozen blocks.

    Returns:
      The setting; budgets into which nothing fits are raised to the least that does, as
      they are in a round.
    """
    lowest = (np.reshape(limit, 1) for limit in fleet.lowest(fed.population.fleet))
    typical = fleet.typical(fed.population.fleet, fed.seed)
    return policies.Setting(
        fed.model.table,
        bits,
        len(fed.population.shards.counts),
        types.Budgets(*(limit[0] for limit in costs.floored(fed.model.table, *lowest))),
        types.Budgets(*costs.floored(fed.model.table, *typical)),
        fed.population.fleet.changes.refresh > 1,
    )


def cocofl(
    fed: federation.Federation,
    bits: int = 8,
    policy: Make = policies.BY_NAME["random_maximal"],
) -> base.Algorithm:
    """Makes CoCoFL.

    Args:
      fed: the clients and how they train.
      bits: width of the codes of frozen blocks.
      policy: which plan for which client; one of `policies.BY_NAME`, or for one's own
        function `lambda setting: policies.from_function(mine)`.

    Returns:
      The algorithm.

    Raises:
      ValueError: no window fits a tier's smallest budgets.
    """
    policies.check_feasible(fed.model.table, fed.population.fleet)
    return averaging.averaging(fed, policy(setting(fed, bits)))
