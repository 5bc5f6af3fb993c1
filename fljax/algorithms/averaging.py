"""Federated averaging over plans: what all algorithms of this folder share.

McMahan et al. (AISTATS 2017) is the case in which every plan is the full network;
CoCoFL the one in which a policy picks windows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from fljax import plans, policies
from fljax.algorithms import base, pieces, private, refusals
from fljax.devices import arrivals
from fljax.engine import books, client_rows, federation, initial, schedule
from fljax.engine import seams as kinds
from fljax.engine.rounds import (
    ending,
    grouping,
    lengths,
    participants,
    setting,
    training,
)
from fljax.plans import costs
from fljax.policies import selection
from fljax.updates import (
    attacks,
    local_rule,
    privacy,
    secure_sum,
    server,
    server_rule,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Averaging:
    """The functions of the algorithm, with what they have in common."""

    fed: federation.Federation
    policy: policies.Policy
    candidates: int
    planned: schedule.Schedule
    rounds: setting.Rounds
    seams: kinds.Seams

    @property
    def _kept(self) -> int:
        """Counts the networks of rounds before that late updates may ask for."""
        clock = self.fed.rules.clock
        return clock.max_staleness if clock.carries else 0

    def init(self) -> base.State:
        rules, blocks = self.fed.rules, initial.blocks(self.fed)
        tiers, rows = len(self.fed.population.fleet.known_as), None
        everybody = len(self.fed.population.shards.counts)
        if self.seams.keeps:
            first = np.asarray(kinds.first_state(self.seams, blocks))
            rows = client_rows.Rows.empty(first)
        kept = self.seams.aggregate.init(server.params_of(blocks))
        return base.State(
            server.init(blocks, self.seams.server)._replace(aggregate=kept),
            self.policy.init(),
            arrivals.init(rules.clock, rules.clients_per_round, self.candidates),
            (blocks,) * self._kept,
            jnp.zeros((2, self.fed.model.net.num_blocks)),
            np.array(0, np.int32),
            base.Caution(np.float32(1), np.ones(tiers, np.float32)),
            rows,
            rules.selection.init(self.planned.clients),
            self.planned.classes(0, None),
            None if self._private is None else self._private.init(everybody),
        )

    def assign(self, state: base.State, index: int) -> schedule.Assignment:
        tiers = state.caution.tiers
        before = schedule.Before(
            state.policy,
            state.timeline,
            tiers,
            state.selection,
            state.classes,
            state.privacy,
        )
        return self.planned.assign(before, index)

    @property
    def _private(self) -> privacy.Mechanism | None:
        return self.seams.privacy

    def _draw(self, state: base.State, index: int) -> privacy.Draw | None:
        """Says what the noise of a round is made of."""
        if self._private is None or state.privacy is None:
            return None
        draw = self._private.draw(self.fed.seed, index, state.privacy.clip)
        return self.rounds.everywhere(draw)

    def round(
        self, state: base.State, assignment: schedule.Assignment
    ) -> tuple[base.State, base.Report]:
        rounds, measured = self.rounds, int(state.measured)
        before, rows = rounds.everywhere(state.server), None
        if state.clients is not None:
            rows = state.clients.gather(assignment.ids)
        networks = (before.blocks, *rounds.everywhere(state.history))
        shared = self.seams.server.shared(before.rule)
        draw = self._draw(state, assignment.round)
        masks = participants.masks(rounds, assignment)
        start = setting.Begun(networks, shared, rows, draw, masks)
        bounds = lengths.bounds(rounds, start, assignment, state.l2, measured)
        sums = training.train(rounds, start, assignment, bounds.limits)
        rate = np.float32(self.fed.rules.server_learning_rate) * state.caution.server
        beside = ending.beside(rounds, start, assignment)
        ended = ending.step(rounds, before, sums, bounds, rate, beside)
        spent = self.planned.books(state.timeline, assignment)
        hostile = participants.hostile_of(rounds, assignment)
        kept, said = self._released(state.privacy, assignment, ended.clip)
        if ended.norm is not None:
            said["update_norm"] = ended.norm
        failed, finite = ended.failed, ended.finite
        report = base.Report(
            assignment, ended.losses, failed, spent, finite, hostile, said
        )
        heard = report.heard() if self.planned.hears else None
        return state._replace(
            server=ended.state,
            policy=self.planned.observe(state.policy, assignment, heard),
            timeline=assignment.outcome.timeline,
            history=networks[: self._kept],
            l2=ended.usual,
            measured=np.array(bounds.measured, np.int32),
            clients=self._remembered(state.clients, assignment, sums, failed),
            selection=self.planned.tell(state.selection, assignment, heard),
            classes=assignment.classes,
            privacy=kept,
        ), report

    def _released(self, kept, assignment, clip):
        """Notes what a round has spent; gives what is kept, and what is said of it."""
        if self._private is None:
            return None, {}
        new = self._private.after(kept, assignment.ids, clip)
        said = {"epsilon": self._private.spent(new)}
        if self._private.adaptive is not None:
            said["clip_norm"] = kept.clip
        return new, said

    def _remembered(self, rows, assignment, sums, failed) -> client_rows.Rows | None:
        """Puts what clients keep back; who was refused keeps what it had."""
        if rows is None:
            return None
        taken = np.asarray(failed)[: len(assignment.ids)] == 0
        states = np.asarray(ending.states_after(self.rounds, sums))[: len(taken)]
        return rows.put(assignment.ids[taken], states[taken])

    def rehearse(
        self, state: base.State, assignment: schedule.Assignment
    ) -> tuple[base.State, books.Books]:
        spent = self.planned.books(state.timeline, assignment)
        state = state._replace(
            timeline=assignment.outcome.timeline, classes=assignment.classes
        )
        kept = state.privacy
        if self._private is not None and kept is not None:
            kept = self._private.after(kept, assignment.ids, kept.clip)
        state = state._replace(privacy=kept)
        if not self.policy.needs_losses:
            new = self.planned.observe(state.policy, assignment, None)
            state = state._replace(policy=new)
        if not self.fed.rules.selection.hears:
            new = self.planned.tell(state.selection, assignment, None)
            state = state._replace(selection=new)
        return state, spent


def averaging(
    fed: federation.Federation,
    policy: policies.Policy,
    candidates: np.ndarray | None = None,
    *,
    constrained: bool = True,
    local: local_rule.LocalRule | None = None,
    server: server_rule.ServerRule = server_rule.Averaging(),
) -> base.Algorithm:
    """Makes an algorithm that averages what each client's plan trained.

    What clients send, how it becomes one, how narrow networks train, what stays with a
    client and what hostile ones do (`fed.rules.codec`, `aggregate`, `narrowing`,
    `personal`, `attack`) are the federation's.

    Args:
      fed: the clients and how they train.
      policy: which plan for which client.
      candidates: client numbers that may take part; None: all.
      constrained: whether a device fails that has less memory than its plan needs;
        false for algorithms that take no notice of memory.
      local: what clients do beside their optimizer; None: nothing.
      server: how the server moves the network along what they send.

    Returns:
      The algorithm.

    Raises:
      ValueError: a round wants more clients than may take part, or what is asked for
        makes no sense together.
    """
    rules = fed.rules
    attack = rules.attack
    if isinstance(attack, attacks.Attack) and not attack.share:
        attack = None  # a backdoor is looked for all the same
    seams = kinds.Seams(
        local=local,
        codec=rules.codec,
        aggregate=rules.aggregate,
        server=server,
        narrowing=rules.narrowing,
        attack=attack,
        personal=rules.personal,
        exits=rules.exits,
    )
    refusals.personal(fed, seams, policy)
    everyone = (
        np.arange(len(fed.population.shards.counts))
        if candidates is None
        else candidates
    )
    seams = seams._replace(secure=_words(fed, seams, len(everyone)))
    blocks = _check(fed, seams)
    asked = rules.privacy
    if asked is not None and asked.clip:
        private.check(fed, policy, seams)
        seams = seams._replace(privacy=private.mechanism(fed, len(everyone)))
    planned = schedule.make(fed, policy, everyone, constrained, seams)
    refusals.few_updates(seams, _most(fed, len(everyone)))
    rounds = setting.make(fed, planned, len(everyone), seams)
    made = _Averaging(fed, policy, len(everyone), planned, rounds, seams)
    programs = functools.partial(grouping.programs, rounds)
    functions = made.init, made.assign, made.round, programs, made.rehearse
    keeps = kinds.state_size(seams, blocks) if seams.keeps else 0
    parts, widest = _named(fed, seams), _widest(fed, seams)
    deepest = _deepest(fed, seams)
    notes = (*_untrained(fed, widest), *_summed(seams.secure), *_headless(seams))
    notes = (*_ending(fed, deepest), *notes)
    most = None
    if asked is not None and seams.privacy is not None:
        notes = (*notes, private.said(seams.privacy, asked.rounds or 1))
        most = seams.privacy.ledger.most_rounds
    return base.Algorithm(
        *functions, parts, keeps, widest, notes, fed, most, seams, deepest
    )


def _words(
    fed: federation.Federation, seams: kinds.Seams, candidates: int
) -> secure_sum.Words | None:
    """Says how updates become words whose sum alone the server gets, if it does."""
    rules = fed.rules
    if rules.secure_sum is None:
        return None
    refusals.single_updates(fed, seams)
    weight = 1.0
    if rules.weighting == "examples":
        weight = float(np.asarray(fed.population.shards.counts).max())
    most = _most(fed, candidates)
    return secure_sum.make(rules.secure_sum, most, weight)


def _most(fed: federation.Federation, candidates: int) -> int:
    """Counts the updates that a round may have."""
    rules = fed.rules
    cohort = rules.selection.most(rules.clients_per_round, candidates)
    return arrivals.most_arrivals(rules.clock, cohort, candidates)


def _widest(fed: federation.Federation, seams: kinds.Seams) -> float:
    """Gives the width of network that the devices train between them."""
    if seams.narrowing is None or seams.narrowing.channels.roams:
        return 1.0
    return max(plan.width for plan in _fitting(fed))


def _deepest(fed: federation.Federation, seams: kinds.Seams) -> int | None:
    """Counts the blocks that the devices train between them; None: all."""
    if seams.exits is None:
        return None
    return 1 + max(plan.last for plan in _fitting(fed))


def _fitting(fed: federation.Federation) -> list[plans.Plan]:
    """Lists the plans that some device may get."""
    table, limits = fed.model.table, fed.population.fleet.profile.limits[..., 1]
    fits = costs.feasible(table, *costs.floored(table, *limits.T))
    rows = np.flatnonzero(np.atleast_2d(fits).any(axis=0))
    return [table.listed[row] for row in rows.tolist()]


def _ending(fed: federation.Federation, depth: int | None) -> tuple[str, ...]:
    """Says how large networks are that end at each exit, and which no device trains."""
    if depth is None:
        return ()
    sizes = np.cumsum([count.params for count in fed.model.counts]).tolist()
    ends = [plan.last for plan in fed.model.table.listed]
    parts = ", ".join(f"{sizes[end]:,}" for end in ends)
    note = f"networks end at one of {len(ends)} exits, with {parts} parameters"
    if depth == len(sizes):
        return (note,)
    few = ends.index(depth - 1) + 1
    return (
        f"{note}; no device trains more than those up to exit {few}, which are "
        f"evaluated",
    )


def _untrained(fed: federation.Federation, width: float) -> tuple[str, ...]:
    """Says what of the network no device trains."""
    if width == 1:
        return ()
    everything, trained = (
        sum(count.params for count in fed.model.at(w)[1]) for w in (1.0, width)
    )
    return (
        f"no device trains more than {width:g} of the channels: of {everything:,} "
        f"parameters {everything - trained:,} stay as they were drawn, and the network "
        f"of width {width:g} is evaluated",
    )


def _summed(words: secure_sum.Words | None) -> tuple[str, ...]:
    """Says of which values a secure sum is."""
    if words is None:
        return ()
    return (
        f"secure sum: values in steps of {words.step:.3g}, clipped beyond "
        f"{words.most * words.step:.3g}; it is simulated, and protects nothing here",
    )


def _headless(seams: kinds.Seams) -> tuple[str, ...]:
    """Says that the server's network is not whole."""
    if seams.withheld is None:
        return ()
    return (
        "part of the network stays with each client, and is on the server as it was "
        "drawn: the accuracy of the global network is no client's, "
        "--evaluation=clients has theirs",
    )


def _check(fed: federation.Federation, seams: kinds.Seams) -> tuple[dict, ...]:
    """Refuses what makes no sense, in one line; gives the shapes that this takes."""
    pieces.check_kinds(seams)
    if seams.aggregate.sees_updates and fed.rules.weighting != "uniform":
        raise ValueError(
            f"--aggregate: expected mean beside --weighting={fed.rules.weighting}, "
            f"since a {seams.aggregate} gives every client the same weight"
        )
    refusals.narrow(fed, seams)
    refusals.exits(fed, seams)
    refusals.root(fed, seams)
    refusals.attacked(fed)
    if seams == kinds.NONE:
        return ()
    blocks = initial.shapes(fed)
    pieces.check_traced(seams, blocks)
    return blocks


_ANYBODY = selection.Uniform()


def _named(fed: federation.Federation, seams: kinds.Seams) -> dict[str, Any]:
    """Names what an algorithm is made of, where it is another than usual."""
    others = {"optimizer": fed.training.optimizer, "selection": fed.rules.selection}
    usual = {**kinds.NONE._asdict(), "optimizer": None, "selection": _ANYBODY}
    parts = {**seams._asdict(), **others}
    return {name: part for name, part in parts.items() if part != usual[name]}
