"""Policies: hand-made tables, keyed choices, participation of the paper's tiers."""

import pathlib

import jax
import numpy as np
import pytest

from fljax import costs, devices, fleet, plans, policies, types

TABLES = pathlib.Path(__file__).resolve().parents[2] / "shared/reference/tables"
# E[r_b] of MobileNet's blocks under the reference's tiers (facts sheet, section 3).
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
        windows=plans.all_windows(3),  # 0-0 0-1 0-2 1-1 1-2 2-2
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


def test_choices_depend_on_round_and_client_only():
    policy = policies.random_maximal(small_table())
    ids = np.arange(40)
    limits = np.where(ids % 3 == 0, 1.0, 0.5)
    chosen = assign(policy, ids, budgets_of(*limits))
    assert assign(policy, ids, budgets_of(*limits)) == chosen
    turned = assign(policy, ids[::-1], budgets_of(*limits[::-1]))
    assert turned[::-1] == chosen
    alone = [assign(policy, ids[k : k + 1], budgets_of(limits[k])) for k in (1, 4, 5)]
    assert [plan for (plan,) in alone] == [chosen[k] for k in (1, 4, 5)]
    other = assign(policy, ids, budgets_of(*limits), round_key(4))
    assert other != chosen


def test_largest_uploads_the_most():
    assert assign(
        policies.largest(small_table()), [0, 1, 2], budgets_of(0.5, 0.7, 0.3)
    ) == [plans.Plan(2, 2), plans.Plan(1, 2), plans.Plan(2, 2)]


def test_full_ignores_budgets():
    assert (
        assign(policies.full(3), [4, 5], budgets_of(0.01, 0.01))
        == [plans.Plan(0, 2)] * 2
    )


def test_policies_remember_nothing():
    for policy in (policies.full(3), policies.random_maximal(small_table())):
        state = policy.init()
        assert policy.observe(state, np.array([1]), [plans.Plan(0, 2)], {}) == state


@pytest.mark.parametrize("factory", [policies.random_maximal, policies.largest])
def test_assign_names_the_client_that_nothing_fits(factory):
    with pytest.raises(ValueError, match="client 41: no window") as caught:
        assign(factory(small_table()), [40, 41], budgets_of(0.5, 0.1))
    assert str(caught.value) == (
        "client 41: no window of cost table fits time 0.1, upload 1, memory 0.1; the "
        "nearest is 2-2, which needs time 0.2, upload 0.4, memory 0.2: multiply the "
        "budgets by 2.0"
    )


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


def test_participation_is_that_of_the_facts_sheet():
    table = published()
    num_clients = 20_000
    ids = np.arange(num_clients)
    budgets = fleet.truth(fleet.of_tiers(num_clients), 11, 0, ids)
    chosen = assign(policies.random_maximal(table), ids, budgets)
    first = np.array([plan.first for plan in chosen])[:, None]
    last = np.array([plan.last for plan in chosen])[:, None]
    trained = (first <= np.arange(20)) & (np.arange(20) <= last)
    np.testing.assert_allclose(trained.mean(axis=0), PARTICIPATION, rtol=0, atol=0.02)
