"""The bench: operations by hand, and the smallest workload through the real engine."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from absl import flags

from experiments import bench, machine, traces, workloads
from fljax import devices, experiment, plans, types
from fljax.runs import simulation
from fljax.runtime import mesh


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


ROOF = {"matmul_gflops": 100.0, "copy_gb_per_s": 10.0}

# What is printed of every workload.
FIGURES = {
    "compile_seconds",
    "programs",
    "median_seconds",
    "min_seconds",
    "max_seconds",
    "images_per_second",
    "gflops",
    "share_of_matmul",
    "peak_memory_mb",
}


def small(monkeypatch, name, shape=None, examples=None, **fields):
    """Makes a workload of the bench small."""
    load = workloads.BY_NAME[name]
    load = dataclasses.replace(
        load,
        shape=shape or load.shape,
        examples=examples or load.examples,
        fields=load.fields | fields,
    )
    monkeypatch.setitem(workloads.BY_NAME, name, load)
    # Tests that call a measurement have parsed no flags.
    monkeypatch.setattr(bench, "_await_turn", lambda: None)


def test_a_workload_runs_and_compiles_one_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "ceilings", lambda *_: ROOF)
    small(monkeypatch, "logistic", num_clients=4, clients_per_round=2)
    path = tmp_path / "figures.json"
    trace = tmp_path / "trace"
    what = ("--workload=logistic", "--repeats=2", "--partition=dirichlet")
    where = (f"--json={path}", f"--trace={trace}")
    flags.FLAGS(["bench", *what, "--alpha=100", *where])
    try:
        bench._main()
    finally:
        flags.FLAGS(["bench", "--json=", "--trace=", "--partition=iid", "--alpha=.1"])
    figures = json.loads(path.read_text())["logistic"]
    assert figures.keys() >= {*FIGURES, "gb_per_s", "share_of_copy"}
    assert figures["programs"] == 1
    assert figures["programs_from_disk"] == 0
    assert 0 < figures["min_seconds"] <= figures["median_seconds"]
    # 4 clients share 200 examples, unevenly: two of them have about half.
    of_round = figures["images_per_second"] * figures["median_seconds"]
    assert 50 < of_round < 150
    assert figures["share_of_matmul"] == pytest.approx(figures["gflops"] / 100)
    assert figures["total_seconds"] >= 2 * figures["min_seconds"]
    assert 0 <= figures["idle_share"] < 1
    assert 0 < sum(figures["longest"].values()) <= 1 + 1e-9
    assert list(trace.rglob("*.xplane.pb"))
    assert "images_per_second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--workload=", "--workload: expected small_cnn"),
        ("--workload=logistics", "did you mean 'logistic'"),
        ("--json=/", "--json: expected a file in a folder, got '/'"),
        ("--json=/nowhere/x", "--json: expected a file in a folder"),
        ("--cost_table=x", "--cost_table: expected with mobilenetv2_cocofl, "),
    ],
)
def test_what_cannot_be_timed(flag, complaint):
    name = flag.partition("=")[0]
    flags.FLAGS(["bench", "--workload=logistic", flag])
    try:
        with pytest.raises(ValueError, match=complaint):
            bench._check()
    finally:
        default = "small_cnn,logistic" if name == "--workload" else ""
        flags.FLAGS(["bench", f"{name}={default}"])


def test_ceilings_are_of_all_devices():
    roof = machine.ceilings(mesh.make())
    assert 1 < roof["matmul_gflops"] < 1e6
    assert 0.1 < roof["copy_gb_per_s"] < 1e5


def test_a_peak_is_forgotten():
    large = np.ones(2**25)
    before = machine.peak_mb()
    del large
    machine.forget_peak()
    after = machine.peak_mb()
    assert after == pytest.approx(machine.resident_mb(), rel=0.2)
    if pathlib.Path("/proc/self/clear_refs").exists():
        assert after < before - 200


def test_idle_shares_and_longest_operations_by_hand():
    event = traces.Event
    lines = [
        [event("loop.1", 0, 40), event("dot.7", 10, 30), event("dot.8", 60, 70)],
        [event("copy", 35, 50)],
    ]
    assert traces.idle(lines) == pytest.approx(10 / 70)  # from 50 to 60
    # loop 40 - 20 of what runs in it, dots 20 + 10, copy 15
    assert traces.longest(lines) == {
        "dot": pytest.approx(30 / 65),
        "loop": pytest.approx(20 / 65),
        "copy": pytest.approx(15 / 65),
    }
    assert traces.idle([[]]) == 1


@pytest.mark.long
def test_windows_are_timed_alone_and_shared(monkeypatch):
    small(monkeypatch, "mobilenetv2", (8, 8, 1), 8, network="cnn", batch_size=4)
    monkeypatch.setattr(bench, "WINDOWS", ((0, 3), (1, 2)))
    figures = bench.measure_windows(2, ROOF, steps=2)
    names = {"0-3", "1-2 int8", "1-2 float", "0-3 shared", "1-2 shared"}
    assert names < figures.keys()
    assert figures["programs"] == 4
    assert figures["0-3"]["ratio"] == 1
    for name in names:
        row = figures[name]
        least, most = row["min_milliseconds"], row["max_milliseconds"]
        assert 0 < least <= row["median_milliseconds"] <= most
        seconds = row["median_milliseconds"] / 1e3
        assert row["images_per_second"] == pytest.approx(4 / seconds)
        assert ("gb_per_s" in row) == ("shared" not in name)


def test_rounds_of_tiers_are_compared_with_their_windows(monkeypatch):
    small(
        monkeypatch,
        "mobilenetv2_cocofl",
        (8, 8, 1),
        8,
        network="cnn",
        num_clients=6,
        clients_per_round=3,
        batch_size=4,
        tiers=devices.parse_tiers("strong:.5:1:1:1,weak:.5:.6:.6:.6"),
    )
    monkeypatch.setattr(bench, "TIER_WINDOWS", 2)
    flags.FLAGS(["bench"])
    figures = bench.measure_tiers(2, ROOF)
    assert figures.keys() >= FIGURES
    assert figures["windows"]["0-3"] == 1
    assert len(figures["windows"]) <= 3
    ratio = figures["rounds_ratio"] / figures["windows_ratio"]
    assert figures["excess"] == pytest.approx(ratio - 1)
    assert figures["total_seconds"] > 0


def test_cohorts_and_populations(monkeypatch):
    monkeypatch.setattr(bench, "COHORTS", (1, 3, 10**9))
    monkeypatch.setattr(bench, "POPULATIONS", (100, 2000))
    monkeypatch.setattr(bench, "LATE", 12)
    flags.FLAGS(["bench"])
    cohorts = dict(bench.measure_cohorts("logistic", 2, ROOF))
    names = [f"logistic cohort {n}" for n in (1, 3, 10**9)]
    assert list(cohorts) == names
    assert cohorts[names[2]].startswith("left out: about ")
    three = cohorts[names[1]]
    assert three.keys() >= FIGURES - {"programs"}
    assert three["ms_per_client"] == pytest.approx(three["median_seconds"] / 3 * 1e3)
    populations = dict(bench.measure_populations("logistic", ROOF))
    assert list(populations) == [f"logistic population {n}" for n in (100, 2000)]
    assert all(abs(figures["growth"]) < 0.5 for figures in populations.values())


def test_a_population_shares_few_examples():
    load = workloads.BY_NAME["logistic"]
    settings = workloads.config(load, num_clients=100_000)
    fed = workloads.build_population(load, settings, 3000)
    assert fed.population.shards.counts.tolist() == [50] * 100_000
    assert fed.population.shards.indices.max() < len(fed.population.data.x) == 3000
    assert len(fed.population.fleet.row) == 100_000


@pytest.mark.long
def test_a_million_clients_are_built_and_take_no_more_from_round_to_round():
    load = workloads.BY_NAME["logistic"]
    load = dataclasses.replace(load, shape=(8, 8, 1), examples=1)
    fields = {"num_clients": 10**6, "algorithm": "cocofl", "network": "cnn"}
    fields["tiers"] = devices.parse_tiers("strong:.5:1:1:1,weak:.5:.6:.6:.6")
    settings = workloads.config(load, **fields)
    ready = workloads.build(load, settings)
    assert len(ready.federation.population.shards.counts) == 10**6
    algorithm = experiment.algorithm(ready)
    held = []
    for _, record in simulation.iterate(algorithm, algorithm.init(), range(100)):
        assert record["participants"] == 50
        arrays = sum(x.nbytes for x in jax.live_arrays())
        held.append((arrays, machine.resident_mb()))
    early, late = held[10], held[-1]
    assert late[0] <= 1.01 * early[0]
    assert late[1] <= 1.01 * early[1]
