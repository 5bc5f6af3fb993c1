"""FjORD (Horvath et al., NeurIPS 2021): ordered dropout.

A device trains, batch by batch, networks of every level up to the largest that fits its
budgets; the leading channels are part of all of them. Each value of the network is the
mean of the devices that have it.
"""

from __future__ import annotations

from fljax.algorithms import base, refusals
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing

LEVELS = "1/.8/.6/.4/.2"


def fjord(
    fed: federation.Federation,
    levels: str = LEVELS,
    distill: bool = False,
    dynamic: bool = False,
    rounding: str = "ceil",
) -> base.Algorithm:
    """Makes FjORD.

    A step leaves what is not of its width alone, weight decay included.

    Args:
      fed: the clients and how they train: by SGD without momentum.
      levels: shares of the channels, or "fit"; see `levels.levels_of`.
      distill: self-distillation, of the device's network into that of the batch's
        width, with weight and temperature 1.
      dynamic: the devices' own levels are drawn anew in every round.
      rounding: of numbers of channels, "ceil" or "floor".

    Returns:
      The algorithm.

    Raises:
      ValueError: clients train otherwise, no level fits a tier's smallest budgets, or
        the network cannot be cut.
    """
    refusals.plain_sgd(fed, "fjord")
    rule = narrowing.Narrowing(ordered=True, distill=distill)
    return kinds.narrow(fed, levels, rule, dynamic, rounding)
