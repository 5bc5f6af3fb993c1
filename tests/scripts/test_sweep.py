"""Sweeps: what a space is, who runs which trial, what is left, what is refused."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from experiments import space, sweep, sweep_results, train, trials

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
    "--algorithm=fedavg",
    "--network=logistic",
    "--num_clients=12",
    "--clients_per_round=3",
    "--data_cache=",
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def parse(name, text):
    return flags.FLAGS[name].parser.parse(text)


def test_ranges_and_choices_are_read(tmp_path):
    path = tmp_path / "space.txt"
    path.write_text(
        "# a comment\n\nlr = .001..1 log  # another\nlocal_epochs=1..3\n"
        "clock.deadline = 0.8..2\n"
    )
    made = space.read(
        [str(path), "codec=none | top_k:0.1", "alpha=0.1..10 log in 3"], parse
    )
    assert made == {
        "lr": space.Range(0.001, 1.0, True, False),
        "local_epochs": space.Range(1, 3, False, True),
        "clock.deadline": space.Range(0.8, 2.0, False, False),
        "codec": space.Choices(("none", "top_k:0.1")),
        "alpha": space.Choices(("0.1", "1.0", "10.0")),
    }


def test_a_grid_takes_whole_numbers_one_by_one():
    made = space.read(["local_epochs=1..3", "batch_size=8..32 in 3"], parse)
    assert space.grid(made) == {
        "local_epochs": space.Choices(("1", "2", "3")),
        "batch_size": space.Choices(("8", "20", "32")),
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "--space: expected NAME=LOW..HIGH"),
        (["lrr=1..2"], "got 'lrr'; did you mean 'lr'"),
        (["seed=1..2"], "other than the seed"),
        (["lr=1..2", "lr=3"], "expected lr once"),
        (["lr=2..1"], "--space: lr: expected LOW below HIGH, got '2..1'"),
        (["lr=0..1 log"], "--space: lr: expected"),
        (["momentum=0..0.9 log"], "both above 0"),
        (["lr=1..x"], "--space: lr: expected a number"),
        (["lr=1..2 in 1"], "expected in 2 to in 1000"),
        (["network=cnn..logistic"], "since it is no number"),
        (["network=cnn | logistik"], "did you mean 'logistic'"),
        (["lr=.1|.1"], "--space: lr: expected NAME"),
        (["nowhere.txt"], "a file of such, got 'nowhere.txt'"),
    ],
)
def test_a_bad_space_is_one_line(entries, message):
    with pytest.raises(ValueError, match=message) as caught:
        space.read(entries, parse)
    assert str(caught.value).startswith("--space")


def settings(tmp_path, **more):
    of = {"lr": space.Range(0.01, 1.0, True, False), "codec": space.Choices(("a", "b"))}
    made = trials.Settings(workdir=tmp_path, space=of, more=True, trials=4)
    return made._replace(**more)


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def test_workers_share_trials_and_take_over_what_nobody_holds(optuna, tmp_path):
    one = settings(tmp_path)
    here, there = trials.study(one), trials.study(one)
    first, second = trials.take(one, here), trials.take(one, there)
    assert (first.number, second.number) == (0, 1)
    assert first.values != second.values
    first.lock.release()  # as of a process that was killed
    again = trials.take(one, there)
    assert (again.number, again.values) == (0, first.values)
    there.tell(again.trial, 0.5)
    again.lock.release()
    left = [trials.take(one, here) for _ in range(3)]
    assert [t and t.number for t in left] == [2, 3, None]
    more = one._replace(trials=5)
    assert trials.take(more, here).number == 4


def test_trials_of_a_seed_are_drawn_alike(optuna, tmp_path):
    values = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = settings(tmp_path / name, sampler="random")
        study = trials.study(one)
        held = [trials.take(one, study) for _ in range(4)]
        values.append([taken.values for taken in held])
    assert values[0] == values[1]
    assert len({v["lr"] for v in values[0]}) == 4


def test_a_grid_is_gone_through_once(optuna, tmp_path):
    of = {"lr": space.Choices(("0.1", "1.0")), "codec": space.Choices(("a", "b"))}
    one = settings(tmp_path, sampler="grid", trials=9, space=of)
    study = trials.study(one)
    found = [trials.take(one, study) for _ in range(5)]
    assert found[-1] is None
    assert len(found) == 5
    points = {tuple(taken.values.values()) for taken in found[:-1]}
    assert points == {(lr, codec) for lr in ("0.1", "1.0") for codec in "ab"}


def table(folder):
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_leaves_a_table_a_picture_and_flags(optuna, call, tmp_path):
    where = tmp_path / "sweep"
    given = (*SMALL, "--rounds=2", "--sampler=grid", f"--workdir={where}")
    given += ("--space=lr=0.0001 | 0.3", "--space=momentum=0..0.9 in 2")
    done = call(sweep, *given)
    assert done.code == 0, done.err
    rows = table(where)
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert "4 trials: 4 complete" in done.out
    best = max(rows, key=lambda row: float(row["value"]))
    assert best["lr"] == "0.3"
    text = (where / "best.flags").read_text()
    assert f"trial {best['trial']}." in text
    assert "--lr=0.3\n" in text
    assert (where / "parallel.png").read_bytes().startswith(b"\x89PNG")
    again = call(train, f"--flagfile={where / 'best.flags'}", "--data_cache=")
    assert f"test accuracy {float(best['value']):.4f}" in again.out
    before = (where / "trials.csv").read_bytes()
    assert call(sweep, *given).code == 0  # nothing is left to do
    assert (where / "trials.csv").read_bytes() == before
    other = call(sweep, *given, "--batch_size=8")
    assert other.code == 2
    assert "holds another sweep (base.batch_size: 32 in the folder, 8 now)" in other.err


def test_settings_that_do_not_go_together_fail_and_say_why(optuna, call, tmp_path):
    given = (*SMALL, "--rounds=1", "--sampler=grid", f"--workdir={tmp_path}")
    given += ("--space=client_optimizer=sgd | adamw", "--momentum=.5", "--lr=.01")
    done = call(sweep, *given)
    assert done.code == 0, done.err
    by_state = {row["state"]: row for row in table(tmp_path)}
    assert by_state.keys() == {"complete", "fail"}
    assert by_state["fail"]["why"].startswith("--momentum: expected 0")
    assert by_state["fail"]["client_optimizer"] == "adamw"


def test_trials_that_are_worse_end_early(optuna, call, tmp_path):
    lows = " | ".join(f"1e-{number}" for number in range(9, 13))
    given = (*SMALL, "--rounds=6", "--sampler=grid", f"--workdir={tmp_path}")
    given += (f"--space=lr=0.1 | 0.2 | 0.3 | 0.4 | 0.5 | {lows}", "--prune_after=2")
    assert call(sweep, *given).code == 0
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["pruned"] * 4
    assert {row["rounds"] for row in rows[5:]} == {"3"}
    held = sweep_results.folder(tmp_path, 5) / "metrics.jsonl"
    assert len(held.read_text().splitlines()) == 3


def test_a_sweep_refuses_what_it_does_not_know(optuna, call, tmp_path):
    for arguments, words in (
        ((), "--space: expected NAME=LOW..HIGH"),
        (("--space=lr=.1..1", "--sampler=grid"), "in N for a grid"),
        (("--space=lr=.1..1", "--objective=accuracy"), "--objective: expected"),
    ):
        done = call(sweep, *SMALL, *arguments, f"--workdir={tmp_path / 'x'}")
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_killed_workers_leave_nothing_undone(optuna, tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.sweep", *SMALL, "--rounds=30"),
        *("--trials=6", "--pruner=none", "--space=lr=0.01..1 log"),
        f"--workdir={tmp_path}",
    ]

    def start():
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    workers = [start(), start()]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        there = list((tmp_path / "trials").glob("*/metrics.jsonl"))
        if len([path for path in there if path.stat().st_size]) >= 2:
            break
        time.sleep(0.05)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert start().wait() == 0
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 6
    assert [row["rounds"] for row in rows] == ["30"] * 6
