"""Phones: the quantiles that the fleet is drawn from, and what is drawn of them."""

import numpy as np
import pytest
from scipy import stats

from fljax.devices import fleet_sources, phones
from fljax.experiment import config, fleets

MANY = 20_000


def test_the_quantiles_are_those_of_the_list():
    # Scores 105, 274, 1548, 3441 and 4310 at the least, p10, median, p90 and the best.
    few = np.array(phones.SPEEDS)[[0, 1, 5, 9, 10]]
    np.testing.assert_allclose(
        few, np.array([105, 274, 1548, 3441, 4310]) / 4310, atol=5e-4
    )
    assert np.round(few, 2).tolist() == [0.02, 0.06, 0.36, 0.8, 1]
    assert sum(phones.MEMORIES.values()) == 333
    assert (min(phones.MEMORIES), max(phones.MEMORIES)) == (0.5, 12)
    most = sorted(phones.MEMORIES, key=phones.MEMORIES.get)[-3:]
    assert sorted(most) == [4, 6, 8]


def test_a_fleet_has_the_quantiles():
    made = phones.phones(MANY, seed=3)
    speed, upload, memory = made.profile.limits[..., 0].T
    found = np.quantile(speed, np.linspace(0, 1, 11))
    np.testing.assert_allclose(found, phones.SPEEDS, atol=0.015)
    assert np.all(np.diff(speed) <= 0)
    assert made.names == fleet_sources.THIRDS
    sizes, counts = np.unique(memory * 12, return_counts=True)
    np.testing.assert_allclose(sizes, sorted(phones.MEMORIES))
    shares = [phones.MEMORIES[size] / 333 for size in sorted(phones.MEMORIES)]
    np.testing.assert_allclose(counts / MANY, shares, atol=0.012)
    assert np.std(np.log(upload)) == pytest.approx(0.5, rel=0.03)
    np.testing.assert_array_equal(made.profile.download, upload)
    # Ranks of memory are tied, which costs some of what the copula has.
    together = stats.spearmanr(speed, memory)[0]
    assert together == pytest.approx(phones.RANK_CORRELATION, abs=0.03)
    assert abs(stats.spearmanr(speed, upload)[0]) < 0.03


def test_the_same_seed_draws_the_same_phones_and_few_are_phones_too():
    one, two, other = (phones.phones(5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.profile.limits, two.profile.limits)
    assert np.any(one.profile.limits != other.profile.limits)
    assert len(phones.phones(1, 0).row) == 1


def made(text, **changes):
    return fleets.make(config.Config(fleet=text, **changes), 30)


def test_they_are_named_in_settings():
    np.testing.assert_array_equal(
        made("phones").profile.limits, phones.phones(30, 11).profile.limits
    )
    still = made("phones:0").profile
    assert np.all(still.download == 1)
    spread = fleet_sources.lognormal(30, 11, fleet_sources.Lognormal(0.2))
    for wanted in ("lognormal:.2", fleet_sources.Lognormal(0.2)):
        np.testing.assert_array_equal(
            made(wanted).profile.limits, spread.profile.limits
        )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("phones:-1", "--fleet: phones: expected bandwidth as a number from 0 to 10"),
        ("phones:fast", "--fleet: phones: bandwidth: expected a number"),
        ("phones:.1:.2", "--fleet: expected phones:BANDWIDTH, got 'phones:.1:.2'"),
        ("phone", "--fleet: expected tiers, phones:BANDWIDTH, .* got 'phone'"),
        ("file:", "--fleet: expected tiers, .* got 'file:'"),
        ("lognormal:a", "--fleet: expected up to three numbers"),
    ],
)
def test_bad_phones_are_refused(text, wanted):
    with pytest.raises(ValueError, match=wanted):
        made(text)
