"""Correlated noise of DP-FTRL: what is added in a round is taken back in later ones.

The noise of round r is row r of C^-1 Z, Z independent and normal, C a lower triangular
Toeplitz matrix of b bands: the first b coefficients of the square root of the matrix
of prefix sums (Kalinin and Lampert, NeurIPS 2024, 2405.13763; banded matrices:
Choquette-Choo et al., NeurIPS 2023, 2306.08153). Networks are prefix sums of updates,
in which such noise mostly cancels.

Who waits b rounds between two parts meets columns of C that do not overlap: k parts
move C G by sqrt(k) times a column's norm. Vectors of earlier rounds are drawn again
from their keys, so that nothing of the length of the network is kept.
"""

from __future__ import annotations

import functools
import math

import numpy as np

_FEWEST = 1024  # rounds that one program serves; then twice as many


@functools.cache
def coefficients(bands: int) -> np.ndarray:
    """Gives the first column [b] of C.

    >>> coefficients(3)
    array([1.   , 0.5  , 0.375])
    """
    steps = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))


def length(bands: int) -> float:
    """Gives the L2 norm of a column of C, by which one part moves C G."""
    return math.sqrt(float(np.sum(np.square(coefficients(bands)))))


@functools.lru_cache(4)
def _inverse(bands: int, rounds: int) -> np.ndarray:
    """Gives the first column [rounds] of C^-1."""
    known = coefficients(bands)[1:]
    found = np.zeros(rounds + len(known))
    found[len(known)] = 1.0
    for i in range(len(known) + 1, len(found)):
        found[i] = -known @ found[i - len(known) : i][::-1]
    return found[len(known) :]


def weights(bands: int, round: int) -> np.ndarray:
    """Gives the weights of the vectors of a round and of those before it.

    Args:
      bands: b.
      round: its index.

    Returns:
      [R] float32, of this round, the one before and so on; R is a power of two above
      the index, so that few programs serve all rounds.
    """
    size = max(_FEWEST, 1 << round.bit_length())
    return _inverse(bands, size).astype(np.float32)
