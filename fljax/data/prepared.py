"""Data sets that tensorflow-datasets prepares in a folder, as arrays in host memory.

The folder is TFDS_DATA_DIR or the library's own. TensorFlow is needed only to prepare
a set and to read one that is not stored as array_record.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from fljax.data import progress, sources
from fljax.runtime import reading

INSTALL = "pip install -e '.[data]'"
EXPORT = "bring it into an npz file and load npz:PATH"
_OWN = re.compile(r"[^:]*(:[\d.*]+)?")  # names without a namespace
BATCH = 1024  # records read at a time: three times as fast as one by one


class Prepared(NamedTuple):
    """A prepared set.

    Attributes:
      source: opens every error.
      root: the folder with its files.
      is_text: whether the input is text, not numbers.
      test: name of the test split.
      keys: names of the input and the label.
      builder: of tensorflow-datasets.
    """

    source: str
    root: pathlib.Path
    is_text: bool
    test: str
    keys: tuple[str, str]
    builder: Any

    def files(self) -> list[pathlib.Path]:
        """Lists what tensorflow-datasets has stored."""
        return [path for path in self.root.rglob("*") if path.is_file()]


def find(name: str) -> Prepared:
    """Find a set of tensorflow-datasets; prepare it where it is not yet.

    Args:
      name: as tensorflow-datasets spells it (`mnist`, `cifar10:3.0.2`).

    Returns:
      The set. Input and label are the supervised pair, or else the features `text` and
      `label`.

    Raises:
      ValueError: the library is missing, or the set is not as expected; one line that
        opens with `tfds:` and the name.
    """
    source = f"tfds:{name}"
    if not _OWN.fullmatch(name):
        raise ValueError(
            f"{source}: expected a set of the library's own, NAME or NAME:VERSION, got "
            f"one of a namespace, whose code would be fetched and run; {EXPORT}"
        )
    called = "tensorflow-datasets"
    tfds = sources.library(source, "tensorflow_datasets", called, INSTALL)
    builder = _builder(tfds, source, name)
    keys, is_text = _supervised(tfds, source, builder.info)
    test = _test_split(source, list(builder.info.splits))
    if builder.info.file_format.value != "array_record":
        _use_tensorflow(source, f"is stored as {builder.info.file_format.value}")
    root = pathlib.Path(os.fspath(builder.data_dir))
    return Prepared(source, root, is_text, test, keys, builder)


def read(
    found: Prepared, watch: progress.Watch = progress.ignore
) -> dict[str, np.ndarray]:
    """Read a set into memory.

    Args:
      found: of `find`.
      watch: is told of the progress.

    Returns:
      x_train, y_train, x_test, y_test as stored: [examples, *features] and
      [examples, *label]; texts as arrays of objects.

    Raises:
      ValueError: the files are not as expected.
    """
    arrays: dict[str, np.ndarray] = {}
    for part, split in (("train", "train"), ("test", found.test)):
        with reading.one_line(found.source, INSTALL):
            x, y = _read_split(found, split, watch)
        if found.is_text:
            x = _decoded(x)
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    return arrays


def _decoded(texts: np.ndarray) -> np.ndarray:
    return sources.texts(
        [t.decode(errors="replace") if isinstance(t, bytes) else t for t in texts]
    )


def _builder(tfds: Any, source: str, name: str) -> Any:
    """Finds the set, and prepares it where it is not there yet."""
    folder = os.environ.get("TFDS_DATA_DIR") or None  # tfds reads it only at import
    with reading.one_line(source, INSTALL):
        builder = tfds.builder(name, data_dir=folder)
        if builder.is_prepared():
            return builder
    _use_tensorflow(source, f"is not prepared in {builder.data_dir}")
    with reading.one_line(
        source, INSTALL
    ):  # array_record: later runs need no TensorFlow
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return builder


def _use_tensorflow(source: str, why: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"{source} {why} and TensorFlow is missing: {INSTALL}")
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # the caller has used its devices already
        tf.config.set_visible_devices([], "GPU")  # their memory is for JAX


def _supervised(tfds: Any, source: str, info: Any) -> tuple[tuple[str, str], bool]:
    """Returns the names of the input and the label, and whether the input is text."""
    keys = info.supervised_keys
    if keys is None and {"text", "label"} <= set(info.features):
        keys = ("text", "label")
    if keys is None or len(keys) != 2 or not all(isinstance(k, str) for k in keys):
        raise ValueError(f"{source} has no (input, label) pair, but {keys}; {EXPORT}")
    is_text = isinstance(info.features[keys[0]], tfds.features.Text)
    for key in keys[1:] if is_text else keys:
        shape, dtype = info.features[key].shape, info.features[key].np_dtype
        nested = not isinstance(shape, tuple)
        if nested or None in shape or np.dtype(dtype).kind not in "biuf":
            raise ValueError(
                f"{source}: {key} must be numbers of one shape, got shape {shape} of "
                f"{dtype}; {EXPORT}"
            )
    return keys, is_text


def _test_split(source: str, splits: list[str]) -> str:
    for test in ("test", "validation"):
        if "train" in splits and test in splits:
            return test
    raise ValueError(
        f"{source} must have the splits train and test (or validation), got "
        f"{', '.join(splits)}; {EXPORT}"
    )


def _read_split(
    found: Prepared, split: str, watch: progress.Watch
) -> tuple[np.ndarray, np.ndarray]:
    """Reads (input, label) of a whole split, without TensorFlow where that goes."""
    builder, keys = found.builder, found.keys
    if builder.info.file_format.value != "array_record":
        import tensorflow_datasets as tfds

        whole = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)
        columns = tfds.as_numpy(whole)
        return columns[keys[0]], columns[keys[1]]
    source = builder.as_data_source(split=split)
    label = builder.info.features[keys[1]]
    x = _empty(len(source), builder.info.features[keys[0]], found.is_text)
    y = _empty(len(source), label)
    for start in range(0, len(source), BATCH):
        rows = range(start, min(start + BATCH, len(source)))
        for i, example in zip(rows, source.__getitems__(rows), strict=True):
            x[i], y[i] = example[keys[0]], example[keys[1]]
        watch(f"reading {split} of {found.source}", rows.stop, len(source))
    return x, y


def _empty(size: int, spec: Any, is_text: bool = False) -> np.ndarray:
    if is_text:
        return np.empty(size, object)
    return np.empty((size, *spec.shape), spec.np_dtype)
