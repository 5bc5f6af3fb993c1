"""Flags of a configuration: sections, strings that become objects, help."""

import pathlib

import pytest
from absl import flags

from experiments import flags as config_flags
from experiments import main, train
from fljax import devices
from fljax.devices import clock, failures, fleet_sources
from fljax.experiment import config
from fljax.kernels import specs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def parsed(*arguments):
    """Reads a configuration as a command line does."""
    flags.FLAGS.unparse_flags()
    main._parse(["train", *arguments])
    made = config_flags.from_flags(flags.FLAGS)
    flags.FLAGS.unparse_flags()
    return made


def test_without_flags_there_are_the_defaults():
    assert parsed() == config.Config()


def test_strings_of_flags_become_objects(tmp_path):
    path = tmp_path / "run.flags"
    path.write_text("--clock.deadline=.9\n--failures.drop=.1\n--frozen.bits=4\n")
    made = parsed(
        f"--flagfile={path}",
        *("--frozen.reference_quirks", "--lr_schedule=6,8", "--mean=.1, .2"),
        *("--tiers=all:1:1:.5-1:1", "--fleet=lognormal:.1:.2", "--clock.late", "carry"),
    )
    assert made == config.Config(
        lr_schedule=(6, 8),
        mean=(0.1, 0.2),
        tiers=(
            devices.Tier(
                name="all", share=1.0, time=1.0, upload=(0.5, 1.0), memory=1.0,
                watts=made.tiers[0].watts,
            ),
        ),
        fleet=fleet_sources.Lognormal(0.1, 0.2),
        clock=clock.Clock(deadline=0.9, late="carry"),
        failures=failures.Rates(drop=0.1),
        frozen=specs.Frozen(bits=4, reference_quirks=True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "quirks"),
    [("--frozen.reference_quirks=true", True), ("--nofrozen.reference_quirks", False)],
)
def test_a_boolean_of_a_section_is_a_flag_of_both_kinds(argument, quirks):
    assert parsed(argument).frozen.reference_quirks is quirks


def test_the_help_has_the_flags_of_a_section_below_its_name():
    shown = flags.FLAGS.module_help(config_flags) + flags.FLAGS.module_help(train)
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  --")]
    names = [line.removeprefix("--").removeprefix("[no]") for line in lines]
    names = [name.partition(":")[0] for name in names]
    assert set(config.fields()) <= set(names)
    for section in config.sections():
        first = names.index(section)
        own = [name for name in config.fields() if name.startswith(f"{section}.")]
        assert sorted(names[first + 1 : first + 1 + len(own)]) == sorted(own)


def test_what_others_call_a_flag_names_ours():
    error = flags.UnrecognizedFlagError("learning_rate")
    line = "--learning_rate: expected --lr, as the flag is called here"
    assert config_flags.explain(error) == line
