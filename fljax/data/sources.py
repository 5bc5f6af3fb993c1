"""What sources of data have in common: a library that may be missing, texts, splits."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PARTS = {"users": ("users", "users_test")}  # names other than KEY_train, KEY_test


def library(name: str, module: str, called: str, install: str) -> Any:
    """Imports what a source needs.

    Args:
      name: of the source, which opens the error.
      module: to import.
      called: what the error calls it.
      install: the command that helps.

    Raises:
      ValueError: it does not import.
    """
    try:
        importlib.import_module(module.partition(".")[0])  # part of it may be loaded
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{name} needs {called}, which does not import ({error}): {install}"
        ) from error


def texts(found: Sequence[str]) -> np.ndarray:
    """Lays texts out as an array [examples] of objects."""
    out = np.empty(len(found), object)
    out[:] = found
    return out


def split(columns: Mapping[str, np.ndarray], cut: int) -> dict[str, np.ndarray]:
    """Cuts columns of all examples in two: x becomes x_train and x_test.

    Args:
      columns: x and y, and users where they are known.
      cut: examples of training, which come first.
    """
    arrays: dict[str, np.ndarray] = {}
    for key, column in columns.items():
        train, test = _PARTS.get(key, (f"{key}_train", f"{key}_test"))
        arrays |= {train: column[:cut], test: column[cut:]}
    return arrays
