"""What the rounds of a run have in common, and what each of them begins with.

Legend: N all clients, A who arrive, K these with the padding of the cohort, n blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from fljax import types
from fljax.data import partition
from fljax.devices import arrivals, hostile
from fljax.engine import client, federation, feeding, schedule
from fljax.engine import seams as kinds
from fljax.nn import network
from fljax.runtime import mesh
from fljax.updates import norm_bound, privacy, secure_sum

Networks = tuple[tuple[dict, ...], ...]  # of today, of the round before, ...


class Begun(NamedTuple):
    """What a round begins with.

    Attributes:
      networks: of today and of the rounds before, on the devices.
      shared: what the server sends beside them; None: nothing.
      states: [A, S] of those who arrive; None: clients keep none.
      draw: what the noise of the round is made of, on the devices; None: it has none.
      masks: of a secure sum, who shares which, in host memory; None: there are none.
    """

    networks: Networks
    shared: tuple | None = None
    states: np.ndarray | None = None
    draw: privacy.Draw | None = None
    masks: secure_sum.Masking | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """What the rounds of a run have in common; of `make`.

    Attributes:
      fed: the federation, its data on the devices.
      planned: its schedule.
      weights: [N] of the clients.
      rooms: [N] examples that their programs have room for.
      size: K.
      seams: what clients and server do beside averaging.
      most: examples that a round brings at most, where data are streamed.
      unlimited: [2, n] on the devices: updates may be as long as they are.
      rooted: whether the server trains as well, as a client after the last one.
      hostile: [N] bool, which clients are; None: nobody is.
    """

    fed: federation.Federation
    planned: schedule.Schedule
    weights: np.ndarray
    rooms: np.ndarray
    size: int
    seams: kinds.Seams
    most: int
    unlimited: types.Array
    rooted: bool = False
    hostile: np.ndarray | None = None

    @functools.cached_property
    def sizes(self) -> norm_bound.Sizes:
        """Gives what clients send of each block, in numbers."""
        counts = self.fed.model.counts
        if self.seams.withheld is not None:
            counts = kinds.without(
                self.seams, counts, network.shapes(self.fed.model.net)
            )
        return (  # what is sent beside parameters is statistics and ranges
            tuple(count.params for count in counts),
            tuple(count.upload_bytes // 4 - count.params for count in counts),
        )

    def everywhere(self, tree: types.Tree) -> types.Tree:
        """Puts a tree onto every device."""
        return mesh.replicate(self.fed.layout.devices, tree)


def make(
    fed: federation.Federation,
    planned: schedule.Schedule,
    candidates: int,
    seams: kinds.Seams = kinds.NONE,
) -> Rounds:
    """Makes what the rounds of a federation have in common.

    Args:
      fed: the federation.
      planned: its schedule.
      candidates: number of clients that may take part.
      seams: what clients and server do beside averaging.

    Returns:
      It, with the data on the devices unless they are streamed.
    """
    rules, devices, root = fed.rules, fed.layout.devices, seams.aggregate.root_size
    shards, counts = fed.population.shards, np.asarray(fed.population.shards.counts)
    rooms = client.capacities(counts, fed.training.batch_size)
    if root:
        indices = mesh.local(shards.indices)
        shards = partition.with_more(shards._replace(indices=indices), root, fed.seed)
        counts = np.append(counts, root)
        rooms = np.append(rooms, min(rooms[rooms >= root], default=root))
    weights = counts.astype(np.float32)
    if rules.weighting == "uniform":
        weights = np.ones_like(weights)
    unlimited = np.full((2, fed.model.net.num_blocks), np.inf, np.float32)
    if not fed.layout.streams:
        data, indices = mesh.replicate(devices, (fed.population.data, shards.indices))
        fed = fed.having(data=data)
        shards = shards._replace(indices=indices)
    cohorts = rules.selection.most(rules.clients_per_round, candidates)
    most = arrivals.most_arrivals(rules.clock, cohorts, candidates) + bool(root)
    attack, enemies = seams.attack, None
    if attack is not None:
        enemies = hostile.draw(
            attack.share, attack.tier, fed.population.fleet, fed.seed
        )
        enemies = np.append(enemies, np.zeros(int(bool(root)), bool))
    return Rounds(
        fed.having(shards=shards),
        planned,
        weights,
        rooms,
        most,
        seams,
        feeding.room(counts, most),
        mesh.replicate(devices, unlimited),
        bool(root),
        enemies,
    )
