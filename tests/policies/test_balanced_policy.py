"""The balanced policy: optima by hand and by a solver, the published table."""

import jax
import numpy as np
import pytest
from scipy import optimize

from fljax import devices, plans, policies, types
from fljax.plans import costs, typical
from fljax.policies import balanced
from tests import conftest


def key(number=5):
    return jax.random.fold_in(jax.random.key(2), number)


def choice_of_two():
    """Block 1 is cheap, block 0 dear, both do not fit together but for 1.0."""
    return costs.CostTable(
        num_blocks=2,
        listed=plans.all_windows(2),  # 0-0 0-1 1-1
        time=[0.5, 1.0, 0.2],
        upload=[0.5, 1.0, 0.2],
        memory=[0.5, 1.0, 0.2],
    )


def budgets_of(limits):
    limits = np.asarray(limits, np.float64)
    return types.Budgets(limits, limits, limits)


def shares(policy, budgets, num_blocks, round_key=None):
    """Share of the clients that train each block."""
    ids = np.arange(len(budgets.time))
    chosen = policy.assign((), key() if round_key is None else round_key, ids, budgets)
    first, last = np.array([(plan.first, plan.last) for plan in chosen]).T[..., None]
    blocks = np.arange(num_blocks)
    return ((first <= blocks) & (blocks <= last)).mean(axis=0)


def test_the_weak_fill_one_block_and_the_others_the_other():
    # 40 % can train block 1 only; the even optimum is 1/2 each, so of the 60 % that
    # can choose, five in six take block 0. Uniform draws leave it at 0.3.
    budgets = budgets_of(np.repeat([0.3, 0.6], [4000, 6000]))
    table = choice_of_two()
    mixture = balanced.solve(table, budgets)
    np.testing.assert_allclose(mixture.participation, [0.5, 0.5], atol=0.002)
    drawn = shares(balanced.balanced(table, budgets), budgets, 2)
    np.testing.assert_allclose(drawn, [0.5, 0.5], atol=0.02)
    uniform = shares(policies.random_maximal(table), budgets, 2)
    np.testing.assert_allclose(uniform, [0.3, 0.7], atol=0.02)


def test_the_weights_are_those_of_the_steps():
    # Of the 70 % that choose, all answer alike: block 0 while fewer than half train it,
    # from 0.35 at the start. Steps 2/3, 2/4, 2/5, 2/6 leave 1/15 with the start.
    budgets = budgets_of(np.repeat([0.3, 0.6], [3, 7]))
    mixture = balanced.solve(choice_of_two(), budgets, iterations=4)
    np.testing.assert_allclose(mixture.weights, np.array([2, 3, 4, 5]) / 14)
    answers = mixture.scores[:, 0] > mixture.scores[:, 2]  # 0-0 rather than 1-1
    assert answers.tolist() == [True, False, True, True]
    # 0.35, 0.583, 0.292, 0.455, 0.537
    assert mixture.participation[0] == pytest.approx(0.7 * 11 / 15 + 0.35 / 15)


def test_where_balance_is_out_of_reach_everybody_who_can_helps():
    # 80 % can train block 1 only: the others all take block 0, always.
    budgets = budgets_of(np.repeat([0.3, 0.6], [800, 200]))
    drawn = shares(balanced.balanced(choice_of_two(), budgets), budgets, 2)
    np.testing.assert_allclose(drawn, [0.2, 0.8], atol=0.01)


def test_equal_blocks_are_drawn_equally():
    # No client alone: prices stay equal, and the keyed draw breaks every tie.
    table = costs.CostTable(
        num_blocks=3,
        listed=plans.of_windows([[0, 0], [1, 1], [2, 2]]),
        time=[0.5] * 3,
        upload=[0.5] * 3,
        memory=[0.5] * 3,
    )
    budgets = budgets_of(np.full(6000, 0.5))
    mixture = balanced.solve(table, budgets)
    np.testing.assert_allclose(mixture.participation, np.full(3, 1 / 3), rtol=1e-9)
    drawn = shares(balanced.balanced(table, budgets), budgets, 3)
    np.testing.assert_allclose(drawn, np.full(3, 1 / 3), atol=0.02)


@pytest.mark.parametrize("fairness", [1.0, 2.0, 16.0])
def test_the_participation_is_what_a_general_solver_finds(fairness):
    table = choice_of_two()
    # 30 % only block 1, 60 % either, 10 % both: p = (0.1 + x, 0.4 + 0.6 - x).
    budgets = budgets_of(np.repeat([0.3, 0.6, 1.0], [3, 6, 1]))
    mixture = balanced.solve(table, budgets, fairness)

    def loss(x):
        p = np.array([0.1 + x, 1.0 - x])
        if fairness == 1:
            return -np.log(p).sum()
        return (p ** (1 - fairness)).sum()

    best = optimize.minimize_scalar(loss, bounds=(0, 0.6), method="bounded").x
    np.testing.assert_allclose(
        mixture.participation, [0.1 + best, 1.0 - best], atol=0.003
    )


def test_fairness_zero_trains_the_most_blocks():
    # Without fairness all prices are 1: the longest window wins, here 0-1 of three.
    table = costs.CostTable(
        num_blocks=3,
        listed=plans.of_windows([[0, 1], [2, 2]]),
        time=[0.5, 0.5],
        upload=[0.5, 0.5],
        memory=[0.5, 0.5],
    )
    budgets = budgets_of(np.full(50, 0.5))
    greedy = balanced.balanced(table, budgets, fairness=0.0)
    np.testing.assert_array_equal(shares(greedy, budgets, 3), [1, 1, 0])
    # Prices 2 p^-16 and (1 - p)^-16 meet where p / (1 - p) = 2^(1/16).
    even = balanced.solve(table, budgets).participation
    np.testing.assert_allclose(even, [0.5108, 0.5108, 0.4892], atol=0.002)
    for steep in (2000, np.inf):
        even = balanced.solve(table, budgets, steep).participation
        np.testing.assert_allclose(even, 0.5, atol=0.002)
    with pytest.raises(ValueError, match=r"fairness: expected .* got -1"):
        balanced.balanced(table, budgets, fairness=-1)


def test_who_is_not_in_the_sample_trains_what_is_out_of_its_reach():
    # Nobody of the sample can train block 0; a client that can, does.
    for fairness in (balanced.FAIRNESS, np.inf):
        policy = balanced.balanced(
            choice_of_two(), budgets_of(np.full(9, 0.3)), fairness=fairness
        )
        chosen = policy.assign((), key(), np.arange(9), budgets_of([0.3] + [0.6] * 8))
        assert chosen == [plans.Plan(1, 1)] + [plans.Plan(0, 0)] * 8


def test_the_published_table_is_balanced_better(shared):
    table = costs.load(shared / "reference/tables/MobileNet.json")
    count = 9000
    tiers = devices.tier_of(count)
    sample = conftest.draw_budgets(key(0), np.arange(count), tiers)
    budgets = conftest.draw_budgets(key(1), np.arange(count), tiers)
    uniform = shares(policies.random_maximal(table), budgets, 20)
    policy = balanced.balanced(table, sample)
    even = shares(policy, budgets, 20)
    # Blocks 1 to 3 fit into no window of medium and weak devices: a third, under any
    # policy that gives strong devices everything.
    fits, _ = typical.feasible_sets(table, sample)
    able = fits @ balanced.trains(table) > 0
    assert able[:, 1:4].any(axis=1).sum() == 1
    np.testing.assert_allclose(even[1:4], uniform[1:4])
    rest = np.r_[0, 4:20]
    assert uniform[rest].min() < 0.41
    assert even[rest].min() > 0.45
    assert even.std() < 0.9 * uniform.std()
    assert np.ptp(even) < np.ptp(uniform)
    assert even.mean() > uniform.mean()
    expected = balanced.solve(table, sample).participation
    np.testing.assert_allclose(even, expected, rtol=0, atol=0.02)
