"""Splits by class as Flower names them: shard, pathological, inner_dirichlet.

What Flower Datasets' `ShardPartitioner`, `PathologicalPartitioner` and
`InnerDirichletPartitioner` make of the same labels and seed, index for index
(flwr-datasets 0.6.1; `tests/data/test_data_skewed.py` compares). The papers behind them
are named at each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fljax.data import partition

ASSIGNMENTS = ("random", "first-deterministic", "deterministic")


def shard(
    labels: np.ndarray, num_clients: int, seed: int, shards_per_client: int = 2
) -> partition.Split:
    """Sort the examples by class, cut them into shards, deal these out.

    The split of McMahan et al. (arXiv 1602.05629): with two shards a client has two
    classes, or a few where a shard lies over a border.

    Args:
      labels: [examples] class numbers from 0.
      num_clients: N, from 1 to the number of examples.
      seed: of the draws and of the order within a client.
      shards_per_client: S.

    Returns:
      N index arrays of S * (examples // (N * S)); a few examples are left out where
      that does not divide.

    Raises:
      ValueError: an argument is out of range.

    >>> [part.tolist() for part in shard(np.array([1, 0, 1, 0]), 2, seed=0)]
    [[1, 0], [3, 2]]
    """
    labels = partition.check_labels(labels)
    partition.check_clients(num_clients, len(labels))
    _check_count("shards_per_client", shards_per_client)
    used = num_clients * shards_per_client
    size = len(labels) // used
    if not size:
        raise ValueError(
            f"expected at most {len(labels)} shards, one an example, got {num_clients} "
            f"clients of {shards_per_client}"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(labels) // size)[:used]
    by_class = np.argsort(labels, kind="stable")
    order = by_class[drawn[:, None] * size + np.arange(size)]  # [N * S, size]
    return _shuffled(order.reshape(num_clients, -1), rng)


def pathological(
    labels: np.ndarray,
    num_clients: int,
    seed: int,
    classes_per_client: int = 2,
    assignment: str = "random",
) -> partition.Split:
    """Give every client examples of so many classes, of each an equal part.

    The split of Li et al. (arXiv 2102.02079, "#C = k"), theirs being
    `first-deterministic`. How many examples a client has follows from how many share
    its classes.

    Args:
      labels: [examples] class numbers from 0.
      num_clients: N, from 1 to the number of examples.
      seed: of the draws and of the order within a client.
      classes_per_client: how many classes, exactly.
      assignment: which: random; first-deterministic, the first one in turn;
        deterministic, all in turn.

    Returns:
      N index arrays; examples of classes that nobody has are left out.

    Raises:
      ValueError: an argument is out of range, or a class has fewer examples than
        clients that need one.

    >>> parts = pathological(np.array([0, 0, 1, 1]), 2, 0, 1, "deterministic")
    >>> [sorted(part.tolist()) for part in parts]
    [[0, 1], [2, 3]]
    """
    labels = partition.check_labels(labels)
    partition.check_clients(num_clients, len(labels))
    _check_count("classes_per_client", classes_per_client)
    classes, sizes = np.unique(labels, return_counts=True)
    if classes_per_client > len(classes):
        raise ValueError(
            f"expected at most the {len(classes)} classes of the data for a client, "
            f"got {classes_per_client}"
        )
    rng = np.random.default_rng(seed)
    taken = _classes(len(classes), num_clients, classes_per_client, assignment, rng)
    members: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    for place, examples in enumerate(by_class):
        owners = np.flatnonzero((taken == place).any(1))
        if len(owners) > len(examples):
            raise ValueError(
                f"expected an example of class {classes[place]} for each of the "
                f"{len(owners)} clients that have it, got {len(examples)}; take fewer "
                f"clients or classes, or the assignment deterministic"
            )
        parts = np.array_split(examples, len(owners)) if len(owners) else []
        for owner, part in zip(owners, parts, strict=True):
            members[owner].append(part)
    return _shuffled([np.concatenate(parts) for parts in members], rng)


def inner_dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int
) -> partition.Split:
    """Draw a mix of classes for each client, then its examples one by one.

    The split of Acar et al. (FedDyn, arXiv 2111.04263), with clients of equal size.
    `partition.dirichlet` draws how a class goes over the clients; this how a client
    goes over the classes, so that the last ones get what is left. (Where nothing is
    left of any class that a client would draw, and Flower stops, it takes what there
    is, all classes alike.)

    Args:
      labels: [examples] class numbers from 0.
      num_clients: N, from 1 to the number of examples.
      alpha: concentration; small: few classes in each client.
      seed: of the draws and of the order within a client.

    Returns:
      N index arrays of examples // N.

    Raises:
      ValueError: an argument is out of range.
    """
    labels = partition.check_labels(labels)
    partition.check_clients(num_clients, len(labels))
    partition.check_alpha(alpha)
    rng = np.random.default_rng(seed)
    left = np.bincount(labels)
    mixes = rng.dirichlet([alpha] * len(left), size=num_clients)
    starts = np.cumsum(left) - left
    by_class = np.argsort(labels, kind="stable")
    size = len(labels) // num_clients
    order = np.empty((num_clients, size), np.int64)
    free, unfilled = [size] * num_clients, list(range(num_clients))
    steps = _steps(mixes)
    for _ in range(size * num_clients):
        while not free[client := unfilled[rng.integers(len(unfilled))]]:
            unfilled.remove(client)
        free[client] -= 1
        while not left[label := steps[client].searchsorted(rng.random(), side="right")]:
            mixes[:, label] = 0
            steps = _steps(_renewed(mixes, left))
        left[label] -= 1
        order[client, free[client]] = by_class[starts[label] + left[label]]
    return _shuffled(order, rng)


def _steps(mixes: np.ndarray) -> np.ndarray:
    """Sums probabilities [N, C] up, as `Generator.choice` does."""
    sums = np.cumsum(mixes, axis=1)
    return sums / sums[:, -1:]


def _renewed(mixes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Scales mixes to sum to 1 in place; those of nothing become even."""
    sums = mixes.sum(axis=1, keepdims=True)
    lost = sums[:, 0] == 0
    mixes[lost] = left > 0
    sums[lost] = mixes[lost].sum(axis=1, keepdims=True)
    mixes /= sums
    return mixes


def _classes(
    classes: int, clients: int, each: int, assignment: str, rng: np.random.Generator
) -> np.ndarray:
    """Draws the classes of each client: places among those that there are, [N, each].

    The draws are Flower's, one after the other, which equal splits need.
    """
    first = np.arange(clients)[:, None] % classes
    if assignment == "deterministic":
        return (first + np.arange(each)) % classes
    if assignment == "random":
        drawn = [rng.choice(classes, size=each, replace=False) for _ in range(clients)]
        return np.array(drawn)
    if assignment != "first-deterministic":
        raise ValueError(
            f"expected the assignment {', '.join(ASSIGNMENTS)}, got {assignment!r}"
        )
    taken = first.tolist()
    for mine in taken:
        while len(mine) < each:
            label = int(rng.choice(classes, size=1)[0])
            if label not in mine:
                mine.append(label)
    return np.array(taken)


def _shuffled(parts: Iterable[np.ndarray], rng: np.random.Generator) -> partition.Split:
    """Shuffles each client's examples, one client after the other."""
    mixed: Sequence[np.ndarray] = [np.array(part, np.int64) for part in parts]
    for part in mixed:
        rng.shuffle(part)
    sizes = np.fromiter(map(len, mixed), np.int64, len(mixed))
    return partition.Split(np.concatenate(mixed), sizes)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}")
