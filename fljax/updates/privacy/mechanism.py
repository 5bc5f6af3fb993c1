"""The Gaussian mechanism of a round: x += (1/m) (sum clip(D_i, C) + N(0, z^2 C^2 I)).

One norm over all that a client sends, equal weights, a fixed divisor m, noise once a
round on every element, whoever trained it (McMahan et al., ICLR 2018). With adaptive
clipping C follows a quantile of the norms (Andrew et al., NeurIPS 2021, 1905.03871).

Legend: W clients of a chunk, P values of the network's blocks.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import types
from fljax.runtime import streams
from fljax.updates import server
from fljax.updates.privacy import accounting, bands

# What is positive falls by a half a round at most, however large the noise.
_LEAST = 0.5

_NEVER = -(2**30)  # a round long ago


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """How a clip norm follows a quantile of the norms.

    Attributes:
      quantile: share of clients whose norms are to be at most the clip norm.
      rate: of the steps of its logarithm.
      deviation: of the noise of the number of these clients.
    """

    quantile: float
    rate: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What is accounted, and how much there is.

    Attributes:
      cohort: how cohorts are drawn.
      delta: beside epsilon.
      most: rounds of the run, or of each client, that the budget is enough for; None:
        there is no limit.
    """

    cohort: accounting.Cohort
    delta: float
    most: int | None = None

    def epsilon(self, noise: float, times: int) -> float:
        """Gives what is spent, as `accounting.Cohort.epsilon`."""
        return accounting.epsilon(self.cohort, noise, self.delta, times)

    @property
    def most_rounds(self) -> int | None:
        """Gives the rounds that a run may have; None: any number."""
        return None if self.cohort.by_client else self.most


class Kept(NamedTuple):
    """What a run keeps for its privacy from round to round.

    Attributes:
      clip: [] float32 C of the next round.
      rounds: [] int32 that have been released.
      parts: [N] int32 rounds of these that each client took part in.
      last: [N] int32 the last of these; far below 0: none.
    """

    clip: types.ArrayLike
    rounds: np.ndarray
    parts: np.ndarray
    last: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What is done to the updates of a round.

    Attributes:
      clip: L2 norm C of an update at most, at the start.
      noise: multiplier z that is accounted for.
      divisor: m of the noisy sum.
      adaptive: how C moves; None: it stays.
      ledger: what that spends.
      bands: b of noise that is correlated over rounds; a client waits b rounds between
        two parts. 1: noise is independent.
    """

    clip: float
    noise: float
    divisor: float
    adaptive: Adaptive | None = None
    ledger: Ledger = Ledger(accounting.Known(), 1e-6)
    bands: int = 1

    def init(self, clients: int) -> Kept:
        """Makes what is kept before the first round, of so many clients."""
        parts, last = np.zeros(clients, np.int32), np.full(clients, _NEVER, np.int32)
        return Kept(np.float32(self.clip), np.array(0, np.int32), parts, last)

    def after(self, kept: Kept, ids: np.ndarray, clip: types.ArrayLike) -> Kept:
        """Notes a round.

        Args:
          kept: before it.
          ids: [A] clients who took part.
          clip: C of the next one.

        Returns:
          What is kept after it.
        """
        parts, last = kept.parts.copy(), kept.last.copy()
        parts[ids] += 1
        last[ids] = kept.rounds
        return Kept(clip, kept.rounds + np.int32(1), parts, last)

    def may(self, kept: Kept, here: np.ndarray) -> np.ndarray:
        """Finds who may take part of those who are here, [A].

        Not those whose budget is spent, or who took part a moment ago, where noise is
        correlated.
        """
        ledger = self.ledger
        if not ledger.cohort.by_client:
            return here
        here = here[kept.rounds - kept.last[here] >= self.bands]
        return here if ledger.most is None else here[kept.parts[here] < ledger.most]

    def draw(self, seed: int, round: int, clip: types.ArrayLike) -> Draw:
        """Says what the noise of a round is made of."""
        weights = bands.weights(self.bands, round) if self.bands > 1 else None
        return Draw(jax.random.key(seed), np.int32(round), clip, weights)

    def spent(self, kept: Kept) -> float:
        """Gives the epsilon of the rounds so far."""
        each = self.ledger.cohort.by_client
        times = kept.parts.max(initial=0) if each else kept.rounds
        return self.ledger.epsilon(self.noise, int(times))

    @property
    def of_updates(self) -> float:
        """Gives the multiplier of the updates' noise.

        That is z, times how far one part reaches where noise is correlated. Where a
        number of clients is released beside them, its bits, of -1/2 or 1/2, and the
        updates are one vector, whose noise of both is that of z.
        """
        if self.adaptive is None:
            return self.noise * bands.length(self.bands)
        return (self.noise**-2 - (2 * self.adaptive.deviation) ** -2) ** -0.5


# What clients' programs know of a mechanism: that there is one.
CLIPS = Mechanism(1.0, 1.0, 1.0)


class Draw(NamedTuple):
    """What the noise of a round is made of.

    Attributes:
      key: of the seed.
      round: [] int32, its index; no two rounds have one.
      clip: [] C of the round.
      weights: [R] of the vectors of this round, the one before and so on; None: of
        this one alone.
    """

    key: types.Key
    round: types.ArrayLike
    clip: types.ArrayLike
    weights: types.ArrayLike | None = None

    def normal(self, shape: tuple[int, ...], stream: int) -> types.Array:
        """Draws the noise of the round, of deviation 1 or as its weights say."""

        def vector(round):
            key = jax.random.fold_in(jax.random.fold_in(self.key, round), stream)
            return jax.random.normal(key, shape)

        if self.weights is None:
            return vector(self.round)
        weights, latest = jnp.asarray(self.weights), self.round

        def add(age, noise):
            return noise + weights[age] * vector(latest - age)

        return jax.lax.fori_loop(0, latest + 1, add, jnp.zeros(shape))


def clipped(
    vectors: types.Array, clip: types.ArrayLike
) -> tuple[types.Array, types.Array]:
    """Shortens what is too long: v min(1, C / L2 norm of v).

    Args:
      vectors: [W, P] all that each client sends.
      clip: C.

    Returns:
      [W, P]; [W] 1/2 for those whose norms were at most C, else -1/2.
    """
    norms = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1))
    # A norm beyond float32 is infinite, and leaves zeros.
    short = vectors * jnp.minimum(1.0, clip / norms)[:, None]
    fits = norms <= clip
    return jnp.where(fits[:, None], vectors, short), jnp.where(fits, 0.5, -0.5)


def released(
    mechanism: Mechanism, draw: Draw, totals: server.Totals
) -> tuple[server.Totals, types.Array]:
    """Adds the noise of a round; nothing else of a round reaches the server's step.

    Args:
      mechanism: what is done.
      draw: of the round.
      totals: sums of clipped updates.

    Returns:
      Sums as of m clients that trained everything; C of the next round.
    """
    noise = draw.normal(totals.deltas.shape, streams.PRIVACY)
    everybody = jnp.full((), mechanism.divisor)
    clip = jnp.asarray(draw.clip)
    new = server.Totals(
        totals.deltas + mechanism.of_updates * clip * noise,
        jnp.full(totals.weights.shape, mechanism.divisor),
        everybody,
    )
    adaptive = mechanism.adaptive
    if adaptive is None or totals.below is None:
        return new, clip
    of_count = draw.normal((), streams.PRIVACY_COUNT)
    count = totals.below + adaptive.deviation * of_count
    share = count / mechanism.divisor + 0.5
    return new, clip * jnp.exp(-adaptive.rate * (share - adaptive.quantile))


def bounded(blocks: tuple[dict, ...], before: tuple[dict, ...]) -> tuple[dict, ...]:
    """Keeps variances and ranges positive, which noise may take below 0.

    What is released may be changed by what was; nothing is spent for that.

    Args:
      blocks: of the network after a round.
      before: those that it began with.

    Returns:
      The blocks, variances of norms and ranges of codes at least half of what they
      were.
    """

    def least(path, new, old):
        positive = path[0].key != "norms" or path[-1].key == "var"
        return jnp.maximum(new, _LEAST * old) if positive else new

    def of_block(block, old):
        rest = {name: block[name] for name in block if name != "params"}
        kept = {name: old[name] for name in rest}
        return block | jax.tree_util.tree_map_with_path(least, rest, kept)

    return tuple(of_block(*pair) for pair in zip(blocks, before, strict=True))
