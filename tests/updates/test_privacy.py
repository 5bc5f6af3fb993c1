"""The mechanism of a round: numbers by hand, noise of the stated deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

import fljax
from fljax.runtime import streams
from fljax.updates import privacy, server
from fljax.updates.privacy import accounting, bands


def draw(round=0, clip=1.0, seed=3):
    return privacy.Draw(jax.random.key(seed), np.int32(round), np.float32(clip))


def totals(deltas, below=0.0):
    return server.Totals(
        jnp.asarray(deltas, jnp.float32),
        jnp.ones(2),
        jnp.ones(()),
        below=jnp.float32(below),
    )


def mechanism(noise=1.0, divisor=3.0, adaptive=None):
    return privacy.Mechanism(1.0, noise, divisor, adaptive)


def test_updates_are_shortened_to_the_clip_norm():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.5], [-1.0, 0.0]])
    short, below = privacy.clipped(rows, 1.0)
    np.testing.assert_allclose(short, [[0.6, 0.8], [0, 0.5], [-1, 0]], rtol=1e-6)
    np.testing.assert_allclose(short.sum(0), [-0.4, 1.3], rtol=1e-6)
    assert below.tolist() == [-0.5, 0.5, 0.5]


def test_whatever_comes_is_no_longer_than_the_clip_norm():
    rows = jnp.array([[0.0, 0.0], [1e30, -1e30], [3e-30, 0.0], [np.nan, 1.0]])
    short, _ = privacy.clipped(rows, 0.5)
    norms = np.linalg.norm(short, axis=1)
    assert np.all(norms[:3] <= 0.5)
    assert short[2, 0] == rows[2, 0]  # what is short enough keeps its bits
    assert np.isnan(norms[3])  # and is refused


def test_a_clip_norm_follows_the_quantile():
    adaptive = privacy.Adaptive(quantile=0.5, rate=0.2, deviation=1e-9)
    of = mechanism(1e-9, 3.0, adaptive)
    _, clip = privacy.released(of, draw(), totals(np.zeros(4), below=0.5))
    np.testing.assert_allclose(clip, 0.967216, rtol=1e-6)  # 2 of 3 were below
    adaptive = privacy.Adaptive(quantile=0.5, rate=0.2, deviation=5.0)
    assert mechanism(1.0, 100.0, adaptive).of_updates == pytest.approx(1.005038, 1e-6)
    assert mechanism(1.0).of_updates == 1.0


def noise(noise=0.7, clip=2.0, number=40_000, round=0):
    zeros = totals(np.zeros(number))
    new, _ = privacy.released(mechanism(noise), draw(round, clip), zeros)
    return np.asarray(new.deltas)


def test_noise_is_normal_and_of_the_stated_deviation():
    values = noise()
    assert stats.kstest(values, "norm", (0, 1.4)).pvalue > 1e-3
    # One that is off by a twentieth would not pass.
    assert stats.kstest(values, "norm", (0, 1.4 * 1.05)).pvalue < 1e-3
    expected = 1.4 / np.sqrt(2 * len(values))  # deviation of a deviation
    assert abs(values.std() - 1.4) < 4 * expected


def test_noise_of_two_rounds_has_nothing_in_common_and_is_replayed():
    one, two = noise(round=0), noise(round=1)
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(len(one))
    np.testing.assert_array_equal(one, noise(round=0))


def test_bands_are_of_the_square_root_of_prefix_sums():
    np.testing.assert_allclose(bands.coefficients(3), [1, 0.5, 0.375])
    np.testing.assert_allclose(bands.weights(2, 1)[:3], [1, -0.5, 0.25])
    assert bands.length(2) == pytest.approx(1.25**0.5)
    first = np.zeros(20)
    first[:5] = bands.coefficients(5)
    matrix = linalg.toeplitz(first, np.zeros(20))
    inverse = linalg.toeplitz(bands.weights(5, 0)[:20], np.zeros(20))
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), atol=1e-6)
    # Of all bands its square is the matrix of prefix sums.
    root = linalg.toeplitz(bands.coefficients(20), np.zeros(20))
    np.testing.assert_allclose(root @ root, np.tri(20), atol=1e-12)
    assert len(bands.weights(5, 1023)) == 1024 < len(bands.weights(5, 1024))


def test_bands_are_those_of_jax_privacy():
    toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
    theirs = toeplitz.optimal_max_error_strategy_coefs(6)
    np.testing.assert_allclose(bands.coefficients(6), theirs, rtol=1e-6)
    inverse = toeplitz.inverse_coef(theirs, 40)
    np.testing.assert_allclose(bands.weights(6, 0)[:40], inverse, atol=1e-6)
    # Of 40 rounds, with 6 between two parts at least, a client takes part in 7.
    moved = toeplitz.minsep_sensitivity_squared(theirs, 6, None, 40)
    of_seven = 7 * bands.length(6) ** 2
    assert moved <= of_seven * (1 + 1e-6)  # the last column is cut off by the end
    assert moved == pytest.approx(of_seven, rel=0.1)


def test_correlated_noise_is_a_row_of_the_inverse():
    made = privacy.Mechanism(2.0, 0.7, 3.0, bands=2)
    zeros = totals(np.zeros(20_000))

    def noise(round):
        new, _ = privacy.released(made, made.draw(3, round, np.float32(2)), zeros)
        return np.asarray(new.deltas) / (0.7 * 2.0 * 1.25**0.5)

    first, second, third = map(noise, range(3))
    independent = [draw(i).normal(first.shape, streams.PRIVACY) for i in range(3)]
    np.testing.assert_allclose(first, independent[0], atol=1e-5)
    expected = independent[1] - independent[0] / 2
    np.testing.assert_allclose(second, expected, atol=1e-5)
    expected = independent[2] - independent[1] / 2 + independent[0] / 4
    np.testing.assert_allclose(third, expected, atol=1e-5)
    # What three rounds come to has less noise than of independent vectors.
    together = (first + second + third) * 1.25**0.5
    assert together.std() < np.sum(independent, axis=0).std()


def test_the_sum_is_of_m_clients_who_trained_everything():
    new, clip = privacy.released(mechanism(), draw(clip=2.0), totals(np.ones(5)))
    assert new.weights.tolist() == [3.0, 3.0]
    assert float(new.cohort) == 3.0
    assert float(clip) == 2.0
    assert new.message is new.numbers is new.held is None


def test_variances_and_ranges_stay_positive():
    def block(var, mean, largest):
        return {
            "params": {"bias": jnp.array(-3.0)},
            "norms": {"mean": jnp.array(mean), "var": jnp.array(var)},
            "ranges": {"range": jnp.array(largest)},
            "backward": {},
        }

    (made,) = privacy.bounded((block(-1.0, -2.0, 0.9),), (block(1.0, 0.0, 2.0),))
    assert float(made["norms"]["var"]) == 0.5
    assert float(made["norms"]["mean"]) == -2.0
    assert float(made["ranges"]["range"]) == 1.0
    assert float(made["params"]["bias"]) == -3.0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epsilon": 8.0}, "privacy.epsilon: expected privacy.clip above 0 beside it"),
        ({"clip": 1.0}, "privacy.clip: expected privacy.noise or privacy.epsilon"),
        ({"clip": -1.0}, "privacy.clip: expected 0 or a number from 1e-09 to 1e"),
        ({"clip": 1.0, "noise": 1.0, "clip_rate": 0.3}, "privacy.clip_rate: expected"),
        ({"clip": 1.0, "noise": 1.0, "delta": 0.5}, "privacy.delta: expected a number"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings, line):
    with pytest.raises(ValueError, match=r"^privacy") as error:
        fljax.Privacy(**settings)
    assert str(error.value).startswith(line)


# --- what is spent, against dp-accounting's own


def spent(accountant, event, times, delta=1e-5):
    accountant.compose(event, times)
    return accountant.get_epsilon(delta)


def test_epsilon_of_fixed_cohorts_is_dp_accountings_of_half_the_noise():
    import dp_accounting as dp

    accountant = dp.rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
    )
    half = dp.GaussianDpEvent(0.5)
    event = dp.SampledWithoutReplacementDpEvent(1000, 50, half)
    found = accounting.epsilon(accounting.Fixed(1000, 50), 1.0, 1e-5, 1000)
    assert found == pytest.approx(spent(accountant, event, 1000), rel=1e-9)
    assert found == pytest.approx(251.5, abs=0.1)


def test_epsilon_of_poisson_cohorts_is_dp_accountings():
    import dp_accounting as dp

    accountant = dp.pld.PLDAccountant(
        dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=accounting.INTERVAL,
    )
    event = dp.dp_event.TruncatedSubsampledGaussianDpEvent(1000, 0.05, 80, 1.0)
    found = accounting.epsilon(accounting.Poisson(1000, 50, 80), 1.0, 1e-5, 1000)
    assert found == pytest.approx(spent(accountant, event, 1000), rel=1e-6)
    assert found == pytest.approx(11.003, rel=1e-3)  # of ten times finer losses


def test_epsilon_of_known_clients_is_dp_accountings_of_gaussian_noise():
    import dp_accounting as dp

    accountant = dp.pld.PLDAccountant(
        dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    found = accounting.epsilon(accounting.Known(), 2.0, 1e-5, 9)
    expected = spent(accountant, dp.GaussianDpEvent(2.0), 9)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "cohort",
    [accounting.Poisson(1000, 50, 80), accounting.Fixed(1000, 10), accounting.Known()],
    ids=lambda x: type(x).__name__,
)
def test_the_noise_that_is_found_spends_the_budget(cohort):
    found = accounting.noise_for(cohort, 4.0, 1e-6, 20)
    assert 4 * 0.998 < accounting.epsilon(cohort, found, 1e-6, 20) <= 4
    times = accounting.times_for(cohort, found, 1e-6, 4.0)
    assert 20 <= times <= 21
    assert accounting.epsilon(cohort, found, 1e-6, times + 1) > 4
    assert accounting.epsilon(cohort, found, 1e-6, 0) == 0


def test_a_budget_that_no_noise_keeps_is_refused():
    cohort = accounting.Poisson(10, 5, 8)
    with pytest.raises(ValueError, match=r"^--privacy.epsilon: expected a budget"):
        accounting.noise_for(cohort, 1e-3, 1e-12, 10**6)
