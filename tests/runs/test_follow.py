"""Run folders read while they grow, are cut, put in place anew and vanish; status."""

import doctest
import json
import os
import shutil
import socket

import filelock
import pytest

from fljax.runs import follow, status, writers


def line(number, **more):
    return json.dumps({"round": number, **more}) + "\n"


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"lr": 0.1, "rounds": 9}}')
    (tmp_path / "metrics.jsonl").write_text(line(0) + line(1))
    return tmp_path


def rounds(look):
    return [record["round"] for record in look.records]


def test_the_example_holds():
    assert doctest.testmod(follow).failed == 0


def test_only_what_is_new_is_read(folder, monkeypatch):
    first = follow.look(folder)
    assert (rounds(first), first.alerts, first.anew) == ([0, 1], [], False)
    assert first.seen.described.config == {"lr": 0.1, "rounds": 9}
    read = []
    parsed = writers.parsed
    monkeypatch.setattr(
        writers, "parsed", lambda text: read.append(text) or parsed(text)
    )
    assert rounds(follow.look(folder, first.seen)) == []
    append(folder / "metrics.jsonl", line(2))
    append(folder / "alerts.jsonl", line(2, kind="refused"))
    second = follow.look(folder, first.seen)
    assert (rounds(second), second.alerts) == ([2], [{"round": 2, "kind": "refused"}])
    assert len(read) == 2
    assert second.changed == pytest.approx((folder / "metrics.jsonl").stat().st_mtime)


def test_a_torn_line_waits_until_it_is_whole(folder):
    path, whole = folder / "metrics.jsonl", line(2, test_accuracy=0.5)
    append(path, whole[:10])
    first = follow.look(folder)
    assert rounds(first) == [0, 1]
    append(path, whole[10:-1])
    second = follow.look(folder, first.seen)
    assert rounds(second) == []
    append(path, "\n")
    assert follow.look(folder, second.seen).records == [json.loads(whole)]


def test_a_file_that_is_cut_or_put_in_place_anew_is_read_from_its_start(folder):
    path = folder / "metrics.jsonl"
    append(folder / "alerts.jsonl", line(1, kind="nobody"))
    seen = follow.look(folder).seen
    path.write_text(line(0))  # shorter
    cut = follow.look(folder, seen)
    assert (rounds(cut), cut.anew) == ([0], True)
    assert cut.alerts == [{"round": 1, "kind": "nobody"}]  # all that there are
    (folder / "new").write_text(line(0, lr=1) + line(1) + line(2))  # longer
    os.replace(folder / "new", path)
    new = follow.look(folder, cut.seen)
    assert (rounds(new), new.anew) == ([0, 1, 2], True)


def test_lines_that_no_run_has_written_are_counted(folder):
    append(folder / "metrics.jsonl", 'odd\n{"round": "2"}\n' + line(2))
    found = follow.look(folder)
    assert (rounds(found), found.unreadable) == ([0, 1, 2], 2)


def test_a_folder_that_vanishes_is_none_and_files_may_come_later(folder):
    seen = follow.look(folder).seen
    (folder / "metrics.jsonl").unlink()
    gone = follow.look(folder, seen)
    assert (gone.records, gone.anew) == ([], True)
    append(folder / "metrics.jsonl", line(0))
    assert rounds(follow.look(folder, gone.seen)) == [0]
    shutil.rmtree(folder)
    assert follow.look(folder, seen) is None
    assert follow.find(folder) == []


def test_a_configuration_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "x"}')
    with pytest.raises(ValueError, match="is no run's"):
        follow.look(tmp_path)


def test_nothing_is_written(folder):
    before = {path: path.stat() for path in folder.rglob("*")}
    folder_time = folder.stat().st_mtime_ns
    seen = follow.look(folder).seen
    status.held(folder, status.locks())
    follow.look(folder, seen)
    after = {path: path.stat() for path in folder.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }
    assert folder.stat().st_mtime_ns == folder_time


def test_folders_are_found_wherever_they_lie(tmp_path):
    for name in ("b/seed_1", "a", "a/within", "a/checkpoints/x", ".hidden", "none"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        if name != "none":
            (tmp_path / name / "config.json").write_text("{}")
    found = [path.relative_to(tmp_path).as_posix() for path in follow.find(tmp_path)]
    assert found == ["a", "a/within", "b/seed_1"]


BUSY = status.Facts(100, 40, "", True, 3.0, [2.0] * 20, 30.0)


@pytest.mark.parametrize(
    ("changes", "name", "left"),
    [
        ({}, "running", 60 * 2 - 3),
        ({"held": None}, "running", 117),
        ({"seconds": [2.0] * 19 + [90.0]}, "running", 60 * 2.4 - 3),  # it compiled
        ({"quiet": 59.0}, "running", 61),  # twice the longest round: it may compile
        ({"quiet": 61.0}, "stalled", None),
        ({"quiet": 9.0, "longest": 2.0}, "running", 111),
        ({"quiet": 10.5, "longest": 2.0}, "stalled", None),  # 5 round times
        ({"held": False}, "stopped", None),
        ({"ended": "not finite"}, "stopped", None),
        ({"done": 100, "held": False}, "finished", None),
        ({"done": 0, "seconds": (), "longest": 0.0}, "running", None),
        ({"done": 0, "seconds": (), "quiet": 601.0}, "stalled", None),
        ({"done": 99, "quiet": 3.0}, "running", 0),
    ],
)
def test_how_a_run_stands(changes, name, left):
    found = status.of(BUSY._replace(**changes))
    assert (found.name, found.seconds_left) == (name, left)
    assert bool(found.why) == (name in ("stopped", "stalled"))


def test_who_holds_a_folder_is_told_by_the_kernel(folder):
    if status.locks() is None:
        pytest.skip("needs /proc/locks")
    assert status.held(folder, status.locks()) is None  # nobody ever did
    with writers.open_run(folder, {"lr": 0.1, "rounds": 9}):
        assert status.held(folder, status.locks()) is True
        assert status.held(folder, None) is None
    assert status.held(folder, status.locks()) is False
    (folder / "lock").write_text("pid 1 on another-host\n")
    assert status.held(folder, status.locks()) is None


def test_a_lock_of_another_file_does_not_count(folder, tmp_path):
    if status.locks() is None:
        pytest.skip("needs /proc/locks")
    (folder / "lock").write_text(f"pid 1 on {socket.gethostname()}\n")
    with filelock.FileLock(tmp_path / "other"):
        assert status.held(folder, status.locks()) is False
