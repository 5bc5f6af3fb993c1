"""Federated Dropout (Caldas et al., 2018): devices train random channels.

Which ones is drawn anew in every round, for all clients or for each; the channels of a
device are a random part of every layer, as many as its level says.
"""

from __future__ import annotations

from fljax.algorithms import base
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing


def federated_dropout(
    fed: federation.Federation,
    levels: str = kinds.HALVES,
    each: bool = False,
    rounding: str = "ceil",
    scaler: bool = True,
    masked: bool = False,
) -> base.Algorithm:
    """Makes Federated Dropout.

    Args:
      fed: the clients and how they train.
      levels: shares of the channels, or "fit"; see `levels.levels_of`.
      each: every client draws its own channels; then no two share a compiled program's
        call, and side by side they take as long as one by one.
      rounding: of numbers of channels, "ceil" or "floor".
      scaler: products are divided by the level in training, as dropout does.
      masked: logits of classes that a client lacks are 0 in training, if the task has
        classes.

    Returns:
      The algorithm.

    Raises:
      ValueError: as of `heterofl.heterofl`.
    """
    classes = bool(fed.training.task.classes)
    rule = narrowing.Narrowing(narrowing.Random(each), scaler, masked and classes)
    return kinds.narrow(fed, levels, rule, False, rounding)
