"""What the arrays of a data set must be; one line names what is wrong.

A loader gives a dict of arrays: x_train, y_train, x_test, y_test; where it knows them,
users (who wrote each training example) and users_test (the same of the test examples);
num_classes, where it does not follow from the labels; and for tokens vocabulary (the
number of token ids) and perhaps tokenizer (what made them, JSON as bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fljax import types
from fljax.data import labels

KEYS = ("x_train", "y_train", "x_test", "y_test")
NAMED = 5  # classes that a note names

Check = Callable[[str, types.Dataset], types.Dataset]  # as those of `labels`


def dataset(
    name: str,
    arrays: Mapping[str, np.ndarray],
    check: Check = labels.class_numbers,
) -> types.Dataset:
    """Check the arrays and bring them into the form that `load.load` promises.

    Args:
      name: opens every error.
      arrays: as above.
      check: what labels must be.

    Returns:
      The data set.

    Raises:
      ValueError: one line that names the array, what was expected and what came.
    """
    vocabulary = int(arrays["vocabulary"]) if "vocabulary" in arrays else None
    if vocabulary is None:
        x_train, x_test = (_features(name, key, arrays[key]) for key in KEYS[::2])
    else:
        x_train, x_test = (
            _tokens(name, key, arrays[key], vocabulary) for key in KEYS[::2]
        )
    raw = types.Dataset(
        x_train,
        arrays["y_train"],
        x_test,
        arrays["y_test"],
        int(arrays.get("num_classes", 0)),
        vocabulary=vocabulary,
    )
    data = check(name, raw)
    _check_lengths(name, x_train=x_train, y_train=data.y_train)
    _check_lengths(name, x_test=x_test, y_test=data.y_test)
    _check_alike(name, x_train, x_test)
    if x_train.ndim == 4:
        _check_images(name, x_train, x_test)
    users, users_test = _user_codes(name, arrays)
    if users is not None:
        _check_lengths(name, x_train=x_train, users=users)
    if users_test is not None:
        _check_lengths(name, x_test=x_test, users_test=users_test)
    tokenizer = arrays.get("tokenizer")
    return data._replace(
        users=users,
        tokenizer=None if tokenizer is None else np.asarray(tokenizer).tobytes(),
        users_test=users_test,
    )


def rows(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless x and y have the same examples, in both parts."""
    for part in ("train", "test"):
        x, y = (np.atleast_1d(arrays[f"{key}_{part}"]) for key in "xy")
        _check_lengths(name, **{f"x_{part}": x, f"y_{part}": y})


def made_by_hand(
    data: types.Dataset, check: Check = labels.class_numbers
) -> types.Dataset:
    """Checks a data set that no loader has made, as `dataset` does.

    Args:
      data: that somebody gave.
      check: what labels must be.

    Returns:
      The data set.

    Raises:
      ValueError: it is none, or its fields are not as expected.
    """
    if not isinstance(data, types.Dataset):
        raise ValueError(
            f"data: expected a fljax.types.Dataset, got a {type(data).__name__}"
        )
    given = {key: x for key, x in data._asdict().items() if x is not None}
    told = isinstance(data.num_classes, bool) or data.num_classes != 0
    for key in (*("num_classes",) * told, *given.keys() & {"vocabulary"}):
        _check_count(key, getattr(data, key))
    if not isinstance(data.tokenizer, bytes | None):
        raise ValueError(
            f"data: expected tokenizer as bytes of JSON, got a "
            f"{type(data.tokenizer).__name__}"
        )
    for key in (*KEYS, *given.keys() & {"users", "users_test"}):
        try:
            given[key] = np.asarray(getattr(data, key))
        except (TypeError, ValueError) as error:  # rows of different lengths
            gist = " ".join(str(error).split())
            raise ValueError(f"data: expected {key} as an array, got: {gist}") from None
    return dataset("data", given, check)._replace(task=data.task)


_MOST = 10_000_000  # classes or token ids: one number each for every client or vector


def _check_count(key: str, value: Any) -> None:
    """Raises unless a value is a number of classes or of token ids."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _MOST:
        raise ValueError(
            f"data: expected {key} as a whole number from 1 to {_MOST}, got {value!r}"
        )


def notes(data: types.Dataset, classes: bool = True) -> tuple[str, ...]:
    """Says what of a data set can be meant but seldom is, a line each.

    Args:
      data: of `dataset` or `made_by_hand`.
      classes: whether its labels are class numbers.

    Returns:
      The lines; of most data sets there are none.
    """
    lines = _unusual_classes(data) if classes else _far_off(data)
    if data.vocabulary is None:
        lines += _doubts(data.x_train, data.x_test)
    return tuple(lines)


def _unusual_classes(data: types.Dataset) -> list[str]:
    """Says which classes are in one set alone, or in none."""
    trained, tested = np.unique(data.y_train), np.unique(data.y_test)
    lines = []
    if len(new := np.setdiff1d(tested, trained)):
        share = np.isin(data.y_test, new).mean()
        lines.append(
            f"{_classes(new)} in the test set only: no client can learn what is "
            f"{share:.1%} of it"
        )
    if len(old := np.setdiff1d(trained, tested)):
        lines.append(f"{_classes(old)} in the training set only: nothing tests it")
    unused = np.setdiff1d(np.arange(data.num_classes), np.union1d(trained, tested))
    if len(unused) and data.vocabulary != data.num_classes:  # characters are never all
        lines.append(
            f"{_classes(unused)} without examples, of {data.num_classes}: labels with "
            f"gaps, or not from 0, widen the network for nothing"
        )
    if len(trained) == 1 < data.num_classes:
        lines.append(f"all training examples are of class {trained[0]}")
    return lines


def _far_off(data: types.Dataset) -> list[str]:
    """Says where numbers to be predicted lie far from those that a network gives."""
    y = data.y_train
    if y.dtype != np.float32 or not y.size:
        return []
    mean, std = float(np.abs(y.mean(0)).max()), float(y.std(0, dtype=np.float64).max())
    if mean < 10 and std < 10:
        return []
    return [
        f"labels have a mean of up to {mean:.3g} and a deviation of {std:.3g}: bring "
        f"them to 0 and 1, or training starts far off"
    ]


def _doubts(x_train: np.ndarray, x_test: np.ndarray) -> list[str]:
    """Says where images may be laid out otherwise, or the two sets scaled apart."""
    lines, shape = [], x_train.shape[1:]
    if len(shape) == 3 and shape[0] <= 16 and 2 * shape[0] <= min(shape[1:]):
        lines.append(
            f"images of {list(shape)} are taken as height {shape[0]}, width "
            f"{shape[1]} and {shape[2]} channels: channels come last"
        )
    ours, theirs = _sample(x_train), _sample(x_test)
    apart = _apart(ours, theirs)
    signed = len(shape) == 3 and (ours.min() < 0) != (theirs.min() < 0)
    if not 1 / FAR < apart < FAR or signed:
        lines.append(
            f"x_train lies in {_span(ours)} and x_test in {_span(theirs)}: are both "
            f"scaled alike?"
        )
    return lines


FAR, IMPOSSIBLE = 5.0, 30.0  # ratios of deviations: a note, an error (of images)
SAMPLED = 1000  # examples whose scale is looked at


def _sample(x: np.ndarray) -> np.ndarray:
    return x[:: -(-len(x) // SAMPLED)].astype(np.float64)


def _apart(one: np.ndarray, two: np.ndarray) -> float:
    """Gives the ratio of the deviations of two samples."""
    a, b = one.std(), two.std()
    return float(a / b) if a and b else 1.0 if a == b else np.inf


def _span(x: np.ndarray) -> str:
    return f"{x.min():g} to {x.max():g}"


def _classes(numbers: np.ndarray) -> str:
    named = ", ".join(map(str, numbers[:NAMED].tolist()))
    more = ", ..." if len(numbers) > NAMED else ""
    one = len(numbers) == 1
    return f"class {named} is" if one else f"{len(numbers)} classes ({named}{more}) are"


def _tokens(name: str, key: str, x: np.ndarray, vocabulary: int) -> np.ndarray:
    x = np.asarray(x)
    if not x.size:
        raise ValueError(f"{name}: {key} is empty, shape {list(x.shape)}")
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise ValueError(
            f"{name}: {key} must be token ids of shape [examples, length], got "
            f"{labels.describe(x)}"
        )
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"{name}: {key} must be token ids from 0 to {vocabulary - 1}, below the "
            f"vocabulary of {vocabulary}, got {low} to {high}"
        )
    # What is uint8 is an image to those who read it.
    return x if x.dtype in (np.uint16, np.int32) else x.astype(np.int32)


def _features(name: str, key: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ValueError(
            f"{name}: {key} must be numbers of shape [examples, *features], got "
            f"{labels.describe(x)}; reshape it or turn it into numbers first"
        )
    if not x.size:
        raise ValueError(f"{name}: {key} is empty, shape {list(x.shape)}")
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what overflows is reported just below
            x = x.astype(np.float32, copy=False)
        _check_finite(name, key, x)
    return x[..., None] if x.ndim == 3 else x


def _user_codes(
    name: str, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Numbers the users from 0 in sorted order; of those who only test it gives -1."""
    if "users" not in arrays:
        return None, None
    names, users = np.unique(_users(name, "users", arrays), return_inverse=True)
    if "users_test" not in arrays:
        return users.astype(np.int32), None
    tested = _users(name, "users_test", arrays)
    if (tested.dtype.kind in "iu") != (names.dtype.kind in "iu"):
        raise ValueError(
            f"{name}: users and users_test must name users alike, got {names.dtype} "
            f"and {tested.dtype}"
        )
    places = np.minimum(np.searchsorted(names, tested), len(names) - 1)
    known = names[places] == tested
    return users.astype(np.int32), np.where(known, places, -1).astype(np.int32)


def _users(name: str, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    users = np.asarray(arrays[key])
    if users.dtype.kind not in "iuUS" or users.ndim != 1:
        part = "train" if key == "users" else "test"
        raise ValueError(
            f"{name}: {key} must be [{part} examples] integers or strings, got "
            f"{labels.describe(users)}"
        )
    return users


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


def _check_images(name: str, x_train: np.ndarray, x_test: np.ndarray) -> None:
    channels, height, width = x_train.shape[1:]
    if channels in (1, 3) and height == width >= 8:
        raise ValueError(
            f"{name}: x_train must be [examples, height, width, channels], got "
            f"{labels.describe(x_train)}, channels first; move them with "
            f".transpose(0, 2, 3, 1), in x_test too"
        )
    ours, theirs = _sample(x_train), _sample(x_test)
    apart = _apart(ours, theirs)
    # What is constant is left to a note.
    if np.isfinite(apart) and apart and not 1 / IMPOSSIBLE < apart < IMPOSSIBLE:
        raise ValueError(
            f"{name}: x_train and x_test must be images on one scale, got values from "
            f"{_span(ours)} and from {_span(theirs)}; scale both alike"
        )


def _check_alike(name: str, x_train: np.ndarray, x_test: np.ndarray) -> None:
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ValueError(
            f"{name}: x_train and x_test must have the same features, got "
            f"{labels.describe(x_train)} and {labels.describe(x_test)}; store "
            f"both alike"
        )
