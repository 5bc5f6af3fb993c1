"""Who trains what in a round, and who arrives: decided before anything is trained.

The cohort is drawn from the devices that are there, the policy plans with what the
server believes of them, and the clock runs the round with what is true of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fljax import (
    arrivals,
    client,
    clock,
    cohort,
    costs,
    failures,
    federation,
    fleet,
    host_random,
    plans,
    policies,
    types,
)


class Assignment(NamedTuple):
    """Who trains what in a round; A updates arrive.

    Attributes:
      round: its index.
      ids: [A] client numbers.
      plans: A plans, in the order of ids.
      outcome: of the clock: who began, who is done, what went wrong.
    """

    round: int
    ids: np.ndarray
    plans: list[plans.Plan]
    outcome: arrivals.Outcome


def by_hand(index: int, ids: np.ndarray, assigned: Sequence[plans.Plan]) -> Assignment:
    """Makes a round in which given clients arrive at once, as tests and notebooks do.

    Args:
      index: of the round.
      ids: [A] client numbers.
      assigned: A plans.

    Returns:
      The assignment; it takes no time.
    """
    rows = [(plan.first, plan.last, plan.bits) for plan in assigned]
    work = arrivals.empty(len(ids))._replace(
        ids=np.asarray(ids, np.int32),
        plans=np.array(rows, np.int32).reshape(-1, 3),
        versions=np.full(len(ids), index, np.int32),
    )
    timeline = arrivals.Timeline(np.zeros(()), arrivals.empty(0))
    outcome = arrivals.Outcome(work, work, work.seconds, len(ids), timeline, {})
    return Assignment(index, np.asarray(ids), list(assigned), outcome)


class Schedule(NamedTuple):
    """Pure functions that plan rounds.

    Attributes:
      assign: (policy state, timeline, factors of the tiers' budgets [T], round index)
        -> assignment.
      observe: (policy state, assignment, losses [A] or None) -> policy state.
      upload_bytes: (outcome) -> bytes that those whose round is over have sent.
      time_shares: (plans) -> [K] times by the table, as shares of full training.
      full_bytes: of the network.
    """

    assign: Callable[[Any, arrivals.Timeline, np.ndarray, int], Assignment]
    observe: Callable[[Any, Assignment, np.ndarray | None], Any]
    upload_bytes: Callable[[arrivals.Outcome], int]
    time_shares: Callable[[Sequence[plans.Plan]], np.ndarray]
    full_bytes: int


Column = dict[tuple[int, int], float]  # a cost by first and last block


def columns(table: costs.CostTable, error: float = 0.0, seed: int = 0):
    """Maps windows to what they cost.

    Args:
      table: the costs; full training costs 1 where the table leaves it out.
      error: standard deviation of the log of true costs against the table's.
      seed: of these errors.

    Returns:
      Time and memory, each a dict by (first, last).
    """
    windows = [(first, last) for first, last in table.windows.tolist()]
    generator = np.random.default_rng([seed, 6])
    factors = np.exp(error * generator.standard_normal((2, len(windows))))
    full = {(0, table.num_blocks - 1): 1.0}
    return tuple(
        full | dict(zip(windows, (_clip(cost) * factor).tolist(), strict=True))
        for cost, factor in zip((table.time, table.memory), factors, strict=True)
    )


def _clip(cost: np.ndarray) -> np.ndarray:
    """Takes what a table shows above 1 for noise, as `costs.feasible` does."""
    return np.minimum(cost, 1.0)


def _look_up(column: Column, assigned: Sequence[plans.Plan]) -> np.ndarray:
    windows = [(plan.first, plan.last) for plan in assigned]
    if unknown := [window for window in windows if window not in column]:
        first, last = unknown[0]
        raise ValueError(
            f"expected windows of the table of costs, which has {len(column)}, got "
            f"{first}-{last}"
        )
    return np.array([column[window] for window in windows])


def make(
    fed: federation.Federation,
    policy: policies.Policy,
    candidates: np.ndarray,
    constrained: bool,
) -> Schedule:
    """Makes the schedule of an algorithm.

    Args:
      fed: the clients, their devices and the clock.
      policy: which plan for which client.
      candidates: client numbers that may take part.
      constrained: whether a device fails that has less memory than its plan needs.

    Returns:
      The schedule.
    """
    devices, rules, seed = fed.fleet, federation.rules(fed), fed.seed
    counts = np.asarray(fed.shards.counts)
    time, _ = columns(fed.table)
    true_time, true_memory = columns(fed.table, fed.table_error, seed)
    bytes_of = functools.cache(lambda plan: plans.upload_bytes(plan, fed.counts))
    full_bytes = bytes_of(plans.full(fed.net.num_blocks))
    changes, profile = devices.changes, devices.profile
    whole_round = (
        full_bytes / rules.download_rate
        + client.steps_of(counts.mean(), fed.training) * rules.step_seconds
        + full_bytes / rules.upload_rate
    )
    limit = rules.deadline * whole_round if rules.deadline else np.inf

    def pause(index: int) -> float:
        """Gives the seconds of a round that go by before it begins."""
        looks = fleet.looked_at(devices, index) == index
        return changes.refresh_seconds if looks else 0.0

    def begin(
        index: int, ids, assigned, budgets, truth: types.Budgets, factors
    ) -> arrivals.Work:
        """Puts clients to work; when they are ready is up to the clock.

        What the server allows of a device is its `factors` times what that can do, and
        a policy hears how much of it a plan took: else `online` would learn the factor
        away.
        """
        row = devices.row[ids]
        key = host_random.fold_in(host_random.key(seed), index)
        faults, part = failures.draw(fed.failures, profile.failure[row], key, ids)
        time = _look_up(true_time, assigned) / truth.time
        memory = np.minimum(_look_up(true_memory, assigned), 1) / truth.memory
        if constrained:
            faults = np.where(
                memory > 1 + 1e-9, np.int8(failures.Fault.OUT_OF_MEMORY), faults
            )
        steps = client.steps_of(counts[ids], fed.training)
        sent = np.array([bytes_of(plan) for plan in assigned])
        download = profile.download[row] * fleet.bandwidth(devices, seed, index, ids)
        seconds = clock.durations(
            rules, full_bytes, steps, time, sent, truth.upload, download
        )
        allowed = np.maximum(time, seconds.sum(axis=1) / limit)
        seconds = clock.spoil(seconds, faults, part, fed.failures.delay * whole_round)
        seconds[:, 0] += pause(index)
        rows = [(plan.first, plan.last, plan.bits) for plan in assigned]
        return arrivals.Work(
            ids.astype(np.int32),
            np.array(rows, np.int32).reshape(-1, 3),
            np.full(len(ids), index, np.int32),
            seconds,
            np.zeros(len(ids)),
            faults.astype(np.int8),
            np.stack(budgets, axis=1),
            np.stack([allowed, memory], axis=1) / factors[:, None],
        )

    def assign(policy_state, timeline, tier_factors, index: int) -> Assignment:
        busy = timeline.flight.ids[timeline.flight.ids != arrivals.FREE]
        moment = float(timeline.now) / whole_round
        here = fleet.available(devices, seed, index, moment, candidates)
        if len(busy):
            here = here[~np.isin(here, busy)]
        wanted = arrivals.chosen(rules, fed.clients_per_round)
        if not rules.buffer:
            return draw(policy_state, timeline, tier_factors, index, here, wanted)
        wanted = fed.clients_per_round - len(busy) + 2 * rules.buffer + 8
        while True:  # as many as it takes to fill the buffer, failures included
            drawn = draw(policy_state, timeline, tier_factors, index, here, wanted)
            if len(drawn.ids) == rules.buffer or wanted >= len(here):
                return drawn
            wanted *= 2

    def draw(policy_state, timeline, tier_factors, index, here, wanted) -> Assignment:
        """Draws so many of those who are here, plans, and lets the clock run."""
        ids = cohort.sample(seed, index, here, min(wanted, len(here)))
        truth = fleet.truth(devices, seed, index, ids)
        known = truth
        if fleet.looked_at(devices, index) != index:
            known = fleet.believed(devices, seed, index, ids)
        factors = tier_factors[devices.tier_of_row[devices.row[ids]]].astype(float)
        allowed = types.Budgets(*(limits * factors for limits in known))
        budgets = types.Budgets(*costs.floored(fed.table, *allowed))
        key = host_random.fold_in(host_random.key(seed), index)
        assigned = policy.assign(policy_state, key, ids, budgets)
        work = begin(index, ids, assigned, allowed, truth, factors)
        if rules.buffer:
            outcome = arrivals.buffered(rules, timeline, work, index, whole_round)
        else:
            outcome = arrivals.synchronous(
                rules,
                timeline,
                work,
                fed.clients_per_round,
                index,
                limit + pause(index),
                min(limit, whole_round),
            )
        arrived = outcome.arrived
        return Assignment(index, arrived.ids, arrivals.plans_of(arrived), outcome)

    def observe(policy_state, assignment: Assignment, losses):
        done, arrived = assignment.outcome.finished, assignment.outcome.arrived
        there = np.isin(done.ids, arrived.ids)
        if losses is not None:
            by_id = dict(zip(arrived.ids.tolist(), losses.tolist(), strict=True))
            losses = np.array([by_id.get(i, np.nan) for i in done.ids.tolist()])
        silent = np.isin(done.faults, (*failures.DROPPED, failures.Fault.LOST))
        # Of a device that ran out of memory that is all there is to hear.
        broken = done.faults == failures.Fault.OUT_OF_MEMORY
        seen = policies.Observation(
            np.where(silent | broken, np.nan, done.loads[:, 0]),
            np.where(silent, np.nan, done.loads[:, 1]),
            there,
            losses,
        )
        budgets = types.Budgets(*done.budgets.T)
        return policy.observe(
            policy_state, done.ids, arrivals.plans_of(done), budgets, seen
        )

    def upload_bytes(outcome: arrivals.Outcome) -> int:
        done = outcome.finished
        by_plan = [bytes_of(plan) for plan in arrivals.plans_of(done)]
        return arrivals.sent_bytes(done, outcome.spent, by_plan)

    return Schedule(
        assign, observe, upload_bytes, functools.partial(_look_up, time), full_bytes
    )
