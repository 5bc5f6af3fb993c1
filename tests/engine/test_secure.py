"""Rounds of secure sums: to the bit whatever the order, whoever dropped out."""

import dataclasses

import jax
import numpy as np
import pytest

import fljax
from fljax import plans
from fljax.devices import arrivals
from fljax.engine import schedule
from fljax.engine.rounds import participants, setting, training
from fljax.updates import secure_sum
from tests import small
from tests.runtime import test_mesh

FAULTS = fljax.Failures(drop=0.1, lost=0.2, nonfinite=0.2)
WIDE = fljax.Tier(name="a", share=1.0, time=1, upload=1, memory=1)


def vector(state):
    """Gives all numbers of the server's network."""
    leaves = jax.tree.leaves(state.server.blocks)
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def end(number=3, net=None, **changes):
    """Gives the network after rounds, and who was refused and gone in them."""
    wrong, ready = [], small.build(net, **changes)
    for _, assignment, new, report in small.rounds(ready, number):
        state = new
        failed = np.asarray(report.failed)[: len(assignment.ids)]
        wrong.append((sorted(assignment.ids[failed > 0]), assignment.outcome.events))
    return vector(state), wrong


def words(made, ids, windows):
    """Gives the words of a first round's sum, and those of its message."""
    rounds, state = made.round.__self__.rounds, made.init()
    assigned = [plans.Plan(*window) for window in windows]
    assignment = schedule.by_hand(0, np.array(ids), assigned)
    blocks, shared = rounds.everywhere(state.server).blocks, None
    if rounds.seams.server.shares:
        shared = rounds.seams.server.shared(state.server.rule)
    states = state.clients and state.clients.gather(np.array(ids))
    masks = participants.masks(rounds, assignment)
    start = setting.Begun((blocks,), shared, states, masks=masks)
    sums = training.train(rounds, start, assignment, rounds.unlimited)
    return [
        np.sum(x, axis=0, dtype=np.uint32)
        for x in (sums.totals.deltas, sums.totals.message)
        if x is not None
    ]


@pytest.mark.parametrize(
    ("net", "changes", "windows"),
    [
        (None, {"algorithm": "scaffold"}, [(0, 0)] * 5),
        (None, {"weighting": "examples"}, [(0, 0)] * 5),
        pytest.param(
            small.CONVNET,
            {"algorithm": "cocofl"},
            [(0, 1), (1, 2), (0, 2), (1, 1)],
            marks=pytest.mark.long,
        ),
    ],
    ids=["scaffold", "examples", "windows"],
)
def test_the_sum_is_that_of_a_loop_over_clients_in_any_order(net, changes, windows):
    ready = small.build(net, secure_sum="18", clients_per_round=5, **changes)
    made = fljax.experiment.algorithm(ready)
    ids = [7, 0, 3, 8, 2][: len(windows)]
    alone = [words(made, [i], [window]) for i, window in zip(ids, windows, strict=True)]
    assert all(word.dtype == np.uint32 for word in alone[0])
    expected = [
        np.sum(part, axis=0, dtype=np.uint32) for part in zip(*alone, strict=True)
    ]
    assert all(np.any(part) for part in expected)
    for order in (np.arange(len(ids)), np.arange(len(ids))[::-1]):
        got = words(made, np.array(ids)[order], np.array(windows)[order].tolist())
        assert [part.tobytes() for part in got] == [p.tobytes() for p in expected]


def test_it_is_the_float_sum_to_the_step():
    usual, got = (end(1, secure_sum=text)[0] for text in ("none", "14"))
    # The mean of four, each rounded by less than a step.
    assert 2.0**-17 < np.abs(usual - got).max() < 2.0**-14
    assert end(1, secure_sum="14")[0].tobytes() == got.tobytes()


@pytest.mark.parametrize(
    ("net", "changes"),
    [
        (None, {"client_width": 2}),
        pytest.param(None, {"algorithm": "fednova"}, marks=pytest.mark.long),
        pytest.param(
            small.CONVNET, {"algorithm": "cocofl"}, marks=pytest.mark.long, id="windows"
        ),
        pytest.param(
            small.CONVNET,
            {"algorithm": "cocofl", "programs": "windows", "client_width": 2},
            marks=pytest.mark.long,
        ),
        pytest.param(None, {"algorithm": "scaffold"}, marks=pytest.mark.long),
    ],
)
def test_masks_leave_no_trace_whoever_dropped_out(net, changes):
    changes |= {"failures": FAULTS, "clients_per_round": 8}
    usual, wrong = end(4, net, secure_sum="18", **changes)
    kinds = {kind for _, events in wrong for kind in events}
    assert {"lost", "nonfinite"} <= kinds
    assert any(refused for refused, _ in wrong)
    for text in ("18:masks=true", "18:2:true"):
        got, again = end(4, net, secure_sum=text, **changes)
        assert again == wrong
        assert got.tobytes() == usual.tobytes()


def test_masks_are_there():
    """Without the server's part of it nobody could read a sum that somebody left."""
    ready = small.build(secure_sum="18:masks=true", clients_per_round=5)
    made = fljax.experiment.algorithm(ready)
    both = [words(made, ids, [(0, 0)] * len(ids))[0] for ids in ([0, 3], [0, 3, 7])]
    rounds = made.round.__self__.rounds
    assignment = schedule.by_hand(0, np.array([0, 3, 7]), [plans.Plan(0, 0)] * 3)
    gone = assignment._replace(
        ids=assignment.ids[:2],
        plans=assignment.plans[:2],
        outcome=assignment.outcome._replace(
            arrived=arrivals.take(assignment.outcome.arrived, np.arange(2))
        ),
    )
    blocks = rounds.everywhere(made.init().server).blocks
    start = setting.Begun((blocks,), masks=participants.masks(rounds, gone))
    sums = training.train(rounds, start, gone, rounds.unlimited)
    left = np.sum(sums.totals.deltas, axis=0, dtype=np.uint32)
    assert np.mean(left == both[0]) < 0.01
    assert np.mean(left == both[1]) < 0.01


def test_partners_are_found_once_a_round(monkeypatch):
    found, partners = [], secure_sum.partners

    def counted(*given):
        found.append(given)
        return partners(*given)

    monkeypatch.setattr(secure_sum, "partners", counted)
    end(2, secure_sum="18:masks=true")
    assert len(found) == 2


_SAME = """
import numpy as np
from tests.engine import test_secure as secure

settings = dict(secure_sum="18:masks=true", clients_per_round=7, failures=secure.FAULTS)
one, *others = (secure.end(3, devices=n, **settings)[0] for n in ("1", "8", "3"))
assert all(np.array_equal(one, other) for other in others)
print("same")
"""


@pytest.mark.long
def test_several_devices_give_the_bits_of_one():
    assert test_mesh.on_devices(8, _SAME).startswith("same")


# --- who answers


def work(ids):
    """Makes clients at work, ready after as many seconds as their places."""
    seconds = np.zeros((len(ids), 3))
    seconds[:, 1] = np.arange(len(ids))
    return arrivals.empty(len(ids))._replace(ids=np.array(ids), seconds=seconds)


@pytest.mark.parametrize(
    ("started", "arrived", "opens"),
    [
        (4, 3, True),
        (4, 2, False),
        (5, 3, True),
        (2, 2, True),
        (1, 1, False),
        (3, 0, True),
    ],
)
def test_more_than_half_must_answer(started, arrived, opens):
    there = work(range(arrived))
    timeline = arrivals.Timeline(np.zeros(()), arrivals.empty(0))
    before = arrivals.Outcome(there, there, there.seconds, started, timeline, {})
    after = arrivals.unopened(before)
    if opens:
        assert after is before
        return
    assert after.events == {"unopened": list(range(arrived))}
    assert len(after.arrived.ids) == 0
    assert len(after.finished.ids) == arrived


def test_a_round_that_cannot_be_opened_changes_nothing():
    ready = small.build(secure_sum="18", failures=fljax.Failures(lost=0.4))
    seen = set()
    for before, assignment, after, _ in small.rounds(ready, 8):
        unopened = assignment.outcome.events.get("unopened", [])
        lost = assignment.outcome.events.get("lost", [])
        assert (len(lost) >= 2) == (len(assignment.ids) == 0)
        assert len(unopened) == (4 - len(lost) if len(lost) >= 2 else 0)
        same = vector(before).tobytes() == vector(after).tobytes()
        assert same == (len(lost) >= 2)
        seen.add(same)
    assert seen == {True, False}


def test_who_is_alone_with_a_block_is_named():
    ready = small.build(small.CONVNET, algorithm="cocofl", secure_sum="18")
    made = fljax.experiment.algorithm(ready)
    state, named = made.init(), 0
    for index in range(6):
        assignment = made.assign(state, index)
        state, _ = made.rehearse(state, assignment)
        trained = np.zeros(3)
        for plan in assignment.plans:
            trained[plan.first : plan.last + 1] += 1
        expected = [
            int(i)
            for i, plan in zip(assignment.ids, assignment.plans, strict=True)
            if np.any(trained[plan.first : plan.last + 1] == 1)
        ]
        assert assignment.outcome.events.get("alone", []) == sorted(expected)
        named += len(expected)
    assert named


def test_round_trips_are_on_the_clock():
    """A message there and back for each client; keys, shares and those left beside."""
    clock = fljax.Clock(step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf)
    slow = dataclasses.replace(clock, round_trip=10.0)
    seconds = []
    for text, asked in (("none", clock), ("none", slow), ("18", clock), ("18", slow)):
        ready = small.build(tiers=(WIDE,), clock=asked, secure_sum=text)
        made = fljax.experiment.algorithm(ready)
        state = made.init()
        _, books = made.rehearse(state, made.assign(state, 0))
        seconds.append(books.seconds)
    assert np.subtract(seconds, seconds[0]).tolist() == [0, 10, 0, 40]


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"aggregate": "median"}, "--aggregate: expected mean beside --secure_sum"),
        ({"norm_bound": 3.0}, "--norm_bound: expected 0 beside --secure_sum"),
        ({"codec": "qsgd:4"}, "--codec: expected none or clip beside --secure_sum"),
        ({"codec": "clip:1+signsgd"}, "--codec: expected none or clip beside"),
        (
            {"clock": fljax.Clock(buffer=2)},
            "--clock.buffer: expected rounds without late updates beside --secure_sum",
        ),
        (
            {"clock": fljax.Clock(deadline=1.0, late="carry")},
            "--clock.late: expected rounds without late updates beside --secure_sum",
        ),
        (
            {"clock": fljax.Clock(over_selection=2.0)},
            "--clock.over_selection: expected below 2 beside --secure_sum",
        ),
        ({"clients_per_round": 1}, "--secure_sum: expected 2 clients a round or more"),
        ({"algorithm": "centralized"}, "--secure_sum: expected none beside"),
        ({"secure_sum": "30"}, "--secure_sum: expected at most 28 bits beside 4"),
        ({"secure_sum": "x"}, "--secure_sum: "),
        (
            {"algorithm": "heterofl", "net": small.CONVNET},
            "--secure_sum: expected none beside networks of several widths",
        ),
    ],
    ids=lambda x: x.partition(":")[0] if isinstance(x, str) else None,
)
def test_what_needs_single_updates_is_refused(changes, line):
    with pytest.raises(ValueError, match=f"^{line}") as error:
        fljax.experiment.algorithm(small.build(**{"secure_sum": "16", **changes}))
    assert len(str(error.value).splitlines()) == 1


def test_a_clip_goes_along():
    usual, got = (
        end(1, codec="clip:.05", secure_sum=text)[0] for text in ("none", "20")
    )
    np.testing.assert_allclose(got, usual, atol=2e-6)


def test_a_run_says_what_it_sums():
    made = fljax.experiment.algorithm(small.build(secure_sum="16"))
    (note,) = made.notes
    assert note == (
        "secure sum: values in steps of 1.53e-05, clipped beyond 8.19e+03; it is "
        "simulated, and protects nothing here"
    )
    assert "secure" in made.parts
