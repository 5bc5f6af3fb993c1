"""What an experiment must hold, refused before anything is allocated for it."""

from __future__ import annotations

from fljax import bounds
from fljax.algorithms import base
from fljax.devices import arrivals
from fljax.engine import client, client_rows, federation, feeding, width
from fljax.experiment import config as configs
from fljax.runtime import memory

# What XLA takes for each of a client's examples in a pass: keys, draws, places.
_BYTES_OF_SLOT = 44


def kept(
    config: configs.Config, fed: federation.Federation, made: base.Algorithm
) -> None:
    """Refuses what clients keep from round to round if it cannot fit.

    Raises:
      ValueError: one line that names the flag and says what it would take.
    """
    if not made.keeps:
        return
    rules, clients = fed.rules, len(fed.population.shards.counts)
    flag = "--codec" if rules.codec and rules.codec.memories else "--algorithm"
    cohort = rules.selection.most(rules.clients_per_round, clients)
    a_round = arrivals.most_arrivals(rules.clock, cohort, clients)
    visited = client_rows.most_visited(clients, config.rounds, a_round)
    copies = 2 if config.rollback.asked_for else 1  # the good state has rows, too
    client_rows.require(flag, visited * copies + 3 * a_round, made.keeps)
    what = f"what {a_round:,} clients keep, {made.keeps:,} values each"
    memory.require(flag, what, 3 * 4 * a_round * made.keeps, memory.of_device())


def buffer(fed: federation.Federation) -> None:
    """Refuses a buffer of more updates than there are clients.

    Raises:
      ValueError: one line that names the flag.
    """
    everyone = len(fed.population.shards.counts)
    if fed.rules.clock.buffer > everyone:
        raise ValueError(
            f"--clock.buffer: expected at most {everyone}, the number of clients, "
            f"got {fed.rules.clock.buffer}"
        )


def rounds(fed: federation.Federation, runs: int = 1) -> None:
    """Refuses rounds that cannot fit into a device, before anything is allocated.

    Args:
      fed: the federation.
      runs: whose clients train in the same programs.

    Raises:
      ValueError: one line that names the flag and says what it would take.
    """
    capacity = int(fed.population.shards.counts.max())
    training = client.fitting(fed.training, capacity)
    beside = f"{fed.layout.width:,} client{'s' * (fed.layout.width > 1)} at a time"
    step = fed.layout.width * width.bytes_of_client(fed.model.counts, training)
    orders = fed.layout.width * training.local_epochs * capacity * _BYTES_OF_SLOT
    kept = fed.rules.clock.max_staleness if fed.rules.clock.carries else 0
    networks = kept * sum(count.upload_bytes for count in fed.model.counts)
    everybody = len(fed.population.shards.counts)
    cohort = fed.rules.selection.most(fed.rules.clients_per_round, everybody)
    arrive = arrivals.most_arrivals(fed.rules.clock, cohort, everybody)
    robust, attack = fed.rules.aggregate, fed.rules.attack
    arrive += bool(robust.root_size)  # the server trains, too
    row = sum(count.upload_bytes for count in fed.model.counts)
    # On several devices each has its own, and the sum of all; what an aggregate makes
    # of them takes as much again at most, as do those of hostile clients.
    colludes = attack is not None and attack.colludes
    several = fed.layout.devices.size > 1
    looked = robust.sees_updates + colludes
    updates = runs * arrive * (2 + several) * row * looked
    looks = "attack" if colludes else "aggregate"
    most, data = memory.of_device(), fed.population.data
    examples = len(data.x)
    held = feeding.size(data, examples)
    if fed.layout.streams:  # two rounds', since one is sent while another trains
        examples = feeding.room(fed.population.shards.counts, arrive)
        held = 2 * feeding.size(data, examples)
    for flag, what, size in (
        ("batch_size", f"steps of {training.batch_size:,} examples, {beside}", step),
        (
            "local_epochs",
            f"the order of {training.local_epochs:,} passes over {capacity:,} examples",
            orders,
        ),
        ("clock.max_staleness", f"{kept:,} old networks", networks),
        (looks, f"{arrive:,} updates one by one", updates),
        ("data_memory", f"{examples:,} examples on each device", held),
    ):
        memory.require(f"--{flag}", what, size, most)
    if client.steps_of(capacity, training) > bounds.MOST:
        raise ValueError(
            f"--local_epochs: expected at most {bounds.MOST:,} steps of a client in a "
            f"round, got {client.steps_of(capacity, training):,}"
        )
