"""Federated averaging over plans: what all algorithms of this folder share.

McMahan et al. (AISTATS 2017) is the case in which every plan is the full network;
CoCoFL the one in which a policy picks windows. An algorithm is three functions:
`init` makes the state, `assign` decides who trains what, `round` trains and
aggregates. Each depends on its arguments alone, so (seed, round) is all that resuming
needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding

from fljax import (
    client,
    cohort,
    costs,
    devices,
    mesh,
    plans,
    policies,
    server,
    trees,
    types,
)
from fljax.data import partition
from fljax.models import network

INITIAL_TAG = 0xFFFF0000  # no round has this number


class Federation(NamedTuple):
    """What the algorithms of a comparison have in common; N clients, K a round.

    Attributes:
      net: the network.
      data: training data on the device.
      shards: the clients' examples, in host memory.
      tiers: of the devices.
      tier_index: [N] tier of every client.
      table: costs of the windows.
      counts: of the blocks.
      training: how clients train.
      learning_rate: (round) -> of the clients.
      server_learning_rate: 1 takes the mean of the deltas as it is.
      clients_per_round: K.
      weighting: "uniform" as in the paper, or "examples".
      width: clients that run side by side in a program.
      seed: of everything that is drawn.
      devices: the mesh that rounds are spread over.
    """

    net: network.Network
    data: client.Data
    shards: partition.Shards
    tiers: tuple[devices.Tier, ...]
    tier_index: np.ndarray
    table: costs.CostTable
    counts: tuple[types.BlockCounts, ...]
    training: client.Training
    learning_rate: Callable[[int], float]
    server_learning_rate: float
    clients_per_round: int
    weighting: str
    width: int
    seed: int
    devices: Mesh


class Caution(NamedTuple):
    """What a rollback lowers; all ones until there is one.

    Attributes:
      server: [] float32 factor of the server's learning rate.
      tiers: [T] float32 factor of the budgets of each tier.
    """

    server: types.ArrayLike
    tiers: types.ArrayLike


class State(NamedTuple):
    """State of an algorithm: what a checkpoint holds.

    Attributes:
      server: the global network and the server optimiser.
      policy: what the policy carries.
      caution: what rollbacks have lowered.
    """

    server: server.ServerState
    policy: Any
    caution: Caution


class Assignment(NamedTuple):
    """Who trains what in a round.

    Attributes:
      round: its index.
      ids: [K] client numbers.
      plans: K plans, in the order of ids.
    """

    round: int
    ids: np.ndarray
    plans: list[plans.Plan]


class Report(NamedTuple):
    """What comes of a round; arrays may still be computing.

    Attributes:
      assignment: of the round.
      losses: [K] mean training loss of each client, in the order of the assignment.
      failed: [K] 1 where loss or update is not finite.
      upload_bytes: sent by all clients.
      download_bytes: sent to all clients.
      compute_share: mean time of the cohort, as a share of full training.
      finite: [] whether the new global network is finite.
    """

    assignment: Assignment
    losses: types.ArrayLike
    failed: types.ArrayLike
    upload_bytes: int
    download_bytes: int
    compute_share: float
    finite: types.ArrayLike = True


class Algorithm(NamedTuple):
    """An algorithm as pure functions.

    Attributes:
      init: () -> state.
      assign: (state, round index) -> who trains what.
      round: (state, assignment) -> (new state, report).
    """

    init: Callable[[], State]
    assign: Callable[[State, int], Assignment]
    round: Callable[[State, Assignment], tuple[State, Report]]


def round_key(seed: int, round_index: int) -> types.Key:
    """Gives the key of a round: fold_in(key(seed), round)."""
    return jax.random.fold_in(jax.random.key(seed), round_index)


def window_times(table: costs.CostTable) -> dict[tuple[int, int], float]:
    """Maps (first, last) to the time of the window, as a share of full training."""
    windows = map(tuple, table.windows.tolist())
    full = {(0, table.num_blocks - 1): 1.0}  # also where the table leaves it out
    return full | dict(zip(windows, table.time.tolist(), strict=True))


def time_shares(
    times: dict[tuple[int, int], float], assigned: list[plans.Plan]
) -> np.ndarray:
    """Looks up the time of each plan [K] in `window_times`."""
    return np.array([times[plan.first, plan.last] for plan in assigned])


@functools.partial(jax.jit, static_argnames=("optimiser_rate", "devices"))
def _server_step(state, sums, cohort_weight, caution, *, optimiser_rate, devices):
    """Adds up the devices' sums and ends the round; every device gets the result."""
    added = cohort.total(sums)
    optimiser = optax.sgd(optimiser_rate * caution)
    new = server.step(state, added.totals, cohort_weight, optimiser)
    result = new, added.losses, added.failed, trees.all_finite(new.blocks)
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))


@functools.partial(jax.jit, static_argnames=("net", "spec"))
def _initial_blocks(key, *, net, spec):
    init_key, calibration_key = jax.random.split(key)
    return client.calibrate(net, network.init(net, init_key), spec, calibration_key)


def initial_blocks(fed: Federation) -> tuple[dict, ...]:
    """Draws and calibrates the network: the same for all algorithms of a seed."""
    key = jax.random.fold_in(jax.random.key(fed.seed), INITIAL_TAG)
    return _initial_blocks(key, net=fed.net, spec=fed.training.spec)


def averaging(
    fed: Federation, policy: policies.Policy, candidates: np.ndarray | None = None
) -> Algorithm:
    """Makes an algorithm that averages what each client's plan trained.

    Args:
      fed: the clients and how they train.
      policy: which plan for which client.
      candidates: client numbers that may take part; None: all.

    Returns:
      The algorithm.

    Raises:
      ValueError: a round wants more clients than may take part.
    """
    everyone = np.arange(len(fed.shards.counts)) if candidates is None else candidates
    if fed.clients_per_round > len(everyone):
        raise ValueError(
            f"clients_per_round: expected at most {len(everyone)}, the clients that "
            f"may take part, got {fed.clients_per_round}"
        )
    counts = np.asarray(fed.shards.counts)
    indices = np.asarray(fed.shards.indices)
    weights = counts.astype(np.float32)
    if fed.weighting == "uniform":
        weights = np.ones_like(weights)
    times = window_times(fed.table)
    full_bytes = plans.upload_bytes(plans.full(fed.net.num_blocks), fed.counts)

    everywhere = functools.partial(mesh.replicate, fed.devices)
    fed = fed._replace(data=everywhere(fed.data))

    def init() -> State:
        optimiser = optax.sgd(fed.server_learning_rate)
        caution = Caution(np.ones((), np.float32), np.ones(len(fed.tiers), np.float32))
        start = server.init(initial_blocks(fed), optimiser)
        return State(start, policy.init(), caution)

    def assign(state: State, index: int) -> Assignment:
        ids = cohort.sample(fed.seed, index, everyone, fed.clients_per_round)
        key = round_key(fed.seed, index)
        budgets = devices.draw_budgets(key, ids, fed.tier_index, fed.tiers)
        factors = np.asarray(state.caution.tiers)[fed.tier_index[ids]]
        budgets = policies.lowered(fed.table, budgets, factors)
        return Assignment(index, ids, policy.assign(state.policy, key, ids, budgets))

    def round(state: State, assignment: Assignment) -> tuple[State, Report]:
        key = everywhere(round_key(fed.seed, assignment.round))
        rate = everywhere(np.float32(fed.learning_rate(assignment.round)))
        before = everywhere(state.server)
        clients = cohort.gather(assignment.ids, indices, counts, weights)
        work = clients.counts * time_shares(times, assignment.plans)
        by_plan = cohort.group_by_plan(assignment.plans, assignment.ids)
        groups = cohort.spread(
            [positions for _, positions in by_plan], work, fed.devices.size, fed.width
        )
        sums = cohort.zero_sums(
            before.blocks, size=len(assignment.ids), devices=fed.devices
        )
        placed = [mesh.distribute(fed.devices, group) for group in groups]
        shared = fed.data, everywhere(clients)
        compiled = cohort.compile_groups(
            [plan for plan, _ in by_plan],
            *(before.blocks, sums, *shared, placed[0], key, rate),
            net=fed.net,
            training=fed.training,
            width=fed.width,
            devices=fed.devices,
        )
        for (plan, _), group in zip(by_plan, placed, strict=True):
            sums = compiled[plan](before.blocks, sums, *shared, group, key, rate)
        new, losses, failed, finite = _server_step(
            before,
            sums,
            everywhere(weights[assignment.ids].sum()),
            everywhere(state.caution.server),
            optimiser_rate=fed.server_learning_rate,
            devices=fed.devices,
        )
        policy_state = policy.observe(
            state.policy, assignment.ids, assignment.plans, None
        )
        report = Report(
            assignment,
            losses,
            failed,
            sum(plans.upload_bytes(plan, fed.counts) for plan in assignment.plans),
            full_bytes * len(assignment.ids),
            float(time_shares(times, assignment.plans).mean()),
            finite,
        )
        return State(new, policy_state, state.caution), report

    return Algorithm(init, assign, round)
