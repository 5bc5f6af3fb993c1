"""Images brought to one size and to grey or color, by Pillow."""

from __future__ import annotations

import contextlib
import math
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fljax.data import progress
from fljax.runtime import memory

MODES = {"grey": "L", "rgb": "RGB"}  # to Pillow's names
INSTALL = "pip install 'fljax[images]'"
# Not Pillow's other ones: among them is PostScript, which is a program to be run.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")


def pillow(name: str) -> Any:
    """Imports Pillow's Image.

    Raises:
      ValueError: it is not there; the line opens with `name`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"{name} needs Pillow, which does not import ({error}): {INSTALL}"
        ) from error
    return Image


@contextlib.contextmanager
def opened(pil: Any, path: pathlib.Path) -> Iterator[Any]:
    """Opens a file as Pillow's image, whatever its suffix.

    Pillow refuses what would unfold to twice its MAX_IMAGE_PIXELS. It also warns, on
    lines of its own, of half as many and of flaws that it gets over.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pil.open(path, formats=FORMATS) as image:
            yield image


def require(name: str, number: int, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless so many uint8 images of a shape fit into memory."""
    what = f"{number:,} images of {shape[0]:,} x {shape[1]:,}"
    size = number * math.prod(shape)
    memory.require(f"{name}: --image_size", what, size, memory.of_host())


def array(image: Any, size: int, mode: str) -> np.ndarray:
    """Turns an image of Pillow into an array.

    Args:
      image: 8 bits a channel.
      size: height and width, bilinear (with antialiasing where it shrinks, as
        torchvision's Resize of such images); 0: as it is.
      mode: a key of MODES.

    Returns:
      [height, width, channels] uint8.
    """
    image = image.convert(MODES[mode])
    if size and image.size != (size, size):
        image = image.resize((size, size), resample=2)  # Resampling.BILINEAR
    return np.asarray(image).reshape(image.height, image.width, -1)


def fit(
    name: str,
    arrays: Mapping[str, np.ndarray],
    size: int = 0,
    mode: str = "stored",
    watch: progress.Watch = progress.ignore,
) -> dict[str, np.ndarray]:
    """Brings images that are arrays to one size and mode.

    Args:
      name: opens every error.
      arrays: x_train and x_test are [examples, height, width(, 1 or 3)] uint8, unless
        neither a size nor a mode is asked for.
      size: height and width; 0: as stored.
      mode: grey, rgb or stored.
      watch: is told of the progress.

    Returns:
      The arrays, x_train and x_test replaced.

    Raises:
      ValueError: they are no such images, or Pillow is missing.
    """
    arrays = dict(arrays)
    if not size and mode == "stored":
        return arrays
    pil = pillow(f"{name}: --image_size or --image_mode")
    for key in ("x_train", "x_test"):
        x = arrays[key]
        x = x[..., None] if x.ndim == 3 else x
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise ValueError(
                f"{name}: --image_size and --image_mode expect {key} to be uint8 "
                f"images of 1 or 3 channels, got {x.dtype}{list(x.shape)}"
            )
        kind = mode if mode != "stored" else "grey" if x.shape[-1] == 1 else "rgb"
        shape = (size or x.shape[1], size or x.shape[2], 1 if kind == "grey" else 3)
        require(name, len(x), shape)
        out = np.empty((len(x), *shape), np.uint8)
        for i, row in enumerate(x):
            image = pil.fromarray(row[..., 0] if row.shape[-1] == 1 else row)
            out[i] = array(image, size, kind)
            watch(f"resizing {key} of {name}", i + 1, len(x))
        arrays[key] = out
    return arrays
