"""Images in class folders, as CINIC-10 and the chest X-rays come.

DIR/train/CLASS/* and DIR/test/CLASS/*; classes are numbered in sorted order. Where
there is no `test`, `valid` or else `val` is the test set; beside a `test` they are left
out (the authors' CINIC-10 leaves `valid` out too).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fljax.data import images, progress

TEST = ("test", "valid", "val")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
)
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/* (or valid, or val)"
COLOUR = {"RGB": "rgb", "RGBA": "rgb", "P": "rgb", "CMYK": "rgb", "YCbCr": "rgb"}
GREY = {"1": "grey", "L": "grey", "LA": "grey"}
KNOWN = COLOUR | GREY  # Pillow's modes of 8 bits a channel; others would be cut off


class Files(NamedTuple):
    """The image files of a data set, in sorted order.

    Attributes:
      classes: C names.
      train: (file, class number) of each training example.
      test: likewise.
    """

    classes: tuple[str, ...]
    train: tuple[tuple[pathlib.Path, int], ...]
    test: tuple[tuple[pathlib.Path, int], ...]


def find(name: str, root: pathlib.Path) -> Files:
    """List the images of a folder.

    Args:
      name: opens every error.
      root: DIR.

    Returns:
      What there is; files with a suffix of no image are left out.

    Raises:
      ValueError: the layout is another.
    """
    if not os.path.isdir(root):
        raise ValueError(
            f"{name}: there is no folder {root.absolute()}; check the path"
        )
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    tests = [split for split in TEST if split in there]
    if "train" not in there or not tests:
        raise ValueError(
            f"{name}: expected {LAYOUT}, got {', '.join(there) or 'no folders'}"
        )
    train, test = _by_class(name, root / "train"), _by_class(name, root / tests[0])
    if strange := sorted(test.keys() - train.keys()):
        raise ValueError(
            f"{name}: expected the classes of train in {tests[0]}, got {strange[0]!r} "
            f"too; rename or move it"
        )
    classes = tuple(sorted(train))
    number = {label: i for i, label in enumerate(classes)}

    def listed(split: Mapping[str, list[pathlib.Path]]):
        return tuple(
            (f, number[label]) for label in sorted(split) for f in split[label]
        )

    return Files(classes, listed(train), listed(test))


def _by_class(name: str, split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    folders = [path for path in split.iterdir() if path.is_dir()]
    found = {
        folder.name: sorted(
            path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES
        )
        for folder in folders
        if not folder.name.startswith(".")
    }
    empty = sorted(label for label, files in found.items() if not files)
    if empty or not found:
        raise ValueError(
            f"{name}: expected images in folders of {split}, got "
            f"{f'none in {empty[0]}' if empty else 'no folders'}"
        )
    return found


def read(
    name: str,
    files: Files,
    size: int = 0,
    mode: str = "stored",
    watch: progress.Watch = progress.ignore,
) -> dict[str, np.ndarray]:
    """Decode the images.

    Args:
      name: opens every error.
      files: of `find`.
      size: height and width to resize to; 0: all images must be of one size.
      mode: grey or rgb; stored: rgb if any image has colours.
      watch: is told of the progress.

    Returns:
      x_train, x_test [examples, height, width, channels] uint8, y_train, y_test and
      num_classes.

    Raises:
      ValueError: Pillow is missing, a file is no image or has more than 8 bits a
        channel, or sizes differ and none is given.
    """
    pil = images.pillow(name)
    everything = [file for file, _ in (*files.train, *files.test)]
    height, width, stored = _survey(name, pil, everything, size, watch)
    kind = stored if mode == "stored" else mode
    shape = (height, width, 1 if kind == "grey" else 3)
    x = np.empty((len(everything), *shape), np.uint8)
    for i, file in enumerate(everything):
        x[i] = _decode(name, pil, file, size, kind)
        watch(f"decoding {name}", i + 1, len(everything))
    y = np.array([label for _, label in (*files.train, *files.test)], np.int32)
    cut = len(files.train)
    return {
        "x_train": x[:cut],
        "y_train": y[:cut],
        "x_test": x[cut:],
        "y_test": y[cut:],
        "num_classes": np.array(len(files.classes)),
    }


def _survey(name, pil, files, size: int, watch) -> tuple[int, int, str]:
    """Reads the headers: height and width that the arrays get, grey or rgb."""
    first: tuple[tuple[int, int], pathlib.Path] | None = None
    grey = True
    for i, file in enumerate(files):
        try:
            with pil.open(file) as image:
                shape, mode = (image.height, image.width), image.mode
        except OSError as error:
            raise _no_image(name, file, error) from error
        if mode not in KNOWN:
            raise ValueError(
                f"{name}: expected images of 8 bits a channel, got Pillow's mode "
                f"{mode!r} in {file}; convert it first"
            )
        first = first or (shape, file)
        if not size and shape != first[0]:
            raise ValueError(
                f"{name}: expected images of one size, got {_by(first[0])} in "
                f"{first[1]} and {_by(shape)} in {file}; give --image_size"
            )
        grey = grey and mode in GREY
        watch(f"looking through {name}", i + 1, len(files))
    height, width = first[0] if first and not size else (size, size)
    return height, width, "grey" if grey else "rgb"


def _decode(name, pil, file, size: int, mode: str) -> np.ndarray:
    try:
        with pil.open(file) as image:
            return images.array(image, size, mode)
    except OSError as error:  # cut short
        raise _no_image(name, file, error) from error


def _no_image(name: str, file: pathlib.Path, error: OSError) -> ValueError:
    return ValueError(
        f"{name}: expected an image that Pillow can read, got {file} "
        f"({' '.join(str(error).split())})"
    )


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
