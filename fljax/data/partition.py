"""Splits of a training set over clients, as index arrays.

`iid`, `dirichlet` and `resource_correlated` draw the same numbers in the same order
as the reference implementation of CoCoFL (Pfeiffer et al., "CoCoFL: Communication-
and Computation-Aware Federated Learning via Partial NN Freezing and Quantization",
TMLR 2023), so equal seeds give equal splits, index for index. The Dirichlet split is
that of Hsu et al. (arXiv 1909.06335), with shards of equal size.

A split is a sequence of N int arrays, one a client; `index_table` turns it into flat
arrays that a device can gather from. `skewed` has more splits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fljax import types
from fljax.runtime import streams

NAMED = 10  # how many empty clients an error names


@dataclasses.dataclass(frozen=True)
class Split(Sequence):
    """A split as a sequence of N index arrays, which are made when asked for.

    A million clients are two arrays, not a million.

    Attributes:
      order: [examples] int64, the shards one after the other.
      sizes: [N] int64, of the shards.
    """

    order: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client):
        if isinstance(client, slice):
            return [self[i] for i in range(*client.indices(len(self)))]
        end = self.ends[client]
        return self.order[end - self.sizes[client] : end]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Where each shard ends in `order`, [N]."""
        return np.cumsum(self.sizes)


class Shards(NamedTuple):
    """The examples of every client, one client's after the other's.

    Attributes:
      indices: [sum of counts] int32.
      starts: [N] int32, where each client's begin.
      counts: [N] int32, all positive.
    """

    indices: types.ArrayLike
    starts: np.ndarray
    counts: np.ndarray


def with_more(shards: Shards, number: int, seed: int) -> Shards:
    """Adds a shard of examples drawn from all shards: the root set of a server.

    Args:
      shards: of the clients.
      number: of examples, as many as there are at most, drawn uniformly without
        replacement; the clients keep theirs.
      seed: of the draw.

    Returns:
      Shards of which the last is the new one.
    """
    indices = np.asarray(shards.indices)
    drawn = streams.generator(seed, streams.ROOT).permutation(len(indices))[:number]
    return Shards(
        np.concatenate([indices, indices[drawn]]),
        np.append(shards.starts, np.asarray(len(indices), shards.starts.dtype)),
        np.append(shards.counts, np.asarray(number, shards.counts.dtype)),
    )


def iid(labels: np.ndarray, num_clients: int, seed: int) -> Split:
    """Deal the examples out at random, in shards that differ by one at most.

    Args:
      labels: [examples]; only their number matters.
      num_clients: N, from 1 to the number of examples.
      seed: of the permutation.

    Returns:
      N index arrays that hold every example once. The first (examples mod N) of them
      are one longer.

    Raises:
      ValueError: num_clients is out of range.

    >>> [len(part) for part in iid(np.zeros(10), 4, seed=0)]
    [3, 3, 2, 2]
    """
    check_clients(num_clients, len(labels))
    size, longer = divmod(len(labels), num_clients)
    sizes = np.full(num_clients, size)
    sizes[:longer] += 1
    return Split(np.random.default_rng(seed).permutation(len(labels)), sizes)


def dirichlet(labels: np.ndarray, num_clients: int, alpha: float, seed: int) -> Split:
    """Skew the classes over clients by one Dirichlet draw a class.

    Client by client, class by class, the drawn number of examples is appended to one
    list in data set order; the list is cut into equal shards. A shard's borders
    therefore do not fall on the draws' borders: a client also gets some of its
    neighbor's examples, with about the same skew.

    Args:
      labels: [examples] class numbers from 0.
      num_clients: N, from 1 to the number of examples.
      alpha: concentration; smaller is more skewed.
      seed: of the draws.

    Returns:
      N index arrays of examples // N; the last (examples mod N) of the list are left
      out.

    Raises:
      ValueError: an argument is out of range.

    >>> [part.tolist() for part in dirichlet(np.array([1, 0, 1, 0]), 1, 0.1, seed=0)]
    [[1, 3, 0, 2]]
    """
    labels = check_labels(labels)
    check_clients(num_clients, len(labels))
    check_alpha(alpha)
    rng = np.random.default_rng(seed)
    shares = _class_shares(np.bincount(labels), num_clients, alpha, rng)
    return _equal_shards(_by_owner(labels, shares), num_clients)


def resource_correlated(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, num_groups: int = 3
) -> Split:
    """Skew the classes over groups of neighboring clients, not within a group.

    With devices in order of their resources, what a client's data look like then goes
    with what its device can do. The groups' sizes are random (they follow from the
    draws), so their borders fall near the tiers of devices, not on them.

    Args:
      labels: [examples] class numbers from 0.
      num_clients: N, from 1 to the number of examples.
      alpha: concentration over the groups; smaller is more skewed.
      seed: of the draws and of the shuffle within a group.
      num_groups: how many groups of clients differ.

    Returns:
      N index arrays of examples // N; the last (examples mod N) of the list are left
      out.

    Raises:
      ValueError: an argument is out of range.
    """
    labels = check_labels(labels)
    check_clients(num_clients, len(labels))
    check_alpha(alpha)
    if num_groups < 1:
        raise ValueError(f"num_groups must be 1 or more, got {num_groups}")
    rng = np.random.default_rng(seed)
    shares = _class_shares(np.bincount(labels), num_groups, alpha, rng)
    order = _by_owner(labels, shares)
    for group in Split(order, shares.sum(0)):
        rng.shuffle(group)  # a view: this shuffles that stretch of `order`
    return _equal_shards(order, num_clients)


def natural(users: np.ndarray | None) -> Split:
    """Give every user's examples to a client of its own.

    Args:
      users: [examples] who wrote the example (`types.Dataset.users`).

    Returns:
      One index array a user, in order of the user ids; data set order within.

    Raises:
      ValueError: the data set does not say who wrote its examples.

    >>> [part.tolist() for part in natural(np.array([7, 3, 7]))]
    [[1], [0, 2]]
    """
    if users is None:
        raise ValueError(
            "natural expects one user id a training example, and the data set has "
            "none; store them as `users` in the npz or take another split"
        )
    _, counts = np.unique(users, return_counts=True)
    return Split(np.argsort(users, kind="stable"), counts)


def index_table(parts: Sequence[np.ndarray]) -> Shards:
    """Lay the shards out one after the other.

    Args:
      parts: N index arrays, none empty.

    Returns:
      The table; one number an example, however uneven the shards.

    Raises:
      ValueError: there is no client, or a client has no example.

    >>> table = index_table([np.array([4, 2]), np.array([1])])
    >>> table.indices.tolist(), table.starts.tolist()
    ([4, 2, 1], [0, 2])
    """
    parts = _flat(parts)
    counts = parts.sizes
    if not len(counts):
        raise ValueError("index_table expects at least one client, got none")
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        more = ", ..." if len(empty) > NAMED else ""
        raise ValueError(
            f"every client needs an example, but {len(empty)} of {len(parts)} have "
            f"none (clients {', '.join(map(str, empty[:NAMED]))}{more}); use fewer "
            "clients or a larger alpha"
        )
    starts = parts.ends - counts
    return Shards(*(x.astype(np.int32) for x in (parts.order, starts, counts)))


def class_counts(
    labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """Count the examples of each class that each client holds.

    Args:
      labels: [examples] class numbers from 0.
      parts: N index arrays.
      num_classes: C.

    Returns:
      [N, C] int64.

    Raises:
      ValueError: a label is not below num_classes.

    >>> class_counts(np.array([0, 1, 1]), [np.array([1, 2]), np.array([0])], 2).tolist()
    [[0, 2], [1, 0]]
    """
    labels = check_labels(labels)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie below num_classes = {num_classes}, got {labels.max()}"
        )
    parts = _flat(parts)
    client = np.repeat(np.arange(len(parts)), parts.sizes)
    cell = client * num_classes + labels[parts.order.astype(np.int64)]
    counts = np.bincount(cell, minlength=len(parts) * num_classes)
    return counts.reshape(len(parts), num_classes)


def _class_shares(
    class_sizes: np.ndarray, owners: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws how many examples of a class each owner gets: [C, owners]."""
    concentration = [alpha] * owners
    return np.array(
        [rng.multinomial(size, rng.dirichlet(concentration)) for size in class_sizes]
    )


def _by_owner(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Orders the examples by owner, then class, then place in the data set."""
    owners = np.tile(np.arange(shares.shape[1]), len(shares))
    owner = np.repeat(owners, shares.ravel())  # of the examples sorted by class
    by_class = np.argsort(labels, kind="stable")
    return by_class[np.argsort(owner, kind="stable")]


def _equal_shards(order: np.ndarray, num_clients: int) -> Split:
    size = len(order) // num_clients
    return Split(order[: size * num_clients], np.full(num_clients, size))


def _flat(parts: Sequence[np.ndarray]) -> Split:
    """Strings the shards together, if they are not so already."""
    if isinstance(parts, Split):
        return parts
    sizes = np.fromiter(map(len, parts), np.int64, len(parts))
    return Split(np.concatenate([np.empty(0, np.int64), *parts]), sizes)


def check_clients(num_clients: int, examples: int) -> None:
    """Raises ValueError unless every client can have an example."""
    if not 1 <= num_clients <= examples:
        raise ValueError(
            f"expected 1 to the number of training examples, {examples}, clients, got "
            f"{num_clients}"
        )


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless a concentration makes sense."""
    if not 0 < alpha < np.inf:  # false for NaN too
        raise ValueError(f"alpha must be positive and finite, got {alpha}")


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Gives labels as an array; raises ValueError unless they are class numbers."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "labels must be [examples] class numbers from 0, got "
            f"{labels.dtype}{list(labels.shape)}"
        )
    if (labels < 0).any():
        raise ValueError(f"labels must be class numbers from 0, got {labels.min()}")
    return labels
