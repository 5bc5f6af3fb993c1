"""Data sets of the Hugging Face hub, or of a folder that its library `datasets` reads.

NAME is a set of the hub (`ylecun/mnist`, `glue:sst2` with a configuration), a folder
that `save_to_disk` made, or one of files that `load_dataset` reads (Parquet, CSV, JSON
lines, images in class folders). No code of a set is run: `datasets` 4 has no scripts,
and its reader of pickles is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds
from fljax.data import images, progress, sources
from fljax.runtime import reading

INSTALL = "pip install -e '.[hub]'"
TEST = ("test", "validation", "valid")
LABELS, TEXTS = ("label", "labels"), ("text", "sentence")  # names that need no flag
_SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`
_PICKLES = "pandas"  # what the library calls its reader of them
_UNKNOWN = -1  # what the hub's sets have for a label that is kept back


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table are what; empty: told by their kinds and names."""

    input: str = bounds.field("", "Of the images, texts or numbers.")
    label: str = bounds.field("", "Of the labels.")
    user: str = bounds.field("", "Of who wrote an example; for --partition=natural.")

    def __post_init__(self):
        bounds.check(self, "columns.{}".format)


class Found(NamedTuple):
    """A set of the hub.

    Attributes:
      source: opens every error.
      splits: rows of `train`, and of the test split where there is one.
      columns: those that are read; a label of "": none.
      kind: image, text or numbers, of the input.
    """

    source: str
    splits: Mapping[str, Any]
    columns: Columns
    kind: str


def find(name: str, wanted: Columns = Columns(), labelled: bool = True) -> Found:
    """Finds a set and its columns.

    Args:
      name: of the hub, with a configuration behind a colon, or the path of a folder.
      wanted: columns that were asked for. Else the input is the only one of images, or
        of texts; the label is called so, or is the only one of classes.
      labelled: whether labels are read.

    Returns:
      The set. Its test split is `test`, or else `validation`, also where the labels of
      `test` are not told.

    Raises:
      ValueError: the library is missing, or the set is not as expected; one line that
        opens with `hf:` and the name.
    """
    source = f"hf:{name}"
    datasets = sources.library(source, "datasets", "datasets", INSTALL)
    with _bars(datasets), reading.one_line(source, INSTALL):
        there = _load(datasets, name)
    if "train" not in there:
        raise ValueError(f"{source}: expected a split train, got {', '.join(there)}")
    features = there["train"].features
    label = _label(datasets, source, features, wanted) if labelled else ""
    taken = dataclasses.replace(wanted, label=label)
    chosen = _input(datasets, source, features, taken)
    columns = dataclasses.replace(taken, input=chosen)
    if wanted.user and wanted.user not in features:
        raise _no_column(source, "user", features, wanted.user)
    splits = {"train": there["train"]}
    if test := _test_split(there, label):
        splits[test] = there[test]
    return Found(source, splits, columns, _kind(datasets, features[chosen]))


def read(
    found: Found,
    size: int = 0,
    mode: str = "stored",
    watch: progress.Watch = progress.ignore,
) -> dict[str, np.ndarray]:
    """Reads a set into memory.

    Args:
      found: of `find`.
      size: height and width that images are resized to; 0: all must be of one size.
      mode: of images, grey, rgb or stored.
      watch: is told of the progress.

    Returns:
      x_train, y_train, x_test, y_test; texts as arrays of objects; users and users_test
      where their column is known; num_classes where the set names its classes. Without
      a test split those of testing are empty.

    Raises:
      ValueError: a column is not as expected.
    """
    with reading.one_line(found.source, INSTALL):
        if found.kind == "image":
            x = images.read(found.source, _Pictures(found), size, mode, watch)
        else:
            x = _texts(found) if found.kind == "text" else _numbers(found)
        columns = {"x": x, "y": _labels(found, len(x))}
        if found.columns.user:
            columns["users"] = _named(_column(found, found.columns.user))
        cut = len(found.splits["train"])
        arrays = sources.split(columns, cut)
        feature = _feature(found, found.columns.label)
        if getattr(feature, "names", None):
            arrays["num_classes"] = np.array(feature.num_classes)
        return arrays


def files(found: Found) -> list[pathlib.Path]:
    """Lists the files that a set lies in; none: it lies in memory alone."""
    tables = {
        pathlib.Path(file["filename"])
        for rows in found.splits.values()
        for file in rows.cache_files
    }
    if not tables or found.kind != "image":
        return sorted(tables)
    pictures = (file for _, file in _Pictures(found))
    return sorted(tables | {p for p in pictures if isinstance(p, pathlib.Path)})


class _Pictures:
    """The images of a set as they are stored, gone through in order."""

    def __init__(self, found: Found) -> None:
        """Keep the set."""
        self._found = found

    def __len__(self) -> int:
        return sum(map(len, self._found.splits.values()))

    def __iter__(self) -> Iterator[tuple[str, images.File]]:
        import datasets

        column = self._found.columns.input
        stored = datasets.Image(decode=False)
        for split, rows in self._found.splits.items():
            cells = rows.select_columns([column]).cast_column(column, stored)
            for number, row in enumerate(cells):
                cell = row[column] or {}
                called = f"row {number} of {split}"
                if cell.get("bytes") is not None:
                    yield called, io.BytesIO(cell["bytes"])
                elif cell.get("path"):
                    yield f"{called}, {cell['path']}", pathlib.Path(cell["path"])
                else:
                    raise ValueError(
                        f"{self._found.source}: expected an image in {called}, got none"
                    )


@contextlib.contextmanager
def _bars(datasets: Any) -> Iterator[None]:
    """Lets the library draw its bars on terminals alone."""
    shown = not datasets.are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _load(datasets: Any, name: str) -> dict[str, Any]:
    """Loads a set, as rows by the names of the splits."""
    path = pathlib.Path(os.path.expanduser(name))
    if any((path / file).is_file() for file in _SAVED):
        loaded = datasets.load_from_disk(str(path))
    elif path.is_dir():
        loaded = datasets.load_dataset(str(path))
    else:
        repository, colon, configuration = name.partition(":")
        if repository == _PICKLES:
            raise ValueError(
                f"hf:{name}: expected a set of the hub or a folder, got the reader of "
                f"pickles, which run what they hold"
            )
        more = (configuration,) if colon else ()
        loaded = datasets.load_dataset(repository, *more)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _label(datasets: Any, source: str, features: Mapping, wanted: Columns) -> str:
    if wanted.label:
        if wanted.label not in features:
            raise _no_column(source, "label", features, wanted.label)
        return wanted.label
    usual = [name for name in LABELS if name in features]
    classes = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    if not usual and len(classes) != 1:
        raise _no_column(source, "label", features, "")
    return (usual or classes)[0]


def _input(datasets: Any, source: str, features: Mapping, wanted: Columns) -> str:
    if wanted.input:
        if wanted.input not in features:
            raise _no_column(source, "input", features, wanted.input)
        return wanted.input
    left = features.keys() - {wanted.label, wanted.user}
    kinds = {n: _kind(datasets, f) for n, f in features.items() if n in left}
    for kind in ("image", "text", "numbers"):
        found = [name for name in kinds if kinds[name] == kind]
        usual = [name for name in TEXTS if name in found]
        if len(found) == 1 or usual:
            return (usual or found)[0]
        if found:
            break
    raise _no_column(source, "input", features, "")


def _kind(datasets: Any, feature: Any) -> str:
    if isinstance(feature, datasets.Image):
        return "image"
    is_text = isinstance(feature, datasets.Value) and "string" in feature.dtype
    return "text" if is_text else "numbers"


def _no_column(source: str, what: str, features: Mapping, got: str) -> ValueError:
    return ValueError(
        f"{source}: --columns.{what} expects one of its columns "
        f"({', '.join(features)}), got {got!r}{bounds.nearest(got, features)}"
    )


def _test_split(splits: Mapping[str, Any], label: str) -> str:
    """Names the split to test on; empty: there is none."""
    there = [name for name in TEST if name in splits]
    for name in there:
        rows = splits[name]
        told = getattr(rows.features.get(label), "names", None) is None
        if told or any(y != _UNKNOWN for y in rows[label]):
            return name
    return there[0] if there else ""


def _feature(found: Found, column: str) -> Any:
    return found.splits["train"].features.get(column)


def _column(found: Found, name: str) -> np.ndarray:
    """Reads a column of all splits, as the library makes numpy arrays of it."""
    parts = [
        rows.with_format("numpy", columns=[name])[:][name]
        for rows in found.splits.values()
    ]
    return np.concatenate(parts)


def _texts(found: Found) -> np.ndarray:
    column = found.columns.input
    texts = [text for rows in found.splits.values() for text in rows[column]]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{found.source}: expected texts in column {column}, got {text!r} in "
                f"row {number}"
            )
    return sources.texts(texts)


def _numbers(found: Found) -> np.ndarray:
    x, feature = (
        _column(found, found.columns.input),
        _feature(found, found.columns.input),
    )
    while hasattr(feature, "feature"):  # of lists
        feature = feature.feature
    # The library makes int64 of any whole number; what is uint8 is an image to us.
    return x.astype(np.uint8) if getattr(feature, "dtype", "") == "uint8" else x


def _labels(found: Found, rows: int) -> np.ndarray:
    if not found.columns.label:
        return np.zeros(rows, np.int32)
    y = _column(found, found.columns.label)
    return np.unique(_named(y), return_inverse=True)[1] if y.dtype.kind in "OU" else y


def _named(values: np.ndarray) -> np.ndarray:
    """Gives names as strings of numpy; numbers as they are."""
    return values if values.dtype.kind in "iuf" else values.astype(str)
