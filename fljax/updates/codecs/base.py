"""What a codec is: what the server decodes of an update, and how many bytes it takes.

Codecs that throw away the same part of every update keep what they threw away, the
error memory e, and add it to the next one (error feedback): u = e + D is coded as m,
and e becomes u - m.

Legend: d numbers of a client's vector.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fljax import types


class Part(NamedTuple):
    """Which coordinates of the vector a client sends: a window, so one stretch.

    Attributes:
      here: [d] bool.
      first: [] int32, where they begin.
      count: [] int32, how many, 1 at least.
    """

    here: types.ArrayLike
    first: types.ArrayLike
    count: types.ArrayLike


class Message(NamedTuple):
    """What is sent of an update; codecs turn one into another.

    Attributes:
      values: numbers that are sent.
      bits: of each.
      beside: bytes beside them: places, scales.
    """

    values: int
    bits: float = 32.0
    beside: float = 0.0

    @property
    def bytes(self) -> int:
        """Counts the bytes, rounded up."""
        return math.ceil(self.values * self.bits / 8 + self.beside)


@dataclasses.dataclass(frozen=True)
class Codec(abc.ABC):
    """Encodes and decodes an update; static and hashable."""

    # What it decodes has values of many bits, so nothing codes that for less: it ends a
    # chain.
    last: ClassVar[bool] = False

    @property
    def memories(self) -> int:
        """Counts the error memories [d] that a client keeps, zeros at first."""
        return 0

    @abc.abstractmethod
    def apply(
        self,
        key: types.Key,
        update: types.Array,
        part: Part | None,
        memory: tuple[types.Array, ...],
    ) -> tuple[types.Array, tuple[types.Array, ...]]:
        """Encodes and decodes one client's update.

        Args:
          key: of this client in this round.
          update: [d] new minus old.
          part: what of it is sent; None: all.
          memory: the client's error memories, each [d].

        Returns:
          [d] what the server decodes, 0 where nothing is sent, and the new memories,
          which keep their values there.
        """

    @abc.abstractmethod
    def message(self, message: Message, size: int) -> Message:
        """Tells what is sent, before anything is trained.

        Args:
          message: what would be sent without this codec.
          size: numbers of the update that are sent.
        """


@dataclasses.dataclass(frozen=True)
class Elementary(Codec):
    """A codec that is no chain, written for the coordinates that are sent."""

    @abc.abstractmethod
    def code(self, key: types.Key, vector: types.Array, part: Part) -> types.Array:
        """Encodes and decodes a vector.

        What is drawn for a coordinate must depend on its place in the part alone, as
        `uniform` does it.

        Args:
          key: of this client in this round.
          vector: [d], 0 outside the part.
          part: what is sent; of one that is all, `here` is True, the rest Python ints.

        Returns:
          [d] decoded; outside the part it may be anything.
        """

    def apply(self, key, update, part, memory):
        """Encodes and decodes; one memory is error feedback."""
        part = Part(True, 0, update.size) if part is None else part
        vector = jnp.where(part.here, sum(memory, update), 0.0)
        decoded = jnp.where(part.here, self.code(key, vector, part), 0.0)
        kept = tuple(jnp.where(part.here, vector - decoded, old) for old in memory)
        return decoded, kept


@dataclasses.dataclass(frozen=True)
class Chain(Codec):
    """Codecs one after the other; each one's memory holds its own error alone.

    Attributes:
      parts: applied in this order.
    """

    parts: tuple[Codec, ...]

    def __post_init__(self):
        """Checks the parts.

        Raises:
          ValueError: one line.
        """
        whole = isinstance(self.parts, tuple)
        if not whole or not all(isinstance(part, Codec) for part in self.parts):
            raise ValueError(f"expected a tuple of codecs, got {self.parts!r}")
        for part in self.parts[:-1]:
            if part.last:
                raise ValueError(f"expected {part!r} as the last of a chain")

    @property
    def memories(self) -> int:
        """Counts those of all parts."""
        return sum(part.memories for part in self.parts)

    def apply(self, key, update, part, memory):
        """Applies each codec to what the one before it decodes."""
        kept: tuple[types.Array, ...] = ()
        for place, codec in enumerate(self.parts):
            own = memory[len(kept) :][: codec.memories]
            folded = jax.random.fold_in(key, place)
            update, own = codec.apply(folded, update, part, own)
            kept += own
        return update, kept

    def message(self, message, size):
        """Turns the message by each codec."""
        for codec in self.parts:
            message = codec.message(message, size)
        return message


def uniform(key: types.Key, vector: types.Array, part: Part) -> types.Array:
    """Draws [d] from [0, 1); those of a part do not depend on where it lies.

    The first numbers that are drawn are the same however many are (JAX's default
    generator counts coordinates), so they are rolled to where the part begins.
    """
    return jnp.roll(jax.random.uniform(key, vector.shape), part.first)


def scaled(vector: types.Array) -> tuple[types.Array, types.Array]:
    """Divides by the largest power of two in a vector: no square under- or overflows.

    Returns:
      [d] in (-2, 2), without any rounding but of what is next to nothing beside the
      largest, and the power [], 1 for zeros.
    """
    bits = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(vector)), jnp.int32)
    power = jax.lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32)  # its exponent
    power = jnp.where(power == 0, 1.0, power)
    return vector / power, power


def ratio(a: types.Array, b: types.Array) -> types.Array:
    """Divides, with 0 / 0 = 0: a codec makes zeros of zeros."""
    zero = (a == 0) & (b == 0)
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))
