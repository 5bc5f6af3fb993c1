"""Cost tables against hand-made ones and against the reference's figures."""

import json
import pathlib

import numpy as np
import pytest

from fljax import costs, plans, types

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "reference"
# Bytes a block of the CIFAR MobileNetV2 uploads: parameters and buffers, 4 B each.
MOBILENET_UPLOAD = (
    [3712, 10932, 24244, 37864, 42596, 62760, 62760, 87844]
    + [223784] * 3
    + [299572, 483112, 483112, 631588, 1296680, 1296680, 2123572, 1648640, 51240]
)
# (expansion, channels, blocks, stride) of its groups of inverted residuals.
MOBILENET_GROUPS = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def published(name):
    path = SHARED / "tables" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return costs.load(path)


def inverted_residual(inputs, outputs, expansion, size, stride, upload):
    wide, before, after = expansion * inputs, size**2, (size // stride) ** 2
    shortcut = stride == 1 and inputs != outputs
    return types.BlockCounts(
        macs=inputs * wide * before + (wide + shortcut * inputs) * outputs * after,
        depthwise_macs=9 * wide * after,
        # Inputs of the products and of the norms, and the outputs of the ReLUs.
        kept=inputs * before * (1 + shortcut)
        + 2 * wide * (before + after)
        + outputs * after * (1 + shortcut),
        outputs=outputs * after,
        params=(inputs + 9 + outputs + 4) * wide
        + 2 * outputs
        + shortcut * (inputs + 2) * outputs,
        upload_bytes=upload,
    )


def mobilenet_counts():
    upload = iter(MOBILENET_UPLOAD)
    stem = 32 * 32**2
    counts = [
        types.BlockCounts(27 * stem, 0, 3 * 1024 + 2 * stem, stem, 928, next(upload))
    ]
    channels, size = 32, 32
    for expansion, outputs, blocks, first_stride in MOBILENET_GROUPS:
        for stride in (first_stride, *[1] * (blocks - 1)):
            counts.append(
                inverted_residual(
                    channels, outputs, expansion, size, stride, next(upload)
                )
            )
            channels, size = outputs, size // stride
    head = types.BlockCounts(
        320 * 1280 * 16, 0, (320 + 2 * 1280) * 16, 1280 * 16, 412160, next(upload)
    )
    linear = types.BlockCounts(12800, 0, 1280, 10, 12810, next(upload))
    return [*counts, head, linear]


def small_table(**changes):
    fields = {
        "num_blocks": 2,
        "windows": [[0, 0], [0, 1], [1, 1]],
        "time": [0.6, 1.0, 0.3],
        "upload": [0.2, 1.0, 0.8],
        "memory": [0.7, 1.0, 0.4],
    }
    return costs.CostTable(**(fields | changes))


def row_of(table):
    return {tuple(window): row for row, window in enumerate(table.windows.tolist())}


def test_counts_are_those_of_the_facts_sheet():
    counts = mobilenet_counts()
    assert sum(c.macs + c.depthwise_macs for c in counts) == 91_154_944
    assert sum(c.params for c in counts) == 2_296_922
    assert [round(c.kept * 4 / 1000) for c in counts[:3]] == [274, 918, 1901]


def test_upload_of_mobilenet_is_exact():
    counts = mobilenet_counts()
    assert plans.upload_bytes(plans.full(20), counts) == 9_318_260
    measured, modelled = published("MobileNet"), costs.from_counts(counts)
    rows = row_of(modelled)
    order = [rows[tuple(window)] for window in measured.windows.tolist()]
    assert len(order) == 210
    # The table is rounded to 5 decimals.
    np.testing.assert_allclose(
        modelled.upload[order], measured.upload, rtol=0, atol=5.0001e-6
    )


def test_model_is_as_close_to_mobilenet_as_its_docstring_says():
    measured, modelled = published("MobileNet"), costs.from_counts(mobilenet_counts())
    rows = row_of(modelled)
    order = [rows[tuple(window)] for window in measured.windows.tolist()]
    time = np.abs(modelled.time[order] - measured.time)
    memory = np.abs(modelled.memory[order] - measured.memory)
    assert time.mean() < 0.0325
    assert time.max() < 0.1385
    assert memory.mean() < 0.0385
    assert memory.max() < 0.1245


def test_model_by_hand():
    counts = [
        types.BlockCounts(1000, 0, 10, 10, 32, 100),
        types.BlockCounts(2000, 100, 20, 10, 64, 300),
    ]
    table = costs.from_counts(counts, batch=32)
    np.testing.assert_array_equal(table.windows, [[0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(table.upload, [0.25, 1.0, 0.75])
    first = 2 * 1000 + 400 * 10 + 500  # no input gradient
    after = 2 * 2000 + 2 * 120 * 100 + 320 * 20
    second = 3 * (2000 + 150 * 100) + 400 * 20 + 1000
    before = 1000 + 90 * 10
    last = second - (2000 + 150 * 100)
    expected = np.array([first + after, first + second, before + last])
    np.testing.assert_allclose(table.time, expected / (first + second))
    memory = np.array([32 * 26 + 96 + 64, 32 * 30 + 96 + 192, 32 * 25 + 96 + 128])
    np.testing.assert_allclose(table.memory, memory / (32 * 30 + 96 + 192))


def random_counts(rng):
    columns = [10 ** rng.uniform(0, 8, 6) for _ in range(6)]
    return [types.BlockCounts(*map(int, row)) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_training_more_never_costs_less(seed):
    rng = np.random.default_rng(seed)
    table = costs.from_counts(random_counts(rng), batch=int(rng.integers(1, 256)))
    first, last = table.windows.T
    outer, inner = np.nonzero((first[:, None] <= first) & (last[:, None] >= last))
    for cost in (table.time, table.upload, table.memory):
        assert np.all(cost[outer] >= cost[inner] - 1e-12)
        assert cost.max() == pytest.approx(1.0)


def test_model_leaves_out_windows_that_upload_nothing():
    counts = [types.BlockCounts(5, 0, 5, 5, 0, 0), types.BlockCounts(5, 0, 5, 5, 2, 8)]
    table = costs.from_counts(counts)
    np.testing.assert_array_equal(table.windows, [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("counts", "batch"), [([], 32), ([types.BlockCounts(1, 0, 1, 1, 1, 4)], 0)]
)
def test_model_refuses(counts, batch):
    with pytest.raises(ValueError, match="upload something and a batch of at least 1"):
        costs.from_counts(counts, batch)


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
    windows = plans.all_windows(3)  # 0-0 0-1 0-2 1-1 1-2 2-2
    ok = np.array([True, True, False, True, False, True])
    np.testing.assert_array_equal(
        costs.maximal(windows, ok), [False, True, False, False, False, True]
    )
    both = costs.maximal(windows, np.stack([ok, np.ones(6, bool), np.zeros(6, bool)]))
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
            got = table.windows[costs.maximal(table.windows, fits)]
            assert sorted(got.tolist()) == sorted(expected), (name, budgets)


def test_nearest_fit_asks_for_what_is_enough():
    table = small_table()
    message = costs.nearest_fit(table, 0.2, 0.5, 0.1)
    assert message == (
        "no window of cost table fits time 0.2, upload 0.5, memory 0.1; the nearest is "
        "1-1, which needs time 0.3, upload 0.8, memory 0.4: multiply the budgets by 4.0"
    )
    assert costs.feasible(table, 0.2 * 4, 0.5 * 4, 0.1 * 4).any()


def test_save_and_load_keep_every_digit(tmp_path):
    table = costs.from_counts(mobilenet_counts())
    costs.save(table, tmp_path / "table.json")
    again = costs.load(tmp_path / "table.json")
    for name in ("windows", "time", "upload", "memory"):
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
        ('{"blocks": 2, "windows": [[0, 1, 0, 1, 1]]}', "time for window 0-1, got 0"),
        ('{"blocks": 2, "windows": [[0, 1, 1, NaN, 1]]}', "upload .* got nan"),
        ('{"blocks": 2, "windows": [[0, 1, 1, 1, Infinity]]}', "memory .* got inf"),
        (
            f'{{"blocks": 2, "windows": [{FULL_ROW}], "full_step_seconds": -1}}',
            "full_step_seconds or none, got -1",
        ),
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
    with pytest.raises(ValueError, match=r"none\.json: expected .* found no file"):
        costs.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": [[0, 0]]}, r"expected time of shape \(1,\)"),
        ({"windows": [0, 1, 1]}, r"as \[P, 2\], got shape \(3,\)"),
    ],
)
def test_table_refuses_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        small_table(**changes)
