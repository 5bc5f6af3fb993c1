"""Test shards: the test examples dealt out as the training examples are.

Legend: M test examples, N owners (clients or tiers), C classes, E clients that have
test examples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax.runtime import streams

NOBODY = -1


class Shards(NamedTuple):
    """The test examples of each client that has some, one client's after the other's.

    Attributes:
      ids: [E] int32 client numbers, rising.
      indices: [sum of counts] int32.
      starts: [E] int32, where each client's begin.
      counts: [E] int32, all positive.
    """

    ids: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def dealt(
    labels: np.ndarray, by_owner: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Deals test examples out to owners, each class by their shares of it.

    Args:
      labels: [M] classes of the test examples.
      by_owner: [N, C] training examples of each class of each owner.
      generator: draws which example is whose.

    Returns:
      [M] numbers of the owners; N where no owner has training examples of the class.
    """
    owner = np.full(len(labels), len(by_owner))
    for kind in np.unique(labels):
        ends = np.cumsum(by_owner[:, kind])
        if not ends[-1]:
            continue
        rows = generator.permutation(np.flatnonzero(labels == kind))
        # Evenly spaced points: counts are off by less than 1, and on average right.
        points = (np.arange(len(rows)) + generator.random()) / len(rows)
        owner[rows] = np.searchsorted(ends, points * ends[-1], side="right")
    return owner


def by_class(labels: np.ndarray, counts: np.ndarray, seed: int) -> Shards:
    """Deals test examples out to clients by the classes of their training examples.

    >>> shards = by_class(np.array([0, 0, 1, 1]), np.array([[5, 0], [5, 0], [0, 9]]), 0)
    >>> shards.ids.tolist(), shards.counts.tolist()
    ([0, 1, 2], [1, 1, 2])

    Args:
      labels: [M] classes of the test examples.
      counts: [N, C] training examples of each class of each client.
      seed: of the experiment.

    Returns:
      The shards.
    """
    owner = dealt(labels, counts, streams.generator(seed, streams.TEST_SHARDS))
    return by_owner(np.where(owner < len(counts), owner, NOBODY))


def by_owner(owner: np.ndarray) -> Shards:
    """Gives test examples to those whose they are.

    >>> by_owner(np.array([7, -1, 3, 7])).indices.tolist()
    [2, 0, 3]

    Args:
      owner: [M] client numbers; `NOBODY`: nobody's.

    Returns:
      The shards.
    """
    mine = np.flatnonzero(owner >= 0)
    order = mine[np.argsort(owner[mine], kind="stable")]
    ids, counts = np.unique(owner[mine], return_counts=True)
    starts = np.cumsum(counts) - counts
    return Shards(*(x.astype(np.int32) for x in (ids, order, starts, counts)))


def few(shards: Shards, most: int, seed: int) -> Shards:
    """Draws clients where more have test examples than are to be evaluated.

    The same ones in every round and run of a seed, so that curves can be compared.

    Args:
      shards: of all.
      most: clients.
      seed: of the experiment.

    Returns:
      The shards of those who are drawn, or of all.
    """
    number = len(shards.ids)
    if number <= most:
        return shards
    generator = streams.generator(seed, streams.EVALUATED)
    rows = np.sort(generator.permutation(number)[:most])
    return shards._replace(
        ids=shards.ids[rows], starts=shards.starts[rows], counts=shards.counts[rows]
    )
