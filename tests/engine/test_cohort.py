"""Cohorts: batched equals one by one; in a round, what should not matter does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fljax import plans, trees
from fljax.data import partition
from fljax.engine import client, cohort, group
from fljax.engine import sums as totals
from fljax.engine.program import single
from fljax.runtime import mesh
from tests import conftest

FULL, MIDDLE, LATE = conftest.FULL, conftest.MIDDLE, conftest.LATE
# Client -> plan: a different one for each, in an order that is not that of the plans.
ASSIGNED = {0: LATE, 1: MIDDLE, 3: FULL}
COHORT = (0, 1, 3, 4)
RATE = 0.1


def round_key():
    return jax.random.fold_in(jax.random.key(5), 2)


def started(problem, size, devices=conftest.MESH):
    return totals.zero_sums(problem.blocks, size=size, devices=devices)


def begun(problem, key=None, rate=RATE, limits=((np.inf,) * 5,) * 2):
    """Gives what a round of the problem begins with."""
    return cohort.Round(
        problem.blocks,
        problem.data,
        round_key() if key is None else key,
        jnp.float32(rate),
        jnp.asarray(limits, jnp.float32),
    )


def run(
    problem,
    plan,
    ids,
    weights=None,
    width=1,
    cohort_ids=COHORT,
    sums=None,
    devices=conftest.MESH,
    limits=((np.inf,) * 5,) * 2,
    capacity=max(conftest.COUNTS),
    **changes,
):
    """Runs the clients of one plan out of a cohort; returns the devices' sums."""
    problem = problem._replace(**changes)
    if weights is None:
        weights = problem.shards.counts.astype(np.float32)
    clients = cohort.gather(np.array(cohort_ids), problem.shards, weights)
    positions = np.array([list(cohort_ids).index(number) for number in ids], np.int32)
    (few,) = cohort.spread([positions], clients.counts, devices.size, width)
    made_for = single.Single(plan, capacity)
    static = client.Static(problem.net, made_for, problem.training, width)
    return group.run_group(
        begun(problem, limits=limits),
        started(problem, len(cohort_ids), devices) if sums is None else sums,
        clients,
        few,
        static=static,
        devices=devices,
    )


def one_by_one(problem, plan, number):
    """Trains one client without a cohort."""
    return conftest.train_one(
        problem.blocks,
        problem.data,
        *conftest.shard(problem.shards, number),
        jax.random.fold_in(round_key(), number),
        jnp.float32(RATE),
        net=problem.net,
        plan=plan,
        training=problem.training,
    )


def test_totals_are_the_sum_over_clients_of_different_plans(problem):
    sums, ids = None, np.array(sorted(ASSIGNED))
    for plan, places in cohort.group_by([ASSIGNED[i] for i in ids], ids):
        sums = run(problem, plan, ids[places], cohort_ids=ids, sums=sums)
    added, losses, failed, l2, *_ = totals.total(sums)
    deltas = [jax.tree.map(np.zeros_like, block) for block in problem.blocks]
    weights = np.zeros(5)
    for place, number in enumerate(ids):
        plan = ASSIGNED[int(number)]
        result = one_by_one(problem, plan, number)
        weight = float(problem.shards.counts[number])
        np.testing.assert_allclose(losses[place], result.loss, rtol=1e-5)
        for i in range(plan.first, plan.last + 1):
            length = np.linalg.norm(trees.ravel(result.delta[i]["params"]))
            np.testing.assert_allclose(l2[place, 0, i], length, rtol=1e-4)
            deltas[i] = jax.tree.map(
                lambda sum_, d, w=weight: sum_ + w * d, deltas[i], result.delta[i]
            )
            weights[i] += weight
    # Weights 10 for blocks 3 and 4, 3 for block 2, 5 for all.
    np.testing.assert_array_equal(weights, [5, 5, 8, 15, 15])
    np.testing.assert_array_equal(added.weights, weights)
    np.testing.assert_array_equal(failed, np.zeros(3))
    summed = trees.unravel(added.deltas, problem.blocks)
    conftest.assert_close(summed, tuple(deltas), 1e-5)


@pytest.mark.parametrize("width", [2, 4, 16])
def test_width_and_padding_do_not_matter(problem, width):
    theirs = totals.total(run(problem, MIDDLE, [0, 1, 4]))
    ours = totals.total(run(problem, MIDDLE, [0, 1, 4], width=width))
    conftest.assert_close(ours, theirs, 1e-5)
    assert ours.losses[2] == 0  # client 3 is in the cohort, not in the group


def test_batches_larger_than_every_shard_are_cut_to_the_largest(problem):
    capacity = max(conftest.COUNTS)
    large, whole = (problem.training._replace(batch_size=b) for b in (64, capacity))
    assert client.fitting(large, capacity) == whole
    assert client.fitting(whole._replace(batch_size=4), capacity).batch_size == 4
    ours = run(problem, MIDDLE, [1], training=large)
    conftest.assert_same_bits(ours, run(problem, MIDDLE, [1], training=whole))
    result = one_by_one(problem._replace(training=large), MIDDLE, 1)  # of 64 rows
    np.testing.assert_allclose(totals.total(ours).losses[1], result.loss, rtol=1e-5)


def test_room_for_more_examples_changes_nothing(problem):
    # Client 5 is the last: its slots of no example lie behind the table.
    ours = run(problem, MIDDLE, [4, 5], cohort_ids=(4, 5, 0, 1), capacity=16)
    theirs = run(problem, MIDDLE, [4, 5], cohort_ids=(4, 5, 0, 1))
    conftest.assert_same_bits(ours, theirs)


def test_a_client_does_not_depend_on_its_slot_or_company(problem):
    alone = totals.total(run(problem, MIDDLE, [4]))
    losses = totals.total(run(problem, MIDDLE, [1, 4, 0])).losses
    turned = totals.total(run(problem, MIDDLE, [4, 1], cohort_ids=(4, 1, 5))).losses
    assert losses[3] == alone.losses[3] == turned[0]
    assert losses[1] == turned[1]
    conftest.assert_close(
        trees.unravel(alone.totals.deltas, problem.blocks)[2],
        jax.tree.map(lambda d: 4 * d, one_by_one(problem, MIDDLE, 4).delta[2]),
        1e-5,
    )


def test_a_rerun_is_the_same_to_the_bit(problem):
    conftest.assert_same_bits(
        run(problem, MIDDLE, [0, 1, 4]), run(problem, MIDDLE, [0, 1, 4])
    )


def test_a_plan_compiles_once(problem):
    run(problem, MIDDLE, [0, 1, 4])
    programs = group.run_group._cache_size()
    for ids in ([3], [0, 1, 3, 4], [3, 4]):
        run(problem, MIDDLE, ids)
    weights = np.full(6, 0.5, np.float32)
    sums = run(problem, MIDDLE, [3], weights)
    moved = jax.tree.map(lambda x: x + 0.01, problem.blocks)
    run(problem, MIDDLE, [0], blocks=moved, sums=sums)
    clients = cohort.gather(np.array(COHORT), problem.shards, weights)
    group.run_group(
        begun(problem, jax.random.key(77), 0.001),
        started(problem, 4),
        clients,
        cohort.spread([np.array([1])], clients.counts, 1, 1)[0],
        static=client.Static(
            conftest.NET._replace(),  # equal, not the same object
            single.Single(plans.Plan(2, 2), max(conftest.COUNTS)),
            problem.training._replace(),
        ),
        devices=mesh.make(),
    )
    assert group.run_group._cache_size() == programs


def with_infinity(problem, number):
    """Gives the data with an infinite image in the shard of one client."""
    image = int(problem.shards.indices[problem.shards.starts[number]])
    return problem.data._replace(x=problem.data.x.at[image].set(jnp.inf))


@pytest.mark.parametrize("width", [1, 2])
def test_a_client_that_is_not_finite_is_named_by_its_place(problem, width):
    bad = with_infinity(problem, 1)
    sums = totals.total(run(problem, FULL, [0, 1, 4], width=width, data=bad))
    np.testing.assert_array_equal(sums.failed, [0, 1, 0, 0])
    theirs = totals.total(run(problem, FULL, [0, 4]))
    conftest.assert_close(sums.totals, theirs.totals, 1e-5)
    # A weight of 0 drops the client from the sums, and from the complaints.
    weights = np.array([10, 0, 8, 5, 4, 10], np.float32)
    sums = totals.total(run(problem, FULL, [0, 1, 4], weights, width=width, data=bad))
    assert not sums.failed.any()
    conftest.assert_close(sums.totals, theirs.totals, 1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_an_update_beyond_the_limits_of_its_window_is_refused(problem, width):
    free = totals.total(run(problem, LATE, [0, 1, 4], width=width))
    lengths = np.sqrt(np.sum(np.square(free.l2[:, 0]), axis=1))
    assert np.count_nonzero(lengths) == 3
    longest = int(np.argmax(lengths))
    # Half of the allowed square lies in each of the window's blocks; those of blocks
    # that are not in the window do not count.
    bound = np.sort(lengths)[-2:].mean() ** 2
    limits = [[np.inf] * 3 + [bound / 2] * 2, [np.inf] * 5]
    sums = totals.total(run(problem, LATE, [0, 1, 4], width=width, limits=limits))
    expected = np.zeros(4)
    expected[longest] = totals.TOO_LARGE
    np.testing.assert_array_equal(sums.failed, expected)
    others = [i for i in (0, 1, 4) if i != COHORT[longest]]
    theirs = totals.total(run(problem, LATE, others))
    conftest.assert_close(sums.totals, theirs.totals, 1e-5)
    # What was refused is measured all the same.
    np.testing.assert_allclose(sums.l2[longest], free.l2[longest], 1e-5)


def test_statistics_beyond_their_limits_are_refused_too(problem):
    free = np.asarray(totals.total(run(problem, LATE, [0, 1, 4])).l2)
    lengths = np.sqrt(np.sum(np.square(free[:, 1]), axis=1))
    longest = int(np.argmax(lengths))
    bound = np.sort(lengths)[-2:].mean() ** 2
    limits = [[np.inf] * 5, [0, 0, 0, bound / 2, bound / 2]]
    sums = totals.total(run(problem, LATE, [0, 1, 4], limits=limits))
    assert np.flatnonzero(sums.failed).tolist() == [longest]
    assert sums.failed[longest] == totals.TOO_LARGE


def test_tampered_updates_and_stale_ones(problem):
    weights = np.ones(6, np.float32)
    ids = np.array([0, 1, 4])
    tampering = np.array([1, np.nan, 1], np.float32)
    scales = np.array([1, 1, 0.5], np.float32)
    factors = cohort.Factors(tampering, scales)
    clients = cohort.gather(ids, problem.shards, weights, 5, factors=factors)
    assert clients.indices is problem.shards.indices
    assert [len(field) for field in clients[1:8]] == [5] * 7
    (few,) = cohort.spread([np.arange(3)], clients.counts[:3], 1, 1, 5)
    late = single.Single(LATE, max(conftest.COUNTS))
    sums = totals.total(
        group.run_group(
            begun(problem),
            started(problem, 5),
            clients,
            few,
            static=client.Static(problem.net, late, problem.training),
            devices=conftest.MESH,
        )
    )
    np.testing.assert_array_equal(sums.failed, [0, totals.NOT_FINITE, 0, 0, 0])
    first, last = (one_by_one(problem, LATE, i).delta for i in (0, 4))
    expected = jax.tree.map(lambda a, b: a + 0.5 * b, first[3:], last[3:])
    summed = trees.unravel(sums.totals.deltas, problem.blocks)[3:]
    conftest.assert_close(summed, expected, 1e-5)
    # What is stale moves the network less, but counts as one of the cohort.
    assert float(sums.totals.cohort) == 2
    np.testing.assert_array_equal(sums.totals.weights, [0, 0, 0, 2, 2])


def test_codes_do_not_hide_what_is_not_finite(problem):
    # Rounded to codes, NaN is some integer: a frozen prefix must not make it finite.
    bad = with_infinity(problem, 1)
    sums = totals.total(run(problem, MIDDLE, [0, 1, 4], data=bad))
    np.testing.assert_array_equal(sums.failed, [0, 1, 0, 0])


def test_groups_are_in_order_of_plan_and_number():
    narrow = plans.Plan(2, 2, 4)
    assigned = [LATE, MIDDLE, LATE, FULL, narrow]
    ids = np.array([9, 4, 2, 7, 1])
    groups = cohort.group_by(assigned, ids)
    assert [(plan, ids[places].tolist()) for plan, places in groups] == [
        (FULL, [7]),
        (narrow, [1]),
        (MIDDLE, [4]),
        (LATE, [2, 9]),
    ]


def test_clients_are_gathered_by_hand():
    shards = partition.index_table([np.array(x) for x in ([7, 8], [9], [3, 4])])
    weights = np.array([0.5, 1.0, 2.0])
    clients = cohort.gather(np.array([2, 1]), shards, weights)
    np.testing.assert_array_equal(clients.ids, [2, 1])
    np.testing.assert_array_equal(clients.starts, [3, 2])
    np.testing.assert_array_equal(clients.counts, [2, 1])
    np.testing.assert_array_equal(clients.weights, [2, 1])
    assert [x.dtype for x in (clients.counts, clients.weights)] == [
        np.int32,
        np.float32,
    ]


def test_chunks_are_dealt_out_by_hand():
    # Work 5 and 4 to a device each, 3 to that of 4, then 2 to that of 5 (its 7 to 7).
    groups = [np.array([0, 1, 2, 3]), np.array([4])]
    work = np.array([3, 5, 2, 4, 1])
    first, second = cohort.spread(groups, work, 2, 1)
    np.testing.assert_array_equal(first.positions, [[1, 2, 5], [3, 0, 5]])
    np.testing.assert_array_equal(first.sizes, [2, 2])
    np.testing.assert_array_equal(second.positions, [[4, 5, 5], [5, 5, 5]])
    np.testing.assert_array_equal(second.sizes, [1, 0])


@given(
    work=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    num_devices=st.integers(1, 9),
    width=st.integers(1, 5),
    num_groups=st.integers(1, 4),
)
def test_every_client_is_dealt_out_once(work, num_devices, width, num_groups):
    work = np.array(work)
    kinds = np.arange(len(work)) % num_groups
    groups = [np.flatnonzero(kinds == kind) for kind in range(num_groups)]
    dealt = cohort.spread(groups, work, num_devices, width)
    assert len({few.positions.shape for few in dealt}) == 1
    assert dealt[0].positions.shape[1] % width == 0
    for members, few in zip(groups, dealt, strict=True):
        rows = zip(few.positions, few.sizes, strict=True)
        found = np.concatenate([row[:size] for row, size in rows])
        np.testing.assert_array_equal(np.sort(found), members)
        assert (np.sort(few.positions, axis=None)[len(members) :] == len(work)).all()


def test_clients_of_like_windows_run_side_by_side_unless_their_work_differs():
    # Blocks of 1 and 2 operations: training both takes 9, the second alone 1 before it
    # and 3 x 2; side by side they take 1 + 3 and 3 x 2.
    windows = np.array([[0, 1], [1, 1], [0, 1], [1, 1]])
    roles = cohort.Roles(windows, np.array([1.0, 2.0]))
    np.testing.assert_allclose(roles.work(np.array([0, 1, 3]), 2), [10 / 9, 7 / 9])
    late = cohort.Roles(np.array([[0, 0]]), np.array([1.0, 2.0]))
    assert late.work(np.array([0]), 1) == pytest.approx((3 + 2 * 2) / 9)
    everybody, alike = np.arange(4), np.array([4, 4, 3, 3])
    ordered, loads = cohort.chunks(everybody, alike, 2, roles)
    assert ordered.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(loads, [2 * 4, 2 * 4 * 7 / 9])
    ordered, loads = cohort.chunks(everybody, np.array([9, 9, 1, 1]), 2, roles)
    assert ordered.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(loads, [2 * 9 * 10 / 9, 2 * 10 / 9])
    (dealt,) = cohort.spread([everybody], alike, 1, 2, roles=roles)
    assert dealt.positions.tolist() == [[0, 2, 1, 3]]


def test_the_load_is_near_even():
    work = np.random.default_rng(0).integers(1, 100, 400)
    (group,) = cohort.spread([np.arange(400)], work, 8, 1)
    loads = [work[row[row < 400]].sum() for row in group.positions]
    assert max(loads) / np.mean(loads) < 1.02
