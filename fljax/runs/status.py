"""How a run folder stands: running, stalled, stopped or finished, and for how long yet.

Files alone tell, so that whoever may read them can ask: a run holds its folder by a
lock (`writers`), which Linux lists in /proc/locks. Where that does not tell, as on
another machine, the age of the last record does.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re
import socket
import statistics
from collections.abc import Sequence, Set
from typing import NamedTuple

from fljax.runs import writers
from fljax.runtime import durable

RUNNING, STALLED, STOPPED, FINISHED = NAMES = (
    *("running", "stalled", "stopped", "finished"),
)
RECENT = 20  # rounds that estimates look back
_LONGEST = 5.0  # usual rounds that one counts as in estimates: more is compilation
_QUIET_ROUNDS = 5  # round times without a record after which a run has stalled
_LEAST_QUIET = 10.0  # seconds; the file system may be late
_FIRST_QUIET = 600.0  # seconds that the first round may take, which compiles


class Facts(NamedTuple):
    """What tells how a run stands.

    Attributes:
      rounds: of the whole run.
      done: rounds that are recorded.
      ended: why a record says that the run ended early; empty: none does.
      held: whether a process holds the folder; None: not known.
      quiet: seconds since the last record, or since the run began.
      seconds: that the last rounds took, at most `RECENT`.
      longest: that any round took.
    """

    rounds: int
    done: int
    ended: str = ""
    held: bool | None = None
    quiet: float = 0.0
    seconds: Sequence[float] = ()
    longest: float = 0.0


class Status(NamedTuple):
    """How a run stands.

    Attributes:
      name: one of `NAMES`.
      seconds_left: of a running one; None: not known.
      why: of what stands still, in words.
    """

    name: str
    seconds_left: float | None = None
    why: str = ""


def of(facts: Facts) -> Status:
    """Judges how a run stands."""
    if facts.done >= facts.rounds:
        return Status(FINISHED)
    if facts.ended:
        return Status(STOPPED, why=facts.ended)
    if facts.held is False:
        return Status(STOPPED, why="its process is gone; the same command goes on")
    if facts.quiet > _patience(facts):
        return Status(STALLED, why=f"no record for {_rough(facts.quiet)}")
    if not facts.seconds:
        return Status(RUNNING)
    left = (facts.rounds - facts.done) * usual(facts.seconds)
    return Status(RUNNING, max(left - facts.quiet, 0.0))


def usual(seconds: Sequence[float]) -> float:
    """Estimates what a round takes from what the last ones took.

    The host hears of rounds when it waits for the device, which may be in every other
    round: what is usual is the median of two in a row.

    Args:
      seconds: of each; one that compiled a program counts as a few usual ones, so that
        it does not multiply by all that are to come.

    Returns:
      The mean.
    """
    pairs = [statistics.fmean(pair) for pair in itertools.pairwise(seconds)]
    most = _LONGEST * statistics.median_low(pairs or seconds)
    return statistics.fmean(min(one, most) for one in seconds)


def _patience(facts: Facts) -> float:
    """Gives the seconds without a record after which a run has stalled.

    A plan that comes late compiles as long as the first one did.
    """
    if not facts.seconds:
        return _FIRST_QUIET
    middle = statistics.median(facts.seconds)
    return max(_QUIET_ROUNDS * middle, 2 * facts.longest, _LEAST_QUIET)


def _rough(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def locks() -> Set[int] | None:
    """Lists the inodes of the files that this machine's processes have locked.

    Returns:
      None where the system does not tell.
    """
    try:
        text = pathlib.Path("/proc/locks").read_text()
    except OSError:
        return None
    return {
        int(number) for number in re.findall(r":(\d+) \d+ (?:\d+|EOF)$", text, re.M)
    }


def held(folder: writers.Folder, locked: Set[int] | None) -> bool | None:
    """Tells whether a process holds a run folder.

    Args:
      folder: of the run.
      locked: of `locks`.

    Returns:
      None where that cannot be told: the run is another machine's, or the system says
      nothing of locks.
    """
    files = writers.files(folder)
    with contextlib.suppress(OSError, ValueError):
        # By the process that took it last.
        written = durable.read(files.lock).decode().strip()
        if locked is None or not written.endswith(f" on {socket.gethostname()}"):
            return None
        return any(f.stat().st_ino in locked for f in (files.lock, files.config))
    return None
