"""What goes wrong between a client's choice and its update: faults, drawn by key.

A fault is drawn for each client of a round from (seed, round, client) alone. What the
server does about it is in `clock` (who counts as arrived) and `cohort` (updates that
are refused). By chance alone: what a client does on purpose is in `updates.attacks`,
and who does in `hostile`.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from fljax import bounds
from fljax.runtime import host_random, streams


class Fault(enum.IntEnum):
    """What happens to one client in one round."""

    NONE = 0
    DROPPED_BEFORE = 1  # gone before it trained: only the download was done
    DROPPED_DURING = 2  # gone in the middle of training
    DROPPED_AFTER = 3  # gone after training, nothing sent
    LOST = 4  # the upload never arrives
    TRUNCATED = 5  # half of it arrives; its checksum fails and it is refused
    DUPLICATED = 6  # arrives twice; counted once
    DELAYED = 7  # arrives later
    NONFINITE = 8  # arrives with values that are not finite
    HUGE = 9  # arrives a million times too large
    OUT_OF_MEMORY = 10  # the plan needs more than the device has


DROPPED = (Fault.DROPPED_BEFORE, Fault.DROPPED_DURING, Fault.DROPPED_AFTER)
# Of these nothing ever reaches the state.
FATAL = (*DROPPED, Fault.LOST, Fault.TRUNCATED, Fault.OUT_OF_MEMORY)
# What an update is multiplied by.
TAMPERED = {Fault.NONFINITE: np.nan, Fault.HUGE: 1e6}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Probabilities of the faults, for each client and round; at most one happens."""

    drop: float = bounds.field(
        0.0, "A client is gone: a third each before, during and after training.", most=1
    )
    lost: float = bounds.field(0.0, "Its update never arrives.", most=1)
    truncated: float = bounds.field(0.0, "Half of it arrives, and is refused.", most=1)
    duplicated: float = bounds.field(0.0, "It arrives twice; counted once.", most=1)
    delayed: float = bounds.field(0.0, "It arrives later.", most=1)
    nonfinite: float = bounds.field(
        0.0, "It arrives with values that are not finite.", most=1
    )
    huge: float = bounds.field(0.0, "It arrives a million times too large.", most=1)
    delay: float = bounds.field(
        1.0, "Mean of a delay, in full rounds of the reference device.", most=1e6
    )

    def __post_init__(self):
        bounds.check(self, "failures.{}".format)
        if self.delay != 1.0 and not self.delayed:
            raise ValueError(
                "failures.delay: expected delayed above 0 beside it, how long that is"
            )
        if self.total > 1:
            raise ValueError(
                f"failures: expected rates that sum to 1 at most, got {self.total}"
            )

    @property
    def total(self) -> float:
        """The probability that anything goes wrong, failures of devices apart."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "delay"]
        return sum(getattr(self, name) for name in names)


def draw(
    rates: Rates, failure: np.ndarray, round_key, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws what happens to the clients of a round.

    Args:
      rates: of all devices.
      failure: [K] each device's own probability to drop out, on top of `rates.drop`.
      round_key: of the round; a client's draw depends on it and its number only.
      ids: [K] client numbers.

    Returns:
      [K] int8 faults; [K] float64 uniform in (0, 1]: how far a device got that drops
      out in the middle, and what a delay is drawn from.
    """
    if not rates.total and not np.any(failure):
        return np.zeros(len(ids), np.int8), np.ones(len(ids))
    kind, part = host_random.uniforms(round_key, streams.FAULT, ids, 2).T
    third = (rates.drop + (1 - rates.drop) * failure)[:, None] / 3
    chances = np.concatenate(
        [
            np.repeat(third, 3, axis=1),
            np.tile(
                [
                    rates.lost,
                    rates.truncated,
                    rates.duplicated,
                    rates.delayed,
                    rates.nonfinite,
                    rates.huge,
                ],
                (len(ids), 1),
            ),
        ],
        axis=1,
    )
    # Faults are numbered from 1 in the order of the columns; past the last: none.
    number = 1 + np.sum(kind[:, None] >= np.cumsum(chances, axis=1), axis=1)
    return np.where(number > chances.shape[1], 0, number).astype(np.int8), 1 - part


def tampering(faults: np.ndarray) -> np.ndarray:
    """Gives the factor [K] float32 that each client's update is multiplied by."""
    factors = np.ones(len(faults), np.float32)
    for fault, factor in TAMPERED.items():
        factors[faults == fault] = factor
    return factors


def events(ids: np.ndarray, faults: np.ndarray) -> dict[str, list[int]]:
    """Names the clients of each fault that happened, for the record of a round."""
    return {
        fault.name.lower(): sorted(ids[faults == fault].tolist())
        for fault in Fault
        if fault and np.any(faults == fault)
    }
