"""How long the updates of a round may be, by what those before it were.

Legend: n blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax import types
from fljax.engine import schedule
from fljax.engine.rounds import setting, training
from fljax.updates import norm_bound


class Bounds(NamedTuple):
    """What L2 norms updates of a round may have, see `norm_bound`.

    Attributes:
      limits: [2, n], as of `cohort.Round`.
      l2: [2, n] usual L2 norms; 0: not known yet.
      measured: updates that these were learned from, as far as that is counted.
      waiting: whether nothing is taken because too few have been measured.
    """

    limits: types.Array
    l2: types.Array
    measured: int
    waiting: bool


def bounds(
    rounds: setting.Rounds,
    start: setting.Begun,
    assignment: schedule.Assignment,
    l2: types.ArrayLike,
    measured: int,
) -> Bounds:
    """Says how long updates may be.

    Args:
      rounds: of the run.
      start: as of `training.train`.
      assignment: of the round.
      l2: [2, n] usual L2 norms so far.
      measured: updates that these were learned from.

    Returns:
      The bounds; where too few updates have been measured, everybody of this round is,
      before anybody is taken.
    """
    bound, l2 = rounds.fed.rules.norm_bound, rounds.everywhere(l2)
    if not bound:
        return Bounds(rounds.unlimited, l2, measured, False)
    if measured < norm_bound.FEWEST and len(assignment.ids):
        tried = training.train(rounds, start, assignment, rounds.unlimited)
        heard = tried.l2[:, 1:] if rounds.rooted else tried.l2
        l2, number = norm_bound.first(
            l2, heard, sizes=rounds.sizes, devices=rounds.fed.layout.devices
        )
        measured = min(measured + int(number), norm_bound.FEWEST)
    if measured < norm_bound.FEWEST:
        nothing = rounds.everywhere(np.zeros_like(rounds.unlimited))
        return Bounds(nothing, l2, measured, True)
    known = norm_bound.limits(l2, bound=bound, sizes=rounds.sizes)
    return Bounds(rounds.everywhere(known), l2, measured, False)
