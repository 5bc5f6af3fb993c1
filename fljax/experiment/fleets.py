"""The devices of a run: what --fleet and --tiers say, as a fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import Any

import numpy as np

from fljax import devices, notation
from fljax.devices import classes, fleet, fleet_sources, phones, trace
from fljax.experiment import config as configs


def make(config: configs.Config, num_clients: int) -> fleet.Fleet:
    """Makes the devices of --fleet and how they change.

    Raises:
      ValueError: one line that names the flag.
    """
    wanted, path = trace.split(str(config.fleet))
    if (_listed(config) or config.tiers_file) and wanted != "tiers":
        raise ValueError(
            f"--tiers and --tiers_file: expected with --fleet=tiers, got '{wanted}'"
        )
    with naming(config):
        made = _drawn(config, wanted, num_clients)
    if path is not None:
        with configs.naming("fleet"):
            made = made._replace(trace=trace.load(path))
    made = made._replace(changes=config.changes)
    if not isinstance(config.tiers, classes.Auto):
        return made
    return made._replace(classes=_classes(config.tiers, made, config.seed))


def _listed(config: configs.Config) -> tuple[devices.Tier, ...]:
    """Gives the tiers of --tiers, if it lists some."""
    return config.tiers if isinstance(config.tiers, tuple) else ()


def _classes(how: classes.Auto, made: fleet.Fleet, seed: int) -> classes.Auto:
    """Counts the classes at the first look, where --tiers=auto leaves that open.

    Raises:
      ValueError: there are more of them than devices.
    """
    size = len(made.row)
    if how.number > size:
        raise ValueError(
            f"--tiers: expected at most {size} classes, one a device, got {how.number}"
        )
    if how.number:
        return how
    measured = fleet.believed(made, seed, 0, np.arange(size))
    return dataclasses.replace(how, number=classes.number(measured, how.by))


def note(made: fleet.Fleet, seed: int) -> str | None:
    """Says how the server sorts the devices at the first look; None: it does not."""
    if made.classes is None:
        return None
    labels = fleet.sorted_at(made, seed, 0)
    sizes = np.bincount(labels, minlength=made.classes.number)
    alike = classes.agreement(labels, made.tier)
    return (
        f"the server sorts devices into {len(sizes)} class{'es' * (len(sizes) > 1)} of "
        f"{', '.join(map(str, sizes))} by {made.classes.by}; their agreement with "
        f"{', '.join(made.names)} is {alike:.2f} (adjusted Rand index)"
    )


def _drawn(config: configs.Config, wanted: str, num_clients: int) -> fleet.Fleet:
    """Draws or reads the devices.

    Raises:
      ValueError: one line without the flag.
    """
    kind, _, path = wanted.partition(":")
    if wanted == "tiers":
        return fleet.of_tiers(num_clients, tiers(config))
    if kind == "lognormal":
        spread = fleet_sources.read_lognormal(wanted)
        return fleet_sources.lognormal(num_clients, config.seed, spread)
    if kind == "phones":
        table = {"phones": phones.phones}
        return notation.make(wanted, table, num_clients, config.seed)
    if kind == "file" and path:
        return fleet_sources.load(path, num_clients)
    raise ValueError(
        "expected tiers, phones:BANDWIDTH, lognormal:COMPUTE:BANDWIDTH:MEMORY or "
        f"file:PATH, with +trace:PATH behind it or not, got {wanted!r}"
    )


def tiers(config: configs.Config) -> tuple[devices.Tier, ...]:
    """Gives the tiers of --tiers or --tiers_file; the paper's where none are given.

    Raises:
      ValueError: one line that names the flag.
    """
    with naming(config):
        if config.tiers_file:
            return devices.load_tiers(config.tiers_file)
    return _listed(config) or devices.REFERENCE_TIERS


def naming(config: configs.Config) -> contextlib.AbstractContextManager[None]:
    """Puts the flag that the devices are of before the library's errors."""
    if not _of_tiers(config):
        return configs.naming("fleet")
    return configs.naming("tiers_file" if config.tiers_file else "tiers")


def _of_tiers(config: configs.Config) -> bool:
    return trace.split(str(config.fleet))[0] == "tiers"


def described(config: configs.Config, made: fleet.Fleet) -> list[Any]:
    """Gives the tiers as plain data, for `config.json`; their names of other fleets."""
    if not _of_tiers(config):
        return list(made.names)
    return [dataclasses.asdict(tier) for tier in tiers(config)]


def facts(made: fleet.Fleet) -> dict[str, str]:
    """Says how the server sorts the devices, if it does, for `config.json`."""
    return {} if made.classes is None else {"classes": str(made.classes)}


def digest(made: fleet.Fleet) -> str:
    """Hashes the devices' profiles, wherever they come from."""
    sha = hashlib.sha256()
    for array in (*made.profile, made.row, made.tier_of_row, *(made.trace or ())):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
