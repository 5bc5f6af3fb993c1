"""Augmentation of training batches inside the compiled step; pure, one client's.

`client.Training.augment` takes one of these, (key, x) -> x. The key is that of round,
client and step, so results do not depend on how clients are batched. It acts on
normalized inputs: what comes in from outside the image is 0, the channel's mean.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fljax import types

PADDING = 4  # pixels that a crop may move each way, as usual for 32 x 32


def crop_flip(key: types.Key, x: types.Array) -> types.Array:
    """Shifts each image by up to 4 pixels each way and mirrors every second one.

    That is a random crop of the image padded by 4, and a horizontal flip. One gather
    of rows and columns: on CPU 0.06 ms for 32 images of 32 x 32 x 3, against 0.41 ms
    as products with one-hot matrices and 0.35 ms as selects over the shifts.

    Args:
      key: of the batch.
      x: [B, height, width, channels].

    Returns:
      Shape and dtype of x.
    """
    size, height, width, _ = x.shape
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (2, size, 1), 0, 2 * PADDING + 1)
    flipped = jax.random.bernoulli(flip_key, shape=(size, 1))
    columns = jnp.arange(width)
    columns = jnp.where(flipped, width - 1 - columns, columns) + shifts[1]
    rows = jnp.arange(height) + shifts[0]
    around = (PADDING, PADDING)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    return padded[jnp.arange(size)[:, None, None], rows[:, :, None], columns[:, None]]


BY_NAME: dict[str, Callable[[types.Key, types.Array], types.Array] | None] = {
    "none": None,
    "crop_flip": crop_flip,
}
