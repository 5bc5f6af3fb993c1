"""The virtual clock by hand: durations, deadlines, late updates, buffers."""

import dataclasses

import numpy as np
import pytest

from fljax import plans, types
from fljax.devices import arrivals, clock, failures, fleet
from fljax.devices.failures import Fault
from fljax.engine import books
from fljax.plans import costs

INF = np.inf
NONE = Fault.NONE


def work(ids, seconds, faults=None, versions=0):
    """Makes clients whose round takes so many seconds, all of them training."""
    made = arrivals.empty(len(ids))
    times = np.zeros((len(ids), 3))
    times[:, 1] = seconds
    return made._replace(
        ids=np.array(ids, np.int32),
        seconds=times,
        versions=np.full(len(ids), versions, np.int32),
        faults=np.zeros(len(ids), np.int8) if faults is None else np.int8(faults),
    )


def play(rules, cohorts, wanted=2, limit=INF):
    """Plays synchronous rounds of (ids, seconds, faults); returns the outcomes."""
    timeline, outcomes = arrivals.init(rules, max(wanted, len(cohorts[0][0])), 100), []
    for index, (ids, seconds, *faults) in enumerate(cohorts):
        begun = work(ids, seconds, *faults, versions=index)
        ends = arrivals.Ends(wanted, limit)
        outcome = arrivals.synchronous(rules, timeline, begun, index, ends)
        timeline = outcome.timeline
        outcomes.append(outcome)
    return outcomes


def test_durations_by_hand():
    rules = clock.Clock(step_seconds=2.0, upload_rate=100.0, download_rate=400.0)
    job = clock.Job(800, np.array([5, 3]), np.array([0.5, 1.0]), np.array([50, 400]))
    seconds = clock.durations(
        rules, job, download=np.array([1.0, 0.25]), upload=np.array([1.0, 0.5])
    )
    np.testing.assert_allclose(seconds, [[2, 5, 0.5], [8, 6, 8]])


def test_what_is_left_open_is_filled_in():
    table = costs.CostTable(
        num_blocks=1, listed=[plans.full(1)], time=np.ones(1), upload=np.ones(1),
        memory=np.ones(1),
    )  # fmt: skip
    count = types.BlockCounts(1000, 250, 1, 1, 1, 4)
    nothing = fleet.Reference()
    made = clock.resolve(clock.Clock(), nothing, table, (count,), 32)
    assert made.step_seconds == 6 * 1250 * 32 / clock.OPERATIONS_PER_SECOND
    assert (made.upload_rate, made.download_rate) == (1e6, 4e6)
    # A table's step is of so many examples.
    tabled = dataclasses.replace(table, full_step_seconds=0.5, batch=8)
    made = clock.resolve(clock.Clock(), nothing, tabled, (count,), 32)
    assert made.step_seconds == 2.0
    known = fleet.Reference(0.25, 5.0, 7.0)
    made = clock.resolve(clock.Clock(upload_rate=3.0), known, table, (count,), 32)
    assert (made.step_seconds, made.upload_rate, made.download_rate) == (0.25, 3, 7)


def test_faults_spend_what_they_spend():
    seconds = np.tile([1.0, 10.0, 4.0], (7, 1))
    faults = np.array(
        [
            NONE,
            Fault.DROPPED_BEFORE,
            Fault.DROPPED_DURING,
            Fault.DROPPED_AFTER,
            Fault.TRUNCATED,
            Fault.DELAYED,
            Fault.OUT_OF_MEMORY,
        ]
    )
    part = np.full(7, 0.25)
    spoilt = clock.spoil(seconds, faults, part, delay=2.0)
    expected = [
        [1, 10, 4],
        [1, 0, 0],
        [1, 2.5, 0],
        [1, 10, 0],
        [1, 10, 2],
        [1, 10, 4 + 2 * np.log(4)],
        [1, 0, 0],
    ]
    np.testing.assert_allclose(spoilt, expected)
    made = work(range(7), 0, faults)._replace(seconds=spoilt)
    sent = [100, 0, 0, 0, 50, 100, 0]
    assert books.sent_bytes(made, spoilt, [100] * 7) == sum(sent)
    twice = work([0], 0, [Fault.DUPLICATED])
    assert books.sent_bytes(twice, twice.seconds, [100]) == 200
    watts = np.array([2, np.nan, 4, np.nan, np.nan, np.nan, np.nan])
    assert books.joules(made, spoilt, watts) == {0: 2 * 10, 2: 4 * 2.5}
    assert books.joules(made, spoilt, np.full(7, np.nan)) == {}


def test_a_round_ends_with_its_slowest():
    first, second = play(clock.Clock(), [([3, 1], [5, 2]), ([4, 9], [1, 1.5])])
    assert first.arrived.ids.tolist() == [3, 1]  # in the order of the cohort
    assert float(first.timeline.now) == 5
    assert float(second.timeline.now) == 6.5
    assert first.events == {}


def test_a_deadline_leaves_late_ones_out():
    (outcome,) = play(clock.Clock(deadline=1.0), [([3, 1, 2], [5, 2, 4])], limit=4)
    assert outcome.arrived.ids.tolist() == [1, 2]
    assert float(outcome.timeline.now) == 4
    assert outcome.events == {"late": [3]}
    assert outcome.finished.ids.tolist() == [3, 1, 2]
    (early,) = play(clock.Clock(deadline=1.0), [([3, 1], [1, 2])], limit=4)
    assert float(early.timeline.now) == 2  # nobody waits once all are in


def test_who_is_late_is_sent_home():
    # At 4 s the first has trained for 3 s of 4, the second has sent half of it, the
    # third is done.
    seconds = np.array([[1.0, 4, 1], [1, 2, 2], [1, 1, 1]])
    cohort = work([0, 1, 2], 0)._replace(seconds=seconds)
    rules = clock.Clock(deadline=1.0)
    outcome = arrivals.synchronous(
        rules, arrivals.init(rules, 3, 10), cohort, 0, arrivals.Ends(3, 4.0)
    )
    np.testing.assert_allclose(outcome.spent, [[1, 3, 0], [1, 2, 1], [1, 1, 1]])
    sent = books.sent_bytes(outcome.finished, outcome.spent, [100] * 3)
    assert sent == 0 + 50 + 100
    watts = np.full(3, 2.0)
    energy = books.joules(outcome.finished, outcome.spent, watts)
    assert energy == {0: 6, 1: 4, 2: 2}


def test_over_selection_ends_with_the_wanted_number():
    rules = clock.Clock(over_selection=1.5)
    assert arrivals.chosen(rules, 2) == 3
    (outcome,) = play(rules, [([3, 1, 2], [5, 2, 4])], wanted=2)
    assert outcome.arrived.ids.tolist() == [1, 2]
    assert outcome.events == {"late": [3]}
    # One of them fails: the third is needed.
    (outcome,) = play(rules, [([3, 1, 2], [5, 2, 4], [0, Fault.LOST, 0])], wanted=2)
    assert outcome.arrived.ids.tolist() == [3, 2]
    assert float(outcome.timeline.now) == 5
    # Devices of a tier are ready at the same moment: no more than wanted are taken.
    (outcome,) = play(rules, [([3, 1, 2, 5], [4, 2, 4, 4])], wanted=2)
    assert outcome.arrived.ids.tolist() == [3, 1]
    assert outcome.events == {"late": [2, 5]}
    assert float(outcome.timeline.now) == 4


def test_nothing_of_a_failed_client_arrives():
    ids = list(range(len(Fault)))
    faults = [int(fault) for fault in Fault]
    (outcome,) = play(clock.Clock(), [(ids, 1, faults)], wanted=11)
    arrived = {Fault(i) for i in outcome.arrived.ids.tolist()}
    assert arrived == set(Fault) - set(failures.FATAL)
    names = {fault.name.lower() for fault in Fault if fault}
    assert set(outcome.events) == names


def test_late_updates_are_carried_over():
    rules = clock.Clock(deadline=1.0, late="carry", max_staleness=3)
    outcomes = play(
        rules, [([3, 1], [9, 2]), ([4, 5], [4, 1]), ([6, 7], [1, 1]), ([8, 9], [1, 1])],
        limit=4,
    )  # fmt: skip
    assert [o.arrived.ids.tolist() for o in outcomes] == [
        [1],
        [4, 5],
        [6, 7, 3],
        [8, 9],
    ]
    assert [float(o.timeline.now) for o in outcomes] == [4, 8, 9, 10]
    assert outcomes[2].arrived.versions.tolist() == [2, 2, 0]
    # Its round is over when it arrives, and then it has spent all that it took.
    assert [o.finished.ids.tolist() for o in outcomes] == [
        [1],
        [4, 5],
        [6, 7, 3],
        [8, 9],
    ]
    assert outcomes[2].spent.sum(axis=1).tolist() == [1, 1, 9]
    # It is at work until then, and nobody is afterwards.
    assert 3 in outcomes[1].timeline.flight.ids
    assert set(outcomes[3].timeline.flight.ids) == {arrivals.FREE}


def test_what_is_too_old_is_thrown_away():
    rules = clock.Clock(deadline=1.0, late="carry", max_staleness=2)
    cohorts = [([3, 1], [99, 1])] + [([4, 5], [1, 1])] * 4
    outcomes = play(rules, cohorts, limit=4)
    assert [o.events for o in outcomes] == [{"late": [3]}, {}, {"stale": [3]}, {}, {}]
    assert all(3 not in o.arrived.ids for o in outcomes)


def test_carried_ones_alone_are_waited_for():
    rules = clock.Clock(deadline=1.0, late="carry")
    outcomes = play(rules, [([3, 1], [9, 2]), ([], [])], limit=4)
    assert outcomes[1].arrived.ids.tolist() == [3]
    assert float(outcomes[1].timeline.now) == 9


def test_the_flight_always_fits_its_slots():
    rules = clock.Clock(deadline=1.0, late="carry", max_staleness=2)
    cohorts = [([10 * r, 10 * r + 1], [99, 99]) for r in range(8)]
    outcomes = play(rules, cohorts, limit=1)
    sizes = {len(o.timeline.flight.ids) for o in outcomes}
    assert sizes == {arrivals.slots(rules, 2, 100)} == {4}
    assert arrivals.slots(rules, 2, 3) == arrivals.most_arrivals(rules, 2, 3) == 3
    assert all(len(o.arrived.ids) == 0 for o in outcomes)


def buffered(rules, pools, concurrency=2):
    timeline, outcomes = arrivals.init(rules, concurrency, 100), []
    for index, pool in enumerate(pools):
        outcome = arrivals.buffered(rules, timeline, work(*pool, versions=index), index)
        timeline = outcome.timeline
        outcomes.append(outcome)
    return outcomes


def test_a_buffer_of_one_by_hand():
    # Two at a time. A (1 s) and B (5 s) start at 0; A is in at 1: step 0. C (1 s)
    # starts with the new network at 1 and is in at 2: step 1. D (9 s) starts at 2, B
    # is in at 5, two steps old: step 2.
    rules = clock.Clock(buffer=1)
    outcomes = buffered(rules, [([0, 1, 5], [1, 5, 7]), ([2], [1]), ([3], [9])])
    assert [o.arrived.ids.tolist() for o in outcomes] == [[0], [2], [1]]
    assert [o.arrived.versions.tolist() for o in outcomes] == [[0], [1], [0]]
    assert [float(o.timeline.now) for o in outcomes] == [1, 2, 5]
    assert [o.started for o in outcomes] == [2, 1, 1]
    np.testing.assert_allclose(
        clock.weight(rules, 2, outcomes[2].arrived.versions), 3**-0.5, rtol=1e-6
    )


def test_places_are_taken_at_once_while_the_buffer_fills():
    # Buffer 3, two at a time: 0 is in at 1, 2 (1 s) takes its place and is in at 2, 5
    # takes that one's, and 1 is in at 2.5.
    rules = clock.Clock(buffer=3)
    (outcome,) = buffered(rules, [([0, 1, 2, 5, 6], [1, 2.5, 1, 7, 7])])
    assert outcome.arrived.ids.tolist() == [0, 2, 1]
    assert float(outcome.timeline.now) == 2.5
    assert outcome.started == 4
    assert sorted(outcome.timeline.flight.ids.tolist()) == [arrivals.FREE, 5]


def test_a_buffer_fills_past_failures():
    rules = clock.Clock(buffer=2)
    lost = [Fault.LOST, NONE, NONE, NONE]
    (outcome,) = buffered(rules, [([0, 1, 2, 3], [1, 2, 3, 9], lost)])
    assert outcome.arrived.ids.tolist() == [1, 2]
    assert outcome.finished.ids.tolist() == [0, 1, 2]
    assert outcome.events == {"lost": [0]}
    (nobody,) = buffered(rules, [([0, 1], [1, 2], [Fault.LOST] * 2)])
    assert nobody.arrived.ids.tolist() == []
    assert float(nobody.timeline.now) == 2


def test_time_goes_on_while_nobody_is_there_for_a_buffer():
    timeline = arrivals.init(clock.Clock(buffer=2), 2, 10)
    rules, pool = clock.Clock(buffer=2), work([], [])
    outcome = arrivals.buffered(rules, timeline, pool, 0, idle=7.0)
    assert float(outcome.timeline.now) == 7


def test_a_buffer_throws_away_what_is_too_old():
    rules = clock.Clock(buffer=1, max_staleness=1)
    pools = [([0, 1], [1, 3.5]), ([2], [1]), ([3], [1]), ([4], [1])]
    outcomes = buffered(rules, pools)
    assert [o.arrived.ids.tolist() for o in outcomes] == [[0], [2], [3], [4]]
    assert outcomes[3].events == {"stale": [1]}


def test_staleness_by_hand():
    rules = clock.Clock(staleness_power=1.0)
    weights = clock.weight(rules, 7, np.array([7, 6, 4]))
    np.testing.assert_allclose(weights, [1, 0.5, 0.25])
    assert weights.dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"deadline": -1}, "clock.deadline: expected 0 or a number from 1e-06"),
        (
            {"over_selection": 0.5},
            "clock.over_selection: expected a number from 1",
        ),
        ({"late": "never"}, "clock.late: expected drop, carry, got 'never'"),
        ({"buffer": 3, "deadline": 1.0}, "neither deadline nor over_selection"),
        ({"late": "carry"}, "clock.late=carry: expected a deadline or over_selection"),
        ({"late": "carry", "buffer": 3}, "deadline or over_selection"),
        ({"step_seconds": INF}, "clock.step_seconds: expected a number from 0"),
    ],
)
def test_bad_clocks_are_refused(fields, wanted):
    with pytest.raises(ValueError, match=wanted):
        clock.Clock(**fields)
