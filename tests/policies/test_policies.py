"""Policies: hand-made tables, keyed choices, participation of the paper's tiers."""

import collections
import doctest
import pathlib

import jax
import numpy as np
import pytest

from fljax import devices, plans, policies, types
from fljax.devices import fleet, fleet_sources
from fljax.plans import costs
from fljax.policies import windows
from fljax.runs import checkpoints
from tests import conftest

TABLES = pathlib.Path(__file__).resolve().parents[3] / "shared/reference/tables"
# E[r_b] of MobileNet's blocks under the reference's tiers (CoCoFL's reference code).
PARTICIPATION = (
    *(0.40, 0.33, 0.33, 0.33, 0.40, 0.47, 0.47, 0.53, 0.54, 0.60),
    *(0.61, 0.65, 0.56, 0.59, 0.61, 0.65, 0.67, 0.59, 0.47, 0.46),
)


def round_key(round_number=3):
    return jax.random.fold_in(jax.random.key(11), round_number)


def small_table():
    """Three blocks; 0-1 and 2-2 are maximal for budgets of 0.5."""
    return costs.CostTable(
        num_blocks=3,
        listed=plans.all_windows(3),  # 0-0 0-1 0-2 1-1 1-2 2-2
        time=[0.3, 0.5, 1.0, 0.3, 0.7, 0.2],
        upload=[0.1, 0.2, 1.0, 0.1, 0.9, 0.4],
        memory=[0.3, 0.5, 1.0, 0.3, 0.7, 0.2],
    )


def budgets_of(*limits):
    limit = np.array(limits)
    return types.Budgets(limit, np.ones_like(limit), limit)


def assign(policy, ids, budgets, key=None):
    key = round_key() if key is None else key
    return policy.assign(policy.init(), key, np.asarray(ids), budgets)


def test_random_maximal_takes_maximal_windows_about_equally():
    chosen = assign(
        policies.random_maximal(small_table()), range(2000), budgets_of(*[0.5] * 2000)
    )
    assert set(chosen) == {plans.Plan(0, 1), plans.Plan(2, 2)}
    assert chosen.count(plans.Plan(0, 1)) / 2000 == pytest.approx(0.5, abs=0.04)


def test_random_maximal_trains_everything_without_limits():
    assert (
        assign(
            policies.random_maximal(small_table(), bits=4), [7, 3], budgets_of(1.0, 1.0)
        )
        == [plans.Plan(0, 2, 4)] * 2
    )


@pytest.mark.parametrize("factory", [policies.random_maximal, policies.random_shared])
def test_choices_depend_on_round_and_client_only(factory):
    policy = factory(small_table())
    ids = np.arange(40)
    limits = np.where(ids % 3 == 0, 1.0, 0.5)
    chosen = assign(policy, ids, budgets_of(*limits))
    assert assign(policy, ids, budgets_of(*limits)) == chosen
    turned = assign(policy, ids[::-1], budgets_of(*limits[::-1]))
    assert turned[::-1] == chosen
    alone = [assign(policy, ids[k : k + 1], budgets_of(limits[k])) for k in (1, 4, 5)]
    assert [plan for (plan,) in alone] == [chosen[k] for k in (1, 4, 5)]
    others = [
        assign(policy, ids, budgets_of(*limits), round_key(r)) for r in (4, 5, 6, 7)
    ]
    assert others != [chosen] * 4


def test_with_one_shared_draw_like_clients_train_one_window():
    policy, ids = policies.random_shared(small_table(), draws=1), np.arange(200)
    budgets, rounds = budgets_of(*[0.5] * 100, *[0.3] * 100), []
    for number in range(300):
        chosen = assign(policy, ids, budgets, round_key(number))
        assert len(set(chosen[:100])) == len(set(chosen[100:])) == 1
        rounds.append((str(chosen[0]), str(chosen[100])))
    # Of .5: 0-1 or 2-2. Of .3: 0-0, 1-1 or 2-2. Each as often as drawn by itself.
    for place, names in ((0, ("0-1", "2-2")), (1, ("0-0", "1-1", "2-2"))):
        shares = [np.mean([r[place] == w for r in rounds]) for w in names]
        np.testing.assert_allclose(shares, 1 / len(names), rtol=0, atol=0.08)
    # Whose windows are others agree where they can: in 2-2 if it comes before 0-1, 0-0
    # and 1-1, one order in four; independent draws would meet there once in six.
    both = np.mean([r == ("2-2", "2-2") for r in rounds])
    assert both == pytest.approx(1 / 4, abs=0.04)


def test_shared_draws_are_few_and_clients_spread_over_them():
    ids, budgets = np.arange(300), budgets_of(*[0.3] * 300)
    policy = policies.random_shared(small_table(), draws=2)
    rounds = [
        collections.Counter(assign(policy, ids, budgets, round_key(number)))
        for number in range(40)
    ]
    assert {len(met) for met in rounds} == {1, 2}  # of three windows
    for met in rounds:
        if len(met) == 2:
            assert min(met.values()) > 110


def test_largest_uploads_the_most():
    assert assign(
        policies.largest(small_table()), [0, 1, 2], budgets_of(0.5, 0.7, 0.3)
    ) == [plans.Plan(2, 2), plans.Plan(1, 2), plans.Plan(2, 2)]


def test_largest_compute_takes_the_longest():
    # 0-1 needs more time than 2-2, which uploads more.
    policy = policies.largest(small_table(), by="time")
    assert assign(policy, [0, 1, 2], budgets_of(0.5, 0.7, 0.25)) == [
        plans.Plan(0, 1),
        plans.Plan(1, 2),
        plans.Plan(2, 2),
    ]


def test_uniform_gives_all_what_the_lowest_budgets_allow():
    lowest = types.Budgets(*(np.float64(limit) for limit in (0.5, 0.3, 0.6)))
    policy = policies.uniform(small_table(), lowest, bits=6)
    # 2-2 uploads 0.4; 0-1 the most of those that fit.
    assert assign(policy, [3, 9], budgets_of(1.0, 0.5)) == [plans.Plan(0, 1, 6)] * 2
    lowest = lowest._replace(time=np.float64(0.1))
    with pytest.raises(ValueError, match=r"the lowest budgets: no plan .* time 0.1,"):
        policies.uniform(small_table(), lowest)


def test_a_function_is_a_policy():
    assert doctest.testmod(windows).failed == 0
    assert doctest.testmod(windows).attempted > 0


@pytest.mark.parametrize(
    ("chosen", "got"),
    [
        ([], "got 0 of none"),
        ([plans.Plan(0, 1)], "got 1 of Plan"),
        ([1, 2], "2 of int"),
    ],
)
def test_a_function_must_give_one_plan_a_client(chosen, got):
    policy = policies.from_function(lambda round_key, ids, budgets: chosen)
    with pytest.raises(ValueError, match=f"lambda.*: expected 2 plans, .*{got}"):
        assign(policy, [0, 1], budgets_of(1.0, 1.0))


def setting(num_clients=60):
    """The small table, and clients of 0.3 to 1.0."""
    limits = np.linspace(0.3, 1.0, num_clients)
    typical = types.Budgets(limits, np.ones(num_clients), limits)
    lowest = types.Budgets(*(limit.min() for limit in typical))
    return policies.Setting(small_table(), 8, num_clients, lowest, typical)


def observation_of(count, share=1.3):
    return policies.Observation(
        time=np.full(count, share),
        memory=np.full(count, share),
        arrived=np.ones(count, bool),
        losses=np.full(count, 2.0),
    )


def after_rounds(policy, ids, budgets, rounds=3):
    """Gives the states before each round and after the last."""
    states = [policy.init()]
    for r in range(rounds):
        chosen = policy.assign(states[-1], round_key(r), ids, budgets)
        seen = observation_of(len(ids))
        states.append(policy.observe(states[-1], ids, chosen, budgets, seen))
    return states


every_policy = pytest.mark.parametrize("name", sorted(policies.BY_NAME))


@every_policy
def test_a_choice_depends_on_nobody_else(name):
    given = setting()
    policy = policies.BY_NAME[name](given)
    ids = np.arange(0, 60, 2)
    budgets = types.Budgets(*(limit[ids] for limit in given.typical))
    state = after_rounds(policy, ids, budgets)[-1]
    chosen = policy.assign(state, round_key(), ids, budgets)
    order = np.random.default_rng(0).permutation(30)[:11]
    few = types.Budgets(*(limit[order] for limit in budgets))
    turned = policy.assign(state, round_key(), ids[order], few)
    assert turned == [chosen[i] for i in order]
    assert all(type(plan) is plans.Plan for plan in chosen)


@every_policy
def test_plans_fit(name):
    given = setting()
    policy = policies.BY_NAME[name](given)
    ids = np.arange(60)
    for r in range(4):
        chosen = policy.assign(policy.init(), round_key(r), ids, given.typical)
        time = given.table.time[given.table.rows(chosen)]
        late = time > given.typical.time
        # Only `online` is bold, with probability 0.05: 20 of 60 would be 10 too many.
        assert late.sum() <= (20 if name == "online" else 0)


@every_policy
def test_states_are_new_arrays_that_a_checkpoint_brings_back(name, tmp_path):
    given = setting()
    policy = policies.BY_NAME[name](given)
    ids = np.arange(60)
    states = after_rounds(policy, ids, given.typical)
    conftest.assert_same_bits(policy.init(), states[0])  # untouched
    kinds = [jax.tree.map(lambda a: (a.shape, a.dtype), state) for state in states]
    assert kinds == kinds[:1] * len(kinds)
    leaves = jax.tree.leaves(states)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in leaves)
    checkpoints.save(tmp_path, 3, states[-1])
    restored = checkpoints.restore(tmp_path, policy.init())
    conftest.assert_same_bits(restored.state, states[-1])
    assert policy.assign(
        restored.state, round_key(), ids, given.typical
    ) == policy.assign(states[-1], round_key(), ids, given.typical)


def test_who_needs_losses_says_so():
    given = setting()
    needs = {name for name in policies.BY_NAME if policies.BY_NAME[name](given)[3]}
    assert needs == {"adaptive_bits"}


@every_policy
def test_losses_are_only_for_who_needs_them(name):
    given = setting()
    policy = policies.BY_NAME[name](given)
    ids = np.arange(60)
    chosen = policy.assign(policy.init(), round_key(), ids, given.typical)
    seen = observation_of(60)
    if not policy.needs_losses:
        seen = seen._replace(losses=None)
    policy.observe(policy.init(), ids, chosen, given.typical, seen)


def test_full_ignores_budgets():
    assert (
        assign(policies.full(3), [4, 5], budgets_of(0.01, 0.01))
        == [plans.Plan(0, 2)] * 2
    )


@pytest.mark.parametrize("factory", [policies.random_maximal, policies.largest])
def test_assign_names_the_client_that_nothing_fits(factory):
    with pytest.raises(ValueError, match="client 41: no plan") as caught:
        assign(factory(small_table()), [40, 41], budgets_of(0.5, 0.1))
    assert str(caught.value) == (
        "client 41: no plan fits time 0.1, upload 1, memory 0.1 by cost table; the "
        "nearest is 2-2, which needs time 0.2, upload 0.4, memory 0.2: multiply the "
        "budgets by 2.0, or take a network of more blocks"
    )


def test_devices_of_their_own_are_no_tiers_however_few():
    made = fleet_sources.lognormal(
        3, 1, fleet_sources.Lognormal(2, 2, 2)
    )  # as many as thirds have names
    assert fleet.lowest(made).time < 0.05
    policies.check_feasible(small_table(), made)


def test_check_feasible_looks_at_the_lowest_limits():
    def tiers(lowest):
        weak = devices.Tier(
            name="weak", share=0.5, time=0.33, upload=(lowest, 1.0), memory=0.33
        )
        strong = devices.Tier(
            name="strong", share=0.5, time=1.0, upload=1.0, memory=1.0
        )
        return fleet.of_tiers(10, (strong, weak))

    policies.check_feasible(small_table(), tiers(0.1))
    with pytest.raises(
        ValueError, match=r"tier 'weak' at its lowest: .* upload 0.05.* nearest is 0-0"
    ):
        policies.check_feasible(small_table(), tiers(0.05))


def published():
    path = TABLES / "MobileNet.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return costs.load(path)


def test_reference_tiers_fit_the_published_table():
    policies.check_feasible(published(), fleet.of_tiers(100))


@pytest.mark.parametrize("draws", [0, 2000])
def test_participation_is_that_of_the_reference(draws):
    """So it is in expectation over the orders that a round's clients share."""
    table = published()
    num_clients = 20_000
    ids = np.arange(num_clients)
    budgets = fleet.truth(fleet.of_tiers(num_clients), 11, 0, ids)
    policy = policies.random_maximal(table)
    if draws:
        policy = policies.random_shared(table, draws=draws)
    chosen = assign(policy, ids, budgets)
    first = np.array([plan.first for plan in chosen])[:, None]
    last = np.array([plan.last for plan in chosen])[:, None]
    trained = (first <= np.arange(20)) & (np.arange(20) <= last)
    np.testing.assert_allclose(trained.mean(axis=0), PARTICIPATION, rtol=0, atol=0.02)
