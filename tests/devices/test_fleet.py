"""Fleets: what devices can do, how it changes, what the server knows, from where."""

import dataclasses
import json

import numpy as np
import pytest

from fljax.devices import fleet, fleet_sources

MILLION = 1_000_000


def changing(num_clients=1000, **changes):
    made = fleet.of_tiers(num_clients)
    return made._replace(changes=fleet.Changes(**changes))


def test_tiers_are_rows_of_a_fleet():
    made = fleet.of_tiers(100)
    assert (made.names, len(made.profile.download)) == (("strong", "medium", "weak"), 3)
    assert np.bincount(made.tier).tolist() == [33, 33, 34]
    ids = np.array([99, 0, 40])
    budgets = fleet.truth(made, 11, 4, ids)
    np.testing.assert_array_equal(budgets.time, [0.33, 1, 0.66])
    np.testing.assert_array_equal(budgets.memory, [0.33, 1, 0.66])
    assert budgets.upload[1] == 1
    assert 0.5 <= budgets.upload[[0, 2]].min() < 1
    assert fleet.lowest(made) == (0.33, 0.5, 0.33)
    assert fleet.believed(made, 11, 4, ids).upload.tolist() == budgets.upload.tolist()


def test_a_million_devices_are_arrays():
    made = fleet_sources.lognormal(MILLION, seed=1)
    assert made.row.shape == (MILLION,)
    assert made.profile.limits.shape == (MILLION, 3, 2)
    budgets = fleet.truth(made, 1, 0, np.array([0, MILLION - 1]))
    assert budgets.time[0] == 1 > budgets.time[1]  # fastest first
    there = fleet.available(made, 1, 0, 0.0, np.arange(MILLION))
    assert len(there) == MILLION


def test_lognormal_speeds_have_the_asked_spread():
    made = fleet_sources.lognormal(20_000, 3, fleet_sources.Lognormal(0.4, 0.7, 0))
    speed, upload, memory = np.log(made.profile.limits[..., 0]).T
    assert np.std(speed) == pytest.approx(0.4, rel=0.03)
    assert np.std(upload) == pytest.approx(0.7, rel=0.03)
    assert np.all(memory == 0)
    assert abs(np.corrcoef(speed, upload)[0, 1]) < 0.03
    assert np.all(np.diff(speed) <= 0)
    assert np.bincount(made.tier).tolist() == [6667, 6667, 6666]


@pytest.mark.parametrize("bad", [-0.1, float("inf"), float("nan")])
def test_bad_deviations_are_refused(bad):
    with pytest.raises(ValueError, match="compute: expected a number from 0 to 10"):
        fleet_sources.Lognormal(bad)


def test_drift_is_smooth_and_has_the_asked_spread():
    made = changing(2000, drift=0.3, drift_rounds=20)
    still = fleet.truth(fleet.of_tiers(2000), 5, 0, np.arange(2000)).time
    logs = np.stack(
        [
            np.log(fleet.truth(made, 5, r, np.arange(2000)).time / still)
            for r in (0, 1, 7, 20, 200)
        ]
    )
    np.testing.assert_allclose(logs.std(axis=1), 0.3, rtol=0.06)
    near, far, knot, other = (np.corrcoef(logs[0], row)[0, 1] for row in logs[1:])
    assert near == pytest.approx(np.cos(np.pi / 40), abs=0.01)
    assert far == pytest.approx(np.cos(np.pi * 7 / 40), abs=0.06)
    assert abs(knot) < 0.07
    assert abs(other) < 0.07


def test_bandwidth_fluctuates_by_round_and_client_alone():
    made = changing(bandwidth=0.5)
    ids = np.arange(33)  # strong: 1 without noise
    first = fleet.truth(made, 5, 8, ids).upload
    assert np.std(np.log(first)) > 0.3
    turned = fleet.truth(made, 5, 8, ids[::-1][:10]).upload
    np.testing.assert_array_equal(turned, first[::-1][:10])
    assert np.all(fleet.truth(made, 5, 9, ids).upload != first)
    # Both ways alike.
    still = fleet.truth(made._replace(changes=fleet.Changes()), 5, 8, ids).upload
    np.testing.assert_allclose(first / still, fleet.bandwidth(made, 5, 8, ids))


def test_the_server_believes_what_it_saw_last():
    made = changing(drift=0.5, drift_rounds=3, refresh=4)
    ids = np.arange(50)
    assert [fleet.looked_at(made, r) for r in (0, 3, 4, 9)] == [0, 0, 4, 8]
    for r in (4, 5, 7):
        known = fleet.believed(made, 1, r, ids)
        np.testing.assert_array_equal(known.time, fleet.truth(made, 1, 4, ids).time)
    assert np.all(known.time != fleet.truth(made, 1, 7, ids).time)


def test_availability_has_its_rate_and_its_day():
    made = changing(4000, diurnal=1.0, day_rounds=24)
    profile = made.profile._replace(availability=np.array([0.5, 0.5, 0.5]))
    made = made._replace(profile=profile)
    everyone = np.arange(4000)
    shares = [
        len(fleet.available(made, 9, r, float(r), everyone)) / 4000 for r in range(24)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
    there = np.zeros((24, 4000), bool)
    for day in range(12):
        for hour in range(24):
            there[hour, fleet.available(made, 9, 24 * day + hour, hour, everyone)] += (
                True
            )
    # Every device sleeps: at some hour of the day it is hardly ever there.
    steady = made._replace(changes=fleet.Changes())
    awake = [fleet.available(steady, 9, r, 0.0, everyone) for r in range(12)]
    assert (~there).sum() > 2000
    assert np.mean([len(a) for a in awake]) / 4000 == pytest.approx(0.5, abs=0.02)
    # It is the device that counts, not who else may take part.
    few = fleet.available(made, 9, 3, 3.0, everyone[::7])
    assert set(few) == set(fleet.available(made, 9, 3, 3.0, everyone)) & set(
        everyone[::7]
    )


def test_typical_budgets_are_those_of_the_tiers():
    typical = fleet.typical(fleet.of_tiers(1000), 1, 600)
    times, counts = np.unique(typical.time, return_counts=True)
    assert times.tolist() == [0.33, 0.66, 1]
    assert counts.min() > 150
    assert len(typical.upload) == 600


@pytest.mark.parametrize(
    ("name", "value"),
    [("drift", -1), ("refresh", 0), ("diurnal", 1.5), ("day_rounds", 1)],
)
def test_bad_changes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"changes.{name}: expected "):
        fleet.Changes(**{name: value})


@pytest.mark.parametrize("name", ["drift_rounds", "day_rounds"])
def test_how_long_what_does_not_happen_takes_is_refused(name):
    with pytest.raises(ValueError, match=f"changes.{name}: expected .* above 0"):
        fleet.Changes(**{name: 7.0})


CSV = """compute, upload_mbps, availability, watts, tier
.5, 8, .9, 3, phone
1, 16, 1, 5, hub
.25, 4, .8, 2, phone
"""


def test_a_file_of_devices(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text(CSV)
    made = fleet_sources.load(path, 3)
    # Tiers in the order of the file, the fastest of a tier first.
    assert made.names == ("phone", "hub")
    assert made.tier.tolist() == [0, 0, 1]
    assert made.profile.limits[:, 0, 0].tolist() == [0.5, 0.25, 1]
    assert made.profile.limits[:, 1, 1].tolist() == [0.5, 0.25, 1]  # of the best, 16
    assert made.profile.limits[:, 2, 0].tolist() == [1, 1, 1]
    assert made.profile.availability.tolist() == [0.9, 0.8, 1]
    assert made.profile.watts.tolist() == [3, 2, 5]
    assert made.reference == (None, 2e6, None)  # 16 megabits are 2 MB
    rows = [{"step_seconds": 2}, {"step_seconds": 0.5}, {"step_seconds": 1}]
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(rows))
    made = fleet_sources.load(path, 3)
    assert made.profile.limits[:, 0, 0].tolist() == [1, 0.5, 0.25]
    assert made.reference.step_seconds == 0.5
    assert made.names == fleet_sources.THIRDS


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "a list of devices"),
        ("compute\n1\n1\n", "a row for each of the 3 clients, got 2"),
        ("compute\n1\n0\n1\n", "compute from 1e-9 to 1e9 for device 2, got '0'"),
        ("failure\n0\n1.5\n0\n", "failure from 0 to 1 for device 2, got '1.5'"),
        ("compute,compute\n1,2\n1,1\n1,1\n", "the column 'compute' twice"),
        ("compute\n1\nfast\n1\n", "compute from 1e-9 to 1e9 for device 2, got 'fast'"),
        ("speed\n1\n1\n1\n", "columns among .* got 'speed'"),
        ("availability\n1\n2\n1\n", "availability from 0 to 1"),
        ("compute,step_seconds\n1,1\n1,1\n1,1\n", "step_seconds or compute, got both"),
        ("step_seconds\n1\n1e-320\n1\n", "step_seconds from 1e-9 to 1e9"),
        ("compute\n1\n1" + "0" * 400 + "\n1\n", "compute from 1e-9 to 1e9"),
        ("tier\na\n" + "b" * 200_000 + "\nc\n", "got: .*field larger than"),
        ("tier\na\n\udcff\nb\n", "got: .*utf-8"),
        ('[{"compute": true}, {"compute": 1}, {"compute": 1}]', "device 1, got True"),
        ('[{"watts": 1' + "0" * 400 + '}, {"watts": 1}, {"watts": 1}]', "watts from"),
        ("[" * 100_000, "expected JSON, got: it is nested too deep"),
        ("[" * 900 + "]" * 900, "a list of devices, one row each, got list"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, wanted):
    path = tmp_path / ("devices.json" if text.startswith("[") else "devices.csv")
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=wanted) as error:
        fleet_sources.load(path, 3)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        fleet_sources.load(tmp_path / "none.csv", 3)


def test_one_device_has_no_limits():
    budgets = fleet.truth(fleet.one_device(), 1, 1, np.zeros(1, int))
    assert [float(limit[0]) for limit in budgets] == [1, 1, 1]


def test_changes_do_not_touch_what_they_do_not_name():
    ids = np.arange(300)
    plain = fleet.truth(fleet.of_tiers(300), 2, 3, ids)
    moved = fleet.truth(changing(300, drift=0.2), 2, 3, ids)
    np.testing.assert_array_equal(moved.upload, plain.upload)
    np.testing.assert_array_equal(moved.memory, plain.memory)
    assert dataclasses.asdict(fleet.Changes())["refresh"] == 1


def test_clients_are_counted_by_tier():
    made = fleet.of_tiers(100)
    assert fleet.by_tier(made, np.array([0, 1, 99])) == {"strong": 2, "weak": 1}
    assert fleet.by_tier(made, np.array([], np.int32)) == {}
