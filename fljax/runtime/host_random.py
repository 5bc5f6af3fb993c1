"""JAX's random numbers on the host, bit for bit: Threefry-2x32 (Salmon, SC 2011).

A round is planned on the host while the round before computes. Drawn by JAX the
numbers would queue behind that round on the device, and the host would wait for it.
A key is two words, as `jax.random.key_data` gives them.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from scipy import special

Key = np.ndarray  # [2] or [K, 2] uint32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)  # the third word of the key schedule


def key(seed: int) -> Key:
    """Gives the words of `jax.random.key(seed)` for a seed below 2**32."""
    return np.array([0, seed], np.uint32)


def words(key: Key | jax.Array) -> Key:
    """Gives the words of a key that may be one of JAX, which waits for the device."""
    if isinstance(key, jax.Array):
        return np.asarray(jax.random.key_data(key))
    return key


@np.errstate(over="ignore")  # sums modulo 2**32
def _threefry(key: Key, counter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encrypts the counters (0, counter) with a key; both broadcast."""
    first, second = key[..., 0], key[..., 1]
    schedule = (first, second, first ^ second ^ _PARITY)
    left = np.broadcast_to(schedule[0], np.broadcast_shapes(first.shape, counter.shape))
    right = counter + schedule[1]
    for turn in range(5):
        for bits in _ROTATIONS[turn % 2]:
            left = left + right
            right = (right << np.uint32(bits)) | (right >> np.uint32(32 - bits))
            right = right ^ left
        left = left + schedule[(turn + 1) % 3]
        right = right + schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return left, right


def fold_in(key: Key, data: int | np.ndarray) -> Key:
    """Gives what `jax.random.fold_in` gives: [2] for a number, [K, 2] for [K]."""
    return np.stack(_threefry(key, np.asarray(data).astype(np.uint32)), axis=-1)


@functools.lru_cache(maxsize=64)  # a round asks for its key a few times
def of_round(seed: int, index: int) -> Key:
    """Gives the words of the key of a round: fold_in(key(seed), index)."""
    made = fold_in(key(seed), index)
    made.setflags(write=False)
    return made


def uniform(keys: Key, draws: int) -> np.ndarray:
    """Draws [K, draws] as `jax.random.uniform(key, (draws,))` does for each of [K, 2].

    Returns:
      float64 in [0, 1) on a grid of 2**-23.
    """
    left, right = _threefry(keys[:, None], np.arange(draws, dtype=np.uint32))
    return ((left ^ right) >> np.uint32(9)) * 2.0**-23


def normal(keys: Key) -> np.ndarray:
    """Draws a standard normal number for each of [K, 2] keys; [K] float64."""
    return special.ndtri(uniform(keys, 1)[:, 0] + 2.0**-24)


def uniforms(
    round_key: Key | jax.Array, tag: int, ids: np.ndarray, draws: int
) -> np.ndarray:
    """Draw numbers that depend on nothing but the round, the use and the client.

    Args:
      round_key: key of the round, of this module or of JAX.
      tag: names the use, see `streams`.
      ids: [K] client ids, in any order.
      draws: numbers a client.

    Returns:
      [K, draws] float64, uniform in [0, 1) on a grid of 2**-23.
    """
    return uniform(_client_keys(round_key, tag, ids), draws)


def normals(round_key: Key | jax.Array, tag: int, ids: np.ndarray) -> np.ndarray:
    """Draw standard normal numbers [K] float64, keyed as those of `uniforms`."""
    return normal(_client_keys(round_key, tag, ids))


def _client_keys(round_key: Key | jax.Array, tag: int, ids: np.ndarray) -> Key:
    use_key = fold_in(words(round_key), tag)
    return fold_in(use_key, ids)
