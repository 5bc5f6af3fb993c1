"""HeteroFL (Diao, Ding, Tarokh, ICLR 2021): small devices train the leading channels.

A level keeps the first channels of every layer. Each value of the network is the mean
of those who have it; who has no example of a class leaves its row of the classifier
alone. Batch norms go by the statistics of the batch, in training and evaluation.
"""

from __future__ import annotations

from fljax.algorithms import base
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing


def heterofl(
    fed: federation.Federation,
    levels: str = kinds.HALVES,
    dynamic: bool = False,
    rounding: str = "ceil",
    scaler: bool = True,
    masked: bool = True,
) -> base.Algorithm:
    """Makes HeteroFL.

    Its authors clip gradients at a norm of 1 as well; that is an optimizer's affair.

    Args:
      fed: the clients and how they train.
      levels: shares of the channels, or "fit"; see `levels.levels_of`.
      dynamic: levels are drawn anew in every round among those that fit; else each
        device has the largest that does.
      rounding: of numbers of channels, "ceil" as in its authors' code, or "floor".
      scaler: products are divided by the level in training.
      masked: logits of classes that a client lacks are 0 in training, if the task has
        classes.

    Returns:
      The algorithm.

    Raises:
      ValueError: no level fits a tier's smallest budgets, or the network cannot be cut.
    """
    classes = bool(fed.training.task.classes)
    rule = narrowing.Narrowing(narrowing.Leading(), scaler, masked and classes)
    return kinds.narrow(fed, levels, rule, dynamic, rounding)
