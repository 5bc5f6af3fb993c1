"""Data sets in a numpy file."""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib

import numpy as np

from fljax.data import checks

DIGITS = pathlib.Path(__file__).with_name("digits.npz")
SAVE = "np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
# What zipfile, zlib and numpy raise on a damaged, encrypted or pickled file.
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file.

    Args:
      name: opens every error.
      path: the file.

    Returns:
      x_train, y_train, x_test, y_test and, where it is there, users.

    Raises:
      ValueError: there is no file, or it is damaged, or lacks an array.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, false for impossible names
        raise ValueError(f"{name}: there is no file {path.absolute()}; check the path")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{name} is no npz file, or is cut short; write it with {SAVE}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            there = stored.files
            wanted = [key for key in (*checks.KEYS, "users") if key in there]
            arrays = {key: stored[key] for key in wanted}
    except DAMAGED as error:
        raise ValueError(
            f"{name} is damaged or holds more than plain arrays "
            f"({' '.join(str(error).split())}); write it with {SAVE}"
        ) from error
    missing = [key for key in checks.KEYS if key not in there]
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}; it holds "
            f"{', '.join(map(repr, there)) or 'nothing'}; write it with {SAVE}"
        )
    return arrays
