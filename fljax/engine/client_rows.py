"""What clients keep from round to round, on the host: a row of each that took part.

Control variates, error memories of codecs, personal layers. A row is S float32; a
client without one has the row that all start with. Rows are immutable, as all of a
state is: `put` gives new ones that share with the old ones what did not change, so that
a round that is dropped, rolled back, or still being written has the rows it had.

They lie in a tree of 32 branches a node, by the digits of the client's number; `put`
copies the nodes above the rows that it changes, so a round of A clients costs O(A)
however many rows there are (path copying: Driscoll et al., JCSS 1989; Bagwell, "Ideal
Hash Trees", 2001). What two versions share is one object, so what differs between them
is found as fast.

Legend: A clients of a round, N all clients, S values of a client's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fljax import types
from fljax.runtime import memory, mesh

_BITS = 5  # of a digit
_BRANCHES = 1 << _BITS
_LEVELS = 7  # of nodes: numbers of 35 bits
_TOP = _BITS * (_LEVELS - 1)  # where the first digit begins
_MOST_CLIENTS = 2**31
_EMPTY = (None,) * _BRANCHES
# Python's own of a row and its share of the nodes; up to 700 where few of very many
# clients have rows, since nodes are sparse then.
_BESIDE = 64
_SENT = 64e6  # bytes that hosts are sent at once

# The children of a node are nodes, at the lowest level the bytes of rows.
_Node = tuple[Any, ...]


class Rows:
    """The rows of clients.

    Attributes:
      first: [S] float32, the row of a client before its first round; read only.
      visited: how many clients have rows of their own.
    """

    __slots__ = ("_first", "_root", "first", "visited")
    __hash__ = None  # type: ignore[assignment]  # as arrays

    def __init__(self, first: np.ndarray, root: _Node, visited: int) -> None:
        """Take a tree as it is; `empty` and `put` make sound ones."""
        self._first = np.array(first, np.float32).tobytes()
        self._root = root
        self.first = np.frombuffer(self._first, np.float32)
        self.visited = visited

    @classmethod
    def empty(cls, first: np.ndarray) -> Rows:
        """Make the rows before the first round.

        Args:
          first: [S] float32, the row of a client before its first round.

        Returns:
          Rows without a client.

        Raises:
          ValueError: it is no vector of float32.
        """
        if np.ndim(first) != 1 or np.asarray(first).dtype != np.float32:
            raise ValueError(
                f"first row: expected a vector of float32, got {_kind(first)}"
            )
        return cls(first, _EMPTY, 0)

    @property
    def width(self) -> int:
        """S, the values of a row."""
        return len(self.first)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that they take, about."""
        return estimate(self.visited, self.width)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Collect the rows of clients.

        Args:
          ids: [A] client numbers, in any order.

        Returns:
          [A, S] float32, the caller's own.

        Raises:
          ValueError: something is no client number.
        """
        rows = np.empty((len(numbers := _numbers(ids)), self.width), np.float32)
        for place, row in enumerate(self.stored(numbers)):
            rows[place] = self.first if row is None else np.frombuffer(row, np.float32)
        return rows

    def put(self, ids: np.ndarray, rows: np.ndarray) -> Rows:
        """Make rows in which some clients have new ones.

        Args:
          ids: [A] client numbers, each once, in any order.
          rows: [A, S] float32, on the host or the device; they are copied.

        Returns:
          The new rows; these stay as they are.

        Raises:
          ValueError: clients that are no numbers or come twice, other shapes or dtypes.
        """
        numbers, rows = _numbers(ids), np.asarray(rows)
        expected = (len(numbers), self.width)
        if rows.shape != expected or rows.dtype != np.float32:
            raise ValueError(
                f"rows of clients: expected float32{[*expected]}, got {_kind(rows)}"
            )
        new = dict(zip(numbers, (row.tobytes() for row in rows), strict=True))
        if len(new) < len(numbers):
            raise ValueError(
                f"rows of clients: expected each client once, got {numbers}"
            )
        return self.holding(new)

    def holding(self, new: Mapping[int, bytes]) -> Rows:
        """Make rows in which some clients have new ones, as `stored` gives them.

        Args:
          new: client number -> the 4 S bytes of its row.

        Returns:
          The new rows.
        """
        first_time = sum(self._find(number) is None for number in new)
        root = _put(self._root, _TOP, new)
        return Rows(self.first, root, self.visited + first_time)

    def stored(self, ids: Iterable[int]) -> Iterator[bytes | None]:
        """Yield the bytes of clients' rows, None of those that have none."""
        return map(self._find, ids)

    def changed(self, since: Rows) -> list[int]:
        """Find the clients whose rows are others than they were.

        Args:
          since: other rows; it is fast where these came of them by few changes.

        Returns:
          The clients that have another row than there, or in one of both none, in
          order.
        """
        return [*_differences(self._root, since._root, _TOP, 0)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        same = self._first == other._first
        return same and not self.changed(other)

    def __repr__(self) -> str:
        return f"Rows(width={self.width}, visited={self.visited})"

    def _find(self, number: int) -> bytes | None:
        node: Any = self._root
        for shift in range(_TOP, -1, -_BITS):
            node = node[number >> shift & _BRANCHES - 1]
            if node is None:
                return None
        return node


def _put(node: _Node, shift: int, new: Mapping[int, bytes]) -> _Node:
    """Copies a node, and those below it on the way to new rows, with these in them."""
    children = list(node)
    if not shift:
        for number, row in new.items():
            children[number & _BRANCHES - 1] = row
        return tuple(children)
    below: dict[int, dict[int, bytes]] = {}
    for number, row in new.items():
        below.setdefault(number >> shift & _BRANCHES - 1, {})[number] = row
    for digit, part in below.items():
        children[digit] = _put(children[digit] or _EMPTY, shift - _BITS, part)
    return tuple(children)


def _differences(ours: _Node, theirs: _Node, shift: int, begin: int) -> Iterator[int]:
    """Yields the clients below two nodes with unlike rows; what is one is passed."""
    for digit, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        number = begin | digit << shift
        if our is their:
            continue
        if shift:
            below = our or _EMPTY, their or _EMPTY
            yield from _differences(*below, shift - _BITS, number)
        elif our != their:
            yield number


def _numbers(ids: np.ndarray) -> list[int]:
    """Gives client numbers as Python's, which index faster."""
    array = np.asarray(ids)
    if array.ndim == 1 and not array.size:
        return []
    most = _MOST_CLIENTS
    whole = array.ndim == 1 and array.dtype.kind in "iu"
    if not whole or not 0 <= array.min() <= array.max() < most:
        raise ValueError(f"clients: expected numbers from 0 below {most:,}, got {ids}")
    return array.tolist()


def _kind(array: Any) -> str:
    array = np.asarray(array)
    return f"{array.dtype}{[*array.shape]}"


def found(tree: types.Tree) -> list[Rows]:
    """List the rows that a tree holds: one leaf each, in order."""
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Rows)]


def from_first_host(rows: Rows) -> Rows:
    """Give every host the rows of the first one; each holds all of them.

    Args:
      rows: of the same width on all hosts; those of the others do not matter.

    Returns:
      The first host's.
    """
    if jax.process_count() == 1:
        return rows
    here = rows.changed(Rows.empty(rows.first))
    first, count = mesh.from_first_host((rows.first, np.int32(rows.visited)))
    new, step = Rows.empty(np.array(first)), max(1, int(_SENT / (4 * rows.width + 4)))
    for begin in range(0, int(count), step):
        size = min(step, int(count) - begin)
        part = np.zeros(size, np.int32), np.zeros((size, rows.width), np.float32)
        if jax.process_index() == 0:
            ids = np.array(here[begin : begin + size], np.int32)
            part = ids, rows.gather(ids)
        new = new.put(*map(np.asarray, mesh.from_first_host(part)))
    return new


def most_visited(clients: int, rounds: int, a_round: int) -> int:
    """Count the clients that may have rows at the end of a run.

    Args:
      clients: N.
      rounds: of the run.
      a_round: A, the clients of a round.

    Returns:
      How many, at most.
    """
    return min(clients, rounds * a_round)


def estimate(visited: int, width: int) -> int:
    """Work out the bytes of host memory that rows take.

    Beside them lie the rows that were replaced since the checkpoint in flight, of two
    or three rounds, and with a rollback those that were since the good state.

    Args:
      visited: clients that have rows.
      width: S, values of a row.

    Returns:
      Bytes, about.
    """
    return visited * (4 * width + _BESIDE)


def require(opening: str, visited: int, width: int) -> None:
    """Refuse rows that cannot fit into this machine, before a run.

    Args:
      opening: of the error: the flag that asks for rows.
      visited: clients that may have rows at the end, `most_visited`.
      width: S, values of a row.

    Raises:
      ValueError: they cannot; with both figures.
    """
    what = f"rows of {visited:,} clients, {width:,} values each"
    memory.require(opening, what, estimate(visited, width), memory.of_host())
