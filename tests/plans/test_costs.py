"""Cost tables: files, budgets and windows, and the reference's windows."""

import json
import pathlib

import numpy as np
import pytest

from fljax import plans
from fljax.plans import costs

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference"


def published(name):
    """Load a table of the reference, or skip the test where it is not at hand."""
    path = SHARED / "tables" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return costs.load(path)


def small_table(**changes):
    fields = {
        "num_blocks": 2,
        "listed": plans.all_windows(2),  # 0-0 0-1 1-1
        "time": [0.6, 1.0, 0.3],
        "upload": [0.2, 1.0, 0.8],
        "memory": [0.7, 1.0, 0.4],
    }
    return costs.CostTable(**(fields | changes))


def test_feasible_of_one_and_of_many():
    table = small_table()
    np.testing.assert_array_equal(
        costs.feasible(table, 0.6, 1.0, 0.7), [True, False, True]
    )
    limits = np.array([1.0, 0.6, 0.5])
    many = costs.feasible(table, limits, np.ones(3), limits)
    np.testing.assert_array_equal(
        many, [[True, True, True], [False, False, True], [False, False, True]]
    )


def test_feasible_takes_noise_above_one_for_one():
    table = small_table(time=[1.04, 1.0, 0.3])
    assert costs.feasible(table, 1.0, 1.0, 1.0).all()
    assert table.time[0] == 1.04


def test_maximal_drops_what_lies_in_another_feasible_window():
    covers = plans.covering(plans.all_windows(3))  # 0-0 0-1 0-2 1-1 1-2 2-2
    ok = np.array([True, True, False, True, False, True])
    np.testing.assert_array_equal(
        costs.maximal(covers, ok), [False, True, False, False, False, True]
    )
    both = costs.maximal(covers, np.stack([ok, np.ones(6, bool), np.zeros(6, bool)]))
    np.testing.assert_array_equal(both.sum(axis=1), [2, 1, 0])
    assert both[1, 2]


def test_maximal_windows_are_the_references():
    path = SHARED / "expected" / "maximal_windows.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    for name, cases in json.loads(path.read_text()).items():
        table = published(name)
        for budgets, expected in cases.items():
            limits = [float(part.split("=")[1]) for part in budgets.split()]
            fits = costs.feasible(table, *limits)
            got = table.windows[costs.maximal(table.covers, fits)]
            assert sorted(got.tolist()) == sorted(expected), (name, budgets)


def test_nearest_fit_asks_for_what_is_enough():
    table = small_table()
    message = costs.nearest_fit(table, 0.2, 0.5, 0.1)
    assert message == (
        "no plan fits time 0.2, upload 0.5, memory 0.1 by cost table; the nearest is "
        "1-1, which needs time 0.3, upload 0.8, memory 0.4: multiply the budgets by "
        "4.0, or take a network of more blocks"
    )
    assert costs.feasible(table, 0.2 * 4, 0.5 * 4, 0.1 * 4).any()


def test_save_and_load_keep_every_digit(tmp_path):
    listed = plans.all_windows(20)
    time, upload, memory = np.random.default_rng(0).uniform(0.1, 1, (3, len(listed)))
    table = small_table(
        num_blocks=20, listed=listed, time=time, upload=upload, memory=memory
    )
    costs.save(table, tmp_path / "table.json")
    again = costs.load(tmp_path / "table.json")
    assert again.listed == table.listed
    for name in ("time", "upload", "memory"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert (again.num_blocks, again.full_step_seconds) == (20, None)
    assert again.source == str(tmp_path / "table.json")


def test_load_reads_the_published_layout(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(
        '{"blocks": 2, "full_step_seconds": 0.5, "full_step_memory_gb": 2,'
        ' "windows": [[0, 1, 1.0, 1.0, 1.0], [1, 1, 0.3, 0.8, 0.4]]}'
    )
    table = costs.load(path)
    np.testing.assert_array_equal(table.windows, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(table.memory, [1.0, 0.4])
    assert (table.full_step_seconds, table.full_step_memory_gb) == (0.5, 2)


def test_rows_are_plans_at_any_width_of_codes():
    table = small_table()
    assert table.at(4) == tuple(plan.at(4) for plan in table.listed)
    assert table.rows(table.at(4)[::-1]).tolist() == [2, 1, 0]
    few = table.take([2, 0], "few")
    assert (list(map(str, few.listed)), few.source) == (["1-1", "0-0"], "few")
    assert (few.upload.tolist(), few.rows([plans.Plan(0, 0)])) == ([0.8, 0.2], [1])
    assert not few.covers.any()


def test_table_cannot_be_changed():
    table = small_table()
    with pytest.raises(ValueError, match="read-only"):
        table.time[0] = 0.0
    with pytest.raises(AttributeError):
        table.time = np.ones(3)


FULL_ROW = "[0, 1, 1.0, 1.0, 1.0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, got: "),
        ("[]", "expected a JSON object, got a list"),
        ('{"blocks": 2}', r"keys blocks and windows, got \['blocks'\]"),
        ('{"blocks": 0, "windows": []}', "blocks to be a positive integer, got 0"),
        ('{"blocks": "2", "windows": []}', "positive integer, got '2'"),
        ('{"blocks": 2, "windows": []}', "at least one row"),
        ('{"blocks": 2, "windows": 3}', "at least one row"),
        ('{"blocks": 2, "windows": [[0, 1, 1, 1]]}', r"got \[0, 1, 1, 1\] in row 0"),
        ('{"blocks": 2, "windows": [[0, 1.5, 1, 1, 1]]}', "whole first and last"),
        ('{"blocks": 2, "windows": [[0, 1, "1", 1, 1]]}', "in row 0"),
        ('{"blocks": 2, "windows": [[0, 2, 1, 1, 1]]}', "< 2 .* got 0-2 in row 0"),
        ('{"blocks": 2, "windows": [[1, 0, 1, 1, 1]]}', "got 1-0 in row 0"),
        (f'{{"blocks": 2, "windows": [{FULL_ROW}, {FULL_ROW}]}}', "0-1 again in row 1"),
        (
            '{"blocks": 2, "windows": [[0, 1, 0, 1, 1]]}',
            "time from .* plan 0-1, got 0",
        ),
        ('{"blocks": 2, "windows": [[0, 1, 1, NaN, 1]]}', "JSON, got: NaN"),
        ('{"blocks": 2, "windows": [[0, 1, 1, 1, Infinity]]}', "JSON, got: Infinity"),
        (
            f'{{"blocks": 2, "windows": [{FULL_ROW}], "full_step_seconds": -1}}',
            "full_step_seconds from 1e-9 to 1e9 or none, got -1",
        ),
        ("[" * 100_000, "JSON, got: it is nested too deep"),
        (f'{{"blocks": 2, "windows": [[0, 1, 1, 1, 1{"0" * 400}]]}}', "in row 0"),
        ('{"blocks": 2, "windows": [[0, 1, 1, 1, 1e400]]}', "got .*inf.* in row 0"),
        (f'{{"blocks": 2, "windows": [[0, 1{"0" * 30}, 1, 1, 1]]}}', "in row 0"),
        (f'{{"blocks": 1{"0" * 400}, "windows": []}}', "positive integer, got 1"),
        (f'{{"blocks": 2, "windows": {"[" * 900}{"]" * 900}}}', "in row 0"),
        ('{"blocks": 2, "blocks": 3}', "JSON, got: the key 'blocks' twice"),
    ],
)
def test_load_refuses_in_one_line_that_names_the_file(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        costs.load(path)
    assert str(caught.value).startswith(f"{path}: expected")
    assert "\n" not in str(caught.value)


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: there is no file"):
        costs.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"listed": [plans.Plan(0, 0)]}, r"expected time of shape \(1,\)"),
        ({"listed": []}, "at least one plan, got none"),
        ({"listed": [(0, 0), (0, 1), (1, 1)]}, r"plans of 8 bits, got .*in row 0"),
        ({"listed": [plans.Plan(0, 0, 4)] * 3}, r"of 8 bits, got .*bits=4.* in row 0"),
        ({"num_blocks": 1}, "plans of 1 blocks, 0 to 0, got 0-1 in row 1"),
        ({"listed": [plans.Plan(0, 1)] * 3}, "each plan once, got 0-1 again in row 1"),
    ],
)
def test_table_refuses_what_is_no_list_of_plans(changes, message):
    with pytest.raises(ValueError, match=message):
        small_table(**changes)
