"""Algorithms: a round against its clients by hand, determinism, compile counts."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import algorithms, devices, plans, policies, types
from fljax.algorithms import base, centralized, cocofl, fedavg, fedavg_drop
from fljax.data import partition
from fljax.devices import fleet
from fljax.engine import client, federation, group, schedule
from fljax.engine.rounds import ending
from fljax.models import logistic
from fljax.nn import network
from fljax.plans import catalogue, costs
from fljax.runtime import programs
from tests import conftest

FULL, MIDDLE, LATE = conftest.FULL, conftest.MIDDLE, conftest.LATE
TIERS = (
    devices.Tier(name="strong", share=0.34, time=1.0, upload=1.0, memory=1.0),
    devices.Tier(name="weak", share=0.66, time=0.5, upload=(0.3, 0.7), memory=0.5),
)
TABLE = costs.CostTable(
    num_blocks=5,
    listed=plans.of_windows([[0, 4], [2, 2], [3, 4]]),
    time=np.array([1.0, 0.4, 0.3]),
    upload=np.array([1.0, 0.2, 0.5]),
    memory=np.array([1.0, 0.4, 0.3]),
)


def make(problem, **changes):
    fed = conftest.federated(problem.net, problem, TABLE, TIERS)  # 0, 0, 1, 1, 1, 1
    fed = fed.having(
        learning_rate=lambda index: 0.1 if index == 0 else 0.05, clients_per_round=4
    )
    return fed.having(**changes)


@pytest.fixture(scope="module")
def fed(problem):
    return make(problem)


@pytest.fixture(scope="module")
def start(fed):
    """Makes the state before the first round: the same for every algorithm."""
    return cocofl.cocofl(fed).init()


def play(algorithm, state, rounds, first=0):
    """Plays rounds; returns the state and the reports."""
    reports = []
    for index in range(first, first + rounds):
        state, report = algorithm.round(state, algorithm.assign(state, index))
        reports.append(report)
    return state, reports


def by_hand(fed, state, assignment, rate):
    """Gives old + r * (mean - old), and plain means of ranges, from single clients."""
    key = jax.random.fold_in(jax.random.key(fed.seed), assignment.round)
    keys = {k: jax.random.fold_in(key, k) for k in assignment.ids.tolist()}
    blocks = state.server.blocks
    theirs = [[] for _ in blocks]
    for number, plan in zip(assignment.ids.tolist(), assignment.plans, strict=True):
        result = conftest.train_one(
            blocks,
            fed.population.data,
            *conftest.shard(fed.population.shards, number),
            keys[number],
            jnp.float32(rate),
            net=fed.model.net,
            plan=plan,
            training=fed.training,
        )
        for i in range(plan.first, plan.last + 1):
            theirs[i].append(jax.tree.map(np.add, blocks[i], result.delta[i]))
    new = []
    for old, trained in zip(blocks, theirs, strict=True):
        share = len(trained) / len(assignment.ids)
        if not trained:
            new.append(old)
            continue
        mean = jax.tree.map(lambda *x: sum(map(np.float64, x)) / len(x), *trained)
        mixed = jax.tree.map(lambda m, o, r=share: r * m + (1 - r) * o, mean, old)
        plain = {name: mean[name] for name in ("ranges", "backward")}
        new.append({**mixed, **plain})
    return tuple(new)


def test_a_round_is_the_rule_of_the_paper_over_its_clients(fed, start):
    algorithm = cocofl.cocofl(fed)
    assignment = schedule.by_hand(2, np.array([4, 0, 3, 1]), [LATE, FULL, MIDDLE, LATE])
    state, report = algorithm.round(start, assignment)
    expected = by_hand(fed, start, assignment, 0.05)
    conftest.assert_close(state.server.blocks, expected, 1e-5)
    sizes = [block.upload_bytes for block in fed.model.counts]
    books = report.books
    assert books.upload_bytes == sum(sizes) + sizes[2] + 2 * (sizes[3] + sizes[4])
    assert books.download_bytes == 4 * sum(sizes)
    assert books.compute_share == pytest.approx((0.3 + 1 + 0.4 + 0.3) / 4)
    assert report.losses.shape == report.failed.shape == (4,)
    assert np.all(report.losses > 0)
    assert not np.any(report.failed)


def test_the_order_of_the_cohort_leaves_no_trace(fed, start):
    algorithm = cocofl.cocofl(fed)
    ids, assigned = np.array([4, 0, 3, 1]), [LATE, FULL, MIDDLE, LATE]
    first, _ = algorithm.round(start, schedule.by_hand(0, ids, assigned))
    turned, _ = algorithm.round(
        start, schedule.by_hand(0, ids[::-1].copy(), assigned[::-1])
    )
    conftest.assert_same_bits(turned, first)


def test_what_nobody_trained_is_bit_identical(fed, start):
    blocks = jax.tree.map(lambda x: x, start.server.blocks)
    for index in (0, 1, 3, 4):
        params = next(iter(blocks[index]["params"].values()))
        params["bias"] = params["bias"].at[0].set(-0.0)
    state = start._replace(server=start.server._replace(blocks=blocks))
    assignment = schedule.by_hand(1, np.array([2, 3, 5, 4]), [MIDDLE] * 4)
    new, _ = cocofl.cocofl(fed).round(state, assignment)
    for index in (0, 1, 3, 4):
        conftest.assert_same_bits(new.server.blocks[index], blocks[index])
        params = next(iter(new.server.blocks[index]["params"].values()))
        assert np.signbit(params["bias"][0])
    kernel = new.server.blocks[2]["params"]["conv"]["kernel"]
    assert np.any(kernel != blocks[2]["params"]["conv"]["kernel"])


def test_a_rerun_and_a_resumed_run_are_the_same_to_the_bit(fed, start):
    state, reports = play(cocofl.cocofl(fed), start, 3)
    again, _ = play(cocofl.cocofl(federation_again(fed)), start, 3)
    conftest.assert_same_bits(again, state)
    halfway, _ = play(cocofl.cocofl(fed), start, 1)
    # A checkpoint gives host arrays back.
    restored = jax.tree.map(np.array, halfway)
    resumed, late = play(cocofl.cocofl(fed), restored, 2, first=1)
    conftest.assert_same_bits(resumed, state)
    assert [r.assignment.plans for r in late] == [
        r.assignment.plans for r in reports[1:]
    ]
    assert state.server.round == 3


def federation_again(fed):
    """Copies what can be copied, so that only values can make runs equal."""
    return fed.having(
        data=jax.tree.map(jnp.array, fed.population.data),
        counts=network.counts(fed.model.net),
    )


def test_later_rounds_compile_nothing(fed, start):
    algorithm = cocofl.cocofl(fed)
    everyone = [FULL, MIDDLE, LATE, MIDDLE]
    assignment = schedule.by_hand(0, np.arange(4), everyone)
    state, _ = algorithm.round(start, assignment)
    before = group.num_programs(), ending.server_step._cache_size()
    # Other group sizes, clients and, from round 1 on, another learning rate.
    state, reports = play(algorithm, state, 5, first=1)
    used = {tuple(map(str, sorted(r.assignment.plans))) for r in reports}
    assert len(used) > 1
    assert before == (
        group.num_programs(),
        ending.server_step._cache_size(),
    )


def test_programs_that_make_room_leave_no_trace(fed, start, monkeypatch):
    algorithm = cocofl.cocofl(fed)
    assigned = [FULL, MIDDLE, LATE, MIDDLE]
    assignment = schedule.by_hand(0, np.arange(4), assigned)
    state, _ = algorithm.round(start, assignment)
    held, alive = [], []

    def executables():
        gc.collect()
        live = jax.devices()[0].client.live_executables()
        return sum(e.hlo_modules()[0].name == "jit_run_group" for e in live)

    def crowded():
        held.append(len(group.compiled_programs()))
        alive.append(executables())
        return True

    monkeypatch.setattr(group, "AT_ONCE", 1)
    monkeypatch.setattr(programs, "crowded", crowded)
    monkeypatch.setattr(group, "_programs", {})
    group.run_group.clear_cache()  # of other tests
    before = group.num_programs()
    again, _ = algorithm.round(start, assignment)
    conftest.assert_same_bits(again, state)
    assert held == [0, 1, 1]  # before each of the three is made
    assert group.num_programs() == before + 3
    # An executable that something still refers to would keep its memory maps.
    assert executables() == alive[0] + 1


def test_learning_rate_is_that_of_the_round(fed, start):
    rates = []

    def learning_rate(index):
        rates.append(index)
        return 0.0

    algorithm = cocofl.cocofl(fed.having(learning_rate=learning_rate))
    assignment = schedule.by_hand(6, np.array([2, 3, 4, 5]), [MIDDLE] * 4)
    new, _ = algorithm.round(start, assignment)
    assert rates == [6]
    conftest.assert_same_bits(
        [block["params"] for block in new.server.blocks],
        [block["params"] for block in start.server.blocks],
    )
    # What was observed changes all the same.
    ranges = [
        state.server.blocks[2]["ranges"]["conv"]["range"] for state in (start, new)
    ]
    assert ranges[0] != ranges[1]


def test_weighting_by_examples(fed, start):
    # Clients 1 and 4 have 3 and 4 examples: weights 3/7 and 4/7 against 1/2 each.
    def trained(fed, *ids):
        assignment = schedule.by_hand(0, np.array(ids), [MIDDLE] * len(ids))
        new, _ = cocofl.cocofl(fed).round(start, assignment)
        return new.server.blocks[2]

    of_1, of_4 = trained(fed, 1), trained(fed, 4)
    for weighting, share in (("uniform", 0.5), ("examples", 3 / 7)):
        both = trained(fed.having(weighting=weighting), 1, 4)
        expected = jax.tree.map(lambda a, b, s=share: s * a + (1 - s) * b, of_1, of_4)
        conftest.assert_close(both, expected, 1e-5)


def test_cohorts_and_plans_depend_on_seed_and_round_only(fed, start):
    algorithm, again = cocofl.cocofl(fed), cocofl.cocofl(fed)
    forward = [algorithm.assign(start, index) for index in range(8)]
    backward = [again.assign(start, index) for index in reversed(range(8))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.plans == b.plans
    other = cocofl.cocofl(fed.having(seed=4)).assign(start, 0)
    assert (other.ids.tolist(), other.plans) != (
        forward[0].ids.tolist(),
        forward[0].plans,
    )
    assert len({tuple(a.ids.tolist()) for a in forward}) > 1


def test_plans_fit_their_tiers(fed, start):
    algorithm = cocofl.cocofl(fed)
    seen = {0: set(), 1: set()}
    for index in range(20):
        assignment = algorithm.assign(start, index)
        assert len(set(assignment.ids.tolist())) == 4
        for number, plan in zip(assignment.ids, assignment.plans, strict=True):
            seen[int(fed.population.fleet.tier[number])].add(plan)
    assert seen == {0: {FULL}, 1: {MIDDLE, LATE}}


def test_draws_of_a_client_do_not_depend_on_its_company(fed):
    policy = policies.random_maximal(TABLE)
    key = federation.round_key(1, 2)
    ids = np.arange(200)
    wide = types.Budgets(*(np.full(200, 0.6) for _ in range(3)))
    together = policy.assign((), key, ids, wide)
    assert {MIDDLE, LATE} == set(together)
    order = np.random.default_rng(0).permutation(200)[:50]
    few = types.Budgets(*(np.full(50, 0.6) for _ in range(3)))
    assert policy.assign((), key, order, few) == [together[i] for i in order]
    weak = fleet.of_tiers(200, TIERS)._replace(row=np.ones(200, int))
    budgets = fleet.truth(weak, 1, 2, ids)
    turned = fleet.truth(weak, 1, 2, order)
    np.testing.assert_array_equal(turned.upload, budgets.upload[order])


def test_the_width_of_the_codes_is_the_algorithms(fed, start):
    assignment = cocofl.cocofl(fed, bits=4).assign(start, 0)
    assert {plan.bits for plan in assignment.plans} == {4}


def test_cocofl_refuses_what_fits_no_window(fed):
    tiny = devices.Tier(name="tiny", share=0.66, time=0.1, upload=1.0, memory=1.0)
    with pytest.raises(ValueError, match="'tiny'"):
        cocofl.cocofl(fed.having(fleet=fleet.of_tiers(6, (TIERS[0], tiny))))


def test_fedavg_trains_everything_everywhere(fed, start):
    algorithm = fedavg.fedavg(fed)
    assignment = algorithm.assign(start, 0)
    assert assignment.plans == [FULL] * 4
    # The same cohort as CoCoFL's: comparisons are paired.
    assert assignment.ids.tolist() == cocofl.cocofl(fed).assign(start, 0).ids.tolist()
    new, report = algorithm.round(start, assignment)
    full = sum(block.upload_bytes for block in fed.model.counts)
    assert report.books[:2] == (4 * full, 4 * full)
    assert report.books.compute_share == 1
    expected = by_hand(fed, start, assignment, 0.1)  # r = 1: the plain mean
    conftest.assert_close(new.server.blocks, expected, 1e-5)


def test_fedavg_drop_takes_unconstrained_clients_only(fed, start):
    algorithm = fedavg_drop.fedavg_drop(fed)
    for index in range(6):
        assignment = algorithm.assign(start, index)
        assert sorted(assignment.ids.tolist()) == [0, 1]
        assert assignment.plans == [FULL] * 2
    one = fedavg_drop.fedavg_drop(fed.having(clients_per_round=1))
    drawn = {int(one.assign(start, index).ids[0]) for index in range(12)}
    assert drawn == {0, 1}


def test_fedavg_drop_refuses_a_federation_of_the_weak(fed):
    weak = fleet.of_tiers(6, (dataclasses.replace(TIERS[1], share=1.0),))
    with pytest.raises(ValueError, match=r"budgets of 1 .* none among weak"):
        fedavg_drop.fedavg_drop(fed.having(fleet=weak))


def test_centralized_sees_every_example_once_an_epoch(fed, start):
    one = centralized.pooled(fed)
    assert one.population.shards.counts.tolist() == [40]
    assert one.population.shards.indices.tolist() == list(range(40))
    assert (one.rules.clients_per_round, one.layout.width) == (1, 1)
    assert one.population.fleet.row.tolist() == [0]
    known = fed.population.fleet._replace(reference=fleet.Reference(step_seconds=0.125))
    counted = centralized.pooled(fed.having(fleet=known))
    assert federation.clock(counted).step_seconds == 0.125  # of the devices' file
    algorithm = centralized.centralized(fed)
    assignment = algorithm.assign(start, 3)
    assert (assignment.ids.tolist(), assignment.plans) == ([0], [FULL])
    state, report = algorithm.round(start, assignment)
    assert report.books[:2] == (0, 0)
    assert int(state.server.round) == 1


def test_too_large_a_cohort_is_refused(fed):
    with pytest.raises(
        ValueError, match=r"clients_per_round: expected at most 6, .* 7"
    ):
        fedavg.fedavg(fed.having(clients_per_round=7))


def test_the_start_is_that_of_the_seed(fed, start):
    conftest.assert_same_bits(fedavg.fedavg(fed).init(), start)
    other = fedavg.fedavg(fed.having(seed=4)).init()
    ours, theirs = (s.server.blocks[0]["params"]["conv"] for s in (start, other))
    assert np.all(ours["kernel"] != theirs["kernel"])
    assert start.server.round == 0


def test_time_shares_by_hand():
    partial = costs.CostTable(
        num_blocks=5,
        listed=[plans.Plan(2, 2)],
        time=np.array([0.4]),
        upload=np.array([0.2]),
        memory=np.array([0.4]),
    )
    # A table without the full window: training everything costs 1 all the same.
    listed = catalogue.make(partial, {1.0: network.counts(conftest.NET)})
    rows = listed.rows([MIDDLE, FULL, MIDDLE.at(4)])
    np.testing.assert_array_equal(listed.time[rows], [0.4, 1, 0.4])
    assert listed.at(rows) == [MIDDLE, FULL, MIDDLE.at(4)]


def test_algorithms_by_name(fed):
    assert list(algorithms.BY_NAME)[:2] == ["cocofl", "fedavg"]
    for name, make in algorithms.BY_NAME.items():
        if name == "slt":  # which asks for rounds, and for able devices (test_slt)
            continue
        assert isinstance(make(fed), base.Algorithm)


def test_a_diverging_client_is_reported(fed, start):
    algorithm = cocofl.cocofl(fed.having(learning_rate=lambda index: 1e30))
    assignment = schedule.by_hand(0, np.array([3, 2, 4, 5]), [LATE, *[MIDDLE] * 3])
    new, report = algorithm.round(start, assignment)
    assert report.failed[0]
    # It is refused: nothing of it is in the network.
    assert report.finite
    conftest.assert_same_bits(new.server.blocks[3:], start.server.blocks[3:])


def test_a_server_step_that_overflows_is_reported(problem):
    fed = make(problem, server_learning_rate=float("inf"))
    algorithm = fedavg.fedavg(fed)
    state = algorithm.init()
    _, report = algorithm.round(state, algorithm.assign(state, 0))
    assert not np.any(report.failed)
    assert not report.finite


def test_small_clients_beside_a_large_one_have_a_program_of_their_own(problem):
    net = logistic.logistic((8, 8, 1), 3)
    data = conftest.make_data(examples=620)
    parts = partition.Split(np.arange(620), np.array([1] * 10 + [600] + [1] * 10))
    tiers = (devices.Tier(name="all", share=1, time=1, upload=1, memory=1),)
    few = problem._replace(
        data=data,
        shards=partition.index_table(parts),
        training=client.Training(batch_size=16),
    )
    table = costs.CostTable(
        num_blocks=1, listed=[plans.full(1)], time=[1], upload=[1], memory=[1]
    )
    fed = conftest.federated(net, few, table, tiers, clients_per_round=4)

    def trained(before):
        algorithm = fedavg.fedavg(fed)
        ids = np.array([12, 10, 0, 20])
        assignment = schedule.by_hand(0, ids, [plans.full(1)] * 4)
        state, report = algorithm.round(algorithm.init(), assignment)
        made = list(map(str, algorithm.programs(assignment)))
        return made, group.num_programs() - before, state.server, report.losses

    short = "0-0 of up to 1 examples"
    *ours, server, losses = trained(group.num_programs())
    assert ours == [[short, "0-0", short, short], 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "capacities", lambda counts, _: np.full(21, 600))
        *theirs, expected, expected_losses = trained(group.num_programs())
    assert theirs == [["0-0"] * 4, 0]
    conftest.assert_close((server, losses), (expected, expected_losses), 1e-5)
