"""Who takes part: by hand, by frequency, and in rounds in which much goes wrong."""

import dataclasses

import jax
import numpy as np
import pytest

import fljax
from fljax import notation, policies
from fljax.algorithms import averaging, centralized, cocofl, fedavg
from fljax.devices import arrivals, clock, failures, fleet
from fljax.engine import schedule
from fljax.experiment import config as configs
from fljax.experiment import rehearsal
from fljax.policies import oort, selection
from fljax.runs import simulation
from fljax.runtime import streams
from tests import conftest
from tests.devices import test_timeline
from tests.devices.test_timeline import play

EXAMPLES = np.array([10, 30, 20, 40])


def everyone(number=4, examples=None, seconds=None):
    """Gives what is known of clients of like devices."""
    return selection.Clients(
        np.full(number, 10) if examples is None else np.asarray(examples),
        np.ones(number) if seconds is None else np.asarray(seconds, float),
    )


def at(index, clients, seed=3):
    return selection.Round(seed, index, clients)


def heard(ids, losses, seconds=None):
    seconds = np.ones(len(ids)) if seconds is None else seconds
    return selection.Heard(np.asarray(ids), np.array(losses), np.asarray(seconds))


# By hand.


def test_uniform_draws_what_was_always_drawn():
    here = np.array([3, 5, 8, 13, 21])
    ids = selection.Uniform().select((), at(4, everyone()), here, 3)
    before = streams.generator(3, 1, 4).choice(here, 3, replace=False)
    np.testing.assert_array_equal(ids, before)
    other = selection.Uniform().select((), at(5, everyone()), here, 3)
    assert other.tolist() != ids.tolist()


def test_uniform_is_uniform():
    draws = [
        selection.Uniform().select((), at(r, everyone(), 7), np.arange(10), 3)
        for r in range(2000)
    ]
    counts = np.bincount(np.concatenate(draws), minlength=10)
    assert np.abs(counts - 600).max() < 5 * np.sqrt(600 * 0.7)


def test_power_of_choice_takes_the_highest_losses():
    losses = np.float32([0.5, 2.0, 1.0, 3.0])
    ids = selection.PowerOfChoice(4).select(
        losses, at(0, everyone()), np.arange(4), wanted=2
    )
    assert ids.tolist() == [3, 1]  # all four are drawn
    fewer = selection.PowerOfChoice(4).select(
        losses, at(0, everyone()), np.array([0, 2]), wanted=1
    )
    assert fewer.tolist() == [2]  # of those who are here


def test_power_of_choice_takes_unknown_losses_first_in_the_order_drawn():
    clients, here = everyone(8), np.arange(8)
    losses = np.float32([9, np.nan, 7, np.nan, np.nan, 3, np.nan, 8])
    for index in range(5):
        ids = selection.PowerOfChoice(8).select(losses, at(index, clients), here, 6)
        drawn = at(index, clients).generator.choice(
            here, 8, replace=False, p=np.full(8, 1 / 8)
        )
        assert ids[:4].tolist() == [i for i in drawn.tolist() if i in (1, 3, 4, 6)]
        assert ids[4:].tolist() == [0, 7]


def test_power_of_choice_looks_at_those_it_drew_alone():
    # Of two drawn among four the better one: the best is taken where it is drawn.
    losses, clients = np.float32([1, 2, 3, 4]), everyone()
    taken = [
        selection.PowerOfChoice(2).select(losses, at(r, clients), np.arange(4), 1)[0]
        for r in range(600)
    ]
    shares = np.bincount(taken, minlength=4) / 600
    np.testing.assert_allclose(shares, [0, 1 / 6, 2 / 6, 3 / 6], atol=0.08)


def test_candidates_are_drawn_by_their_share_of_the_data():
    clients, rounds = everyone(examples=EXAMPLES), 4000
    rule, unknown = selection.PowerOfChoice(1), np.full(4, np.nan, np.float32)
    taken = [
        rule.select(unknown, at(r, clients), np.arange(4), 1)[0] for r in range(rounds)
    ]
    counts, expected = np.bincount(taken, minlength=4), rounds * EXAMPLES / 100
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 16.3  # 3 degrees of freedom: one in a thousand is above
    equal = ((counts - rounds / 4) ** 2 / (rounds / 4)).sum()
    assert equal > 16.3  # so the test tells shares from equal chances


def test_power_of_choice_keeps_the_last_losses():
    rule, clients = selection.PowerOfChoice(4), everyone()
    first = rule.init(clients)
    assert np.isnan(first).all()
    state = rule.observe(first, at(0, clients), heard([2, 0], [1.5, 0.5]))
    np.testing.assert_array_equal(state, np.float32([0.5, np.nan, 1.5, np.nan]))
    assert np.isnan(first).all()  # untouched
    # Who was not heard of counts with the mean of those who were.
    state = rule.observe(state, at(1, clients), heard([2, 0, 1], [1, 3, np.nan]))
    np.testing.assert_array_equal(state, np.float32([3, 2, 1, np.nan]))
    nobody = rule.observe(state, at(2, clients), heard([3, 0], [np.nan, np.nan]))
    conftest.assert_same_bits(nobody, state)
    empty = rule.observe(state, at(2, clients), heard(np.zeros(0, int), []))
    conftest.assert_same_bits(empty, state)


def state_of(utility, seconds=None, last=None, relaxed=0):
    number = len(utility)
    return oort.OortState(
        np.float32(utility),
        np.full(number, np.nan, np.float32) if seconds is None else np.float32(seconds),
        np.zeros(number, np.int32) if last is None else np.int32(last),
        np.array(relaxed, np.int32),
        np.zeros(2, np.float32),
    )


def test_oorts_scores_by_hand():
    # Utilities 0, 10, 20 are brought to 0, 1/2 and 1; in round 0 there is no bonus.
    clients, rule = everyone(3, seconds=[1, 1, 4]), oort.Oort()
    scores = rule.scores(state_of([0, 10, 20]), at(0, clients), np.arange(3))
    # Client 2 takes four times the preferred second: (1/4)^2.
    np.testing.assert_allclose(scores, [1e-9, 1 / 2, 1 / 16], rtol=1e-6)
    # sqrt(.1 log R / L) of round 7, R = 8: L is 8, 2 and 1.
    state = state_of([0, 10, 20], last=[7, 1, 0])
    bonus = np.sqrt(0.1 * np.log(8) / np.array([8, 2, 1]))
    scores = rule.scores(state, at(7, clients), np.arange(3))
    expected = (np.array([0, 0.5, 1]) + bonus) * [1, 1, 1 / 16]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    # What was heard replaces what the device promises; all are as fast as the slowest.
    state = state_of([0, 10, 20], seconds=[np.nan, 8, np.nan])
    scores = rule.scores(state, at(0, clients), np.arange(3))
    np.testing.assert_allclose(scores, [1e-9, 1 / 2 / 64, 1 / 16], rtol=1e-6)
    state = state_of([0, 10, 20], seconds=[np.nan, 8, np.nan], relaxed=14)
    scores = rule.scores(state, at(0, clients), np.arange(3))
    np.testing.assert_allclose(scores, [1e-9, 1 / 2, 1], rtol=1e-6)


def test_oort_clips_what_stands_out():
    utility = [*range(99), 1e6]  # the clip is at place 95
    scores = oort.Oort().scores(state_of(utility), at(0, everyone(100)), np.arange(100))
    assert scores[95:].tolist() == [scores[95]] * 5
    assert scores[95] > scores[94]


def test_oort_exploits_the_best_and_explores_the_others_by_speed():
    clients = everyone(8, seconds=[1, 1, 1, 1, 1, 1, 9, 1e9])
    state = state_of([1, 50, 2, 49, *[np.nan] * 4])
    rule = oort.Oort(explore=0.5, decay=1.0)
    slow = 0
    for index in range(50):
        ids = rule.select(state, at(index, clients), np.arange(8), 4).tolist()
        assert {1, 3} <= set(ids)
        assert len(set(ids) & {4, 5, 6, 7}) == 2
        assert 7 not in ids
        slow += 6 in ids
    assert 0 < slow < 25
    # Nobody is left to explore: all that are wanted are exploited.
    known = np.array([0, 1, 2, 3])
    ids = rule.select(state, at(0, clients), known, 3).tolist()
    assert len(set(ids)) == 3
    assert {1, 3} <= set(ids)
    # Nobody is explored yet.
    fresh = rule.select(rule.init(clients), at(0, clients), np.arange(8), 7)
    assert sorted(fresh.tolist()) == [0, 1, 2, 3, 4, 5, 6]


def test_oort_explores_less_and_less():
    clients = everyone(200)
    state = state_of([*np.arange(100.0), *[np.nan] * 100])
    here, rule = np.arange(200), oort.Oort()

    def explored(index):
        return int((rule.select(state, at(index, clients), here, 50) >= 100).sum())

    assert explored(0) == 45
    assert explored(20) in (30, 31)  # 50 * .9 * .98^20 = 30.04
    assert explored(1000) == 10


def test_oort_of_one_client_a_round_explores_in_its_share_of_them():
    state = state_of([5, np.nan, np.nan])
    rule = oort.Oort(explore=0.3, decay=1.0)
    new = [
        rule.select(state, at(r, everyone(3)), np.arange(3), 1)[0] > 0
        for r in range(400)
    ]
    assert 0.2 < np.mean(new) < 0.4


def test_oort_learns_utilities_durations_and_its_pace():
    clients = everyone(examples=EXAMPLES)
    rule = oort.Oort(window=2)
    state = rule.init(clients)
    told = heard([1, 0, 2], [2.0, 4.0, np.nan], [5, np.nan, 7])
    state = rule.observe(state, at(0, clients), told)
    # 30 examples * 2, 10 * 4; client 2 counts with their mean.
    np.testing.assert_array_equal(state.utility, np.float32([40, 60, 50, np.nan]))
    np.testing.assert_array_equal(state.seconds, np.float32([np.nan, 5, 7, np.nan]))
    assert state.gained.tolist() == [0, 100]
    paces = []
    for index, loss in enumerate([1.0, 0.1, 0.1, 9.0, 9.0, 9.0, 9.0], 1):
        state = rule.observe(state, at(index, clients), heard([3], [loss]))
        paces.append(int(state.relaxed))
    # Windows of 140, 8, 720 and 720: the second one alone brought less.
    assert paces == [0, 0, 1, 1, 1, 1, 1]
    assert state.last.tolist() == [0, 0, 0, 7]


@pytest.mark.parametrize("rule", [selection.PowerOfChoice(5), oort.Oort()])
def test_states_keep_their_shapes_and_go_through_a_checkpoint(rule, tmp_path):
    clients = everyone(6)
    states = [rule.init(clients)]
    for index in range(3):
        told = heard([index, 5], [1.0, np.nan], [1.0, np.nan])
        states.append(rule.observe(states[-1], at(index, clients), told))
    kinds = [jax.tree.map(lambda a: (a.shape, a.dtype), state) for state in states]
    assert kinds == kinds[:1] * 4
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(states))
    hash(rule)
    assert rule == dataclasses.replace(rule)


# Names.


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("uniform", selection.Uniform()),
        ("power_of_choice:20", selection.PowerOfChoice(20)),
        ("oort", oort.Oort()),
        ("oort:alpha=1:window=5", oort.Oort(alpha=1.0, window=5)),
    ],
)
def test_a_text_names_a_selection(text, made):
    assert notation.make(text, policies.SELECTIONS) == made
    settings = configs.Config(selection=text)
    configs.check(settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"selection": "unifrom"}, "expected uniform, poisson, power_of_choice, oort"),
        ({"selection": "power_of_choice"}, "expected power_of_choice:CANDIDATES"),
        ({"selection": "power_of_choice:x"}, "candidates: expected a whole number"),
        ({"selection": "power_of_choice:0"}, "expected at least 1 candidate, got 0"),
        ({"selection": "power_of_choice:9"}, "expected at least 10 .* got 9"),
        (
            {
                "selection": "power_of_choice:12",
                "clock": clock.Clock(over_selection=1.3),
            },
            "expected at least 13 candidates, as many as a round begins with, got 12",
        ),
        ({"selection": "oort:alpha=-1"}, "oort: alpha: expected a number from 0 to"),
        ({"selection": "oort:least=2"}, "oort: least: expected a number from 0 to 1"),
        ({"selection": "oort:window=0"}, "oort: window: expected a whole number from"),
        (
            {"selection": "oort", "algorithm": "centralized"},
            "expected uniform with --algorithm=centralized, .* one client, got 'oort'",
        ),
    ],
)
def test_a_selection_that_makes_no_sense_is_one_line(settings, words):
    with pytest.raises(ValueError, match=f"^--selection: .*{words}") as error:
        configs.check(configs.Config(**settings))
    assert "\n" not in str(error.value)


# In rounds.

fed = test_timeline.fed

RULES = {
    "power_of_choice": selection.PowerOfChoice(5),
    "oort": oort.Oort(explore=0.5, window=2),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def seconds_of(**changes):
    rules = {"step_seconds": 1.0, "upload_rate": np.inf, "download_rate": np.inf}
    return clock.Clock(**rules | changes)


def test_an_experiment_has_the_selection_that_its_settings_name():
    settings = fljax.Config(
        algorithm="fedavg",
        network="logistic",
        num_clients=9,
        clients_per_round=3,
        selection="power_of_choice:5",
    )
    ready = fljax.build(settings)
    assert ready.federation.rules.selection == selection.PowerOfChoice(5)
    other = dataclasses.replace(settings, selection="oort")
    with pytest.raises(ValueError, match="--selection: expected 'power_of_choice:5'"):
        dataclasses.replace(ready, settings=other)


def test_power_of_choice_learns_from_its_rounds(fed):
    algorithm = fedavg.fedavg(fed.having(selection=selection.PowerOfChoice(6)))
    states, reports = play(algorithm, 5)
    known = np.full(6, np.nan, np.float32)
    for before, after, report in zip(states, states[1:], reports, strict=False):
        conftest.assert_same_bits(before.selection, known)
        ids, losses = report.assignment.ids, np.asarray(report.losses)[:3]
        if np.isnan(known).any():
            assert np.isnan(known[ids]).sum() == min(3, np.isnan(known).sum())
        else:  # all six are drawn
            assert sorted(ids) == sorted(np.argsort(-known)[:3])
        known = known.copy()
        known[ids] = losses
        conftest.assert_same_bits(after.selection, known)


@every_rule
def test_the_order_of_the_candidates_does_not_matter(fed, rule):
    fed, plan = fed.having(selection=rule), policies.full(2)
    one, other = (
        averaging.averaging(fed, plan, candidates, constrained=False)
        for candidates in (np.arange(6), np.array([4, 2, 0, 5, 1, 3]))
    )
    state = one.init()
    for index in range(3):
        theirs = other.assign(state, index)
        mine = one.assign(state, index)
        assert mine.ids.tolist() == theirs.ids.tolist()
        state, _ = one.round(state, mine)


def rehearsed(fed, rounds):
    """Plays rounds without training, in which client i reports the loss i + 1.

    Yields the flight before a round, the assignment, and the selection's state after.
    """
    count, rules = len(fed.population.shards.counts), fed.rules
    planned = schedule.make(fed, policies.full(2), np.arange(count), False)
    timeline = arrivals.init(rules.clock, rules.clients_per_round, count)
    state = rules.selection.init(planned.clients)
    for index in range(rounds):
        before = schedule.Before((), timeline, np.ones(2), state)
        assignment = planned.assign(before, index)
        state = planned.tell(state, assignment, assignment.ids + 1.0)
        yield timeline.flight.ids, assignment, state
        timeline = assignment.outcome.timeline


@every_rule
@pytest.mark.parametrize(
    "changes",
    [
        {"clock": seconds_of(buffer=2)},
        {"clock": seconds_of(buffer=2), "failures": failures.Rates(drop=0.4)},
        {"clock": seconds_of(deadline=1.5, over_selection=1.6)},
        {"clock": seconds_of(deadline=0.6, late="carry")},
        {"failures": failures.Rates(drop=0.3, lost=0.2, nonfinite=0.2, delayed=0.2)},
    ],
    ids=["buffer", "failing_buffer", "over_selection", "carry", "failures"],
)
def test_rounds_on_the_clock_go_on(fed, rule, changes):
    arrived, over = [], set()
    for flight, assignment, state in rehearsed(
        fed.having(selection=rule, **changes), 20
    ):
        done = assignment.outcome.finished
        began = done.ids[done.versions == assignment.round]
        assert not set(began.tolist()) & set(flight.tolist())  # who works is not here
        arrived.append(len(assignment.ids))
        over |= set(done.ids.tolist())
        known = state if isinstance(state, np.ndarray) else state.utility
        assert np.isfinite(known[assignment.ids]).all()
    assert over == set(range(6))
    assert sum(arrived) >= 20
    if "clock" in changes and changes["clock"].buffer:
        assert max(arrived) == 2


@every_rule
def test_a_buffer_fills_whatever_share_drops_out(fed, rule):
    times = 50
    shards = fed.population.shards
    many = fed.having(
        shards=shards._replace(
            starts=np.tile(shards.starts, times), counts=np.tile(shards.counts, times)
        ),
        fleet=fleet.of_tiers(6 * times, test_timeline.TIERS),
        clock=seconds_of(buffer=2),
        failures=failures.Rates(drop=0.9),
        selection=rule,
    )
    for _, assignment, _ in rehearsed(many, 20):
        assert len(assignment.ids) == 2


def test_who_is_always_late_is_not_chosen_for_ever(fed):
    # Clients 3 to 5 take twice as long, and never make it.
    rules = seconds_of(deadline=1.5)
    equal = fed.population.shards._replace(counts=np.full(6, 4, np.int32))
    late = fed.having(clock=rules, shards=equal, selection=selection.PowerOfChoice(6))
    _, reports = play(fedavg.fedavg(late), 12)
    arrived = [len(report.assignment.ids) for report in reports]
    assert sum(arrived) > 12
    assert all(i < 3 for report in reports for i in report.assignment.ids)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (RULES["power_of_choice"], {"failures": failures.Rates(drop=0.2)}),
        (RULES["oort"], {"clock": seconds_of(buffer=2)}),
    ],
    ids=RULES,
)
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    fed, rule, changes, tmp_path
):
    algorithm = fedavg.fedavg(fed.having(selection=rule, **changes))

    def run(name, rounds):
        keep = simulation.Folder(
            tmp_path / name, {"rounds": rounds}, None, ("rounds",), tensorboard=False
        )
        return simulation.run_in_folder(algorithm, rounds, None, keep)

    run("stopped", 3)
    state, records = run("stopped", 7)
    whole, wanted = run("whole", 7)
    conftest.assert_same_bits(state, whole)
    for mine, theirs in zip(records, wanted, strict=True):
        assert mine | {"wall_seconds": 0} == theirs | {"wall_seconds": 0}
    assert any(np.isfinite(leaf).any() for leaf in jax.tree.leaves(state.selection))


@every_rule
def test_a_rehearsal_leaves_what_hears_losses_as_it_was(fed, rule):
    fed = fed.having(selection=rule, table_error=0.3)
    algorithm = cocofl.cocofl(fed, policy=policies.BY_NAME["online"])
    seen = rehearsal.rehearse(algorithm, fed, 6)
    conftest.assert_same_bits(seen.state.selection, algorithm.init().selection)
    assert np.any(seen.state.policy.windows != 0)  # the policy has learned
    assert seen.over == 3


def test_a_rehearsal_of_power_of_choice_prefers_nobody(fed):
    equal = fed.population.shards._replace(counts=np.full(6, 4, np.int32))
    algorithm = fedavg.fedavg(
        fed.having(shards=equal, selection=selection.PowerOfChoice(5))
    )
    state, parts = algorithm.init(), np.zeros(6)
    for index in range(100):
        assignment = algorithm.assign(state, index)
        parts[assignment.ids] += 1
        state, _ = algorithm.rehearse(state, assignment)
    assert np.abs(parts - 50).max() < 20


def test_a_policy_hears_no_losses_that_a_selection_asked_for(fed):
    told = []
    spy = policies.full(2)._replace(
        observe=lambda state, ids, plans, budgets, seen: told.append(seen) or state
    )
    chosen = fed.having(selection=selection.PowerOfChoice(4))
    play(averaging.averaging(chosen, spy, constrained=False), 2)
    assert [seen.losses for seen in told] == [None, None]


def test_uniform_reads_no_losses_back(fed, monkeypatch):
    monkeypatch.setattr(
        "fljax.algorithms.base.Report.heard", lambda report: pytest.fail("read back")
    )
    states, _ = play(fedavg.fedavg(fed), 2)
    assert states[-1].selection == ()


def test_centralized_has_nobody_to_select(fed):
    alone = centralized.centralized(fed.having(selection=oort.Oort()))
    assert alone.init().selection == ()


@dataclasses.dataclass(frozen=True)
class InTurn(selection.Selection):
    """Of a user's own, that counts who was heard of."""

    hears = False

    def init(self, clients):
        return np.zeros(len(clients.examples), np.int32)

    def select(self, state, round, here, wanted):
        return here[np.argsort(state[here], kind="stable")[:wanted]].tolist()

    def observe(self, state, round, heard):
        assert heard.losses is None
        return state + np.bincount(heard.ids, minlength=len(state)).astype(np.int32)


def test_an_own_selection_remembers_also_in_a_rehearsal(fed):
    fed = fed.having(selection=InTurn())
    algorithm = fedavg.fedavg(fed)
    states, reports = play(algorithm, 3)
    ids = [report.assignment.ids.tolist() for report in reports]
    assert ids == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert states[-1].selection.tolist() == [2, 2, 2, 1, 1, 1]
    seen = rehearsal.rehearse(algorithm, fed, 3)
    assert seen.state.selection.tolist() == [2, 2, 2, 1, 1, 1]


@dataclasses.dataclass(frozen=True)
class Rubbish(selection.Selection):
    """Selects what it is told."""

    ids: object

    def select(self, state, round, here, wanted):
        return self.ids


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ((0, 1), "got 2"),
        ((0, 1, 2, 3), "got 4"),
        ((), r"got \(\)"),
        ((0, 4, 0), "got client 0 more than once"),
        ((0, 1, 6), "got client 6, who is not"),
        ((-1, 1, 2), "got client -1, who is not"),
        ((0.0, 1.0, 2.0), r"got \(0.0, 1.0, 2.0\)"),
        ((True, False, True), "got .True, False, True"),
        (((0,), (1, 2)), r"got \(\(0,\), \(1, 2\)\)"),
        (((0, 1, 2),), r"got \(\(0, 1, 2\),\)"),
        (None, "got None"),
        ("abc", "got 'abc'"),
    ],
)
def test_a_selection_of_rubbish_is_one_line(fed, ids, words):
    algorithm = fedavg.fedavg(fed.having(selection=Rubbish(ids)))
    wanted = r"expected 3 different clients of the 6 that are here, "
    with pytest.raises(ValueError, match=f"selection Rubbish.*{wanted}{words}") as e:
        algorithm.assign(algorithm.init(), 0)
    assert "\n" not in str(e.value)


def test_what_is_no_selection_is_refused(fed):
    with pytest.raises(ValueError, match=r"expected a fljax.Selection, got a str"):
        fedavg.fedavg(fed.having(selection="uniform"))
    with pytest.raises(ValueError, match="expected at least 3 candidates"):
        fedavg.fedavg(fed.having(selection=selection.PowerOfChoice(2)))


def test_an_own_selection_cannot_spoil_the_candidates(fed):
    @dataclasses.dataclass(frozen=True)
    class Shuffled(selection.Selection):
        def select(self, state, round, here, wanted):
            round.generator.shuffle(here)
            return here[:wanted]

    algorithm = fedavg.fedavg(fed.having(selection=Shuffled()))
    with pytest.raises(ValueError, match="read-only"):
        algorithm.assign(algorithm.init(), 0)


def test_nobody_is_asked_where_nobody_is_here(fed):
    profile = fed.population.fleet.profile._replace(availability=np.zeros(2))
    empty = fed.having(
        fleet=fed.population.fleet._replace(profile=profile), selection=Rubbish(None)
    )
    algorithm = fedavg.fedavg(empty)
    assert not len(algorithm.assign(algorithm.init(), 0).ids)


def test_devices_promise_what_rounds_then_take(fed):
    # Twice the speed is half the time; two epochs of batches of 4, a second a step.
    algorithm = fedavg.fedavg(fed.having(selection=oort.Oort()))
    states, reports = play(algorithm, 2)
    work = reports[0].assignment.outcome.finished
    state = states[1].selection
    np.testing.assert_array_equal(state.seconds[work.ids], work.seconds.sum(axis=1))
    planned = schedule.make(fed, policies.full(2), np.arange(6), False)
    np.testing.assert_allclose(
        planned.clients.seconds[work.ids], work.seconds.sum(axis=1)
    )
