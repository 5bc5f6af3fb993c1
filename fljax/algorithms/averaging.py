"""Federated averaging over plans: what all algorithms of this folder share.

McMahan et al. (AISTATS 2017) is the case in which every plan is the full network;
CoCoFL the one in which a policy picks windows. An algorithm is three functions:
`init` makes the state, `assign` decides who trains what, `round` trains and
aggregates. Each depends on its arguments alone, so (seed, round) is all that resuming
needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding

from fljax import (
    arrivals,
    client,
    clock,
    cohort,
    failures,
    federation,
    mesh,
    norm_bound,
    policies,
    programs,
    quant,
    schedule,
    server,
    trees,
    types,
)
from fljax.models import network

INITIAL_TAG = 0xFFFF0000  # no round has this number


class Caution(NamedTuple):
    """What a rollback has lowered; all 1 before the first.

    Attributes:
      server: float32, factor of the server's learning rate.
      tiers: [T] float32, factors of what the server allows the devices of a tier.
    """

    server: types.ArrayLike
    tiers: np.ndarray


class State(NamedTuple):
    """State of an algorithm: what a checkpoint holds; all but `server` on the host.

    Attributes:
      server: the global network and the server optimiser.
      policy: what the policy carries.
      timeline: of the virtual clock.
      history: global networks of the rounds before, the newest first, for those who
        are still at work on one; empty if updates never arrive late.
      norms: [2, n] usual length of an update of each block, in its parameters and in
        its statistics and ranges; 0: not known yet.
      measured: [] int32, updates that have been measured for them; counted up to
        where they are enough.
      caution: what a rollback has lowered.
    """

    server: server.ServerState
    policy: Any
    timeline: arrivals.Timeline
    history: tuple[tuple[dict, ...], ...]
    norms: types.ArrayLike
    measured: np.ndarray
    caution: Caution


class Report(NamedTuple):
    """What comes of a round; arrays may still be computing.

    Attributes:
      assignment: of the round.
      losses: [A, ...] mean training loss of each client, in the order of the
        assignment; what follows is padding.
      failed: [A, ...] 0, or why the update was refused (`cohort.NOT_FINITE`).
      upload_bytes: sent by all clients.
      download_bytes: sent to all clients.
      compute_share: mean time of the cohort, as a share of full training.
      finite: [] whether the new global network is finite.
      seconds: of the round on the virtual clock.
      clock_seconds: since the start.
      joules: client number -> energy of its training; None: no device's power is
        known.
    """

    assignment: schedule.Assignment
    losses: types.ArrayLike
    failed: types.ArrayLike
    upload_bytes: int
    download_bytes: int
    compute_share: float
    finite: types.ArrayLike = True
    seconds: float = 0.0
    clock_seconds: float = 0.0
    joules: dict[int, float] | None = None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _by_plan(assigned: schedule.Assignment) -> list[cohort.Program]:
    return [cohort.Program(plan, 1) for plan in assigned.plans]


class Algorithm(NamedTuple):
    """An algorithm as pure functions.

    Attributes:
      init: () -> state.
      assign: (state, round index) -> who trains what.
      round: (state, assignment) -> (new state, report).
      programs: (assignment) -> what the program of each of its clients is made for.
      rehearse: (state, assignment) -> the state after a round in which nobody trains:
        the clock goes on, and so does a policy that asks for no losses.
    """

    init: Callable[[], State]
    assign: Callable[[State, int], schedule.Assignment]
    round: Callable[[State, schedule.Assignment], tuple[State, Report]]
    programs: Callable[[schedule.Assignment], Sequence] = _by_plan
    rehearse: Callable[[State, schedule.Assignment], State] = lambda state, _: state


@functools.partial(jax.jit, static_argnames=("sizes", "devices"))
def _server_step(state, sums, norms, rate, *, sizes, devices):
    """Adds up the devices' sums and ends the round; every device gets the result.

    The usual lengths of updates are kept where `sizes` of the blocks are given.
    """
    added = cohort.total(sums)
    new = server.step(state, added.totals, optax.sgd(rate))
    if sizes:
        norms = norm_bound.usual(norms, added.norms, sizes)
    result = new, added.losses, added.failed, trees.all_finite(new.blocks), norms
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))


def _initial(key: types.Key, *, net: network.Network, spec: quant.Spec):
    init_key, calibration_key = jax.random.split(key)
    return client.calibrate(net, network.init(net, init_key), spec, calibration_key)


@functools.cache  # the options ask what backend there is, so not on import
def _initial_jitted():
    options = programs.once_options()
    return jax.jit(_initial, static_argnames=("net", "spec"), compiler_options=options)


def initial_blocks(fed: federation.Federation) -> tuple[dict, ...]:
    """Draws and calibrates the network: the same for all algorithms of a seed."""
    key = jax.random.fold_in(jax.random.key(fed.seed), INITIAL_TAG)
    return _initial_jitted()(key, net=fed.net, spec=fed.training.spec)


def averaging(
    fed: federation.Federation,
    policy: policies.Policy,
    candidates: np.ndarray | None = None,
    *,
    constrained: bool = True,
) -> Algorithm:
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
    everyone = np.arange(len(fed.shards.counts)) if candidates is None else candidates
    wanted = fed.clients_per_round
    if wanted > len(everyone):
        raise ValueError(
            f"clients_per_round: expected at most {len(everyone)}, the clients that "
            f"may take part, got {wanted}"
        )
    if fed.clock.buffer > len(everyone):
        raise ValueError(
            f"clock: expected a buffer of at most {len(everyone)}, the clients that "
            f"may take part, got {fed.clock.buffer}"
        )
    planned = schedule.make(fed, policy, everyone, constrained)
    counts = np.asarray(fed.shards.counts)
    capacities = client.capacities(counts, fed.training.batch_size)
    most = int(counts.max())
    weights = counts.astype(np.float32)
    if fed.weighting == "uniform":
        weights = np.ones_like(weights)
    size = arrivals.most_arrivals(fed.clock, wanted, len(everyone))
    sizes = (  # what is sent beside parameters is statistics and ranges
        tuple(count.params for count in fed.counts),
        tuple(count.upload_bytes // 4 - count.params for count in fed.counts),
    )
    powered = bool(np.isfinite(fed.fleet.profile.watts).any())
    kept = fed.clock.max_staleness if fed.clock.carries else 0

    everywhere = functools.partial(mesh.replicate, fed.devices)
    indices = everywhere(fed.shards.indices)
    fed = fed._replace(
        data=everywhere(fed.data), shards=fed.shards._replace(indices=indices)
    )
    unlimited = everywhere(np.full((2, fed.net.num_blocks), np.inf, np.float32))

    def programs_of(assignment: schedule.Assignment) -> list[cohort.Program]:
        made_for = federation.programs(fed, assignment.plans)
        rooms = capacities[assignment.ids].tolist()
        return [
            cohort.Program(plan, room, room < most)
            for plan, room in zip(made_for, rooms, strict=True)
        ]

    def init() -> State:
        blocks = initial_blocks(fed)
        return State(
            server.init(blocks, optax.sgd(fed.server_learning_rate)),
            policy.init(),
            arrivals.init(fed.clock, wanted, len(everyone)),
            (blocks,) * kept,
            jnp.zeros((2, fed.net.num_blocks)),
            np.array(0, np.int32),
            Caution(np.float32(1), np.ones(len(fed.fleet.names), np.float32)),
        )

    def train(before: State, assignment: schedule.Assignment, limits) -> cohort.Sums:
        """Trains those who arrive, each from the network that it began with."""
        index, ids, work = assignment.round, assignment.ids, assignment.outcome.arrived
        clients = cohort.gather(
            ids,
            fed.shards,
            weights,
            failures.tampering(work.faults),
            clock.weight(fed.clock, index, work.versions),
            size,
            np.array([(p.first, p.last) for p in assignment.plans]).reshape(-1, 2),
        )
        times = planned.time_shares(assignment.plans)
        load = counts[ids] * federation.work(fed, assignment.plans, times)
        ages = (index - work.versions).tolist()
        keys = list(zip(ages, programs_of(assignment), strict=True))
        by_key = cohort.group_by_plan(keys, ids)
        groups = cohort.spread(
            [positions for _, positions in by_key],
            load,
            fed.devices.size,
            fed.width,
            size,
        )
        sums = cohort.zero_sums(before.server.blocks, size=size, devices=fed.devices)
        if not by_key:
            return sums
        placed = [mesh.distribute(fed.devices, group) for group in groups]
        shared = fed.data, everywhere(clients)

        def begun(age: int):
            """Gives network, key and learning rate of a round so long ago."""
            blocks = before.history[age - 1] if age else before.server.blocks
            key = federation.round_key(fed.seed, index - age)
            rate = np.float32(fed.learning_rate(index - age))
            return blocks, everywhere(key), everywhere(rate)

        starts = {age: begun(age) for age in sorted(set(ages))}

        def run(sums: cohort.Sums, few: slice) -> cohort.Sums:
            """Runs some of the groups; their programs are held no longer than that."""
            blocks, key, rate = starts[min(starts)]
            compiled = cohort.compile_groups(
                list(dict.fromkeys(program for (_, program), _ in by_key[few])),
                *(blocks, sums, *shared, placed[0], key, rate, limits),
                net=fed.net,
                training=fed.training,
                width=fed.width,
                devices=fed.devices,
            )
            keyed = zip(by_key[few], placed[few], strict=True)
            for ((age, program), _), group in keyed:
                blocks, key, rate = starts[age]
                earlier = cohort.weights_so_far(sums) if age else None
                run_group = compiled[program]
                sums = run_group(blocks, sums, *shared, group, key, rate, limits)
                if age:
                    scale = clock.weight(fed.clock, index, index - age)
                    begun_and_now = blocks, before.server.blocks
                    sums = cohort.catch_up(sums, earlier, *begun_and_now, scale)
            return sums

        for at in range(0, len(by_key), cohort.PLANS_AT_ONCE):
            sums = run(sums, slice(at, at + cohort.PLANS_AT_ONCE))
        return sums

    def measure(before: State, assignment: schedule.Assignment):
        """Gives usual lengths of updates and how many of them were measured so far."""
        norms, measured = everywhere(before.norms), int(before.measured)
        enough = not fed.norm_bound or measured >= norm_bound.FEWEST
        if enough or not len(assignment.ids):
            return norms, measured
        # Everybody is measured before anybody is taken.
        tried = train(before, assignment, unlimited)
        norms, number = norm_bound.first(norms, tried, sizes=sizes, devices=fed.devices)
        return norms, min(measured + int(number), norm_bound.FEWEST)

    def round(state: State, assignment: schedule.Assignment) -> tuple[State, Report]:
        outcome, done = assignment.outcome, assignment.outcome.finished
        before = state._replace(
            server=everywhere(state.server), history=everywhere(state.history)
        )
        norms, measured = measure(before, assignment)
        waiting = bool(fed.norm_bound) and measured < norm_bound.FEWEST
        limits = unlimited
        if waiting:
            limits = everywhere(np.zeros_like(unlimited))
        elif fed.norm_bound:
            known = norm_bound.limits(norms, bound=fed.norm_bound, sizes=sizes)
            limits = everywhere(known)
        sums = train(before, assignment, limits)
        server_rate = np.float32(fed.server_learning_rate) * state.caution.server
        new, losses, failed, finite, usual = _server_step(
            before.server,
            sums,
            norms,
            everywhere(server_rate),
            sizes=sizes if fed.norm_bound else (),
            devices=fed.devices,
        )
        if waiting:
            failed = np.where(
                np.asarray(failed) == cohort.TOO_LARGE, cohort.UNMEASURED, failed
            )
        spent = None
        if powered:
            watts = fed.fleet.profile.watts[fed.fleet.row[done.ids]]
            spent = arrivals.joules(done, outcome.spent, watts)
        report = Report(
            assignment,
            losses,
            failed,
            planned.upload_bytes(outcome),
            planned.full_bytes * outcome.started,
            _mean(planned.time_shares(arrivals.plans_of(done))),
            finite,
            float(outcome.timeline.now - state.timeline.now),
            float(outcome.timeline.now),
            spent,
        )
        seen = None
        if policy.needs_losses:
            number = len(assignment.ids)
            seen = np.asarray(losses, np.float64)[:number]
            seen = np.where(np.asarray(failed)[:number] == 0, seen, np.nan)
        return state._replace(
            server=new,
            policy=planned.observe(state.policy, assignment, seen),
            timeline=outcome.timeline,
            history=(before.server.blocks, *before.history)[:kept],
            norms=norms if waiting else usual,
            measured=np.array(measured, np.int32),
        ), report

    def rehearse(state: State, assignment: schedule.Assignment) -> State:
        state = state._replace(timeline=assignment.outcome.timeline)
        if policy.needs_losses:
            return state
        return state._replace(policy=planned.observe(state.policy, assignment, None))

    def assign(state: State, index: int) -> schedule.Assignment:
        tiers = state.caution.tiers
        return planned.assign(state.policy, state.timeline, tiers, index)

    return Algorithm(init, assign, round, programs_of, rehearse)
