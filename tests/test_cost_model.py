"""The cost model by hand and against the reference's measured tables."""

import numpy as np
import pytest

from fljax import cost_model, plans, types
from tests import test_costs

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
    measured, modelled = (
        test_costs.published("MobileNet"),
        cost_model.from_counts(counts),
    )
    rows = row_of(modelled)
    order = [rows[tuple(window)] for window in measured.windows.tolist()]
    assert len(order) == 210
    # The table is rounded to 5 decimals.
    np.testing.assert_allclose(
        modelled.upload[order], measured.upload, rtol=0, atol=5.0001e-6
    )


def test_model_is_as_close_to_mobilenet_as_its_docstring_says():
    measured, modelled = (
        test_costs.published("MobileNet"),
        cost_model.from_counts(mobilenet_counts()),
    )
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
    table = cost_model.from_counts(counts, batch=32)
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
    table = cost_model.from_counts(random_counts(rng), batch=int(rng.integers(1, 256)))
    first, last = table.windows.T
    outer, inner = np.nonzero((first[:, None] <= first) & (last[:, None] >= last))
    for cost in (table.time, table.upload, table.memory):
        assert np.all(cost[outer] >= cost[inner] - 1e-12)
        assert cost.max() == pytest.approx(1.0)


def test_model_leaves_out_windows_that_upload_nothing():
    counts = [types.BlockCounts(5, 0, 5, 5, 0, 0), types.BlockCounts(5, 0, 5, 5, 2, 8)]
    table = cost_model.from_counts(counts)
    np.testing.assert_array_equal(table.windows, [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("counts", "batch"), [([], 32), ([types.BlockCounts(1, 0, 1, 1, 1, 4)], 0)]
)
def test_model_refuses(counts, batch):
    with pytest.raises(ValueError, match="upload something and a batch of at least 1"):
        cost_model.from_counts(counts, batch)
