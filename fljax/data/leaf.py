"""Data sets in LEAF's JSON (arXiv 1812.01097): FEMNIST by writer, Shakespeare by role.

A file is {"users": [...], "user_data": {user: {"x": [...], "y": [...]}}}. Rows of
numbers are features, of 784 numbers images of 28 x 28; rows of text, with a character
each to come next, are characters as `text` numbers them.

DIR/train/*.json and DIR/test/*.json are LEAF's own split. One file, a folder of files,
or a share that is asked for are split here, user by user: of numbers a permutation
keyed by (seed, the user's name) gives the test examples; of text, whose windows
overlap, they are the user's last ones, and the windows that share characters with them
are left out (as LEAF does). A user who would keep no training example keeps all.
"""

from __future__ import annotations

import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fljax import bounds
from fljax.data import progress, text
from fljax.runtime import reading, streams

LAYOUT = "DIR/train/*.json and DIR/test/*.json, DIR/*.json or a file"
SHARE = 0.1  # of a user's examples that are for testing, as LEAF's default
SIDE = 28  # of FEMNIST's images

Users = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> x and y, in order


class Files(NamedTuple):
    """The files of a data set.

    Attributes:
      train: what is trained on; all, where `test` is empty.
      test: LEAF's test split.
    """

    train: tuple[pathlib.Path, ...]
    test: tuple[pathlib.Path, ...]


def find(name: str, root: pathlib.Path) -> Files:
    """List the files.

    Args:
      name: opens every error.
      root: a folder or a file.

    Returns:
      The files, sorted.

    Raises:
      ValueError: there are none.
    """
    if not os.path.isdir(root):
        reading.check(name, root)
        return Files((root,), ())
    there = Files(_json(root / "train"), _json(root / "test"))
    if there.train and there.test:
        return there
    flat = _json(root)
    if not flat or there.train or there.test:
        names = ", ".join(sorted(os.listdir(root))[:5]) or "nothing"
        raise ValueError(f"{name}: expected {LAYOUT}, got a folder with {names}")
    return Files(flat, ())


def _json(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Lists files and what else has such a name, but for what systems hide."""
    found = (p for p in folder.glob("*.json") if not p.name.startswith("."))
    return tuple(sorted(found))


def read(
    name: str,
    found: Files,
    share: float = 0.0,
    seed: int = 0,
    watch: progress.Watch = progress.ignore,
) -> dict[str, np.ndarray]:
    """Read the files and split each user's examples where that is to be done.

    Args:
      name: opens every error.
      found: of `find`.
      share: of each user's examples that are for testing; 0: LEAF's split where there
        is one, and else SHARE.
      seed: of the split.
      watch: is told of the progress, in files.

    Returns:
      x_train, y_train, x_test, y_test, users and users_test (numbered in sorted order
      of their names, -1 for who has no training example) and for text vocabulary and
      num_classes. Images are uint8 where all pixels lie in [0, 1] (LEAF's are 255ths),
      else float32, as other features are.

    Raises:
      ValueError: a file is no such JSON.
    """
    numbered = list(enumerate((*found.train, *found.test), start=1))
    train: Users = {}
    test: Users = {}
    for i, path in numbered:
        _add(name, path, train if share or path in found.train else test)
        watch(f"reading {name} (files)", i, len(numbered))
    if not train:
        raise ValueError(f"{name}: expected examples, got none")
    first = next(iter(train.values()))[0]
    is_text = first.dtype.kind == "U"
    if not test:
        train, test = _split(train, share or SHARE, seed, is_text)
    names = sorted(train)
    columns = {
        "x_train": [train[user][0] for user in names],
        "y_train": [train[user][1] for user in names],
        "x_test": [test[user][0] for user in sorted(test)],
        "y_test": [test[user][1] for user in sorted(test)],
    }
    arrays = _joined(name, columns)
    number = {user: i for i, user in enumerate(names)}
    for key, part in (("users", train), ("users_test", test)):
        numbers = [number.get(user, -1) for user in sorted(part)]  # -1: only tests
        arrays[key] = np.repeat(numbers, [len(part[user][1]) for user in sorted(part)])
    return _characters(arrays) if is_text else _features(arrays)


def _add(name: str, path: pathlib.Path, users: Users) -> None:
    """Adds the users of a file; one that is known gets its examples appended."""
    content = reading.read_json(path, name)
    data = content.get("user_data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not data:
        raise ValueError(
            f'{name}: expected {{"user_data": {{user: {{"x": [...], "y": [...]}}}}}}, '
            f"got another JSON in {path}"
        )
    for user, examples in data.items():
        x, y = _examples(name, path, user, examples)
        if not len(y):
            continue
        if user in users:
            before = users[user]
            x, y = np.concatenate([before[0], x]), np.concatenate([before[1], y])
        users[user] = x, y


def _examples(
    name: str, path: pathlib.Path, user: str, examples: Any
) -> tuple[np.ndarray, np.ndarray]:
    where = f"user {bounds.shown(user)} of {path}"
    columns: list[Any] = []
    if isinstance(examples, dict):
        columns = [examples.get(key) for key in "xy"]
    if not columns or not all(isinstance(column, list) for column in columns):
        raise ValueError(
            f'{name}: expected {{"x": [...], "y": [...]}}, got '
            f"{bounds.shown(examples)} for {where}"
        )
    if len(columns[0]) != len(columns[1]):
        raise ValueError(
            f"{name}: expected as many x as y, got {len(columns[0])} and "
            f"{len(columns[1])} for {where}"
        )
    if all(map(_is_text, columns)) and set(map(len, columns[1])) == {1}:
        return np.array(columns[0]), np.array(columns[1])
    try:
        x, y = (np.array(column) for column in columns)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{name}: expected x of rows of one length and y, got others for {where} "
            f"({reading.gist(error)})"
        ) from None
    numbers = (
        x.ndim == 2 and x.dtype.kind in "iuf" and set(map(type, columns[1])) == {int}
    )
    if len(y) and not numbers:
        raise ValueError(
            f"{name}: expected rows of numbers with class numbers, or texts with a "
            f"character each, got x {x.dtype}{list(x.shape)} and y "
            f"{y.dtype}{list(y.shape)} for {where}"
        )
    with np.errstate(over="ignore"):  # `checks` tells of what is not finite
        return x.astype(np.float32), y


def _is_text(column: list) -> bool:
    return bool(column) and all(isinstance(value, str) for value in column)


def _split(users: Users, share: float, seed: int, is_text: bool) -> tuple[Users, Users]:
    """Splits each user's examples; see the module's docstring."""
    train, test = {}, {}
    for user, (x, y) in users.items():
        held = round(share * len(y))
        cut = len(y) - held - is_text * (max(map(len, x)) - 1)
        if cut < 1:
            held, cut = 0, len(y)
        if is_text:
            rows, others = np.arange(cut), np.arange(len(y) - held, len(y))
        else:
            name = zlib.crc32(user.encode(errors="surrogatepass"))
            generator = streams.generator(seed, streams.USER_SHARE, name)
            order = generator.permutation(len(y))
            rows, others = np.sort(order[held:]), np.sort(order[:held])
        train[user] = x[rows], y[rows]
        if held:
            test[user] = x[others], y[others]
    return train, test


def _joined(
    name: str, columns: Mapping[str, list[np.ndarray]]
) -> dict[str, np.ndarray]:
    if not columns["x_test"]:
        raise ValueError(
            f"{name}: expected users with enough examples to test on some of them, got "
            f"at most {max(map(len, columns['y_train']))} a user"
        )
    try:
        return {key: np.concatenate(parts) for key, parts in columns.items()}
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"{name}: expected rows of one length, got different ones ({error})"
        ) from None


def _characters(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    length = max(arrays[f"x_{part}"].dtype.itemsize // 4 for part in ("train", "test"))
    coded = {
        **{key: text.characters(arrays[key], length) for key in ("x_train", "x_test")},
        **{key: text.characters(arrays[key], 1)[:, 0] for key in ("y_train", "y_test")},
    }
    count = np.array(text.SYMBOLS)
    return {**arrays, **coded, "vocabulary": count, "num_classes": count}


def _features(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    keys = ("x_train", "x_test")
    if arrays["x_train"].shape[1] != SIDE * SIDE:
        return arrays
    images = {key: arrays[key].reshape(-1, SIDE, SIDE, 1) for key in keys}
    if all(((x >= 0) & (x <= 1)).all() for x in images.values()):
        images = {key: np.rint(x * 255).astype(np.uint8) for key, x in images.items()}
    return {**arrays, **images}
