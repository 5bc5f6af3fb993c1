"""Forecasts of devices: the regression by hand, and what policies do with them."""

import numpy as np
import pytest

from fljax import devices, experiment, policies, types
from fljax.devices import clock, fleet
from fljax.experiment import rehearsal, running
from fljax.policies import base, forecast, learning
from tests import small
from tests.devices import test_timeline
from tests.policies import test_learning_policies

IDS = np.array([1, 3])


def entered(*entries):
    """Logs of four clients, entries (round, speeds, bandwidths) of clients 1 and 3."""
    log = forecast.empty(4)
    for index, speed, bandwidth in entries:
        seen = base.Seen(np.full(2, index), np.array(speed), np.array(bandwidth))
        log = forecast.add(log, IDS, seen)
    return log


def fit(entries, now):
    """Fits a line to (round, value) of one client, as the module's docs say.

    Returns the sum of weights, the line in the round `now`, the mean squared residual.
    """
    rounds, values = np.array(entries).T
    weights = 0.5 ** ((now - rounds) / forecast.HALF_LIFE)
    t, y = rounds - now, np.log(values)
    total = weights.sum()
    mean, level = weights @ t / total, weights @ y / total
    covariance = weights @ ((t - mean) * (y - level)) / total
    variance = weights @ (t - mean) ** 2 / total
    slope = covariance / (variance + forecast.TREND**2 / total)
    residuals = y - level - slope * (t - mean)
    return total, level - slope * mean, weights @ residuals**2 / total


def by_hand(entries, noise, now):
    """Forecasts from entries of one client and the noise of all."""
    total, line, _ = fit(entries, now)
    return np.exp(line - forecast.CAUTION * noise * np.sqrt(1 + 1 / max(total, 1)))


def believed(speed, bandwidth):
    return types.Budgets(np.array(speed), np.array(bandwidth), np.array([0.7, 0.9]))


def test_the_regression_by_hand():
    nan = np.nan
    log = entered((3, [0.8, 0.5], [1.0, nan]), (11, [0.9, nan], [0.5, 0.25]))
    look = believed([0.6, 0.4], [0.9, 0.2])
    given = forecast.ahead(log, base.When(20, 10), IDS, look)
    # A single entry has no residual; weights are those of the last entry, round 11.
    noises = []
    for entries, alone in (([(3, 0.8), (11, 0.9)], 3), ([(3, 1.0), (11, 0.5)], 11)):
        total, _, apart = fit(entries, 11)
        single = 0.5 ** ((11 - alone) / forecast.HALF_LIFE)
        noises.append(np.sqrt(total * apart / (total + single)))
    np.testing.assert_allclose(
        given.time,
        [
            by_hand([(3, 0.8), (11, 0.9), (10, 0.6)], noises[0], 20),
            by_hand([(3, 0.5), (10, 0.4)], noises[0], 20),
        ],
    )
    np.testing.assert_allclose(
        given.upload,
        [
            by_hand([(3, 1.0), (11, 0.5), (10, 0.9)], noises[1], 20),
            by_hand([(11, 0.25), (10, 0.2)], noises[1], 20),
        ],
    )
    assert given.memory.tolist() == [0.7, 0.9]
    assert (log.sums.shape, log.last.tolist()) == ((2, 6, 4), [0, 11, 0, 11])


def test_without_noise_the_last_look_holds():
    look = believed([0.6, 0.4], [0.9, 0.2])
    for log in (forecast.empty(4), entered((5, [0.6, 0.4], [0.9, 0.2]))):
        given = forecast.ahead(log, base.When(20, 10), IDS, look)
        np.testing.assert_allclose(given.time, look.time, rtol=1e-6)
        np.testing.assert_allclose(given.upload, look.upload, rtol=1e-6)


def test_a_trend_that_goes_on_is_followed_and_noise_is_averaged():
    speeds = np.exp(-0.01 * np.arange(0, 120, 4))
    noise = np.exp(0.3 * np.random.default_rng(1).normal(size=30))
    seen = zip(range(0, 120, 4), speeds, noise, strict=True)
    log = entered(*((index, [s, s], [b, b]) for index, s, b in seen))
    given = forecast.ahead(log, base.When(120, 0), IDS, believed([1, 1], [2.5, 2.5]))
    assert given.time[0] == pytest.approx(np.exp(-1.2), rel=0.1)
    # One deviation below 1, and a little for what is not known of the mean.
    assert given.upload[0] == pytest.approx(np.exp(-0.32), rel=0.2)
    # Where nothing is heard for long the trend dies away, amid what was seen.
    late = forecast.ahead(log, base.When(1000, 0), IDS, believed([1, 1], [1, 1]))
    assert 0.3 < late.time[0] < 1


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 0.0])
def test_what_is_not_known_is_not_entered(unknown):
    log = entered((5, [unknown] * 2, [unknown] * 2))
    assert not log.sums.any()


def test_the_policy_of_a_table_learns_and_looks_ahead():
    table = test_learning_policies.nested()
    inner = learning.online(table, 4, rate=0.1)
    policy = forecast.looking_ahead(inner, 4)
    state = policy.init()
    shapes = [np.shape(leaf) for leaf in (*state.policy, *state.log)]
    seen = base.Seen(np.array([2, 2]), np.array([0.25, 0.5]), np.array([1.0, 1.0]))
    budgets = believed([0.5, 0.5], [1, 1])
    observed = test_learning_policies.observed([2.0, 1.0])._replace(seen=seen)
    chosen = policy.assign(state, test_learning_policies.round_key(0), IDS, budgets)
    after = policy.observe(state, IDS, chosen, budgets, observed)
    assert [np.shape(leaf) for leaf in (*after.policy, *after.log)] == shapes
    assert after.policy.clients[0, 1] > 0
    slow, usual = policy.ahead(after, base.When(3, 0), IDS, budgets).time
    assert 0.25 < slow < usual <= 0.5 + 1e-9


STALE = {
    "tiers": devices.parse_tiers("quick:.5:1:1:1,slow:.5:.6:.4-.8:.6"),
    "algorithm": "cocofl",
    "network": "cnn",
    "policy": "online",
    "clock": clock.Clock(deadline=1.0),
}


def rehearsed(ready, number):
    """Plays rounds; yields (state before, assignment, state after)."""
    made = experiment.algorithm(ready)
    state = made.init()
    for index in range(number):
        assignment = made.assign(state, index)
        new, _ = made.rehearse(state, assignment)
        yield state, assignment, new
        state = new


def drifting(refresh=4, **changes):
    made = fleet.Changes(drift=0.5, drift_rounds=8, bandwidth=0.3, refresh=refresh)
    return small.build(**(STALE | {"changes": made} | changes))


def test_what_is_seen_of_devices_is_true_of_them():
    ready = drifting()
    made, heard = ready.federation.population.fleet, np.zeros(0, int)
    for _, assignment, new in rehearsed(ready, 3):
        ids = np.setdiff1d(assignment.outcome.finished.ids, heard)  # for the first time
        truth = fleet.truth(made, 1, assignment.round, ids)
        np.testing.assert_allclose(
            np.exp(new.policy.log.sums[:, 3, ids]), [truth.time, truth.upload]
        )
        heard = np.union1d(heard, ids)
    assert len(heard) > 4


def test_budgets_are_forecast_in_rounds_without_a_look_alone():
    ready = drifting()
    made = experiment.algorithm(ready)
    there = ready.federation.population.fleet
    for state, assignment, _ in rehearsed(ready, 6):
        done = assignment.outcome.finished
        look = fleet.believed(there, 1, assignment.round, done.ids)
        if assignment.round % 4 == 0:
            np.testing.assert_array_equal(done.budgets[:, 0], look.time)
            continue
        when = base.When(assignment.round, assignment.round // 4 * 4)
        wanted = forecast.ahead(state.policy.log, when, done.ids, look)
        np.testing.assert_array_equal(done.budgets, np.stack(wanted, axis=1))
    assert made.init().policy.log.sums.shape == (2, 6, len(small.SIZES))


def test_where_every_round_looks_nothing_is_forecast():
    for policy in ("online", "random_maximal"):
        ready = drifting(refresh=1 if policy == "online" else 4, policy=policy)
        state = experiment.algorithm(ready).init()
        assert not isinstance(state.policy, forecast.State)
    assert policies.BY_NAME.keys() >= {"online"}


def test_a_run_that_stops_between_looks_goes_on_as_it_would_have(tmp_path):
    def run(folder, rounds):
        ready = drifting(net=test_timeline.NET, rounds=rounds)
        return running.run(ready, folder, tensorboard=False)

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 5)
    for one, two in zip(parts.state.policy.log, whole.state.policy.log, strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(parts.records, whole.records, strict=True):
        del one["wall_seconds"], two["wall_seconds"]
        assert one == two
    # A rehearsal enters what a run does.
    ready = drifting(net=test_timeline.NET)
    seen = rehearsal.rehearse(experiment.algorithm(ready), ready.federation, 5)
    log = whole.state.policy.log
    np.testing.assert_array_equal(seen.state.policy.log.sums, log.sums)
