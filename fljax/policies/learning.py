"""Policies that remember: what plans really took, who did what, how training goes.

Legend: N all clients, K clients of a round, P plans of the table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax import plans
from fljax.plans import costs
from fljax.policies import base
from fljax.runtime import host_random, streams

WINDOW_RATE = 0.1  # of the windows' corrections in `online`
AGREEMENT = 10.0  # clients of a round that move a window's correction half as far
ROUNDING = 1e-6  # relative; corrections are float32


class OnlineState(NamedTuple):
    """What `online` learned: logarithms of factors on the table, 0 at the start."""

    windows: np.ndarray  # [2, P] float32: of time and memory of each window
    clients: np.ndarray  # [2, N] float32: of time and memory of each client


def online(
    table: costs.CostTable,
    num_clients: int,
    bits: int = plans.DEFAULT_BITS,
    rate: float = 0.5,
    explore: float = 0.05,
    margin: float = 1.5,
) -> base.Policy:
    """Learn from rounds what plans really cost, and avoid those that do not fit.

    Time and memory of client k under window p are predicted as cost_p * exp(w_p + d_k),
    with the table's cost, a correction w of the window and d of the client, each kind
    apart. After a round, with e = log(observed / predicted),

        d_k += rate * e_k
        w_p += WINDOW_RATE * sum of e over the clients of p / (their number + AGREEMENT)

    which is exponential averaging. The client's correction moves faster, so one odd
    device hardly changes what others are given; a window's moves where many agree. Of
    a device that takes f times what is predicted, the part f^(0.5^r) is left to learn
    after r of its rounds at rate 0.5: 19 % after 2 for f = 2, 4 % after 4.

    A client picks one of the maximal windows among those predicted to fit, uniformly.
    With probability `explore` it takes predictions to be `margin` times too high: that
    is how windows come back whose cost was overestimated. Upload is known, not learned.
    Where nothing is predicted to fit, a client takes the window of the smallest load,
    its largest predicted share of a limit.

    Args:
      table: what is believed at the start.
      num_clients: N.
      bits: width of the codes in the frozen blocks.
      rate: of the clients' corrections, in (0, 1].
      explore: probability of a bold choice, in [0, 1].
      margin: by how much it is bold, at least 1.

    Returns:
      The policy. A kind that an observation does not know, not finite or not above 0,
      teaches nothing.

    Raises:
      ValueError: an argument is out of its range.
    """
    if not (0 < rate <= 1 and 0 <= explore <= 1 and margin >= 1):
        raise ValueError(
            "online: expected rate in (0, 1], explore in [0, 1] and margin of at least "
            f"1, got {rate}, {explore} and {margin}"
        )
    # What a table shows above 1 is noise, see costs.feasible.
    believed = np.minimum([table.time, table.memory], 1.0)  # [2, P]
    all_plans = table.at(bits)

    def init():
        return OnlineState(
            np.zeros((2, len(all_plans)), np.float32),
            np.zeros((2, num_clients), np.float32),
        )

    def assign(state, round_key, ids, budgets):
        limits = np.stack([budgets.time, budgets.memory])[..., None]
        needs = _predicted(state, believed, ids)
        learned = (needs / limits).max(axis=0) / (1 + ROUNDING)
        sent = np.minimum(table.upload, 1.0) / budgets.upload[:, None]
        draws = host_random.uniforms(round_key, streams.EXPLORE, ids, 2)
        bold = np.where(draws[:, :1] < explore, margin, 1.0)
        fits = (learned <= bold) & (sent <= 1)
        rows = np.where(
            fits.any(axis=1),
            base.pick(costs.maximal(table.covers, fits), draws[:, 1]),
            np.argmin(np.maximum(learned, sent), axis=1),
        )
        return [all_plans[row] for row in rows]

    def observe(state, ids, assigned, budgets, observation):
        seen = np.stack([observation.time, observation.memory])  # [2, K], of limits
        seen = seen * np.stack([budgets.time, budgets.memory])
        return corrected(state, believed, ids, table.rows(assigned), seen, rate)

    return base.Policy(init, assign, observe)


def _predicted(state: OnlineState, believed: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Give what windows are predicted to take of time and memory, [2, K, P]."""
    windows = believed * np.exp(state.windows.astype(np.float64))
    clients = np.exp(state.clients[:, ids].astype(np.float64))
    return windows[:, None] * clients[..., None]


def corrected(
    state: OnlineState,
    believed: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    seen: np.ndarray,
    rate: float,
) -> OnlineState:
    """Let what plans really took into the state of `online`.

    Args:
      state: before the round.
      believed: [2, P] time and memory by the table.
      ids: [K] clients.
      rows: [K] of their windows in the table.
      seen: [2, K] time and memory that they took; not finite or not above 0: not known.
      rate: of the clients' corrections.

    Returns:
      The state after it.
    """
    corrections = state.windows[:, rows] + state.clients[:, ids]
    expected = believed[:, rows] * np.exp(corrections.astype(np.float64))
    known = np.isfinite(seen) & (seen > 0)
    error = np.log(np.where(known, seen, expected) / expected)
    size = believed.shape[1]
    add = [np.bincount(rows, of_kind, size) for of_kind in error]
    many = [np.bincount(rows, of_kind, size) for of_kind in known]
    step = WINDOW_RATE * np.stack(add) / (np.stack(many) + AGREEMENT)
    clients = state.clients.copy()
    clients[:, ids] += (rate * error).astype(np.float32)
    return OnlineState(state.windows + step.astype(np.float32), clients)


def round_robin(
    table: costs.CostTable, num_clients: int, bits: int = plans.DEFAULT_BITS
) -> base.Policy:
    """Take each client through its maximal windows in turn.

    Client k takes window (k + its rounds so far) modulo the number of its maximal
    windows, in the order of the table; k, so that clients do not all begin with the
    same. Where budgets change from round to round, so do the windows gone through.

    Args:
      table: costs of the windows that may be chosen.
      num_clients: N.
      bits: width of the codes in the frozen blocks.

    Returns:
      The policy, whose state is the number of rounds of each client, [N] int32,
      whether its updates arrived or not; `assign` raises ValueError if nothing fits a
      client.
    """
    all_plans = table.at(bits)

    def assign(state, round_key, ids, budgets):
        options = base.maximal(table, ids, budgets)
        number = options.sum(axis=1)
        turn = (np.asarray(ids, np.int64) + state[ids]) % number
        # (turn + 1/2) / number lies well inside what `pick` maps to option `turn`.
        rows = base.pick(options, (turn + 0.5) / number)
        return [all_plans[row] for row in rows]

    def observe(state, ids, assigned, budgets, observation):
        rounds = state.copy()
        rounds[ids] += 1
        return rounds

    return base.Policy(lambda: np.zeros(num_clients, np.int32), assign, observe)


class BitsState(NamedTuple):
    """How training goes, for `adaptive_bits`; scalars of numpy."""

    average: np.ndarray  # [] float32: of the rounds' losses; NaN before the first
    best: np.ndarray  # [] float32: least average since the widths rose
    stale: np.ndarray  # [] int32: rounds since that fell
    rung: np.ndarray  # [] int32: of the ladder, for clients with room


def adaptive_bits(
    table: costs.CostTable,
    bits: int = plans.DEFAULT_BITS,
    ladder: tuple[int, ...] = (4, 6),
    patience: int = 10,
    tight: float = 0.9,
) -> base.Policy:
    """Widen the frozen codes when the loss stops falling; narrower where it is tight.

    Over time as in DAdaQuant (Hoenig, Zhao and Mullins, ICML 2022), there for what is
    uploaded: rounds begin with the narrowest codes. The mean training loss of a round
    enters an average, average += 0.2 (loss - average); whenever that has not fallen by
    1 % below its least for `patience` rounds, the width rises by a rung and the count
    starts anew. It never falls.

    Over clients: one rung less for a client that needs more than `tight` of its time
    or of its memory by the table. A plan that freezes nothing always has the width
    `bits`, which it does not use: no second program is compiled for it.

    Windows are those of `policies.random_maximal`. Every width is a program of its
    own, so the ladder is short.

    Args:
      table: costs of the windows that may be chosen.
      bits: the top of the ladder.
      ladder: the widths below it, ascending; those not below are left out.
      patience: rounds without progress before a rise, at least 1.
      tight: share of a limit, above 0.

    Returns:
      The policy; `assign` raises ValueError if nothing fits a client.

    Raises:
      ValueError: a width is no width of codes, the ladder does not ascend, or
        patience or tight is out of range.
    """
    widths = (*(width for width in ladder if width < bits), bits)
    if list(ladder) != sorted(set(ladder)) or not patience >= 1 or not tight > 0:
        raise ValueError(
            "adaptive_bits: expected an ascending ladder, patience of at least 1 and "
            f"tight above 0, got {ladder}, {patience} and {tight}"
        )
    all_plans = [table.at(width) for width in widths]
    needs = np.minimum([table.time, table.memory], 1.0)[..., None, :]  # [2, 1, P]
    whole = np.array([plans.is_full(p, table.num_blocks) for p in table.listed])
    top = len(widths) - 1

    def init():
        nan = np.array(np.nan, np.float32)
        zero = np.zeros((), np.int32)
        return BitsState(nan, nan, zero, zero)

    def assign(state, round_key, ids, budgets):
        options = base.maximal(table, ids, budgets)
        draw = host_random.uniforms(round_key, streams.CHOICE, ids, 1)[:, 0]
        rows = base.pick(options, draw)
        limits = np.stack([budgets.time, budgets.memory])
        load = (needs[:, 0, rows] / limits).max(axis=0)  # [K]
        rungs = np.maximum(state.rung - (load > tight), 0)
        rungs = np.where(whole[rows], top, rungs)
        return [all_plans[i][row] for i, row in zip(rungs, rows, strict=True)]

    def observe(state, ids, assigned, budgets, observation):
        losses = observation.losses[np.isfinite(observation.losses)]
        if not losses.size:
            return state
        return follow(state, losses.mean(), patience, top)

    return base.Policy(init, assign, observe, needs_losses=True)


def follow(state: BitsState, loss: float, patience: int, top: int) -> BitsState:
    """Let a round's mean loss into the state of `adaptive_bits`.

    Args:
      state: before the round.
      loss: mean training loss of the round.
      patience: rounds without progress before a rise.
      top: the last rung.

    Returns:
      The state after it.
    """
    average, best, stale, rung = (value.item() for value in state)
    average = loss if np.isnan(average) else average + 0.2 * (loss - average)
    if np.isnan(best) or average < best - 0.01 * abs(best):
        best, stale = average, 0
    else:
        stale += 1
    if stale >= patience and rung < top:
        best, stale, rung = average, 0, rung + 1
    return BitsState(
        np.array(average, np.float32),
        np.array(best, np.float32),
        np.array(stale, np.int32),
        np.array(rung, np.int32),
    )
