"""The federation: what the algorithms of a comparison have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fljax import client, costs, plans, types
from fljax import clock as clocks
from fljax import failures as faults
from fljax import fleet as fleets
from fljax.data import partition
from fljax.models import network


class Federation(NamedTuple):
    """What the algorithms of a comparison have in common; N clients, K a round.

    Attributes:
      net: the network.
      data: training data on the device.
      shards: the clients' examples; their numbers on the device, or put there.
      fleet: the clients' devices.
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
      clock: what time costs and how long the server waits.
      failures: what goes wrong, how often.
      norm_bound: an update is refused whose length is above this many times the usual
        one of its window; 0: none is.
      table_error: standard deviation of the log of what windows really cost against
        what the table says.
      mixed: the windows of a round share one program instead of having one each.
    """

    net: network.Network
    data: client.Data
    shards: partition.Shards
    fleet: fleets.Fleet
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
    clock: clocks.Clock = clocks.Clock()
    failures: faults.Rates = faults.Rates()
    norm_bound: float = 0.0
    table_error: float = 0.0
    mixed: bool = False


def rules(fed: Federation) -> clocks.Clock:
    """Gives the clock with all that it leaves open filled in."""
    return clocks.resolve(
        fed.clock, fed.fleet.reference, fed.table, fed.counts, fed.training.batch_size
    )


def programs(
    fed: Federation, assigned: Sequence[plans.Plan]
) -> list[plans.Plan | plans.Mixed]:
    """Says what the program of each client of a round is made for.

    Args:
      fed: the federation.
      assigned: the plans of the round's clients.

    Returns:
      Their plans; where windows share a program, and somebody freezes something,
      `plans.Mixed` for each.
    """
    blocks = fed.net.num_blocks
    widths = {plan.bits for plan in assigned if not plans.is_full(plan, blocks)}
    if not fed.mixed or not widths:
        return list(assigned)
    # Who trains everything has no codes, and needs no program of its width.
    return [plans.Mixed(p.bits if p.bits in widths else min(widths)) for p in assigned]


def work(
    fed: Federation, assigned: Sequence[plans.Plan], alone: np.ndarray
) -> np.ndarray:
    """Says how much of a full step each client of a round computes here.

    Args:
      fed: the federation.
      assigned: the plans of the round's clients.
      alone: [K], what their windows alone compute of it.

    Returns:
      [K]; 1 where clients of all windows run side by side in a program, and compute
      all that any of them needs.
    """
    if fed.width == 1:
        return alone
    mixed = [isinstance(p, plans.Mixed) for p in programs(fed, assigned)]
    return np.where(mixed, 1.0, alone)


def round_key(seed: int, round_index: int) -> types.Key:
    """Gives the key of a round: fold_in(key(seed), round)."""
    return jax.random.fold_in(jax.random.key(seed), round_index)
