"""Cohorts: batched equals one by one, and nothing that should not matter matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import cohort, plans, server, trees
from tests import conftest

FULL, MIDDLE, LATE = conftest.FULL, conftest.MIDDLE, conftest.LATE
# Client -> plan: a different one for each, in an order that is not that of the plans.
ASSIGNED = {0: LATE, 1: MIDDLE, 3: FULL}
RATE = 0.1


def round_key():
    return jax.random.fold_in(jax.random.key(5), 2)


def run(problem, plan, ids, weights=None, slots=4, width=1, totals=None, **changes):
    """Runs the clients of one plan; returns totals and reports."""
    problem = problem._replace(**changes)
    if weights is None:
        weights = problem.shards.counts.astype(np.float32)
    if totals is None:
        totals = server.zero_totals(problem.blocks)
    return cohort.run_group(
        problem.blocks,
        totals,
        problem.data,
        cohort.make_group(np.array(ids), *problem.shards, weights, slots),
        round_key(),
        jnp.float32(RATE),
        net=problem.net,
        plan=plan,
        training=problem.training,
        width=width,
    )


def one_by_one(problem, plan, number):
    """Trains one client without a cohort."""
    return conftest.train_one(
        problem.blocks,
        problem.data,
        problem.shards.indices[number],
        problem.shards.counts[number],
        jax.random.fold_in(round_key(), number),
        jnp.float32(RATE),
        net=problem.net,
        plan=plan,
        training=problem.training,
    )


def test_totals_are_the_sum_over_clients_of_different_plans(problem):
    totals, losses = server.zero_totals(problem.blocks), {}
    for plan, ids in cohort.group_by_plan(list(ASSIGNED.values()), np.array([0, 1, 3])):
        totals, reports = run(problem, plan, ids, totals=totals)
        losses[int(ids[0])] = float(reports.loss[0])
    deltas = [jax.tree.map(np.zeros_like, block) for block in problem.blocks]
    weights = np.zeros(5)
    for number, plan in ASSIGNED.items():
        result = one_by_one(problem, plan, number)
        weight = float(problem.shards.counts[number])
        np.testing.assert_allclose(losses[number], result.loss, rtol=1e-5)
        for i in range(plan.first, plan.last + 1):
            scaled = trees.scale(result.delta[i], weight)
            deltas[i] = jax.tree.map(np.add, deltas[i], scaled)
            weights[i] += weight
    # Weights 10 for blocks 3 and 4, 3 for block 2, 5 for all.
    np.testing.assert_array_equal(weights, [5, 5, 8, 15, 15])
    np.testing.assert_array_equal(totals.weights, weights)
    conftest.assert_close(totals.deltas, tuple(deltas), 1e-5)


@pytest.mark.parametrize(("width", "slots"), [(1, 7), (2, 4), (4, 4), (16, 16)])
def test_width_and_padding_do_not_matter(problem, width, slots):
    ids = [0, 1, 4]
    theirs, expected = run(problem, MIDDLE, ids)
    ours, reports = run(problem, MIDDLE, ids, slots=slots, width=width)
    conftest.assert_close(ours, theirs, 1e-5)
    np.testing.assert_allclose(reports.loss[:3], expected.loss[:3], rtol=1e-5)
    np.testing.assert_array_equal(reports.loss[3:], np.zeros(slots - 3))
    assert reports.loss.shape == reports.finite.shape == (slots,)
    assert reports.finite.all()


def test_a_client_does_not_depend_on_its_slot_or_company(problem):
    alone, of_one = run(problem, MIDDLE, [4])
    _, reports = run(problem, MIDDLE, [1, 4, 0])
    _, turned = run(problem, MIDDLE, [0, 1, 4])
    assert reports.loss[1] == of_one.loss[0] == turned.loss[2]
    conftest.assert_close(
        alone.deltas[2], trees.scale(one_by_one(problem, MIDDLE, 4).delta[2], 4.0), 1e-5
    )


def test_a_rerun_is_the_same_to_the_bit(problem):
    conftest.assert_same_bits(
        run(problem, MIDDLE, [0, 1, 4]), run(problem, MIDDLE, [0, 1, 4])
    )


def test_a_plan_compiles_once(problem):
    run(problem, MIDDLE, [0, 1, 4])
    programs = cohort.run_group._cache_size()
    for ids in ([3], [0, 1, 3, 4], [2, 5]):
        run(problem, MIDDLE, ids)
    weights = np.full(6, 0.5, np.float32)
    totals, _ = run(problem, MIDDLE, [5], weights)
    moved = jax.tree.map(lambda x: x + 0.01, problem.blocks)
    run(problem, MIDDLE, [5], blocks=moved, totals=totals)
    cohort.run_group(
        problem.blocks,
        server.zero_totals(problem.blocks),
        problem.data,
        cohort.make_group(np.array([1]), *problem.shards, weights, 4),
        jax.random.key(77),
        jnp.float32(0.001),
        net=conftest.NET._replace(),  # equal, not the same object
        plan=plans.Plan(2, 2),
        training=problem.training._replace(),
        width=1,
    )
    assert cohort.run_group._cache_size() == programs


def with_infinity(problem, number):
    """Gives the data with an infinite image in the shard of one client."""
    image = int(problem.shards.indices[number, 0])
    return problem.data._replace(x=problem.data.x.at[image].set(jnp.inf))


@pytest.mark.parametrize("width", [1, 2])
def test_a_client_that_is_not_finite_is_named_by_its_slot(problem, width):
    bad = with_infinity(problem, 1)
    totals, reports = run(problem, FULL, [0, 1, 4], width=width, data=bad)
    np.testing.assert_array_equal(reports.finite, [True, False, True, True])
    assert not trees.all_finite(totals.deltas)
    # A weight of 0 drops the client from the sums, and from the complaints.
    weights = np.array([10, 0, 8, 5, 4, 10], np.float32)
    totals, reports = run(problem, FULL, [0, 1, 4], weights, width=width, data=bad)
    assert reports.finite.all()
    theirs, _ = run(problem, FULL, [0, 4])
    conftest.assert_close(totals, theirs, 1e-5)


def test_codes_do_not_hide_what_is_not_finite(problem):
    # Rounded to codes, NaN is some integer: a frozen prefix must not make it finite.
    bad = with_infinity(problem, 1)
    _, reports = run(problem, MIDDLE, [0, 1, 4], data=bad)
    np.testing.assert_array_equal(reports.finite, [True, False, True, True])


def test_sample_is_drawn_without_replacement_from_the_candidates():
    candidates = np.array([3, 5, 8, 13, 21])
    ids = cohort.sample(1, 0, candidates, 4)
    assert len(set(ids.tolist())) == 4
    assert set(ids.tolist()) <= set(candidates.tolist())
    np.testing.assert_array_equal(ids, cohort.sample(1, 0, candidates, 4))
    others = [cohort.sample(s, r, candidates, 4).tolist() for s, r in ((1, 1), (2, 0))]
    assert ids.tolist() not in others


def test_sample_is_uniform():
    draws = [cohort.sample(7, r, np.arange(10), 3) for r in range(2000)]
    counts = np.bincount(np.concatenate(draws), minlength=10)
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600 * 0.7)


def test_groups_are_in_order_of_plan_and_number():
    narrow = plans.Plan(2, 2, 4)
    assigned = [LATE, MIDDLE, LATE, FULL, narrow]
    groups = cohort.group_by_plan(assigned, np.array([9, 4, 2, 7, 1]))
    assert [(plan, ids.tolist()) for plan, ids in groups] == [
        (FULL, [7]),
        (narrow, [1]),
        (MIDDLE, [4]),
        (LATE, [2, 9]),
    ]


def test_group_is_padded_by_hand():
    indices = np.arange(6).reshape(3, 2)
    counts, weights = np.array([2, 1, 2]), np.array([0.5, 1.0, 2.0])
    group = cohort.make_group(np.array([2, 1]), indices, counts, weights, 4)
    np.testing.assert_array_equal(group.ids, [2, 1, 0, 0])
    np.testing.assert_array_equal(group.indices[:2], [[4, 5], [2, 3]])
    np.testing.assert_array_equal(group.counts, [2, 1, 0, 0])
    np.testing.assert_array_equal(group.weights, [2, 1, 0, 0])
    assert group.size == 2
    assert [x.dtype for x in (group.counts, group.weights)] == [np.int32, np.float32]
