"""Files of a run folder: whole at any moment, durable, grown a line at a time.

Others may have put links or pipes into the folder, or files of any size: what is
written goes into the folder itself, and what is read is a file that memory can hold.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable, Sequence

from fljax.runtime import memory


def temporary(path: pathlib.Path) -> pathlib.Path:
    """Names what `replace` writes before it is whole."""
    return path.with_name(path.name + ".tmp")


def replace(path: pathlib.Path, data: bytes) -> None:
    """Put a whole file in place at once: a kill leaves the old one or the new one.

    Args:
      path: the file; until it is whole, it lies beside under its name and `.tmp`.
      data: its content.

    Raises:
      OSError: if it cannot be written; the old file is still there.
    """
    write(temporary(path), [data])
    rename(temporary(path), path)


def write(path: pathlib.Path, parts: Iterable[bytes]) -> None:
    """Write a file from its parts, for `rename` to put it in place.

    Raises:
      OSError: if it cannot be written.
    """
    path.unlink(missing_ok=True)  # of a kill; or a link, which is not followed
    with open(path, "xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())  # or a power cut can leave the new name without data


def rename(path: pathlib.Path, target: pathlib.Path) -> None:
    """Give a written file its name at once, and make the name durable."""
    os.replace(path, target)
    _sync_folder(target.parent)


def sync(path: pathlib.Path) -> None:
    """Make what was written to a file durable; nothing if there is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: pathlib.Path) -> None:
    """Make names in a folder durable, where the system can: Windows cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def no_link(path: str, flags: int) -> int:
    """Open a file for `open(opener=)`, but not what a symbolic link names.

    Raises:
      OSError: it is one, or cannot be opened.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read(path: pathlib.Path, share: float = 1.0) -> bytes:
    """Read a file; empty if there is none.

    Args:
      path: the file.
      share: of this machine's memory that it may take.

    Raises:
      OSError: it cannot be read, or is none: a named pipe would wait for ever.
      ValueError: it is larger.
    """
    if not path.exists():
        return b""
    if not path.is_file():
        raise OSError(f"{path}: expected a file, got a folder or a device")
    size = path.stat().st_size
    memory.require(str(path), "a file", size, share * memory.of_host())
    return path.read_bytes()


class Lines:
    """A file of lines that this process alone appends to.

    It keeps what it wrote: a file that somebody deletes or cuts while the process
    goes on is written anew, without a hole.
    """

    def __init__(self, path: pathlib.Path, lines: Sequence[bytes]) -> None:
        """Write nothing yet.

        Args:
          path: the file.
          lines: that it has, without their ends.
        """
        self.path = path
        self._lines = [line + b"\n" for line in lines]
        self._size = sum(map(len, self._lines))

    def append(self, line: bytes) -> bool:
        """Add a line; tell whether the file had to be mended before."""
        mended = self.mend()
        with open(self.path, "ab", opener=no_link) as file:
            file.write(line + b"\n")
        if not self._size:  # it may be new
            _sync_folder(self.path.parent)
        self._lines.append(line + b"\n")
        self._size += len(line) + 1
        return mended

    def mend(self) -> bool:
        """Write the file anew if others changed it; tell whether they did."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return False
        replace(self.path, b"".join(self._lines))
        return True
