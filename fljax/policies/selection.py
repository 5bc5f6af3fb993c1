"""Who takes part in a round: drawn from those who are here, before anybody has a plan.

`Uniform` is what federated averaging does (McMahan et al., AISTATS 2017);
`PowerOfChoice` and `oort.Oort` prefer clients whose losses are high. One's own is a
frozen dataclass with a `select`, in `fed.having(selection=Mine())`.

Legend: N all clients, A who are here, K of a round.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fljax import bounds
from fljax.runtime import streams

State = Any  # what a selection carries from round to round; () if nothing


class Clients(NamedTuple):
    """What the server knows of all clients from the start.

    Attributes:
      examples: [N] how many each has.
      seconds: [N] float64, what training and sending the whole network would take each,
        in the middle of what its device can do.
    """

    examples: np.ndarray
    seconds: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Round:
    """A round that somebody is selected for.

    Attributes:
      seed: of the experiment.
      index: 0 for the first.
      clients: all there are.
    """

    seed: int
    index: int
    clients: Clients

    @property
    def generator(self) -> np.random.Generator:
        """Makes the generator of the round's draw, from its start at every call."""
        return streams.generator(self.seed, streams.COHORT, self.index)


class Heard(NamedTuple):
    """What a round tells of the K clients whose part in it is over.

    Attributes:
      ids: [K] client numbers.
      losses: [K] float64 mean training losses; NaN: nothing arrived, or it was refused;
        None of a selection that does not hear them.
      seconds: [K] float64, what download, training and upload took; NaN: nothing was
        heard.
    """

    ids: np.ndarray
    losses: np.ndarray | None
    seconds: np.ndarray


class Selection(abc.ABC):
    """Who takes part; subclasses are frozen dataclasses whose methods are pure."""

    # Whether it asks for losses: they make the host wait for every round.
    hears: ClassVar[bool] = False
    # Whether it selects as many as it likes, up to `most`, instead of those wanted.
    varies: ClassVar[bool] = False

    def most(self, wanted: int, clients: int) -> int:
        """Bounds how many it selects where so many are wanted, of so many."""
        del clients
        return wanted

    def check(self, wanted: int) -> None:
        """Raises a ValueError if it cannot select for rounds that begin with so many.

        Args:
          wanted: clients that a round begins with.
        """
        del wanted

    def init(self, clients: Clients) -> State:
        """Gives the state before the first round.

        Args:
          clients: all there are.

        Returns:
          Arrays of numpy, of the same shapes and dtypes in every round; checkpoints
          hold them.
        """
        del clients
        return ()

    @abc.abstractmethod
    def select(
        self, state: State, round: Round, here: np.ndarray, wanted: int
    ) -> np.ndarray:
        """Selects who takes part.

        Args:
          state: of the selection.
          round: which one; a run repeats if the draw depends on it alone.
          here: [A] numbers of those who are here and not at work, rising.
          wanted: how many, from 1 to A.

        Returns:
          So many of them; in asynchronous rounds, where more are asked for than may
          begin, the first ones do.
        """

    def observe(self, state: State, round: Round, heard: Heard) -> State:
        """Learns from a round.

        Args:
          state: before it.
          round: that is over.
          heard: what is heard of it.

        Returns:
          The state after it.
        """
        del round, heard
        return state


@dataclasses.dataclass(frozen=True)
class Uniform(Selection):
    """Everybody who is here is as likely, without replacement."""

    def select(self, state, round, here, wanted):
        """Draws so many of those who are here."""
        return round.generator.choice(here, wanted, replace=False)


@dataclasses.dataclass(frozen=True)
class Poisson(Selection):
    """Everybody takes part by a coin of its own: cohorts of many sizes, or of nobody.

    The mean is `clients_per_round`. Where more come up than a cohort has room for, some
    of them at random take part (2508.15089), so that programs are of one size.

    Attributes:
      room: of the cohort; 0: the mean and four standard deviations.
    """

    varies: ClassVar[bool] = True

    room: int = 0

    def __post_init__(self):
        """Refuse what is no number of clients."""
        if self.room not in bounds.Bounds():
            raise ValueError(
                f"expected room for a number of clients, got {bounds.shown(self.room)}"
            )

    def check(self, wanted):
        """Refuse cohorts that have less room than their mean."""
        if self.room and self.room < wanted:
            raise ValueError(
                f"poisson: expected room for at least {wanted} clients, the mean of a "
                f"round, got {self.room}"
            )

    def most(self, wanted, clients):
        """Gives the room of a cohort."""
        return min(self.room or wanted + math.ceil(4 * math.sqrt(wanted)), clients)

    def select(self, state, round, here, wanted):
        """Tosses a coin for each client that is here."""
        everybody, generator = len(round.clients.examples), round.generator
        coins = generator.random(everybody)[here]
        drawn = here[coins < wanted / max(len(here), wanted)]
        most = self.most(wanted, len(here))
        return generator.permutation(drawn)[:most]


@dataclasses.dataclass(frozen=True)
class PowerOfChoice(Selection):
    """Of clients drawn by their share of the data, those of the highest loss.

    Cho, Wang and Joshi (arXiv 2010.01243; AISTATS 2022), in the form without messages
    of its own (rpow-d): a client's loss is the mean training loss of its last part in a
    round. Losses that are not known come first, and of equal ones who was drawn first.
    Who took part and was not heard of counts with the mean of those who were: by an old
    loss, or as unknown, who is late again and again would be preferred for ever.

    Attributes:
      candidates: d, clients that are drawn, at least as many as a round begins with.
    """

    hears: ClassVar[bool] = True

    candidates: int

    def __post_init__(self):
        """Refuse what is no number of clients."""
        if self.candidates not in bounds.Bounds(least=1):
            raise ValueError(
                f"expected at least 1 candidate, got {bounds.shown(self.candidates)}"
            )

    def check(self, wanted):
        """Refuse rounds that begin with more clients than candidates."""
        if self.candidates < wanted:
            raise ValueError(
                f"power_of_choice: expected at least {wanted} candidates, as many as a "
                f"round begins with, got {self.candidates}"
            )

    def init(self, clients):
        """Gives the losses [N] float32; NaN: not known."""
        return np.full(len(clients.examples), np.nan, np.float32)

    def select(self, state, round, here, wanted):
        """Draws candidates and takes those of the highest last loss."""
        share = round.clients.examples[here].astype(np.float64)
        number = min(max(self.candidates, wanted), len(here))
        drawn = round.generator.choice(
            here, number, replace=False, p=share / share.sum()
        )
        losses = np.where(np.isnan(state[drawn]), np.inf, state[drawn])
        return drawn[np.argsort(-losses, kind="stable")[:wanted]]

    def observe(self, state, round, heard):
        """Keeps the losses of the round."""
        losses = or_mean(heard.losses)
        known, new = np.isfinite(losses), state.copy()
        new[heard.ids[known]] = losses[known]
        return new


def or_mean(values: np.ndarray) -> np.ndarray:
    """Puts the mean of the known among values [K] for those that are not.

    >>> or_mean(np.array([1.0, np.nan, 3.0]))
    array([1., 2., 3.])
    """
    known = np.isfinite(values)
    return np.where(known, values, values[known].mean() if known.any() else np.nan)


def choose(
    selection: Selection, state: State, round: Round, here: np.ndarray, wanted: int
) -> np.ndarray:
    """Selects who takes part, and insists on what `Selection.select` promises.

    Args:
      selection: who selects.
      state: of it.
      round: which one.
      here: [A] numbers of those who are here, rising.
      wanted: how many, at most A.

    Returns:
      [wanted] client numbers; up to `Selection.most` of one that varies.

    Raises:
      ValueError: it gives too few or too many, the same twice, or others.
    """
    if not wanted:
        return here[:0]
    given = selection.select(state, round, here, wanted)
    try:
        ids = np.asarray(given)
    except ValueError:  # lists of several lengths
        ids = np.array(None)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        wrong = bounds.shown(given)
    elif len(ids) != wanted and not (
        selection.varies and len(ids) <= selection.most(wanted, len(here))
    ):
        wrong = str(len(ids))
    elif len(np.unique(ids)) < len(ids):
        numbers, times = np.unique(ids, return_counts=True)
        wrong = f"client {numbers[times > 1][0]} more than once"
    else:
        places = np.minimum(np.searchsorted(here, ids), len(here) - 1)
        absent = ids[here[places] != ids]
        if not len(absent):
            return ids
        wrong = f"client {absent[0]}, who is not"
    raise ValueError(
        f"selection {selection}: expected {wanted} different clients of the "
        f"{len(here)} that are here, got {wrong}"
    )
