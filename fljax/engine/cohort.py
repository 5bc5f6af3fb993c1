"""The clients of a round: gathered, grouped by program, spread over devices.

Legend: D devices, S slots of a device, A clients whose updates arrive, K those with
the padding of the cohort, W of a chunk.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from fljax import types
from fljax.data import partition
from fljax.engine import client
from fljax.nn import slicing

SERVER = -1  # number of the server, where it trains as a client does


class Round(NamedTuple):
    """The round that a group of clients began with; shared by all devices.

    Attributes:
      blocks: global state, a tuple over blocks.
      data: training data.
      key: of the round; a client's is fold_in(key, number).
      learning_rate: of the clients, [].
      limits: [2, n] squared L2 norms that a client may change a block's parameters, and
        its statistics and ranges, by. An update is refused if one of its two squared
        norms is above the sum of the limits over the blocks of its window.
      shared: what the server sends beside the network, shaped like its parameters;
        None: nothing.
      channels: of `slicing.places`, that clients of a narrower network keep; None: all.
      whole: blocks of the whole network, where `blocks` are those of a narrower one.
      clip: [] L2 norm that all a client sends is shortened to; None: it is not.
      pull: as of `program.Batch`.

    Of several runs in one program what is a run's own, all but `data`, is stacked.
    """

    blocks: tuple[dict, ...]
    data: client.Data
    key: types.Key
    learning_rate: types.ArrayLike
    limits: types.ArrayLike
    shared: tuple | None = None
    channels: slicing.Places | None = None
    whole: tuple[dict, ...] | None = None
    clip: types.ArrayLike | None = None
    pull: types.ArrayLike | None = None

    @property
    def narrowed(self) -> Round:
        """Cuts the network out that the clients of a group have."""
        if self.channels is None:
            return self
        cut = slicing.take(self.blocks, self.channels)
        return self._replace(blocks=cut, whole=self.blocks)

    def upto(self, number: int) -> Round:
        """Gives the round of clients whose network is so many blocks, the first."""
        if number == len(self.blocks):
            return self
        return self._replace(blocks=self.blocks[:number], whole=self.everything)

    def of(self, run: types.ArrayLike | None) -> Round:
        """Gives the round of one of several runs; None: it is the only one."""
        return self if run is None else stacked(self, ROUND_OF, run)

    @property
    def everything(self) -> tuple[dict, ...]:
        """Gives the blocks of the whole network."""
        return self.blocks if self.whole is None else self.whole


class Clients(NamedTuple):
    """The cohort; shared by all devices.

    Attributes:
      indices: int32, the examples of all clients of the run, one after the other.
      ids: [K] int32, client numbers.
      starts: [K] int32, where their examples begin.
      counts: [K] int32, how many they are.
      weights: [K] float32.
      tampering: [K] float32, what goes wrong with an update: its factor.
      scales: [K] float32, how much of an update is taken: less of a stale one.
      windows: [K, 2] int32, first and last block that they train.
      states: [K, S] of each before the round; None: they keep none.
      hostile: [K] bool; None: nobody is.
      partners: [K, E, 3] int32, with whom it shares masks in a secure sum, as of
        `secure_sum.masked`; None: there are no masks.
      run: [K] int32, whose clients they are of several runs; None: of one.
    """

    indices: types.ArrayLike
    ids: types.ArrayLike
    starts: types.ArrayLike
    counts: types.ArrayLike
    weights: types.ArrayLike
    tampering: types.ArrayLike
    scales: types.ArrayLike
    windows: types.ArrayLike
    states: types.ArrayLike | None = None
    hostile: types.ArrayLike | None = None
    partners: types.ArrayLike | None = None
    run: types.ArrayLike | None = None


# What is stacked of a round of several runs, as axes of `jax.vmap`.
ROUND_OF: Any = Round(0, None, 0, 0, 0, 0, clip=0)  # type: ignore[arg-type]


def stacked(tree: Any, axes: Any, run: types.ArrayLike) -> Any:
    """Takes what is a run's own out of a tuple in which it is stacked.

    Args:
      tree: a named tuple.
      axes: of the same kind: 0 for parts that are stacked, None for all others.
      run: which run, [].
    """
    parts = (
        part if axis is None else jax.tree.map(lambda x: x[run], part)
        for axis, part in zip(axes, tree, strict=True)
    )
    return type(tree)(*parts)


class Group(NamedTuple):
    """Which clients of the cohort each device trains in one program.

    Attributes:
      positions: [D, S] int32, their places in the cohort; K for padding.
      sizes: [D] int32, how many of a device's slots are clients.
    """

    positions: types.ArrayLike
    sizes: types.ArrayLike


class Factors(NamedTuple):
    """What updates are multiplied by: a number for all, or [A].

    Attributes:
      tampering: as of `Clients`.
      scales: as of `Clients`.
    """

    tampering: np.ndarray | float = 1.0
    scales: np.ndarray | float = 1.0


Key = TypeVar("Key")


def group_by(keys: Sequence[Key], ids: np.ndarray) -> list[tuple[Key, np.ndarray]]:
    """Sorts clients by key, and by number within a key.

    The order of the cohort then leaves no trace in the order of summation.

    Args:
      keys: K programs, or anything that can be sorted and tells groups apart.
      ids: [K] client numbers.

    Returns:
      (key, places in the cohort of its clients) for every key, in order.
    """
    members: dict[Key, list[int]] = {}
    for position, key in enumerate(keys):
        members.setdefault(key, []).append(position)
    return [
        (key, np.array(sorted(members[key], key=lambda k: ids[k]), np.int32))
        for key in sorted(members)  # type: ignore[type-var]
    ]


def gather(
    ids: np.ndarray,
    shards: partition.Shards,
    weights: np.ndarray,
    size: int | None = None,
    *,
    factors: Factors = Factors(),
    windows: np.ndarray | None = None,
) -> Clients:
    """Takes the cohort's rows out of the tables of all clients.

    Args:
      ids: [A] client numbers.
      shards: of all clients.
      weights: [N] of all clients.
      size: K, A or more, filled up with rows that no group may name; None: A.
      factors: of their updates.
      windows: [A, 2] of the clients; None: no program asks for them.

    Returns:
      The cohort in host memory, [K]; the examples lie where they lay.
    """
    number = len(ids)
    size = number if size is None else size

    def filled(values: np.ndarray | float, dtype, *shape: int) -> np.ndarray:
        rows = np.zeros((size, *shape), dtype)  # np.pad takes ten times as long
        rows[:number] = values
        return rows

    padded = filled(ids, np.int32)
    return Clients(
        indices=shards.indices,
        ids=padded,
        starts=shards.starts[padded],
        counts=shards.counts[padded],
        weights=weights[padded].astype(np.float32),
        tampering=filled(factors.tampering, np.float32),
        scales=filled(factors.scales, np.float32),
        windows=filled(0 if windows is None else windows, np.int32, 2),
    )


class Roles(NamedTuple):
    """What clients of several windows compute that run side by side.

    Each block runs in all roles that a client of the chunk has.

    Attributes:
      windows: [A, 2] of the clients.
      operations: [n] of the blocks' forward passes, in any unit. A trained block takes
        three times as many, one that is frozen after the window two.
    """

    windows: np.ndarray
    operations: np.ndarray

    def work(self, ordered: np.ndarray, width: int) -> np.ndarray:
        """Gives what a client of each chunk [chunks] computes, of a full step.

        Args:
          ordered: places in the cohort of a group's clients, a chunk after the other.
          width: W.
        """
        first, last = self.windows[ordered].T[..., None]
        blocks, starts = np.arange(len(self.operations)), range(0, len(ordered), width)
        roles = blocks < first, (first <= blocks) & (blocks <= last), last < blocks
        before, inside, behind = (np.logical_or.reduceat(r, starts) for r in roles)
        return (
            (before + 3 * inside + 2 * behind)
            @ self.operations
            / (3 * self.operations.sum())
        )


def chunks(
    members: np.ndarray, work: np.ndarray, width: int, roles: Roles | None
) -> tuple[np.ndarray, np.ndarray]:
    """Orders the clients of a group so that their chunks take little.

    Either those with the most work come first, so that those of a chunk take about as
    long, or, if that takes less, those with like windows stand together.

    Args:
      members: places in the cohort of the group's clients.
      work: as of `spread`; so are `width` and `roles`.
      width: W.
      roles: None: work is all.

    Returns:
      Places in the cohort, a chunk after the other; how long each chunk takes.
    """
    starts = range(0, len(members), width)

    def loads(ordered: np.ndarray) -> np.ndarray:
        longest = width * np.maximum.reduceat(work[ordered], starts)
        return longest if roles is None else longest * roles.work(ordered, width)

    by_work = members[np.argsort(-work[members], kind="stable")]
    if roles is None or width == 1:
        return by_work, loads(by_work)
    first, last = roles.windows[by_work].T
    by_window = by_work[np.lexsort((last, first))]
    ordered = min((by_work, by_window), key=lambda places: loads(places).sum())
    return ordered, loads(ordered)


def spread(
    groups: Sequence[np.ndarray],
    work: np.ndarray,
    devices: int,
    width: int,
    size: int | None = None,
    roles: Roles | None = None,
) -> list[Group]:
    """Deals the chunks of all groups out to the devices, evenly by work.

    Clients of a chunk take about as long or have like windows, see `chunks`, and each
    chunk goes to the device with the least work so far (Graham, SIAM J. Appl. Math.
    1969), as long as it has room.

    Args:
      groups: for each plan the places in the cohort of its clients.
      work: [A] of each client, in any unit.
      devices: D.
      width: W.
      size: K, of the cohort with its padding; None: A.
      roles: what the windows of a chunk add to its work; None: nothing.

    Returns:
      A group for each plan, all of the same shape.
    """
    size = len(work) if size is None else size
    most = -(-size // width)  # chunks of a group
    room = -(-most // devices) * width
    queue, result = [(0.0, d) for d in range(devices)], []  # a heap of (load, device)
    for members in groups:
        ordered, loads = chunks(members, work, width, roles)
        positions = np.full((devices, room), size, np.int32)
        sizes = np.zeros(devices, np.int32)
        without_room: list[tuple[float, int]] = []
        for start, takes in zip(
            range(0, len(ordered), width), loads.tolist(), strict=True
        ):
            chunk = ordered[start : start + width]
            load, d = heapq.heappop(queue)
            positions[d, sizes[d] : sizes[d] + len(chunk)] = chunk
            sizes[d] += len(chunk)
            left = queue if sizes[d] < room else without_room
            heapq.heappush(left, (load + takes, d))
        for device in without_room:
            heapq.heappush(queue, device)
        result.append(Group(positions, sizes))
    return result
