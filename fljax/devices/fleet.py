"""The fleet: what every device can do, how that changes, and what the server knows.

A profile says what a device can do relative to the reference device (1.0), which can
just train, send and hold the whole network within a round; a round's budgets are what
the server believes of the cohort's profiles. Everything is drawn from (seed, round,
client) alone, so a round can be drawn again at any time, in any order.

Legend: R rows of profiles, N clients, K of a cohort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fljax import bounds, devices, types
from fljax.devices import classes as sorting
from fljax.devices import trace as traces
from fljax.runtime import host_random, streams

MOST_DEVIATION = 10.0  # of a logarithm: a factor of e^10 between two devices


class DeviceProfile(NamedTuple):
    """What devices can do; one row for each kind of device, or for each device.

    Attributes:
      limits: [R, 3, 2] float64, low and high of relative compute speed, upload
        bandwidth and memory: a round draws uniformly between them (`devices.Limit`).
      download: [R] download bandwidth, relative.
      availability: [R] probability that the device is there in a round.
      failure: [R] probability that it drops out of a round it was chosen for.
      watts: [R] power while it trains; NaN: unknown.
    """

    limits: np.ndarray
    download: np.ndarray
    availability: np.ndarray
    failure: np.ndarray
    watts: np.ndarray


class Reference(NamedTuple):
    """What the reference device can do, for which 1.0 stands; None: not known.

    Attributes:
      step_seconds: a training step of the full network.
      upload_rate: bytes a second.
      download_rate: bytes a second.
    """

    step_seconds: float | None = None
    upload_rate: float | None = None
    download_rate: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How devices change from round to round, and when the server looks again.

    The default changes nothing: every round the server knows what is true.
    """

    drift: float = bounds.field(
        0.0,
        "Standard deviation of a device's log speed over time.",
        most=MOST_DEVIATION,
    )
    drift_rounds: float = bounds.field(
        50.0, "Server steps after which its speed is another one.", least=1
    )
    bandwidth: float = bounds.field(
        0.0,
        "Standard deviation of log bandwidth, anew every server step.",
        most=MOST_DEVIATION,
    )
    diurnal: float = bounds.field(
        0.0, "Share of the availability that comes and goes with the day.", most=1
    )
    day_rounds: float = bounds.field(
        100.0, "A day, in full rounds of the reference device.", least=2
    )
    refresh: int = bounds.field(
        1, "Server steps between two looks at the devices.", least=1
    )
    refresh_seconds: float = bounds.field(
        0.0, "That a look takes before the steps that have one.", most=1e9
    )

    def __post_init__(self):
        bounds.check(self, "changes.{}".format)
        for name, of in (("drift_rounds", "drift"), ("day_rounds", "diurnal")):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and not getattr(self, of):
                raise ValueError(
                    f"changes.{name}: expected {of} above 0 beside it, how long that "
                    f"takes"
                )


class Fleet(NamedTuple):
    """The devices of N clients.

    Attributes:
      profile: R rows.
      row: [N] int32, the row of every client.
      names: of the T tiers, which results are reported by.
      tier_of_row: [R] int32, the tier of every row.
      changes: how they change.
      reference: what 1.0 stands for.
      tiered: whether a row is a tier, not a device.
      trace: when devices are there, beside their availability; None: always.
      classes: how the server sorts the devices, which then stands for the tiers in
        all that it does; None: it knows the tiers.
    """

    profile: DeviceProfile
    row: np.ndarray
    names: tuple[str, ...]
    tier_of_row: np.ndarray
    changes: Changes = Changes()
    reference: Reference = Reference()
    tiered: bool = False
    trace: traces.Trace | None = None
    classes: sorting.Auto | None = None

    @property
    def tier(self) -> np.ndarray:
        """The tier [N] int32 of every client."""
        return self.tier_of_row[self.row]

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names of the classes or tiers that the server sees."""
        return self.names if self.classes is None else self.classes.names


def by_tier(
    fleet: Fleet, ids: np.ndarray, classes: np.ndarray | None = None
) -> dict[str, int]:
    """Counts clients by the names of their tiers; a tier without any is left out.

    Args:
      fleet: the devices.
      ids: of the clients.
      classes: [N] of all clients as the server sorts them; None: their tiers.
    """
    tier, names = fleet.tier_of_row[fleet.row[ids]], fleet.known_as
    if classes is not None:
        tier = classes[ids]
    counts = np.bincount(tier, minlength=len(names))
    return {n: int(c) for n, c in zip(names, counts, strict=True) if c}


def of_tiers(
    num_clients: int, tiers: Sequence[devices.Tier] = devices.REFERENCE_TIERS
) -> Fleet:
    """Makes a fleet of tiers, split by client number as `devices.tier_of` does.

    Args:
      num_clients: N.
      tiers: T of them.

    Returns:
      A fleet of T rows.
    """
    others = np.array([(t.download, t.availability, t.failure, t.watts) for t in tiers])
    limits = np.stack([devices.limits(tier) for tier in tiers])
    profile = DeviceProfile(limits, *others.astype(np.float64).T)
    return Fleet(
        profile,
        devices.tier_of(num_clients, tiers),
        tuple(tier.name for tier in tiers),
        np.arange(len(tiers), dtype=np.int32),
        tiered=True,
    )


def one_device() -> Fleet:
    """Makes the fleet of centralized training: one device without limits."""
    tier = devices.Tier(name="server", share=1.0, time=1.0, upload=1.0, memory=1.0)
    return of_tiers(1, (tier,))


def lowest(fleet: Fleet) -> types.Budgets:
    """Gives the smallest limits of each kind that a profile may draw, each a scalar."""
    return types.Budgets(*fleet.profile.limits[..., 0].min(axis=0))


def typical(fleet: Fleet, seed: int, size: int = 512) -> types.Budgets:
    """Draws budgets [size] of clients in some rounds: what policies plan with."""
    size = min(size, 8 * len(fleet.row))
    ids = streams.generator(seed, streams.TYPICAL).integers(len(fleet.row), size=size)
    parts = [
        believed(fleet, seed, r, part)
        for r, part in enumerate(np.array_split(ids, 8))
        if len(part)
    ]
    return types.Budgets(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))


def _drift(fleet: Fleet, seed: int, round_index: int, ids: np.ndarray) -> np.ndarray:
    """Gives the factor [K] of the devices' speed: smooth in time, e^(drift * normal).

    Between two knots, `drift_rounds` apart, the normals of both are mixed so that the
    mix is standard normal as well (weights of a circle).
    """
    changes = fleet.changes
    if not changes.drift:
        return np.ones(len(ids))
    knot, part = divmod(round_index / changes.drift_rounds, 1)
    key = host_random.key(seed)
    before, after = (
        host_random.normals(host_random.fold_in(key, int(knot) + i), streams.DRIFT, ids)
        for i in (0, 1)
    )
    angle = part * np.pi / 2
    return np.exp(changes.drift * (np.cos(angle) * before + np.sin(angle) * after))


def truth(fleet: Fleet, seed: int, round_index: int, ids: np.ndarray) -> types.Budgets:
    """Draws what the devices of a cohort can really do in a round.

    Args:
      fleet: the devices.
      seed: of the experiment.
      round_index: of the round.
      ids: [K] client numbers.

    Returns:
      Relative compute speed, upload bandwidth and memory, each [K] float64.
    """
    key = host_random.of_round(seed, round_index)
    ranges = fleet.profile.limits[fleet.row[np.asarray(ids)]]
    drawn = devices.draw_between(key, ids, ranges)
    time = drawn.time * _drift(fleet, seed, round_index, ids)
    upload = drawn.upload * bandwidth(fleet, seed, round_index, ids)
    return types.Budgets(time, upload, drawn.memory)


def bandwidth(fleet: Fleet, seed: int, round_index: int, ids: np.ndarray) -> np.ndarray:
    """Draws the factor [K] of the devices' bandwidth, both ways, in a round."""
    if not fleet.changes.bandwidth:
        return np.ones(len(ids))
    key = host_random.of_round(seed, round_index)
    noise = host_random.normals(key, streams.BANDWIDTH, ids)
    return np.exp(fleet.changes.bandwidth * noise)


def looked_at(fleet: Fleet, round_index: int) -> int:
    """Gives the round in which the server last looked at the devices."""
    return round_index - round_index % fleet.changes.refresh


def believed(
    fleet: Fleet, seed: int, round_index: int, ids: np.ndarray
) -> types.Budgets:
    """Gives what the server believes of the devices: the truth of its last look."""
    return truth(fleet, seed, looked_at(fleet, round_index), ids)


def sorted_at(fleet: Fleet, seed: int, round_index: int) -> np.ndarray:
    """Gives the class [N] int32 of every client after the last look; else its tier."""
    if fleet.classes is None:
        return fleet.tier
    measured = believed(fleet, seed, round_index, np.arange(len(fleet.row)))
    return sorting.sort(measured, fleet.classes)


def available(
    fleet: Fleet,
    seed: int,
    round_index: int,
    moment: float,
    candidates: np.ndarray,
    seconds: float = 0.0,
) -> np.ndarray:
    """Finds the clients that are there in a round.

    With `diurnal` d the availability a becomes a * (1 + d * sin(hour)), at most 1;
    every device has a time zone of its own. A device with a trace is there if both say
    so.

    Args:
      fleet: the devices.
      seed: of the experiment.
      round_index: of the round.
      moment: time on the clock, in full rounds of the reference device.
      candidates: client numbers that may take part.
      seconds: time on the clock, for traces.

    Returns:
      Those of the candidates that are there, in their order.
    """
    changes = fleet.changes
    if fleet.trace is not None:
        stays = traces.left(fleet.trace, seconds, candidates)
        candidates = candidates[stays > 0]
    chance = fleet.profile.availability[fleet.row[candidates]]
    if np.all(chance >= 1) and not changes.diurnal:
        return candidates
    if changes.diurnal:
        phases = streams.generator(seed, streams.TIME_ZONES).random(len(fleet.row))
        hour = moment / changes.day_rounds + phases[candidates]
        chance = chance * (1 + changes.diurnal * np.sin(2 * np.pi * hour))
    generator = streams.generator(seed, streams.AVAILABILITY, round_index)
    draws = generator.random(len(fleet.row))
    return candidates[draws[candidates] < chance]
