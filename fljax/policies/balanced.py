"""A policy under which every block takes part as evenly as the budgets allow.

CoCoFL (arXiv 2203.05468) draws uniformly among a client's maximal windows, so a block's
expected participation is whatever the table and the tiers happen to make it. Here the
draw is solved for. With p_b the share of clients that train block b, maximize the
alpha-fair utility (Mo and Walrand, IEEE/ACM Trans. Networking 2000)

    U(p) = sum_b p_b^(1 - alpha) / (1 - alpha),    dU / dp_b = p_b^-alpha,

over the draws that clients can make; it tends to max-min fairness as alpha grows. The
set of reachable p is convex, and the best answer to prices p^-alpha is a choice that
every client makes alone: its maximal window of the highest sum of prices. So the method
of Frank and Wolfe (1956) solves it, and its iterates are the policy: a client draws an
iteration by its weight and answers its prices.

Legend: K clients, P windows, n blocks, T iterations, F different sets of feasible
windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax import plans, types
from fljax.plans import costs, typical
from fljax.policies import base
from fljax.runtime import host_random, streams

# At 16, MobileNetV2 under the paper's tiers gains in the least participation, the
# spread and the mean; less leaves the middle blocks far ahead, more costs mean.
FAIRNESS = 16.0
ITERATIONS = 500
# Price sums this close, relatively, are ties: they differ by the order of summation.
_TIE = 1e-9
_STEEPEST = 1000.0  # beyond it prices overflow, and all but the scarcest are 0 anyway


class Mixture(NamedTuple):
    """What clients draw from."""

    scores: np.ndarray  # [T, P] float64: every window's sum of prices
    weights: np.ndarray  # [T] float64: of the iterations, sum 1
    participation: np.ndarray  # [n] float64: expected share of clients in each block


def balanced(
    table: costs.CostTable,
    budgets: types.Budgets,
    bits: int = plans.DEFAULT_BITS,
    fairness: float = FAIRNESS,
) -> base.Policy:
    """Draw maximal windows so that blocks take part as evenly as the budgets allow.

    Participation of MobileNetV2's blocks with the published table and the paper's
    tiers: uniform draws give blocks 0 to 19

        .40 .33 .33 .33 .40 .47 .47 .53 .54 .60 .61 .65 .56 .59 .61 .64 .67 .59 .47 .46

    and this policy

        .47 .33 .33 .33 .51 .52 .52 .52 .54 .54 .60 .62 .54 .57 .61 .63 .66 .58 .55 .55

    No window with blocks 1 to 3 fits any but strong devices, a third of all.

    Args:
      table: costs of the windows that may be chosen.
      budgets: [M] over clients and rounds, to solve for.
      bits: width of the codes in the frozen blocks.
      fairness: alpha above: 0 maximizes the mean, infinity the least participation.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.

    Raises:
      ValueError: nothing fits any of the budgets, or fairness is negative.
    """
    mixture = solve(table, budgets, fairness)
    last_below = np.cumsum(mixture.weights)[:-1]

    def choose(round_key, ids, options):
        draws = host_random.uniforms(round_key, streams.MIXTURE, ids, 2)
        iteration = np.searchsorted(last_below, draws[:, 0], side="right")
        answers = _best(options, mixture.scores[iteration])
        return base.pick(answers, draws[:, 1])

    return base.from_rows(table, bits, choose)


def solve(
    table: costs.CostTable,
    budgets: types.Budgets,
    fairness: float = FAIRNESS,
    iterations: int = ITERATIONS,
) -> Mixture:
    """Find the draw of the highest utility.

    Args:
      table: costs of P windows.
      budgets: [M]; those that nothing fits are left out.
      fairness: alpha of the utility.
      iterations: T of Frank and Wolfe, with steps 2 / (t + 3).

    Returns:
      What clients draw from.

    Raises:
      ValueError: nothing fits any of the budgets, or fairness is negative.
    """
    if not fairness >= 0:
        raise ValueError(f"fairness: expected a number of at least 0, got {fairness}")
    fits, shares = typical.feasible_sets(table, budgets)
    options = costs.maximal(table.covers, fits)
    trained = trains(table)
    # Uniform draws: every block that anybody can train starts and stays above 0.
    part = shares @ typical.evenly(options) @ trained
    reached = part > 0
    scores = []
    for t in range(iterations):
        least = part[reached].min()
        # Relative to the least, or alpha would overflow. What nobody here can train
        # counts as scarcer than all else: somebody outside the sample might.
        prices = (np.where(reached, part, least / 2) / least) ** -min(
            fairness, _STEEPEST
        )
        scores.append(trained @ prices)
        answer = shares @ typical.evenly(_best(options, scores[-1])) @ trained
        part = part + 2 / (t + 3) * (answer - part)
    # The steps leave iteration t with this weight, and 2 / (T + 1) (T + 2) with the
    # uniform start, which is dropped.
    weights = np.arange(2.0, iterations + 2)
    return Mixture(np.stack(scores), weights / weights.sum(), part)


def trains(table: costs.CostTable) -> np.ndarray:
    """Tell which blocks each window trains: [P, n] float64, 1 or 0."""
    first, last = table.windows.T[..., None]
    blocks = np.arange(table.num_blocks)
    return ((first <= blocks) & (blocks <= last)).astype(np.float64)


def _best(options: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Keep the options [K, P] of the highest score, of [P] or [K, P] above 0."""
    values = np.where(options, scores, 0.0)
    return options & (values >= values.max(axis=1, keepdims=True) * (1 - _TIE))
