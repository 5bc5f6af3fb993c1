"""Folders of caches: what lies there is run or trained on, so no other user may write.

Whoever can write compiled programs decides what a process runs, and whoever can write
decoded data what it learns. A digest beside them says nothing of who wrote both. The
same goes for whoever can put another folder in the place of one that was looked at: so
all that leads to a cache, symbolic links too, belongs to its user or to root, and no
folder on the way may be written by others, but where only owners rename (as in /tmp).
"""

from __future__ import annotations

import functools
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator

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
    if why := _on_the_way(folder):
        return why
    open_to_others = folder.stat().st_mode & _OTHERS_ENTER
    for path in (folder, *read):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # another process has made room
        if found.st_uid not in (os.geteuid(), 0):
            return _belongs(path, found)
        if found.st_mode & _OTHERS_WRITE and (open_to_others or path == folder):
            return _written(path, found)
    return ""


def _on_the_way(folder: pathlib.Path) -> str:
    """Says who else may put another folder in the place of one; empty: nobody."""
    end = pathlib.Path(os.path.realpath(folder, strict=True))
    for path in dict.fromkeys(_way(folder)):
        found = path.lstat()
        if path == end:
            continue
        if found.st_uid not in (os.geteuid(), *_system()):
            return _belongs(path, found)
        if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:
            continue
        group = found.st_mode & stat.S_IWGRP and not _of_one(found.st_gid)
        if group or found.st_mode & stat.S_IWOTH:
            return _written(path, found)
    return ""


def _way(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the folders and symbolic links that lead to a path, and the path."""
    path = path.absolute()
    for part in (*reversed(path.parents), path):
        yield part
        if part.is_symlink():
            yield from _way(part.parent / os.readlink(part))


@functools.cache
def _system() -> tuple[int, ...]:
    """Gives the numbers of the users that the system's own folders belong to.

    In a container without a root of its own, root has the number of all unknown users.
    """
    try:
        known = pathlib.Path("/proc/self/uid_map").read_text().splitlines()
        unknown = int(pathlib.Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return (0,)
    has_root = any(line.split()[0] == "0" for line in known)
    return (0,) if has_root else (0, unknown)


def _of_one(group: int) -> bool:
    """Tells whether a group is this user's alone, as many systems give each one."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:  # a container that has no names
        return False
    return found.gr_name == user.pw_name and not {*found.gr_mem} - {user.pw_name}


def _belongs(path: pathlib.Path, found: os.stat_result) -> str:
    return f"{path} belongs to another user (number {found.st_uid})"


def _written(path: pathlib.Path, found: os.stat_result) -> str:
    mode = stat.S_IMODE(found.st_mode)
    return f"others may write to {path} (mode {mode:o}; chmod go-w)"
