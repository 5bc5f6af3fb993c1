"""Training and test examples shuffled together and split anew.

The paper's IMDB is such a split, of 80 % and 20 %; the set comes half and half.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fljax.data import checks
from fljax.runtime import streams


def split(
    name: str, arrays: Mapping[str, np.ndarray], share: float, seed: int
) -> dict[str, np.ndarray]:
    """Shuffle training and test examples together and split them anew.

    Args:
      name: opens every error.
      arrays: x_train, y_train, x_test, y_test; with users also users_test.
      share: of all examples that are for testing; 0: nothing is done.
      seed: of the permutation.

    Returns:
      The arrays, split anew; both parts keep the stored order.

    Raises:
      ValueError: a part is empty, or the users of the test examples are not known.
    """
    arrays = dict(arrays)
    users_test = arrays.get("users_test")
    if not share:
        if not len(arrays["x_test"]):
            raise ValueError(
                f"{name}: expected test examples, got none; split some off with "
                f"--test_share=0.2"
            )
        return arrays
    if "users" in arrays and users_test is None:
        raise ValueError(
            f"{name}: --test_share expects a set whose users are known for the test "
            f"examples too, or none, got users of the training examples only"
        )
    checks.rows(name, arrays)
    size = len(arrays["y_train"]) + len(arrays["y_test"])
    held = round(share * size)
    if not 0 < held < size:
        raise ValueError(
            f"{name}: --test_share={share:g} of {size} examples leaves {held} to test "
            f"and {size - held} to train; expected some of each"
        )
    order = streams.generator(seed, streams.TEST_SHARE).permutation(size)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    for key in "xy":
        whole = np.concatenate([arrays[f"{key}_train"], arrays[f"{key}_test"]])
        arrays |= {f"{key}_train": whole[train], f"{key}_test": whole[test]}
    if users_test is not None:
        users = np.concatenate([arrays["users"], users_test])
        arrays |= {"users": users[train], "users_test": users[test]}
    return arrays
