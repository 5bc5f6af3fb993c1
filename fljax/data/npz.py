"""Data sets in a numpy file."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np

from fljax.data import checks
from fljax.runtime import memory, reading

DIGITS = pathlib.Path(__file__).with_name("digits.npz")
SAVE = "np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
MEDMNIST = {
    "x_train": "train_images",
    "y_train": "train_labels",
    "x_test": "test_images",
    "y_test": "test_labels",
}


def read(name: str, path: pathlib.Path, one_hot: bool = True) -> dict[str, np.ndarray]:
    """Read the arrays of a file.

    Args:
      name: opens every error.
      path: the file.
      one_hot: whether rows with a single one among zeros are class numbers.

    Returns:
      x_train, y_train, x_test, y_test, which may be stored under MedMNIST's names, and,
      where they are there, users and users_test; num_classes where labels are stored
      as one-hot rows.

    Raises:
      ValueError: there is no file, or it is damaged, or lacks an array.
    """
    reading.check(name, path)
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{name} is no npz file, or is cut short; write it with {SAVE}"
        )
    try:
        arrays = _arrays(name, path)
    except Exception as error:  # of numpy, zipfile and zlib, and of many kinds
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(
            f"{name} is damaged or holds more than plain arrays "
            f"({reading.gist(error)}); write it with {SAVE}"
        ) from error
    return _with_class_numbers(arrays) if one_hot else arrays


def _arrays(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        places = _places(name, stored.files)
        needed = sum(
            info.file_size  # zipfile gives no byte more
            for info in stored.zip.infolist()
            if info.filename.removesuffix(".npy") in places.values()
        )
        memory.require(name, f"{len(places)} arrays", needed, memory.of_host())
        return {key: stored[place] for key, place in places.items()}


def _places(name: str, there: list[str]) -> dict[str, str]:
    """Finds the name that each array is stored under."""
    places = {}
    for key in (*checks.KEYS, "users", "users_test"):
        found = [place for place in (key, MEDMNIST.get(key, key)) if place in there]
        if found and there.count(found[0]) > 1:
            raise ValueError(f"{name}: expected {found[0]} once, got it twice")
        if found:
            places[key] = found[0]
    if missing := [key for key in checks.KEYS if key not in places]:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}; it holds "
            f"{', '.join(map(repr, there[:20])) or 'nothing'}; write it with {SAVE}"
        )
    return places


def _with_class_numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns labels that are one-hot rows of one width into class numbers."""
    labels = [arrays[key] for key in ("y_train", "y_test")]
    if not all(map(_one_hot, labels)) or labels[0].shape[1:] != labels[1].shape[1:]:
        return arrays
    return {
        **arrays,
        "y_train": labels[0].argmax(1),
        "y_test": labels[1].argmax(1),
        "num_classes": np.array(labels[0].shape[1]),
    }


def _one_hot(y: np.ndarray) -> bool:
    """Tells whether y is [examples, classes], in each row a single one among zeros."""
    if y.ndim != 2 or y.shape[1] < 2 or not len(y) or y.dtype.kind not in "biuf":
        return False
    return bool(np.all((y == 0) | (y == 1)) and np.all((y == 1).sum(1) == 1))
