"""Pytree maths, by hand."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import trees

A = {"w": jnp.array([1.0, -2.0]), "b": (jnp.float32(3.0),)}
B = {"w": jnp.array([0.5, 4.0]), "b": (jnp.float32(-1.0),)}


def test_examples_run():
    result = doctest.testmod(trees)
    assert result.attempted >= 1
    assert result.failed == 0


def test_what_is_not_kept_has_no_leaf():
    tree = ({"w": jnp.ones(2)}, {"w": jnp.zeros(3), "b": jnp.zeros(1)}, {})
    kept = trees.keep(tree, (False, True, False))
    assert [x.shape for x in jax.tree.leaves(kept)] == [(1,), (3,)]
    assert kept[0] is kept[2] is None
    with pytest.raises(ValueError, match="shorter"):
        trees.keep((1, 2), (True,))


@pytest.mark.parametrize(
    ("result", "w", "b"),
    [
        (trees.subtract(A, B), [0.5, -6.0], 4.0),
        (trees.select(jnp.asarray(True), A, B), [1.0, -2.0], 3.0),
        (trees.select(jnp.asarray(False), A, B), [0.5, 4.0], -1.0),
    ],
    ids=["subtract", "select a", "select b"],
)
def test_arithmetic(result, w, b):
    np.testing.assert_array_equal(result["w"], w)
    assert result["b"][0] == b
    assert jax.tree.structure(result) == jax.tree.structure(A)


def test_subtract_keeps_what_is_not_there():
    assert trees.subtract((None, {"w": jnp.float32(2)}), (None, {"w": jnp.float32(5)}))[
        1
    ] == {"w": -3.0}


def test_select_is_not_led_astray_by_nan():
    bad = {"w": jnp.array([jnp.nan]), "b": jnp.array([jnp.inf])}
    good = {"w": jnp.array([1.0]), "b": jnp.array([2.0])}
    chosen = trees.select(jnp.asarray(False), bad, good)
    assert (chosen["w"], chosen["b"]) == (1.0, 2.0)


def test_weighted_sum_by_hand():
    tree = {
        "scalar": jnp.array([1.0, 10.0, 100.0]),
        "matrix": jnp.arange(12.0).reshape(3, 2, 2),
    }
    total = trees.weighted_sum(tree, jnp.array([2.0, 0.0, 0.5]))
    assert total["scalar"] == 52.0
    # 2 * [[0, 1], [2, 3]] + 0.5 * [[8, 9], [10, 11]]
    np.testing.assert_array_equal(total["matrix"], [[4, 6.5], [9, 11.5]])


def test_weight_zero_drops_what_is_not_finite():
    x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    np.testing.assert_array_equal(
        trees.weighted_sum(x, jnp.array([3.0, 0.0])), [3.0, 6.0]
    )
    assert np.isnan(trees.weighted_sum(x, jnp.array([3.0, 1.0]))[0])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite(bad):
    codes = jnp.array([1, 2], jnp.int8)
    assert trees.all_finite({"x": jnp.ones(3), "codes": codes})
    assert not trees.all_finite({"x": jnp.ones(3), "y": (jnp.array([0.0, bad]), codes)})


def test_a_tree_without_floats_is_finite():
    assert trees.all_finite(())
    assert trees.all_finite((None, jnp.array([1], jnp.int32)))


def test_size_counts_values():
    assert trees.size({"a": jnp.ones((2, 3)), "b": (jnp.float32(1), None)}) == 7


def test_ravel_keeps_the_order_of_the_leaves():
    tree = ({"b": jnp.array([[3.0, 4.0]]), "a": jnp.float32(2)}, None, jnp.ones(1))
    vector = trees.ravel(tree)
    np.testing.assert_array_equal(vector, [2, 3, 4, 1])
    back = trees.unravel(vector * 2, tree)
    np.testing.assert_array_equal(back[0]["b"], [[6, 8]])
    assert back[1] is None
