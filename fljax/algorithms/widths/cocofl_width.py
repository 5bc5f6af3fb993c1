"""Windows and widths in one table of plans: freezing, slicing, or both.

CoCoFL (Pfeiffer et al., TMLR 2023) fits a device by what it trains, HeteroFL (Diao et
al., ICLR 2021) by how wide its network is. Here a plan is a window of blocks of a
network of some width, and a device is given one of those that train most within its
budgets, whichever mix that is. No paper has this.
"""

from __future__ import annotations

import numpy as np

from fljax import plans, policies
from fljax.algorithms import averaging, base
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing
from fljax.plans import cost_model, costs
from fljax.policies import base as policy_base
from fljax.runtime import host_random, streams

LEVELS = "1/.75/.5/.25"


def table_of(fed: federation.Federation, levels: tuple[float, ...]) -> costs.CostTable:
    """Lists every window of the federation's table at every level.

    What windows cost at level 1 is as the table has it; at another it is the table's
    cost times what the model says that the level does to it.
    """
    model, batch = fed.model, fed.training.batch_size
    table = model.table
    by_width = {1.0: model.counts} | {level: model.at(level)[1] for level in levels}

    def modeled(level: float) -> costs.CostTable:
        at = [plan.at_width(level) for plan in table.listed]
        return cost_model.of_plans(at, by_width, batch, model.device_class)

    whole, parts = modeled(1.0), [modeled(level) for level in levels]

    def cost(name: str) -> np.ndarray:
        known, basis = getattr(table, name), getattr(whole, name)
        return np.concatenate([known * getattr(part, name) / basis for part in parts])

    return costs.CostTable(
        num_blocks=table.num_blocks,
        listed=[plan for part in parts for plan in part.listed],
        time=cost("time"),
        upload=np.concatenate([part.upload for part in parts]),
        memory=cost("memory"),
        source=f"{table.source} at widths",
    )


def most_trained(
    table: costs.CostTable, bits: int = plans.DEFAULT_BITS, within: float = 0.8
) -> policies.Policy:
    """Draws one of a device's maximal plans that train about as much as any.

    Args:
      table: costs of the plans.
      bits: width of the codes in the frozen blocks.
      within: share of the most parameters that a plan may train, by their upload, that
        one has to train to be drawn.

    Returns:
      The policy.
    """

    def choose(round_key, ids, options):
        value = np.where(options, table.upload, 0.0)
        good = options & (value >= within * value.max(axis=1, keepdims=True))
        draw = host_random.uniforms(round_key, streams.CHOICE, ids, 1)[:, 0]
        return policy_base.pick(good, draw)

    return policy_base.from_rows(table, bits, choose)


def cocofl_width(
    fed: federation.Federation,
    levels: str = LEVELS,
    within: float = 0.8,
    rounding: str = "ceil",
) -> base.Algorithm:
    """Makes federated averaging over windows of networks of several widths.

    Args:
      fed: the clients and how they train.
      levels: shares of the channels; see `levels.levels_of`.
      within: as of `most_trained`.
      rounding: of numbers of channels, "ceil" or "floor".

    Returns:
      The algorithm.

    Raises:
      ValueError: an argument is out of bounds, the network cannot be cut, or no plan
        fits a tier's smallest budgets.
    """
    if not 0 <= within <= 1:
        raise ValueError(f"within: expected 0 to 1, got {within}")
    fed = kinds.cutting(fed, narrowing.Narrowing(), rounding)
    table = table_of(fed, kinds.levels_of(levels, fed))
    policies.check_feasible(table, fed.population.fleet)
    policy = most_trained(table, fed.training.spec.bits, within)
    return averaging.averaging(fed.having(table=table), policy)
