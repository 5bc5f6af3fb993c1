"""The dry run: what is counted equals what a run reports, what is timed is near it."""

import pytest

from experiments import config, dry_run, experiment
from fljax import plans, simulation

SETTINGS = {
    "network": "cnn",
    "num_clients": 20,
    "clients_per_round": 4,
    "rounds": 5,
    "eval_every": 5,
}


def made(**changes):
    settings = config.Config(**SETTINGS | changes)
    return settings, experiment.build(settings)


@pytest.mark.long
def test_what_is_counted_is_what_a_run_reports():
    settings, ready = made()
    cost = dry_run.estimate(settings, ready)
    algorithm = experiment.algorithm(settings, ready)
    _, records = simulation.run(algorithm, settings.rounds, ready.evaluator)
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
    weights = 4 * sum(count.params for count in ready.federation.counts)
    assert cost.device_bytes is None or cost.device_bytes > 2 * weights


def test_fedavg_is_one_program_and_centralized_sends_nothing():
    settings, ready = made(algorithm="fedavg")
    cost = dry_run.estimate(settings, ready)
    full = plans.upload_bytes(plans.full(4), ready.federation.counts)
    assert (cost.programs, cost.upload_bytes) == (1, 5 * 4 * full)
    pooled = dry_run.estimate(*made(algorithm="centralized"))
    assert (pooled.programs, pooled.upload_bytes) == (1, 0)


def test_windows_that_share_a_program_are_one():
    fields = {"programs": "one", "client_width": 2}
    settings, ready = made(algorithm="cocofl", **fields)
    cost = dry_run.estimate(settings, ready)
    assert (cost.programs, cost.measured) == (1, "all windows")
    assert cost.upload_bytes == dry_run.estimate(*made()).upload_bytes


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
    )
    assert dry_run.show(cost).splitlines() == [
        "3 programs to compile, 2.0 s each",
        "5.68 MB on each device",
        "30 s a round (50 ms a step of the full network)",
        "8.34 h for 1000 rounds",
        "1.95 GB sent by clients",
        "90 s on the clock of the devices",
    ]
    one = dry_run.show(cost._replace(programs=1, measured="all windows"))
    assert one.startswith("1 program to compile")
    assert "ms a step of all windows)" in one
    assert "an unknown amount" in dry_run.show(cost._replace(device_bytes=None))
