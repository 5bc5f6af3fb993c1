"""Settings of any kind of wrong value: one line that names what is wrong with which."""

import contextlib
import dataclasses
import doctest
import math

import numpy as np
import pytest
from absl import flags

from experiments import flags as config_flags
from experiments import main, train
from fljax import bounds, devices, experiment
from fljax.algorithms import fedavg
from fljax.data import images
from fljax.devices import clock
from fljax.experiment import config as configs
from fljax.experiment import rehearsal
from fljax.kernels import specs
from fljax.runs import guard
from fljax.runtime import memory

# What people and scripts write where a number belongs.
TEXTS = (
    *("", " ", "-1", "0", "-0.0", "nan", "inf", "-inf", "1e3", "1e-320", "1e400"),
    *("1" * 5000, "1.5", "+5", "1_0", "\u0663", "0x10", "None", "[]", "a,b", "x="),
)
VALUES = (None, "0.1", "", 0.5, -1, 10**24, 10**5000, math.nan, math.inf, True, [1],
          {}, np.zeros(3), np.float32(-2), b"1")  # fmt: skip
MINE = [
    name
    for module in (train, config_flags, main)
    for name in (flag.name for flag in flags.FLAGS.get_key_flags_for_module(module))
]
SMALL = {"network": "logistic", "algorithm": "fedavg", "num_clients": 6,
         "clients_per_round": 3, "devices": "1"}  # fmt: skip
INNER = {name: f for name, f in configs.fields().items() if "." in name}


def _within(name):
    """Gives the bounds of a flag, or None where it is no number."""
    return getattr(flags.FLAGS[name].parser, "_within", None)


@pytest.mark.parametrize("name", sorted({n for n in MINE if _within(n) is not None}))
def test_a_flag_takes_a_number_in_its_bounds_and_nothing_else(name, capsys):
    for text in TEXTS:
        flags.FLAGS.unparse_flags()
        with contextlib.suppress(SystemExit):
            main._parse(["train", f"--{name}={text}"])
            assert flags.FLAGS[name].value in _within(name)
            continue
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: flag --{name}=")
        assert ": expected a" in line or ": expected 0 or a" in line
        assert "got" in line
    flags.FLAGS.unparse_flags()
    flags.FLAGS[name].unparse()


def test_every_number_of_a_run_has_bounds():
    numbers = [f for f in configs.fields().values() if bounds.kind(f) in (int, float)]
    assert len(numbers) > 40
    assert [f.name for f in numbers if f.metadata["bounds"] is None] == []


@pytest.mark.parametrize(
    "field", dataclasses.fields(configs.Config), ids=lambda f: f.name
)
def test_a_field_of_another_type_is_refused_by_its_name(field):
    for value in VALUES:
        settings = dataclasses.replace(configs.Config(), **{field.name: value})
        if bounds.holds(field, value):
            continue
        with pytest.raises(ValueError, match=f"^--{field.name}: expected ") as error:
            configs.check(settings)
        assert len(str(error.value)) < 250
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", INNER)
def test_a_field_of_a_section_of_another_type_is_refused_by_its_name(name):
    field = INNER[name]
    for value in VALUES:
        if bounds.holds(field, value):
            continue
        with pytest.raises(ValueError, match=f"^--{name}: expected ") as error:
            configs.replace(configs.Config(), {name: value})
        assert len(str(error.value)) < 250
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("clock.upload_rate", 0.0, "a number from 0.001"),
        ("clock.upload_rate", 1e-320, "a number from 0.001"),
        ("clock.over_selection", 1e9, "a number from 1 to 1000"),
        ("clock.max_staleness", 1000000, "a whole"),
        ("changes.bandwidth", 1000.0, "a number from 0 to 10, got"),
    ],
)
def test_settings_that_were_taken_once(name, value, words):
    with pytest.raises(ValueError, match=f"--{name}: expected {words}"):
        configs.replace(configs.Config(), {name: value})


def test_a_configuration_takes_objects():
    made = configs.Config(
        lr_schedule=(2, 5),
        tiers=(devices.Tier(name="all", share=1, time=1, upload=1, memory=1),),
        clock=clock.Clock(deadline=0.9),
        frozen=specs.Frozen(bits=4),
    )
    configs.check(made)
    assert made.frozen.spec == specs.Spec(bits=4)
    assert configs.replace(made, {"clock.late": "carry"}).clock.deadline == 0.9
    assert hash(made) == hash(dataclasses.replace(made))


def test_numbers_are_read_as_people_write_them():
    read = [bounds.read(int, text) for text in ("1e3", "+5", "1_000", "-0")]
    assert read == [1000, 5, 1000, 0]
    assert bounds.read(float, " .5 ") == 0.5
    for kind, text in ((int, "0.1"), (int, "1e-3"), (float, "\u0663"), (int, "inf")):
        with pytest.raises(ValueError, match=r"expected a .*number such as"):
            bounds.read(kind, text)
    assert bounds.holds(dataclasses.fields(clock.Clock)[0], np.float32(2))


def test_bounds_say_what_they_are():
    said = [
        (bounds.Bounds(least=1, most=8), "from 1 to 8"),
        (bounds.Bounds(most=1.0, below=True), "from 0, below 1"),
        (bounds.Bounds(above=True, most=1), "above 0, up to 1"),
        (bounds.Bounds(above=True, below=True, most=1), "above 0, below 1"),
    ]
    assert [str(b) for b, _ in said] == [text for _, text in said]
    assert bounds.of(guard.Rollback, "loss").off


def test_all_that_bounds_allow_plays_on_the_clock():
    """No rate or deviation leads to a time that is not finite."""
    settings = configs.Config(**SMALL)
    ready = experiment.build(settings)
    needs = {"changes.drift_rounds": {"changes.drift": 1.0},
             "changes.day_rounds": {"changes.diurnal": 0.5},
             "failures.delay": {"failures.delayed": 0.5},
             "clock.max_staleness": {"clock.buffer": 2}}  # fmt: skip
    for name, field in INNER.items():
        limits = field.metadata.get("bounds")
        section = name.partition(".")[0]
        played = section in ("clock", "changes", "failures") and name != "clock.buffer"
        if limits is None or not played:
            continue
        for value in (limits.least, min(limits.most, 1e300)):
            made = configs.replace(settings, {name: value, **needs.get(name, {})})
            devices = ready.federation.population.fleet
            fed = ready.federation.having(
                clock=made.clock,
                failures=made.failures,
                fleet=devices._replace(changes=made.changes),
            )
            played = rehearsal.rehearse(fedavg.fedavg(fed), fed, 2)
            assert math.isfinite(played.clock_seconds), (name, value)


def test_what_cannot_fit_is_refused_before_it_is_allocated(monkeypatch):
    with pytest.raises(
        ValueError, match=r"npz:x: --image_size: expected what fits .*take 12.9 PB"
    ):
        images.require("npz:x", 10**6, (65_536, 65_536, 3))
    monkeypatch.setattr(memory, "of_host", lambda: 1e6)
    base = configs.Config(**SMALL)
    for fields, words in (
        ({"local_epochs": 1000}, "--local_epochs: .* order of 1,000 passes over 240"),
        (
            {"clock.buffer": 2, "clock.max_staleness": 1000},
            "--clock.max_staleness: .*1,000 old",
        ),
    ):
        settings = configs.replace(base, fields)
        ready = experiment.build(settings)
        with pytest.raises(ValueError, match=words):
            experiment.algorithm(ready)


def test_values_in_errors_are_a_line_at_most():
    assert doctest.testmod(bounds).failed == 0
    assert bounds.shown("a\nb") == r"'a\nb'"
    assert len(bounds.shown("x" * 1000)) <= 80
    assert bounds.shown(10**5000) == "a number of 16610 bits"
    assert bounds.shown([10**5000]) == "a list of huge numbers"
