"""The bench: operations by hand, and the smallest workload through the real engine."""

import dataclasses
import json

import pytest
from absl import flags

from experiments import bench, workloads
from fljax import plans, types


def block(macs, depthwise):
    return types.BlockCounts(macs, depthwise, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # forward 10 + 7 + 4; weights of the window; inputs behind its first block
        ((0, 2), 2 * (21 + 21 + 11)),
        ((1, 1), 2 * (21 + 7 + 4)),
        ((2, 2), 2 * (21 + 4)),
        ((0, 0), 2 * (21 + 10 + 11)),
    ],
)
def test_operations_of_a_step_by_hand(window, expected):
    counts = (block(10, 0), block(4, 3), block(4, 0))
    assert bench._operations(plans.Plan(*window), counts) == expected


def test_a_workload_runs_and_compiles_one_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ceilings", lambda: {"matmul_gflops": 1.0})
    small = workloads.BY_NAME["logistic"]
    fields = small.fields | {"num_clients": 4, "clients_per_round": 2}
    small = dataclasses.replace(small, fields=fields, eval_every=2)
    monkeypatch.setitem(workloads.BY_NAME, "logistic", small)
    path = tmp_path / "figures.json"
    flags.FLAGS(["bench", "--workload=logistic", "--repeats=2", f"--json={path}"])
    bench._main()
    figures = json.loads(path.read_text())["logistic"]
    assert figures["programs"] == 1
    assert 0 < figures["min_seconds"] <= figures["median_seconds"]
    assert figures["images_per_second"] == pytest.approx(
        2 * 50 / figures["median_seconds"]
    )
    assert 0 < figures["gb_per_s"] < 1000
    assert figures["total_seconds"] >= 2 * figures["min_seconds"]
    assert "images_per_second" in capsys.readouterr().out


def test_rounds_of_tiers_are_compared_with_their_windows(monkeypatch):
    load = workloads.BY_NAME["mobilenetv2_cocofl"]
    fields = load.fields | {
        "network": "cnn",
        "num_clients": 6,
        "clients_per_round": 3,
        "batch_size": 4,
        "tiers": "strong:.5:1:1:1,weak:.5:.6:.6:.6",
    }
    small = dataclasses.replace(load, shape=(8, 8, 1), examples=8, fields=fields)
    monkeypatch.setitem(workloads.BY_NAME, "mobilenetv2_cocofl", small)
    monkeypatch.setattr(bench, "TIER_WINDOWS", 2)
    flags.FLAGS(["bench"])
    figures = bench.measure_tiers(2)
    assert figures["windows"]["0-3"] == 1
    assert len(figures["windows"]) <= 3
    ratio = figures["rounds_ratio"] / figures["windows_ratio"]
    assert figures["excess"] == pytest.approx(ratio - 1)
    assert figures["rounds_seconds"] > 0


def test_cohorts_and_populations(monkeypatch):
    monkeypatch.setattr(bench, "COHORTS", (1, 3))
    monkeypatch.setattr(bench, "POPULATIONS", (100, 2000))
    monkeypatch.setattr(bench, "LATE", 12)
    flags.FLAGS(["bench"])
    cohorts = dict(bench.measure_cohorts("logistic", 2))
    assert list(cohorts) == ["logistic cohort 1", "logistic cohort 3"]
    three = cohorts["logistic cohort 3"]
    assert three["ms_per_client"] == pytest.approx(three["seconds"] / 3 * 1e3)
    populations = dict(bench.measure_populations("logistic"))
    assert list(populations) == [f"logistic population {n}" for n in (100, 2000)]
    assert all(abs(figures["growth"]) < 0.5 for figures in populations.values())


def test_a_population_shares_few_examples():
    load = workloads.BY_NAME["logistic"]
    settings = workloads.config(load, num_clients=100_000)
    fed = workloads.build_population(load, settings, 3000)
    assert fed.shards.indices.shape == (100_000, 50)
    assert fed.shards.indices.max() < len(fed.data.x) == 3000
    assert len(fed.fleet.row) == 100_000
