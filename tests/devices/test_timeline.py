"""Rounds on the clock: late, lost, broken and stale updates, against single clients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fljax import devices, plans, policies
from fljax.algorithms import averaging, base, cocofl, fedavg
from fljax.devices import arrivals, clock, failures, fleet
from fljax.devices.failures import Fault
from fljax.engine import client, federation, group, schedule
from fljax.engine import sums as totals
from fljax.engine.rounds import ending
from fljax.nn import layers, network
from fljax.plans import catalogue, costs
from fljax.runs import simulation
from fljax.runtime import mesh
from fljax.updates import norm_bound, server
from tests import conftest


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x, call):
        dense = layers.dense(6, relu=True, quantized=False, name="dense")
        return dense(layers.flatten(x), call)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, call):
        return layers.dense(3, quantized=False, name="dense")(x, call)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, call):
        return layers.dense(6, norm=True, relu=True, name="dense")(x, call)


NET = network.Network("two_dense", (Hidden(), Head()), (8, 8, 1), 3)
NORMED = NET._replace(name="normed", blocks=(Hidden(), Normed(), Head()))
FULL, LAST = plans.full(2), plans.Plan(1, 1)
TABLE = costs.CostTable(
    num_blocks=2,
    listed=plans.of_windows([[0, 1], [1, 1]]),
    time=np.array([1.0, 0.4]),
    upload=np.array([1.0, 0.1]),
    memory=np.array([1.0, 0.4]),
)
TIERS = (
    devices.Tier(name="strong", share=0.5, time=1.0, upload=1.0, memory=1.0),
    devices.Tier(name="weak", share=0.5, time=0.5, upload=0.5, memory=0.5),
)


@pytest.fixture(scope="module")
def fed(problem):
    rules = clock.Clock(step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf)
    return conftest.federated(NET, problem, TABLE, TIERS).having(
        local_epochs=1,
        learning_rate=lambda index: 0.1 / (1 + index),
        devices=mesh.make(jax.devices()[:1]),
        clock=rules,
    )


def play(algorithm, rounds, state=None, first=0):
    state = algorithm.init() if state is None else state
    states, reports = [state], []
    for index in range(first, first + rounds):
        state, report = algorithm.round(state, algorithm.assign(state, index))
        states.append(state)
        reports.append(report)
    return states, reports


def delta(fed, blocks, began, number, plan):
    """Gives what one client changes in the blocks [n], from a round's network."""
    return conftest.train_one(
        blocks,
        fed.population.data,
        *conftest.shard(fed.population.shards, number),
        jax.random.fold_in(federation.round_key(fed.seed, began), number),
        jnp.float32(fed.rules.learning_rate(began)),
        net=fed.model.net,
        plan=plan,
        training=fed.training,
    ).delta


def check_round(fed, states, report):
    """Asserts a round's network, over the arrivals k with their scales.

    Parameters: old + sum of scale_k * delta_k / K. All else is averaged: old + sum of
    scale_k * (theirs_k - old) / K, ranges by those who trained the block instead of K.
    """
    index, work = report.assignment.round, report.assignment.outcome.arrived
    old = jax.tree.map(np.array, states[index].server.blocks)
    expected = jax.tree.map(np.array, old)
    scales = clock.weight(fed.rules.clock, index, work.versions)
    assigned = report.assignment.plans
    for number, version, plan, scale in zip(
        work.ids, work.versions, assigned, scales, strict=True
    ):
        began = states[version].server.blocks
        changed = delta(fed, began, int(version), int(number), plan)
        for i in range(plan.first, plan.last + 1):
            trained = sum(p.first <= i <= p.last for p in assigned)
            for name, change in changed[i].items():
                by = trained if name in server.PLAIN else len(work.ids)
                if name != "params":
                    theirs = jax.tree.map(jnp.add, began[i][name], change)
                    change = jax.tree.map(jnp.subtract, theirs, old[i][name])
                expected[i][name] = jax.tree.map(
                    lambda a, d, s=scale / by: a + s * np.asarray(d),
                    expected[i][name],
                    change,
                )
    conftest.assert_close(states[index + 1].server.blocks, expected, 1e-5)


def test_seconds_of_a_round_by_hand(fed):
    states, reports = play(fedavg.fedavg(fed), 3)
    counts, now = fed.population.shards.counts, 0.0
    for report in reports:
        ids = report.assignment.ids
        steps = -(-counts[ids] // 4)
        speed = np.where(ids < 3, 1.0, 0.5)
        now += (steps / speed).max()
        assert report.books.seconds == pytest.approx((steps / speed).max())
        assert report.books.clock_seconds == pytest.approx(now)
        assert report.books.joules is None
    assert float(states[-1].timeline.now) == pytest.approx(now)


def test_energy_is_watts_times_seconds_of_training_of_each_client(fed):
    powered = (TIERS[0], dataclasses.replace(TIERS[1], watts=3.0))
    fed = fed.having(fleet=fleet.of_tiers(6, powered))
    _, records = simulation.run(fedavg.fedavg(fed), 4)
    spent = {number: joules for r in records for number, joules in r["client_joules"]}
    # Steps of a second at half the speed.
    seconds = -(-fed.population.shards.counts // 4) / 0.5
    assert spent == {number: 3 * seconds[number] for number in spent}
    assert spent
    assert set(spent) <= {3, 4, 5}  # of the others no power is known
    for record in records:
        assert record["joules"] == sum(joules for _, joules in record["client_joules"])


def test_plans_that_fit_bring_slow_devices_in_on_time(fed):
    _, full = play(fedavg.fedavg(fed), 8)
    _, windows = play(cocofl.cocofl(fed), 8)
    assert windows[-1].books.clock_seconds < full[-1].books.clock_seconds


def test_carried_updates_are_those_of_the_network_they_began_with(fed):
    rules = fed.rules.clock.__class__(
        step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, deadline=0.8,
        late="carry", max_staleness=4,
    )  # fmt: skip
    late = fed.having(clock=rules)
    states, reports = play(fedavg.fedavg(late), 8)
    ages = [r.assignment.round - r.assignment.outcome.arrived.versions for r in reports]
    assert max(age.max(initial=0) for age in ages) >= 1
    for report in reports:
        check_round(late, states, report)
    # Nobody is chosen who is still at work.
    for state, report in zip(states, reports, strict=False):
        busy = set(state.timeline.flight.ids.tolist()) - {arrivals.FREE}
        outcome, index = report.assignment.outcome, report.assignment.round
        for work in (outcome.finished, outcome.timeline.flight):
            begun = work.ids[(work.versions == index) & (work.ids != arrivals.FREE)]
            assert not busy & set(begun.tolist())


def test_what_is_wrong_with_a_carried_update_is_told_where_it_arrives():
    rules = clock.Clock(deadline=1.0, late="carry", max_staleness=4)
    work = arrivals.empty(3)._replace(
        ids=np.arange(3, dtype=np.int32),
        seconds=np.array([[0, 1.0, 0], [0, 3, 0], [0, 3, 0]]),
        faults=np.array([0, failures.Fault.NONFINITE, failures.Fault.LOST], np.int8),
    )
    timeline = arrivals.init(rules, 3, 3)
    events, limit = [], 2.0
    for index, drawn in enumerate((work, arrivals.take(work, np.array([0])))):
        drawn = drawn._replace(versions=np.full(len(drawn.ids), index, np.int32))
        ends = arrivals.Ends(3, limit)
        outcome = arrivals.synchronous(rules, timeline, drawn, index, ends)
        timeline = outcome.timeline
        events.append(outcome.events)
        # Only who stands there can be refused in this round.
        assert set(outcome.arrived.ids.tolist()) == [{0}, {0, 1}][index]
        limit = 3.0
    assert events == [{"lost": [2], "late": [1]}, {"nonfinite": [1]}]


@pytest.mark.parametrize("buffer", [1, 2])
def test_a_buffered_server_by_hand(fed, buffer):
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, buffer=buffer,
        max_staleness=6,
    )  # fmt: skip
    asynchronous = fed.having(clock=rules)
    states, reports = play(cocofl.cocofl(asynchronous), 9)
    assert all(len(r.assignment.ids) == buffer for r in reports)
    ages = [r.assignment.round - r.assignment.outcome.arrived.versions for r in reports]
    assert max(age.max() for age in ages) >= 1
    for report in reports:
        check_round(asynchronous, states, report)
    seconds = [report.books.clock_seconds for report in reports]
    assert seconds == sorted(seconds)


def test_late_statistics_and_ranges_are_averaged(fed):
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, buffer=3,
        max_staleness=6,
    )  # fmt: skip
    listed = plans.of_windows([[0, 2], [1, 2]])
    table = dataclasses.replace(TABLE, num_blocks=3, listed=listed)
    normed = fed.having(
        net=NORMED, counts=network.counts(NORMED), table=table, clock=rules,
        clients_per_round=6,
    )  # fmt: skip
    states, reports = play(cocofl.cocofl(normed), 6)
    ages = [r.assignment.round - r.assignment.outcome.arrived.versions for r in reports]
    assert max((age > 0).sum() for age in ages) > 1
    for report in reports:
        check_round(normed, states, report)
    for state in states:
        norms, ranges = (
            [b[name] for b in state.server.blocks] for name in ("norms", "ranges")
        )
        assert (
            min(map(jnp.min, jax.tree.leaves((norms[1]["dense"]["var"], ranges)))) > 0
        )


@pytest.mark.parametrize(
    "rules",
    [{"buffer": 2}, {"deadline": 0.8, "late": "carry", "max_staleness": 3}],
    ids=["buffered", "carried"],
)
def test_a_resumed_run_goes_on_to_the_bit(fed, rules, tmp_path):
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, **rules
    )
    changes = fleet.Changes(drift=0.4, bandwidth=0.3, refresh=3)
    made = fed.having(
        clock=rules,
        fleet=fed.population.fleet._replace(changes=changes),
        failures=failures.Rates(drop=0.2, delayed=0.2, nonfinite=0.1),
        norm_bound=5.0,
    )
    algorithm = cocofl.cocofl(made)
    whole, _ = simulation.run(algorithm, 8)
    for rounds in (3, 5, 8):
        keep = simulation.Folder(tmp_path, {}, tensorboard=False)
        last, records = simulation.run_in_folder(algorithm, rounds, None, keep)
    conftest.assert_same_bits(
        jax.tree.map(np.asarray, last), jax.tree.map(np.asarray, whole)
    )
    assert [record["round"] for record in records] == list(range(8))
    assert records[-1]["clock_seconds"] == float(whole.timeline.now)


def test_nothing_of_a_failed_client_enters_the_state(fed):
    broken = fed.having(failures=failures.Rates(drop=0.3, lost=0.3, truncated=0.2))
    states, reports = play(fedavg.fedavg(broken), 6)
    lengths = [len(report.assignment.ids) for report in reports]
    assert min(lengths) < 3
    assert max(lengths) > 0
    for report in reports:
        check_round(broken, states, report)
    events = [set(report.assignment.outcome.events) for report in reports]
    assert set.union(*events) <= {f.name.lower() for f in failures.FATAL}


def test_a_round_with_nobody_left_changes_nothing(fed):
    dead = fed.having(failures=failures.Rates(lost=1.0))
    algorithm = fedavg.fedavg(dead)
    states, reports = play(algorithm, 2)
    conftest.assert_same_bits(states[2].server.blocks, states[0].server.blocks)
    assert reports[0].assignment.ids.tolist() == []
    books = reports[0].books
    assert books.upload_bytes == books.download_bytes > 0  # it was sent
    assert reports[1].books.clock_seconds > books.clock_seconds > 0
    _, records = simulation.run(algorithm, 2)
    assert [r["participants"] for r in records] == [0, 0]
    assert [r["train_loss"] for r in records] == [None, None]
    assert set(records[0]["events"]) == {"lost"}


def tampered(fault, index=0):
    """Makes a round of clients 0, 1 and 4, the second of them broken."""
    assignment = schedule.by_hand(index, np.array([0, 1, 4]), [FULL] * 3)
    work = assignment.outcome.arrived
    faults = np.array([0, fault, 0], np.int8)
    outcome = assignment.outcome._replace(arrived=work._replace(faults=faults))
    return assignment._replace(outcome=outcome)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("fault", "why"),
    [(Fault.NONFINITE, totals.NOT_FINITE), (Fault.HUGE, totals.TOO_LARGE)],
)
def test_a_broken_update_is_refused_and_the_rest_goes_on(fed, index, fault, why):
    algorithm = fedavg.fedavg(fed.having(norm_bound=10.0))
    state = algorithm.init()
    for r in range(index):
        state, _ = algorithm.round(state, algorithm.assign(state, r))
    new, report = algorithm.round(state, tampered(fault, index))
    np.testing.assert_array_equal(report.failed, [0, why, 0])
    without = schedule.by_hand(index, np.array([0, 4]), [FULL] * 2)
    theirs, _ = algorithm.round(state, without)
    conftest.assert_close(new.server.blocks, theirs.server.blocks, 1e-6)
    record = simulation._training_fields(report)
    assert record["refused"] == [1]
    assert list(record["refused_for"].values()) == [[1]]
    assert record["participants"] == 2


def test_without_a_bound_only_what_is_not_finite_is_refused(fed):
    algorithm = fedavg.fedavg(fed)
    state = algorithm.init()
    _, report = algorithm.round(state, tampered(Fault.HUGE))
    assert not np.any(report.failed)
    _, report = algorithm.round(state, tampered(Fault.NONFINITE))
    np.testing.assert_array_equal(report.failed, [0, totals.NOT_FINITE, 0])


def test_usual_lengths_by_hand():
    l2 = jnp.array([[1.0, 0.0, 4.0], [3.0, 0.0, 0.0], [8.0, 0.0, 6.0]])
    before = jnp.array([0.0, 7.0, 3.0])
    np.testing.assert_allclose(
        norm_bound._usual_part(before, l2, (9, 16, 9)), [3, 7, 4]
    )
    # What was usual grows by a half at most.
    np.testing.assert_allclose(
        norm_bound._usual_part(jnp.array([1.0, 7.0, 3.0]), l2, (9, 16, 9)),
        [1.5, 7, 4],
    )
    # 3 a block of 9 values is 1 a value; the unknown block has 16 values.
    # The last block has nothing of its kind, so that it may change nothing.
    sizes = (9, 16, 0)
    limits = norm_bound._limits_part(jnp.array([3.0, 0.0, 0.0]), 2.0, sizes)
    np.testing.assert_allclose(limits, [36, 64, 0])
    unknown = norm_bound._limits_part(jnp.zeros(3), 2.0, sizes)
    np.testing.assert_array_equal(unknown, [np.inf, np.inf, 0])
    both = norm_bound.limits(
        jnp.array([[3.0, 0.0, 0.0]] * 2), bound=2.0, sizes=(sizes, sizes)
    )
    np.testing.assert_allclose(both, [[36, 64, 0], [3600, 6400, 0]])


def test_who_is_far_off_does_not_teach_what_is_usual():
    # A value of the others moves by 1; the last but one moves a million times as far,
    # which a median of two would take half of. A block that it alone trained stays
    # unknown.
    far, nothing = 1e6, jnp.zeros(3)
    l2 = jnp.array([[3.0, 4.0, 0], [3.0, 0, 0], [0, 4.0 * far, far], [0, 0, 0]])
    usual = norm_bound._usual_part(nothing, l2, (9, 16, 1))
    np.testing.assert_allclose(usual, [3, 4, 0])
    # Of two clients the shorter is believed.
    usual = norm_bound._usual_part(nothing, l2[1:3], (9, 16, 1))
    np.testing.assert_allclose(usual, [3, 0, 0])
    usual = norm_bound._usual_part(nothing, l2[3:], (9, 16, 1))
    np.testing.assert_array_equal(usual, 0)


def test_updates_are_measured_anew_at_the_start_and_back_at_it(fed):
    algorithm = fedavg.fedavg(fed.having(norm_bound=10.0))
    lowered = algorithm.init()._replace(
        caution=base.Caution(np.float32(0.5), np.ones(2, np.float32))
    )
    _, report = algorithm.round(lowered, tampered(Fault.HUGE, 5))
    np.testing.assert_array_equal(report.failed, [0, totals.TOO_LARGE, 0])


def test_updates_are_measured_first_where_nobody_arrived_before(fed):
    algorithm = fedavg.fedavg(fed.having(norm_bound=10.0))
    state, _ = algorithm.round(algorithm.init(), schedule.by_hand(0, np.arange(0), []))
    assert not state.measured
    state, report = algorithm.round(state, tampered(Fault.HUGE, 1))
    np.testing.assert_array_equal(report.failed, [0, totals.TOO_LARGE, 0])
    assert state.measured


@pytest.mark.parametrize("first", [Fault.HUGE, Fault.NONE])
def test_one_update_alone_is_measured_and_not_taken(fed, first):
    def alone(index, fault):
        assignment = schedule.by_hand(index, np.array([index]), [FULL])
        arrived = assignment.outcome.arrived._replace(faults=np.array([fault], np.int8))
        outcome = assignment.outcome._replace(arrived=arrived)
        return assignment._replace(outcome=outcome)

    algorithm = fedavg.fedavg(fed.having(norm_bound=10.0))
    start = algorithm.init()
    state, report = algorithm.round(start, alone(0, first))
    assert report.failed[0] == totals.UNMEASURED
    conftest.assert_same_bits(state.server.blocks, start.server.blocks)
    assert simulation._training_fields(report)["refused_for"] == {"unmeasured": [0]}
    # The second of another length: the shorter of the two is what is usual.
    second = Fault.NONE if first else Fault.HUGE
    state, report = algorithm.round(state, alone(1, second))
    assert report.failed[0] == (totals.TOO_LARGE if second else 0)
    state, report = algorithm.round(state, alone(2, Fault.HUGE))
    assert report.failed[0] == totals.TOO_LARGE
    state, report = algorithm.round(state, alone(3, Fault.NONE))
    assert report.failed[0] == 0


def test_a_bound_below_what_is_usual_does_not_lock_a_run(fed):
    # Updates grow by a third a round while the rate does; a bound of 1.2 refuses the
    # first of them, learns from what it refused, and takes them again.
    rising = fed.having(learning_rate=lambda r: 0.01 * 1.33**r, norm_bound=1.2)
    _, reports = play(fedavg.fedavg(rising), 12)
    taken = [int(np.sum(np.asarray(r.failed)[:3] == 0)) for r in reports]
    assert min(taken) < 3
    assert sum(taken[-4:]) > 0


def test_a_device_with_too_little_memory_drops_out(fed):
    # What the windows really need is far off, and weak devices have half of it all.
    wrong = fed.having(table_error=1.0, seed=5)
    states, reports = play(cocofl.cocofl(wrong), 12)
    listed = catalogue.make(TABLE, {1.0: fed.model.counts}, 1.0, 5)
    every, last = listed.true_memory[listed.rows([FULL, LAST])]
    out = [
        i for r in reports for i in r.assignment.outcome.events.get("out_of_memory", ())
    ]
    weak = last / 0.5 > 1
    strong = min(every, 1) > 1
    assert not strong
    assert bool(out) == weak
    assert all(number >= 3 for number in out)
    for report in reports:
        check_round(wrong, states, report)


def test_fedavg_takes_no_notice_of_memory(fed):
    _, reports = play(fedavg.fedavg(fed), 4)
    assert all(len(report.assignment.ids) == 3 for report in reports)


def test_a_policy_hears_what_became_of_its_clients(fed):
    heard = []
    spy = policies.full(2)._replace(
        observe=lambda state, ids, plans, budgets, seen: (
            heard.append((ids.tolist(), plans, budgets, seen)) or state
        ),
        needs_losses=True,
    )
    lossy = fed.having(failures=failures.Rates(lost=0.5))
    algorithm = averaging.averaging(lossy, spy, constrained=False)
    _, reports = play(algorithm, 4)
    for (ids, assigned, budgets, seen), report in zip(heard, reports, strict=True):
        there = [i in report.assignment.ids for i in ids]
        assert seen.arrived.tolist() == there
        assert not all(there) or len(ids) == 3
        np.testing.assert_array_equal(np.isfinite(seen.losses), there)
        speed = np.where(np.array(ids) < 3, 1, 0.5)
        # Of an upload that is lost nothing is heard.
        heard_time = np.where(there, 1 / speed, np.nan)
        np.testing.assert_allclose(seen.time, heard_time)
        np.testing.assert_allclose(budgets.time, speed)
        assert assigned == [FULL] * 3
    assert any(not all(entry[3].arrived) for entry in heard)


def test_a_policy_does_not_hear_of_those_who_were_refused(fed):
    heard = []
    spy = policies.full(2)._replace(
        observe=lambda state, ids, plans, budgets, seen: heard.append(seen) or state,
        needs_losses=True,
    )
    algorithm = averaging.averaging(fed, spy, constrained=False)
    algorithm.round(algorithm.init(), tampered(Fault.NONFINITE))
    assert np.isnan(heard[0].losses).tolist() == [False, True, False]


def test_what_is_late_by_its_upload_is_heard_as_too_long(fed):
    heard = []
    spy = policies.full(2)._replace(
        observe=lambda state, ids, plans, budgets, seen: (
            heard.append((ids, seen.time)) or state
        ),
    )
    # An upload takes as long as a step, and the deadline is half a round.
    sent = plans.upload_bytes(FULL, fed.model.counts)
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=sent, download_rate=np.inf, deadline=0.5
    )
    algorithm = averaging.averaging(fed.having(clock=rules), spy, constrained=False)
    play(algorithm, 2)
    whole = client.steps_of(np.mean(fed.population.shards.counts), fed.training) + 1
    for ids, seen in heard:
        steps = client.steps_of(
            np.asarray(fed.population.shards.counts)[ids], fed.training
        )
        speed = np.where(np.array(ids) < 3, 1, 0.5)
        expected = (steps + 1) / speed / (whole / 2)
        assert np.all(expected > 1 / speed)
        np.testing.assert_allclose(seen, expected)


def test_a_plan_that_the_table_does_not_have_is_named(fed):
    wrong = policies.full(2)._replace(
        assign=lambda state, key, ids, budgets: [plans.Plan(0, 5)] * len(ids)
    )
    algorithm = averaging.averaging(fed, wrong, constrained=False)
    with pytest.raises(ValueError, match=r"windows of the table .* got 0-5"):
        algorithm.assign(algorithm.init(), 0)


def test_nobody_being_there_takes_a_rounds_time(fed):
    profile = fed.population.fleet.profile._replace(availability=np.zeros(2))
    empty = fed.having(fleet=fed.population.fleet._replace(profile=profile))
    _, reports = play(fedavg.fedavg(empty), 2)
    whole = client.steps_of(np.mean(fed.population.shards.counts), fed.training)
    assert [r.books.clock_seconds for r in reports] == [whole, 2 * whole]


def test_a_buffer_fills_whatever_share_drops_out(fed):
    times = 50
    many = fed.having(
        shards=fed.population.shards._replace(
            starts=np.tile(fed.population.shards.starts, times),
            counts=np.tile(fed.population.shards.counts, times),
        ),
        fleet=fleet.of_tiers(6 * times, TIERS),
        clock=clock.Clock(
            step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, buffer=2
        ),
        failures=failures.Rates(drop=0.9),
    )
    algorithm = fedavg.fedavg(many)
    state = algorithm.init()
    for index in range(20):
        assignment = algorithm.assign(state, index)
        assert len(assignment.ids) == 2
        state = state._replace(timeline=assignment.outcome.timeline)
    wide = many.having(clock=clock.Clock(buffer=301))
    with pytest.raises(ValueError, match="buffer: expected at most 300"):
        fedavg.fedavg(wide)


def test_caution_lowers_budgets_and_the_servers_rate(fed):
    algorithm = cocofl.cocofl(fed)
    state = algorithm.init()
    careful = state._replace(
        caution=base.Caution(np.float32(0), np.float32([0.5, 0.01]))
    )
    assignment = algorithm.assign(careful, 0)
    assert set(assignment.plans) == {LAST}  # also where nothing fits any more
    new, _ = algorithm.round(careful, assignment)
    same = [b["params"] for b in state.server.blocks]
    conftest.assert_same_bits([b["params"] for b in new.server.blocks], same)


@pytest.mark.parametrize("factor", [0.5, 0.01])  # with the second nothing fits
def test_online_does_not_learn_caution_away(fed, factor):
    algorithm = cocofl.cocofl(fed, policy=policies.BY_NAME["online"])
    tiers = np.full(2, factor, np.float32)
    state = algorithm.init()._replace(caution=base.Caution(np.float32(1), tiers))
    for index in range(12):
        state, _ = algorithm.rehearse(state, algorithm.assign(state, index))
    # Devices are what the server believes, so there is nothing to learn.
    np.testing.assert_allclose(state.policy.clients, 0, atol=1e-5)


def test_a_look_at_the_devices_does_not_count_against_the_deadline(fed):
    def arrivals_of(seconds):
        changes = fleet.Changes(refresh=3, refresh_seconds=seconds)
        looking = fed.having(
            fleet=fed.population.fleet._replace(changes=changes),
            clock=clock.Clock(deadline=1.5),
        )
        algorithm = cocofl.cocofl(looking)
        state, rounds = algorithm.init(), []
        for index in range(6):
            assignment = algorithm.assign(state, index)
            state, _ = algorithm.rehearse(state, assignment)
            rounds.append(assignment.ids.tolist())
        return rounds, float(state.timeline.now)

    (slow, late), (quick, soon) = arrivals_of(1e4), arrivals_of(0.0)
    assert slow == quick
    assert any(slow)
    assert late == pytest.approx(soon + 2e4)  # rounds 0 and 3


def test_one_program_a_plan_whatever_arrives(fed):
    algorithm = cocofl.cocofl(fed.having(failures=failures.Rates(drop=0.5)))
    states, _ = play(algorithm, 4)
    before = group.num_programs(), ending.server_step._cache_size()
    play(algorithm, 8, states[-1], first=4)
    assert (group.num_programs(), ending.server_step._cache_size()) == before
