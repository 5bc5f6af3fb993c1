"""Several devices and several hosts give what one device gives, up to last bits.

Codes multiply last bits from round to round: hence two rounds (docs/design.md).
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.runtime import mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


def on_devices(number, program):
    """Runs a program on that many CPU devices, in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={number}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAME_AS_ONE = """
import jax, numpy as np
from fljax import experiment
from fljax.devices import failures
from fljax.experiment import config
from fljax.runs import simulation

settings = dict(
    network="cnn", algorithm="cocofl", num_clients=30, clients_per_round=12, rounds=2,
    partition="dirichlet", alpha=1.0, weighting="examples", seed=3,
    failures=failures.Rates(nonfinite=0.1, huge=0.2), norm_bound=3.0,
)
outcomes = []
for devices, width in (("1", 1), ("8", 1), ("8", 2)):
    made = config.Config(**settings, devices=devices, client_width=width)
    ready = experiment.build(made)
    algorithm = experiment.algorithm(ready)
    outcomes.append(simulation.run(algorithm, made.rounds, ready.evaluator))
    assert len(jax.tree.leaves(outcomes[-1][0])[0].devices()) == int(devices)
(one, first), *others = outcomes
for state, records in others:
    worst = max(
        float(np.max(np.abs(np.subtract(a, b, dtype=np.float64)), initial=0))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(state))
    )
    assert worst < 1e-5, worst
    for ours, theirs in zip(first, records):
        assert ours["plans"] == theirs["plans"]
        assert ours.get("refused_for") == theirs.get("refused_for")
        assert abs(ours["train_loss"] - theirs["train_loss"]) < 1e-5
        assert abs(ours["test_loss"] - theirs["test_loss"]) < 1e-5
reasons = {why for record in first for why in record.get("refused_for", {})}
assert reasons == {"nonfinite", "large"}, reasons
print("same", sorted(first[0]["plans"]))
"""


@pytest.mark.long
def test_eight_devices_give_what_one_gives():
    assert on_devices(8, SAME_AS_ONE).startswith("same")


def test_what_lies_there_already_is_not_moved():
    over = mesh.make()
    tree = {"a": np.arange(3), "key": jax.random.key(1), "b": jnp.float32(2)}
    there = mesh.replicate(over, tree)
    again = mesh.replicate(over, there)
    assert all(x is y for x, y in zip(there.values(), again.values(), strict=True))
    np.testing.assert_array_equal(there["a"], [0, 1, 2])
    assert there["a"].dtype == jnp.int32
    assert jnp.array_equal(jax.random.key_data(there["key"]), [0, 1])


def test_what_is_64_bits_wide_arrives_whole(monkeypatch):
    def broadcast(tree):  # rounds to 32 bits as the real one does
        return jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), tree)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(mesh.multihost_utils, "broadcast_one_to_all", broadcast)
    tree = {
        "now": np.array(1 / 3),
        "every other": np.arange(6.0)[::2] / 7,
        "rows": np.arange(6).reshape(2, 3) + 2**40,
        "short": np.arange(3, dtype=np.int16),
        "none": np.zeros((0, 3)),
        "device": jnp.arange(3.0),
    }
    got = mesh.from_first_host(tree)
    for name, leaf in tree.items():
        assert got[name].dtype == leaf.dtype
        np.testing.assert_array_equal(got[name], leaf)


@pytest.mark.parametrize("over", [mesh.make()])
def test_rows_go_to_their_devices(over):
    rows = mesh.distribute(over, np.arange(over.size)[:, None])
    assert [int(shard.data[0, 0]) for shard in rows.addressable_shards] == list(
        range(over.size)
    )


ARGUMENTS = (
    "--network=logistic",
    "--algorithm=fedavg",
    "--num_clients=12",
    "--clients_per_round=5",
    "--tensorboard=false",
    "--compilation_cache=",
)


def start(*arguments):
    """Starts a training process."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *ARGUMENTS, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder, rounds, *more):
    """Starts two processes of one run on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (
        f"--workdir={folder}",
        f"--rounds={rounds}",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        *more,
    )
    return [start(*shared, f"--process_id={number}") for number in (0, 1)]


def metrics(folder):
    """Reads the records of a run, without the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "wall_seconds"}
        for line in lines
    ]


def assert_alike(ours, theirs):
    """Compares records; numbers within 1e-5."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["plans"] == b["plans"]
        back = [record.get("rollback", {}).get("to_round") for record in (a, b)]
        assert back[0] == back[1]
        assert a["clock_seconds"] == b["clock_seconds"]
        for name in ("train_loss", "test_loss", "test_accuracy", "upload_bytes"):
            assert a[name] == pytest.approx(b[name], abs=1e-5)


@pytest.mark.long
def test_two_processes_give_what_one_gives_and_one_goes_on(tmp_path):
    both = start_two(tmp_path / "two", 3)
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "after 3 rounds: test accuracy" in outputs[0][0]
    assert "round" not in "".join(outputs[1])  # process 0 alone writes and prints
    for folder in ("one", "two"):
        single = start(f"--workdir={tmp_path / folder}", "--rounds=5")
        _, error = single.communicate(timeout=200)
        assert single.returncode == 0, error
    ours, theirs = (metrics(tmp_path / name) for name in ("two", "one"))
    assert [record["round"] for record in ours] == [0, 1, 2, 3, 4]
    assert_alike(ours, theirs)


@pytest.mark.long
def test_two_processes_go_back_together(tmp_path):
    wild = ("--server_lr=20", "--rollback.drop=0.02", "--rollback.limit=20")
    for rounds in (4, 8):  # stopped once, between rollbacks
        both = start_two(tmp_path / "two", rounds, *wild)
        outputs = [process.communicate(timeout=200) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
    single = start(f"--workdir={tmp_path / 'one'}", "--rounds=8", *wild)
    _, error = single.communicate(timeout=200)
    assert single.returncode == 0, error
    ours, theirs = (metrics(tmp_path / name) for name in ("two", "one"))
    assert any("rollback" in record for record in ours)
    assert "rollback" not in ours[-1]
    assert_alike(ours, theirs)


def wait_for(condition):
    """Waits until a condition holds, two minutes at most."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("gone", "compiling"),
    [
        (1, False),
        pytest.param(0, False, marks=pytest.mark.long),
        pytest.param(0, True, marks=pytest.mark.long),
        pytest.param(1, True, marks=pytest.mark.long),
    ],
)
def test_a_lost_process_ends_the_others_with_a_message(tmp_path, gone, compiling):
    path = tmp_path / "run" / "metrics.jsonl"
    network = ("--network=small_convnet",) if compiling else ()
    processes = start_two(tmp_path / "run", 10**6, *network)

    def lines():
        return path.read_text().splitlines() if path.exists() else []

    try:
        if compiling:  # that takes longer than this second
            wait_for((tmp_path / "run" / "config.json").exists)
            time.sleep(1)
            assert not lines()
        else:
            wait_for(lambda: len(lines()) >= 3)
        processes[gone].kill()
        _, error = processes[1 - gone].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - gone].returncode == 3, error
    last = error.splitlines()[-1]
    assert last.startswith(f"error: process {1 - gone} of 2 lost contact with another")
    assert "goes on from its last checkpoint" in last
    if compiling:
        return
    rounds = len(lines()) + 2  # another number of processes goes on
    single = start(f"--workdir={tmp_path / 'run'}", f"--rounds={rounds}")
    _, error = single.communicate(timeout=200)
    assert single.returncode == 0, error
    assert "resuming" in error
    records = metrics(tmp_path / "run")
    assert [record["round"] for record in records] == list(range(rounds))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--coordinator=here"], "--process_id: expected 0 to --num_processes - 1"),
        (
            ["--coordinator=here", "--process_id=0", "--num_processes=1"],
            "--coordinator: expected HOST:PORT or auto, got 'here'",
        ),
        (["--process_id=1"], "expected with --coordinator=HOST:PORT"),
        (["--devices=9999"], "--devices: expected all or a number from 1 to"),
        (["--devices=none"], "--devices: expected all or a number from 1 to"),
    ],
)
def test_what_cannot_be_joined(arguments, complaint):
    process = start("--rounds=1", *arguments)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2
    assert complaint in error
    assert len(error.splitlines()) == 1
