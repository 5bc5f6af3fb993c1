"""Policies: which plan each client of a cohort gets.

CoCoFL (arXiv 2203.05468): a device filters the table of windows by its budgets of the
round, keeps the maximal ones and picks one of them at random. The others here pick
otherwise; `balanced` and `learning` hold those that solve or learn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from fljax import plans, types
from fljax.plans import costs
from fljax.policies import balanced, base, forecast, learning
from fljax.runtime import host_random, streams

Observation = base.Observation
Policy = base.Policy
Setting = base.Setting
check_feasible = base.check_feasible
too_small = base.too_small

SLOW = 0.1  # rate of corrections of clients whose speeds are forecast
FEW = 2  # draws that the clients of a round share


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
        draw = host_random.uniforms(round_key, streams.CHOICE, ids, 1)[:, 0]
        return base.pick(options, draw)

    return base.from_rows(table, bits, choose)


def random_shared(
    table: costs.CostTable, bits: int = plans.DEFAULT_BITS, draws: int = FEW
) -> Policy:
    """Choose as CoCoFL does, but let the clients of a round share a few draws.

    A draw puts all windows into a random order, and a client takes the first one that
    is among its maximal ones (consistent sampling: Manasse, McSherry, Talwar, 2010).
    The first of a random order is any of them with the same chance, so that each client
    trains each block as often as under `random_maximal`, and of two clients with the
    same draw those of the same budgets take the same window, those of like budgets
    mostly. A round then has a handful of windows: fewer programs, or chunks of clients
    side by side in which blocks have one role.

    Args:
      table: costs of the windows that may be chosen.
      bits: width of the codes in the frozen blocks.
      draws: of a round; each client has one of them by chance. Few make rounds uneven:
        what no draw has is trained by nobody of like budgets.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.
    """

    def choose(round_key, ids, options):
        windows = options.shape[1]
        numbers = np.arange(draws)
        places = host_random.uniforms(round_key, streams.SHARED, numbers, windows)
        mine = host_random.uniforms(round_key, streams.CHOICE, ids, 1)[:, 0]
        own = places[(mine * draws).astype(int)]
        return np.argmin(np.where(options, own, np.inf), axis=1)

    return base.from_rows(table, bits, choose)


def largest(
    table: costs.CostTable,
    bits: int = plans.DEFAULT_BITS,
    by: Literal["upload", "time"] = "upload",
) -> Policy:
    """Choose the feasible window of the greatest cost: no randomness, less variety.

    Args:
      table: costs of the windows that may be chosen.
      bits: width of the codes in the frozen blocks.
      by: which cost: who can send more, or work more, does. Ties go to the first row.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.
    """
    sizes = getattr(table, by)

    def choose(round_key, ids, options):
        del round_key, ids  # the same window in every round
        return np.argmax(np.where(options, sizes, 0.0), axis=1)

    return base.from_rows(table, bits, choose)


def uniform(
    table: costs.CostTable, lowest: types.Budgets, bits: int = plans.DEFAULT_BITS
) -> Policy:
    """Give everybody one plan: the window of most upload that fits the lowest budgets.

    By upload, which is in proportion to the parameters trained: the blocks outside the
    window stay as they were drawn for ever, and what matters then is how much of the
    network learns, not how long a step takes. Upload is counted, too, not measured.

    Args:
      table: costs of the windows that may be chosen.
      lowest: scalars, of each kind the least that any client may get in any round.
      bits: width of the codes in the frozen blocks.

    Returns:
      The policy; it does not look at budgets again.

    Raises:
      ValueError: nothing fits the lowest budgets.
    """
    alone = types.Budgets(*(np.reshape(limit, 1) for limit in lowest))
    (fits,) = base.feasible(table, alone, lambda k: "the lowest budgets")
    row = int(np.argmax(np.where(fits, table.upload, 0.0)))
    plan = table.listed[row].at(bits)
    return base.stateless(lambda round_key, ids, budgets: [plan] * len(ids))


def full(num_blocks: int) -> Policy:
    """Train everything everywhere, as if there were no budgets (FedAvg).

    Args:
      num_blocks: n, the blocks of the network.

    Returns:
      The policy.
    """
    plan = plans.full(num_blocks)
    made = base.stateless(lambda round_key, ids, budgets: [plan] * len(ids))
    return made._replace(always=plan)


def from_function(
    assign: Callable[[base.RoundKey, np.ndarray, types.Budgets], list[plans.Plan]],
) -> Policy:
    """Make a policy of a function of one's own, as in a notebook.

    >>> def late_half(round_key, ids, budgets):
    ...     return [
    ...         plans.Plan(0, 4) if time >= 1 else plans.Plan(3, 4)
    ...         for time in budgets.time
    ...     ]
    >>> policy = from_function(late_half)
    >>> limits = np.array([1.0, 0.5])
    >>> budgets = types.Budgets(limits, limits, limits)
    >>> [str(p) for p in policy.assign((), None, np.arange(2), budgets)]
    ['0-4', '3-4']

    Args:
      assign: (round_key, ids [K], budgets of [K]) -> K plans. A run is reproducible if
        a client's plan depends on these alone; `host_random.uniforms` draws by round
        and client.

    Returns:
      The policy; `assign` raises ValueError unless it gets one plan a client.
    """

    def checked(round_key, ids, budgets):
        chosen = list(assign(round_key, ids, budgets))
        if len(chosen) != len(ids) or not all(
            isinstance(plan, plans.Plan) for plan in chosen
        ):
            kinds = sorted({type(plan).__name__ for plan in chosen})
            raise ValueError(
                f"{getattr(assign, '__name__', assign)}: expected {len(ids)} plans, "
                f"one a client, got {len(chosen)} of {', '.join(kinds) or 'none'}"
            )
        return chosen

    return base.stateless(checked)


def _online(given: Setting) -> Policy:
    """Makes `online`, which looks ahead where the last look may be old."""
    if not given.stale:
        return learning.online(given.table, given.num_clients, given.bits)
    # What is left for its own corrections is the same in all rounds.
    slow = learning.online(given.table, given.num_clients, given.bits, rate=SLOW)
    return forecast.looking_ahead(slow, given.num_clients)


# What a user can name; each is made from the setting of a run.
BY_NAME: dict[str, Callable[[Setting], Policy]] = {
    "random_maximal": lambda given: random_maximal(given.table, given.bits),
    "random_shared": lambda given: random_shared(given.table, given.bits),
    "uniform": lambda given: uniform(given.table, given.lowest, given.bits),
    "largest": lambda given: largest(given.table, given.bits),
    "largest_compute": lambda given: largest(given.table, given.bits, by="time"),
    "balanced": lambda given: balanced.balanced(given.table, given.typical, given.bits),
    "round_robin": lambda given: learning.round_robin(
        given.table, given.num_clients, given.bits
    ),
    "online": _online,
    "adaptive_bits": lambda given: learning.adaptive_bits(given.table, given.bits),
}
