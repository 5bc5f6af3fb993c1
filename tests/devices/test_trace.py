"""Traces of availability: the file, who is there, who leaves before it is ready."""

import pathlib
import re

import numpy as np
import pytest

from fljax import devices
from fljax.devices import clock, failures, fleet, trace
from fljax.experiment import config, fleets, running
from tests import small

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "devices.md"


def written(folder, text, name="trace.csv"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def example(tmp_path):
    """The trace that the docs show: a leaves at 28800 and is back at 79200."""
    (text,) = re.findall(r"```text\n(device.*?)```", DOCS.read_text(), re.DOTALL)
    return trace.load(written(tmp_path, text))


def test_the_docs_example(example):
    assert example.device.tolist() == [0, 0, 1]
    assert example.period.tolist() == [86400, 86400]
    clients = np.arange(4)  # two of each device
    hour = 3600
    assert trace.left(example, 0, clients).tolist() == [8 * hour, 0, 8 * hour, 0]
    # Who is there until midnight stays until 8: the interval goes on with the day.
    assert trace.left(example, 23 * hour, clients)[0] == 9 * hour
    at_two = trace.left(example, 14 * hour, clients)
    assert at_two.tolist() == [0, 6.5 * hour, 0, 6.5 * hour]
    # The next day is as this one.
    np.testing.assert_array_equal(trace.left(example, 38 * hour, clients), at_two)


def test_intervals_of_any_order_join_where_they_touch(tmp_path):
    text = "device,start,end\n7,20,30\n3,0,10\n7,0,5\n7,5,20\n"
    made = trace.load(written(tmp_path, text))
    assert made.period.tolist() == [30, 30]
    assert (made.start.tolist(), made.end.tolist()) == ([0, 0], [30, 10])
    # Device 7 never leaves; an end is no longer there.
    assert trace.left(made, 95.0, np.arange(2)).tolist() == [np.inf, 5]
    assert trace.left(made, 100.0, np.arange(2)).tolist() == [np.inf, 0]


def test_every_device_has_its_own_period_in_json(tmp_path):
    rows = (
        '[{"device": 1, "start": 2, "end": 4, "period": 4},'
        ' {"device": "b", "start": 0, "end": 3, "period": 10}]'
    )
    made = trace.load(written(tmp_path, rows, "trace.json"))
    there = [(trace.left(made, t, np.arange(2)) > 0).tolist() for t in (0, 2, 6, 11)]
    assert there == [[False, True], [True, True], [True, False], [True, True]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "expected a list of intervals"),
        ("device,start\na,1\n", "expected a column end, got none"),
        ("device,start,end,there\na,1,2,1\n", "columns among .*, got 'there'"),
        ("device,start,end\na,0,1\n,1,2\n", "as device in row 2, got ''"),
        ("device,start,end\na,0,1\nb,x,2\n", "start from 0 to 1e.09 in row 2, got 'x'"),
        ("device,start,end\na,-1,1\n", "start from 0 to 1e.09 in row 1, got '-1'"),
        ("device,start,end\na,0,1\na,2,2\n", "below end in row 2, got 2 and 2"),
        ("device,start,end\na,0,9\nb,0,1\na,8,12\n", "row 3, which overlaps row 1"),
        ("device,start,end\na,0,9\na\n", "expected end|expected start"),
        (
            "device,start,end,period\na,0,2,10\na,3,4,11\n",
            "one period of a device, got 10 in row 1 and 11 later",
        ),
        (
            "device,start,end,period\na,0,9,8\n",
            "within the period in row 1, got 9 of 8",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, wanted):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=wanted) as error:
        trace.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_fleets_of_any_kind_have_traces(tmp_path):
    path = written(tmp_path, "device,start,end\na,0,5\nb,5,10\n")
    for text, names in (
        (f"trace:{path}", ("strong", "medium", "weak")),
        (f"phones+trace:{path}", ("fast", "middle", "slow")),
        (f"lognormal:.1+trace:{path}", ("fast", "middle", "slow")),
    ):
        made = fleets.make(config.Config(fleet=text), 6)
        assert made.names == names
        everyone = np.arange(6)
        early, late = (
            fleet.available(made, 1, 0, 0.0, everyone, seconds)
            for seconds in (1.0, 7.0)
        )
        assert (early.tolist(), late.tolist()) == ([0, 2, 4], [1, 3, 5])
        assert fleets.digest(made) != fleets.digest(made._replace(trace=None))
    tiers = config.Config(fleet=f"trace:{path}", tiers_file="none.json")
    with pytest.raises(ValueError, match=r"--tiers_file: .*no file"):
        fleets.make(tiers, 6)
    with pytest.raises(ValueError, match=r"--fleet: .*no file"):
        fleets.make(config.Config(fleet="trace:none.csv"), 6)


def test_a_trace_and_an_availability_both_must_say_so(tmp_path):
    path = written(tmp_path, "device,start,end\na,0,5\nb,5,10\n")
    made = fleets.make(config.Config(fleet=f"trace:{path}"), 4000)
    half = made.profile._replace(availability=np.full(3, 0.5))
    there = fleet.available(made._replace(profile=half), 1, 0, 0.0, np.arange(4000))
    assert len(there) == pytest.approx(1000, abs=90)
    assert np.all(there % 2 == 0)


def test_who_leaves_before_it_is_ready_drops_out_there():
    seconds = np.array([[1.0, 4.0, 2.0]] * 5)
    faults = np.zeros(5, np.int8)
    left = np.array([np.inf, 7.0, 6.0, 3.0, 0.5])
    cut, dropped = clock.leave(seconds, faults, left)
    assert dropped.tolist() == [
        failures.Fault.NONE,
        failures.Fault.NONE,  # ready as it leaves
        failures.Fault.DROPPED_AFTER,
        failures.Fault.DROPPED_DURING,
        failures.Fault.DROPPED_BEFORE,
    ]
    assert cut.tolist() == [[1, 4, 2], [1, 4, 2], [1, 4, 1], [1, 2, 0], [0.5, 0, 0]]
    assert dropped.dtype == np.int8


ROUND = clock.Clock(step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf)


def test_a_round_is_of_those_who_are_there_and_stay(tmp_path):
    # Of batches of 4 the users train 3, 1, 2, 2, 1, 3, 2, 1 and 2 steps. Users 0, 3
    # and 6 are never there at first, 1, 4 and 7 for 2.5 seconds, 2, 5 and 8 for 1.5.
    path = written(tmp_path, "device,start,end\na,10,12\nb,0,2.5\nc,0,1.5\n")
    settings = {"fleet": f"trace:{path}", "clock": ROUND, "tiers": ALIKE}
    ready = small.build(clients_per_round=9, **settings)
    (_, assignment, state, report), *_ = small.rounds(ready, 1)
    assert sorted(assignment.outcome.finished.ids) == [1, 2, 4, 5, 7, 8]
    assert sorted(assignment.ids) == [1, 4, 7]
    assert assignment.outcome.events == {"dropped_during": [2, 5, 8]}
    assert float(state.timeline.now) == 1.5
    assert report.books.joules is None
    # At 12 devices are back at the start; nobody is there at 2.5, in no round.
    *_, (_, fourth, late, _) = small.rounds(ready, 4)
    assert len(fourth.outcome.finished.ids) == 0
    assert float(late.timeline.now) > 2.5


ALIKE = devices.parse_tiers("all:1:1:1:1")


def test_a_run_that_stops_goes_on_as_it_would_have(tmp_path):
    path = written(tmp_path, "device,start,end\na,0,4\nb,2,9\nc,5,7\n")
    settings = {"fleet": f"trace:{path}", "clock": ROUND, "tiers": ALIKE}

    def run(folder, rounds):
        ready = small.build(rounds=rounds, **settings)
        return running.run(ready, folder, tensorboard=False).records

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    for one, two in zip(run(tmp_path / "parts", 6), whole, strict=True):
        del one["wall_seconds"], two["wall_seconds"]
        assert one == two
    path.write_text("device,start,end\na,0,5\nb,2,9\nc,5,7\n")
    with pytest.raises(ValueError, match=r"another configuration .fleet_sha256"):
        run(tmp_path / "parts", 6)
