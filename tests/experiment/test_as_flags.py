"""Settings as flags: what they say reads back, and what they cannot say."""

import dataclasses

import pytest
from absl import flags

from experiments import flags as config_flags
from experiments import main, train
from fljax import devices
from fljax.devices import clock, fleet_sources
from fljax.experiment import as_flags, config
from fljax.kernels import specs

assert train  # defines the flags

ODD = config.Config(
    algorithm="fedprox:0.01",
    lr=3e-7,
    lr_schedule=(6, 8),
    mean=(0.1, 0.25),
    std=(1.0, 2.0),
    tiers=(
        devices.Tier(name="all", share=0.5, time=1.0, upload=(0.5, 1.0), memory=1.0),
        devices.Tier(name="few", share=0.5, time=1e-3, upload=1.0, memory=0.3),
    ),
    clock=clock.Clock(deadline=0.9, late="carry"),
    frozen=specs.Frozen(bits=4, reference_quirks=True),
)


@pytest.mark.parametrize(
    "settings",
    [
        config.Config(),
        ODD,
        config.Config(fleet=fleet_sources.Lognormal(0.1, 0.2)),
        config.Config(partition="pathological", class_assignment="deterministic"),
    ],
)
def test_flags_read_back(settings):
    flags.FLAGS.unparse_flags()
    main._parse(["train", *as_flags.lines(settings)])
    made = config_flags.from_flags(flags.FLAGS)
    flags.FLAGS.unparse_flags()
    assert repr(made) == repr(settings)  # watts are NaN, which is not equal to itself


def test_only_what_is_not_usual_is_said():
    assert as_flags.lines(config.Config()) == []
    assert as_flags.lines(config.Config(lr=0.2, seed=1)) == ["--lr=0.2", "--seed=1"]


def test_tiers_with_more_than_budgets_are_refused():
    (tier,) = (dataclasses.replace(ODD.tiers[0], share=1.0, watts=2.0),)
    with pytest.raises(ValueError, match="--tiers: expected tiers of budgets alone"):
        as_flags.lines(config.Config(tiers=(tier,)))


def test_commands_are_as_a_shell_reads_them():
    made = as_flags.of_folder(config.Config(codec="clip:1+drive", lr=0.2), "runs/my x")
    assert made == (
        "python -m experiments.train --lr=0.2 --codec=clip:1+drive "
        "'--workdir=runs/my x'"
    )
    assert as_flags.ran(["/x/experiments/compare.py", "--a=b c"]) == (
        "python -m experiments.compare '--a=b c'"
    )
