"""Policies that remember: devices unlike the table, turns, widths; numbers by hand."""

import jax
import numpy as np
import pytest

from fljax import plans, policies, types
from fljax.plans import costs
from fljax.policies import learning

LIMIT = 0.5


def round_key(number):
    return jax.random.fold_in(jax.random.key(4), number)


def nested():
    """Windows 0-0 to 0-3, each within the next: one maximal window for any budget."""
    need = np.array([0.2, 0.3, 0.45, 1.0])
    return costs.CostTable(
        num_blocks=4,
        listed=plans.all_windows(4)[:4],
        time=need,
        upload=need,
        memory=need,
    )


def singles(count=3):
    """Windows 0-0, 1-1, ... alone."""
    blocks = np.arange(count)
    return costs.CostTable(
        num_blocks=count,
        listed=plans.of_windows(zip(blocks, blocks, strict=True)),
        time=np.full(count, 0.4),
        upload=np.full(count, 0.4),
        memory=np.full(count, 0.4),
    )


def budgets_of(count, limit=LIMIT, upload=1.0):
    return types.Budgets(
        np.full(count, limit), np.full(count, upload), np.full(count, limit)
    )


def observed(time, memory=None, losses=None):
    time = np.asarray(time, np.float64)
    memory = np.full_like(time, 0.5) if memory is None else np.asarray(memory)
    return policies.Observation(time, memory, time <= 1, losses)


NEED = np.array([0.2, 0.3, 0.45, 1.0])  # of `nested`, by last block


def run(policy, rounds, factors, need=NEED, memory_factors=1.0, limit=LIMIT):
    """Lets all clients take part in every round, each `factors` [K] times the need.

    Returns the last blocks of their windows, [rounds, K], and the state after them.
    """
    ids, budgets = np.arange(len(factors)), budgets_of(len(factors), limit)
    state, lasts = policy.init(), []
    for r in range(rounds):
        chosen = policy.assign(state, round_key(r), ids, budgets)
        lasts.append(np.array([plan.last for plan in chosen]))
        needs = need[lasts[-1]] / limit
        seen = observed(needs * factors, needs * memory_factors)
        state = policy.observe(state, ids, chosen, budgets, seen)
    return np.array(lasts), state


def test_corrections_by_hand():
    policy = learning.online(nested(), 5)
    chosen = [plans.Plan(0, 1), plans.Plan(0, 1), plans.Plan(0, 2)]
    ids, budgets = np.array([4, 0, 2]), budgets_of(3)
    # Windows need 0.3, 0.3, 0.45. Client 4 takes twice the time, client 0 what the
    # table says; client 2 half the memory, and nobody knows its time.
    seen = observed([2 * 0.6, 0.6, np.nan], [0.6, 0.6, 0.45])
    state = policy.observe(policy.init(), ids, chosen, budgets, seen)
    two = np.log(2)
    np.testing.assert_allclose(
        state.clients, [[0, 0, 0, 0, two / 2], [0, 0, -two / 2, 0, 0]], atol=1e-7
    )
    # Rate 0.1 and ten clients of doubt: 2 clients of window 0-1, 1 of 0-2.
    np.testing.assert_allclose(
        state.windows,
        [[0, 0.1 * two / 12, 0, 0], [0, 0, -0.1 * two / 11, 0]],
        atol=1e-7,
    )
    # Once more: what is left of client 4 is log 2 - log 2 / 2 - 0.1 log 2 / 12.
    again = policy.observe(state, ids, chosen, budgets, seen)
    assert again.clients[0, 4] == pytest.approx(two / 2 + (two / 2 - two / 120) / 2)


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 0.0])
def test_what_is_not_known_teaches_nothing(unknown):
    policy = learning.online(nested(), 1)
    seen = observed([unknown], [unknown])
    state = policy.observe(
        policy.init(), np.array([0]), [plans.Plan(0, 1)], budgets_of(1), seen
    )
    assert not state.clients.any()
    assert not state.windows.any()


def test_starting_from_the_table_is_choosing_by_it():
    given = singles()
    online = learning.online(given, 50, explore=0.0)
    chosen = online.assign(online.init(), round_key(0), np.arange(50), budgets_of(50))
    assert {plan.first for plan in chosen} == {0, 1, 2}
    # A limit that the need meets exactly stays met, whatever rounding the state holds.
    exact = budgets_of(50, limit=0.4)
    rounded = online.init()._replace(clients=np.full((2, 50), 1e-7, np.float32))
    assert online.assign(rounded, round_key(0), np.arange(50), exact) == chosen


@pytest.mark.parametrize("kind", ["time", "memory"])
def test_a_device_of_half_the_speed_or_memory_is_late_in_two_rounds_only(kind):
    # It can do 0-0 (0.4 of 0.5). Believed are 0.45, then, sqrt(2) slower, 0.42 for 0-1
    # (really 0.6), then 2^(3/4) slower, 0.34 for 0-0.
    policy = learning.online(nested(), 3, explore=0.0)
    factors = np.array([1.0, 2.0, 1.0])
    one = np.ones(3)
    time, memory = (factors, one) if kind == "time" else (one, factors)
    lasts, _ = run(policy, 12, time, memory_factors=memory)
    assert lasts[:, 1].tolist() == [2, 1] + [0] * 10
    np.testing.assert_array_equal(lasts[:, [0, 2]], 2)


def test_bold_choices_of_a_slow_device_are_few():
    policy = learning.online(nested(), 1, explore=0.1)
    lasts, _ = run(policy, 200, np.array([2.0]))
    late = (lasts[2:] > 0).mean()
    assert 0 < late < 0.2  # explored with 0.1, and learned from


def test_a_device_faster_than_believed_gets_more():
    # 0-3 needs 0.5 of 0.55 on it. Believed is 1, then 1 / 2^(1/2), 1 / 2^(3/4) = 0.59,
    # and 0.55 after three rounds.
    policy = learning.online(nested(), 2, explore=0.0)
    half = np.array([1.0, 0.5])
    lasts, _ = run(policy, 8, half, memory_factors=half, limit=0.55)
    assert lasts[:, 1].tolist() == [2, 2, 2] + [3] * 5
    assert lasts[:, 0].tolist() == [2] * 8


def test_exploring_finds_windows_that_cost_less_than_the_table_says():
    # 0-3 needs 0.4, the table says 1.0 less than 1.5 times 0.7: only the bold try it.
    need = np.array([0.2, 0.3, 0.45, 0.4])
    one = np.ones(40)
    shy = learning.online(nested(), 40, explore=0.0)
    lasts, _ = run(shy, 60, one, need, limit=0.7)
    assert lasts.max() == 2
    bold = learning.online(nested(), 40, explore=0.1)
    lasts, state = run(bold, 60, one, need, limit=0.7)
    assert (lasts[:5] == 3).mean() < 0.25
    assert (lasts[-5:] == 3).mean() > 0.8
    assert state.windows[0, 3] < -0.1
    np.testing.assert_allclose(state.windows[0, :2], 0, atol=0.02)


def test_one_odd_device_changes_nothing_for_the_others():
    # The bold try 0-3, 1.0 less than 1.5 times 0.7. The odd one can do 0-1, 0.6 of 0.7.
    policy = learning.online(nested(), 30)
    plain, _ = run(policy, 40, np.ones(30), limit=0.7)
    odd, state = run(policy, 40, np.array([2.0] + [1.0] * 29), limit=0.7)
    assert (plain[:, 1:] == 3).any()
    np.testing.assert_array_equal(odd[:, 1:], plain[:, 1:])
    assert (odd[2:, 0] == 1).mean() > 0.8
    np.testing.assert_allclose(state.clients[0, 1:], 0, atol=0.1)


def test_where_nothing_fits_the_smallest_load_is_taken():
    given = nested()
    policy = learning.online(given, 2)
    chosen = policy.assign(
        policy.init(), round_key(0), np.arange(2), budgets_of(2, limit=0.1)
    )
    assert chosen == [plans.Plan(0, 0)] * 2
    # Upload counts, too: 0-0 sends 0.9 of 0.1 allowed, 1-1 needs six times the time.
    odd = costs.CostTable(
        num_blocks=2,
        listed=plans.of_windows([[0, 0], [1, 1]]),
        time=[0.2, 0.6],
        upload=[0.9, 0.1],
        memory=[0.2, 0.2],
    )
    policy = learning.online(odd, 1)
    tight = budgets_of(1, limit=0.1, upload=0.1)
    chosen = policy.assign(policy.init(), round_key(0), np.arange(1), tight)
    assert chosen == [plans.Plan(1, 1)]


def test_upload_is_never_explored():
    policy = learning.online(nested(), 200, explore=1.0)
    tight = budgets_of(200, limit=0.9, upload=0.4)
    chosen = policy.assign(policy.init(), round_key(0), np.arange(200), tight)
    assert set(chosen) == {plans.Plan(0, 1)}


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"rate": 1.5}, {"explore": -0.1}, {"margin": 0.9}]
)
def test_online_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match="online: expected rate"):
        learning.online(nested(), 2, **wrong)


def test_observing_leaves_the_old_state():
    for policy in (
        learning.online(nested(), 4),
        learning.round_robin(nested(), 4),
        learning.adaptive_bits(nested()),
    ):
        state = policy.init()
        before = jax.tree.map(np.copy, state)
        seen = observed([2.0, 3.0], losses=np.array([1.0, 2.0]))
        chosen = [plans.Plan(0, 2)] * 2
        new = policy.observe(state, np.array([3, 1]), chosen, budgets_of(2), seen)
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), state, new)
        assert any(jax.tree.leaves(changed))
        jax.tree.map(np.testing.assert_array_equal, state, before)


def test_clients_go_round_their_own_windows():
    policy = learning.round_robin(singles(), 10)
    state, seen = policy.init(), []
    # Client 4 takes part in every round, client 2 in every second one.
    for ids in (np.array([4, 2]), np.array([4])) * 3:
        budgets = budgets_of(len(ids))
        chosen = policy.assign(state, round_key(0), ids, budgets)
        seen.append([plan.first for plan in chosen])
        report = observed(np.full(len(ids), 2.0))
        state = policy.observe(state, ids, chosen, budgets, report)
    assert seen == [[1, 2], [2], [0, 0], [1], [2, 1], [0]]
    assert state.tolist() == [0, 0, 3, 0, 6, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 49])
def test_a_round_visits_every_window_once(count):
    policy = learning.round_robin(singles(count), 1)
    seen = [
        policy.assign(np.array([r], np.int32), None, np.array([0]), budgets_of(1))[0]
        for r in range(count)
    ]
    assert [plan.first for plan in seen] == list(range(count))


def state_of(rung):
    return (
        learning.adaptive_bits(nested()).init()._replace(rung=np.array(rung, np.int32))
    )


@pytest.mark.parametrize(("rung", "widths"), [(0, (4, 4)), (1, (6, 4)), (2, (8, 6))])
def test_widths_by_hand(rung, widths):
    # 0-2 needs 0.45: 75 % of 0.6, but 90.9 % of 0.495, above 90.
    policy = learning.adaptive_bits(nested())
    limits = np.array([0.6, 0.495, 1.0])
    budgets = types.Budgets(limits, np.ones(3), np.ones(3))
    chosen = policy.assign(state_of(rung), round_key(0), np.arange(3), budgets)
    roomy, tight = widths
    # The whole network is trained at 1.0: nothing is frozen, no second program.
    assert chosen == [
        plans.Plan(0, 2, roomy),
        plans.Plan(0, 2, tight),
        plans.Plan(0, 3, 8),
    ]
    turned = types.Budgets(np.ones(3), np.ones(3), limits)  # memory instead of time
    assert policy.assign(state_of(rung), round_key(0), np.arange(3), turned) == chosen


def test_the_ladder_ends_at_the_given_width():
    policy = learning.adaptive_bits(nested(), bits=5)
    roomy = budgets_of(1, limit=0.6)
    widths = [
        policy.assign(state_of(rung), round_key(0), np.arange(1), roomy)[0].bits
        for rung in (0, 1)
    ]
    assert widths == [4, 5]
    narrow = learning.adaptive_bits(nested(), bits=3)
    (plan,) = narrow.assign(narrow.init(), round_key(0), np.arange(1), roomy)
    assert plan.bits == 3


def test_windows_are_those_of_random_maximal():
    ids, budgets = np.arange(90), budgets_of(90)
    policy = learning.adaptive_bits(singles())
    chosen = policy.assign(policy.init(), round_key(0), ids, budgets)
    plain = policies.random_maximal(singles()).assign((), round_key(0), ids, budgets)
    assert [plan.first for plan in chosen] == [plan.first for plan in plain]


def test_the_width_rises_when_the_loss_stops_falling():
    policy = learning.adaptive_bits(nested(), patience=2)
    state, rungs, averages = policy.init(), [], []
    ids, budgets = np.arange(3), budgets_of(3)
    chosen = [plans.Plan(0, 2)] * 3
    # Means 2, 1, 1.8, 1.8, 1.8: averages 2, 1.8, 1.8, 1.8, 1.8, of which the third is
    # the first without progress, and the fourth the second. Then the same once more.
    for mean in (2.0, 1.0, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8):
        losses = np.array([mean - 1, np.nan, mean + 1])
        seen = observed(np.ones(3), losses=losses)
        state = policy.observe(state, ids, chosen, budgets, seen)
        rungs.append(int(state.rung))
        averages.append(float(state.average))
    np.testing.assert_allclose(averages, [2.0] + [1.8] * 7, rtol=1e-6)
    assert rungs == [0, 0, 0, 1, 1, 2, 2, 2]  # and not above the top


def test_a_falling_loss_keeps_the_width():
    policy = learning.adaptive_bits(nested(), patience=2)
    state = policy.init()
    for mean in 0.9 ** np.arange(40):
        seen = observed(np.ones(1), losses=np.array([mean]))
        state = policy.observe(
            state, np.arange(1), [plans.Plan(0, 2)], budgets_of(1), seen
        )
    assert int(state.rung) == 0


def test_a_round_without_losses_changes_nothing():
    policy = learning.adaptive_bits(nested())
    seen = observed(np.ones(2), losses=np.full(2, np.nan))
    state = policy.init()
    chosen = [plans.Plan(0, 2)] * 2
    assert policy.observe(state, np.arange(2), chosen, budgets_of(2), seen) is state


@pytest.mark.parametrize(
    "wrong", [{"ladder": (6, 4)}, {"patience": 0}, {"tight": 0.0}, {"ladder": (1,)}]
)
def test_adaptive_bits_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"adaptive_bits: expected|codes are 2 to 8"):
        learning.adaptive_bits(nested(), **wrong)
