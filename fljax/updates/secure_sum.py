"""Secure aggregation, simulated: a server that gets the sum of updates and no summand.

After Bonawitz et al., "Practical secure aggregation for privacy-preserving machine
learning" (CCS 2017). Each client turns what it would send into whole numbers q of steps
of 2^-bits and adds, modulo 2^32, a mask for each of its neighbours: the same numbers,
drawn from a key that the two share, with opposite signs. In the sum the masks cancel.
Those that somebody shares who dropped out are left; the others have shares of its key,
and the server takes them off. So the sum is exact to the step, whoever dropped out, and
does not depend on any order. Neighbours are all others, or k of them on a ring, which
is a k-regular graph (Bell et al., "SecAgg+", CCS 2020).

Nothing is protected here: whoever runs the simulation sees everything. What is
simulated is what it does to accuracy, time and traffic.

Legend: K clients of a round, P values, E partners of a client.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fljax import bounds, notation, types

# Bytes of what is sent beside the masked values. A public key is one of X25519; each
# client has two. Of each client's two secrets every neighbour gets a share, in one
# message encrypted by AES-GCM, and gives one of them back in the end.
_KEY, _SHARE, _SEALED, _NUMBER = 32, 32, 2 * 32 + 12 + 16, 4

# Round trips beyond that of the update: keys and shares before training, and the
# shares of who dropped out, after all have sent.
TRIPS_BEFORE, TRIPS_AFTER = 2, 1

NOBODY = -1  # in place of a partner


@dataclasses.dataclass(frozen=True)
class SecureSum:
    """What is asked for: `BITS:NEIGHBOURS:MASKS`.

    Attributes:
      bits: after the binary point; values are whole numbers of steps of 2^-bits.
      neighbours: with whom a client shares masks, an even number; 0: all others.
      masks: whether masks are added and taken off. They cancel to the bit, so that all
        is as without them, but for the time of this machine.
    """

    bits: int = bounds.field(dataclasses.MISSING, kind=int, least=1, most=30)
    neighbours: int = bounds.field(0, least=0)
    masks: bool = bounds.field(False)

    def __post_init__(self):
        """Checks the fields.

        Raises:
          ValueError: one line.
        """
        bounds.check(self)
        if self.neighbours % 2:
            raise ValueError(
                f"neighbours: expected an even number, as many to each side of a ring, "
                f"got {self.neighbours}"
            )


def read(text: str) -> SecureSum | None:
    """Makes what a text such as `16` or `16:8` asks for; None of none.

    >>> read("16:masks=true")
    SecureSum(bits=16, neighbours=0, masks=True)

    Raises:
      ValueError: one line without the flag.
    """
    if text == "none":
        return None
    return notation.make(f"secure_sum:{text}", {"secure_sum": SecureSum})


@dataclasses.dataclass(frozen=True)
class Words:
    """How values become words of 32 bits in the rounds of a run; of `make`.

    Attributes:
      bits: after the binary point.
      most: steps that a client's value has at most, so that K of them stay within 31
        bits and a sign; larger values are clipped.
      unit: a power of two that weights are divided by, so that none is above 1.
      neighbours: of each client.
      masks: whether they are added and taken off.
    """

    bits: int
    most: int
    unit: float
    neighbours: int
    masks: bool

    @property
    def step(self) -> float:
        """Gives what one stands for, a power of two."""
        return self.unit / 2**self.bits


def make(asked: SecureSum, clients: int, weight: float) -> Words:
    """Chooses what K clients can add up without an overflow.

    Args:
      asked: what is asked for.
      clients: K, the most of a round.
      weight: the largest of a client.

    Returns:
      How values become words.

    Raises:
      ValueError: two clients at least are needed, or each is left a range of less than
        from -1 to 1.
    """
    if clients < 2:
        raise ValueError(
            "--secure_sum: expected 2 clients a round or more beside it, since the sum "
            "of one is its update, got 1"
        )
    most = (2**31 - 1) // clients
    spare = max(most.bit_length() - 24, 0)  # a float32 has no more
    most = (most >> spare) << spare
    if 2**asked.bits > most:
        raise ValueError(
            f"--secure_sum: expected at most {most.bit_length() - 1} bits beside "
            f"{clients:,} clients a round, so that their sum stays below 2^31, got "
            f"{asked.bits}"
        )
    unit = 2.0 ** np.ceil(np.log2(weight))
    others = clients - 1
    neighbours = min(asked.neighbours or others, others)
    return Words(asked.bits, most, float(unit), neighbours, asked.masks)


def sent_beside(words: Words, blocks: int) -> int:
    """Counts the bytes that a client sends beside its values.

    Args:
      words: of the run.
      blocks: that it trained.

    Returns:
      Two keys; to each neighbour sealed shares and, in the end, a share; its weight, a
      word in the sum of each block and in that of all.
    """
    return 2 * _KEY + words.neighbours * (_SEALED + _SHARE) + 4 * (blocks + 1)


def received_beside(words: Words) -> int:
    """Counts the bytes that a client is sent: of each neighbour its keys and shares.

    In the end it is told who is left.
    """
    return words.neighbours * (2 * _KEY + _SEALED + _NUMBER)


def coded(
    words: Words,
    vector: types.Array,
    weight: types.Array,
    draws: types.ArrayLike,
    upward: types.ArrayLike = False,
) -> types.Array:
    """Turns one client's values into words.

    Args:
      words: of the run.
      vector: [P].
      weight: [] of the client; 0: it sends zeros, whatever its values are.
      draws: [P] from [0, 1): a value is rounded up with the probability of its
        fraction, so that the mean is kept.
      upward: [P] bool, which values are rounded up always: variances and ranges, of
        which a mean must not fall below zero.

    Returns:
      [P] uint32.
    """
    largest = np.float32(words.most)
    scaled = jnp.clip(vector * (weight / words.step), -largest, largest)
    low = jnp.floor(scaled)
    fraction = scaled - low
    up = jnp.where(upward, fraction > 0, draws < fraction)
    steps = jnp.where(weight == 0, 0.0, low + up).astype(jnp.int32)
    return lax.bitcast_convert_type(steps, jnp.uint32)


def opened(words: Words, total: types.Array) -> types.Array:
    """Turns sums of words, without masks, into values; of uint32 float32."""
    steps = lax.bitcast_convert_type(total, jnp.int32)
    return steps.astype(jnp.float32) * np.float32(words.step)


def added(values: types.Array, weights: types.Array) -> types.Array:
    """Adds up words [W, ...] modulo 2^32; they have their weights already."""
    del weights
    return jnp.sum(values, axis=0, dtype=jnp.uint32)


class Stream(NamedTuple):
    """Which numbers a pair draws.

    Attributes:
      key: of the round, and of what is masked: values, a message, numbers.
      whole: how many all blocks together have, so that none depends on a program.
      first: where the program's begin.
      size: how many these are.
      block_of: [size] int32, the block of each; None: they are of no block.
    """

    key: types.Key
    whole: int
    first: int
    size: int
    block_of: types.ArrayLike | None


def mask(stream: Stream, me: types.Array, partner: types.Array) -> types.Array:
    """Draws what a client adds for one partner.

    Args:
      stream: which numbers.
      me: [] its number.
      partner: [3] the partner's number, and the first and last block that they share.

    Returns:
      [size] uint32, 0 of other blocks; the partner's is minus this.
    """
    other, first, last = partner
    low, high = jnp.minimum(me, other), jnp.maximum(me, other)
    key = jax.random.fold_in(jax.random.fold_in(stream.key, low), high)
    drawn = jax.random.bits(key, (stream.whole,), jnp.uint32)
    drawn = lax.slice_in_dim(drawn, stream.first, stream.first + stream.size)
    if stream.block_of is not None:
        shared = (first <= stream.block_of) & (stream.block_of <= last)
        drawn = jnp.where(shared, drawn, jnp.uint32(0))
    return jnp.where(me < other, drawn, -drawn)


def masked(
    stream: Stream, values: types.Array, me: types.Array, partners: types.ArrayLike
) -> types.Array:
    """Adds a client's masks to its words.

    Args:
      stream: which numbers.
      values: uint32, of the program's blocks.
      me: [] its number.
      partners: [E, 3], those who are first.

    Returns:
      The masked words.
    """

    rows = jnp.asarray(partners)

    def one(i, total):
        return total + mask(stream, me, rows[i])

    return lax.fori_loop(0, jnp.sum(rows[:, 0] != NOBODY), one, values)


def unmasked(stream: Stream, total: types.Array, left: types.ArrayLike) -> types.Array:
    """Takes off the masks that are left of who dropped out.

    Args:
      stream: which numbers.
      total: uint32, the sum of masked words.
      left: [L, 4] a client that is there, and its partner that is not, as of `mask`;
        those who are first.

    Returns:
      The sum of the words.
    """

    pairs = jnp.asarray(left)

    def one(i, total):
        return total - mask(stream, pairs[i, 0], pairs[i, 1:])

    return lax.fori_loop(0, jnp.sum(pairs[:, 0] != NOBODY), one, total)


Partners = list[tuple[int, int, int]]  # of a client: their number, first, last block


def partners(
    order: np.ndarray, windows: Mapping[int, Sequence[int]], neighbours: int
) -> dict[int, Partners]:
    """Says who shares masks with whom: of every block those who train it.

    Args:
      order: [K] client numbers, in an order that nobody can choose.
      windows: client number -> first and last block that it trains.
      neighbours: of each; to both sides, on a ring of those who train a block.

    Returns:
      client number -> its partners, each with a stretch of blocks.
    """
    blocks = range(max((last for _, last in windows.values()), default=-1) + 1)
    pairs: dict[tuple[int, int], list[int]] = {}
    for block in blocks:
        ring = [i for i in order.tolist() if windows[i][0] <= block <= windows[i][1]]
        everybody = neighbours >= len(ring) - 1
        reach = len(ring) // 2 if everybody else neighbours // 2
        for place, me in enumerate(ring):
            for ahead in range(1, reach + 1):
                other = ring[(place + ahead) % len(ring)]
                shared = pairs.setdefault((min(me, other), max(me, other)), [])
                if block not in shared[-1:]:  # two that face each other meet twice
                    shared.append(block)
    found: dict[int, Partners] = {int(me): [] for me in order}
    for (low, high), shared in sorted(pairs.items()):
        for first, last in _stretches(shared):
            found[low].append((high, first, last))
            found[high].append((low, first, last))
    return found


class Masking(NamedTuple):
    """Partners as arrays of one shape for all rounds, filled up with NOBODY.

    Attributes:
      rows: [K, E, 3] int32, of those who arrive, as of `masked`.
      left: [K * E, 4] int32, as of `unmasked`.
    """

    rows: np.ndarray
    left: np.ndarray


def masking(
    ids: np.ndarray, found: Mapping[int, Partners], shape: tuple[int, int]
) -> Masking:
    """Lays out with whom those who arrive share masks.

    Args:
      ids: [A] client numbers, in the order of the cohort.
      found: of `partners`.
      shape: K and E.

    Returns:
      The arrays.
    """
    there = set(ids.tolist())
    rows = np.full((*shape, 3), NOBODY, np.int32)
    left = np.full((shape[0] * shape[1], 4), NOBODY, np.int32)
    for row, me in zip(rows, ids.tolist(), strict=False):
        row[: len(found[me])] = np.reshape(found[me], (-1, 3))
    gone = [(me, *p) for me in sorted(there) for p in found[me] if p[0] not in there]
    left[: len(gone)] = np.reshape(gone, (-1, 4))
    return Masking(rows, left)


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Puts rising numbers that follow each other together: first and last of each."""

    def joined(runs: list[tuple[int, int]], number: int) -> list[tuple[int, int]]:
        if runs and runs[-1][1] == number - 1:
            return [*runs[:-1], (runs[-1][0], number)]
        return [*runs, (number, number)]

    return functools.reduce(joined, numbers, [])


def alone(ids: np.ndarray, windows: Sequence[Sequence[int]]) -> list[int]:
    """Names the clients of whose blocks one is in no sum but their own.

    Args:
      ids: [A] of those who arrived.
      windows: [A] first and last block of each.

    Returns:
      Rising client numbers.
    """
    if not len(ids):
        return []
    first, last = np.array(windows).T
    blocks = np.arange(last.max() + 1)[:, None]
    here = (first <= blocks) & (blocks <= last)  # [n, A]
    single = here & (here.sum(axis=1, keepdims=True) == 1)
    return sorted(ids[single.any(axis=0)].tolist())
