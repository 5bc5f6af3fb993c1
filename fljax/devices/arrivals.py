"""Stragglers and asynchrony: whose updates a server step waits for, and who is late.

A synchronous round ends with its slowest client, at a deadline, or when enough of an
over-selected cohort have arrived (Bonawitz et al., MLSys 2019); late updates are
dropped, or carried over into the round that they arrive in. With a buffer the server
steps after so many arrivals, whatever they trained from, and others take their places
at once (FedBuff, Nguyen et al., AISTATS 2022). When a client is ready does not depend
on what it learns, so all of this is decided before anything is trained, on the host,
and an update is computed in the round that it arrives in, from the network that it
began with.

Legend: K clients of a draw, M at work beyond the end of a round.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from fljax.devices import clock, failures

FREE = -1  # number of the client in a slot that nobody works in


class Work(NamedTuple):
    """Clients at work, as arrays of one row each, so that they can be checkpointed.

    Attributes:
      ids: int32 client numbers; FREE: nobody.
      rows: int32, of their plans in the catalogue.
      versions: int32, server steps that were done when they began.
      seconds: [.., 3] float64, download, training, upload.
      finish: float64, when they will be ready (or notice that they will not).
      faults: int8 of failures.Fault.
      budgets: [.., 3] float64, time, upload and memory that the server allowed them;
        may be less than any window needs.
      loads: [.., 2] float64, what the plan really takes over what is allowed, for time
        and memory; above 1: too much. Of time it is the greater of two ratios: training
        over the time budget, and download, training and upload over the deadline.
        Faults do not count.
    """

    ids: np.ndarray
    rows: np.ndarray
    versions: np.ndarray
    seconds: np.ndarray
    finish: np.ndarray
    faults: np.ndarray
    budgets: np.ndarray
    loads: np.ndarray


class Timeline(NamedTuple):
    """What the clock carries from round to round.

    Attributes:
      now: [] float64 seconds since the start.
      flight: those at work; all rows FREE in synchronous rounds that drop late ones.
    """

    now: np.ndarray
    flight: Work


class Outcome(NamedTuple):
    """How a round goes.

    Attributes:
      arrived: those whose updates the server gets, in order.
      finished: all whose round is over, arrived or not.
      spent: [.., 3] seconds that each of these spent, as `Work.seconds`; less than
        those for who was sent home.
      started: how many began.
      timeline: after the round.
      events: what went wrong -> client numbers: faults of those in `finished`, `stale`
        ones among these, and who was `late` for this round, to be carried or not.
    """

    arrived: Work
    finished: Work
    spent: np.ndarray
    started: int
    timeline: Timeline
    events: dict[str, list[int]]


class Ends(NamedTuple):
    """What ends a synchronous round.

    Attributes:
      wanted: arrivals that end an over-selected one.
      limit: seconds of the deadline; infinite without one.
      idle: seconds after which the server tries again if nobody is there.
    """

    wanted: int
    limit: float
    idle: float = 0.0


def empty(slots: int) -> Work:
    """Makes rows that nobody works in."""
    return Work(
        np.full(slots, FREE, np.int32),
        np.zeros(slots, np.int32),
        np.zeros(slots, np.int32),
        np.zeros((slots, 3)),
        np.zeros(slots),
        np.zeros(slots, np.int8),
        np.ones((slots, 3)),
        np.ones((slots, 2)),
    )


def slots(rules: clock.Clock, clients_per_round: int, clients: int) -> int:
    """Counts the clients, of so many, that may be at work when a round ends."""
    if rules.buffer:
        return clients_per_round
    most = chosen(rules, clients_per_round) * max(rules.max_staleness, 1)
    return min(most, clients) if rules.late == "carry" else 0


def chosen(rules: clock.Clock, clients_per_round: int) -> int:
    """Counts the clients that a synchronous round begins with."""
    return int(np.ceil(clients_per_round * rules.over_selection - 1e-9))


def most_arrivals(rules: clock.Clock, clients_per_round: int, clients: int) -> int:
    """Bounds the updates of one round: the size of its compiled cohort.

    A client that is at work is not drawn again, so each arrives once at most.
    """
    if rules.buffer:
        return rules.buffer
    late = slots(rules, clients_per_round, clients)
    return min(chosen(rules, clients_per_round) + late, clients)


def init(rules: clock.Clock, clients_per_round: int, clients: int) -> Timeline:
    """Starts the clock with nobody at work."""
    return Timeline(np.zeros(()), empty(slots(rules, clients_per_round, clients)))


def take(work: Work, rows: np.ndarray) -> Work:
    """Picks rows by index or mask."""
    if rows.dtype == bool and rows.all():
        return work
    return Work(*(field[rows] for field in work))


def join(*parts: Work) -> Work:
    """Puts rows behind one another."""
    parts = tuple(part for part in parts if len(part.ids)) or parts[:1]
    if len(parts) == 1:
        return parts[0]
    return Work(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def synchronous(
    rules: clock.Clock,
    timeline: Timeline,
    work: Work,
    round_index: int,
    ends: Ends,
) -> Outcome:
    """Runs a synchronous round on the clock.

    Args:
      rules: how long the server waits.
      timeline: before the round.
      work: the cohort, `seconds` filled in; it starts now.
      round_index: of the round.
      ends: what ends it, beside that all are done.

    Returns:
      The outcome. A failure is noticed when it happens, so nobody waits for it; who is
      late and not carried over is told so, and stops.
    """
    now = float(timeline.now)
    work = work._replace(finish=now + work.seconds.sum(axis=1))
    good = ~np.isin(work.faults, failures.FATAL)
    end, enough = float(work.finish.max(initial=now)), good
    if rules.over_selection > 1 and good.sum() >= ends.wanted:
        # Of those who are ready at the same moment, as devices of a tier are, who was
        # drawn first.
        order = np.argsort(work.finish, kind="stable")
        first = order[good[order]][: ends.wanted]
        enough = np.isin(np.arange(len(good)), first)
        end = float(work.finish[first[-1]])
    end = min(end, now + ends.limit)
    in_time = enough & (work.finish <= end)
    late = good & ~in_time
    flight = take(timeline.flight, timeline.flight.ids != FREE)
    if not len(work.ids) and len(flight.ids):  # only carried ones are left: wait
        end = max(end, float(flight.finish.min()))
    if not len(work.ids) and not len(flight.ids):
        end = now + ends.idle
    landed = flight.finish <= end
    stale = ~landed & (round_index + 1 - flight.versions > rules.max_staleness)
    staying = take(flight, ~landed & ~stale)
    carried = late & (rules.late == "carry")
    staying = join(staying, take(work, carried))
    free = empty(len(timeline.flight.ids) - len(staying.ids))
    arrived = join(take(work, in_time), take(flight, landed))
    finished = join(take(work, ~carried), take(flight, landed | stale))
    events = failures.events(finished.ids, finished.faults)
    if late.any():
        events["late"] = sorted(work.ids[late].tolist())
    if stale.any():
        events["stale"] = sorted(flight.ids[stale].tolist())
    return Outcome(
        arrived, finished, _spent(finished, end), len(work.ids),
        Timeline(np.array(end), join(staying, free)), events,
    )  # fmt: skip


def enough(started: int) -> int:
    """Says how many of a round must answer, so that a secure sum can be opened."""
    return max(2, started // 2 + 1)


def unopened(outcome: Outcome) -> Outcome:
    """Lets a synchronous round come to nothing if too few answer.

    Masks of who dropped out can be taken off a secure sum where more than half of
    those who began give their shares; and the sum of one is an update.

    Args:
      outcome: of the round.

    Returns:
      The same; or, with who did arrive among the events, one in which nobody does.
    """
    ids = outcome.arrived.ids
    if not len(ids) or len(ids) >= enough(outcome.started):
        return outcome
    return outcome._replace(
        arrived=take(outcome.arrived, np.zeros(len(ids), bool)),
        events={**outcome.events, "unopened": sorted(ids.tolist())},
    )


def _spent(work: Work, end: float) -> np.ndarray:
    """Gives the seconds [.., 3] of those who stop at `end` if they are not ready."""
    early = work.finish > end
    if not early.any():
        return work.seconds
    begun = work.finish - work.seconds.sum(axis=1)
    until = np.minimum(work.seconds.cumsum(axis=1), (end - begun)[:, None])
    cut = np.diff(until, axis=1, prepend=0.0)
    return np.where(early[:, None], np.maximum(cut, 0), work.seconds)


def buffered(
    rules: clock.Clock,
    timeline: Timeline,
    pool: Work,
    round_index: int,
    idle: float = 0.0,
) -> Outcome:
    """Runs one step of a buffered asynchronous server on the clock.

    Args:
      rules: with a buffer.
      timeline: before the step; its flight has a slot for each client that works at
        a time.
      pool: clients that take free slots, in this order, `seconds` filled in; none of
        them is at work.
      round_index: server steps so far.
      idle: seconds after which the server tries again if nobody is there.

    Returns:
      The outcome: at most `rules.buffer` arrivals, fewer if nobody is left.
    """
    flight = timeline.flight
    now, taken = float(timeline.now), 0
    rows = join(flight, pool._replace(finish=np.zeros(len(pool.ids))))
    finish = rows.finish.copy()
    at_work = np.flatnonzero(flight.ids != FREE).tolist()
    queue = [(finish[row], int(rows.ids[row]), row) for row in at_work]
    heapq.heapify(queue)
    room = len(flight.ids) - len(at_work)

    def start(moment: float) -> bool:
        nonlocal taken
        if taken == len(pool.ids):
            return False
        row = len(flight.ids) + taken
        finish[row] = moment + rows.seconds[row].sum()
        heapq.heappush(queue, (finish[row], int(rows.ids[row]), row))
        taken += 1
        return True

    while room and start(now):
        room -= 1
    arrived: list[int] = []
    over: list[int] = []
    stale: list[int] = []
    while queue and len(arrived) < rules.buffer:
        moment, _, row = heapq.heappop(queue)
        now = max(now, moment)
        over.append(row)
        if round_index - rows.versions[row] > rules.max_staleness:
            stale.append(row)
        elif rows.faults[row] not in failures.FATAL:
            arrived.append(row)
        if len(arrived) < rules.buffer:  # else the next begins with the new network
            start(now)
    if not over:
        now += idle
    rows = rows._replace(finish=finish)
    staying = take(rows, np.array(sorted(row for *_, row in queue), int))
    free = empty(len(flight.ids) - len(staying.ids))
    finished = take(rows, np.array(over, int))
    events = failures.events(finished.ids, finished.faults)
    if stale:
        events["stale"] = sorted(rows.ids[stale].tolist())
    return Outcome(
        take(rows, np.array(arrived, int)), finished, finished.seconds, taken,
        Timeline(np.array(now), join(staying, free)), events,
    )  # fmt: skip
