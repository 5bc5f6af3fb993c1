"""The virtual clock: what time costs, and what faults cost of it.

A client downloads the network, trains its window and uploads it; each takes what its
profile and plan say. Whose update a server step waits for is in `arrivals`.

Legend: K clients of a draw, A arrivals of a round.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fljax import bounds, types
from fljax.devices import failures, fleet
from fljax.plans import costs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What time costs, and how long the server waits."""

    step_seconds: float = bounds.field(
        None,
        "Of a step of the full network at speed 1; not given: the fleet's, the cost "
        "table's, or counted.",
        kind=float,
        most=1e9,
    )
    upload_rate: float = bounds.field(
        None,
        "Bytes a second at bandwidth 1, up to inf; not given: the fleet's, or 1e6.",
        kind=float,
        least=1e-3,
        most=math.inf,
    )
    download_rate: float = bounds.field(
        None,
        "Bytes a second at bandwidth 1, up to inf; not given: the fleet's, or 4e6.",
        kind=float,
        least=1e-3,
        most=math.inf,
    )
    round_trip: float = bounds.field(
        0.0,
        "Seconds of a message there and back: once for each client of a round, with "
        "--secure_sum four times.",
        most=1e9,
    )
    deadline: float = bounds.field(
        0.0,
        "After which a round ends, as a multiple of the time in which the reference "
        "device with the mean number of examples downloads, trains and uploads all; "
        "0: never.",
        off=True,
        least=1e-6,
        most=1e6,
    )
    over_selection: float = bounds.field(
        1.0, "So many times the wanted clients are chosen.", least=1, most=1000
    )
    late: str = bounds.field(
        "drop",
        "Drop late updates, or carry them over into the round that they arrive in.",
        choices=("drop", "carry"),
    )
    buffer: int = bounds.field(
        0, "Arrivals that the server steps after; 0: synchronous rounds.", least=0
    )
    max_staleness: int = bounds.field(
        10,
        "Server steps after which an update is thrown away; so many networks are kept.",
        most=1000,
    )
    staleness_power: float = bounds.field(
        0.5, "An update t steps old weighs (1 + t) ** -power.", most=100
    )

    def __post_init__(self):
        bounds.check(self, "clock.{}".format)
        waits = self.deadline or self.over_selection > 1
        if self.late == "carry" and self.max_staleness < 1:
            raise ValueError(
                "clock.max_staleness: expected 1 or more beside late=carry, got 0: an "
                "update that is carried over is a step old"
            )
        if self.late == "carry" and not waits:
            raise ValueError(
                "clock.late=carry: expected a deadline or over_selection beside it: "
                "without them nobody is late"
            )
        if self.buffer and waits:
            raise ValueError(
                "clock.buffer: expected neither deadline nor over_selection beside it: "
                "its rounds end after so many arrivals"
            )

    @property
    def carries(self) -> bool:
        """Whether updates may arrive in a later round than they began in."""
        return bool(self.buffer) or self.late == "carry"


# What the reference device multiplies and adds in a second where nobody says: between
# the two machines of the paper's tables (30e9 and 9e9 on MobileNetV2, ResNet18).
OPERATIONS_PER_SECOND = 20e9


def resolve(
    clock: Clock,
    reference: fleet.Reference,
    table: costs.CostTable,
    counts: Sequence[types.BlockCounts],
    batch: int,
) -> Clock:
    """Fills in what the clock leaves open.

    Args:
      clock: None is open.
      reference: the fleet's.
      table: of costs.
      counts: of the blocks, for one example.
      batch: examples of a step.

    Returns:
      The clock without None among its rates.
    """
    macs = sum(count.macs + count.depthwise_macs for count in counts)
    counted = 6 * macs * batch / OPERATIONS_PER_SECOND
    tabled = (table.full_step_seconds or 0.0) * batch / table.batch
    measured = reference.step_seconds or tabled
    return dataclasses.replace(
        clock,
        step_seconds=_first(clock.step_seconds, measured or counted),
        upload_rate=_first(clock.upload_rate, reference.upload_rate, 1e6),
        download_rate=_first(clock.download_rate, reference.download_rate, 4e6),
    )


def _first(*values: float | None) -> float:
    """Gives the first that is known."""
    return next(value for value in values if value is not None)


class Job(NamedTuple):
    """What K clients are to do in a round.

    Attributes:
      received: [K] bytes that they download, or a number for all.
      steps: [K] local steps.
      shares: [K] time of a step, as a share of the full one at speed 1.
      sent: [K] bytes that they upload.
      trips: round trips, those of the download and those of the upload.
    """

    received: np.ndarray | int
    steps: np.ndarray
    shares: np.ndarray
    sent: np.ndarray
    trips: tuple[int, int] = (1, 0)


def durations(
    clock: Clock, job: Job, download: np.ndarray, upload: np.ndarray
) -> np.ndarray:
    """Computes how long clients take if nothing goes wrong.

    Args:
      clock: resolved.
      job: what they are to do.
      download: [K] relative download bandwidths.
      upload: [K] relative upload bandwidths.

    Returns:
      [K, 3] seconds of download, training and upload.
    """
    before, after = (clock.round_trip * trips for trips in job.trips)
    return np.stack(
        [
            job.received / (clock.download_rate * download) + before,
            job.steps * clock.step_seconds * job.shares,
            job.sent / (clock.upload_rate * upload) + after,
        ],
        axis=1,
    )


def spoil(
    seconds: np.ndarray, faults: np.ndarray, part: np.ndarray, delay: float
) -> np.ndarray:
    """Applies faults to durations.

    Args:
      seconds: [K, 3] of `durations`.
      faults: [K] of failures.Fault.
      part: [K] in (0, 1] of `failures.draw`.
      delay: mean seconds of a delay; they are exponential.

    Returns:
      [K, 3]: who drops out stops there, half an upload takes half its time, a delay
      counts as upload.
    """
    download, train, upload = seconds.T
    never = np.isin(
        faults, (failures.Fault.DROPPED_BEFORE, failures.Fault.OUT_OF_MEMORY)
    )
    train = np.where(never, 0, train)
    train = np.where(faults == failures.Fault.DROPPED_DURING, part * train, train)
    gone = np.isin(faults, (*failures.DROPPED, failures.Fault.OUT_OF_MEMORY))
    upload = np.where(gone, 0, upload)
    upload = np.where(faults == failures.Fault.TRUNCATED, upload / 2, upload)
    late = np.where(faults == failures.Fault.DELAYED, -np.log(part) * delay, 0)
    return np.stack([download, train, upload + late], axis=1)


def leave(
    seconds: np.ndarray, faults: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lets devices drop out that leave before they are ready.

    Args:
      seconds: [K, 3] of download, training and upload.
      faults: [K] of failures.Fault.
      left: [K] seconds until they leave.

    Returns:
      Both, of those who leave cut there and dropped before, during or after training.
    """
    until = np.cumsum(seconds, axis=1)
    gone = until[:, 2] > left
    done = np.sum(until[:, :2] <= left[:, None], axis=1)  # download, training
    dropped = (failures.Fault.DROPPED_BEFORE + done).astype(faults.dtype)
    cut = np.diff(np.minimum(until, left[:, None]), axis=1, prepend=0.0)
    return np.where(gone[:, None], cut, seconds), np.where(gone, dropped, faults)


def weight(clock: Clock, round_index: int, versions) -> np.ndarray:
    """Gives the factor, float32, of updates that began at versions [...]."""
    age = round_index - np.asarray(versions)
    return ((1.0 + age) ** -clock.staleness_power).astype(np.float32)
