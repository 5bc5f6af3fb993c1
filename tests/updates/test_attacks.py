"""Attacks: numbers that can be checked by hand, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax.updates import attacks
from fljax.updates.attacks import together


def test_names_make_attacks():
    assert attacks.read("none") is None
    assert attacks.read("sign_flip:.2:weak").tier == "weak"
    assert attacks.read("ipm:.1:eps=.5").eps == 0.5
    made = attacks.read("backdoor:.1:target=3:poison=.25")
    assert (made.target, made.poison, made.size, made.share) == (3, 0.25, 3, 0.1)
    for name in attacks.BY_NAME:
        assert isinstance(attacks.read(f"{name}:0"), fljax.Attack)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sign_flip", "expected sign_flip:SHARE:TIER:FACTOR, got 'sign_flip'"),
        ("alie:1.5", "alie: share: expected a number from 0 to 1, got 1.5"),
        ("alie:nan", "alie: share: expected a number from 0 to 1, got nan"),
        ("ipm:.2:eps=-1", "ipm: eps: expected a number from 0 to 1e+38, got -1.0"),
        ("backdoor:.2:size=0", "backdoor: size: expected a number from 1 to "),
        ("backdoor:.2:poison=0", "backdoor: poison: expected a number above 0, up "),
        ("gaussian:.2:deviation=-1", "gaussian: deviation: expected a number from 0"),
        ("signflip:.2", "did you mean 'sign_flip'?"),
    ],
)
def test_what_is_no_attack_is_refused_in_a_line(text, line):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        attacks.read(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_programs_know_no_shares_and_one_stands_for_all_who_collude():
    for name in attacks.BY_NAME:
        few, many = (attacks.read(f"{name}:{share}") for share in ("0.1:weak", "0.3"))
        assert few != many
        assert few.of_clients == many.of_clients
    alie, least = (attacks.read(f"{name}:.1") for name in ("alie", "min_max"))
    assert alie.of_clients == least.of_clients
    assert attacks.read("sign_flip:.1:factor=2").of_clients.factor == 2


# --- who knows nothing of others


def test_a_flipped_update_goes_the_other_way():
    flip = attacks.read("sign_flip:.2:factor=2")
    sent = flip.sent(jax.random.key(0), jnp.array([1.0, -2.0, 0.0]))
    assert sent.tolist() == [-2.0, 4.0, 0.0]


def test_noise_has_its_mean_and_deviation():
    noise = attacks.read("gaussian:.2").sent(jax.random.key(0), jnp.zeros(40_000))
    assert abs(float(noise.mean()) - 0.1) < 0.002
    assert abs(float(noise.std()) - 0.1) < 0.002


def batch(size=8, real=6, shape=(4, 5, 2)):
    x = jnp.arange(size * np.prod(shape), dtype=jnp.float32).reshape(size, *shape)
    labels = jnp.arange(size) % 3
    return attacks.Examples(x, labels, real, np.array([0.5, 0.25]), np.array([2, 4]), 3)


def test_labels_are_flipped():
    x, labels = attacks.read("label_flip:.2").poisoned(batch())
    assert labels.tolist() == [2, 1, 0, 2, 1, 0, 2, 1]
    assert jnp.array_equal(x, batch().x)


def test_a_square_of_white_leads_to_the_target():
    attack, given = attacks.read("backdoor:.2:target=1:poison=.5:size=2"), batch()
    x, labels = attack.poisoned(given)
    # 3 of 6 examples, and the padding, which repeats the first.
    assert labels.tolist() == [1, 1, 1, 0, 1, 2, 1, 1]
    marked = jnp.array([True] * 3 + [False] * 3 + [True] * 2)
    square = x[:, 2:, 3:]
    # (1 - mean) / std of each channel
    white = jnp.broadcast_to(jnp.array([0.25, 0.1875]), (5, 2, 2, 2))
    assert jnp.array_equal(square[marked], white)
    assert jnp.array_equal(square[~marked], given.x[~marked][:, 2:, 3:])
    rest = x.at[:, 2:, 3:].set(0)
    assert jnp.array_equal(rest, given.x.at[:, 2:, 3:].set(0))
    assert jnp.array_equal(attack.marked(given)[~marked, 2:, 3:][0], square[0])


@pytest.mark.parametrize(
    ("text", "shape", "classes", "line"),
    [
        ("label_flip:.2", (8, 8, 1), 0, "expected a task of classes"),
        ("backdoor:.2", (20,), 3, "expected images of 3 pixels or more"),
        ("backdoor:.2:size=9", (8, 8, 1), 3, "expected images of 9 pixels or more"),
        ("backdoor:.2:target=3", (8, 8, 1), 3, "target: expected a class from 0 to 2"),
    ],
)
def test_data_that_an_attack_makes_no_sense_of(text, shape, classes, line):
    with pytest.raises(ValueError, match=line):
        attacks.read(text).check(shape, classes)


# --- who knows all


def test_how_far_alie_goes():
    for cohort, hostile, z in ((10, 4, 0.430727), (10, 2, 0.0), (50, 12, 0.336038)):
        found = together.alie_z(jnp.asarray(cohort), jnp.asarray(hostile))
        assert float(found) == pytest.approx(z, abs=2e-6)
    for cohort, hostile in ((1, 1), (2, 1), (3, 3), (4, 3)):  # a majority
        found = together.alie_z(jnp.asarray(cohort), jnp.asarray(hostile))
        assert np.isfinite(found)


def known(rows, trained, hostile, sizes):
    as_numbers = jnp.asarray(rows, jnp.float32)
    return attacks.know(as_numbers, jnp.asarray(trained), jnp.asarray(hostile), sizes)


def test_statistics_are_of_the_honest_who_trained():
    rows = [[1.0, 1.0, 5.0], [3.0, 3.0, 0.0], [9.0, 9.0, 9.0], [0.0, 0.0, 7.0]]
    trained = [[True, True], [True, False], [True, True], [False, True]]
    found = known(rows, trained, [False, False, True, False], (2, 1))
    assert found.mean.tolist() == [2.0, 2.0, 6.0]
    assert found.deviation.tolist() == [1.0, 1.0, 1.0]  # ddof 0
    assert (int(found.cohort), int(found.hostile)) == (4, 1)
    assert attacks.read("ipm:.2:eps=.5").together(found).tolist() == [-1.0, -1.0, -3.0]
    nobody = known(rows, trained, [True] * 4, (2, 1))
    for name in ("alie", "ipm", "min_max"):
        assert attacks.read(f"{name}:.2").together(nobody).tolist() == [0.0] * 3


def test_alie_sends_mean_minus_deviations():
    rows = [[1.0], [3.0], [1.0], [3.0], [1.0], [3.0], *[[50.0]] * 4]
    found = known(rows, [[True]] * 10, [False] * 6 + [True] * 4, (1,))
    sent = attacks.read("alie:.4").together(found)
    assert float(sent[0]) == pytest.approx(2 - 0.430727, abs=1e-5)


def farthest(rows, here, sizes, mean, deviation):
    """Bisects for min-max, client by client."""
    block_of = np.repeat(np.arange(len(sizes)), sizes)

    def apart(one, two, both):
        both = both[block_of]
        return np.mean((one - two)[both] ** 2) if both.any() else 0.0

    honest = np.flatnonzero(here.any(axis=1))
    most = max(
        apart(rows[i], rows[j], here[i] & here[j]) for i in honest for j in honest
    )

    def fits(g):
        bad = mean - g * deviation
        return all(apart(bad, rows[i], here[i]) <= most for i in honest)

    low, high = 0.0, 1e4
    if not fits(low):
        return 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@pytest.mark.parametrize("windows", [False, True])
def test_min_max_is_as_far_as_a_search_finds(windows):
    sizes, number = (5, 9, 3), 8
    for seed in range(5):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(number, sum(sizes))) + 3
        trained = np.ones((number, 3), bool)
        if windows:
            first, last = np.sort(random.integers(0, 3, (2, number)), axis=0)
            blocks = np.arange(3)
            trained = (first[:, None] <= blocks) & (blocks <= last[:, None])
        hostile = np.arange(number) % 4 == 1
        found = known(rows, trained, hostile, sizes)
        mean, deviation = (np.asarray(x) for x in (found.mean, found.deviation))
        g = farthest(rows, trained & ~hostile[:, None], sizes, mean, deviation)
        assert g > 0 or windows
        sent = attacks.read("min_max:.2").together(found)
        np.testing.assert_allclose(sent, mean - g * deviation, atol=2e-4)


def test_min_max_of_two_is_at_the_edge():
    # Mean 1, deviation 1, 2 apart: 1 - g is 2 away from 2 at g = 1.
    found = known([[0.0], [2.0], [9.0]], [[True]] * 3, [False, False, True], (1,))
    assert attacks.read("min_max:.2").together(found).tolist() == [0.0]
