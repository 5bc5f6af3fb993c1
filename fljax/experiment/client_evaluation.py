"""--evaluation=clients: who is evaluated, on which test examples, and what is recorded.

Legend: N all clients, E who are evaluated, G of a group of a program, D devices.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import notation, tasks, types
from fljax.algorithms import base
from fljax.data import partition, test_shards
from fljax.devices import hostile
from fljax.engine import client, client_rows, evaluate, federation, per_client
from fljax.engine import seams as kinds
from fljax.engine.per_client import figures, program
from fljax.experiment import config as configs
from fljax.runtime import mesh, streams
from fljax.updates import attacks

_ROWS = 256e6  # bytes of rows that lie on the devices at once


class Found(NamedTuple):
    """What the evaluation of clients gives; arrays may still be computing.

    Attributes:
      scores: `program.Tested` of each call.
      tier: [E] of the clients, in their order.
      met: how many of them have taken part, where they have networks of their own;
        None: all have the server's.
    """

    scores: tuple[program.Tested, ...]
    tier: np.ndarray
    met: int | None = None


class Who(NamedTuple):
    """Who is evaluated.

    Attributes:
      wanted: what --evaluation says.
      shards: the test examples of those who are evaluated.
      tested: clients that have test examples.
    """

    wanted: per_client.Clients
    shards: test_shards.Shards
    tested: int


class _Group(NamedTuple):
    """Clients that share a program: their places [G] among those evaluated."""

    places: np.ndarray
    static: program.Static


def who(
    config: configs.Config, task: tasks.Task, data: types.Dataset, parts: Any
) -> Who | None:
    """Deals the test examples out to the clients.

    Args:
      config: of the run.
      task: what labels mean.
      data: the data set.
      parts: training examples of each client.

    Returns:
      Who is evaluated; None: nobody is.

    Raises:
      ValueError: nobody knows whose the test examples are.
    """
    wanted = notation.make(config.evaluation, per_client.BY_NAME)
    if wanted is None:
        return None
    if config.partition != "natural":
        ours, theirs, number = data.y_train, data.y_test, data.num_classes
        if not task.classes:  # all examples are as of one class
            ours, theirs = (np.zeros(len(y), np.int32) for y in (ours, theirs))
            number = 1
        counts = partition.class_counts(ours, parts, number)
        shards = test_shards.by_class(theirs, counts, config.seed)
    elif data.users_test is None:
        raise ValueError(
            f"--evaluation: expected global beside --partition=natural of a data set "
            f"that does not tell whose its test examples are, got {config.evaluation!r}"
        )
    else:
        shards = test_shards.by_owner(np.asarray(data.users_test))
    if not len(shards.ids):
        raise ValueError(
            f"--evaluation: expected a test set with examples of some client, got none "
            f"for {config.evaluation!r}"
        )
    chosen = test_shards.few(shards, wanted.most, config.seed)
    return Who(wanted, chosen, len(shards.ids))


def notes(found: Who | None, clients: int) -> list[str]:
    """Says who is left out, and who is drawn.

    Args:
      found: who is evaluated.
      clients: N.
    """
    if found is None:
        return []
    lines, evaluated = [], len(found.shards.ids)
    if found.tested < clients:
        lines.append(
            f"{clients - found.tested:,} of {clients:,} clients have no test examples, "
            f"and are left out of --evaluation=clients"
        )
    if evaluated < found.tested:
        lines.append(
            f"{evaluated:,} of the {found.tested:,} clients that have test examples "
            f"are evaluated, drawn by the seed; --evaluation=clients:"
            f"{found.wanted.epochs}:{found.tested} takes all"
        )
    return lines


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Evaluates clients; of `make`.

    Attributes:
      fed: the federation.
      who: is evaluated.
      data: of training and test, on the devices.
      groups: of those who share a program.
      seams: of the algorithm.
    """

    fed: federation.Federation
    who: Who
    data: program.Data
    groups: tuple[_Group, ...]
    seams: kinds.Seams = kinds.NONE

    def of(self, seams: kinds.Seams) -> Evaluation:
        """Gives the evaluation of clients of an algorithm: of the honest ones.

        Args:
          seams: what of the network is a client's own; else all have the server's. And
            who is hostile.

        Raises:
          ValueError: of those with test examples all are hostile.
        """
        mine = seams if seams.personal is not None else kinds.NONE
        honest = self._honest(seams.attack)
        groups = [
            _Group(few, group.static._replace(seams=mine))
            for group in self.groups
            if len(few := group.places[honest[group.places]])
        ]
        if not groups:
            raise ValueError(
                f"--evaluation: expected test examples of a client that is not "
                f"hostile, since such are not evaluated, got none beside {seams.attack}"
            )
        return dataclasses.replace(self, groups=tuple(groups), seams=mine)

    def _honest(self, attack: attacks.Attack | None) -> np.ndarray:
        """Tells which of those who are evaluated are not hostile, [E] bool."""
        ids, fleet = self.who.shards.ids, self.fed.population.fleet
        if attack is None:
            return np.ones(len(ids), bool)
        return ~hostile.draw(attack.share, attack.tier, fleet, self.fed.seed)[ids]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Gives the places [E] of the clients, as the calls have them."""
        return np.concatenate([group.places for group in self.groups])

    def run(
        self, blocks: tuple[dict, ...], state: base.State, tier: np.ndarray
    ) -> Found:
        """Evaluates the clients.

        Args:
          blocks: of the global network as it is evaluated, on the devices.
          state: of the algorithm.
          tier: [N] of all clients.

        Returns:
          What they score.
        """
        over, rate = self.fed.layout.devices, 0.0
        if self.who.wanted.epochs:  # at the rate of the last round
            last = max(int(state.server.round) - 1, 0)
            rate = self.fed.rules.learning_rate(last)
        key = jax.random.fold_in(jax.random.key(self.fed.seed), streams.FINETUNE)
        key, rate = mesh.replicate(over, (key, jnp.float32(rate)))
        given = program.Given(blocks, self.data, key, rate)
        found, rows = [], None
        if self.seams.personal is not None:
            rows = state.clients
        for group in self.groups:
            size = self._at_once(group, rows)
            for begin in range(0, len(group.places), size):
                few = group._replace(places=group.places[begin : begin + size])
                slots = self._slots(few, size, rows)
                done = program.run(given, slots, static=group.static, devices=over)
                found.append(jax.tree.map(lambda x, n=len(few.places): x[:n], done))
        ids = self.who.shards.ids[self.order]
        met = None if rows is None else sum(r is not None for r in rows.stored(ids))
        return Found(tuple(found), tier[ids], met)

    def _at_once(self, group: _Group, rows: client_rows.Rows | None) -> int:
        """Counts the clients of a call: all, or as many as fit with their rows."""
        step, number = self._step(group), len(group.places)
        if rows is None:
            return number
        most = max(int(_ROWS / (4 * max(rows.width, 1))), 1)
        return min(number, step * -(-most // step))

    def _step(self, group: _Group) -> int:
        return self.fed.layout.devices.size * group.static.width

    def _slots(
        self, group: _Group, size: int, rows: client_rows.Rows | None
    ) -> program.Slot:
        """Lays clients of a group out over the devices, so many slots with padding."""
        shards, train = self.who.shards, self.fed.population.shards
        ids = shards.ids[group.places]
        columns = (
            ids,
            shards.starts[group.places],
            shards.counts[group.places],
            train.starts[ids],
            train.counts[ids],
        )
        over = self.fed.layout.devices
        step = self._step(group)
        spare = step * -(-size // step) - len(ids)
        padded = [np.pad(np.asarray(x, np.int32), (0, spare)) for x in columns]
        states = None
        if rows is not None:
            states = np.pad(rows.gather(ids), ((0, spare), (0, 0)))
        return mesh.distribute(over, program.Slot(*padded)._replace(states=states))

    def fields(self, found: Found, names: tuple[str, ...]) -> dict[str, Any]:
        """Turns what clients score into fields of a record.

        Args:
          found: of `run`, fetched.
          names: of the tiers.
        """
        task = self.fed.training.task
        counts = self.who.shards.counts[self.order]
        key = task.measure.key

        def summed(which: str) -> dict[str, Any]:
            parts = [
                figures.values(getattr(tested, which), task) for tested in found.scores
            ]
            each = np.concatenate(parts)
            return figures.summary(each, counts, found.tier, names, task.measure)

        made = figures.fields(summed("after"), key)
        if self.who.wanted.epochs:
            before = figures.fields(summed("before"), key)
            made |= {f"before_{name}": value for name, value in before.items()}
        met = {} if found.met is None else {"clients_met": int(found.met)}
        return made | {
            "clients_evaluated": len(counts),
            "clients_with_test": self.who.tested,
            **met,
        }


def make(
    found: Who,
    fed: federation.Federation,
    whole: evaluate.Static,
    test: client.Data,
    batch_size: int,
) -> Evaluation:
    """Makes what evaluates clients.

    Args:
      found: who is evaluated.
      fed: the federation.
      whole: how the global network is evaluated.
      test: the test data on the devices.
      batch_size: of a test batch, at most.

    Returns:
      The evaluation.

    Raises:
      ValueError: all clients are to be fine-tuned, and their data lie on the host.
    """
    if fed.layout.streams and found.wanted.epochs:
        raise ValueError(
            f"--evaluation: expected clients without fine-tuning beside training data "
            f"on the host (--data_memory), got {found.wanted}"
        )
    shards, people, over = found.shards, fed.population, fed.layout.devices
    train = np.asarray(people.shards.counts)[shards.ids]
    rooms = client.capacities(shards.counts, batch_size)
    held = np.zeros_like(train)
    if found.wanted.epochs:
        held = client.capacities(train, fed.training.batch_size)
    groups = []
    for room, capacity in np.unique(np.stack([rooms, held]), axis=1).T.tolist():
        size = min(batch_size, room)
        # At most as many examples side by side as of the global network.
        width = max(1, min(fed.layout.width, batch_size // size))
        static = program.Static(
            whole, fed.training, found.wanted.epochs, size, capacity, width
        )
        places = np.flatnonzero((rooms == room) & (held == capacity))
        groups.append(_Group(places, static))
    indices = mesh.replicate(over, (people.shards.indices, shards.indices))
    theirs = people.data if found.wanted.epochs else test  # else nobody trains
    data = program.Data(theirs, indices[0], test, indices[1])
    return Evaluation(fed, found, data, tuple(groups))
