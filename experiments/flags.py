"""Flags of a configuration: one for each field, `--lr=.2`, `--clock.deadline=.9`.

Strings are read here and nowhere else: a `config.Config` holds numbers, tuples and
objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from absl import flags

from experiments import define
from fljax import bounds, devices, tasks
from fljax.devices import classes, fleet_sources, trace
from fljax.experiment import config as configs


def define_flags(skip: Iterable[str] = ()) -> None:
    """Defines a flag for every field but those whose flags are named in `skip`."""
    skip = set(skip)
    wanted = {name: f for name, f in configs.fields().items() if name not in skip}
    for name, field in wanted.items():
        define.of_field(name, field, _READ.get(name))
    for name, field in configs.sections().items():
        if any(flag.startswith(f"{name}.") for flag in wanted):
            _define_section(name, field.metadata["help"])


def from_flags(values: flags.FlagValues, **fixed: Any) -> configs.Config:
    """Reads a configuration from parsed flags, `fixed` fields given here.

    Raises:
      ValueError: as of `config.check`.
    """
    names = configs.fields().keys() - fixed.keys()
    given = {name: values[name].value for name in names}
    config = configs.replace(configs.Config(), given | fixed)
    configs.check(config)
    return config


def target() -> flags.FlagHolder:
    """Defines --target_accuracy, of commands that sum runs up."""
    return define.number(
        "target_accuracy",
        0.0,
        "Also say after how many rounds and seconds on the clock it was reached; 0: "
        "not. Of other tasks what they go by: token_accuracy, rmse, macro_f1.",
        least=0,
        most=1e38,
    )


def against() -> flags.FlagHolder:
    """Defines --against, of commands that sum runs up."""
    return flags.DEFINE_string(
        "against",
        "",
        "Also say how far all others are ahead of this one, as the mean difference of "
        "runs of the same seed with its 95 % interval; empty: not.",
        allow_override=True,
    )


def together() -> flags.FlagHolder:
    """Defines --together, of commands that run several seeds."""
    return define.boolean(
        "together",
        False,
        "The seeds of a run train side by side in the same programs, which fills an "
        "accelerator; each has a run folder of its own as ever.",
    )


def reached(target: float, config: configs.Config) -> tasks.Measure:
    """Gives what a run goes by, of which --target_accuracy is a value.

    Raises:
      ValueError: it can be none.
    """
    measure = tasks.named(config.task).measure
    if measure.share and target > 1:
        raise ValueError(
            f"--target_accuracy: expected a number from 0 to 1, as {measure.key} is, "
            f"got {target:g}"
        )
    return measure


# What others call these flags.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "clients": "num_clients",
    "num_rounds": "rounds",
    "epochs": "local_epochs",
    "model": "network",
    "strategy": "algorithm",
    "optimizer": "client_optimizer",
    "compression": "codec",
}


def explain(error: flags.UnrecognizedFlagError) -> str:
    """Says what a flag that there is not was meant to be.

    Without its section a flag is named with it: --bits is --frozen.bits.
    """
    name = error.flagname.removeprefix("no")
    meant = [
        flag
        for flag in configs.fields()
        if "." in flag
        and flag in flags.FLAGS
        and {flag.partition(".")[2], flag.replace(".", "_")} & {error.flagname, name}
    ]
    if name in _ALSO_CALLED and _ALSO_CALLED[name] in flags.FLAGS:
        return f"--{name}: expected --{_ALSO_CALLED[name]}, as the flag is called here"
    if not meant:
        return str(error)
    names = " or ".join(f"--{flag}" for flag in meant)
    return f"--{error.flagname}: expected {names}, as the flag is called in full"


def _define_section(name: str, text: str) -> None:
    """Defines --SECTION, which heads its flags in the help and refuses any value."""
    example = next(flag for flag in configs.fields() if flag.startswith(f"{name}."))

    def refuse(argument: str) -> None:
        pairs = re.findall(r"(\w+)\s*=\s*([^,]*)", argument)
        meant = " ".join(f"--{name}.{field}={value}" for field, value in pairs)
        raise ValueError(f"expected {meant or f'flags such as --{example}='}")

    shown = f"{text} Its flags are --{name}.NAME:"
    define.of_field(name, bounds.field(None, shown, kind=str), refuse)


def _tiers(text: str) -> tuple[devices.Tier, ...] | classes.Auto:
    """Reads tiers, or auto:NUMBER:BY."""
    if text.partition(":")[0].strip() == "auto":
        return classes.read(text.strip())
    return devices.parse_tiers(text) if text.strip() else ()


def _fleet(text: str) -> str | fleet_sources.Lognormal:
    """Reads lognormal:COMPUTE:BANDWIDTH:MEMORY; all else stays a text."""
    if text.partition(":")[0] != "lognormal" or trace.split(text)[1] is not None:
        return text
    return fleet_sources.read_lognormal(text)


_READ = {"tiers": _tiers, "fleet": _fleet}
