"""Where runs of a pool meet: each goes its own way, in a thread, and trains with all.

A run waits until all that are still on their way ask for a round, then one of them
trains all their rounds at once.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from fljax.engine import sums as totals
from fljax.runs import pool as pools


class Meeting:
    """Brings the rounds of several runs together."""

    def __init__(self, pool: pools.Pool) -> None:
        """Begin with all runs of a pool on their way."""
        self._pool = pool
        self._coming = set(range(len(pool.rooms)))
        self._asked: dict[int, pools.Request] = {}
        self._got: dict[int, totals.Sums | BaseException] = {}
        self._stopped = False
        self._turn = threading.Condition()

    def trainer(self, run: int) -> Any:
        """Gives what trains the rounds of a run, for `Layout.pool`."""
        return functools.partial(self._train, run)

    def _train(self, run: int, *request: Any) -> totals.Sums:
        """Trains a round of a run, once all others ask for one.

        Raises:
          KeyboardInterrupt: `stop` was called meanwhile.
        """
        with self._turn:
            if run not in self._coming:
                raise RuntimeError(f"run {run} has left its pool")
            self._asked[run] = pools.Request(*request)
            self._meet()
            self._turn.wait_for(lambda: run in self._got or self._stopped)
            if run not in self._got:
                raise KeyboardInterrupt
            got = self._got.pop(run)
        if isinstance(got, BaseException):
            raise got
        return got

    def leave(self, run: int) -> None:
        """Says that a run is finished, or has failed: nobody waits for it."""
        with self._turn:
            self._coming.discard(run)
            self._asked.pop(run, None)
            self._meet()

    def stop(self) -> None:
        """Interrupts all runs where they wait, or will wait."""
        self._stopped = True  # before the lock, which who trains may hold for long
        with self._turn:
            self._turn.notify_all()

    def _meet(self) -> None:
        """Trains what is asked for, if all have asked."""
        if not self._asked or self._asked.keys() != self._coming or self._stopped:
            return
        asked = dict(sorted(self._asked.items()))
        self._asked.clear()
        try:
            self._got |= pools.train(self._pool, asked)
        except BaseException as error:  # of all, in a thread of one
            self._got |= dict.fromkeys(asked, error)
        self._turn.notify_all()
