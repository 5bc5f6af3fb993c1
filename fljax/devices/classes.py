"""Classes of devices: a server sorts them by what it has measured of them.

As systems do that group devices by how they respond (TiFL, Chai et al., HPDC 2020), but
by compute speed, bandwidth and memory, in logarithms: a factor of two is as far in each
of them.

Legend: N devices, k classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.cluster import vq

from fljax import bounds, notation, types

MOST = 64
TRIED = range(2, 9)  # numbers of classes, where none is asked for
SAMPLE = 4096  # devices that centers are found by
JUDGED = 1024  # devices that numbers of classes are compared by
_ROUNDING = 1e-12  # of a distance


@dataclasses.dataclass(frozen=True, slots=True)
class Auto:
    """How the server sorts devices into classes.

    Attributes:
      number: k; 0: that of the highest mean silhouette at the first look.
      by: "kmeans" of the logs of speed, bandwidth and memory, or "quantiles" of their
        mean, which are classes of equal size.
    """

    number: int = bounds.field(0, "Classes; 0: by a criterion.", most=MOST)
    by: str = bounds.field("kmeans", "How.", choices=("kmeans", "quantiles"))

    def __post_init__(self):
        bounds.check(self)

    def __str__(self) -> str:
        return f"auto:{self.number}:{self.by}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names the classes, that of the most able devices first."""
        return tuple(f"class_{i + 1}" for i in range(self.number))


def read(text: str) -> Auto:
    """Reads auto:NUMBER:BY, of which both may be left out.

    Raises:
      ValueError: the text is not as described.
    """
    return notation.make(text, {"auto": Auto})


def sort(measured: types.Budgets, how: Auto) -> np.ndarray:
    """Sorts devices into classes.

    Nothing is drawn: k-means (Lloyd's, from `scipy.cluster.vq`) begins with classes of
    equal size and, apart, with devices far from one another (Gonzalez 1985); what has
    the lower sum of squares counts.

    Args:
      measured: of [N] devices.
      how: with a number above 0.

    Returns:
      [N] int32, 0 for the class whose devices are the most able in the mean of the
      three logs. Where fewer than k kinds of devices are, the last classes are empty.
    """
    points = _points(measured)
    if how.by == "quantiles":
        return _quantiles(points, how.number)
    centers = _centers(_sample(points, SAMPLE), how.number)
    return vq.vq(points, centers[_best_first(centers)])[0].astype(np.int32)


def number(measured: types.Budgets, by: str) -> int:
    """Counts the classes that there are.

    Args:
      measured: of [N] devices.
      by: as of `Auto`.

    Returns:
      The number among `TRIED` whose classes have the highest mean silhouette
      (Rousseeuw 1987), the lowest of equal ones. 1: all devices are alike.
    """
    points = _sample(_points(measured), JUDGED)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    if distances.max() <= _ROUNDING:
        return 1
    found = [
        _silhouette(distances, _labels(points, k, by)) for k in TRIED if k < len(points)
    ]
    return TRIED[int(np.argmax(np.round(found, 9)))] if found else 1


def agreement(one: np.ndarray, two: np.ndarray) -> float:
    """Tells how well two ways to sort the same devices agree, whatever the numbers.

    >>> agreement(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
    1.0

    Args:
      one: [N] classes.
      two: [N] others.

    Returns:
      The adjusted Rand index (Hubert and Arabie 1985): 1 if the classes are the same, 0
      in the mean if one has nothing to do with the other.
    """
    table = np.zeros((one.max() + 1, two.max() + 1))
    np.add.at(table, (one, two), 1)
    both, first, second = (
        _pairs(counts).sum() for counts in (table, table.sum(axis=1), table.sum(axis=0))
    )
    chance = first * second / max(len(one) * (len(one) - 1) / 2, 1)
    most = (first + second) / 2
    return float((both - chance) / (most - chance)) if most != chance else 1.0


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) / 2


def _points(measured: types.Budgets) -> np.ndarray:
    """Gives the logs [N, 3]."""
    return np.log(np.stack(measured, axis=1))


def _sample(points: np.ndarray, most: int) -> np.ndarray:
    """Gives so many devices at most, evenly over their numbers."""
    return points[:: -(-len(points) // most)]


def _quantiles(points: np.ndarray, size: int) -> np.ndarray:
    """Sorts devices [N] into classes of equal size, by the mean of their logs."""
    order = np.argsort(-points.mean(axis=1), kind="stable")
    labels = np.empty(len(points), np.int32)
    labels[order] = np.arange(len(points)) * size // len(points)
    return labels


def _labels(points: np.ndarray, size: int, by: str) -> np.ndarray:
    if by == "quantiles":
        return _quantiles(points, size)
    return vq.vq(points, _centers(points, size))[0]


def _centers(points: np.ndarray, size: int) -> np.ndarray:
    """Finds the centers of `size` classes or fewer, [.., 3]."""
    guesses = _means(points, _quantiles(points, size)), _apart(points, size)
    found = [vq.kmeans(points, guess)[0] for guess in guesses]
    return min(found, key=lambda centers: float(np.sum(vq.vq(points, centers)[1] ** 2)))


def _means(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gives the mean of every class that has devices."""
    return np.array(
        [points[labels == label].mean(axis=0) for label in np.unique(labels)]
    )


def _apart(points: np.ndarray, size: int) -> np.ndarray:
    """Picks devices, each as far as can be from those before; the first by the mean."""
    chosen = [int(np.argmax(np.linalg.norm(points - points.mean(axis=0), axis=1)))]
    near = np.full(len(points), np.inf)
    for _ in range(size - 1):
        near = np.minimum(near, np.linalg.norm(points - points[chosen[-1]], axis=1))
        if near.max() <= _ROUNDING:
            break
        chosen.append(int(np.argmax(near)))
    return points[chosen]


def _best_first(centers: np.ndarray) -> np.ndarray:
    return np.argsort(-centers.mean(axis=1), kind="stable")


def _silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean silhouette of classes from distances [S, S]; 0: of one class.

    With a the mean distance of a device to the others of its class, and b that to the
    devices of the class that is nearest otherwise, its silhouette is (b - a) over the
    larger of both, and 0 where it is alone.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(labels)
    if len(sizes) == 1:
        return 0.0
    rows, own = np.arange(len(labels)), sizes[labels]
    sums = distances @ np.eye(len(sizes))[labels]
    a = sums[rows, labels] / np.maximum(own - 1, 1)
    others = sums / sizes
    others[rows, labels] = np.inf
    b = others.min(axis=1)
    return float(np.mean(np.where(own > 1, (b - a) / np.maximum(a, b), 0.0)))
