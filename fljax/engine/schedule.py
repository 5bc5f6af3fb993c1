"""Who trains what in a round, and who arrives: decided before anything is trained.

The cohort is drawn from the devices that are there, the policy plans with what the
server believes of them, and the clock runs the round with what is true of them. What a
round costs (bytes, seconds, joules) follows from that, and is counted here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fljax import plans, policies, types
from fljax.devices import arrivals, clock, failures, fleet, trace
from fljax.engine import books as round_books
from fljax.engine import client, federation
from fljax.engine import seams as kinds
from fljax.nn import network
from fljax.plans import catalogue, costs
from fljax.policies import selection
from fljax.runtime import host_random
from fljax.updates import privacy, secure_sum


class Assignment(NamedTuple):
    """Who trains what in a round; A updates arrive.

    Attributes:
      round: its index.
      ids: [A] client numbers.
      plans: A plans, in the order of ids.
      finished: plans of all whose round is over, in the order of the outcome.
      outcome: of the clock: who began, who is done, what went wrong.
      begun: plans of those who began in this round.
      classes: [N] of all clients as the server sorts them; None: it knows the tiers.
      tiers: tier -> how many of them are of it; empty: not known.
    """

    round: int
    ids: np.ndarray
    plans: list[plans.Plan]
    finished: list[plans.Plan]
    outcome: arrivals.Outcome
    begun: Sequence[plans.Plan] = ()
    classes: np.ndarray | None = None
    tiers: Mapping[str, int] = MappingProxyType({})


def by_hand(index: int, ids: np.ndarray, assigned: Sequence[plans.Plan]) -> Assignment:
    """Makes a round in which given clients arrive at once, as tests and notebooks do.

    Args:
      index: of the round.
      ids: [A] client numbers.
      assigned: A plans.

    Returns:
      The assignment; it takes no time.
    """
    ids, assigned = np.asarray(ids, np.int32), list(assigned)
    work = arrivals.empty(len(ids))._replace(
        ids=ids,
        versions=np.full(len(ids), index, np.int32),
    )
    timeline = arrivals.Timeline(np.zeros(()), arrivals.empty(0))
    outcome = arrivals.Outcome(work, work, work.seconds, len(ids), timeline, {})
    return Assignment(index, ids, assigned, assigned, outcome, assigned)


class Before(NamedTuple):
    """What the server goes by when it plans a round.

    Attributes:
      policy: state of the policy.
      timeline: of the clock.
      tiers: [T] factors of the tiers' budgets.
      selection: state of the selection.
      classes: [N] of all clients before the round; None: not sorted yet, or never.
      kept: for the clients' privacy; None: nothing.
    """

    policy: Any
    timeline: arrivals.Timeline
    tiers: np.ndarray
    selection: Any = ()
    classes: np.ndarray | None = None
    kept: privacy.Kept | None = None


class _Drawn(NamedTuple):
    """The clients of a round before they have plans.

    Attributes:
      round: its index.
      ids: [K] client numbers.
      truth: what their devices can do.
      allowed: what the server allows them of what it believes that they can.
      factors: [K] of these budgets, 1 but after rollbacks.
      now: seconds on the clock.
    """

    round: int
    ids: np.ndarray
    truth: types.Budgets
    allowed: types.Budgets
    factors: np.ndarray
    now: float


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Plans rounds and keeps their books; of `make`. Its methods are pure.

    Attributes:
      fed: the clients, their devices and the clock.
      policy: which plan for which client.
      candidates: client numbers that may take part, rising.
      constrained: whether a device fails that has less memory than its plan needs.
      clock: of the federation, nothing left open.
      catalogue: the plans that may be assigned, and what they cost.
      full_bytes: of the network, but for what stays with the clients.
      shared_bytes: that a client is sent beside the network.
      whole_round: seconds of the reference device with the mean number of examples.
      trips: round trips of a client, as of `clock.Job`.
      private: the mechanism, which may leave clients out; None: there is none.
    """

    fed: federation.Federation
    policy: policies.Policy
    candidates: np.ndarray
    constrained: bool
    clock: clock.Clock
    catalogue: catalogue.Catalogue
    full_bytes: int
    shared_bytes: int
    whole_round: float
    trips: tuple[int, int] = (1, 0)
    private: privacy.Mechanism | None = None

    @property
    def limit(self) -> float:
        """Gives the seconds of the deadline; infinite without one."""
        if not self.clock.deadline:
            return np.inf
        return self.clock.deadline * self.whole_round

    @property
    def hears(self) -> bool:
        """Tells whether somebody asks for the losses of rounds."""
        return self.policy.needs_losses or self.fed.rules.selection.hears

    @property
    def training(self) -> client.Training:
        """Gives how clients train for the clock, their own networks included."""
        training, own = self.fed.training, self.fed.rules.personal
        if own is None or not own.beside:
            return training
        epochs = training.local_epochs
        return training._replace(local_epochs=epochs + own.epochs(epochs))

    @functools.cached_property
    def clients(self) -> selection.Clients:
        """Gives what the server knows of all clients."""
        counts = np.asarray(self.fed.population.shards.counts)
        devices = self.fed.population.fleet
        profile, row = devices.profile, devices.row
        speed, upload, _ = profile.limits.mean(axis=-1)[row].T
        steps = client.steps_of(counts, self.training)
        full = self.catalogue.row[plans.full(self.fed.model.net.num_blocks)]
        sent = np.full(len(row), self.catalogue.sent[full])
        received = self.full_bytes + self.shared_bytes
        job = clock.Job(received, steps, 1 / speed, sent, self.trips)
        seconds = clock.durations(self.clock, job, profile.download[row], upload)
        return selection.Clients(counts, seconds.sum(axis=1))

    def classes(self, index: int, before: np.ndarray | None) -> np.ndarray | None:
        """Sorts the clients as the server does; anew where it looks at them.

        Args:
          index: of the round.
          before: [N] classes of the round before; None: there are none.

        Returns:
          [N] int32; None: the server knows the tiers.
        """
        devices = self.fed.population.fleet
        if devices.classes is None:
            return None
        if before is not None and fleet.looked_at(devices, index) != index:
            return before
        return fleet.sorted_at(devices, self.fed.seed, index)

    def assign(self, before: Before, index: int) -> Assignment:
        """Says who trains what in a round, and who arrives.

        Args:
          before: what the server goes by.
          index: of the round.

        Returns:
          The assignment.
        """
        fed, wanted = self.fed, self.fed.rules.clients_per_round
        busy = before.timeline.flight.ids
        busy = busy[busy != arrivals.FREE]
        before = before._replace(classes=self.classes(index, before.classes))
        here = fleet.available(
            fed.population.fleet,
            fed.seed,
            index,
            float(before.timeline.now) / self.whole_round,
            self.candidates,
            float(before.timeline.now),
        )
        if len(busy):
            here = here[~np.isin(here, busy)]
        if self.private is not None and before.kept is not None:
            here = self.private.may(before.kept, here)
        if not self.clock.buffer:
            most = arrivals.chosen(self.clock, wanted)
            return self._draw(before, index, here, most)
        most = wanted - len(busy) + 2 * self.clock.buffer + 8
        while True:  # as many as it takes to fill the buffer, failures included
            drawn = self._draw(before, index, here, most)
            if len(drawn.ids) == self.clock.buffer or most >= len(here):
                return drawn
            most *= 2

    def _draw(
        self, before: Before, index: int, here: np.ndarray, most: int
    ) -> Assignment:
        """Draws up to so many of those who are here, plans, and lets the clock run."""
        fed, devices = self.fed, self.fed.population.fleet
        ids = selection.choose(
            fed.rules.selection,
            before.selection,
            selection.Round(fed.seed, index, self.clients),
            here,
            min(most, len(here)),
        )
        known = truth = fleet.truth(devices, fed.seed, index, ids)
        when = policies.When(index, fleet.looked_at(devices, index))
        if when.looked_at != index:
            known = fleet.believed(devices, fed.seed, index, ids)
            if self.policy.ahead is not None:
                known = self.policy.ahead(before.policy, when, ids, known)
        tier = devices.tier_of_row[devices.row[ids]]
        if before.classes is not None:
            tier = before.classes[ids]
        factors = before.tiers[tier].astype(float)
        allowed = types.Budgets(*(limits * factors for limits in known))
        budgets = types.Budgets(*costs.floored(fed.model.table, *allowed))
        key = host_random.of_round(fed.seed, index)
        assigned = self.policy.assign(before.policy, key, ids, budgets)
        now = float(before.timeline.now)
        drawn = _Drawn(index, ids, truth, allowed, factors, now)
        work = self._begin(drawn, assigned)
        outcome = self._run_clock(before.timeline, work, index)
        if fed.rules.secure_sum is not None:
            outcome = self._opened(outcome)
        arrived, finished = (
            self.catalogue.at(work.rows) for work in (outcome.arrived, outcome.finished)
        )
        ids, classes = outcome.arrived.ids, before.classes
        begun = assigned[: outcome.started]  # who is drawn first begins first
        there = fleet.by_tier(devices, ids, classes)
        return Assignment(index, ids, arrived, finished, outcome, begun, classes, there)

    def _opened(self, outcome: arrivals.Outcome) -> arrivals.Outcome:
        """Says whether a secure sum can be opened, and of whom it shows an update."""
        outcome = arrivals.unopened(outcome)
        assigned = self.catalogue.at(outcome.arrived.rows)
        windows = [(plan.first, plan.last) for plan in assigned]
        alone = secure_sum.alone(outcome.arrived.ids, windows)
        if not alone:
            return outcome
        return outcome._replace(events={**outcome.events, "alone": alone})

    def _begin(self, drawn: _Drawn, assigned: Sequence[plans.Plan]) -> arrivals.Work:
        """Puts clients to work; when they are ready is up to the clock.

        The server allows `factors` (1 unless a rollback lowered them) times what a
        device can do. Loads are relative to what is allowed, not to what the device can
        do: otherwise the policy `online` would learn to undo the factors.
        """
        index, ids, truth, budgets, factors, now = drawn
        fed, devices, seed = self.fed, self.fed.population.fleet, self.fed.seed
        profile, rates = devices.profile, self.fed.population.failures
        row = devices.row[ids]
        key = host_random.of_round(seed, index)
        faults, part = failures.draw(rates, profile.failure[row], key, ids)
        rows = self.catalogue.rows(assigned)
        time = self.catalogue.true_time[rows] / truth.time
        memory = np.minimum(self.catalogue.true_memory[rows], 1) / truth.memory
        if self.constrained:
            faults = np.where(
                memory > 1 + 1e-9, np.int8(failures.Fault.OUT_OF_MEMORY), faults
            )
        counts = np.asarray(fed.population.shards.counts)
        steps = client.steps_of(counts[ids], self.training)
        received = self.catalogue.fetched[rows] + self.shared_bytes
        sent = self.catalogue.sent[rows]
        job = clock.Job(received, steps, time, sent, self.trips)
        download = profile.download[row] * fleet.bandwidth(devices, seed, index, ids)
        seconds = clock.durations(self.clock, job, download, truth.upload)
        allowed = np.maximum(time, seconds.sum(axis=1) / self.limit)
        seconds = clock.spoil(seconds, faults, part, rates.delay * self.whole_round)
        seconds[:, 0] += self._pause(index)
        if devices.trace is not None:
            seconds, faults = clock.leave(
                seconds, faults, trace.left(devices.trace, now, ids)
            )
        return arrivals.Work(
            ids.astype(np.int32),
            rows,
            np.full(len(ids), index, np.int32),
            seconds,
            np.zeros(len(ids)),
            faults.astype(np.int8),
            np.stack(budgets, axis=1),
            np.stack([allowed, memory], axis=1) / factors[:, None],
        )

    def _pause(self, index: int) -> float:
        """Gives the seconds of a round that go by before it begins."""
        devices = self.fed.population.fleet
        looks = fleet.looked_at(devices, index) == index
        return devices.changes.refresh_seconds if looks else 0.0

    def _run_clock(
        self, timeline: arrivals.Timeline, work: arrivals.Work, index: int
    ) -> arrivals.Outcome:
        if self.clock.buffer:
            idle = self.whole_round
            return arrivals.buffered(self.clock, timeline, work, index, idle)
        ends = arrivals.Ends(
            self.fed.rules.clients_per_round,
            self.limit + self._pause(index),
            min(self.limit, self.whole_round),
        )
        return arrivals.synchronous(self.clock, timeline, work, index, ends)

    def observe(
        self, policy_state: Any, assignment: Assignment, losses: np.ndarray | None
    ) -> Any:
        """Tells the policy how a round went.

        Args:
          policy_state: before it.
          assignment: of the round.
          losses: [A] of those who arrived; None: not told.

        Returns:
          The policy's state after it.
        """
        if self.policy.observe is policies.unmoved:
            return policy_state
        done, arrived = assignment.outcome.finished, assignment.outcome.arrived
        there = np.isin(done.ids, arrived.ids)
        asked = losses if self.policy.needs_losses else None
        silent, broken = _unheard(done)
        seen = policies.Observation(
            np.where(silent | broken, np.nan, done.loads[:, 0]),
            np.where(silent, np.nan, done.loads[:, 1]),
            there,
            _of_finished(assignment, asked),
            None if self.policy.ahead is None else self._seen(done),
        )
        budgets = types.Budgets(*done.budgets.T)
        return self.policy.observe(
            policy_state, done.ids, assignment.finished, budgets, seen
        )

    def _seen(self, done: arrivals.Work) -> policies.Seen:
        """Says what was seen of devices: what they were to do, over the seconds."""
        silent, broken = _unheard(done)
        heard = ~(silent | broken | (done.faults == failures.Fault.TRUNCATED))
        counts = np.asarray(self.fed.population.shards.counts)
        work = client.steps_of(counts[done.ids], self.training)
        asked = work * self.clock.step_seconds * self.catalogue.time[done.rows]
        sent = self.catalogue.sent[done.rows] / self.clock.upload_rate
        took = np.where(heard[:, None] & (done.seconds > 0), done.seconds, np.nan)
        return policies.Seen(done.versions, asked / took[:, 1], sent / took[:, 2])

    def tell(
        self, state: Any, assignment: Assignment, losses: np.ndarray | None
    ) -> Any:
        """Tells the selection how a round went.

        Args:
          state: of the selection, before it.
          assignment: of the round.
          losses: as of `observe`.

        Returns:
          The selection's state after it.
        """
        rule, done = self.fed.rules.selection, assignment.outcome.finished
        silent, broken = _unheard(done)
        heard = selection.Heard(
            done.ids,
            _of_finished(assignment, losses if rule.hears else None),
            np.where(silent | broken, np.nan, done.seconds.sum(axis=1)),
        )
        now = selection.Round(self.fed.seed, assignment.round, self.clients)
        return rule.observe(state, now, heard)

    def time_shares(self, assigned: Sequence[plans.Plan]) -> np.ndarray:
        """Gives the times [K] of plans by the table, as shares of full training."""
        return self.catalogue.time[self.catalogue.rows(assigned)]

    def books(
        self, before: arrivals.Timeline, assignment: Assignment
    ) -> round_books.Books:
        """Counts what a round costs.

        Args:
          before: of the clock, before the round.
          assignment: of the round.

        Returns:
          Bytes, seconds and joules.
        """
        outcome, rows = assignment.outcome, self.catalogue.rows(assignment.finished)
        fleet = self.fed.population.fleet
        counted = round_books.of_round(outcome, before, self.catalogue, rows, fleet)
        begun = self.catalogue.rows(assignment.begun)
        fetched = self.catalogue.fetched[begun] + self.shared_bytes
        return counted._replace(download_bytes=int(fetched.sum()))


def _unheard(done: arrivals.Work) -> tuple[np.ndarray, np.ndarray]:
    """Tells of whom nothing is heard, and who ran out of memory, which is all heard."""
    silent = np.isin(done.faults, (*failures.DROPPED, failures.Fault.LOST))
    return silent, done.faults == failures.Fault.OUT_OF_MEMORY


def _of_finished(
    assignment: Assignment, losses: np.ndarray | None
) -> np.ndarray | None:
    """Gives the losses of all whose round is over; NaN of who did not arrive."""
    if losses is None:
        return None
    done, arrived = assignment.outcome.finished, assignment.outcome.arrived
    by_id = dict(zip(arrived.ids.tolist(), losses.tolist(), strict=True))
    return np.array([by_id.get(i, np.nan) for i in done.ids.tolist()])


def plain(rules: clock.Clock) -> bool:
    """Tells whether a round is of those who are selected for it, and nobody else."""
    return not (rules.carries or rules.over_selection > 1)


def make(
    fed: federation.Federation,
    policy: policies.Policy,
    candidates: np.ndarray,
    constrained: bool,
    seams: kinds.Seams = kinds.NONE,
) -> Schedule:
    """Makes the schedule of an algorithm.

    Args:
      fed: the clients, their devices and the clock.
      policy: which plan for which client.
      candidates: client numbers that may take part.
      constrained: whether a device fails that has less memory than its plan needs.
      seams: what is sent beside the update, or instead of it.

    Returns:
      The schedule.

    Raises:
      ValueError: a round wants more clients than may take part, or than the selection
        gives.
    """
    _check(fed, len(candidates))
    candidates = np.sort(candidates)
    candidates.setflags(write=False)  # a selection of the user's is given them
    model, people, rules = fed.model, fed.population, federation.clock(fed)
    counts = model.by_width
    listed = catalogue.make(model.table, counts, people.table_error, fed.seed)
    full_bytes = plans.upload_bytes(plans.full(model.net.num_blocks), model.counts)
    kept = 0
    if seams.withheld is not None:  # then nobody trains at another width
        shapes = network.shapes(model.net)
        counts = {1.0: kinds.without(seams, model.counts, shapes)}
        left = plans.upload_bytes(plans.full(model.net.num_blocks), counts[1.0])
        kept = full_bytes - left
    sent = [kinds.sent_bytes(seams, p, counts[p.width]) for p in listed.listed]
    # Who has no more of the network than it trains fetches no more.
    fetched = listed.fetched if seams.exits is None else listed.sent
    listed = listed._replace(sent=np.array(sent, np.int64), fetched=fetched - kept)
    shared = 4 * sum(count.params for count in model.counts) * seams.server.shares
    trips = (1, 0)
    if seams.secure is not None:
        shared += secure_sum.received_beside(seams.secure)
        trips = 1 + secure_sum.TRIPS_BEFORE, secure_sum.TRIPS_AFTER
    steps = client.steps_of(np.asarray(people.shards.counts).mean(), fed.training)
    whole_round = (
        full_bytes / rules.download_rate
        + steps * rules.step_seconds
        + full_bytes / rules.upload_rate
        + rules.round_trip
    )
    return Schedule(
        fed,
        policy,
        candidates,
        constrained,
        rules,
        listed,
        full_bytes - kept,
        shared,
        whole_round,
        trips,
        seams.privacy,
    )


def _check(fed: federation.Federation, number: int) -> None:
    """Refuses rounds of more clients than may take part, or of none of a kind."""
    rules = fed.rules
    if rules.clients_per_round > number:
        raise ValueError(
            f"--clients_per_round: expected at most {number}, the clients that may "
            f"take part, got {rules.clients_per_round}"
        )
    if rules.clock.buffer > number:
        raise ValueError(
            f"--clock.buffer: expected at most {number}, the clients that may "
            f"take part, got {rules.clock.buffer}"
        )
    if not isinstance(rules.selection, selection.Selection):
        kind = type(rules.selection).__name__
        raise ValueError(f"selection: expected a fljax.Selection, got a {kind}")
    if rules.selection.varies and not plain(rules.clock):
        raise ValueError(
            f"--selection: expected uniform beside a clock with a buffer, "
            f"over_selection or late=carry, which count on a number of clients, got "
            f"{rules.selection}"
        )
    rules.selection.check(arrivals.chosen(rules.clock, rules.clients_per_round))
