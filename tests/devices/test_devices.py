"""Tiers and the budgets drawn for them."""

import json
import math

import jax
import numpy as np
import pytest

from fljax import devices
from fljax.devices import fleet
from fljax.runtime import host_random, streams
from tests import conftest

FLAG = "strong:0.33:1:1:1,medium:0.33:0.66:0.5-1:0.66,weak:0.34:0.33:0.5-1:0.33"


def round_key(round_number=3, seed=11):
    return jax.random.fold_in(jax.random.key(seed), round_number)


def tier(name="only", share=1.0, time=1.0, upload=1.0, memory=1.0):
    return devices.Tier(name=name, share=share, time=time, upload=upload, memory=memory)


def test_tiers_of_a_hundred_clients():
    index = devices.tier_of(100)
    np.testing.assert_array_equal(index, [0] * 33 + [1] * 33 + [2] * 34)


@pytest.mark.parametrize("num_clients", [1, 2, 3, 7, 10, 50, 99, 1000, 3500, 1_000_000])
def test_borders_are_whole_shares(num_clients):
    sizes = np.bincount(devices.tier_of(num_clients), minlength=3)
    first, second = 33 * num_clients // 100, 66 * num_clients // 100
    assert sizes.tolist() == [first, second - first, num_clients - second]


def test_borders_do_not_suffer_from_rounding():
    tiers = [tier("a", 0.29), tier("b", 0.71)]  # 0.29 * 100 = 28.999999999999996
    assert np.bincount(devices.tier_of(100, tiers)).tolist() == [29, 71]


def test_constants_are_exact_and_ranges_are_filled():
    ids = np.arange(3000)
    index = devices.tier_of(3000)
    budgets = conftest.draw_budgets(round_key(), ids, index)
    assert all(limit.shape == (3000,) for limit in budgets)
    assert all(limit.dtype == np.float64 for limit in budgets)
    np.testing.assert_array_equal(budgets.time, np.array([1, 0.66, 0.33])[index])
    np.testing.assert_array_equal(budgets.memory, np.array([1, 0.66, 0.33])[index])
    np.testing.assert_array_equal(budgets.upload[:990], 1.0)
    drawn = budgets.upload[990:]
    assert drawn.min() >= 0.5
    assert drawn.max() < 1.0
    assert drawn.mean() == pytest.approx(0.75, abs=0.01)
    assert len(np.unique(drawn)) > 1900


def test_limits_of_a_client_are_drawn_apart():
    budgets = conftest.draw_budgets(
        round_key(),
        np.arange(2000),
        np.zeros(2000, np.int32),
        [tier(time=(0.1, 0.9), upload=(0.1, 0.9), memory=(0.1, 0.9))],
    )
    correlation = np.corrcoef(np.stack(budgets))
    assert np.abs(correlation - np.eye(3)).max() < 0.1


def test_draws_depend_on_seed_round_and_client_only():
    index = devices.tier_of(100)
    ids = np.array([40, 99, 70, 5])
    drawn = conftest.draw_budgets(round_key(), ids, index).upload
    again = conftest.draw_budgets(round_key(), ids, index).upload
    np.testing.assert_array_equal(drawn, again)
    turned = conftest.draw_budgets(round_key(), ids[::-1], index).upload
    np.testing.assert_array_equal(drawn, turned[::-1])
    alone = conftest.draw_budgets(round_key(), ids[1:2], index).upload
    np.testing.assert_array_equal(drawn[1:2], alone)
    for other_key in (round_key(round_number=4), round_key(seed=12)):
        other = conftest.draw_budgets(other_key, ids, index).upload
        assert np.all(other[:3] != drawn[:3])


def test_uses_draw_apart():
    ids = np.arange(100)
    first = host_random.uniforms(round_key(), streams.BUDGETS, ids, 1)
    second = host_random.uniforms(round_key(), streams.BUDGETS + 1, ids, 1)
    assert not np.any(first == second)


def test_a_million_clients_are_one_array():
    index = devices.tier_of(1_000_000)
    assert index.nbytes == 4_000_000
    budgets = conftest.draw_budgets(round_key(), np.array([0, 999_999]), index)
    np.testing.assert_array_equal(budgets.time, [1.0, 0.33])


def test_flag_gives_the_reference_tiers():
    assert devices.parse_tiers(FLAG) == devices.REFERENCE_TIERS


def test_flag_reads_exponents_and_spaces():
    one, two = devices.parse_tiers("a:0.5:1e-1:5e-2-1e-1:1, b:0.5:1:1:1")
    assert (one.time, one.upload) == (0.1, (0.05, 0.1))
    assert two.name == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name:share:time:upload:memory, got ''"),
        ("a:1:1:1", "name:share:time:upload:memory, got 'a:1:1:1'"),
        (":1:1:1:1", "needs a name"),
        ("a:x:1:1:1", "a number .* got 'x'"),
        ("a:1:1:0.5-:1", "number or low-high .* got ''"),
        ("a:1:1:1-2-3:1", "number or low-high, got '1-2-3'"),
        ("a:1.5:1:1:1", r"share in \(0, 1\], got 1.5"),
        ("a:nan:1:1:1", r"share in \(0, 1\], got nan"),
        ("a:1:0:1:1", "tier 'a': expected time as 1e-09 <= low <= high"),
        ("a:1:1:1-0.5:1", "expected upload as .* got 1.0 to 0.5"),
        ("a:1:1:1:inf", "expected memory .* <= 1e[+]09, got inf"),
        ("a:0.5:1:1:1", "sum to 1, got 0.5"),
        ("a:0.5:1:1:1,a:0.5:1:1:1", r"different names, got \['a', 'a'\]"),
    ],
)
def test_flag_refuses(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        devices.parse_tiers(text)
    assert "\n" not in str(caught.value)


def entry(**changes):
    fields = {"name": "a", "share": 1, "time": 1, "upload": [0.5, 1], "memory": 1}
    return fields | changes


def test_file_gives_tiers(tmp_path):
    path = tmp_path / "tiers.json"
    path.write_text(json.dumps([entry()]))
    assert devices.load_tiers(path) == (tier("a", upload=(0.5, 1.0)),)


def test_file_may_say_more_of_a_tier(tmp_path):
    path = tmp_path / "tiers.json"
    more = {"download": 2, "availability": 0.5, "failure": 0.25, "watts": 7}
    path.write_text(json.dumps([entry(share=0.5), entry(name="b", share=0.5, **more)]))
    profile = fleet.of_tiers(4, devices.load_tiers(path)).profile
    assert profile.download.tolist() == [1, 2]
    assert profile.availability.tolist() == [1, 0.5]
    assert profile.failure.tolist() == [0, 0.25]
    np.testing.assert_array_equal(profile.watts, [np.nan, 7])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([entry(watts="7")]), r"expected numbers for \['watts'\]"),
        (json.dumps([entry(failure=2)]), "failure from 0 to 1, got 2"),
        ("[", "Expecting value"),
        ("{}", "expected a list of tiers, got dict"),
        ("[]", "expected a list of tiers"),
        ("[3]", "expected a tier with the keys"),
        (json.dumps([entry(speed=3)]), "expected a tier with the keys"),
        (json.dumps([entry(share="1")]), "a number as share"),
        (json.dumps([entry(name=3)]), "a text as name"),
        (json.dumps([entry(time=[1])]), r"number or \[low, high\], got \[1\]"),
        (json.dumps([entry(time=None)]), "got None"),
        (json.dumps([entry(time=-1)]), "tier 'a': expected time"),
        (json.dumps([entry(share=0.5)]), "sum to 1"),
        ("[" * 100_000, "JSON, got: it is nested too deep"),
        ("[" * 900 + "]" * 900, "expected a tier with the keys"),
        (json.dumps([entry(time=10**400)]), r"number or \[low, high\], got 1000"),
        (json.dumps([entry(watts=10**400)]), r"expected numbers for \['watts'\]"),
        (json.dumps([entry(memory=1e-320)]), "expected memory as 1e-09 <= low"),
        (json.dumps([entry(time=math.inf)]), "JSON, got: Infinity"),
        (json.dumps([entry(name="a\ud800")]), "needs a name in print"),
        ('[{"share": 1, "share": 0.5}]', "the key 'share' twice"),
    ],
)
def test_file_refuses_in_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "tiers.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        devices.load_tiers(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_file_that_is_missing(tmp_path):
    with pytest.raises(
        ValueError, match=r"none\.json: there is no file /.*/none\.json"
    ):
        devices.load_tiers(tmp_path / "none.json")
