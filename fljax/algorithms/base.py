"""What an algorithm is: its state, what it reports of a round, its pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fljax import types
from fljax.devices import arrivals
from fljax.engine import books as round_books
from fljax.engine import client_rows, program, schedule
from fljax.engine import federation as federations
from fljax.engine import seams as kinds
from fljax.engine.program import single
from fljax.updates import privacy, server


class Caution(NamedTuple):
    """What a rollback has lowered; all 1 before the first.

    Attributes:
      server: float32, factor of the server's learning rate.
      tiers: [T] float32, factors of what the server allows the devices of a tier.
    """

    server: types.ArrayLike
    tiers: np.ndarray


class State(NamedTuple):
    """State of an algorithm: what a checkpoint holds; all but `server` on the host.

    Attributes:
      server: the global network and the server optimizer.
      policy: what the policy carries.
      timeline: of the virtual clock.
      history: global networks of the rounds before, the newest first, for those who
        are still at work on one; empty if updates never arrive late.
      l2: [2, n] usual L2 norm of an update of each block, in its parameters and in
        its statistics and ranges; 0: not known yet.
      measured: [] int32, updates that have been measured for them; counted up to
        where they are enough.
      caution: what a rollback has lowered.
      clients: what clients keep from round to round; None: nothing.
      selection: what the selection of clients carries.
      classes: [N] int32 of all clients, as the server sorted them when it last looked
        at them; None: it knows the tiers.
      privacy: clip norm and ledger; None: nothing is private.
    """

    server: server.ServerState
    policy: Any
    timeline: arrivals.Timeline
    history: tuple[tuple[dict, ...], ...]
    l2: types.ArrayLike
    measured: np.ndarray
    caution: Caution
    clients: client_rows.Rows | None = None
    selection: Any = ()
    classes: np.ndarray | None = None
    privacy: privacy.Kept | None = None


class Report(NamedTuple):
    """What comes of a round; arrays may still be computing.

    Attributes:
      assignment: of the round.
      losses: [A, ...] mean training loss of each client, in the order of the
        assignment; what follows is padding.
      failed: [A, ...] 0, or why the update was refused (`sums.NOT_FINITE`).
      books: what it costs.
      finite: [] whether the new global network is finite.
      hostile: [A] bool, which clients are; None: nobody is.
      said: more of what records have of the round, numbers by name.
    """

    assignment: schedule.Assignment
    losses: types.ArrayLike
    failed: types.ArrayLike
    books: round_books.Books
    finite: types.ArrayLike = True
    hostile: np.ndarray | None = None
    said: Mapping[str, types.ArrayLike] = MappingProxyType({})

    def heard(self) -> np.ndarray:
        """Gives the losses [A] that a policy hears of: NaN of refused updates."""
        number = len(self.assignment.ids)
        losses = np.asarray(self.losses, np.float64)[:number]
        return np.where(np.asarray(self.failed)[:number] == 0, losses, np.nan)


def _own_programs(assignment: schedule.Assignment) -> list[program.Program]:
    return [single.Single(plan) for plan in assignment.plans]


def _no_rehearsal(state: State, assignment: schedule.Assignment):
    return state, round_books.Books(0, 0, 0.0)


class Algorithm(NamedTuple):
    """An algorithm as pure functions.

    Each depends on its arguments alone, so (seed, round) is all that resuming needs.

    Attributes:
      init: () -> state.
      assign: (state, round index) -> who trains what.
      round: (state, assignment) -> (new state, report).
      programs: (assignment) -> what the program of each of its clients is made for.
      rehearse: (state, assignment) -> what a round costs in which nobody trains, and
        the state after it: the clock goes on, and so do a policy and a selection
        that ask for no losses.
      parts: name -> what it is made of, where that is another than usual: a codec, a
        server rule. Their reprs tell run folders apart.
      keeps: values that each client keeps from round to round.
      evaluated: width of the network that is evaluated: the largest that clients have.
      notes: a line for each thing that the user should know.
      federation: as the algorithm has it; None: as it was given.
      most_rounds: that a budget of privacy is enough for; None: any number.
      seams: what it is made of; they say what of the network is a client's own.
      depth: blocks of the network that is evaluated, the first ones: the most that
        clients have; None: all.
      stage: (state) -> the algorithm of the stage that the state is of, where the
        network that clients train changes during a run; None: there are no stages.
    """

    init: Callable[[], State]
    assign: Callable[[State, int], schedule.Assignment]
    round: Callable[[State, schedule.Assignment], tuple[State, Report]]
    programs: Callable[[schedule.Assignment], Sequence[program.Program]] = _own_programs
    rehearse: Callable[
        [State, schedule.Assignment], tuple[State, round_books.Books]
    ] = _no_rehearsal
    parts: Mapping[str, Any] = MappingProxyType({})
    keeps: int = 0
    evaluated: float = 1.0
    notes: tuple[str, ...] = ()
    federation: federations.Federation | None = None
    most_rounds: int | None = None
    seams: kinds.Seams = kinds.NONE
    depth: int | None = None
    stage: Callable[[State], Algorithm] | None = None

    def at(self, state: State) -> Algorithm:
        """Gives the algorithm of a state's stage: this one where there are none."""
        return self if self.stage is None else self.stage(state)
