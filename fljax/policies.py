"""Policies: which plan each client of a cohort gets.

CoCoFL (arXiv 2203.05468): a device filters the table of windows by its budgets of the
round, keeps the maximal ones and picks one of them at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import costs, devices, plans, types

State = Any  # what a policy carries from round to round; () if nothing

CHOICE_TAG = 0xFFFF0002  # see devices.BUDGET_TAG


class Policy(NamedTuple):
    """Pure functions that choose the plans of a cohort; K clients a round."""

    # init() -> state
    init: Callable[[], State]
    # assign(state, round_key, ids [K], budgets of [K]) -> K plans
    assign: Callable[[State, types.Key, np.ndarray, types.Budgets], list[plans.Plan]]
    # observe(state, ids [K], plans, metrics) -> state, once the round is over
    observe: Callable[[State, np.ndarray, Sequence[plans.Plan], Any], State]


def random_maximal(table: costs.CostTable, bits: int = plans.DEFAULT_BITS) -> Policy:
    """Choose uniformly among a client's maximal feasible windows, as CoCoFL does.

    A client's choice depends on the round key, its id and its budgets only, not on who
    else is in the cohort or in which order.

    Args:
      table: costs of the windows that may be chosen.
      bits: width of the codes in the frozen blocks.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.
    """

    def choose(round_key, ids, options):
        draw = devices.uniforms(round_key, CHOICE_TAG, ids, 1)[:, 0]
        rank = np.floor(draw * options.sum(axis=1))  # which of the client's windows
        return np.argmax(np.cumsum(options, axis=1) > rank[:, None], axis=1)

    return _from_table(table, bits, choose)


def largest(table: costs.CostTable, bits: int = plans.DEFAULT_BITS) -> Policy:
    """Choose the feasible window that uploads the most: no randomness, less variety.

    Args:
      table: costs of the windows that may be chosen.
      bits: width of the codes in the frozen blocks.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.
    """

    def choose(round_key, ids, options):
        del round_key, ids  # the same window in every round
        return np.argmax(np.where(options, table.upload, 0.0), axis=1)

    return _from_table(table, bits, choose)


def full(num_blocks: int) -> Policy:
    """Train everything everywhere, as if there were no budgets (FedAvg).

    Args:
      num_blocks: n, the blocks of the network.

    Returns:
      The policy.
    """
    plan = plans.full(num_blocks)
    return _stateless(lambda round_key, ids, budgets: [plan] * len(ids))


def check_feasible(table: costs.CostTable, tiers: Sequence[devices.Tier]) -> None:
    """Raise before any training if a tier may draw budgets into which nothing fits.

    Args:
      table: costs of the windows.
      tiers: the tiers, each looked at with its lowest limits.

    Raises:
      ValueError: names the tier, its budgets, the nearest window and what it needs.
    """
    lowest = np.stack([devices.limits(tier)[:, 0] for tier in tiers])
    names = [f"tier {tier.name!r} at its lowest" for tier in tiers]
    _feasible(table, types.Budgets(*lowest.T), names.__getitem__)


def lowered(
    table: costs.CostTable, budgets: types.Budgets, factors: np.ndarray
) -> types.Budgets:
    """Lower budgets, though never below the lightest window that fits them.

    Args:
      table: costs of the windows.
      budgets: of [K].
      factors: [K] of each client's three budgets, in (0, 1]; 1 keeps every bit.

    Returns:
      Budgets of [K], into which a window fits where one fitted before.
    """
    before = np.stack(budgets)  # [3, K]
    needs = np.minimum([table.time, table.upload, table.memory], 1.0)  # [3, P]
    load = np.max(needs[:, None, :] / before[:, :, None], axis=0)  # fits: at most 1
    lightest = needs[:, np.argmin(load, axis=1)]
    floor = np.maximum(before * np.asarray(factors, np.float64), lightest)
    return types.Budgets(*np.minimum(floor, before))


def _stateless(assign: Callable[..., list[plans.Plan]]) -> Policy:
    """Make a policy that remembers nothing."""
    return Policy(
        init=lambda: (),
        assign=lambda state, round_key, ids, budgets: assign(round_key, ids, budgets),
        observe=lambda state, ids, plans, metrics: state,
    )


def _from_table(
    table: costs.CostTable, bits: int, choose: Callable[..., np.ndarray]
) -> Policy:
    """Make a policy out of choose(round_key, ids, options [K, P]) -> rows [K]."""
    all_plans = [plans.Plan(a, b, bits) for a, b in table.windows.tolist()]

    def assign(round_key, ids, budgets):
        fits = _feasible(table, budgets, lambda k: f"client {ids[k]}")
        rows = choose(round_key, ids, costs.maximal(table.windows, fits))
        return [all_plans[row] for row in rows]

    return _stateless(assign)


def _feasible(
    table: costs.CostTable, budgets: types.Budgets, name: Callable[[int], str]
) -> np.ndarray:
    """Return feasible [K, P]; raise for the first client that nothing fits."""
    fits = costs.feasible(table, *budgets)
    stuck = np.flatnonzero(~fits.any(axis=1))
    if stuck.size:
        k = int(stuck[0])
        missing = costs.nearest_fit(table, *(float(limit[k]) for limit in budgets))
        raise ValueError(f"{name(k)}: {missing}")
    return fits
