"""The host loop: order of work, records, cadence, divergence, what a folder keeps."""

import errno
import json
import os
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from fljax import plans
from fljax.algorithms import base
from fljax.devices import arrivals
from fljax.engine import books, schedule
from fljax.runs import checkpoints, simulation, writers

FULL, BACK, FRONT = plans.Plan(0, 3), plans.Plan(2, 3), plans.Plan(0, 0)
IDS = np.array([5, 1, 8])


def _never(index, client):
    return False


# What a state holds beside the server, none of which the host loop changes.
EMPTY = (
    (),
    arrivals.Timeline(np.zeros(()), arrivals.empty(0)),
    (),
    (),
    np.array(False),
    base.Caution(np.ones((), np.float32), np.ones(2, np.float32)),
)


def counting(log=None, plans_of=lambda index: [FULL, FULL, BACK], broken=_never):
    """Makes an algorithm without a network: its state counts the rounds.

    Client i reports the loss i + round.
    """
    log = [] if log is None else log

    def init():
        return base.State({"rounds": jnp.zeros((), jnp.int32)}, *EMPTY)

    def assign(state, index):
        return schedule.by_hand(index, IDS, plans_of(index))

    def round(state, assignment):
        index = assignment.round
        log.append(f"round {index}")
        losses = (assignment.ids + index).astype(np.float32)
        failed = np.array([broken(index, i) for i in assignment.ids.tolist()])
        counted = {"rounds": state.server["rounds"] + 1}
        return state._replace(server=counted), base.Report(
            assignment, losses, failed, books.Books(10 + index, 30, 0.5)
        )

    return base.Algorithm(init, assign, round)


def counter(every=1, log=None):
    """Makes an evaluator whose accuracy is the number of rounds in the state."""
    log = [] if log is None else log

    def scores(state):
        log.append(f"evaluation {len([w for w in log if w.startswith('round')]) - 1}")
        return state.server["rounds"]

    def fields(sums):
        return {"test_accuracy": int(sums), "test_loss": 0.5}

    return simulation.Evaluator(scores, fields, every)


def rounds_of(state):
    """Tells how many rounds a state has seen."""
    return int(state.server["rounds"])


def without_time(records):
    """Drops the wall clock."""
    return [{k: v for k, v in r.items() if k != "wall_seconds"} for r in records]


def test_a_round_is_read_while_the_next_one_runs():
    log = []
    algorithm = counting(log)
    state = algorithm.init()
    for _, record in simulation.iterate(algorithm, state, range(3), counter(1, log)):
        log.append(f"record {record['round']}")
    assert log == [
        *("round 0", "evaluation 0"),
        *("round 1", "evaluation 1", "record 0"),
        *("round 2", "evaluation 2", "record 1"),
        "record 2",
    ]


def test_a_record_holds_its_own_round():
    algorithm = counting()
    outcomes = list(
        simulation.iterate(algorithm, algorithm.init(), range(3), counter(2))
    )
    assert [rounds_of(state) for state, _ in outcomes] == [1, 2, 3]
    records = [record for _, record in outcomes]
    assert without_time(records)[1] == {
        "round": 1,
        "train_loss": (5 + 1 + 8) / 3 + 1,  # a mean over clients, not over plans
        "upload_bytes": 11,
        "download_bytes": 30,
        "compute_share": 0.5,
        "participants": 3,
        "round_seconds": 0.0,
        "clock_seconds": 0.0,
        "plans": {"0-3": 2, "2-3": 1},
        "test_accuracy": 2,  # of the state after this round
        "test_loss": 0.5,
    }
    assert "test_accuracy" not in records[0]


def test_wall_seconds_add_up_to_the_time_it_took():
    algorithm = counting()
    begin = time.perf_counter()
    waits = simulation.iterate(algorithm, algorithm.init(), range(3))
    seconds = []
    for _, record in waits:
        time.sleep(0.05)  # what the caller does is part of the next record
        seconds.append(record["wall_seconds"])
    elapsed = time.perf_counter() - begin
    assert min(seconds) >= 0
    assert seconds[1] >= 0.05
    assert 0.1 <= sum(seconds) <= elapsed - 0.05


@pytest.mark.parametrize(
    ("every", "first", "rounds", "evaluated"),
    [
        (1, 0, 4, [0, 1, 2, 3]),
        (3, 0, 7, [2, 5, 6]),
        (5, 0, 5, [4]),
        (10, 0, 4, [3]),
        (3, 4, 8, [5, 7]),  # a resumed run keeps the cadence of the whole one
        (3, 4, 4, []),
    ],
)
def test_evaluation_keeps_its_cadence_and_the_last_round(
    every, first, rounds, evaluated
):
    algorithm = counting()
    records = [
        record
        for _, record in simulation.iterate(
            algorithm, algorithm.init(), range(first, rounds), counter(every)
        )
    ]
    assert [record["round"] for record in records] == list(range(first, rounds))
    assert [r["round"] for r in records if "test_accuracy" in r] == evaluated
    assert [r["round"] for r in records if "test_loss" in r] == evaluated


def test_a_plan_is_announced_once_before_it_runs():
    log = []

    def plans_of(index):
        return [FULL, FRONT, BACK] if index in (2, 4) else [FULL, FULL, BACK]

    algorithm = counting(log, plans_of)
    for _ in simulation.iterate(
        algorithm, algorithm.init(), range(6), None, log.append
    ):
        pass
    assert [line for line in log if "compiling" in line] == [
        "round 0: compiling for plans 0-3, 2-3",
        "round 2: compiling for plan 0-0",
    ]
    assert log.index("round 2: compiling for plan 0-0") == log.index("round 2") - 1


@pytest.mark.parametrize("rounds", [4, 6], ids=["last round", "round in between"])
def test_divergence_names_round_clients_and_plans_after_the_last_good_round(rounds):
    algorithm = counting(broken=lambda index, client: index >= 3)
    outcomes = simulation.iterate(algorithm, algorithm.init(), range(rounds))
    good = [next(outcomes) for _ in range(3)]
    assert [(rounds_of(state), record["round"]) for state, record in good] == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    with pytest.raises(simulation.NonFiniteError) as error:
        next(outcomes)
    assert str(error.value).startswith(
        "round 3: loss or update is not finite for clients 5 (plan 0-3), "
        "1 (plan 0-3), 8 (plan 2-3);"
    )


def test_one_broken_update_is_refused_and_named():
    algorithm = counting(broken=lambda index, client: client == 1)
    _, (record,) = simulation.run(algorithm, 1)
    assert record["refused"] == [1]
    assert record["refused_for"] == {"nonfinite": [1]}
    assert record["participants"] == 2
    assert record["train_loss"] == (5 + 8) / 2


def test_a_server_step_that_overflows_is_no_good_round():
    algorithm = counting()

    def overflows(state, assignment):
        state, report = algorithm.round(state, assignment)
        return state, report._replace(finite=jnp.asarray(assignment.round < 2))

    rounds = simulation.iterate(
        algorithm._replace(round=overflows), algorithm.init(), range(5)
    )
    assert [record["round"] for _, record in (next(rounds), next(rounds))] == [0, 1]
    with pytest.raises(simulation.NonFiniteError, match="round 2: every update is"):
        next(rounds)


def test_run_returns_all_records_and_tells_the_hooks():
    heard = []
    hooks = simulation.Hooks(
        start=lambda first: heard.append(("start", first)),
        record=lambda record: heard.append(("record", record["round"])),
        message=lambda text: heard.append(("message", text)),
    )
    state, records = simulation.run(counting(), 3, counter(2), hooks)
    assert rounds_of(state) == 3
    assert [record["round"] for record in records] == [0, 1, 2]
    assert [r["round"] for r in records if "test_accuracy" in r] == [1, 2]
    assert heard == [
        ("start", 0),
        ("message", "round 0: compiling for plans 0-3, 2-3"),
        *(("record", index) for index in range(3)),
    ]


def in_folder(
    folder,
    rounds,
    algorithm=None,
    config=None,
    hooks=None,
    evaluator=None,
    **options,
):
    """Runs the counting algorithm in a folder."""
    config = {"lr": 0.1, "rounds": rounds, **(config or {})}
    keep = simulation.Folder(str(folder), config, tensorboard=False, **options)
    return simulation.run_in_folder(
        algorithm or counting(), rounds, evaluator or counter(2), keep, hooks
    )


def saved(folder):
    """Reads the newest checkpoint: (next round, rounds that its state has seen)."""
    restored = checkpoints.restore(folder, counting().init())
    return restored.round, rounds_of(restored.state)


def test_the_last_good_state_is_saved_when_a_run_diverges(tmp_path):
    diverging = counting(broken=lambda index, client: index == 4)
    for _ in range(2):  # again from the saved state: it fails again
        with pytest.raises(simulation.NonFiniteError, match="round 4"):
            in_folder(tmp_path, 8, diverging, checkpoint_every=3)
        assert saved(tmp_path) == (4, 4)  # 3 is the cadence
        *good, last = writers.read_metrics(tmp_path)
        assert [r["round"] for r in good] == [0, 1, 2, 3]
        assert (last["round"], last["train_loss"], last["participants"]) == (4, None, 0)
        assert last["stopped"].startswith("loss or update is not finite for clients")
    _, records = in_folder(tmp_path, 4, diverging)  # it may end before that round
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    state, records = in_folder(tmp_path, 8, checkpoint_every=3)
    assert rounds_of(state) == 8
    uninterrupted = simulation.run(counting(), 8, counter(2))[1]
    assert without_time(records) == without_time(uninterrupted)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_finished_is_saved_when_a_run_is_stopped(tmp_path, stop):
    def interrupt(record):
        if record["round"] == 4:
            raise stop

    with pytest.raises(stop):
        in_folder(
            tmp_path, 8, hooks=simulation.Hooks(record=interrupt), checkpoint_every=3
        )
    assert saved(tmp_path) == (5, 5)
    heard = []
    hooks = simulation.Hooks(start=heard.append, message=heard.append)
    state, records = in_folder(tmp_path, 8, hooks=hooks, checkpoint_every=3)
    assert heard[:2] == [5, f"resuming {tmp_path} at round 5 of 8"]
    assert rounds_of(state) == 8
    assert [record["round"] for record in records] == list(range(8))


def test_the_state_of_a_run_folder_is_read(tmp_path):
    with pytest.raises(ValueError, match="expected a run folder with checkpoints"):
        simulation.restore(str(tmp_path), counting())
    in_folder(tmp_path, 5)
    state, rounds = simulation.restore(str(tmp_path), counting())
    assert (rounds_of(state), rounds) == (5, 5)
    other = counting()._replace(
        init=lambda: base.State({"round": jnp.zeros(())}, *EMPTY)
    )
    with pytest.raises(ValueError, match="another tree than the template") as error:
        simulation.restore(str(tmp_path), other)
    assert "delete" not in str(error.value)
    with pytest.raises(ValueError, match=r"another tree .* to start at round 0"):
        in_folder(tmp_path, 5, other)


@pytest.mark.parametrize(("every", "kept"), [(1, [7, 8]), (3, [6, 8]), (20, [8])])
def test_checkpoints_keep_their_cadence_and_the_end(tmp_path, every, kept):
    in_folder(tmp_path, 8, checkpoint_every=every)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"round_{number:08d}.ckpt" for number in kept]
    assert saved(tmp_path) == (8, 8)


def contents(folder):
    """Reads every file; the lock names the process that held the folder last."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_finished_run_changes_nothing_when_started_again(tmp_path):
    first = in_folder(tmp_path, 4)
    before, log = contents(tmp_path), []
    state, records = in_folder(tmp_path, 4, counting(log))
    assert (rounds_of(state), records) == (4, first[1])
    assert log == []
    assert contents(tmp_path) == before


def test_a_run_that_is_ended_where_it_was_stopped_is_evaluated_there(tmp_path):
    def stop(record):
        if record["round"] == 2:
            raise KeyboardInterrupt

    evaluator = counter(4)  # due after rounds 3, 7, ..
    with pytest.raises(KeyboardInterrupt):
        in_folder(tmp_path, 9, hooks=simulation.Hooks(record=stop), evaluator=evaluator)
    _, records = in_folder(tmp_path, 3, evaluator=evaluator)
    assert [record["round"] for record in records] == [0, 1, 2]
    last = simulation.final_evaluation(records)
    assert (last["round"], last["test_accuracy"]) == (2, 3)


def test_more_rounds_continue_a_finished_run(tmp_path):
    in_folder(tmp_path, 3)
    log = []
    state, records = in_folder(tmp_path, 6, counting(log))
    assert log == ["round 3", "round 4", "round 5"]
    assert rounds_of(state) == 6
    assert [record["round"] for record in records] == list(range(6))
    # Round 2 was the last one then.
    evaluated = [r["round"] for r in records if "test_accuracy" in r]
    assert evaluated == [1, 2, 3, 5]


def test_fewer_rounds_than_were_run_are_refused(tmp_path):
    in_folder(tmp_path, 6)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="rounds: 6 in the folder, 4 now"):
        in_folder(tmp_path, 4)
    assert contents(tmp_path) == before


def test_another_configuration_is_refused_unless_it_may_change(tmp_path):
    in_folder(tmp_path, 3, config={"width": 1})
    with pytest.raises(ValueError, match=r"\(width: 1 in the folder, 16 now\)"):
        in_folder(tmp_path, 3, config={"width": 16})
    heard = []
    in_folder(
        tmp_path,
        3,
        config={"width": 16},
        may_change=("width",),
        hooks=simulation.Hooks(message=heard.append),
    )
    assert heard == ["configuration changed: width: 1 in the folder, 16 now"]
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert stored == {"lr": 0.1, "rounds": 3, "width": 16}


def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path):
    in_folder(tmp_path, 4)
    newest = tmp_path / "checkpoints" / "round_00000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    heard = []
    hooks = simulation.Hooks(message=heard.append)
    state, records = in_folder(tmp_path, 4, hooks=hooks)
    assert "round_00000004.ckpt: truncated" in heard[0]
    assert heard[0].endswith("using round_00000003.ckpt")
    assert rounds_of(state) == 4
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert saved(tmp_path) == (4, 4)


def rounds_in(folder):
    """Reads which rounds have records."""
    return [record["round"] for record in writers.read_metrics(folder)]


def test_a_run_goes_on_from_the_checkpoint_that_has_its_records(tmp_path):
    in_folder(tmp_path, 6)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-80])
    heard = []
    hooks = simulation.Hooks(message=heard.append)
    _, records = in_folder(tmp_path, 8, hooks=hooks)
    assert [record["round"] for record in records] == list(range(8))
    lack = "round_00000006.ckpt: metrics.jsonl lacks whole records of rounds 5"
    assert f"passed over {lack}; using round_00000005.ckpt" in heard
    assert without_time(records) == without_time(
        simulation.run(counting(), 8, counter(2))[1]
    )


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda lines: lines[:2], r"lacks whole records of rounds 2 to 5"),
        (lambda lines: [], r"lacks whole records of rounds 0 to 5"),
        (lambda lines: lines[:1] + lines[2:], "of rounds 1 to 5"),
        (lambda lines: [*lines[:3], b"null", *lines[4:]], "of rounds 3 to 5"),
        (lambda lines: [b"[" * 100_000, *lines[1:]], "of rounds 0 to 5"),
        (lambda lines: [b'{"x": 1, ' + lines[0][1:], *lines[1:]], "has other records"),
    ],
)  # fmt: skip
def test_records_with_a_gap_or_of_another_run_are_refused(tmp_path, harm, reason):
    in_folder(tmp_path, 6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in harm(lines)))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{reason}.*to start at round 0"):
        in_folder(tmp_path, 6)
    assert contents(tmp_path) == before


def test_records_that_are_deleted_or_cut_meanwhile_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def harm(record):
        if record["round"] == 2:
            path.unlink()
        if record["round"] in (4, 7):  # 7 is the last
            path.write_bytes(path.read_bytes()[:-100])

    heard = []
    _, records = in_folder(
        tmp_path, 8, hooks=simulation.Hooks(record=harm, message=heard.append)
    )
    assert [record["round"] for record in records] == list(range(8))
    changed = "metrics.jsonl was changed by others while the run goes on: wrote it anew"
    assert heard.count(changed) == 3


def test_records_without_checkpoints_are_shown_or_refused(tmp_path):
    _, records = in_folder(tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints")
    before, heard = contents(tmp_path), []
    hooks = simulation.Hooks(message=heard.append)
    assert in_folder(tmp_path, 4, hooks=hooks) == (None, records)
    assert contents(tmp_path) == before
    assert heard == [f"{tmp_path} has no checkpoints any more: shows its records alone"]
    with pytest.raises(
        ValueError, match="records of 4 rounds but no checkpoints to go"
    ):
        in_folder(tmp_path, 6)
    assert writers.read_metrics(tmp_path) == records
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    with pytest.raises(
        ValueError, match="records of 2 rounds but no checkpoints to go"
    ):
        in_folder(tmp_path, 2)


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    in_folder(one, 4)
    in_folder(other, 5, config={"seed": 2})
    name = "checkpoints/round_00000005.ckpt"
    (one / name).write_bytes((other / name).read_bytes())
    heard = []
    in_folder(one, 4, hooks=simulation.Hooks(message=heard.append))
    passed = (
        "passed over round_00000005.ckpt: is of another run; using round_00000004.ckpt"
    )
    assert heard == [passed]
    assert simulation.restore(str(one), counting())[1] == 4


def test_a_finished_run_that_cannot_be_written_is_shown(tmp_path, monkeypatch):
    state, records = in_folder(tmp_path, 4)
    before, real = contents(tmp_path), os.open

    def refuse(path, flags, *rest):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    shown, again = in_folder(tmp_path, 4)
    assert (rounds_of(shown), again) == (rounds_of(state), records)
    with pytest.raises(
        ValueError, match=r"cannot be written .* rounds 4 to 5 are left"
    ):
        in_folder(tmp_path, 6)
    assert contents(tmp_path) == before
