"""Federated averaging over plans: what all algorithms of this folder share.

McMahan et al. (AISTATS 2017) is the case in which every plan is the full network;
CoCoFL the one in which a policy picks windows. An algorithm is three functions:
`init` makes the state, `assign` decides who trains what, `round` trains and
aggregates. Each depends on its arguments alone, so (seed, round) is all that resuming
needs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding

from fljax import (
    arrivals,
    federation,
    initial,
    mesh,
    norm_bound,
    policies,
    schedule,
    server,
    trees,
)
from fljax import rounds as engine
from fljax import sums as totals
from fljax.algorithms import base


@functools.partial(jax.jit, static_argnames=("sizes", "devices"))
def _server_step(state, sums, norms, rate, *, sizes, devices):
    """Adds up the devices' sums and ends the round; every device gets the result.

    The usual lengths of updates are kept where `sizes` of the blocks are given.
    """
    added = totals.total(sums)
    new = server.step(state, added.totals, optax.sgd(rate))
    if sizes:
        norms = norm_bound.usual(norms, added.norms, sizes)
    result = new, added.losses, added.failed, trees.all_finite(new.blocks), norms
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))


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
    rules = fed.rules
    kept = rules.clock.max_staleness if rules.clock.carries else 0

    def init() -> base.State:
        blocks = initial.blocks(fed)
        tiers = np.ones(len(fed.population.fleet.names), np.float32)
        return base.State(
            server.init(blocks, optax.sgd(rules.server_learning_rate)),
            policy.init(),
            arrivals.init(rules.clock, rules.clients_per_round),
            (blocks,) * kept,
            jnp.zeros((2, fed.model.net.num_blocks)),
            np.array(0, np.int32),
            base.Caution(np.float32(1), tiers),
        )

    def assign(state: base.State, index: int) -> schedule.Assignment:
        tiers = state.caution.tiers
        return planned.assign(
            schedule.Before(state.policy, state.timeline, tiers), index
        )

    def round(state: base.State, assignment: schedule.Assignment):
        before = rounds.everywhere(state.server)
        networks = (before.blocks, *rounds.everywhere(state.history))
        bounds = rounds.bounds(networks, assignment, state.norms, int(state.measured))
        sums = rounds.train(networks, assignment, bounds.limits)
        rate = np.float32(rules.server_learning_rate) * state.caution.server
        new, losses, failed, finite, usual = _server_step(
            before,
            sums,
            bounds.norms,
            rounds.everywhere(rate),
            sizes=rounds.sizes if rules.norm_bound else (),
            devices=fed.layout.devices,
        )
        if bounds.waiting:
            large = np.asarray(failed) == totals.TOO_LARGE
            failed = np.where(large, totals.UNMEASURED, failed)
        books = planned.books(state.timeline, assignment)
        report = base.Report(assignment, losses, failed, books, finite)
        seen = _seen(report) if policy.needs_losses else None
        return state._replace(
            server=new,
            policy=planned.observe(state.policy, assignment, seen),
            timeline=assignment.outcome.timeline,
            history=networks[:kept],
            norms=bounds.norms if bounds.waiting else usual,
            measured=np.array(bounds.measured, np.int32),
        ), report

    def rehearse(state: base.State, assignment: schedule.Assignment):
        books = planned.books(state.timeline, assignment)
        state = state._replace(timeline=assignment.outcome.timeline)
        if not policy.needs_losses:
            new = planned.observe(state.policy, assignment, None)
            state = state._replace(policy=new)
        return state, books

    return base.Algorithm(init, assign, round, rounds.programs, rehearse)


def _seen(report: base.Report) -> np.ndarray:
    """Gives the losses [A] that a policy may see: NaN of refused updates."""
    number = len(report.assignment.ids)
    losses = np.asarray(report.losses, np.float64)[:number]
    return np.where(np.asarray(report.failed)[:number] == 0, losses, np.nan)
