"""Codecs (placeholder until merged)."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

from fljax import types


class Part(NamedTuple):
    here: types.Array
    first: types.Array
    count: types.Array


class Message(NamedTuple):
    values: int
    bits: float = 32.0
    beside: float = 0.0

    @property
    def bytes(self) -> int:
        return int(-(-(self.values * self.bits / 8 + self.beside) // 1))


class Codec(abc.ABC):
    memories: ClassVar[int] = 0

    def apply(self, key, update, part, memory): ...

    def message(self, message, size): ...


def read(text):
    return None
