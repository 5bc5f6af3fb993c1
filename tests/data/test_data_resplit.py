"""Training and test examples split anew."""

import numpy as np
import pytest

from fljax.data import resplit


def arrays(**more):
    x = np.arange(20)[:, None]
    return {
        **{"x_train": x[:10], "x_test": x[10:]},
        **{"y_train": np.arange(10), "y_test": np.arange(10, 20)},
        **more,
    }


def test_every_example_is_on_one_side():
    users = {"users": np.arange(10) % 3, "users_test": np.arange(10, 20) % 3}
    new = resplit.split("x", arrays(**users), 0.2, seed=1)
    assert len(new["y_test"]) == 4
    assert sorted([*new["y_train"], *new["y_test"]]) == list(range(20))
    for part in ("train", "test"):
        np.testing.assert_array_equal(new[f"x_{part}"][:, 0], new[f"y_{part}"])
    np.testing.assert_array_equal(new["users"], new["y_train"] % 3)
    np.testing.assert_array_equal(new["users_test"], new["y_test"] % 3)
    again, other = (resplit.split("x", arrays(), 0.2, seed=s)["y_test"] for s in (1, 2))
    np.testing.assert_array_equal(new["y_test"], again)
    assert np.any(again != other)


def test_no_share_changes_nothing():
    given = arrays(users=np.arange(10))
    assert resplit.split("x", given, 0.0, seed=1) == given


@pytest.mark.parametrize(
    ("changes", "share", "message"),
    [
        ({"users": np.arange(10)}, 0.2, "--test_share expects .*, got users of the"),
        ({}, 0.01, "--test_share=0.01 of 20 examples leaves 0 to test and 20 to train"),
        ({"x_test": np.zeros((0, 1))}, 0.0, "expected test examples, got none"),
    ],
)
def test_bad_splits(changes, share, message):
    with pytest.raises(ValueError, match=message):
        resplit.split("x", arrays(**changes), share, seed=1)
