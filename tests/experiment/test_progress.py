"""Progress: lines where nobody looks, a bar on a terminal."""

import contextlib
import io
import os
import pty
import re
import termios
import time

import pytest

from experiments import train
from fljax import tasks
from fljax.experiment import compilations, progress
from fljax.runs import status
from fljax.tasks import base


def test_one_line_a_round_where_there_is_no_terminal():
    stream = io.StringIO()
    with progress.Progress(100, 11, "cocofl", stream) as shown:
        shown.message("compiling plan 4-11 ...")
        shown.update({"round": 11, "test_loss": 1.2341, "test_accuracy": 0.4561})
        shown.update({"round": 12, "test_loss": None})
    first, second, third = stream.getvalue().splitlines()
    assert first == "[cocofl] compiling plan 4-11 ..."
    assert re.fullmatch(
        r"\[cocofl\] round 11 \(12/100 done\) loss 1.234 accuracy 0.456 \d+\.\d s "
        r"eta \d+:\d\d",
        second,
    )
    assert re.fullmatch(
        r"\[cocofl\] round 12 \(13/100 done\) \d+\.\d s eta \d+:\d\d", third
    )


def test_what_the_task_goes_by_is_shown():
    stream = io.StringIO()
    rmse = tasks.Regression().measure
    with progress.Progress(2, stream=stream, measure=rmse) as shown:
        shown.update({"round": 0, "test_loss": 4.0, "rmse": 2.0, "test_accuracy": 1})
    assert " loss 4.000 rmse 2.000 " in stream.getvalue()
    assert "accuracy" not in stream.getvalue()
    stream = io.StringIO()
    with progress.Progress(2, stream=stream, measure=base.LOSS) as shown:
        shown.update({"round": 0, "train_loss": 5.0, "test_loss": 4.0})
    assert " loss 5.000 test loss 4.000 " in stream.getvalue()


def test_who_was_left_is_shown_where_some_were_not():
    stream = io.StringIO()
    with progress.Progress(2, stream=stream) as shown:
        shown.update({"round": 0, "participants": 10, "events": {}})
        record = {
            "participants": 4,
            "events": {"lost": [3, 5]},
            "refused": [1, 2, 7, 8],
        }
        shown.update({"round": 1, **record})
    first, second = stream.getvalue().splitlines()
    assert "clients" not in first
    assert "clients 4 refused 4" in second


def test_lines_go_to_stderr_and_the_label_may_be_missing(capsys):
    with progress.Progress(2) as shown:
        shown.update({"round": 0, "train_loss": 0.5, "test_loss": 0.75})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("round 0 (1/2 done) loss 0.500 ")


def test_estimate_extends_the_recent_speed(monkeypatch):
    clock = iter([0.0, 100.0, *(100.0 + 2 * step for step in range(1, 40))])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress.Progress(165, 0, "a", stream) as shown:
        for number in range(40):
            shown.update({"round": number})
    lines = stream.getvalue().splitlines()
    assert (
        lines[0] == "[a] round 0 (1/165 done) 100.0 s eta 4:33:20"
    )  # 164 rounds of 100 s
    assert (
        lines[1] == "[a] round 1 (2/165 done) 2.0 s eta 5:26"
    )  # 163 of 2 s: it had compiled
    assert lines[-1] == "[a] round 39 (40/165 done) 2.0 s eta 4:10"  # 125 of 2 s


def test_a_round_that_compiles_late_does_not_count_for_those_to_come(monkeypatch):
    ends = [0.0, 30.0, 31.0, 32.0, 33.0, 63.0]  # rounds of 30, 1, 1, 1 and 30 seconds
    clock = iter(ends)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress.Progress(105, 0, "a", stream) as shown:
        for number in range(5):
            shown.update({"round": number})
    # 100 more of (1 + 1 + 1 + 5) / 4 seconds, where the mean would be 8.25.
    assert stream.getvalue().splitlines()[-1].endswith("30.0 s eta 3:20")


def test_rounds_that_are_heard_of_two_at_a_time_take_their_mean():
    seconds = [1.8, 0.2] * 9 + [4.8, 0.2]  # an evaluation in the last but one
    assert status.usual(seconds) == pytest.approx(1.15)
    assert status.usual(seconds[1:]) == pytest.approx((23 - 1.8) / 19)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (250, "4:10"), (3850, "1:04:10")]
)
def test_clock(seconds, text):
    assert progress._clock(seconds) == text


def _read_all(leader: int) -> str:
    """Read what a closed terminal still holds; Linux ends it with an error."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(leader, 4096):
            data += chunk
    os.close(leader)
    return data.decode()


def test_a_load_is_a_line_every_ten_seconds_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 12.0, 15.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock, 21.0))
    stream = io.StringIO()
    with progress.Loading(stream) as watch:
        for done in (1, 500, 1000, 1500):
            watch("decoding x", done, 2000)
        watch("hashing x", 1, 2)  # a new task, that has just begun
    assert stream.getvalue() == "decoding x: 500 of 2,000, 25 %\n"


def test_time_moves_on_a_terminal_while_nothing_else_does():
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    with open(follower, "w") as stream, progress.Progress(3, stream=stream) as shown:
        shown.start(0)
        time.sleep(2.5)  # a program compiles
    assert "[00:02" in _read_all(leader)


def test_steps_are_lines_and_on_a_terminal_have_their_seconds():
    stream = io.StringIO()
    with progress.Steps(stream) as tell:
        tell("compiling")
        tell("timing")
    assert stream.getvalue() == "compiling\ntiming\n"
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    with open(follower, "w") as stream, progress.Steps(stream) as tell:
        tell("compiling")
    assert "compiling [00:00]" in _read_all(leader)


def test_how_long_a_compilation_took_is_told_when_the_next_one_begins(kept, call):
    arguments = ("--network=logistic", "--algorithm=fedavg", "--num_clients=12",
                 "--clients_per_round=3", "--rounds=1", "--data_cache=",
                 "--batch_size=7", f"--compilation_cache={kept}")  # fmt: skip
    said = r"\[fedavg\] the last such compilation took \d+ s"
    assert not re.search(said, call(train, *arguments).err)
    lines = call(train, *arguments).err.splitlines()
    (place,) = [i for i, line in enumerate(lines) if "compiling for plan" in line]
    assert re.fullmatch(said, lines[place + 1])
    assert not compilations._read(kept / "other.json")
    for damaged in ("", "[", "[1]", '{"a": null}', "[" * 100_000):
        (kept / "compile_seconds.json").write_text(damaged)
        assert compilations._read(kept / "compile_seconds.json") == {}
    asked = call(train, *arguments, "--dry_run")
    assert asked.err.splitlines() == [
        "drawing logistic and playing 1 round without training",
        "compiling the program of the full network anew, to time it",
    ]


def test_a_load_is_a_bar_on_a_terminal():
    leader, follower = pty.openpty()
    with open(follower, "w") as stream, progress.Loading(stream) as watch:
        watch("decoding x", 1, 2)
        watch._bar.refresh()
    assert "decoding x:  50%" in _read_all(leader)


@pytest.mark.parametrize("columns", [0, 100])
def test_a_bar_on_a_terminal_and_messages_on_lines_of_their_own(columns):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    with (
        open(follower, "w") as stream,
        progress.Progress(3, 1, "cocofl", stream) as shown,
    ):
        shown.update({"round": 1, "test_loss": 1.5, "test_accuracy": 0.25})
        shown.message("compiling plan 4-11 ...")
        shown.update({"round": 2})
    written = _read_all(leader)
    # What a terminal would show: a carriage return starts the line anew.
    shown_lines = [line.split("\r")[-1] for line in written.split("\r\n")]
    assert shown_lines[0].rstrip() == "[cocofl] compiling plan 4-11 ..."
    assert "cocofl: 100%" in shown_lines[1]
    assert "3/3" in shown_lines[1]
    assert "loss=1.500, accuracy=0.250" in shown_lines[1]
    assert re.search(r"round=\d\.\d s, eta=0:00", shown_lines[1])
