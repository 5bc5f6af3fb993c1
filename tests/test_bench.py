"""The bench: operations by hand, and the smallest workload through the real engine."""

import json

import pytest
from absl import flags

from experiments import bench
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
    small = bench.WORKLOADS["logistic"]
    fields = small.fields | {"num_clients": 4, "clients_per_round": 2}
    monkeypatch.setitem(bench.WORKLOADS, "logistic", small._replace(fields=fields))
    path = tmp_path / "figures.json"
    flags.FLAGS(["bench", "--workload=logistic", "--repeats=2", f"--json={path}"])
    bench._main()
    figures = json.loads(path.read_text())["logistic"]
    assert figures["programs"] == 1
    assert 0 < figures["min_seconds"] <= figures["median_seconds"]
    assert figures["images_per_second"] == pytest.approx(
        2 * 50 / figures["median_seconds"]
    )
    assert "images_per_second" in capsys.readouterr().out
