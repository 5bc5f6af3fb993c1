"""Random numbers on the host: the bits of JAX."""

import jax
import numpy as np
import pytest

from fljax.runtime import host_random, streams

IDS = np.array([0, 5, 77, 2**31 - 1])


@pytest.mark.parametrize("seed", [0, 11, 2**32 - 1])
def test_keys_are_those_of_jax(seed):
    theirs = jax.random.key(seed)
    np.testing.assert_array_equal(host_random.key(seed), jax.random.key_data(theirs))
    for data in (0, 3, 0xFFFF0001):
        np.testing.assert_array_equal(
            host_random.fold_in(host_random.key(seed), data),
            jax.random.key_data(jax.random.fold_in(theirs, np.uint32(data))),
        )


def test_draws_of_a_client_are_those_of_jax():
    key = jax.random.fold_in(jax.random.key(3), 9)
    use = jax.random.fold_in(key, np.uint32(streams.BUDGETS))
    expected = [
        jax.random.uniform(jax.random.fold_in(use, np.uint32(i)), (3,)) for i in IDS
    ]
    drawn = host_random.uniforms(key, streams.BUDGETS, IDS, 3)
    np.testing.assert_array_equal(drawn, np.stack(expected).astype(np.float64))
    host = host_random.fold_in(host_random.key(3), 9)
    again = host_random.uniforms(host, streams.BUDGETS, IDS, 3)
    np.testing.assert_array_equal(again, drawn)


def test_normals_are_normal_and_finite():
    drawn = host_random.normals(host_random.key(1), 7, np.arange(200_000))
    assert np.all(np.isfinite(drawn))
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert np.mean(np.abs(drawn) > 1.96) == pytest.approx(0.05, abs=0.003)
    lowest, highest = np.zeros((1, 2), np.uint32), np.full((1, 2), 2**32 - 1)
    for keys in (lowest, highest.astype(np.uint32)):
        assert np.isfinite(host_random.normal(keys)).all()


def test_streams_that_share_a_number_are_those_that_the_register_names():
    tags = {k: v for k, v in vars(streams).items() if k.isupper()}
    names = {}
    for name, number in tags.items():
        names.setdefault(number, set()).add(name)
    shared = {frozenset(group) for group in names.values() if len(group) > 1}
    assert shared == {
        frozenset({"TYPICAL", "TEST_SHARE"}),
        frozenset({"AVAILABILITY", "USER_SHARE"}),
        frozenset({"SPREAD", "TEST_TIERS"}),
    }
    folded = [number for number in names if number >= 2**31]
    assert min(folded) >= 0xFFFF0000  # out of the way of clients and rounds


def test_the_key_of_a_round_is_that_of_jax():
    for seed, index in ((0, 0), (7, 3), (2**32 - 1, 2**31 - 1)):
        key = jax.random.fold_in(jax.random.key(seed), index)
        words = host_random.of_round(seed, index)
        np.testing.assert_array_equal(words, jax.random.key_data(key))
        made = jax.random.wrap_key_data(words, impl="threefry2x32")
        assert made.dtype == key.dtype
