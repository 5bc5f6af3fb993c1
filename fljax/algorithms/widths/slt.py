"""SLT, Successive Layer Training (Pfeiffer, Khalili, Henkel, NeurIPS 2023).

The network grows during the run. At first all of it is narrow, and trained. Then, stage
by stage, one more block gets all its channels: that one and the narrow ones behind it
are trained, those before it are frozen. All clients have the network of the stage; who
is able to trains blocks before as well. Its authors grow by layers, here it is blocks,
the unit of freezing, and what is frozen runs in codes.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fljax import plans, policies
from fljax.algorithms import averaging, base, refusals
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing, slicing
from fljax.plans import cost_model, costs

LEVELS = "1/.75/.5/.25/.125"


class Stage(NamedTuple):
    """What all clients train from a round on.

    Attributes:
      begins: that round.
      whole: first blocks that have all channels; the last of them is trained, and by
        who is able to others before it.
      width: share of the channels of the others, which are trained.
    """

    begins: int
    whole: int
    width: float

    def __str__(self) -> str:
        """Says when it begins, and what it is of."""
        return f"{self.begins}: {self.whole} whole, rest x{self.width:g}"


def model_of(fed: federation.Federation, whole: int, width: float) -> federation.Model:
    """Gives the model of a stage, whose table lists how much may be trained of it.

    Args:
      fed: the clients and how they train.
      whole: first blocks that have all channels.
      width: of the others.

    Returns:
      The model; plans freeze all whole blocks but the last one, two, ... of them.
      Costs are modeled from the counts of the network of the stage.
    """
    model = fed.model._replace(whole=whole)
    last = model.net.num_blocks - 1
    firsts = range(max(whole - 1, 0), -1, -1)
    listed = [plans.Plan(first, last, width=width) for first in firsts]
    by_width = {1.0: model.counts, width: model.at(width)[1]}
    batch = fed.training.batch_size
    made = cost_model.of_plans(listed, by_width, batch, model.device_class)
    return model._replace(table=made)


def widths_of(fed: federation.Federation, levels: Sequence[float]) -> list[float]:
    """Finds the width of each stage after the first, until everything is whole.

    Args:
      fed: the clients and their devices.
      levels: widths to choose from.

    Returns:
      Of 1, 2, ... whole blocks the largest level at which training the last of them,
      and all behind, fits the lowest budgets of every tier, and that is no wider than
      what a later stage has; up to the first of all channels.

    Raises:
      ValueError: there are no tiers, or no level fits.
    """
    devices = fed.population.fleet
    if not devices.tiered:
        raise ValueError(
            "fleet: expected tiers, whose weakest tells how wide a network may be, got "
            "one without"
        )
    limits = devices.profile.limits[..., 0]
    left, found = sorted({1.0, *levels}), list[float]()
    for whole in range(fed.model.net.num_blocks - 1, 0, -1):
        while True:
            table = model_of(fed, whole, left[-1]).table.take([0])
            if costs.feasible(table, *limits.T).all():
                break
            if len(left) == 1:
                source = f"{table.source} of the stage of {whole} whole blocks"
                policies.check_feasible(table.take([0], source), devices)
            left.pop()
        found.insert(0, left[-1])
    return found[: found.index(1.0) + 1] if 1.0 in found else found


def stages_of(
    fed: federation.Federation, rounds: int, widths: Sequence[float]
) -> tuple[Stage, ...]:
    """Lays the stages out over the rounds.

    The first, of no whole block, has the share of the rounds that its width is; the
    others as large a part of what is left as the parameters that they train.

    Args:
      fed: the clients and how they train.
      rounds: of all stages.
      widths: of 1, 2, ... whole blocks; the first stage has the first.

    Returns:
      The stages, the first one first. One that has no round begins with the next.
    """
    numbers = range(1, len(widths) + 1)
    trained = [_trained(fed, *stage) for stage in zip(numbers, widths, strict=True)]
    first = int(widths[0] * rounds + slicing.NEARLY)
    before = np.cumsum([0, *trained[:-1]]) / sum(trained)
    begins = first + (before * (rounds - first) + slicing.NEARLY).astype(int)
    later = zip(begins.tolist(), numbers, widths, strict=True)
    return Stage(0, 0, widths[0]), *(Stage(*stage) for stage in later)


def _trained(fed: federation.Federation, whole: int, width: float) -> int:
    """Counts the parameters that who is least able trains in a stage."""
    _, counts = fed.model._replace(whole=whole).at(width)
    return sum(count.params for count in counts[whole - 1 :])


def slt(
    fed: federation.Federation,
    rounds: int,
    levels: str = LEVELS,
    rounding: str = "floor",
) -> base.Algorithm:
    """Makes SLT.

    Args:
      fed: the clients and how they train.
      rounds: that the stages are laid out over; the last one goes on after them.
      levels: widths that the narrow part of a stage may have, shares of the channels.
      rounding: of numbers of channels, "floor" as in its authors' code, or "ceil".

    Returns:
      The algorithm.

    Raises:
      ValueError: a stage does not fit the lowest budgets of a tier, the network cannot
        be cut, or updates may be late.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected a number above 0, got {rounds}")
    if fed.model.net.num_blocks == 1:
        raise ValueError(
            f"network {fed.model.net.name!r}: expected two blocks or more, since they "
            f"become whole one by one, got one"
        )
    refusals.nobody_late(fed, "slt", "whose next stage is of another network")
    fed = kinds.cutting(fed, narrowing.Narrowing(), rounding).having(mixed=False)
    stages = stages_of(fed, rounds, widths_of(fed, kinds.levels_of(levels, fed)))

    @functools.cache
    def made(stage: Stage) -> base.Algorithm:
        here = fed.having(model=model_of(fed, stage.whole, stage.width))
        policy = policies.largest(here.model.table, fed.training.spec.bits)
        return averaging.averaging(here, policy)

    def of(index: int) -> base.Algorithm:
        return made(stages[bisect.bisect_right(stages, index, key=_begins) - 1])

    first = of(0)
    return first._replace(
        init=lambda: _after(-1, first.init()),
        assign=lambda state, index: of(index).assign(state, index),
        round=lambda state, done: _counted(of(done.round).round, state, done),
        programs=lambda assignment: of(assignment.round).programs(assignment),
        rehearse=lambda state, done: _counted(of(done.round).rehearse, state, done),
        parts={**first.parts, "stages": stages},
        notes=(f"stages, each from its first round on: {'; '.join(map(str, stages))}",),
        stage=lambda state: of(max(int(state.policy) - 1, 0)),
    )


def _after(index: int, state: base.State) -> base.State:
    """Notes how many rounds are over, in the place of policies that keep nothing."""
    return state._replace(policy=np.array(index + 1, np.int32))


def _counted(do, state: base.State, assignment):
    """Does a round, and notes it."""
    new, report = do(state, assignment)
    return _after(assignment.round, new), report


def _begins(stage: Stage) -> int:
    return stage.begins
