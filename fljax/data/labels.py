"""What labels must be, by what they mean; one line names what is wrong.

Each check takes the name that opens its errors and a data set whose x is checked. It
gives the data set with labels of the dtype that the device holds, and the number of
outputs that a network needs in `num_classes`: as given, or if that is 0 as they say.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fljax import types

KEYS = ("y_train", "y_test")
GAPS = 20  # so many times more numbers than classes, and above MANY, are no numbering
MANY = 100


def describe(x: np.ndarray) -> str:
    """Writes dtype and shape of an array."""
    return f"{x.dtype}{list(x.shape)}"


def _both(name: str, data: types.Dataset, check) -> types.Dataset:
    """Checks the labels of both parts, and that their rows have one shape."""
    y_train, y_test = (check(name, key, np.asarray(getattr(data, key))) for key in KEYS)
    if y_train.shape[1:] != y_test.shape[1:]:
        raise ValueError(
            f"{name}: y_train and y_test must have the same shape an example, got "
            f"{describe(y_train)} and {describe(y_test)}"
        )
    return data._replace(y_train=y_train, y_test=y_test)


def class_numbers(name: str, data: types.Dataset) -> types.Dataset:
    """Checks that labels are class numbers from 0, [N] or [N, 1]; gives int32 [N].

    Raises:
      ValueError: they are not.
    """
    data = _both(name, data, _class_numbers)
    known = int(max(data.y_train.max(initial=0), data.y_test.max(initial=0))) + 1
    if not data.num_classes:
        _check_gaps(name, data.y_train, data.y_test, known)
    return _wide_enough(name, data, known)


def token_ids(name: str, data: types.Dataset) -> types.Dataset:
    """Checks that labels are token ids, one a position of x; gives int32 [N, T].

    Raises:
      ValueError: they are not.
    """
    length = data.x_train.shape[1]

    def check(name: str, key: str, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "iu" or y.ndim != 2 or y.shape[1] != length:
            raise ValueError(
                f"{name}: {key} must be token ids of shape [examples, {length}], the "
                f"inputs moved by one, which --task=tokens needs, got {describe(y)}"
            )
        return _whole(name, key, y, "token ids")

    data = _both(name, data, check)
    known = int(max(data.y_train.max(initial=0), data.y_test.max(initial=0))) + 1
    if data.vocabulary is not None and not data.num_classes:
        data = data._replace(num_classes=data.vocabulary)
    return _wide_enough(name, data, known)


def numbers(name: str, data: types.Dataset) -> types.Dataset:
    """Checks that labels are finite numbers [N] or [N, outputs]; gives float32.

    Raises:
      ValueError: they are not.
    """

    def check(name: str, key: str, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "iuf" or y.ndim not in (1, 2) or 0 in y.shape[1:]:
            raise ValueError(
                f"{name}: {key} must be numbers of shape [examples] or [examples, "
                f"outputs], which --task=regression needs, got {describe(y)}"
            )
        return _finite(name, key, y)

    data = _both(name, data, check)
    return _as_wide(name, data, data.y_train.shape[1] if data.y_train.ndim == 2 else 1)


def multi_hot(name: str, data: types.Dataset) -> types.Dataset:
    """Checks that labels are rows of 0 and 1, [N, C]; gives int32.

    Raises:
      ValueError: they are not.
    """

    def check(name: str, key: str, y: np.ndarray) -> np.ndarray:
        rows = y.dtype.kind in "biuf" and y.ndim == 2 and y.shape[1]
        if not rows or not np.isin(y, (0, 1)).all():
            what = " with other values" if rows else ""
            raise ValueError(
                f"{name}: {key} must be rows of 0 and 1 of shape [examples, labels], "
                f"which --task=multilabel needs, got {describe(y)}{what}"
            )
        return y.astype(np.int32)

    data = _both(name, data, check)
    return _as_wide(name, data, data.y_train.shape[1])


def any_numbers(name: str, data: types.Dataset) -> types.Dataset:
    """Checks that labels are numbers with a row an example; int32 or float32.

    If `num_classes` is 0 it becomes the length of their last axis, 1 if there is none.

    Raises:
      ValueError: they are not.
    """

    def check(name: str, key: str, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "biuf" or not y.ndim:
            raise ValueError(
                f"{name}: {key} must be numbers with a row an example, got "
                f"{describe(y)}"
            )
        if y.dtype.kind == "f":
            return _finite(name, key, y)
        if y.size and not -(2**31) <= y.min() <= y.max() < 2**31:
            raise ValueError(
                f"{name}: {key} must be whole numbers of 32 bits, got {y.min()} to "
                f"{y.max()}"
            )
        return y.astype(np.int32)

    data = _both(name, data, check)
    if data.num_classes:
        return data
    last = data.y_train.shape[-1] if data.y_train.ndim > 1 else 1
    return data._replace(num_classes=last)


def _finite(name: str, key: str, y: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is reported just below
        y = y.astype(np.float32)
    finite = np.isfinite(y)
    if not finite.all():
        first = tuple(map(int, np.unravel_index(finite.argmin(), y.shape)))
        raise ValueError(
            f"{name}: {key} holds {y.size - np.count_nonzero(finite)} NaN or infinite "
            f"values in float32, the first at index {first}; drop these examples"
        )
    return y


def _as_wide(name: str, data: types.Dataset, width: int) -> types.Dataset:
    """Fills in the number of outputs, which is that of the labels."""
    if data.num_classes not in (0, width):
        raise ValueError(
            f"{name}: num_classes must be {width}, the numbers of a label, or left "
            f"out, got {data.num_classes}"
        )
    return data._replace(num_classes=width)


def _wide_enough(name: str, data: types.Dataset, known: int) -> types.Dataset:
    """Fills in the number of classes, which is at least that of those that are met."""
    classes = data.num_classes or known
    if classes < known:
        raise ValueError(
            f"{name}: num_classes must be above all labels, got {classes} and a label "
            f"{known - 1}"
        )
    return data._replace(num_classes=classes)


def _class_numbers(name: str, key: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "iu":
        rows = y.ndim == 2 and y.shape[1] > 1
        fix = "turn one-hot rows into them with .argmax(1)" if rows else (
            "cast it with .astype(np.int32)"
        )  # fmt: skip
        others = "multilabel or --task=regression" if rows else "regression"
        raise ValueError(
            f"{name}: {key} must be integer class numbers from 0, which "
            f"--task=classification needs, got {describe(y)}; {fix}, or take "
            f"--task={others}"
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(
            f"{name}: {key} must be [examples] or [examples, 1], got {describe(y)}; "
            "turn one-hot rows into class numbers with .argmax(1), or take "
            "--task=multilabel"
        )
    return _whole(name, key, y, "class numbers", "; number the classes from 0")


def _whole(name: str, key: str, y: np.ndarray, what: str, fix: str = "") -> Any:
    """Checks that whole numbers are from 0 and have 31 bits."""
    wrong = np.argwhere((y < 0) | (y >= np.iinfo(np.int32).max))
    if len(wrong):
        first = tuple(wrong[0].tolist())
        place = first[0] if len(first) == 1 else first
        raise ValueError(
            f"{name}: {key} must be {what} from 0, but {len(wrong)} are not, the first "
            f"is {y[first]} at index {place}{fix}"
        )
    return y.astype(np.int32)


def _check_gaps(name: str, y_train: np.ndarray, y_test: np.ndarray, known: int) -> None:
    """Refuses labels that are no class numbers, such as 0, 5, 900."""
    there = np.union1d(y_train, y_test)
    if known > max(MANY, GAPS * len(there)):
        raise ValueError(
            f"{name}: y_train and y_test must number the classes from 0, got "
            f"{len(there)} labels from {there[0]} to {there[-1]}, which would make "
            f"{known} classes; number them with "
            f"np.unique(labels, return_inverse=True)[1]"
        )
