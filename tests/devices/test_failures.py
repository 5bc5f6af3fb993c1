"""Faults: their rates, their keys, their names."""

import jax
import numpy as np
import pytest

from fljax.devices import failures
from fljax.devices.failures import Fault

KEY = jax.random.key(3)
NOBODY = np.zeros(20_000)


def test_without_rates_nothing_happens():
    faults, part = failures.draw(failures.Rates(), np.zeros(4), KEY, np.arange(4))
    assert faults.tolist() == [0] * 4
    assert part.tolist() == [1] * 4


def test_faults_come_at_their_rates():
    rates = failures.Rates(drop=0.3, lost=0.1, truncated=0.05, duplicated=0.02,
                           delayed=0.2, nonfinite=0.03, huge=0.04)  # fmt: skip
    faults, part = failures.draw(rates, NOBODY, KEY, np.arange(20_000))
    shares = np.bincount(faults, minlength=11) / 20_000
    expected = [0.26, 0.1, 0.1, 0.1, 0.1, 0.05, 0.02, 0.2, 0.03, 0.04, 0]
    np.testing.assert_allclose(shares, expected, atol=0.01)
    assert 0 < part.min() < part.max() <= 1


def test_a_devices_own_failures_come_on_top():
    failing = np.full(20_000, 0.5)
    rates = failures.Rates(drop=0.2)
    faults, _ = failures.draw(rates, failing, KEY, np.arange(20_000))
    dropped = np.isin(faults, failures.DROPPED).mean()
    assert dropped == pytest.approx(1 - 0.8 * 0.5, abs=0.01)
    certain, _ = failures.draw(failures.Rates(), np.ones(50), KEY, np.arange(50))
    assert np.isin(certain, failures.DROPPED).all()


def test_a_clients_fault_does_not_depend_on_its_company():
    rates = failures.Rates(drop=0.5, delayed=0.3)
    all_of_them, parts = failures.draw(rates, np.zeros(100), KEY, np.arange(100))
    order = np.random.default_rng(1).permutation(100)[:30]
    few, part = failures.draw(rates, np.zeros(30), KEY, order)
    np.testing.assert_array_equal(few, all_of_them[order])
    np.testing.assert_array_equal(part, parts[order])


def test_tampering_and_names():
    faults = np.array([Fault.NONE, Fault.NONFINITE, Fault.HUGE, Fault.LOST], np.int8)
    factors = failures.tampering(faults)
    assert factors[[0, 2, 3]].tolist() == [1, 1e6, 1]
    assert np.isnan(factors[1])
    ids = np.array([9, 4, 7, 2])
    assert failures.events(ids, faults) == {"nonfinite": [4], "huge": [7], "lost": [2]}
    both = np.array([Fault.LOST, 0, 0, Fault.LOST], np.int8)
    assert failures.events(ids, both) == {"lost": [2, 9]}


@pytest.mark.parametrize(
    "rates",
    [
        {"drop": -0.1},
        {"lost": 1.1},
        {"delay": -1},
        {"delay": 2},
        {"drop": 0.6, "lost": 0.6},
    ],
)
def test_bad_rates_are_refused(rates):
    with pytest.raises(ValueError, match=r"^failures.*: expected "):
        failures.Rates(**rates)
