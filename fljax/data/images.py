"""Images brought to one size and to grey or color, by Pillow."""

from __future__ import annotations

import contextlib
import math
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import IO, Any, Protocol

import numpy as np

from fljax.data import progress, sources
from fljax.runtime import memory, reading

MODES = {"grey": "L", "rgb": "RGB"}  # to Pillow's names
INSTALL = "pip install -e '.[images]'"
COLOR = {"RGB": "rgb", "RGBA": "rgb", "P": "rgb", "CMYK": "rgb", "YCbCr": "rgb"}
GREY = {"1": "grey", "L": "grey", "LA": "grey"}
KNOWN = COLOR | GREY  # Pillow's modes of 8 bits a channel; others would be cut off
# Not Pillow's other ones: among them is PostScript, which is a program to be run.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")


def pillow(name: str) -> Any:
    """Imports Pillow's Image.

    Raises:
      ValueError: it is not there; the line opens with `name`.
    """
    return sources.library(name, "PIL.Image", "Pillow", INSTALL)


File = pathlib.Path | IO[bytes]


class Files(Protocol):
    """Files with what errors call them, that can be gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, File]]: ...


@contextlib.contextmanager
def opened(pil: Any, path: File) -> Iterator[Any]:
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


def read(
    name: str,
    files: Files,
    size: int = 0,
    mode: str = "stored",
    watch: progress.Watch = progress.ignore,
) -> np.ndarray:
    """Decodes images.

    Args:
      name: opens every error.
      files: of the images; they are gone through twice.
      size: height and width to resize to; 0: all images must be of one size.
      mode: grey or rgb; stored: rgb if any image has colors.
      watch: is told of the progress.

    Returns:
      [images, height, width, channels] uint8.

    Raises:
      ValueError: Pillow is missing, a file is no image or has more than 8 bits a
        channel, or sizes differ and none is given.
    """
    pil = pillow(name)
    height, width, stored = _survey(name, pil, files, size, watch)
    kind = stored if mode == "stored" else mode
    shape = (height, width, 1 if kind == "grey" else 3)
    require(name, len(files), shape)
    x = np.empty((len(files), *shape), np.uint8)
    for i, (called, file) in enumerate(files):
        try:
            with opened(pil, file) as image:
                x[i] = array(image, size, kind)
        except Exception as error:  # of Pillow's, of many kinds
            raise _no_image(name, called, error) from error
        watch(f"decoding {name}", i + 1, len(files))
    return x


def _survey(name, pil, files, size: int, watch) -> tuple[int, int, str]:
    """Reads the headers: height and width that the arrays get, grey or rgb."""
    first: tuple[tuple[int, int], str] | None = None
    grey = True
    for i, (called, file) in enumerate(files):
        try:
            with opened(pil, file) as image:
                shape, mode = (image.height, image.width), image.mode
        except Exception as error:  # of Pillow's, of many kinds
            raise _no_image(name, called, error) from error
        if mode not in KNOWN:
            raise ValueError(
                f"{name}: expected images of 8 bits a channel, got Pillow's mode "
                f"{mode!r} in {called}; convert it first"
            )
        first = first or (shape, called)
        if not size and shape != first[0]:
            raise ValueError(
                f"{name}: expected images of one size, got {_by(first[0])} in "
                f"{first[1]} and {_by(shape)} in {called}; give --image_size"
            )
        grey = grey and mode in GREY
        watch(f"looking through {name}", i + 1, len(files))
    height, width = first[0] if first and not size else (size, size)
    return height, width, "grey" if grey else "rgb"


def _no_image(name: str, called: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name}: expected an image that Pillow can read, got {called} "
        f"({reading.gist(error)})"
    )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


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
