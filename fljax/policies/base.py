"""What a policy is, and what policies share.

Legend: N all clients, K clients of a round, P plans of the table, M budgets of a
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import plans, types
from fljax.devices import fleet
from fljax.plans import costs
from fljax.runtime import host_random

State = Any  # what a policy carries from round to round; () if nothing
RoundKey = types.Key | host_random.Key  # what `host_random.uniforms` takes


class When(NamedTuple):
    """A round in which the server goes by an old look at the devices.

    Attributes:
      round: its index.
      looked_at: that of the round of the last look.
    """

    round: int
    looked_at: int


class Seen(NamedTuple):
    """What the server sees of K devices as they work; NaN: nothing was heard.

    Attributes:
      rounds: [K] in which they began.
      speed: [K] float64, relative, if plans took what the table says.
      bandwidth: [K] float64 of the upload, relative.
    """

    rounds: np.ndarray
    speed: np.ndarray
    bandwidth: np.ndarray


class Observation(NamedTuple):
    """What a round reports of its K clients, in the order of the ids."""

    # [K] float64: share of the time allowed; above 1: too slow; NaN: nothing was heard
    time: np.ndarray
    # [K] float64: peak, share of the device's; above 1: ran out; NaN: nothing was heard
    memory: np.ndarray
    arrived: np.ndarray  # [K] bool: the update reached the server, which may refuse it
    # [K] float64 mean training losses; NaN: did not arrive, or was refused
    losses: np.ndarray | None
    seen: Seen | None = None  # None: the policy looks at nothing ahead


class Policy(NamedTuple):
    """Pure functions that choose the plans of a cohort; K clients a round.

    A client's plan depends on the state, the round key, its id and its budgets, not on
    who else is in the cohort or in which order.
    """

    # init() -> state: arrays of numpy, of the same shapes and dtypes in every round
    init: Callable[[], State]
    # assign(state, round_key, ids [K], budgets of [K]) -> K plans
    assign: Callable[[State, RoundKey, np.ndarray, types.Budgets], list[plans.Plan]]
    # observe(state, ids [K], plans, budgets of [K], observation) -> state
    observe: Callable[
        [State, np.ndarray, Sequence[plans.Plan], types.Budgets, Observation], State
    ]
    needs_losses: bool = False  # of observe: they make the host wait for the round
    # ahead(state, when, ids [K], budgets of the last look) -> those to plan with
    ahead: Callable[[State, When, np.ndarray, types.Budgets], types.Budgets] | None = (
        None
    )
    always: plans.Plan | None = None  # the one plan that everybody gets; None: others


class Setting(NamedTuple):
    """What policies are made from."""

    table: costs.CostTable
    bits: int  # default width of frozen codes
    num_clients: int  # N
    lowest: types.Budgets  # of scalars: the least of each kind in any client and round
    typical: types.Budgets  # of [M]: a sample over clients and rounds
    stale: bool = False  # whether there are rounds in which no device is looked at


def check_feasible(table: costs.CostTable, devices: fleet.Fleet) -> None:
    """Raise before any training if a tier may draw budgets into which nothing fits.

    Of a fleet with a profile for every device nothing is expected: a device that can
    do less than the smallest window asks for is given that one, and is late, or drops
    out if it is memory that it lacks (`too_small`).

    Args:
      table: costs of the windows.
      devices: the fleet, each tier looked at with its lowest limits.

    Raises:
      ValueError: names the tier, its budgets, the nearest window and what it needs.
    """
    if not devices.tiered:
        return
    lowest = devices.profile.limits[..., 0]
    names = [f"tier {name!r} at its lowest" for name in devices.names]
    feasible(table, types.Budgets(*lowest.T), names.__getitem__)


def too_small(table: costs.CostTable, devices: fleet.Fleet) -> np.ndarray:
    """Tell which clients never have the memory that the smallest window needs.

    Args:
      table: costs of the windows.
      devices: the fleet of N clients.

    Returns:
      [N] bool.
    """
    least = np.minimum(table.memory, 1.0).min()
    return (devices.profile.limits[:, 2, 1] < least)[devices.row]


def feasible(
    table: costs.CostTable, budgets: types.Budgets, name: Callable[[int], str]
) -> np.ndarray:
    """Tell which windows fit, and insist on one for each client.

    Args:
      table: costs of P windows.
      budgets: of [K].
      name: what to call client k in the message.

    Returns:
      [K, P] bool.

    Raises:
      ValueError: names the first client that nothing fits, and what it lacks.
    """
    fits = costs.feasible(table, *budgets)
    stuck = np.flatnonzero(~fits.any(axis=1))
    if stuck.size:
        k = int(stuck[0])
        missing = costs.nearest_fit(table, *(float(limit[k]) for limit in budgets))
        raise ValueError(f"{name(k)}: {missing}")
    return fits


def maximal(
    table: costs.CostTable, ids: np.ndarray, budgets: types.Budgets
) -> np.ndarray:
    """Tell which windows are maximal for each client, [K, P]; raise as `feasible`."""
    fits = feasible(table, budgets, lambda k: f"client {ids[k]}")
    return costs.maximal(table.covers, fits)


def pick(options: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Pick one option of each client.

    Args:
      options: [K, P] bool, at least one a row.
      draw: [K] uniform in [0, 1).

    Returns:
      [K] int64: columns, each option of a row equally likely.
    """
    rank = np.floor(draw * options.sum(axis=1))  # which of the client's windows
    return np.argmax(np.cumsum(options, axis=1) > rank[:, None], axis=1)


def unmoved(state: State, *_: Any) -> State:
    """Observe nothing: of a policy that remembers nothing."""
    return state


def stateless(
    assign: Callable[[RoundKey, np.ndarray, types.Budgets], list[plans.Plan]],
) -> Policy:
    """Make a policy that remembers nothing out of assign(round_key, ids, budgets)."""
    return Policy(
        init=lambda: (),
        assign=lambda state, round_key, ids, budgets: assign(round_key, ids, budgets),
        observe=unmoved,
    )


def from_rows(
    table: costs.CostTable,
    bits: int,
    choose: Callable[[RoundKey, np.ndarray, np.ndarray], np.ndarray],
) -> Policy:
    """Make a policy that remembers nothing out of a choice among maximal plans.

    Args:
      table: costs of P plans.
      bits: width of the codes in the frozen blocks.
      choose: (round_key, ids [K], options [K, P]) -> rows [K].

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.
    """
    all_plans = table.at(bits)

    def assign(round_key, ids, budgets):
        rows = choose(round_key, ids, maximal(table, ids, budgets))
        return [all_plans[row] for row in rows]

    return stateless(assign)
