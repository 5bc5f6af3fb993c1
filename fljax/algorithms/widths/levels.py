"""Levels: the widths of network that devices train, and who gets which.

Every client has the network at a level, a share of its channels, and trains all of it.
The server gives each the largest level that fits its budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fljax import plans, policies
from fljax.algorithms import averaging, base
from fljax.devices import fleet
from fljax.engine import federation
from fljax.nn import narrowing, slicing
from fljax.plans import cost_model, costs
from fljax.policies import base as policy_base
from fljax.runtime import host_random, streams

HALVES = "1/.5/.25/.125/.0625"  # of HeteroFL and FedRolex
FIT = "fit"
_GRID = 100  # levels that FIT chooses from


def levels_of(text: str, fed: federation.Federation) -> tuple[float, ...]:
    """Reads levels such as `1/.5/.25`, or finds those that fit the tiers.

    Args:
      text: shares of the channels, or FIT: of each tier, or class of
        `--tiers=auto`, the largest hundredth that fits its lowest budgets.
      fed: the clients and their devices.

    Returns:
      The levels, the largest first.

    Raises:
      ValueError: one line without the flag.
    """
    if text == FIT:
        return _fitting(fed)
    try:
        levels = {float(level) for level in text.split("/")}
    except ValueError:
        levels = {0.0}
    if not all(0 < level <= 1 for level in levels):
        raise ValueError(
            f"levels: expected shares of the channels such as {HALVES}, or {FIT}, got "
            f"{text!r}"
        )
    return tuple(sorted(levels, reverse=True))


def _fitting(fed: federation.Federation) -> tuple[float, ...]:
    """Finds the largest level that fits the lowest budgets of each tier or class."""
    chosen = set()
    for limits in _lowest(fed):
        low, high = 0, _GRID  # the largest that fits is among them, or nothing fits
        while low < high:
            middle = (low + high + 1) // 2
            table = table_of(fed, (middle / _GRID,))
            if costs.feasible(table, *limits).all():
                low = middle
            else:
                high = middle - 1
        chosen.add(max(low, 1) / _GRID)
    return tuple(sorted(chosen, reverse=True))


def _lowest(fed: federation.Federation) -> np.ndarray:
    """Gives the least budgets of each tier, or of each class at the first look [T, 3].

    Raises:
      ValueError: there are neither.
    """
    devices = fed.population.fleet
    if devices.classes is not None:
        measured = fleet.believed(devices, fed.seed, 0, np.arange(len(devices.row)))
        labels = fleet.sorted_at(devices, fed.seed, 0)
        every = np.stack(measured, axis=1)
        return np.array([every[labels == k].min(axis=0) for k in np.unique(labels)])
    if devices.tiered:
        return devices.profile.limits[..., 0]
    raise ValueError(
        f"levels: expected shares of the channels such as {HALVES}, got {FIT!r} for a "
        f"fleet without tiers; --tiers=auto sorts one into classes"
    )


def table_of(fed: federation.Federation, levels: Sequence[float]) -> costs.CostTable:
    """Lists the network at each level, with what training all of it costs.

    Costs are modeled from the counts of the narrower networks, upload is exact.
    """
    model = fed.model
    everything = plans.full(model.net.num_blocks)
    listed = [everything.at_width(level) for level in levels]
    by_width = {1.0: model.counts} | {level: model.at(level)[1] for level in levels}
    batch = fed.training.batch_size
    return cost_model.of_plans(listed, by_width, batch, model.device_class)


def largest(table: costs.CostTable, dynamic: bool = False) -> policies.Policy:
    """Gives each client the largest level that fits, or in every round any that does.

    Args:
      table: of `table_of`.
      dynamic: a level is drawn in every round, uniformly among those that fit.

    Returns:
      The policy.
    """
    widths = np.array([plan.width for plan in table.listed])

    def assign(round_key, ids, budgets):
        fits = policy_base.feasible(table, budgets, lambda k: f"client {ids[k]}")
        if dynamic:
            draw = host_random.uniforms(round_key, streams.CHOICE, ids, 1)[:, 0]
            rows = policy_base.pick(fits, draw)
        else:
            rows = np.argmax(np.where(fits, widths, 0.0), axis=1)
        return [table.listed[row] for row in rows]

    return policy_base.stateless(assign)


def cutting(
    fed: federation.Federation, rule: narrowing.Narrowing, rounding: str
) -> federation.Federation:
    """Gives the federation whose plans may be of narrower networks.

    Raises:
      ValueError: the rounding is none, or the network cannot be cut.
    """
    if rounding not in ("ceil", "floor"):
        raise ValueError(f"rounding: expected ceil or floor, got {rounding!r}")
    slicing.check(fed.model.net)
    return fed.having(rounding=rounding, narrowing=rule)


def narrow(
    fed: federation.Federation,
    levels: str,
    rule: narrowing.Narrowing,
    dynamic: bool = False,
    rounding: str = "ceil",
) -> base.Algorithm:
    """Makes an algorithm whose clients train the network at a level.

    Args:
      fed: the clients and how they train.
      levels: as of `levels_of`.
      rule: how narrow networks train.
      dynamic: as of `largest`.
      rounding: of numbers of channels, "ceil" or "floor".

    Returns:
      The algorithm.

    Raises:
      ValueError: levels or rounding are none, the network cannot be cut, or no level
        fits a tier's smallest budgets.
    """
    fed = cutting(fed, rule, rounding)
    table = table_of(fed, levels_of(levels, fed))
    policies.check_feasible(table, fed.population.fleet)
    return averaging.averaging(fed.having(table=table), largest(table, dynamic))
