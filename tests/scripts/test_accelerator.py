"""The order of measurements on an accelerator, their rows and ratios by hand."""

import sys
import time

import pytest
from absl import flags

from experiments import accelerator, bench, train  # noqa: F401

# Says that it is ready and waits for its turn, then works for a while.
SCRIPT = """
import json, pathlib, sys, time
turn, figures = (next(a.split("=", 1)[1] for a in sys.argv if a.startswith(name))
                 for name in ("--turn", "--json"))
pathlib.Path(turn + ".ready").touch()
while not pathlib.Path(turn).exists():
    time.sleep(.01)
start = time.time()
time.sleep({seconds})
pathlib.Path(figures).write_text(json.dumps({{"ran": [start, time.time()]}}))
"""


def item(name, seconds, **more):
    code = SCRIPT.format(seconds=seconds)
    return accelerator.Item(name, ("-c", code), **more)


def test_items_are_timed_one_by_one_and_each_within_its_limit(tmp_path):
    flags.FLAGS(["accelerator", "--at_once=3"])
    wanted = [item("a", 0.3), item("b", 0.3), item("late", 60, limit=0.2)]
    end = time.monotonic() + accelerator._LEAST + 10
    done = {
        one.item.name: (accelerator._read(one), well)
        for one, well in accelerator._play(wanted, tmp_path, tmp_path, end)
    }
    assert {name: well for name, (_, well) in done.items()} == {
        "a": True, "b": True, "late": False,
    }  # fmt: skip
    assert done["late"][0] == {}
    first, second = sorted(done[name][0]["ran"] for name in "ab")
    assert first[1] <= second[0]


def test_what_is_not_through_at_the_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "_LEAST", 0)
    flags.FLAGS(["accelerator"])
    endless = accelerator.Item("endless", ("-c", "import time; time.sleep(60)"))
    end = time.monotonic() + 0.5
    ((one, well),) = accelerator._play([endless], tmp_path, tmp_path, end)
    assert not well
    assert one.process.poll() is not None


def test_rows_and_ratios_by_hand(capsys):
    times = {"min_seconds": 0.1, "max_seconds": 0.3}
    figures = {
        "device": "1 x cpu",
        "ceilings": {"matmul_gflops": 1.0},
        "small": {"median_seconds": 0.2, **times, "idle_share": 0.25, "programs": 1},
        "windows": {
            "compile_seconds": 7.0,
            "0-3": {"median_milliseconds": 5.0, "min_milliseconds": 4.0},
        },
        "cohort": {"cohort 1": "left out: about 9 s a round"},
    }
    assert accelerator.rows("mine", figures) == [
        ("mine", "small", "200", "100", "300", "0.25", "", ""),
        ("mine", "0-3", "5", "4", "nan", "", "", ""),
    ]
    every = [item("x", 0, beside="y"), item("y", 0), item("z", 0, beside="absent")]
    medians = {"x": 300.0, "y": 200.0, "z": 1.0, "main_bf16": 480.0}
    assert accelerator.ratios(medians, every) == [
        "x / y: 1.500",
        "main_bf16: 1000 rounds in 8.0 minutes",
    ]


@pytest.mark.parametrize("before", ["", "."])
def test_the_items_name_flags_that_there_are(tmp_path, before):
    flags.FLAGS(["accelerator", f"--before={before}", "--table=t.json", "--items="])
    try:
        made = accelerator.items(tmp_path)
    finally:
        flags.FLAGS(["accelerator", "--before=", "--table="])
    names = [one.name for one in made]
    assert len(set(names)) == len(names)
    assert ("before_bf16" in names) == bool(before)
    beside = {one.beside for one in made} - {""}
    assert all(name in names or name.startswith("before") for name in beside)
    for one in made:
        assert one.command[1] in sys.modules
        for argument in one.command[2:]:
            name = argument.removeprefix("--").partition("=")[0]
            assert name == "flagfile" or name in flags.FLAGS
