"""The cost model by hand, fits to what it made itself, and against measured tables."""

import json

import numpy as np
import pytest

from experiments import profile
from fljax import models, plans, types
from fljax.nn import network
from fljax.plans import cost_model, costs
from tests.plans import test_costs

TIME, MEMORY = cost_model.TIME, cost_model.MEMORY


def priced(time=(), memory=()):
    """Makes a class in which only the given terms cost anything."""
    return cost_model.DeviceClass(
        name="made",
        time=tuple(float(dict(time).get(term, 0)) for term in TIME),
        memory=tuple(float(dict(memory).get(term, 0)) for term in MEMORY),
    )


def counts_of(name):
    return network.counts(models.BY_NAME[name]())


TWO = (
    types.BlockCounts(1000, 0, 10, 10, 32, 100, values=7, coded=3),
    types.BlockCounts(2000, 100, 20, 10, 64, 300, values=5, coded=4, after_values=2),
)


def test_upload_of_mobilenet_is_exact():
    counts = counts_of("mobilenetv2")
    measured, modeled = (
        test_costs.published("MobileNet"),
        cost_model.from_counts(counts),
    )
    assert plans.upload_bytes(plans.full(20), counts) == 9_318_260
    np.testing.assert_array_equal(
        modeled.windows[np.lexsort(modeled.windows.T[::-1])],
        measured.windows[np.lexsort(measured.windows.T[::-1])],
    )
    shares = cost_model.upload_share(measured.listed, {1.0: counts})
    np.testing.assert_allclose(shares, measured.upload, rtol=0, atol=5.0001e-6)


@pytest.mark.parametrize(
    ("table", "name", "device_class", "time", "memory"),
    [
        ("MobileNet", "mobilenetv2", "x64", 0.0305, 0.0285),
        ("ResNet18", "resnet18", "arm", 0.0155, 0.0255),
        ("ResNet50", "resnet50", "x64", 0.0395, 0.0345),
    ],
)
def test_classes_are_as_close_as_the_docstring_says(
    table, name, device_class, time, memory
):
    sample = cost_model.Sample(counts_of(name), test_costs.published(table))
    errors = cost_model.errors(cost_model.load_class(device_class), sample)
    assert len(errors.time) == len(sample.table.listed)
    assert errors.time.mean() < time <= 0.04
    assert errors.memory.mean() < memory <= 0.035


def test_time_by_hand():
    # Dense products cost 1, fixed point ones 0.5, a step 1000.
    made = priced(
        {"float_macs": 1, "int8_macs": 0.5, "float_depthwise_macs": 10, "step": 1000},
        {"kept": 1},
    )
    table = cost_model.from_counts(TWO, 1, made)
    np.testing.assert_array_equal(table.windows, [[0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(table.upload, [0.25, 1.0, 0.75])
    first = 2 * 1000  # no gradient of its input
    second = 3 * 2000 + 3 * 10 * 100
    after = 2 * 0.5 * 2000 + 2 * 10 * 100
    last = 2 * 2000 + 3 * 10 * 100
    before = 0.5 * 1000
    expected = np.array([first + after, first + second, before + last]) + 1000
    np.testing.assert_allclose(table.time, expected / (first + second + 1000))
    np.testing.assert_allclose(table.memory, [10 / 30, 1, 20 / 30])


def test_memory_by_hand():
    made = priced(
        {"step": 1}, {"kept": 1, "largest_before": 2, "trained_parameters": 3}
    )
    table = cost_model.from_counts(TWO, 4, made)
    full = 4 * 30 + 3 * 96
    np.testing.assert_allclose(
        table.memory * full, [4 * 10 + 3 * 32, full, 4 * 20 + 2 * 4 * 10 + 3 * 64]
    )


def test_a_fit_finds_the_class_that_made_a_table():
    counts = counts_of("small_convnet")
    true = priced(
        {"float_macs": 2e-10, "int8_macs": 5e-11, "float_values": 1e-9, "step": 1e-4},
        {"kept": 4e-9, "trained_parameters": 8e-9, "process": 0.01},
    )
    listed = plans.all_windows(len(counts))
    time, memory = cost_model.predict(true, listed, {1.0: counts}, 32)
    table = costs.CostTable(
        num_blocks=len(counts), listed=listed, time=time, memory=memory,
        upload=cost_model.upload_share(listed, {1.0: counts}),
    )  # fmt: skip
    sample = cost_model.Sample(counts, table)
    errors = cost_model.errors(cost_model.fit([sample], "found"), sample)
    assert errors.time.max() < 2e-3
    assert errors.memory.max() < 2e-3


def test_held_out_errors_are_of_windows_that_were_not_seen():
    counts = counts_of("small_convnet")
    table = cost_model.from_counts(counts)
    sample = cost_model.Sample(counts, table)
    errors = cost_model.held_out_errors(sample, folds=3)
    assert errors.time.shape == (len(table.listed) - 1,)
    assert errors.time.mean() < 0.02
    noise = np.random.default_rng(0).uniform(0.7, 1.4, len(table.listed))
    noisy = costs.CostTable(
        num_blocks=table.num_blocks, listed=table.listed, time=table.time * noise,
        upload=table.upload, memory=table.memory,
    )  # fmt: skip
    worse = cost_model.held_out_errors(sample._replace(table=noisy), folds=3)
    assert worse.time.mean() > 0.04


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


def test_a_class_survives_its_file(tmp_path):
    path = tmp_path / "mine.json"
    made = priced({"step": 2.5}, {"process": 0.125})
    cost_model.save_class(made, path)
    read = cost_model.load_class(path)
    assert (read.time, read.memory) == (made.time, made.memory)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[]", "expected prices of time"),
        ('{"time": {"step": 1}}', "expected prices of time by term"),
        ('{"time": {"step": 1' + "0" * 400 + "}}", "expected prices of time by term"),
        ("[" * 100_000, "expected JSON, got: it is nested too deep"),
    ],
)
def test_bad_classes_are_refused(tmp_path, text, words):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        cost_model.load_class(path)
    with pytest.raises(
        ValueError, match=r"generic, a class \(x64, arm\) or a JSON file"
    ):
        cost_model.load_class("riscv")
    with pytest.raises(ValueError, match="from 0 to 1e9, not all 0"):
        priced({"step": -1}, {"process": 1})


def test_windows_to_measure_are_spread():
    chosen = profile.spread(20, 12)
    assert chosen[:3] == [(0, 19), (0, 0), (19, 19)]
    assert len(set(chosen)) == 12
    assert all(0 <= first <= last < 20 for first, last in chosen)
    gaps = [
        min(abs(plan.first - c) + abs(plan.last - d) for c, d in chosen)
        for plan in plans.all_windows(20)
    ]
    assert max(gaps) <= 6
    assert len(profile.spread(3, 100)) == 6


def test_profile_measures_some_windows_and_models_the_others(call, tmp_path):
    out, kept = tmp_path / "costs.json", tmp_path / "class.json"
    done = call(
        profile, "--network=cnn", "--input_shape=8,8,1", "--windows=5", "--timings=1",
        "--batch_size=4", f"--costs_out={out}", f"--class_out={kept}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "windows held out" in done.out
    table = costs.load(out)
    assert len(table.listed) == 10
    full = table.row[plans.full(4)]
    assert table.time[full] == table.memory[full] == table.upload[full] == 1
    assert json.loads(out.read_text())["full_step_seconds"] > 0
    assert table.memory.min() < 0.9
    assert cost_model.load_class(kept).note == "fitted to cnn"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--costs_out",)),
        (("--costs_out=x", "--network=cnnn"), ("--network", "did you mean 'cnn'")),
        (("--costs_out=x", "--windows=3"), ("--windows", "'3'")),
        (("--costs_out=x", "--input_shape=8,x"), ("--input_shape", "'8,x'")),
        (("--costs_out=/no/such/x",), ("--costs_out", "/no/such/x")),
        (("--costs_out=x", "--class_out=/no/such/x"), ("--class_out", "/no/such/x")),
        (("--costs_out=x", "--network=logistic"), ("--network", "'logistic'")),
    ],
)
def test_profile_refuses_bad_input_in_one_line(call, arguments, words):
    done = call(profile, "--network=cnn", "--windows=5", *arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert all(word in done.err for word in words)
