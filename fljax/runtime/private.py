"""Folders of caches: what lies there is run or trained on, so no other user may write.

Whoever can write compiled programs decides what a process runs, and whoever can write
decoded data what it learns. A digest beside them says nothing of who wrote both.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterable

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH


def home() -> str:
    """Gives the folder of this library's caches; empty: this user has no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "fljax") if os.path.isabs(root) else ""


def own(folder: pathlib.Path, read: str) -> str:
    """Makes the folder of a cache and says why it should not be used; empty: it may be.

    Args:
      folder: as of `make`.
      read: pattern of what will be read from it.

    Raises:
      OSError: it cannot be made.
    """
    make(folder)
    return objection(folder, folder.glob(read))


def make(folder: pathlib.Path) -> None:
    """Makes a folder that its user alone may open, if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def objection(folder: pathlib.Path, read: Iterable[pathlib.Path] = ()) -> str:
    """Says why what a folder holds should not be read; empty: it may be.

    Args:
      folder: of a cache.
      read: files and folders in it that are about to be read.

    Returns:
      One line, without what is read instead.

    Raises:
      OSError: the folder is not there.
    """
    if not hasattr(os, "geteuid"):  # Windows: rights are lists there
        return ""
    open_to_others = folder.stat().st_mode & _OTHERS_ENTER
    for path in (folder, *read):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # another process has made room
        if found.st_uid != os.geteuid():
            return f"{path} belongs to another user (number {found.st_uid})"
        if found.st_mode & _OTHERS_WRITE and (open_to_others or path == folder):
            mode = stat.S_IMODE(found.st_mode)
            return f"others may write to {path} (mode {mode:o}; chmod go-w)"
    return ""
