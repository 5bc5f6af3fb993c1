"""The dry run: what is counted equals what a run reports, what is timed is near it."""

import jax
import numpy as np
import pytest

from fljax import experiment, plans, policies
from fljax.algorithms import cocofl
from fljax.devices import clock, failures
from fljax.engine import client_rows, group
from fljax.experiment import config, dry_run, rehearsal
from fljax.runs import simulation
from fljax.runtime import programs
from tests.devices import test_timeline

fed = test_timeline.fed  # a fixture

SETTINGS = {
    "network": "cnn",
    "num_clients": 20,
    "clients_per_round": 4,
    "rounds": 5,
    "eval_every": 5,
}


def made(**changes):
    return experiment.build(config.Config(**SETTINGS | changes))


@pytest.mark.long
def test_what_is_counted_is_what_a_run_reports():
    ready = made(programs="windows")
    cost = dry_run.estimate(ready)
    algorithm = experiment.algorithm(ready)
    _, records = simulation.run(algorithm, 5, ready.evaluator)
    assert cost.programs == len({plan for r in records for plan in r["plans"]})
    assert cost.upload_bytes == sum(r["upload_bytes"] for r in records)
    assert cost.rounds == 5
    assert cost.total_seconds == pytest.approx(
        5 * cost.round_seconds + cost.programs * cost.compile_seconds
    )
    # Four clients of about 72 digits, 3 steps each, none above the full step, and a
    # fifth of an evaluation of 360.
    most = (4 * 3 + 360 / 32 / 3 / 5) * cost.step_seconds
    assert 0 < cost.round_seconds <= most
    weights = 4 * sum(count.params for count in ready.federation.model.counts)
    assert cost.device_bytes is None or cost.device_bytes > 2 * weights


def test_fedavg_is_one_program_and_centralized_sends_nothing():
    ready = made(algorithm="fedavg")
    cost = dry_run.estimate(ready)
    full = plans.upload_bytes(plans.full(4), ready.federation.model.counts)
    assert (cost.programs, cost.upload_bytes) == (1, 5 * 4 * full)
    pooled = dry_run.estimate(made(algorithm="centralized"))
    assert (pooled.programs, pooled.upload_bytes) == (1, 0)


@pytest.mark.long
def test_memory_counts_what_lies_on_the_device_and_old_networks():
    ready, gone = made(algorithm="fedavg"), clock.Clock(buffer=4, max_staleness=20)
    plain = dry_run.estimate(ready).device_bytes
    ready = made(algorithm="fedavg", clock=gone)
    weights = 4 * sum(count.params for count in ready.federation.model.counts)
    late = dry_run.estimate(ready).device_bytes
    if plain is None:
        assert late is None
        return
    assert plain > ready.federation.population.data.x.nbytes + 2 * weights
    assert (
        20 * weights
        <= late - plain
        < 25 * weights + ready.federation.population.data.x.nbytes
    )


def test_windows_that_share_a_program_are_one():
    ready = made(algorithm="cocofl", client_width=2)
    cost = dry_run.estimate(ready)
    assert (cost.programs, cost.measured) == (1, "all windows")
    assert cost.upload_bytes == dry_run.estimate(made()).upload_bytes


def test_side_by_side_clients_compute_what_others_of_their_chunk_need():
    def steps(**fields):
        ready = made(**fields)
        algorithm = experiment.algorithm(ready)
        return rehearsal.rehearse(algorithm, ready.federation, 5).steps

    apart, shared, side_by_side = (
        steps(**f) for f in ({"programs": "windows"}, {}, {"client_width": 2})
    )
    assert apart == shared < side_by_side <= 2 * 4 * 3  # all three roles of each block


def test_a_rehearsal_is_what_the_rounds_do_without_training(fed):
    rules = clock.Clock(
        step_seconds=1.0, upload_rate=np.inf, download_rate=np.inf, deadline=0.9
    )
    rates = failures.Rates(drop=0.2)
    fed = fed.having(clock=rules, failures=rates, table_error=0.3)
    algorithm = cocofl.cocofl(fed, policy=policies.BY_NAME["online"])
    state, records = simulation.run(algorithm, 12)
    seen = rehearsal.rehearse(algorithm, fed, 12)
    for ours, theirs in zip(seen.state.policy, state.policy, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.any(ours != 0)  # it has learned
    assert seen.clock_seconds == records[-1]["clock_seconds"]
    assert seen.upload_bytes == sum(r["upload_bytes"] for r in records)
    arrived = sum(r["participants"] for r in records)
    gone = sum(len(ids) for r in records for ids in r.get("events", {}).values())
    assert 0 < gone < 12 * 3
    assert arrived + gone == 12 * 3
    assert (seen.over, seen.arrived * 12) == (3, pytest.approx(arrived))
    assert sum(seen.events.values()) * 12 == pytest.approx(gone)
    whole = sum(r["plans"].get("0-1", 0) for r in records)
    assert seen.blocks.tolist() == pytest.approx([whole / arrived, 1])
    steps = -(-fed.population.shards.counts // 4)
    assert 0 < seen.steps < 3 * steps.max()
    assert list(seen.tiers) == ["strong", "weak"]


def test_what_is_kept_on_disk_does_not_count(kept, monkeypatch):
    folders = []

    def compile_anew(lowered):
        folders.append(jax.config.values["jax_compilation_cache_dir"])
        return compile_it(lowered)

    compile_it = programs._compile
    monkeypatch.setattr(programs, "_compile", compile_anew)
    for _ in range(2):
        group._programs.clear()
        dry_run.estimate(made())
    assert jax.config.values["jax_compilation_cache_dir"] == str(kept)
    assert folders == [None, None]


def test_a_policy_that_asks_for_losses_is_rehearsed_as_it_starts():
    ready = made(policy="adaptive_bits")
    algorithm = experiment.algorithm(ready)
    seen = rehearsal.rehearse(algorithm, ready.federation, 3)
    start = algorithm.init().policy
    for ours, theirs in zip(seen.state.policy, start, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 0 < seen.blocks.min() <= seen.blocks.max() == 1.0


def test_text_by_hand():
    cost = dry_run.Estimate(
        1000,
        3,
        "the full network",
        2.0,
        0.05,
        30.0,
        30006.0,
        5_680_000,
        1_950_000_000,
        90.0,
        rehearsal.Rehearsal(
            None, frozenset(), 1.0, 1, 90.0, 10.0, 8.25,
            {"late": 0.75, "out_of_memory": 1.0}, {"fast": 1.0, "slow": 0.65},
            np.array([1 / 3, 1.0]),
        ),
    )  # fmt: skip
    assert dry_run.show(cost).splitlines() == [
        "3 programs to compile where none is kept, 2.0 s each",
        "5.68 MB on each device",
        "30 s a round (50 ms a step of the full network)",
        "8.34 h for 1000 rounds",
        "1.95 GB sent by clients",
        "90 s on the clock of the devices",
        "8.25 of 10 clients a round arrive (fast 100%, slow 65%)",
        "of a round's clients: 0.75 late, 1 out_of_memory",
        "blocks trained by, of those who arrive: 33% 100%",
    ]
    calm = cost._replace(rehearsal=cost.rehearsal._replace(events={}))
    assert "of a round's clients" not in dry_run.show(calm)
    keeping = dry_run.show(cost._replace(client_bytes=2_000_000)).splitlines()
    assert keeping[2] == "2 MB in host memory for what clients keep"
    one = dry_run.show(cost._replace(programs=1, measured="all windows"))
    assert one.startswith("1 program to compile")
    assert "ms a step of all windows)" in one
    assert "an unknown amount" in dry_run.show(cost._replace(device_bytes=None))


def test_what_clients_keep_is_counted_for_those_that_may_take_part(fed):
    clients, a_round = len(fed.population.shards.counts), fed.rules.clients_per_round
    rows = client_rows.Rows.empty(np.zeros(10, np.float32))
    for rounds, visited in ((1, a_round), (1000, clients)):
        counted = dry_run._client_bytes(fed, {"a": rows, "b": (rows, 1)}, rounds)
        assert counted == 2 * visited * (4 * 10 + 64)
    assert dry_run._client_bytes(fed, {"a": None}, 1000) == 0
