"""What settings leave open, or name a file for, by which run folders differ."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from typing import Any

from fljax import types
from fljax.data import load
from fljax.engine import federation
from fljax.experiment import config as configs
from fljax.experiment import fleets

OWN = "given in Python"  # what config.json says of data and networks that have no name


def own(config: configs.Config, data: types.Dataset | None) -> dict[str, str]:
    """Says what config.json does of data of one's own.

    Raises:
      ValueError: settings ask for what only a loader does.
    """
    if data is None:
        return {}
    plain = configs.Config()
    of_loaders = ("test_share", "image_size", "image_mode", "text.max_tokens",
                  "text.vocabulary_size")  # fmt: skip
    for name in of_loaders:
        given, default = configs.get(config, name), configs.get(plain, name)
        if given != default:
            raise ValueError(
                f"--{name}: expected {default!r} for data that are {OWN}, which are "
                f"taken as they are, got {given!r}"
            )
    given = getattr(data, "task", None)
    task = {} if given is None else {"task": f"{given!r} ({OWN})"}
    return {"dataset": OWN, **task}


def of(
    config: configs.Config, fed: federation.Federation, data: types.Dataset
) -> dict[str, Any]:
    """Tells what was built where settings are empty or name a file."""
    return (
        {
            "num_clients": len(fed.population.shards.counts),
            "mean": fed.population.data.mean,
            "std": fed.population.data.std,
            "tiers": fleets.described(config, fed.population.fleet),
            "fleet": str(config.fleet),
            "fleet_sha256": fleets.digest(fed.population.fleet),
            "clock": dataclasses.asdict(federation.clock(fed)),
            "dataset_sha256": load.digest(data),
            "cost_table": fed.model.table.source,
            "cost_table_sha256": _sha256(config.cost_table),
            "client_width": fed.layout.width,
            # A network may be one's own, whose name says nothing.
            "blocks_sha256": hashlib.sha256(
                _described(fed.model.net.blocks)
            ).hexdigest(),
        }
        | _own_prices(config)
        | fleets.facts(fed.population.fleet)
    )


def _described(blocks: tuple) -> bytes:
    """Gives the repr of blocks without the addresses of what has no name."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(blocks)).encode()


def _own_prices(config: configs.Config) -> dict[str, str | None]:
    """Hashes the prices of a device class that lies in a file."""
    if not os.path.isfile(config.device_class):
        return {}
    return {"device_class_sha256": _sha256(config.device_class)}


def _sha256(path: str) -> str | None:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if path else None
