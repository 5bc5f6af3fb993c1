"""Rollback: verdicts by hand, runs that diverge and recover, alerts, resume."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest

from fljax import plans, tasks
from fljax.algorithms import base, cocofl, fedavg
from fljax.devices import arrivals, clock, failures, fleet
from fljax.engine import books, client, evaluate, schedule
from fljax.engine import sums as totals
from fljax.runs import alerts, checkpoints, guard, simulation, writers
from tests import conftest
from tests.algorithms import test_algorithms
from tests.runs import test_simulation

IDS = np.array([5, 1, 8])
TIERS = {"tiers": ("fast", "slow"), "tier_index": np.array([0, 1, 0, 0, 0, 0, 0, 0, 1])}


def state_of(number, caution=None):
    """Makes a state that a number tells from others."""
    caution = caution or base.Caution(np.ones((), np.float32), np.ones(2, np.float32))
    return base.State(number, *test_simulation.EMPTY[:-1], caution)


def report_of(index, losses=(1, 1, 1), failed=(0, 0, 0), finite=True):
    assignment = schedule.by_hand(index, IDS, [plans.Plan(0, 1)] * 3)
    return base.Report(
        assignment,
        np.array(losses, np.float32),
        np.array(failed),
        books.Books(0, 0, 1.0),
        finite,
    )


def judge_all(watch, rounds, memory=None, state=None):
    """Judges [(loss, accuracy or None)], each from what came of the one before.

    Round r ends in the state r. Returns (memory, verdicts).
    """
    state = state_of(-1) if state is None else state
    memory = guard.init(watch, state) if memory is None else memory
    verdicts = []
    for index, (loss, accuracy) in enumerate(rounds):
        record = {"round": index, "train_loss": loss}
        if accuracy is not None:
            record["test_accuracy"] = accuracy
        state = state._replace(server=index)
        memory, verdict = guard.judge(watch, memory, state, record, report_of(index))
        state = verdict.state if verdict else state
        verdicts.append(verdict)
    return memory, verdicts


def test_a_fall_of_accuracy_by_more_than_the_limit_goes_back_to_the_best():
    watch = guard.Guard(drop=0.1, window=3)
    accuracies = (0.5, 0.8, 0.75, 0.7, 0.69)  # 0.8 - 0.7 is not more than 0.1
    memory, verdicts = judge_all(watch, [(1.0, a) for a in accuracies])
    assert verdicts[:4] == [None] * 4
    verdict = verdicts[4]
    assert verdict.fields == {
        "to_round": 1,
        "reason": "test accuracy 0.6900 is more than 0.1 below 0.8000, the best of 3 "
        "evaluations",
        "lowered": "server",
        "factor": 0.5,
        "count": 1,
    }
    assert (verdict.state.server, verdict.stop, verdict.finite) == (1, False, True)
    assert verdict.state.caution.server == 0.5
    np.testing.assert_array_equal(verdict.state.caution.tiers, [1, 1])
    # What was judged bad is not remembered.
    np.testing.assert_array_equal(memory.accuracies, np.float32([0.8, 0.75, 0.7]))
    assert (memory.good.server, int(memory.round), int(memory.count)) == (1, 1, 1)


def test_of_a_measure_of_which_less_is_better_a_rise_goes_back():
    measure = tasks.Measure("test_accuracy", "rmse", more=False, share=False)
    watch = guard.Guard(drop=0.5, window=3, measure=measure)
    memory, verdicts = judge_all(watch, [(1.0, e) for e in (3.0, 2.0, 2.25, 2.75)])
    assert verdicts[:3] == [None] * 3
    assert verdicts[3].fields["reason"] == (
        "test rmse 2.7500 is more than 0.5 above 2.0000, the best of 3 evaluations"
    )
    assert (memory.good.server, int(memory.round)) == (1, 1)


def test_every_rollback_lowers_further_from_the_same_state():
    watch = guard.Guard(drop=0.1, factor=0.5, limit=2)
    _, verdicts = judge_all(watch, [(1, 0.8), (1, 0.5), (1, 0.6), (1, 0.1)])
    assert [v and v.fields["factor"] for v in verdicts] == [None, 0.5, 0.25, 0.125]
    assert [v and v.fields["count"] for v in verdicts] == [None, 1, 2, 3]
    assert [v and v.fields["to_round"] for v in verdicts] == [None, 0, 0, 0]
    assert [v and v.stop for v in verdicts] == [None, False, False, True]


def test_the_good_state_is_the_newest_best_and_never_older_than_the_window():
    watch = guard.Guard(drop=0.5, window=3)

    def good_after(*accuracies):
        return int(judge_all(watch, [(1.0, a) for a in accuracies])[0].round)

    assert good_after() == -1
    assert good_after(0.6) == 0
    assert good_after(0.6, 0.6) == 1
    assert good_after(0.6, 0.5, 0.4) == 0
    assert good_after(0.6, 0.5, 0.4, 0.3) == 3  # 0.6 has left the window
    assert good_after(0.6, 0.5, None, None, 0.4) == 0  # of evaluations, not of rounds
    assert good_after(0.6, 0.5, 0.4, 0.3, 0.35) == 4


def test_before_an_evaluation_it_goes_back_to_the_start():
    watch = guard.Guard(loss=2)
    _, verdicts = judge_all(watch, [(1.0, None), (3.0, None)])
    assert verdicts[1].fields["to_round"] == -1
    assert verdicts[1].state.server == -1
    assert (
        "rollback 1 to the start"
        in alerts.of_record({"round": 1, "rollback": verdicts[1].fields})[0]["message"]
    )


def test_a_loss_is_compared_with_the_median_of_the_window():
    watch = guard.Guard(loss=2, window=3)
    # Medians: of 9, 1, 1 and 1 + 3 / 2; the 9 falls out of the window.
    rounds = [(9, 0.1), (1, 0.1), (1, 0.1), (2, 0.1), (2.01, 0.1)]
    _, verdicts = judge_all(watch, rounds)
    assert verdicts[:4] == [None] * 4
    assert verdicts[4].fields["reason"] == (
        "training loss 2.01 is above 2 times 1, the median of 3 rounds before"
    )
    # Accuracy is no reason, nor is the first loss.
    _, verdicts = judge_all(watch, [(100, 0.9), (100, 0.0)])
    assert verdicts == [None, None]


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (
            {"failed": (1, 1, 1)},
            "loss or update is not finite for clients 5 (plan 0-1), 1 (plan 0-1), 8",
        ),
        ({"finite": False}, "every update is finite, but the network"),
    ],
)
def test_numbers_that_are_not_finite_are_a_reason(report, reason):
    watch = guard.Guard(drop=0.5)
    state = state_of(7)
    memory, verdict = guard.judge(
        watch,
        guard.init(watch, state),
        state_of(8),
        {"round": 0, "train_loss": float("nan"), "test_accuracy": 0.9},
        report_of(0, **report),
    )
    assert verdict.reason.startswith(reason)
    assert not verdict.finite
    assert verdict.state.server == 7
    assert np.isnan(memory.losses).all()


@pytest.mark.parametrize(
    ("report", "tier"),
    [
        ({"losses": (1, 2, 3)}, "slow"),  # means: 1 of client 5, 2.5 of 1 and 8
        ({"losses": (2.6, 2, 3)}, "fast"),
        ({"losses": (0, 2, 3), "failed": (1, 0, 0)}, "fast"),
        ({"losses": (float("nan"),) * 3, "failed": (1, 1, 1)}, "slow"),
    ],
)
def test_the_tier_that_did_worst_is_lowered(report, tier):
    watch = guard.Guard(drop=0.1, lowers="tier", factor=0.25, **TIERS)
    memory, _ = judge_all(watch, [(1.0, 0.9)])
    before = base.Caution(np.ones((), np.float32), np.float32([0.5, 1]))
    record = {"round": 1, "train_loss": 1.0, "test_accuracy": 0.2}
    _, verdict = guard.judge(
        watch, memory, state_of(1, before), record, report_of(1, **report)
    )
    factors = {"fast": [0.125, 1], "slow": [0.5, 0.25]}[tier]
    assert verdict.fields["lowered"] == tier
    assert verdict.fields["factor"] == factors[tier == "slow"]
    np.testing.assert_array_equal(verdict.state.caution.tiers, factors)
    assert verdict.state.caution.server == 1
    np.testing.assert_array_equal(before.tiers, [0.5, 1])


def test_a_tier_is_not_to_blame_for_what_was_spoilt_on_its_way():
    watch = guard.Guard(drop=0.1, lowers="tier", **TIERS)
    report = report_of(1, losses=(1, 2, 3), failed=(1, 0, 0))
    arrived = report.assignment.outcome.arrived
    for fault, tier in ((failures.Fault.NONE, 0), (failures.Fault.HUGE, 1)):
        faults = np.array([fault, 0, 0], np.int8)
        outcome = report.assignment.outcome._replace(
            arrived=arrived._replace(faults=faults)
        )
        seen = report._replace(assignment=report.assignment._replace(outcome=outcome))
        assert guard._worst_tier(watch, seen) == tier


def test_a_refused_update_among_finite_ones_is_no_reason():
    watch = guard.Guard(drop=0.5)
    state = state_of(7)
    record = {"round": 0, "train_loss": 1.0, "test_accuracy": 0.9}
    report = report_of(0, failed=(0, 1, 0))
    memory = guard.init(watch, state)
    _, verdict = guard.judge(watch, memory, state_of(8), record, report)
    assert verdict is None


def test_updates_that_a_failure_spoilt_say_nothing_of_the_training():
    def with_faults(report, faults):
        outcome = report.assignment.outcome
        work = outcome.arrived._replace(faults=np.array(faults, np.int8))
        assigned = report.assignment._replace(outcome=outcome._replace(arrived=work))
        return report._replace(assignment=assigned)

    spoilt = failures.Fault.NONFINITE
    report = report_of(0, failed=(totals.NOT_FINITE,) * 3)
    assert guard.not_finite(with_faults(report, [spoilt] * 3)) is None
    reason = guard.not_finite(with_faults(report, [spoilt, 0, spoilt]))
    assert reason == "loss or update is not finite for client 1 (plan 0-1)"


def test_the_clock_does_not_go_back_and_nobody_is_waited_for():
    watch = guard.Guard(drop=0.1)
    memory, _ = judge_all(watch, [(1.0, 0.9)])
    busy = arrivals.empty(2)._replace(ids=np.array([4, arrivals.FREE], np.int32))
    later = arrivals.Timeline(np.array(77.0), busy)
    record = {"round": 1, "train_loss": 1.0, "test_accuracy": 0.2}
    state = state_of(1)._replace(timeline=later)
    _, verdict = guard.judge(watch, memory, state, record, report_of(1))
    assert verdict.state.server == 0
    assert float(verdict.state.timeline.now) == 77
    assert verdict.state.timeline.flight.ids.tolist() == [arrivals.FREE] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"drop": 1.0},
            "rollback.drop: expected a number from 0, below 1",
        ),
        ({"drop": float("nan")}, "got nan"),
        (
            {"loss": 1.0},
            "rollback.loss: expected 0 or a number above 1",
        ),
        (
            {"window": 0},
            "rollback.window: expected a whole .* 100000, got 0",
        ),
        ({"lowers": "all"}, "rollback.lowers: expected server, tier, got 'all'"),
        (
            {"factor": 1.0},
            "rollback.factor: expected .* below 1, got 1.0",
        ),
        ({"limit": -1}, "rollback.limit: expected a whole number from 0 to .*, got -1"),
        ({"lowers": "tier"}, "tiers and tier_index"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        guard.Guard(**changes)


# The loop, on an algorithm without a network: see test_simulation.


def falling(bad=(), log=None, first=0):
    """Makes an evaluator: accuracy 0.9, in the rounds `bad` 0.1, from `first` on."""
    seen = itertools.count(first)

    def scores(state):
        if log is not None:
            log.append("evaluation")
        return next(seen), state.server["rounds"]

    def fields(sums):
        index, rounds = sums
        return {"test_accuracy": 0.1 if index in bad else 0.9, "seen": int(rounds)}

    return simulation.Evaluator(scores, fields)


WATCH = guard.Guard(drop=0.5)


def test_the_number_of_the_round_goes_on_and_the_state_goes_back():
    heard, told = [], []
    hooks = simulation.Hooks(message=heard.append, alert=told.append)
    algorithm = test_simulation.counting()
    state, records = simulation.run(algorithm, 6, falling({2, 4}), hooks, WATCH)
    assert [record["round"] for record in records] == [0, 1, 2, 3, 4, 5]
    assert [record["seen"] for record in records] == [1, 2, 3, 3, 4, 4]
    assert test_simulation.rounds_of(state) == 4
    assert state.caution.server == 0.25
    back = {r["round"]: r["rollback"] for r in records if "rollback" in r}
    assert {index: b["to_round"] for index, b in back.items()} == {2: 1, 4: 3}
    messages = [line for line in heard if "rollback" in line]
    assert messages[1] == (
        "round 4: test accuracy 0.1000 is more than 0.5 below 0.9000, the best of 3 "
        "evaluations; rollback 2 to the state after round 3, the server's learning "
        "rate times 0.25 from here"
    )
    assert told == [
        {"round": i, "kind": "rollback", "message": line, "rollback": back[i]}
        for i, line in zip((2, 4), messages, strict=True)
    ]


def test_the_last_rounds_own_evaluation_is_not_judged():
    # A longer run has none there and would go on otherwise.
    evaluator = falling({1})._replace(every=3)
    algorithm = test_simulation.counting()
    _, records = simulation.run(algorithm, 4, evaluator, rollback=WATCH)
    assert [r["round"] for r in records if "test_accuracy" in r] == [2, 3]
    assert not any("rollback" in record for record in records)


def test_a_round_is_judged_before_the_next_one_is_dispatched():
    log = []
    hooks = simulation.Hooks(record=lambda record: log.append("record"))
    algorithm = test_simulation.counting(log)
    simulation.run(algorithm, 2, falling((), log), hooks, WATCH)
    assert log == [
        *("round 0", "evaluation", "record", "round 1", "evaluation", "record")
    ]


def test_a_guard_that_finds_nothing_changes_nothing():
    algorithm = test_simulation.counting()
    evaluator = test_simulation.counter(2)
    _, plain = simulation.run(algorithm, 5, evaluator)
    _, watched = simulation.run(algorithm, 5, evaluator, None, WATCH)
    without_time = test_simulation.without_time
    assert without_time(plain) == without_time(watched)


def test_without_a_guard_a_checkpoint_holds_the_state_alone(tmp_path):
    test_simulation.in_folder(tmp_path, 2)
    state = test_simulation.counting().init()
    assert checkpoints.restore(tmp_path, state).round == 2
    assert not (tmp_path / "alerts.jsonl").exists()


def test_the_limit_ends_the_run_and_the_state_before_is_kept(tmp_path):
    told = []
    watch = guard.Guard(drop=0.5, limit=1)

    def again(evaluator):
        hooks = simulation.Hooks(alert=told.append)
        keep = simulation.Folder(str(tmp_path), {"lr": 0.1}, tensorboard=False)
        counted = test_simulation.counting()
        return simulation.run_in_folder(counted, 8, evaluator, keep, hooks, watch)

    with pytest.raises(simulation.DivergedError) as error:
        again(falling({2, 4}))
    assert error.value.round == 4
    assert str(error.value) == (
        "round 4: test accuracy 0.1000 is more than 0.5 below 0.9000, the best of 3 "
        "evaluations (after 1 rollback); lower the learning rates"
    )
    assert not isinstance(error.value, simulation.NonFiniteError)
    kept = writers.read_alerts(tmp_path)
    assert kept == told
    assert [(alert["round"], alert["kind"]) for alert in kept] == [
        (2, "rollback"),
        (4, "stopped"),
    ]
    assert kept[1]["message"] == str(error.value)
    last = writers.read_metrics(tmp_path)[-1]
    assert last["round"] == 4
    assert f"round 4: {last['stopped']}" == str(error.value)
    assert (last["test_accuracy"], "rollback" in last) == (0.1, False)
    with pytest.raises(simulation.DivergedError):  # it is as it was
        again(falling({4}, first=4))
    assert writers.read_alerts(tmp_path) == kept
    assert told == [*kept, kept[1]]
    again(falling())
    assert writers.read_alerts(tmp_path) == kept[:1]
    records = writers.read_metrics(tmp_path)
    assert [record["round"] for record in records] == list(range(8))
    assert not any("stopped" in record for record in records)


def test_numbers_that_are_not_finite_roll_back_until_the_limit():
    algorithm = test_simulation.counting(broken=lambda index, _: index >= 2)
    records = []
    hooks = simulation.Hooks(record=records.append)
    with pytest.raises(simulation.NonFiniteError) as error:
        simulation.run(algorithm, 9, falling(), hooks, guard.Guard(loss=2))
    assert str(error.value).startswith("round 5: loss or update is not finite for")
    assert str(error.value).endswith(
        "(after 3 rollbacks); lower the learning rate or look at their data"
    )
    assert [r.get("rollback", {}).get("count") for r in records] == [
        *(None, None, 1, 2, 3)
    ]


def test_a_guard_without_evaluation_is_refused():
    algorithm = test_simulation.counting()
    with pytest.raises(ValueError, match="expected an evaluator, got none"):
        simulation.run(algorithm, 2, rollback=WATCH)


def test_the_final_evaluation_is_of_the_state_that_stands():
    def record(index, accuracy, back=None):
        more = {} if back is None else {"rollback": {"to_round": back}}
        return {"round": index, "test_accuracy": accuracy, **more}

    records = [record(0, 0.5), record(1, 0.8), record(2, 0.7)]
    assert simulation.final_evaluation(records) == records[2]
    assert simulation.final_evaluation([*records, {"round": 3}]) == records[2]
    assert simulation.final_evaluation([*records, record(3, 0.1, 1)]) == records[1]
    assert simulation.final_evaluation([record(0, 0.1, -1)]) == record(0, 0.1, -1)


# Alerts


def test_alerts_of_a_record():
    assert alerts.of_record({"round": 3, "refused": [], "participants": 2}) == []
    assert alerts.of_record({"round": 3}) == []
    assert alerts.of_record(
        {"round": 3, "refused": np.array([4, 9]), "participants": 0}
    ) == [
        {
            "round": 3,
            "kind": "refused",
            "message": "round 3: the server refused updates of clients 4, 9",
            "refused": [4, 9],
        },
    ]
    assert alerts.of_record({"round": 3, "participants": 0}) == [
        {
            "round": 3,
            "kind": "nobody",
            "message": "round 3: no client took part",
        },
    ]


def test_alerts_of_rounds_that_run_again_and_torn_lines_are_dropped(tmp_path):
    writer = writers.AlertsWriter(tmp_path)
    for index in (1, 1, 4, 6):
        writer.write({"round": index, "kind": "nobody", "message": str(index)})
    with open(tmp_path / "alerts.jsonl", "ab") as file:
        file.write(b'{"round": 6, "ki')
    assert len(writers.read_alerts(tmp_path)) == 4
    writer = writers.AlertsWriter(tmp_path, 4)
    assert writer.notes == ["alerts.jsonl: dropped 1 torn or unreadable lines"]
    assert [alert["round"] for alert in writers.read_alerts(tmp_path)] == [1, 1]
    writer.write({"round": 4, "kind": "nobody", "message": ""})
    assert [alert["round"] for alert in writers.read_alerts(tmp_path)] == [1, 1, 4]


def test_a_command_reads_every_alert_in_order(tmp_path):
    script = tmp_path / "heard.py"
    script.write_text(
        "import sys\n"
        "print('not for the terminal')\n"
        "open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')\n"
    )
    heard = tmp_path / "with space"
    messages = []
    command = f"{sys.executable} {script} '{heard}'"
    sent = [alerts.stopped(index, "why $HOME") for index in range(3)]
    with alerts.Command(command, messages.append) as tell:
        for alert in sent:
            tell(alert)
    assert [json.loads(line) for line in heard.read_text().splitlines()] == sent
    assert messages == []


def test_a_command_that_fails_is_a_message(tmp_path):
    messages = []
    with alerts.Command(f"{sys.executable} -c 'exit(3)'", messages.append) as tell:
        tell(alerts.stopped(0, ""))
    program = tmp_path / "gone"
    program.write_text("#!/nowhere/at/all\n")
    program.chmod(0o755)
    with alerts.Command(str(program), messages.append) as tell:
        tell(alerts.stopped(0, ""))
    assert messages[0] == f"alert command {sys.executable} failed: exit code 3"
    assert messages[1].startswith(f"alert command {program} failed: ")
    assert len(messages) == 2


def test_a_command_runs_beside_the_rounds(tmp_path):
    # The command ends once the file is there, which is made after it was told.
    go = tmp_path / "go"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    messages = []
    with alerts.Command(f'{sys.executable} -c "{wait}"', messages.append) as tell:
        tell(alerts.stopped(0, ""))
        go.touch()
    assert messages == []


@pytest.mark.parametrize("command", ["", "no_such_program_anywhere", "echo 'half"])
def test_a_command_that_cannot_be_is_refused(command):
    with pytest.raises(ValueError, match="expected a command"):
        alerts.parse(command)


# A network


def evaluator_of(problem):
    """Evaluates on other examples of the same classes."""
    data = conftest.make_data(7, 30)
    batches = evaluate.batches(30, 10, 0, 1)

    def scores(state):
        return evaluate.evaluate(
            state.server.blocks,
            client.Data(*data),
            batches,
            static=evaluate.Static(problem.net),
        )

    def fields(sums):
        total = float(np.sum(sums.whole.total))
        return {"test_accuracy": float(np.sum(sums.whole.correct)) / total}

    return simulation.Evaluator(scores, fields)


@pytest.fixture(scope="module")
def wild(problem):
    """Gives FedAvg whose server takes much too long steps, and its evaluator."""
    fed = test_algorithms.make(
        problem, server_learning_rate=20.0, learning_rate=lambda index: 0.1
    )
    return fedavg.fedavg(fed), evaluator_of(problem)


RECOVERING = guard.Guard(drop=0.15, loss=5, limit=10)


def test_a_run_that_diverges_goes_back_and_recovers(wild):
    algorithm, evaluator = wild
    state, records = simulation.run(algorithm, 14, evaluator, None, RECOVERING)
    backs = [record["rollback"] for record in records if "rollback" in record]
    assert backs
    assert [back["factor"] for back in backs] == [
        0.5 ** (i + 1) for i in range(len(backs))
    ]
    assert state.caution.server == backs[-1]["factor"]
    # The end is better than what it first went back to, though that was the best.
    first = next(r["round"] for r in records if "rollback" in r)
    before = max(record["test_accuracy"] for record in records[:first])
    assert simulation.final_evaluation(records)["test_accuracy"] > before + 0.1


@pytest.mark.parametrize("stop", range(4))
def test_a_run_stopped_around_a_rollback_ends_alike(wild, tmp_path, stop):
    algorithm, evaluator = wild

    def play(folder, stop=None):
        def interrupt(record):
            if record["round"] == stop:
                raise KeyboardInterrupt

        keep = simulation.Folder(folder, {}, tensorboard=False, checkpoint_every=2)
        hooks = simulation.Hooks(record=interrupt)
        return simulation.run_in_folder(
            algorithm, 4, evaluator, keep, hooks, RECOVERING
        )

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    state, records = play(whole)
    assert "rollback" in records[1]
    with pytest.raises(KeyboardInterrupt):
        play(stopped, stop)
    again, records_again = play(stopped)
    conftest.assert_same_bits(again, state)
    without_time = test_simulation.without_time
    assert without_time(records_again) == without_time(records)
    assert writers.read_alerts(stopped) == writers.read_alerts(whole)
    newest = "checkpoints/round_00000004.ckpt"
    assert (stopped / newest).read_bytes() == (whole / newest).read_bytes()


@pytest.fixture(scope="module")
def buffered(problem):
    """Gives CoCoFL whose server steps too far after two arrivals; and a guard."""
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=1e6, download_rate=1e6, buffer=2, max_staleness=3
    )
    strong = dataclasses.replace(test_algorithms.TIERS[0], share=1.0)
    fed = test_algorithms.make(
        problem,
        fleet=fleet.of_tiers(6, (strong,)),
        clock=rules,
        server_learning_rate=20.0,
        learning_rate=lambda index: 0.1,
    )
    watch = guard.Guard(
        loss=2,
        drop=0.1,
        lowers="tier",
        limit=50,
        tiers=(strong.name,),
        tier_index=fed.population.fleet.tier,
    )
    return cocofl.cocofl(fed), evaluator_of(problem), watch


def test_a_tier_of_a_buffered_run_gets_lower_plans(buffered):
    algorithm, evaluator, watch = buffered
    state, records = simulation.run(algorithm, 14, evaluator, None, watch)
    backs = {r["round"]: r["rollback"] for r in records if "rollback" in r}
    assert {back["lowered"] for back in backs.values()} == {"strong"}
    assert [back["factor"] for back in backs.values()] == [
        0.5 ** (i + 1) for i in range(len(backs))
    ]
    assert state.caution.tiers.tolist() == [0.5 ** len(backs)]
    assert state.caution.server == 1
    # Who began before a rollback is not waited for: from then on nobody trains all.
    first, full = min(backs), str(conftest.FULL)
    assert all(set(record["plans"]) == {full} for record in records[: first + 1])
    assert not any(full in record["plans"] for record in records[first + 1 :])
    clocks = [record["clock_seconds"] for record in records]
    assert clocks == sorted(clocks)


def test_a_buffered_run_stopped_at_a_rollback_ends_alike(buffered, tmp_path):
    algorithm, evaluator, watch = buffered
    _, records = simulation.run(algorithm, 14, evaluator, None, watch)
    first = next(record["round"] for record in records if "rollback" in record)

    def play(rounds):
        keep = simulation.Folder(tmp_path, {}, tensorboard=False)
        return simulation.run_in_folder(algorithm, rounds, evaluator, keep, None, watch)

    play(first + 1)
    state, again = play(14)
    whole, _ = simulation.run(algorithm, 14, evaluator, None, watch)
    conftest.assert_same_bits(state, whole)
    held, rounds = simulation.restore(str(tmp_path), algorithm, watch)
    assert rounds == 14
    conftest.assert_same_bits(held, whole)
    without_time = test_simulation.without_time
    assert without_time(again) == without_time(records)
