"""Images in class folders, as CINIC-10 and the chest X-rays come.

DIR/train/CLASS/* and DIR/test/CLASS/*; classes are numbered in sorted order. Where
there is no `test`, `valid` or else `val` is the test set; beside a `test` they are left
out (the authors' CINIC-10 leaves `valid` out too). What is hidden is passed
over; what else is no image is, too, with a note that counts it.
"""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fljax.data import images, progress, sources

TEST = ("test", "valid", "val")
SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".webp", ".pbm", ".pgm", ".ppm", ".pnm",
))  # fmt: skip
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/* (or valid, or val)"
_SHOWN = 6  # kinds of what is left out


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


def find(
    name: str, root: pathlib.Path, watch: progress.Watch = progress.ignore
) -> Files:
    """List the images of a folder.

    Args:
      name: opens every error.
      root: DIR.
      watch: is told in one note what is left out.

    Returns:
      What there is; files with a suffix of no image, folders in folders of classes and
      classes without images are left out.

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
    left: collections.Counter[str] = collections.Counter()
    train = _by_class(name, root / "train", left)
    test = _by_class(name, root / tests[0], left)
    if strange := sorted(test.keys() - train.keys()):
        raise ValueError(
            f"{name}: expected the classes of train in {tests[0]}, got {strange[0]!r} "
            f"too; rename or move it"
        )
    left += collections.Counter()  # what is 0 goes
    if left:
        counts = [f"{count} {what}" for what, count in left.most_common(_SHOWN)]
        others = ", ..." * (len(left) > _SHOWN)
        progress.note(watch, f"{name}: left out {', '.join(counts)}{others}")
    classes = tuple(sorted(train))
    number = {label: i for i, label in enumerate(classes)}

    def listed(split: Mapping[str, list[pathlib.Path]]):
        return tuple(
            (f, number[label]) for label in sorted(split) for f in split[label]
        )

    return Files(classes, listed(train), listed(test))


def _by_class(
    name: str, split: pathlib.Path, left: collections.Counter[str]
) -> dict[str, list[pathlib.Path]]:
    """Finds the images of each class, and counts what is left out."""
    there = [entry for entry in os.scandir(split) if not _is_hidden(entry.name)]
    folders = [entry for entry in there if _is_folder(entry)]
    left["beside the folders of classes"] += len(there) - len(folders)
    found = {folder.name: _images(folder, left) for folder in folders}
    empty = sorted(label for label, paths in found.items() if not paths)
    if len(empty) == len(found):
        raise ValueError(
            f"{name}: expected images in folders of {split}, got "
            f"{f'none in {empty[0]}' if empty else 'no folders'}"
        )
    left["folders of classes without images"] += len(empty)
    return {label: paths for label, paths in found.items() if paths}


def _images(
    folder: os.DirEntry[str], left: collections.Counter[str]
) -> list[pathlib.Path]:
    found = []
    for entry in os.scandir(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if _is_hidden(entry.name):
            continue
        if _is_folder(entry):
            left["folders in folders of classes"] += 1
        elif not _is_file(entry):
            left["named pipes, devices or broken links"] += 1
        elif suffix not in SUFFIXES:
            left[f"of *{suffix}"] += 1
        else:
            found.append(pathlib.Path(entry.path))
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """Tells of what systems leave: .DS_Store, ._cat.png, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry) if entry.is_symlink() else entry.is_file()


def read(
    name: str,
    found: Files,
    size: int = 0,
    mode: str = "stored",
    watch: progress.Watch = progress.ignore,
) -> dict[str, np.ndarray]:
    """Decode the images.

    Args:
      name: opens every error.
      found: of `find`.
      size: height and width to resize to; 0: all images must be of one size.
      mode: grey or rgb; stored: rgb if any image has colors.
      watch: is told of the progress.

    Returns:
      x_train, x_test [examples, height, width, channels] uint8, y_train, y_test and
      num_classes.

    Raises:
      ValueError: Pillow is missing, a file is no image or has more than 8 bits a
        channel, or sizes differ and none is given.
    """
    everything = [file for file, _ in (*found.train, *found.test)]
    x = images.read(name, [(str(f), f) for f in everything], size, mode, watch)
    y = np.array([label for _, label in (*found.train, *found.test)], np.int32)
    cut = len(found.train)
    classes = np.array(len(found.classes))
    return sources.split({"x": x, "y": y}, cut) | {"num_classes": classes}
