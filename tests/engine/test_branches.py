"""Branches at run time: gradients in two halves, and what is not run left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.engine.program import branches
from fljax.runtime import programs

SIZE = 100_003


def double_if(condition, x, place):
    return branches.when(condition, lambda x: (2 * x, x + 1), (x,), place)


@pytest.mark.parametrize("condition", [True, False])
def test_a_function_runs_or_its_place_is_left(condition):
    place = jnp.full(3, 7.0), jnp.full(3, 8.0)
    doubled, more = jax.jit(double_if)(condition, jnp.arange(3.0), place)
    expected = ([0, 2, 4], [1, 2, 3]) if condition else ([7] * 3, [8] * 3)
    assert (doubled.tolist(), more.tolist()) == expected


@pytest.mark.parametrize("condition", [True, False, None])
def test_a_function_runs_or_gives_zeros_for_all_that_are_mapped(condition):
    @jax.jit
    def doubled(x, condition):
        def one(x):
            return branches.or_zeros(condition, lambda x: (2 * x, x > 1), (x,))

        return jax.vmap(one)(x)

    x = jnp.arange(3.0)
    twice, above = doubled(x, condition)
    expected = ([0] * 3, [False] * 3)
    if condition is not False:
        expected = ([0, 2, 4], [False, False, True])
    assert (twice.tolist(), above.tolist()) == expected
    body = str(jax.make_jaxpr(doubled)(x, condition))
    assert ("cond[" in body) == (condition is not None)  # it is no select


def test_two_halves_give_the_gradient():
    @jax.jit
    def halves(x, w, g):
        function = branches.Differentiable(lambda x, w: (jnp.sin(x @ w), jnp.max(x)))
        (y, largest), kept = function.forward(x, w)
        assert [k.shape for k in kept] == [(2, 4)]  # cos(x @ w); x and w are operands
        return y, largest, function.backward((x, w), kept, g)

    x, w = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 3), (3, 4)])
    )
    g = jnp.arange(8.0).reshape(2, 4)
    y, largest, gradients = halves(x, w, g)
    expected, pull = jax.vjp(lambda x, w: jnp.sin(x @ w), x, w)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert largest == jnp.max(x)
    for ours, theirs in zip(gradients, pull(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_fixed_operand_has_no_gradient_and_is_not_kept():
    def halves(tokens, table, g):
        function = branches.Differentiable(lambda i, t: (t[i], None), fixed=1)
        _, kept = function.forward(tokens, table)
        assert not any(k is tokens for k in kept)
        return function.backward((tokens, table), kept, g)

    (gradient,) = jax.jit(halves)(jnp.array([2, 0]), jnp.zeros(3), jnp.array([5.0, 7]))
    assert gradient.tolist() == [7, 0, 5]


def test_what_the_wanted_gradient_does_not_read_is_not_kept():
    @jax.custom_vjp
    def scaled(x, w):
        return x * w

    def forward(x, w):
        return x * w, (x, w)

    def backward(residuals, g):
        x, w = jax.lax.optimization_barrier(residuals)
        return g * w, jnp.sum(g * x)

    scaled.defvjp(forward, backward)

    def run(x, g):
        function = branches.Differentiable(lambda x: (scaled(-x, jnp.float32(3)), None))
        _, kept = function.forward(x)
        shapes.extend(k.shape for k in kept)
        return function.backward((x,), kept, g)

    shapes: list[tuple] = []
    (gradient,) = jax.jit(run)(jnp.ones(5), jnp.arange(5.0))
    assert (5,) not in shapes  # -x, which the gradient of w alone reads
    assert gradient.tolist() == [0, -3, -6, -9, -12]


def test_places_in_a_loop_are_not_copied():
    def step(_, carry):
        x, role, value, kept, late, cotangent = carry
        inside, behind = role == 1, role == 2
        train = branches.Differentiable(lambda x: (jnp.sin(x), None))
        after = branches.Differentiable(lambda x: (jnp.cos(x), None))
        (y, _), kept = branches.when(inside, train.forward, (x,), ((value, None), kept))
        (y, _), late = branches.when(behind, after.forward, (x,), ((y, None), late))
        g = 2 * y
        given = branches.when(inside, train.backward, ((x,), kept, g), (cotangent,))
        (given,) = branches.when(behind, after.backward, ((x,), late, g), given)
        return x + jnp.sum(given), role, y, kept, late, given

    def run(*carry):
        return jax.lax.fori_loop(0, 3, step, carry)

    x = jnp.ones(SIZE)
    compiled = (
        jax.jit(run, donate_argnums=(0, 2, 3, 4, 5))
        .lower(x, 0, x, [x], [x], x)
        .compile(compiler_options=programs.compiler_options())
    )
    body, _ = compiled.as_text().split("\nENTRY ")
    copies = [
        line for line in body.splitlines() if " copy(" in line and f"[{SIZE}]" in line
    ]
    assert "conditional(" in body
    assert not copies, "\n".join(copies)


def test_what_never_holds_is_not_compiled():
    def three(condition, x):
        return branches.or_zeros(condition, lambda x: (3 * x, x > 1), (x,))

    x = jnp.array([1.0, 2.0])
    never, always = three(False, x), three(None, x)
    assert never[0].tolist() == [0, 0]
    assert never[1].tolist() == [False, False]
    assert always[0].tolist() == [3, 6]
    assert "cond" not in str(jax.make_jaxpr(lambda x: three(False, x))(x))
