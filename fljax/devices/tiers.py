"""Devices: tiers of clients and the budgets that a round draws for them.

As in the reference code of CoCoFL (arXiv 2203.05468) a third of the clients is strong
and has no limits, a third is medium and a third is weak; limits of time and memory are
constants of the tier, the upload limit of medium and weak clients is drawn anew in
every round. All limits are relative to training the full network on the same device.

Everything about a client follows from its index: no Python object a client, so a
million clients are one integer array.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fljax import bounds, types
from fljax.runtime import host_random, reading, streams

Limit = float | tuple[float, float]  # a constant, or uniform in [low, high)

_KINDS = ("time", "upload", "memory")  # of limits, in the order of Budgets


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A kind of device: its share of all clients and its limits of a round.

    Each limit is a constant or a (low, high) pair, from which every round draws
    uniformly for every client; relative to training everything on that device.
    """

    name: str
    share: float  # of all clients, in (0, 1]
    time: Limit
    upload: Limit
    memory: Limit
    download: float = 1.0  # bandwidth, relative
    availability: float = 1.0  # probability that such a device is there in a round
    failure: float = 0.0  # probability that it drops out of a round
    watts: float = math.nan  # while it trains; NaN: unknown

    def __post_init__(self):
        if not (self.name and self.name.isprintable()):
            raise ValueError(f"a tier needs a name in print, got {self.name!r:.60}")
        small, large = reading.AMOUNTS
        for name, least, most in (
            ("availability", 0, 1),
            ("failure", 0, 1),
            ("download", small, large),
            ("watts", 0, large),
        ):
            value = getattr(self, name)
            unknown = name == "watts" and math.isnan(value)
            if not (unknown or least <= value <= most):
                wanted = f"from {least:g} to {most:g}"
                raise ValueError(
                    f"tier {self.name!r}: expected {name} {wanted}, got {value}"
                )
        if not 0 < self.share <= 1:
            raise ValueError(
                f"tier {self.name!r}: expected a share in (0, 1], got {self.share}"
            )
        for kind, (low, high) in zip(_KINDS, limits(self), strict=True):
            if not small <= low <= high <= large:
                raise ValueError(
                    f"tier {self.name!r}: expected {kind} as {small:g} <= low <= high "
                    f"<= {large:g}, got {low} to {high}"
                )


def limits(tier: Tier) -> np.ndarray:
    """Return the limits of a tier as ranges.

    Args:
      tier: the tier.

    Returns:
      [3, 2] float64: low and high of time, upload, memory; equal for a constant.
    """
    values = (tier.time, tier.upload, tier.memory)
    pairs = [value if isinstance(value, tuple) else (value, value) for value in values]
    return np.array(pairs, np.float64)


REFERENCE_TIERS = (
    Tier(name="strong", share=0.33, time=1.0, upload=1.0, memory=1.0),
    Tier(name="medium", share=0.33, time=0.66, upload=(0.5, 1.0), memory=0.66),
    Tier(name="weak", share=0.34, time=0.33, upload=(0.5, 1.0), memory=0.33),
)


def check_tiers(tiers: Sequence[Tier]) -> None:
    """Raise a ValueError unless names differ and shares sum to 1 (within 1e-6)."""
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise ValueError(f"expected tiers of different names, got {names}")
    total = math.fsum(tier.share for tier in tiers)
    if abs(total - 1) > 1e-6:
        raise ValueError(
            f"expected shares of tiers that sum to 1, got {total:g} from "
            f"{[tier.share for tier in tiers]}"
        )


def tier_of(num_clients: int, tiers: Sequence[Tier] = REFERENCE_TIERS) -> np.ndarray:
    """Split the clients into tiers by index, as the reference does.

    Args:
      num_clients: N.
      tiers: in the order of the client indices.

    Returns:
      [N] int32: the index of each client's tier. Tier t begins at floor(N * the shares
      before it), so very few clients may leave a tier empty.

    Raises:
      ValueError: if the shares do not sum to 1 or names repeat.
    """
    check_tiers(tiers)
    shares = np.cumsum([tier.share for tier in tiers])
    # 1e-6 of a client: 0.29 * 100 is 28.999999999999996 and means 29.
    borders = np.floor(shares * num_clients + 1e-6).astype(np.int64)
    borders[-1] = num_clients
    index = np.arange(len(tiers), dtype=np.int32)
    return np.repeat(index, np.diff(borders, prepend=0))


def draw_between(
    round_key: types.Key | host_random.Key, ids: np.ndarray, ranges: np.ndarray
) -> types.Budgets:
    """Draw the limits of a cohort for one round, each between its own bounds.

    Args:
      round_key: key of the round; a client's draw depends on it and on its id only.
      ids: [K] client ids.
      ranges: [K, 3, 2] low and high of time, upload and memory.

    Returns:
      Budgets of [K] float64 arrays; a constant limit is returned to the last bit.
    """
    low, high = ranges[..., 0], ranges[..., 1]  # [K, 3]
    drawn = host_random.uniforms(round_key, streams.BUDGETS, ids, len(_KINDS))
    return types.Budgets(*(low + (high - low) * drawn).T)


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """Read tiers from the text of a flag.

    >>> parse_tiers("fast:0.5:1:1:1,slow:0.5:0.33:0.5-1:0.33")[1].upload
    (0.5, 1.0)

    Args:
      text: name:share:time:upload:memory, tiers separated by commas; a limit is a
        number or low-high.

    Returns:
      The tiers, checked.

    Raises:
      ValueError: if the text is not as described; names the item.
    """
    tiers = tuple(_parse_tier(item.strip()) for item in text.split(","))
    check_tiers(tiers)
    return tiers


def _parse_tier(item: str) -> Tier:
    """Read name:share:time:upload:memory."""
    parts = item.split(":")
    if len(parts) != 5:
        raise ValueError(
            f"expected a tier as name:share:time:upload:memory, got {item!r}"
        )
    name, share, *values = parts
    time, upload, memory = (_parse_limit(value, item) for value in values)
    return Tier(
        name=name,
        share=_parse_number(share, item),
        time=time,
        upload=upload,
        memory=memory,
    )


def _parse_limit(text: str, item: str) -> Limit:
    """Read a number or low-high; a minus after an exponent's e does not separate."""
    numbers = [_parse_number(part, item) for part in re.split(r"(?<![eE])-", text)]
    if len(numbers) > 2:
        raise ValueError(f"expected a limit as number or low-high, got {text!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _parse_number(text: str, item: str) -> float:
    try:
        return bounds.read(float, text)
    except ValueError:
        raise ValueError(
            f"expected a number or low-high in tier {item!r}, got {text!r}"
        ) from None


def load_tiers(path: str | pathlib.Path) -> tuple[Tier, ...]:
    """Read tiers from a JSON file.

    The file is a list of objects with name, share, time, upload and memory; a limit is
    a number or [low, high]. They may have numbers download, availability, failure and
    watts (see `Tier`).

    Args:
      path: the file.

    Returns:
      The tiers, checked.

    Raises:
      ValueError: if the file is missing or not as described; names the file.
    """
    with reading.one_line(str(path)):
        content = reading.read_json(path)
        tiers = tuple(_tier_of_json(entry) for entry in _entries(content))
        check_tiers(tiers)
    return tiers


def _entries(content: Any) -> list[Any]:
    """Raise unless the content is a filled list."""
    if not isinstance(content, list) or not content:
        raise ValueError(f"expected a list of tiers, got {type(content).__name__}")
    return content


def _tier_of_json(entry: Any) -> Tier:
    """Build a tier from an object of the five keys and what it has of the others."""
    keys = ("name", "share", *_KINDS)
    others = ("download", "availability", "failure", "watts")
    if not isinstance(entry, dict) or not (
        set(keys) <= entry.keys() <= {*keys, *others}
    ):
        raise ValueError(
            f"expected a tier with the keys {list(keys)}, and any of {list(others)}, "
            f"got {bounds.shown(entry)}"
        )
    more = {name: entry[name] for name in others if name in entry}
    if not all(map(reading.is_number, more.values())):
        raise ValueError(
            f"expected numbers for {list(more)}, got {bounds.shown(entry)}"
        )
    if not isinstance(entry["name"], str) or not reading.is_number(entry["share"]):
        raise ValueError(
            f"expected a text as name, a number as share, got {bounds.shown(entry)}"
        )
    time, upload, memory = (_limit_of_json(entry[kind]) for kind in _KINDS)
    return Tier(
        name=entry["name"],
        share=entry["share"],
        time=time,
        upload=upload,
        memory=memory,
        **more,
    )


def _limit_of_json(value: Any) -> Limit:
    """Read a number or [low, high]."""
    if reading.is_number(value):
        return float(value)
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(map(reading.is_number, value))
    ):
        return (float(value[0]), float(value[1]))
    raise ValueError(
        f"expected a limit as number or [low, high], got {bounds.shown(value)}"
    )
