"""Federated averaging over plans: what all algorithms of this folder share.

McMahan et al. (AISTATS 2017) is the case in which every plan is the full network;
CoCoFL the one in which a policy picks windows.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from fljax import policies
from fljax.algorithms import base
from fljax.devices import arrivals
from fljax.engine import books, federation, initial, schedule
from fljax.engine import rounds as engine
from fljax.updates import server


@dataclasses.dataclass(frozen=True, eq=False)
class _Averaging:
    """The functions of the algorithm, with what they have in common."""

    fed: federation.Federation
    policy: policies.Policy
    candidates: int
    planned: schedule.Schedule
    rounds: engine.Rounds

    @property
    def _kept(self) -> int:
        """Counts the networks of rounds before that late updates may ask for."""
        clock = self.fed.rules.clock
        return clock.max_staleness if clock.carries else 0

    def init(self) -> base.State:
        rules, blocks = self.fed.rules, initial.blocks(self.fed)
        tiers = len(self.fed.population.fleet.names)
        return base.State(
            server.init(blocks, optax.sgd(rules.server_learning_rate)),
            self.policy.init(),
            arrivals.init(rules.clock, rules.clients_per_round, self.candidates),
            (blocks,) * self._kept,
            jnp.zeros((2, self.fed.model.net.num_blocks)),
            np.array(0, np.int32),
            base.Caution(np.float32(1), np.ones(tiers, np.float32)),
        )

    def assign(self, state: base.State, index: int) -> schedule.Assignment:
        before = schedule.Before(state.policy, state.timeline, state.caution.tiers)
        return self.planned.assign(before, index)

    def round(
        self, state: base.State, assignment: schedule.Assignment
    ) -> tuple[base.State, base.Report]:
        rounds, measured = self.rounds, int(state.measured)
        before = rounds.everywhere(state.server)
        networks = (before.blocks, *rounds.everywhere(state.history))
        bounds = rounds.bounds(networks, assignment, state.l2, measured)
        sums = rounds.train(networks, assignment, bounds.limits)
        rate = np.float32(self.fed.rules.server_learning_rate) * state.caution.server
        new, losses, failed, finite, usual = rounds.step(before, sums, bounds, rate)
        spent = self.planned.books(state.timeline, assignment)
        report = base.Report(assignment, losses, failed, spent, finite)
        heard = report.heard() if self.policy.needs_losses else None
        return state._replace(
            server=new,
            policy=self.planned.observe(state.policy, assignment, heard),
            timeline=assignment.outcome.timeline,
            history=networks[: self._kept],
            l2=bounds.l2 if bounds.waiting else usual,
            measured=np.array(bounds.measured, np.int32),
        ), report

    def rehearse(
        self, state: base.State, assignment: schedule.Assignment
    ) -> tuple[base.State, books.Books]:
        spent = self.planned.books(state.timeline, assignment)
        state = state._replace(timeline=assignment.outcome.timeline)
        if self.policy.needs_losses:
            return state, spent
        new = self.planned.observe(state.policy, assignment, None)
        return state._replace(policy=new), spent


def averaging(
    fed: federation.Federation,
    policy: policies.Policy,
    candidates: np.ndarray | None = None,
    *,
    constrained: bool = True,
) -> base.Algorithm:
    """Makes an algorithm that averages what each client's plan trained.

    Args:
      fed: the clients and how they train.
      policy: which plan for which client.
      candidates: client numbers that may take part; None: all.
      constrained: whether a device fails that has less memory than its plan needs;
        false for algorithms that take no notice of memory.

    Returns:
      The algorithm.

    Raises:
      ValueError: a round wants more clients than may take part.
    """
    everyone = (
        np.arange(len(fed.population.shards.counts))
        if candidates is None
        else candidates
    )
    planned = schedule.make(fed, policy, everyone, constrained)
    rounds = engine.make(fed, planned, len(everyone))
    made = _Averaging(fed, policy, len(everyone), planned, rounds)
    functions = made.init, made.assign, made.round, rounds.programs, made.rehearse
    return base.Algorithm(*functions)
