"""Kill and resume: the same command ends as if nobody had stopped it, bit for bit."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_DEADLINE = 120  # seconds for what takes a few, on a busy machine

# Runs the command line after a change to the library that breaks in or slows down.
_CHANGED = """
import os, pathlib, runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
from fljax.runs import checkpoints, writers

def die():
    os.kill(os.getpid(), signal.SIGKILL)

{change}
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
_SLOW = """
write = writers.MetricsWriter.write

def slow(metrics, record):
    write(metrics, record)
    time.sleep(0.2)

writers.MetricsWriter.write = slow
"""
_DIE_IN_A_LINE = """
write = writers.MetricsWriter.write

def torn(metrics, record):
    if record["round"] == 2:
        with open(pathlib.Path(os.environ["RUN"]) / "metrics.jsonl", "ab") as file:
            file.write(b'{"round": 2, "train_lo')
        die()
    write(metrics, record)

writers.MetricsWriter.write = torn
"""
_DIE_IN_A_CHECKPOINT = """
replace = os.replace

def stop(source, target):
    if pathlib.Path(target).name == "round_00000005.ckpt":
        os.truncate(source, os.path.getsize(source) // 2)
        die()
    replace(source, target)

os.replace = stop
"""
_DIE_BEFORE_A_CHECKPOINT = """
save = checkpoints.save

def stop(folder, round, *rest):
    if round == 8:
        die()
    return save(folder, round, *rest)

checkpoints.save = stop
"""
_DIE_AFTER_A_RECORD = """
write = writers.MetricsWriter.write

def stop(metrics, record):
    write(metrics, record)
    if record["round"] == ROUND:
        die()

writers.MetricsWriter.write = stop
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Gives a folder of compiled programs, so that a later process need not compile."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(cache):
    """Gives a function that starts the command in a folder; what lives on is killed."""
    children = []

    def run(folder, *arguments, change=None):
        code = [
            *(["-m", "experiments.train"] if change is None else ["-c"]),
            *([] if change is None else [_CHANGED.replace("{change}", change)]),
        ]
        shared = (f"--compilation_cache={cache}", f"--workdir={folder}")
        child = subprocess.Popen(
            [sys.executable, *code, *arguments, *shared],
            cwd=_ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "RUN": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def finish(child):
    """Waits for a process; returns exit code, stdout and lines of stderr."""
    out, err = child.communicate(timeout=_DEADLINE)
    assert "Traceback" not in err, err
    return child.returncode, out, err.splitlines()


def count(folder):
    """Counts the whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(child, folder, lines):
    """Waits until metrics.jsonl has so many lines."""
    end = time.monotonic() + _DEADLINE
    while count(folder) < lines:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end, f"no {lines} lines after {_DEADLINE} s"
        time.sleep(0.005)


def records(folder):
    """Reads the records as text, to the last digit, without the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    for record in kept:
        assert record.pop("wall_seconds") >= 0
    return [json.dumps(record) for record in kept]


def final(folder, rounds):
    """Reads the last checkpoint's file."""
    return (folder / "checkpoints" / f"round_{rounds:08d}.ckpt").read_bytes()


def assert_same_end(folder, other, rounds):
    """Asserts that both runs ended alike, to the last bit."""
    assert len(records(folder)) == rounds
    assert records(folder) == records(other)
    assert final(folder, rounds) == final(other, rounds)
    assert not list(folder.rglob("*.tmp"))


LOGISTIC = (
    "--algorithm=fedavg",
    "--network=logistic",
    "--num_clients=12",
    "--clients_per_round=3",
)


def test_a_run_killed_three_times_ends_like_one_that_was_not(start, tmp_path):
    command = (*LOGISTIC, "--rounds=12", "--eval_every=5", "--checkpoint_every=3")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, result, _ = finish(start(whole, *command))
    for lines in (2, 5, 8):
        child = start(killed, *command, change=_SLOW)
        wait_for_lines(child, killed, lines)
        child.send_signal(signal.SIGKILL)
        assert child.wait(_DEADLINE) == -signal.SIGKILL
        assert lines <= count(killed) < 12
    code, out, err = finish(start(killed, *command))
    assert (code, out) == (0, result)
    # The third kill left the checkpoint of round 6, or that of 9 if it came late.
    resuming = rf"\[fedavg\] resuming {killed} at round [69] of 12"
    assert any(re.fullmatch(resuming, line) for line in err)
    assert not any("6/12 done" in line for line in err)
    assert_same_end(killed, whole, 12)


@pytest.mark.long
def test_cocofl_survives_kills_inside_of_its_writes(start, tmp_path):
    table = tmp_path / "table.json"
    windows = [[6, 6, 0.3, 0.4, 0.3], [7, 7, 0.3, 0.4, 0.3]]  # quick to compile
    table.write_text(json.dumps({"blocks": 8, "windows": windows}))
    command = (
        *("--algorithm=cocofl", "--network=small_convnet", f"--cost_table={table}"),
        *("--num_clients=12", "--clients_per_round=4", "--partition=dirichlet"),
        *("--rounds=10", "--eval_every=4", "--momentum=0.9", "--lr_schedule=5"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(whole, *command))[0] == 0
    used = [json.loads(record)["plans"] for record in records(whole)]
    assert {name for plans in used for name in plans} == {"6-6", "7-7"}

    def kill(change):
        child = start(killed, *command, change=change)
        assert child.wait(_DEADLINE) == -signal.SIGKILL, child.communicate()

    kill(_DIE_IN_A_LINE)
    assert (killed / "metrics.jsonl").read_bytes().endswith(b'{"round": 2, "train_lo')
    kill(_DIE_IN_A_CHECKPOINT)
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left[-1] == "round_00000005.ckpt.tmp"
    kill(_DIE_BEFORE_A_CHECKPOINT)
    assert sorted((killed / "checkpoints").iterdir())[-1].stem == "round_00000007"
    assert count(killed) >= 8  # the record of round 7 is there, its checkpoint is not
    code, _, err = finish(start(killed, *command))
    assert code == 0
    assert f"[cocofl] resuming {killed} at round 7 of 10" in err
    assert_same_end(killed, whole, 10)


def test_a_run_holds_its_folder_until_ctrl_c_and_then_goes_on(start, tmp_path):
    command = (*LOGISTIC, "--rounds=1000")
    child = start(tmp_path, *command, change=_SLOW)
    wait_for_lines(child, tmp_path, 2)

    code, out, err = finish(start(tmp_path, *command))
    assert (code, out) == (2, "")
    (line,) = err
    assert line.startswith(f"error: {tmp_path} is being written by pid {child.pid} on ")

    child.send_signal(signal.SIGINT)
    code, out, err = finish(child)
    assert (code, out) == (130, "")
    assert [line for line in err if not line.startswith("[fedavg] ")] == [
        "stopping when what runs now is done; Ctrl-C again: at once",
        "stopped; the same command goes on from here",
    ]

    done = count(tmp_path)
    code, _, err = finish(start(tmp_path, *LOGISTIC, f"--rounds={done + 2}"))
    assert code == 0
    assert any(line.startswith(f"[fedavg] resuming {tmp_path} at") for line in err)
    assert len([line for line in err if "loss" in line]) <= 3
    numbers = [json.loads(record)["round"] for record in records(tmp_path)]
    assert numbers == list(range(done + 2))


def test_a_run_with_a_rollback_killed_around_it_ends_like_one_that_was_not(
    start, tmp_path
):
    command = (
        *(*LOGISTIC, "--rounds=8", "--server_lr=30", "--checkpoint_every=2"),
        *("--rollback.drop=0.15", "--rollback.loss=50"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(whole, *command))[0] == 0
    found = [json.loads(record) for record in records(whole)]
    back = [record["round"] for record in found if "rollback" in record]
    assert back == [3]
    # Before it; between its record and its checkpoint; two checkpoints later, as only
    # that one makes sure that the first is on disk.
    for number in (2, 3, 6):
        change = _DIE_AFTER_A_RECORD.replace("ROUND", str(number))
        child = start(killed, *command, change=change)
        assert child.wait(_DEADLINE) == -signal.SIGKILL, child.communicate()
        assert count(killed) == number + 1
    code, _, err = finish(start(killed, *command))
    assert code == 0
    resuming = rf"\[fedavg\] resuming {killed} at round [46] of 8"
    assert any(re.fullmatch(resuming, line) for line in err)
    assert_same_end(killed, whole, 8)
    alerts = (whole / "alerts.jsonl").read_bytes()
    assert alerts.count(b'"kind": "rollback"') == 1
    assert (killed / "alerts.jsonl").read_bytes() == alerts
