"""The learning rate of the clients over the rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def steps(
    start: float, falls: Sequence[int] = (), warmup: int = 0
) -> Callable[[int], float]:
    """Makes a rate that rises in equal steps, then falls to a tenth at given rounds.

    Args:
      start: the rate once it has risen.
      falls: rounds, counted from 0, from which on it is a tenth of what it was.
      warmup: rounds in which it rises to the start; 0: none.

    Returns:
      (round index) -> rate.
    """
    rising = max(warmup, 1)

    def rate(index: int) -> float:
        risen = min((index + 1) / rising, 1.0)
        return start * risen * 0.1 ** sum(index >= fall for fall in falls)

    return rate
