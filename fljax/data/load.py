"""Data sets by name, checked once, as arrays in host memory.

Images stay uint8, a quarter of float32 in host and device memory; they are scaled on
the device with what `normalization` returns. Text becomes tokens. What takes long to
decode is kept by `cache`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds, types
from fljax.data import (
    cache,
    checks,
    folder,
    hub,
    images,
    jsonl,
    labels,
    leaf,
    npz,
    prepared,
    progress,
    resplit,
    text,
)
from fljax.runtime import reading

SOURCES = {  # to what stands behind the colon
    "npz": "PATH",
    "folder": "DIR",
    "leaf": "DIR",
    "jsonl": "PATH",
    "tfds": "NAME",
    "hf": "NAME",
}
CHUNK = 2**22  # values that `normalization` turns into float64 at a time: 32 MB
FLOOR_UINT8 = 1e-3  # a quarter of one step of 1/255: below it a channel is constant
FLOOR_FLOAT = 1e-6  # floats come in units of their own


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """How texts become tokens."""

    max_tokens: int = bounds.field(
        512,
        "Tokens of a text; longer ones are cut. Of leaf's characters the last are "
        "kept.",
        least=1,
        most=2**20,
    )
    vocabulary_size: int = bounds.field(
        16_000, "Subwords that texts are made of, at most.", least=2, most=10_000_000
    )

    def __post_init__(self):
        bounds.check(self, "text.{}".format)


class Options(NamedTuple):
    """How sources are read; `load` says which of them heed what.

    Attributes:
      image_size: height and width that images are resized to; 0: as stored.
      image_mode: grey, rgb or stored.
      test_share: of training and test examples together that are for testing; 0: the
        split as stored.
      texts: how they become tokens.
      tokenizer: `types.Dataset.tokenizer` of an earlier run, instead of training one.
      seed: of the split.
      cache: folder that keeps what was decoded; empty: none.
      check: what labels must be, of `labels`.
      one_hot: whether an npz file's rows with a single one are class numbers.
      columns: of an `hf` set, which is what.
      following: labels are the tokens that come next, at every position; those that the
        source has are left out.
    """

    image_size: int = 0
    image_mode: str = "stored"
    test_share: float = 0.0
    texts: Text = Text()
    tokenizer: bytes | None = None
    seed: int = 0
    cache: str = ""
    check: checks.Check = labels.class_numbers
    one_hot: bool = True
    columns: hub.Columns = hub.Columns()
    following: bool = False


DEFAULT = Options()


def load(
    name: str, options: Options = DEFAULT, watch: progress.Watch = progress.ignore
) -> types.Dataset:
    """Load a data set by name.

    - `digits`: 1,797 images of handwritten digits, 8 x 8 (see digits_notice.txt).
    - `npz:PATH`: a numpy file with x_train, y_train, x_test, y_test and, optionally,
      users: who wrote each training example, integers or strings; users_test: likewise.
    - `folder:DIR`: images in class folders, see `folder`.
    - `leaf:DIR`: LEAF's JSON, with users, see `leaf`; it splits user by user.
    - `jsonl:PATH`: texts with labels, see `jsonl`; they become subwords, see `text`.
    - `tfds:NAME`: NAME as tensorflow-datasets spells it (`mnist`, `emnist/balanced`,
      `cifar10:3.0.2`), from the folder in TFDS_DATA_DIR or the library's own. A set
      that was prepared as array_record needs no TensorFlow. The test split is `test`,
      or else `validation`. Texts become subwords.
    - `hf:NAME`: a set of the Hugging Face hub, or a folder of its library, see `hub`.

    x is `[examples, *features]`, uint8 if it is stored so, else float32; [examples,
    height, width] is taken as grey images and gets a channel axis. y is what
    `options.check` makes of it, by itself [examples] class numbers from 0.

    Args:
      name: one of the above.
      options: size and mode are for images, tokens and vocabulary for texts.
      watch: is told of the progress.

    Returns:
      The data set; users, where there are any, are numbered from 0 in sorted order.

    Raises:
      ValueError: the name, the source or its contents are not as expected.

    >>> load("digits").x_train.shape
    (1437, 8, 8, 1)
    """
    kind, _, rest = name.partition(":")
    if name != "digits" and not (kind in SOURCES and rest):
        named = ", ".join(f"'{key}:{value}'" for key, value in SOURCES.items())
        raise ValueError(
            f"the data set must be 'digits', {' or '.join(named.rsplit(', ', 1))}, got "
            f"{name!r}; did you mean {_nearest(name)!r}?"
        )
    with reading.one_line(name):
        arrays = _arrays(name, kind, rest, options, watch)
        if options.following:
            arrays = text.following(name, arrays, last=kind == "leaf")
        return checks.dataset(name, arrays, options.check)


Arrays = dict[str, np.ndarray]


def _arrays(name: str, kind: str, rest: str, options: Options, watch) -> Arrays:
    path = pathlib.Path(os.path.expanduser(rest))
    if kind == "tfds":
        return _from_tfds(name, rest, options, watch)
    if kind == "hf":
        return _from_hub(name, rest, options, watch)
    if kind == "folder":
        return _from_folder(name, path, options, watch)
    if kind == "leaf":
        return _from_leaf(name, path, options, watch)
    if kind == "jsonl":
        labelled = not options.following
        read = functools.partial(jsonl.read, name, path, watch, labelled)
        source = functools.partial(_content, name, path.parent, [path], watch)
        return _from_texts(name, read, source, options, watch)
    return _from_npz(name, npz.DIGITS if name == "digits" else path, options, watch)


def _from_npz(name, path, options: Options, watch) -> Arrays:
    arrays = _fit(name, npz.read(name, path, options.one_hot), options, watch)
    return resplit.split(name, arrays, options.test_share, options.seed)


def _from_folder(name, path, options: Options, watch) -> Arrays:
    found = folder.find(name, path, watch)
    size, mode = options.image_size, options.image_mode
    about = {"kind": "folder", "image_size": size, "image_mode": mode}
    if options.cache:
        listed = [file for file, _ in (*found.train, *found.test)]
        about["source"] = _content(name, path, listed, watch)
    arrays = cache.keep(
        options.cache, about, lambda: folder.read(name, found, size, mode, watch)
    )
    return resplit.split(name, arrays, options.test_share, options.seed)


def _from_leaf(name, path, options: Options, watch) -> Arrays:
    found = leaf.find(name, path)
    share = options.test_share
    seed = options.seed if share or not found.test else 0  # LEAF's own split needs none
    about = {
        "kind": "leaf",
        "test_share": share,
        "seed": seed,
        "image_size": options.image_size,
        "image_mode": options.image_mode,
        "max_tokens": options.texts.max_tokens,
    }
    if options.cache:
        root = path if os.path.isdir(path) else path.parent
        about["source"] = _content(name, root, [*found.train, *found.test], watch)

    def make() -> Arrays:
        arrays = leaf.read(name, found, share, seed, watch)
        if "vocabulary" in arrays:  # what comes next depends on the last characters
            for key in ("x_train", "x_test"):
                arrays[key] = arrays[key][:, -options.texts.max_tokens :]
        return _fit(name, arrays, options, watch)

    return cache.keep(options.cache, about, make)


def _from_tfds(name, rest, options: Options, watch) -> Arrays:
    found = prepared.find(rest)
    read = functools.partial(prepared.read, found, watch)

    def source() -> str:
        return _content(name, found.root, found.files(), watch)

    if found.is_text:
        return _from_texts(name, read, source, options, watch)
    about = {"kind": "tfds", "source": source() if options.cache else ""}
    arrays = _fit(name, cache.keep(options.cache, about, read), options, watch)
    return resplit.split(name, arrays, options.test_share, options.seed)


def _from_hub(name, rest, options: Options, watch) -> Arrays:
    found = hub.find(rest, options.columns, not options.following)
    files = hub.files(found) if options.cache else []
    if not files:  # it lies in memory alone
        options = options._replace(cache="")
    size, mode = options.image_size, options.image_mode

    def source() -> str:
        root = pathlib.Path(os.path.commonpath([file.parent for file in files]))
        what = (_content(name, root, files, watch), found.columns, list(found.splits))
        return hashlib.sha256(repr(what).encode()).hexdigest()

    if found.kind == "text":
        read = functools.partial(hub.read, found, watch=watch)
        return _from_texts(name, read, source, options, watch)
    is_image = found.kind == "image"
    about: dict[str, Any] = {"kind": "hf", "source": source() if options.cache else ""}
    if is_image:
        about |= {"image_size": size, "image_mode": mode}
    arrays = cache.keep(
        options.cache, about, lambda: hub.read(found, size, mode, watch)
    )
    if not is_image:
        arrays = _fit(name, arrays, options, watch)
    return resplit.split(name, arrays, options.test_share, options.seed)


def _from_texts(
    name: str,
    read: Callable[[], Arrays],
    source: Callable[[], str],
    options: Options,
    watch: progress.Watch,
) -> Arrays:
    """Turns texts into tokens; the vocabulary is an entry of the cache of its own."""
    _no_images(name, options)

    @functools.cache
    def texts() -> Arrays:
        return resplit.split(name, read(), options.test_share, options.seed)

    def train() -> Arrays:
        examples = texts()["x_train"]
        made = text.train_vocabulary(
            name, examples, options.texts.vocabulary_size, watch
        )
        return {"tokenizer": np.frombuffer(made, np.uint8)}

    split: dict[str, Any] = {"test_share": options.test_share}
    if options.following:  # lines may lack the labels that another task asks for
        split["following"] = True
    if options.test_share:
        split["seed"] = options.seed
    about = {"kind": "text", "source": source() if options.cache else "", **split}
    if options.tokenizer is None:
        size = {"vocabulary_size": options.texts.vocabulary_size}
        kept = cache.keep(options.cache, {**about, **size}, train)
        tokenizer = kept["tokenizer"].tobytes()
    else:
        tokenizer = options.tokenizer

    def encode() -> Arrays:
        arrays = dict(texts())
        for key in ("x_train", "x_test"):
            arrays[key], count = text.encode(
                name, arrays[key], tokenizer, options.texts.max_tokens, watch
            )
        return {**arrays, "vocabulary": np.array(count)}

    asked = {
        "max_tokens": options.texts.max_tokens,
        "tokenizer": hashlib.sha256(tokenizer).hexdigest(),
    }
    arrays = cache.keep(options.cache, {**about, **asked}, encode)
    return {**arrays, "tokenizer": np.frombuffer(tokenizer, np.uint8)}


def _content(name, root, paths, watch) -> str:
    for path in paths:
        reading.check(name, path)
    return cache.content(name, root, paths, watch)


def _fit(name, arrays: Mapping[str, np.ndarray], options: Options, watch) -> Arrays:
    if "vocabulary" in arrays:
        _no_images(name, options)
    return images.fit(name, arrays, options.image_size, options.image_mode, watch)


def _no_images(name: str, options: Options) -> None:
    if options.image_size or options.image_mode != "stored":
        raise ValueError(
            f"{name}: --image_size and --image_mode expect images, got text; leave them"
        )


def digest(dataset: types.Dataset) -> str:
    """Hash all that training and evaluation see of a data set.

    Args:
      dataset: any.

    Returns:
      SHA-256 in hexadecimal digits; a different array, dtype or order gives another.
    """
    whole = hashlib.sha256()
    parts: dict[str, Any] = dataset._asdict()
    for key in (*checks.KEYS, "users", "users_test"):
        if parts[key] is not None:
            whole.update(f"{key} {parts[key].dtype.str} {parts[key].shape}\0".encode())
            whole.update(np.ascontiguousarray(parts[key]).data)
    whole.update(f"{dataset.num_classes} {dataset.vocabulary}".encode())
    return whole.hexdigest()


def normalization(dataset: types.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation per channel (last axis) of the training set.

    Normalized input is (x / 255 - mean) / std for uint8, (x - mean) / std for floats;
    tokens stay as they are.

    Args:
      dataset: its x_train is `[examples, *features, channels]`, or tokens.

    Returns:
      mean and std, [channels] float32, in units of x / 255 for uint8 and of x for
      floats; std has a floor, so that a constant channel becomes 0. For tokens 0 and 1.

    >>> x = np.array([[[0], [255]]], np.uint8)
    >>> y = np.zeros(1, np.int32)
    >>> mean, std = normalization(types.Dataset(x, y, x, y, num_classes=1))
    >>> mean.tolist(), std.tolist()
    ([0.5], [0.5])
    """
    x = dataset.x_train
    if dataset.vocabulary is not None:
        return np.zeros(1, np.float32), np.ones(1, np.float32)
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
        kinds = ("digits", *SOURCES)
        kind = difflib.get_close_matches(kind.lower(), kinds, n=1, cutoff=0)[0]
        return kind if kind == "digits" else f"{kind}:{rest or SOURCES[kind]}"
    suffix = pathlib.PurePath(name).suffix.lower()
    source = {".npz": "npz", ".jsonl": "jsonl", ".json": "leaf"}.get(suffix, "tfds")
    options = ("digits", f"{source}:{name or 'NAME'}")
    return difflib.get_close_matches(name.lower(), options, n=1, cutoff=0)[0]
