"""Oort: clients that teach much in little time, and now and then new ones.

Lai, Zhu, Madhyastha and Chowdhury, "Oort: Efficient Federated Learning via Guided
Participant Selection" (OSDI 2021), Algorithm 1. Where the paper leaves scales open this
follows the authors' code (FedScale, thirdparty/oort): utilities are clipped and brought
to [0, 1] beside the bonus for those long not seen; the preferred duration is a
percentile of the clients' durations; who was not heard of counts with the round's mean.
There is no blacklist, which is off in that code, either.

Legend: N all clients, K of a round.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from fljax import bounds
from fljax.policies import selection

PREFERRED = 30  # percent of the clients are as fast as preferred, at the start
RELAXED = 5  # percent more whenever the utility falls
_CLIP = 0.95  # share of the utilities below the clipped ones
_BONUS = 0.1  # of the logarithm in the bonus
_LEAST = 1e-9  # of a score or a duration, so that each can be drawn


class OortState(NamedTuple):
    """What Oort learned."""

    utility: np.ndarray  # [N] float32: statistical; NaN: not explored
    seconds: np.ndarray  # [N] float32: of the last part in a round; NaN: not heard
    last: np.ndarray  # [N] int32: index of that round
    relaxed: np.ndarray  # [] int32: times that the preferred duration rose
    gained: np.ndarray  # [2] float32: utility of the window before and of this one


@dataclasses.dataclass(frozen=True)
class Oort(selection.Selection):
    """Explores new clients, and exploits those of the highest utility.

    A share e of a round, `explore * decay**round` but at least `least`, goes to clients
    never heard of, drawn by speed; a fraction of a client is one by chance. The others
    are drawn in proportion to

        (U + sqrt(.1 log R / L)) * (T / t)^alpha    the second factor where t > T

    among those with `cutoff` of what the last of the best has. U is examples * loss:
    examples * sqrt(mean squared loss), with the square of the mean in place of the mean
    of squares, which clients do not report. R counts rounds, L is the last in which the
    client took part, t what it took. T is exceeded by all but `PREFERRED` percent of
    the clients; `RELAXED` percent fewer after each `window` rounds that brought less
    utility than those before.
    """

    hears: ClassVar[bool] = True

    alpha: float = bounds.field(2.0, "Power of the penalty for slow clients.", most=100)
    explore: float = bounds.field(0.9, "Share of new clients in round 0.", most=1)
    decay: float = bounds.field(0.98, "Of that share from round to round.", most=1)
    least: float = bounds.field(0.2, "The least that it falls to.", most=1)
    cutoff: float = bounds.field(0.95, "Of the last of the best, to be drawn.", most=1)
    window: int = bounds.field(20, "Rounds whose utility is compared.", least=1)

    def __post_init__(self):
        """Refuse what is out of bounds."""
        bounds.check(self)

    def init(self, clients):
        """Gives the state in which nobody is explored."""
        unknown = np.full(len(clients.examples), np.nan, np.float32)
        return OortState(
            unknown,
            unknown.copy(),
            np.zeros(len(unknown), np.int32),
            np.array(0, np.int32),
            np.zeros(2, np.float32),
        )

    def select(self, state, round, here, wanted):
        """Draws new clients by speed and known ones by utility, in random order."""
        generator = round.generator
        seconds = _seconds(state, round)
        explored = ~np.isnan(state.utility[here])
        old, new = here[explored], here[~explored]
        share = max(self.explore * self.decay**round.index, self.least)
        explore = int(share * wanted + generator.random())
        fresh = min(len(new), max(explore, wanted - len(old)))
        scores = self.scores(state, round, old)
        if fresh < wanted:
            cut = np.partition(scores, fresh - wanted)[fresh - wanted]
            admitted = scores >= self.cutoff * cut
            old, scores = old[admitted], scores[admitted]
        speed = 1 / np.maximum(seconds[new], _LEAST)
        picked = [
            generator.choice(ids, number, replace=False, p=weights / weights.sum())
            for ids, number, weights in (
                (new, fresh, speed),
                (old, wanted - fresh, scores),
            )
            if number
        ]
        return generator.permutation(np.concatenate(picked))

    def scores(
        self, state: OortState, round: selection.Round, ids: np.ndarray
    ) -> np.ndarray:
        """Gives the utilities of explored clients.

        Args:
          state: of the selection.
          round: that they are for.
          ids: [K] explored clients.

        Returns:
          [K] float64 above 0.
        """
        if not len(ids):
            return np.zeros(0)
        utility = state.utility[ids].astype(np.float64)
        top = _at(utility, int(len(ids) * _CLIP))
        low = 0.999 * utility.min()
        scaled = (np.minimum(utility, top) - low) / max(utility.max() - low, 1e-4)
        bonus = np.sqrt(_BONUS * np.log(round.index + 1) / (state.last[ids] + 1))
        seconds = _seconds(state, round)
        percent = PREFERRED + RELAXED * int(state.relaxed)
        preferred = max(_at(seconds, len(seconds) * percent // 100), _LEAST)
        penalty = (preferred / np.maximum(seconds[ids], preferred)) ** self.alpha
        return np.maximum((scaled + bonus) * penalty, _LEAST)

    def observe(self, state, round, heard):
        """Keeps utilities and durations; every `window` rounds looks at the pace."""
        found = round.clients.examples[heard.ids] * heard.losses
        told = selection.or_mean(found)
        known, timed = np.isfinite(told), np.isfinite(heard.seconds)
        utility, seconds, last = map(np.copy, state[:3])
        utility[heard.ids[known]] = told[known]
        last[heard.ids[known]] = round.index
        seconds[heard.ids[timed]] = heard.seconds[timed]
        gained = state.gained + np.array([0, found[np.isfinite(found)].sum()])
        relaxed = state.relaxed
        if (round.index + 1) % self.window == 0:
            relaxed = np.int32(relaxed + (gained[0] > gained[1]))
            gained = np.array([gained[1], 0])
        return OortState(
            utility, seconds, last, np.array(relaxed), gained.astype(np.float32)
        )


def _seconds(state: OortState, round: selection.Round) -> np.ndarray:
    """Gives what a round takes each client [N]: as heard, or as its device promises."""
    seconds = state.seconds
    return np.where(np.isnan(seconds), round.clients.seconds, seconds)


def _at(values: np.ndarray, place: int) -> float:
    """Gives the value at a place in rising order, or the largest beyond the last."""
    place = min(place, len(values) - 1)
    return float(np.partition(values, place)[place])
