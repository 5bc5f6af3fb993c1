"""The books of a round: bytes, seconds on the virtual clock, joules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fljax.devices import arrivals, failures, fleet
from fljax.plans import catalogue


class Books(NamedTuple):
    """What a round costs.

    Attributes:
      upload_bytes: sent by all clients.
      download_bytes: sent to all clients.
      compute_share: mean time of the cohort, as a share of full training.
      seconds: of the round on the virtual clock.
      clock_seconds: since the start.
      joules: client number -> energy of its training; None: no device's power is
        known.
    """

    upload_bytes: int
    download_bytes: int
    compute_share: float
    seconds: float = 0.0
    clock_seconds: float = 0.0
    joules: dict[int, float] | None = None


def of_round(
    outcome: arrivals.Outcome,
    before: arrivals.Timeline,
    plans: catalogue.Catalogue,
    rows: np.ndarray,
    devices: fleet.Fleet,
) -> Books:
    """Counts what a round costs, but for what clients download.

    Args:
      outcome: of the clock.
      before: of the clock, before the round.
      plans: of the run.
      rows: of the plans of those whose round is over.
      devices: of all clients.

    Returns:
      The books.
    """
    done, shares, spent = outcome.finished, plans.time[rows], None
    if np.isfinite(devices.profile.watts).any():
        watts = devices.profile.watts[devices.row[done.ids]]
        spent = joules(done, outcome.spent, watts)
    return Books(
        sent_bytes(done, outcome.spent, plans.sent[rows]),
        0,
        float(shares.mean()) if len(shares) else 0.0,
        float(outcome.timeline.now - before.now),
        float(outcome.timeline.now),
        spent,
    )


def sent_bytes(work: arrivals.Work, spent: np.ndarray, by_plan: Sequence[int]) -> int:
    """Counts what clients sent: nothing, half, once or twice, as their fault says.

    Who was sent home has sent the share of it that the time sufficed for.

    Args:
      work: whose round is over.
      spent: seconds of the same, as `Outcome.spent`.
      by_plan: bytes of each one's plan.
    """
    times = np.ones(len(work.ids))
    gone = (*failures.DROPPED, failures.Fault.OUT_OF_MEMORY)
    times[np.isin(work.faults, gone)] = 0
    times[work.faults == failures.Fault.TRUNCATED] = 0.5
    times[work.faults == failures.Fault.DUPLICATED] = 2
    wanted = work.seconds[:, 2]
    times *= np.divide(spent[:, 2], wanted, np.ones(len(wanted)), where=wanted > 0)
    return int(np.dot(times, by_plan)) if len(by_plan) else 0


def joules(
    work: arrivals.Work, spent: np.ndarray, watts: np.ndarray
) -> dict[int, float]:
    """Computes the energy that each client spent on training.

    Args:
      work: whose round is over.
      spent: seconds of the same, as `Outcome.spent`.
      watts: of the same clients; NaN: unknown, left out.

    Returns:
      Client number -> joules.
    """
    known = np.isfinite(watts)
    energy = spent[known, 1] * watts[known]
    return dict(zip(work.ids[known].tolist(), energy.tolist(), strict=True))
