"""Settings as the flags that make them: what a report repeats and a sweep hands on."""

from __future__ import annotations

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fljax import devices
from fljax.experiment import config as configs


def lines(settings: configs.Config) -> list[str]:
    """Gives a flag for each field that is not as it is by itself: `--lr=0.2`.

    Args:
      settings: of a run.

    Returns:
      The flags, in the order of the fields.

    Raises:
      ValueError: a setting cannot be said in a flag: tiers with more than their
        budgets, which a file holds.
    """
    usual = configs.Config()
    values = {name: configs.get(settings, name) for name in configs.fields()}
    return [
        f"--{name}={_text(name, value)}"
        for name, value in values.items()
        if value != configs.get(usual, name)
    ]


def command(module: str, flags: Sequence[str]) -> str:
    """Writes a command line, each flag as a shell reads it."""
    return " ".join(["python", "-m", module, *map(shlex.quote, flags)])


def ran(argv: Sequence[str]) -> str:
    """Writes down the command of this process, whose arguments are given."""
    script = pathlib.Path(argv[0])
    if script.suffix == ".py":  # what `python -m` makes of a module
        return command(f"experiments.{script.stem}", list(argv[1:]))
    return " ".join(map(shlex.quote, argv))


def of_folder(settings: configs.Config, folder: str | os.PathLike[str]) -> str:
    """Writes the command that makes a run folder.

    Raises:
      ValueError: as of `lines`.
    """
    return command("experiments.train", [*lines(settings), f"--workdir={folder}"])


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_text(name, item) for item in value)
    if isinstance(value, devices.Tier):
        return _tier(value)
    return str(value)


def _tier(tier: devices.Tier) -> str:
    limits = (tier.time, tier.upload, tier.memory)
    usual = devices.Tier(name=tier.name, share=tier.share, **_named(limits))
    if repr(tier) != repr(usual):  # watts are NaN where they are unknown
        raise ValueError(
            f"--tiers: expected tiers of budgets alone, got one with more, "
            f"{tier.name!r}; write them into a file for --tiers_file"
        )
    texts = ("-".join(map(str, np.atleast_1d(limit))) for limit in limits)
    return ":".join((tier.name, str(tier.share), *texts))


def _named(limits: Sequence[Any]) -> Mapping[str, Any]:
    return dict(zip(("time", "upload", "memory"), limits, strict=True))
