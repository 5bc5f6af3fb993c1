"""The soak: what it draws, what it finds wrong, and a small one, started as it is."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import soak

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {"kills": 10, "full_disks": 2}


@pytest.fixture(autouse=True)
def small():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([""])
    with flagsaver.flagsaver(**SMALL):
        yield


def test_blows_come_in_order_and_by_the_seed():
    drawn = soak.blows(20, 5.0, seed=3)
    assert drawn == soak.blows(20, 5.0, seed=3)
    assert drawn != soak.blows(20, 5.0, seed=4)
    assert len(drawn) == 12
    assert [blow.round for blow in drawn if blow.kind == "full"] == [6, 13]
    kills = [blow for blow in drawn if blow.kind == "kill"]
    waited = [blow.round for blow in drawn if blow.round]
    assert waited == sorted(waited)
    assert all(0 <= blow.seconds < 5 for blow in kills)
    assert sum(blow.seconds > 0.1 for blow in kills) == 2  # while it starts


@pytest.fixture
def left(tmp_path):
    """Gives what two runs left that went alike, but for the time they took."""
    for name, seconds in (("one", 1), ("two", 2)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "round_00000020.ckpt").write_bytes(b"x")
        lines = [{"round": r, "loss": 0.5, "wall_seconds": seconds} for r in range(20)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        (tmp_path / name / "alerts.jsonl").write_text('{"round": 3}\n')
    return tmp_path / "one", tmp_path / "two"


def verdicts(left):
    return [check.good for check in soak.compared(*left, 20)]


def test_runs_that_went_alike_are_found_alike(left):
    assert verdicts(left) == [True] * 4


def test_a_round_that_is_missing_twice_or_other_is_found(left):
    path = left[1] / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert verdicts(left) == [False, False, True, True]
    path.write_text("".join([*lines, lines[-1]]))
    assert verdicts(left) == [False, False, True, True]
    path.write_text("".join(lines).replace("0.5", "0.5000000000000001", 1))
    assert verdicts(left) == [True, False, True, True]


def test_other_alerts_and_another_state_are_found(left):
    (left[1] / "alerts.jsonl").write_text("")
    (left[1] / "checkpoints" / "round_00000020.ckpt").write_bytes(b"y")
    assert verdicts(left) == [True, True, False, False]


@pytest.mark.parametrize(
    ("growth", "good"), [(0.0, True), (0.04, True), (0.1, False), (-0.1, False)]
)
def test_memory_that_is_not_flat_is_found(growth, good):
    memory = [(r, 100 + growth * r) for r in range(1, 21)]
    memory[0] = (1, 500.0)  # it starts
    assert soak.of_memory(memory).good == good


def test_a_run_that_does_not_take_its_blows_is_found():
    kill, full, none = (soak.Blow(kind, 0, 0.0) for kind in ("kill", "full", "none"))
    killed, told = soak.Death(-9, []), soak.Death(2, ["error: no space"])
    fine = [(kill, killed), (full, told), (none, soak.Death(0, []))]
    assert [check.good for check in soak.of_blows(fine, "x")] == [True] * 3
    wrong = [
        (kill, soak.Death(0, [])),
        (full, soak.Death(1, ["Traceback"])),
        (none, soak.Death(1, [])),
    ]
    assert [check.good for check in soak.of_blows(wrong, "x")] == [False] * 3


def test_a_folder_that_is_not_empty_is_refused(call, tmp_path):
    (tmp_path / "file").touch()
    done = call(soak, f"--workdir={tmp_path}")
    assert done.code == 2
    assert "error: --workdir: expected a new or empty folder" in done.err


def test_flags_take_the_place_of_what_is_usual(tmp_path):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["", "--rounds=40", "--clock.deadline=3", "--lr_schedule=10,20"])
    ran = soak.settings(tmp_path / "data.npz")
    assert (ran.rounds, ran.clock.deadline, ran.num_clients) == (40, 3, 1_000_000)
    said = soak.command(ran, tmp_path)
    assert {"--rounds=40", "--lr_schedule=10,20", "--clock.late=carry"} <= {*said}
    flags.FLAGS(["", "--rounds=3"])
    with pytest.raises(ValueError, match="--rounds: expected at least 20, got 3"):
        soak.settings(tmp_path / "data.npz")


@pytest.mark.long
@pytest.mark.parametrize("mounts", [True, False])
def test_a_small_soak(tmp_path, mounts):
    flagged = ["--num_clients=500", "--rounds=60", "--kills=3", "--full_disks=1"]
    command = [sys.executable, "-m", "experiments.soak", *flagged]
    path = os.environ["PATH"] if mounts else str(tmp_path)
    environment = {**os.environ, "PATH": path}
    folder = tmp_path / "soak"
    done = subprocess.run(
        [*command, f"--workdir={folder}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    checks = json.loads((folder / "verdict.json").read_text())
    wrong = {check["what"] for check in checks if not check["good"]}
    # So few rounds tell little of memory; the verdict on it is not this test's.
    assert wrong <= {"memory, first and last quarter"}, done.stdout + done.stderr
    assert done.returncode == bool(wrong)
    assert len(checks) == 9
