"""What typical budgets make of a table: sets by hand, restricted tables."""

import jax
import numpy as np
import pytest

from fljax import devices, plans, types
from fljax.plans import costs, typical
from tests import conftest


def one_block_windows(*needs):
    """A table of windows 0-0, 1-1, ... alone, each of that need in time and memory."""
    blocks = range(len(needs))
    return costs.CostTable(
        num_blocks=len(needs),
        listed=plans.of_windows(zip(blocks, blocks, strict=True)),
        time=needs,
        upload=[0.1] * len(needs),
        memory=needs,
    )


def budgets_of(*limits):
    limit = np.array(limits, np.float64)
    return types.Budgets(limit, np.ones_like(limit), limit)


def names(table):
    return list(map(str, table.listed))


def test_sets_are_counted():
    table = one_block_windows(0.2, 0.4, 0.8)
    fits, shares = typical.feasible_sets(table, budgets_of(0.5, 0.3, 0.4, 0.1, 0.45))
    found = {
        tuple(row): share for row, share in zip(fits.tolist(), shares, strict=True)
    }
    # 0.1 fits nothing and is left out of the four.
    assert found == {(True, False, False): 0.25, (True, True, False): 0.75}


def test_sets_need_a_budget_that_something_fits():
    with pytest.raises(
        ValueError, match=r"typical: expected budgets .* got 2 that none"
    ):
        typical.feasible_sets(one_block_windows(0.5), budgets_of(0.1, 0.2))


def test_the_windows_chosen_most_are_kept():
    # Chosen by: 0-0 all three, 1-1 and 2-2 the clients of 0.5 and 0.9, 3-3 of 0.9.
    # Frequencies: 0-0 (1 + 1/3 + 1/4)/3, 1-1 and 2-2 (1/3 + 1/4)/3, 3-3 (1/4)/3.
    table = one_block_windows(0.2, 0.4, 0.5, 0.8)
    given = budgets_of(0.3, 0.5, 0.9)
    small = typical.restrict(table, given, budgets_of(0.3), 3)
    assert names(small) == ["0-0", "1-1", "2-2"]
    np.testing.assert_array_equal(small.time, [0.2, 0.4, 0.5])
    assert small.num_blocks == 4
    assert small.source == "3 windows of cost table"
    assert names(typical.restrict(table, given, budgets_of(0.3), 1)) == ["0-0"]


def test_a_small_table_stays():
    table = one_block_windows(0.2, 0.4)
    assert typical.restrict(table, budgets_of(0.5), budgets_of(0.5), 2) is table


def test_windows_that_nobody_chooses_go():
    table = one_block_windows(0.2, 0.4, 0.8, 0.9)
    given = budgets_of(0.5, 0.5)
    assert names(typical.restrict(table, given, budgets_of(0.5), 3)) == ["0-0", "1-1"]


def disjoint():
    """Windows 0-0 and 1-1 fit many clients that can send, 2-2 few that cannot."""
    table = costs.CostTable(
        num_blocks=3,
        listed=plans.of_windows([[0, 0], [1, 1], [2, 2]]),
        time=[0.2, 0.2, 0.9],
        upload=[0.8, 0.8, 0.1],
        memory=[0.2, 0.2, 0.9],
    )
    rich, poor = [0.5] * 9, [1.0]
    sends = np.array([1.0] * 9 + [0.5])
    return table, types.Budgets(np.array(rich + poor), sends, np.array(rich + poor))


def test_no_budget_loses_its_last_window():
    table, given = disjoint()
    nothing = types.Budgets(*np.full(3, 0.01))  # had no window before: needs none
    assert names(typical.restrict(table, given, nothing, 2)) == ["0-0", "2-2"]
    with pytest.raises(ValueError, match=r"most: expected 2 windows or more.* got 1"):
        typical.restrict(table, given, nothing, 1)


def test_the_lowest_budgets_keep_a_window():
    # All typical clients can train 0-1, which holds 0-0, what the lowest needs.
    table = costs.CostTable(
        num_blocks=2,
        listed=plans.all_windows(2),  # 0-0 0-1 1-1
        time=[0.2, 0.5, 0.4],
        upload=[0.2, 0.5, 0.4],
        memory=[0.2, 0.5, 0.4],
    )
    given = budgets_of(0.6, 0.6)
    assert names(typical.restrict(table, given, budgets_of(0.6), 2)) == ["0-1"]
    assert names(typical.restrict(table, given, budgets_of(0.3), 2)) == ["0-0", "0-1"]
    assert names(typical.restrict(table, given, budgets_of(0.3), 1)) == ["0-0"]


@pytest.mark.parametrize(("most", "change"), [(24, 0.02), (16, 0.04)])
def test_few_windows_of_the_published_table_do_for_the_tiers(shared, most, change):
    table = costs.load(shared / "reference/tables/MobileNet.json")
    ids = np.arange(3000)
    given = conftest.draw_budgets(jax.random.key(0), ids, devices.tier_of(3000))
    lowest = types.Budgets(*(np.float64(v) for v in (0.33, 0.5, 0.33)))
    small = typical.restrict(table, given, lowest, most)
    assert len(small.listed) == most
    assert costs.feasible(small, *lowest).any()
    assert costs.feasible(small, *given).any(axis=1).all()
    np.testing.assert_allclose(
        participation(small, given), participation(table, given), rtol=0, atol=change
    )


def participation(table, given):
    """Expected share of clients that train each block under uniform draws."""
    fits, shares = typical.feasible_sets(table, given)
    draws = shares @ typical.evenly(costs.maximal(table.covers, fits))
    first, last = table.windows.T
    blocks = np.arange(table.num_blocks)[:, None]
    return ((first <= blocks) & (blocks <= last)) @ draws
