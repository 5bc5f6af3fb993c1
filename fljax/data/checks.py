"""What the arrays of a data set must be; one line names what is wrong.

A loader gives a dict of arrays: x_train, y_train, x_test, y_test; where it knows them,
users (who wrote each training example); num_classes, where it does not follow from the
labels; and for tokens vocabulary (the number of token ids) and perhaps tokenizer (what
made them, JSON as bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fljax import types

KEYS = ("x_train", "y_train", "x_test", "y_test")


def dataset(name: str, arrays: Mapping[str, np.ndarray]) -> types.Dataset:
    """Check the arrays and bring them into the form that `load.load` promises.

    Args:
      name: opens every error.
      arrays: as above.

    Returns:
      The data set.

    Raises:
      ValueError: one line that names the array, what was expected and what came.
    """
    vocabulary = int(arrays["vocabulary"]) if "vocabulary" in arrays else None
    to_x = _features if vocabulary is None else _tokens
    x_train, x_test = (to_x(name, key, arrays[key]) for key in KEYS[::2])
    y_train, y_test = (_labels(name, key, arrays[key]) for key in KEYS[1::2])
    _check_lengths(name, x_train=x_train, y_train=y_train)
    _check_lengths(name, x_test=x_test, y_test=y_test)
    _check_alike(name, x_train, x_test)
    users = None
    if "users" in arrays:
        users = _user_codes(name, arrays["users"])
        _check_lengths(name, x_train=x_train, users=users)
    known = int(max(y_train.max(), y_test.max())) + 1
    classes = int(arrays.get("num_classes", known))
    if classes < known:
        raise ValueError(
            f"{name}: num_classes must be above all labels, got {classes} and a label "
            f"{known - 1}"
        )
    tokenizer = arrays.get("tokenizer")
    return types.Dataset(
        x_train,
        y_train,
        x_test,
        y_test,
        classes,
        users,
        vocabulary,
        None if tokenizer is None else np.asarray(tokenizer).tobytes(),
    )


def made_by_hand(data: types.Dataset) -> types.Dataset:
    """Checks a data set that no loader has made, as `dataset` does.

    Raises:
      ValueError: it is none, or its fields are not as expected.
    """
    if not isinstance(data, types.Dataset):
        raise ValueError(
            f"data: expected a fljax.types.Dataset, got a {type(data).__name__}"
        )
    given = {key: x for key, x in data._asdict().items() if x is not None}
    for key in ("num_classes", *given.keys() & {"vocabulary"}):
        _check_count(key, getattr(data, key))
    if not isinstance(data.tokenizer, bytes | None):
        raise ValueError(
            f"data: expected tokenizer as bytes of JSON, got a "
            f"{type(data.tokenizer).__name__}"
        )
    for key in (*KEYS, *given.keys() & {"users"}):
        try:
            given[key] = np.asarray(getattr(data, key))
        except (TypeError, ValueError) as error:  # rows of different lengths
            gist = " ".join(str(error).split())
            raise ValueError(f"data: expected {key} as an array, got: {gist}") from None
    if data.vocabulary is not None:
        for key in KEYS[::2]:
            given[key] = _own_tokens(key, given[key], data.vocabulary)
    return dataset("data", given)


_MOST = 10_000_000  # classes or token ids: one number each for every client or vector


def _check_count(key: str, value: Any) -> None:
    """Raises unless a value is a number of classes or of token ids."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _MOST:
        raise ValueError(
            f"data: expected {key} as a whole number from 1 to {_MOST}, got {value!r}"
        )


def _own_tokens(key: str, x: np.ndarray, vocabulary: int) -> np.ndarray:
    """Checks tokens that no loader has made; those of 8 bits would pass for images."""
    if x.dtype.kind not in "iu" or x.ndim < 2:
        raise ValueError(
            f"data: expected {key} as token ids [examples, length], got {_describe(x)}"
        )
    if x.size and not 0 <= x.min() <= x.max() < vocabulary:
        raise ValueError(
            f"data: expected {key} as token ids from 0, below the vocabulary "
            f"{vocabulary}, got {x.min()} to {x.max()}"
        )
    return x if x.dtype == np.uint16 else x.astype(np.int32)


def _tokens(name: str, key: str, x: np.ndarray) -> np.ndarray:
    """Passes what a loader of text has made."""
    x = np.asarray(x)
    if not x.size:
        raise ValueError(f"{name}: {key} is empty, shape {list(x.shape)}")
    return x


def _features(name: str, key: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ValueError(
            f"{name}: {key} must be numbers of shape [examples, *features], got "
            f"{_describe(x)}; reshape it or turn it into numbers first"
        )
    if not x.size:
        raise ValueError(f"{name}: {key} is empty, shape {list(x.shape)}")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what overflows is reported just below
            x = x.astype(np.float32, copy=False)
        _check_finite(name, key, x)
    return x[..., None] if x.ndim == 3 else x


def _labels(name: str, key: str, y: np.ndarray) -> np.ndarray:
    y = np.asarray(y)
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: {key} must be integer class numbers from 0, got {_describe(y)}; "
            "cast it with .astype(np.int32)"
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"{name}: {key} must be [examples] or [examples, 1], got {_describe(y)}; "
            "turn one-hot rows into class numbers with .argmax(1)"
        )
    wrong = np.flatnonzero((y < 0) | (y >= np.iinfo(np.int32).max))
    if len(wrong):
        raise ValueError(
            f"{name}: {key} must be class numbers from 0, but {len(wrong)} are not, "
            f"the first is {y[wrong[0]]} at index {wrong[0]}; number the classes from 0"
        )
    return y.astype(np.int32)


def _user_codes(name: str, users: np.ndarray) -> np.ndarray:
    """Numbers the users from 0 in sorted order."""
    users = np.asarray(users)
    if users.dtype.kind not in "iuUS" or users.ndim != 1:
        raise ValueError(
            f"{name}: users must be [train examples] integers or strings, got "
            f"{_describe(users)}"
        )
    return np.unique(users, return_inverse=True)[1].astype(np.int32)


def _describe(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _check_finite(name: str, key: str, x: np.ndarray) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        first = tuple(map(int, np.unravel_index(finite.argmin(), x.shape)))
        raise ValueError(
            f"{name}: {key} holds {x.size - np.count_nonzero(finite)} NaN or infinite "
            f"values in float32, the first at index {first}; drop or fill them"
        )


def _check_lengths(name: str, **arrays: np.ndarray) -> None:
    (a, x), (b, y) = arrays.items()
    if len(x) != len(y):
        raise ValueError(
            f"{name}: {a} and {b} must have one row an example, got {len(x)} and "
            f"{len(y)} rows"
        )


def _check_alike(name: str, x_train: np.ndarray, x_test: np.ndarray) -> None:
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ValueError(
            f"{name}: x_train and x_test must have the same features, got "
            f"{_describe(x_train)} and {_describe(x_test)}; store both alike"
        )
