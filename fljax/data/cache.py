"""Loaded arrays, kept on disk and mapped into memory.

An entry is a folder named by a hash of the source's bytes, the options of the loader
and VERSION, so what changes any of them is another entry. It holds one .npy file an
array and manifest.json with shapes, dtypes and checksums. It appears by rename: a kill
leaves nothing half.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import filelock
import numpy as np

from fljax import bounds
from fljax.data import progress
from fljax.runtime import private, reading

VERSION = 2  # raise it when a loader makes other arrays of the same source
MANIFEST = "manifest.json"
BLOCK = 2**22  # bytes hashed at a time


def content(
    name: str,
    root: pathlib.Path,
    files: Iterable[pathlib.Path],
    watch: progress.Watch = progress.ignore,
) -> str:
    """Hash files: their paths below root and their bytes, not their times.

    Args:
      name: of the source, for the watch.
      root: the source.
      files: below it, or itself.
      watch: is told of the progress, in bytes.

    Returns:
      SHA-256 in hexadecimal digits.

    Raises:
      OSError: a file cannot be read.
    """
    paths = sorted(files)
    sizes = [path.stat().st_size for path in paths]
    digest, done = hashlib.sha256(), 0
    for path, size in zip(paths, sizes, strict=True):
        digest.update(os.fsencode(f"{path.relative_to(root).as_posix()}\0{size}\0"))
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                watch(f"hashing {name} (bytes)", done, sum(sizes))
    return digest.hexdigest()


def keep(
    folder: str | os.PathLike[str],
    about: Mapping[str, Any],
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Give the arrays of an entry; make the entry where it is not there yet.

    Args:
      folder: of all entries; empty: nothing is kept.
      about: all that the arrays depend on, as plain data; `source` is a `content`.
      make: makes the arrays; none of them of objects.

    Returns:
      The arrays, mapped read-only.

    Raises:
      ValueError: the entry is damaged or another source's: one line that names the
        file, what was expected, what came and what to delete.
      OSError: the folder cannot be written.
    """
    if not folder:
        return make()
    about = {**about, "version": VERSION}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    entry = pathlib.Path(folder).expanduser() / name
    private.make(entry.parent)
    _require_own(entry)  # before a lock is made where others may put a link
    with filelock.FileLock(entry.with_suffix(".lock")):  # who comes second finds it
        if not entry.exists():
            _write(entry, about, make())
        _require_own(entry, entry, *entry.iterdir())
        return _read(entry, about)


def _require_own(entry: pathlib.Path, *read: pathlib.Path) -> None:
    """Raises ValueError where others may write what is about to be read."""
    if why := private.objection(entry.parent, read):
        raise ValueError(f"{entry}: expected an entry of this user's own, but {why}")


def _write(
    entry: pathlib.Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    temporary = entry.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    described = {}
    for key, value in arrays.items():
        path = temporary / f"{key}.npy"
        np.save(path, value, allow_pickle=False)
        described[key] = {
            "shape": list(value.shape),
            "dtype": value.dtype.str,
            "sha256": _checksum(path),
        }
    manifest = {"about": about, "arrays": described}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    os.rename(temporary, entry)


def _read(entry: pathlib.Path, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    path = entry / MANIFEST
    try:
        manifest = reading.read_json(path)
        described, found = _parts(manifest)
    except ValueError as error:
        raise _refuse(entry, path, "a manifest", str(error)) from error
    for key in sorted({*about, *found}):
        if found.get(key) != about.get(key):
            wanted = f"{key} {about.get(key)!r}"
            raise _refuse(entry, path, wanted, bounds.shown(found.get(key)))
    return {key: _array(entry, key, value) for key, value in described.items()}


def _parts(manifest: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives what a manifest tells of the arrays, and what they depend on."""
    described, found = (
        manifest.get(key) if isinstance(manifest, dict) else None
        for key in ("arrays", "about")
    )
    if not isinstance(described, dict) or not isinstance(found, dict):
        raise ValueError("another JSON")
    for key, array in described.items():
        told = array.keys() if isinstance(array, dict) else set()
        if not (key.isidentifier() and {"dtype", "shape", "sha256"} <= told):
            raise ValueError(f"another JSON for {bounds.shown(key)}")
    return described, found


def _array(entry: pathlib.Path, key: str, described: Mapping[str, Any]) -> np.ndarray:
    path = entry / f"{key}.npy"
    try:
        reading.check(str(path), path)
        value = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of numpy, of many kinds
        raise _refuse(entry, path, "an array", reading.gist(error)) from error
    expected = (described["dtype"], described["shape"])
    if (got := (value.dtype.str, list(value.shape))) != expected:
        raise _refuse(entry, path, _words(expected), _words(got))
    if (checksum := _checksum(path)) != described["sha256"]:
        stored = str(described["sha256"])
        raise _refuse(entry, path, f"SHA-256 {stored[:12]}", checksum[:12])
    return value


def _checksum(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _words(described: tuple[str, list[int]]) -> str:
    return f"{described[0]}{described[1]}"


def _refuse(
    entry: pathlib.Path, path: pathlib.Path, expected: str, got: str
) -> ValueError:
    return ValueError(
        f"{path}: expected {expected}, got {' '.join(got.split())}; delete {entry} and "
        f"it is made again"
    )
