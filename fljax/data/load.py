"""Data sets by name, checked once, as arrays in host memory.

Three sources: `digits` comes with the package, `npz:PATH` is a file of one's own,
`tfds:NAME` is any supervised set of tensorflow-datasets (`prepared` reads it). Images
stay uint8, a quarter of float32 in host and device memory; they are scaled on the
device with what `normalisation` returns.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from fljax import types
from fljax.data import prepared

DIGITS = pathlib.Path(__file__).with_name("digits.npz")
KEYS = ("x_train", "y_train", "x_test", "y_test")
SAVE = "np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
# What zipfile, zlib and numpy raise on a damaged, encrypted or pickled file.
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

CHUNK = 2**22  # values that `normalisation` turns into float64 at a time: 32 MB
FLOOR_UINT8 = 1e-3  # a quarter of one step of 1/255: below it a channel is constant
FLOOR_FLOAT = 1e-6  # floats come in units of their own


def load(name: str) -> types.Dataset:
    """Load a data set by name.

    - `digits`: 1,797 images of handwritten digits, 8 x 8 (see digits_notice.txt).
    - `npz:PATH`: a numpy file with x_train, y_train, x_test, y_test and, optionally,
      users: who wrote each training example, integers or strings.
    - `tfds:NAME`: NAME as tensorflow-datasets spells it (`mnist`, `emnist/balanced`,
      `cifar10:3.0.2`), from the folder in TFDS_DATA_DIR or the library's own. A set
      that was prepared as array_record needs no TensorFlow. The test split is `test`,
      or else `validation`.

    x is [examples, *features], uint8 if it is stored so, else float32; [examples,
    height, width] is taken as grey images and gets a channel axis. y is [examples] or
    [examples, 1] class numbers from 0.

    Args:
      name: one of the above.

    Returns:
      The data set; users, where there are any, are numbered from 0 in sorted order.

    Raises:
      ValueError: the name, the file or its contents are not as expected.

    >>> load("digits").x_train.shape
    (1437, 8, 8, 1)
    """
    kind, _, rest = name.partition(":")
    if name == "digits":
        return _dataset(name, _read_npz(name, DIGITS))
    if kind == "npz" and rest:
        return _dataset(name, _read_npz(name, pathlib.Path(os.path.expanduser(rest))))
    if kind == "tfds" and rest:
        return _dataset(name, prepared.read(rest))
    raise ValueError(
        "the data set must be 'digits', 'npz:PATH' or 'tfds:NAME', got "
        f"{name!r}; did you mean {_nearest(name)!r}?"
    )


def normalisation(dataset: types.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation per channel (last axis) of the training set.

    Normalised input is (x / 255 - mean) / std for uint8, (x - mean) / std for floats.

    Args:
      dataset: its x_train is [examples, *features, channels].

    Returns:
      mean and std, [channels] float32, in units of x / 255 for uint8 and of x for
      floats; std has a floor, so that a constant channel becomes 0.

    >>> x = np.array([[[0], [255]]], np.uint8)
    >>> y = np.zeros(1, np.int32)
    >>> mean, std = normalisation(types.Dataset(x, y, x, y, num_classes=1))
    >>> mean.tolist(), std.tolist()
    ([0.5], [0.5])
    """
    x = dataset.x_train
    unit, floor = (255.0, FLOOR_UINT8) if x.dtype == np.uint8 else (1.0, FLOOR_FLOAT)
    mean = _channel_mean(x, lambda chunk: chunk)
    variance = _channel_mean(x, lambda chunk: np.square(chunk - mean))
    std = np.maximum(np.sqrt(variance) / unit, floor)
    return (mean / unit).astype(np.float32), std.astype(np.float32)


def _channel_mean(
    x: np.ndarray, value: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Averages value(x) over all axes but the last, in float64, chunk by chunk."""
    rows = max(1, CHUNK // x[0].size)
    starts = range(0, len(x), rows)
    sums = (value(x[i : i + rows]).sum(0, dtype=np.float64) for i in starts)
    return sum(sums, np.zeros(())).reshape(-1, x.shape[-1]).mean(0) / len(x)


def _nearest(name: str) -> str:
    """Guesses which valid name was meant."""
    kind, colon, rest = name.partition(":")
    if colon:
        kinds = ("digits", "npz", "tfds")
        kind = difflib.get_close_matches(kind.lower(), kinds, n=1, cutoff=0)[0]
        blank = "PATH" if kind == "npz" else "NAME"
        return kind if kind == "digits" else f"{kind}:{rest or blank}"
    source = "npz" if name.endswith(".npz") else "tfds"
    options = ("digits", f"{source}:{name or 'NAME'}")
    return difflib.get_close_matches(name.lower(), options, n=1, cutoff=0)[0]


def _dataset(name: str, arrays: Mapping[str, np.ndarray]) -> types.Dataset:
    """Checks the arrays and brings them into the form that `load` promises."""
    x_train, x_test = (_features(name, key, arrays[key]) for key in KEYS[::2])
    y_train, y_test = (_labels(name, key, arrays[key]) for key in KEYS[1::2])
    _check_lengths(name, x_train=x_train, y_train=y_train)
    _check_lengths(name, x_test=x_test, y_test=y_test)
    _check_alike(name, x_train, x_test)
    users = None
    if "users" in arrays:
        users = _user_codes(name, arrays["users"])
        _check_lengths(name, x_train=x_train, users=users)
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    return types.Dataset(x_train, y_train, x_test, y_test, num_classes, users)


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


def _read_npz(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):  # unlike Path.is_file, false for impossible names
        raise ValueError(f"{name}: there is no file {path.absolute()}; check the path")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{name} is no npz file, or is cut short; write it with {SAVE}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            there = stored.files
            arrays = {key: stored[key] for key in (*KEYS, "users") if key in there}
    except DAMAGED as error:
        raise ValueError(
            f"{name} is damaged or holds more than plain arrays "
            f"({' '.join(str(error).split())}); write it with {SAVE}"
        ) from error
    missing = [key for key in KEYS if key not in there]
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}; it holds "
            f"{', '.join(map(repr, there)) or 'nothing'}; write it with {SAVE}"
        )
    return arrays
