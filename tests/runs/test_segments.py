"""Rows of clients in a run folder: segments, kills at any moment, damage, resume."""

import gc
import os
import pathlib
import re
import socket
from typing import NamedTuple

import numpy as np
import pytest

from fljax.algorithms import base
from fljax.engine import client_rows
from fljax.runs import checkpoints, guard, segments, simulation
from fljax.runtime import durable
from tests.runs import test_simulation, test_writers

FIRST = np.float32([0.5, -1, 0])
CLIENTS, A_ROUND = 40, 6


class _State(NamedTuple):
    """A small state with rows, and the rows to go back to, as of a guarded run."""

    total: np.ndarray
    clients: client_rows.Rows
    good: client_rows.Rows


def start():
    rows = client_rows.Rows.empty(FIRST)
    return _State(np.zeros(3, np.float32), rows, rows)


def after(state, round):
    """Plays a round: clients halve what they keep and add the round."""
    draw = np.random.default_rng(round)
    ids = draw.choice(CLIENTS, A_ROUND, replace=False)
    rows = state.clients.gather(ids) / 2 + np.float32(round)
    clients = state.clients.put(ids, rows)
    good = clients if round % 4 == 1 else state.good
    if round % 7 == 6:  # a rollback
        clients = state.good
    return _State(state.total + rows.sum(0), clients, good)


def states(rounds):
    """Lists the states before each round, and the last."""
    listed = [start()]
    for round in range(rounds):
        listed.append(after(listed[-1], round))
    return listed


def rows_of_all(rounds, width=3, clients=CLIENTS):
    """Makes rows of everybody that tell the round."""
    rows = client_rows.Rows.empty(np.zeros(width, np.float32))
    return rows.put(np.arange(clients), np.full((clients, width), rounds, np.float32))


def files(folder):
    """Reads all files of the checkpoints."""
    return {p.name: p.read_bytes() for p in (folder / "checkpoints").iterdir()}


def segments_in(folder):
    return sorted(name for name in files(folder) if name.endswith(".rows"))


def assert_same(state, expected):
    np.testing.assert_array_equal(state.total, expected.total)
    assert state.clients == expected.clients
    assert state.good == expected.good
    assert state.clients.visited == expected.clients.visited


def test_a_state_without_rows_has_the_checkpoint_that_it_had(tmp_path):
    checkpoints.save(tmp_path / ".", 1, {"a": np.arange(3), "clients": None})
    with_none = files(tmp_path)
    checkpoints.save(tmp_path / ".", 1, {"a": np.arange(3)})
    assert files(tmp_path) == with_none
    assert [*with_none] == ["round_00000001.ckpt"]


def test_a_checkpoint_names_the_rows_that_changed(tmp_path):
    shelf, (one, two, three) = segments.Shelf(), states(2)
    checkpoints.save(tmp_path, 0, one, shelf=shelf)
    assert segments_in(tmp_path) == []  # nobody has a row
    checkpoints.save(tmp_path, 1, two, shelf=shelf)
    (name,) = segments_in(tmp_path)
    # Front, numbers and rows of six clients.
    assert len(files(tmp_path)[name]) == 36 + 6 * 4 + 6 * 3 * 4
    checkpoints.save(tmp_path, 2, two, shelf=shelf)  # nothing changed
    assert segments_in(tmp_path) == [name]
    restored = checkpoints.restore(tmp_path, start())
    assert restored.round == 2
    assert_same(restored.state, two)
    assert restored.state.clients.gather(np.arange(CLIENTS)).tobytes() == (
        two.clients.gather(np.arange(CLIENTS)).tobytes()
    )
    checkpoints.save(tmp_path, 3, three, shelf=shelf)
    assert_same(checkpoints.restore(tmp_path, start()).state, three)


def test_the_same_rows_at_two_places_are_written_and_read_once(tmp_path):
    state = states(2)[-1]  # round 1 set the good state
    assert state.good is state.clients
    checkpoints.save(tmp_path, 2, state)
    assert len(segments_in(tmp_path)) == 1
    restored = checkpoints.restore(tmp_path, start()).state
    assert restored.good is restored.clients
    # Where they differ in part, what is alike is still one object.
    other = state._replace(clients=state.clients.put(np.array([1]), FIRST[None]))
    checkpoints.save(tmp_path, 3, other)
    restored = checkpoints.restore(tmp_path, start()).state
    assert restored.clients.changed(restored.good) == [1]
    pairs = zip(
        restored.clients.stored(range(CLIENTS)),
        restored.good.stored(range(CLIENTS)),
        strict=True,
    )
    assert [i for i, (one, two) in enumerate(pairs) if one is not two] == [1]


def test_both_checkpoints_can_be_restored_and_nothing_else_stays(tmp_path):
    shelf, listed = segments.Shelf(), states(60)
    most, live = 0, 0
    for round, state in enumerate(listed):
        path = checkpoints.save(tmp_path, round, state, shelf=shelf)
        assert_same(checkpoints.restore(tmp_path, start()).state, state)
        if round > 1:
            held = path.read_bytes()
            path.unlink()
            restored = checkpoints.restore(tmp_path, start())
            assert restored.round == round - 1
            assert_same(restored.state, listed[round - 1])
            path.write_bytes(held)
        sizes = [len(data) for name, data in files(tmp_path).items() if "rows" in name]
        most = max(most, len(sizes))
        live = state.clients.visited + state.good.visited
        # Twice the rows in each of two checkpoints, fronts and numbers beside them.
        assert sum(sizes) <= 2 * 2 * live * (3 * 4 + 4) + 36 * len(sizes)
    assert most <= 12
    assert live > CLIENTS


@pytest.mark.parametrize(
    ("sizes", "new", "live", "small", "taken"),
    [
        ([], 5, 5, 100, 0),
        ([5], 5, 10, 100, 1),  # as 1 + 1 = 10 of binary numbers
        ([10], 5, 15, 100, 0),
        ([20, 10, 5], 5, 40, 100, 3),
        ([20, 10, 5], 5, 40, 12, 1),  # no further than what is small
        ([20, 10, 5], 5, 40, 9, 0),
        ([10, 10], 1, 10, 9, 2),  # 21 of which 10 are up to date
        ([10, 9], 1, 10, 9, 0),
    ],
)
def test_what_new_rows_take_in_by_hand(sizes, new, live, small, taken):
    assert segments._taken_in(sizes, new, live, small) == taken


def test_many_rounds_of_new_clients_are_few_files(tmp_path):
    shelf, rows = segments.Shelf(), client_rows.Rows.empty(FIRST)
    for round in range(34):
        rows = rows.put(np.array([round]), FIRST[None] + np.float32(round))
        checkpoints.save(tmp_path, round + 1, {"clients": rows}, shelf=shelf)
    names = {s.name for s in shelf.logs["['clients']"].segments}
    assert [len(s.ids) for s in shelf.logs["['clients']"].segments] == [32, 2]
    assert names <= {*segments_in(tmp_path)}
    assert len(segments_in(tmp_path)) <= len(names) + 2


def test_rows_out_of_date_are_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_SMALL", 0)  # as where rows are large
    shelf, rows = segments.Shelf(), rows_of_all(0)
    counts = []
    for round in range(1, 11):
        ids = np.arange(10 * round, 10 * round + 10) % CLIENTS
        rows = rows.put(ids, np.full((10, 3), round, np.float32))
        checkpoints.save(tmp_path, round, {"clients": rows}, shelf=shelf)
        counts.append([len(s.ids) for s in shelf.logs["['clients']"].segments])
    # All 40, then ten a round, until more than half of what lies there is old.
    assert counts[4] == [40, 10, 10, 10, 10]
    assert counts[5] == [40]
    assert counts[9] == [40, 10, 10, 10, 10]
    restored = checkpoints.restore(tmp_path, {"clients": rows_of_all(0)})
    assert restored.state["clients"] == rows


def test_clients_whose_rows_went_have_none_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_SMALL", 0)  # the segment that has them stays
    shelf, good = segments.Shelf(), rows_of_all(1, clients=30)
    checkpoints.save(tmp_path, 1, {"clients": good}, shelf=shelf)
    further = good.put(np.array([35, 3]), np.zeros((2, 3), np.float32))
    checkpoints.save(tmp_path, 2, {"clients": further}, shelf=shelf)
    back = good.put(np.array([4]), np.ones((1, 3), np.float32))
    checkpoints.save(tmp_path, 3, {"clients": back}, shelf=shelf)
    restored = checkpoints.restore(tmp_path, {"clients": good})
    assert restored.state["clients"] == back
    assert restored.state["clients"].visited == 30
    none = client_rows.Rows.empty(good.first)
    checkpoints.save(tmp_path, 4, {"clients": none}, shelf=shelf)
    checkpoints.save(tmp_path, 5, {"clients": none}, shelf=shelf)
    assert checkpoints.restore(tmp_path, {"clients": good}).state["clients"] == none
    assert segments_in(tmp_path) == []


def test_without_what_lies_there_all_rows_are_written_again(tmp_path):
    listed = states(9)
    for round, state in enumerate(listed):  # as several processes would, one a round
        checkpoints.save(tmp_path, round, state)
        assert_same(checkpoints.restore(tmp_path, start()).state, state)
    restored = checkpoints.restore(tmp_path, start())
    checkpoints.save(tmp_path, 10, after(listed[-1], 9), keep=3)
    assert_same(checkpoints.restore(tmp_path, start()).state, after(listed[-1], 9))
    for path in (tmp_path / "checkpoints").glob("round_*10.ckpt"):
        path.unlink()
    again = checkpoints.restore(tmp_path, start())
    assert (again.round, again.notes) == (9, ())
    assert_same(again.state, restored.state)


class _Killed(Exception):
    """Stands for kill -9: nothing is caught on the way out."""


def run(folder, rounds, stop=None, keep=2):
    """Goes on from what a folder holds; `stop` is called before every durable step."""
    restored = checkpoints.restore(folder, start())
    first, state, _, logs = restored or checkpoints.Restored(0, start(), ())
    shelf = segments.Shelf(dict(logs))
    for round in range(first, rounds):
        state = after(state, round)
        checkpoints.save(folder, round + 1, state, keep, shelf=shelf)
    return state


@pytest.mark.parametrize("kind", ["fsync", "replace", "unlink"])
def test_killed_at_any_step_of_a_checkpoint_a_run_ends_the_same(
    tmp_path, monkeypatch, kind
):
    rounds, whole, killed = 30, tmp_path / "whole", tmp_path / "killed"
    expected, kills = states(rounds + 2), 0
    for folder in (whole, killed):
        folder.mkdir()
    run(whole, rounds)
    module = pathlib.Path if kind == "unlink" else os
    true, left = getattr(module, kind), 0

    def step(*arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise _Killed
        return true(*arguments, **options)

    for steps in range(12):  # after the first, the second, ... of a process
        left = steps
        with monkeypatch.context() as patch:
            patch.setattr(module, kind, step)
            try:
                run(killed, rounds)
            except _Killed:
                kills += 1
        if restored := checkpoints.restore(killed, start()):
            assert restored.notes == ()
            assert_same(restored.state, expected[restored.round])
    assert kills > 8
    run(killed, rounds)
    newest = f"round_{rounds:08d}.ckpt"
    assert files(killed)[newest] == files(whole)[newest]
    for folder in (whole, killed):
        assert_same(run(folder, rounds + 2), expected[-1])
    assert files(killed) == files(whole)  # nothing is left of the kills


def _flip(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_flip(0), "is damaged, truncated, or of another format"),
        (_flip(8), "is damaged, truncated, or of another format"),
        (_flip(12), "is damaged, truncated, or of another format"),
        (_flip(20), "is damaged, truncated, or of another format"),
        (_flip(27), "is damaged, truncated, or of another format"),
        (_flip(36), r"is damaged \(wrong sha256\)"),
        (_flip(-1 - 12), r"is damaged \(wrong sha256\)"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 128]), "is damaged"),
        (lambda data: data[:-1], "is damaged, truncated"),
        (lambda data: data + b"x", "is damaged, truncated"),
        (lambda data: data[:9], "is truncated to 9 bytes"),
        (lambda data: b"", "is truncated to 0 bytes"),
        (None, "is missing"),
    ],
)
def test_a_damaged_segment_passes_its_checkpoint_over(tmp_path, harm, reason):
    shelf, listed = segments.Shelf(), states(9)
    for round, state in enumerate(listed[:9]):
        checkpoints.save(tmp_path, round, state, shelf=shelf)
    before = {*segments_in(tmp_path)}
    checkpoints.save(tmp_path, 9, listed[9], shelf=shelf)
    (name,) = {*segments_in(tmp_path)} - before  # of the newest checkpoint alone
    path = tmp_path / "checkpoints" / name
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    restored = checkpoints.restore(tmp_path, start())
    assert restored.round == 8
    assert_same(restored.state, listed[8])
    (note,) = restored.notes
    assert note.startswith(f"passed over round_00000009.ckpt: {name} ")
    assert re.search(reason, note)
    # The run goes on, and the segment is whole again.
    assert_same(run(tmp_path, 9), listed[9])
    assert checkpoints.restore(tmp_path, start()).notes == ()


def test_a_torn_checkpoint_leaves_the_older_with_its_segments(tmp_path):
    shelf, listed = segments.Shelf(), states(9)
    for round, state in enumerate(listed):
        path = checkpoints.save(tmp_path, round, state, shelf=shelf)
    path.write_bytes(path.read_bytes()[:-5])
    restored = checkpoints.restore(tmp_path, start())
    assert (restored.round, len(restored.notes)) == (8, 1)
    assert_same(restored.state, listed[8])
    assert_same(run(tmp_path, 12), states(12)[12])


def test_no_good_segment_at_all_is_an_error(tmp_path):
    checkpoints.save(tmp_path, 3, states(3)[3])
    for name in segments_in(tmp_path):
        (tmp_path / "checkpoints" / name).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* clients_.* is missing"):
        checkpoints.restore(tmp_path, start())


def test_a_checkpoint_that_names_what_is_no_segment_is_passed_over(tmp_path):
    index = {"first": FIRST, "segments": {"../secret": b"digest"}}
    with pytest.raises(ValueError, match="which is no segment"):
        segments.read(tmp_path, {"a": index})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ({"a": rows_of_all(0, width=2)}, "'a'.* is rows of 3 .* rows of 2 values"),
        ({"a": np.zeros(3)}, r"'a'.* is rows of 3 values, the template has float64\[3"),
        ({"a": None}, "another tree than the template"),
    ],
)
def test_rows_of_another_shape_are_refused(tmp_path, template, reason):
    checkpoints.save(tmp_path, 1, {"a": rows_of_all(0)})
    with pytest.raises(ValueError, match=reason):
        checkpoints.restore(tmp_path, template)


@pytest.mark.parametrize("harm", [pathlib.Path.unlink, lambda p: p.write_bytes(b"x")])
def test_a_segment_that_somebody_removes_meanwhile_is_written_anew(tmp_path, harm):
    shelf, listed = segments.Shelf(), states(8)
    for round, state in enumerate(listed[:8]):
        checkpoints.save(tmp_path, round, state, shelf=shelf)
    for name in segments_in(tmp_path):
        harm(tmp_path / "checkpoints" / name)
    checkpoints.save(tmp_path, 8, listed[8], shelf=shelf)
    restored = checkpoints.restore(tmp_path, start())
    assert (restored.round, restored.notes) == (8, ())
    assert_same(restored.state, listed[8])


def test_rows_are_durable_before_the_checkpoint_that_names_them(tmp_path, monkeypatch):
    steps, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        name = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        steps.append(name)
        sync(descriptor)

    def replaced(source, target):
        steps.append(f"to {pathlib.Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoints.save(tmp_path, 1, states(1)[1])
    (name,) = segments_in(tmp_path)
    assert steps == [
        *("clients.rows.tmp", f"to {name}", "checkpoints"),
        *("round_00000001.ckpt.tmp", "to round_00000001.ckpt", "checkpoints"),
    ]


def test_a_write_that_fails_is_made_up_for_by_the_next(tmp_path, monkeypatch):
    shelf, listed = segments.Shelf(), states(3)
    checkpoints.save(tmp_path, 1, listed[1], shelf=shelf)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace", full)  # the segment stands, no checkpoint
        with pytest.raises(OSError, match="no space"):
            checkpoints.save(tmp_path, 2, listed[2], shelf=shelf)
    assert_same(checkpoints.restore(tmp_path, start()).state, listed[1])
    checkpoints.save(tmp_path, 3, listed[3], shelf=shelf)
    assert_same(checkpoints.restore(tmp_path, start()).state, listed[3])
    assert not [n for n in segments_in(tmp_path) if n.startswith("clients_00000002")]


def test_the_thread_goes_on_from_the_rows_that_were_restored(tmp_path, monkeypatch):
    listed = states(20)
    with checkpoints.AsyncCheckpointer(tmp_path) as checkpointer:
        for round, state in enumerate(listed[:11]):
            checkpointer.save(round, state)
    restored = checkpoints.restore(tmp_path, start())
    written, write = [], segments._write

    def listing(folder, round, rows, ids, gone):
        written.append(len(ids))
        return write(folder, round, rows, ids, gone)

    monkeypatch.setattr(segments, "_write", listing)
    monkeypatch.setattr(segments, "_SMALL", 0)
    state = after(restored.state, 10)
    saves = checkpoints.AsyncCheckpointer(tmp_path, logs=restored.logs)
    with saves as checkpointer:
        checkpointer.save(11, state)
    assert written == [A_ROUND]
    assert_same(checkpoints.restore(tmp_path, start()).state, listed[11])


def algorithm():
    """Makes an algorithm without a network whose clients keep rows."""
    counting = test_simulation.counting()

    def init():
        return counting.init()._replace(policy=start())

    def round(state, assignment):
        played = after(state.policy, assignment.round)
        state, report = counting.round(state, assignment)
        return state._replace(policy=played), report

    return base.Algorithm(init, counting.assign, round)


def play(folder, rounds, hooks=None, rollback=None):
    """Runs that algorithm in a folder."""
    keep = simulation.Folder(str(folder), {"rounds": rounds}, tensorboard=False)
    evaluator = test_simulation.counter(2)
    return simulation.run_in_folder(
        algorithm(), rounds, evaluator, keep, hooks, rollback
    )


def test_a_resumed_run_does_not_hold_the_rows_that_it_began_with(tmp_path):
    play(tmp_path, 10)
    alive = []

    def look(record):
        if record["round"] == 25:
            gc.collect()
            kept = (o for o in gc.get_objects() if isinstance(o, client_rows.Rows))
            alive.extend(rows for rows in kept if rows == expected)

    expected = states(10)[10].clients
    state, _ = play(tmp_path, 30, simulation.Hooks(record=look))
    assert_same(state.policy, states(30)[30])
    assert alive == [expected]  # the test's own
    assert alive[0] is expected


def test_rows_go_back_with_a_rollback_and_live_through_a_resume(tmp_path):
    watch = guard.Guard(loss=2, window=3, limit=99)
    final, records = play(tmp_path / "whole", 9, rollback=watch)
    assert not any("rollback" in record for record in records)
    assert_same(final.policy, states(9)[9])

    def lying(made):
        def round(state, assignment):
            state, report = made.round(state, assignment)
            if assignment.round == 5:
                report = report._replace(losses=1e3 * report.losses)
            return state, report

        return made._replace(round=round)

    def go(folder, rounds):
        keep = simulation.Folder(str(folder), {"rounds": rounds}, tensorboard=False)
        evaluator = test_simulation.counter(2)
        return simulation.run_in_folder(
            lying(algorithm()), rounds, evaluator, keep, rollback=watch
        )

    whole, records = go(tmp_path / "a", 12)
    (back,) = (r["rollback"] for r in records if "rollback" in r)
    assert back["to_round"] == 3
    for rounds in (4, 6, 8, 12):  # a resume before it, right after it and later
        parts, _ = go(tmp_path / "b", rounds)
    assert_same(parts.policy, whole.policy)
    expected = states(4)[4]
    for round in range(6, 12):
        expected = after(expected, round)
    assert_same(whole.policy, expected)
    newest = "round_00000012.ckpt"
    assert files(tmp_path / "a")[newest] == files(tmp_path / "b")[newest]


# Kills children of its own: they have the modules loaded.
_RUN = """
import os, random, signal, sys, time, pathlib
from tests.runs import test_segments

folder = pathlib.Path(sys.argv[1])
records = folder / "metrics.jsonl"

def lines():
    return records.read_bytes().count(b"\\n") if records.exists() else 0

chance = random.Random(1)
for _ in range(4):
    before, child = lines(), os.fork()
    if not child:
        test_segments.play(folder, 10**6)
        os._exit(1)
    while lines() < before + 8:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(lines())
"""


def test_a_run_killed_many_times_ends_bit_for_bit_the_same(tmp_path):
    child = test_writers.start_python(_RUN, tmp_path / "killed")
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    rounds = int(out) + 5
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        state, records = play(folder, rounds)
        assert_same(state.policy, states(rounds)[rounds])
        assert len(records) == rounds
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


_JOIN = """
import sys
import jax
from tests.runs import test_segments

port, number, folder, rounds = *sys.argv[1:4], int(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
state, _ = test_segments.play(folder, rounds)
test_segments.assert_same(state.policy, test_segments.states(rounds)[rounds])
print("same", flush=True)
"""


@pytest.mark.long
def test_two_processes_go_on_from_the_rows_of_the_first(tmp_path):
    for rounds in (5, 12):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        both = [
            test_writers.start_python(_JOIN, port, number, tmp_path, rounds)
            for number in (0, 1)
        ]
        outputs = [child.communicate(timeout=200)[0] for child in both]
        assert [child.returncode for child in both] == [0, 0]
        assert [output.split()[-1] for output in outputs] == ["same", "same"]
