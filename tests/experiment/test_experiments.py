"""The command lines: run folder, bad input, damaged checkpoints, comparison."""

import dataclasses
import json
import math
import os
import pathlib
import re
import statistics
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

import fljax
from experiments import compare, train
from fljax import experiment, models, types
from fljax.data import text
from fljax.devices import clock
from fljax.experiment import config as configs
from fljax.experiment.comparing import comparison
from fljax.nn import flax_block, network
from fljax.updates import learning_rate
from tests import conftest

_ROOT = pathlib.Path(__file__).parents[2]
# The smallest job: one block, so that it compiles in a second; later ones reuse it.
SMALL = (
    "--network=logistic",
    "--num_clients=12",
    "--clients_per_round=3",
    "--data_cache=",
)
FEDAVG = ("--algorithm=fedavg", *SMALL)


def records_of(folder):
    """Reads metrics.jsonl strictly."""
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def contents(folder):
    """Reads every file; the lock names the process that held the folder last."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_run_folder_holds_config_metrics_events_and_checkpoints(call, tmp_path):
    folder = tmp_path / "new" / "run"
    done = call(train, *FEDAVG, "--rounds=3", "--eval_every=2", f"--workdir={folder}")
    assert done.code == 0
    assert re.fullmatch(
        r"after 3 rounds: test accuracy 0\.\d{4}, test loss \d\.\d{4}, "
        r"tiers by class mix strong 0\.\d{4}, medium 0\.\d{4}, weak 0\.\d{4}, on their "
        r"own test examples strong 0\.\d{4}, medium 0\.\d{4}, weak 0\.\d{4}\n",
        done.out,
    )
    (events,) = folder.glob("events.out.tfevents.*")
    for tag in (b"train_loss", b"test_accuracy", b"macro_f1", b"tier_accuracy/weak"):
        assert tag in events.read_bytes()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "round_00000002.ckpt",
        "round_00000003.ckpt",
    ]
    records = records_of(folder)
    every = {"round", "train_loss", "upload_bytes", "download_bytes", "plans"}
    every |= {"compute_share", "wall_seconds", "participants", "tiers", "update_norm"}
    every |= {"round_seconds", "clock_seconds"}
    evaluation = {"test_accuracy", "test_loss", "class_accuracy", "tier_accuracy"}
    evaluation |= {"worst_tier_accuracy", "tier_spread", "macro_f1"}
    evaluation |= {"tier_test_accuracy", "worst_tier_test_accuracy"}
    assert [record["round"] for record in records] == [0, 1, 2]
    assert [set(r) == every for r in records] == [True, False, False]
    assert [set(r) == every | evaluation for r in records] == [False, True, True]
    bytes_a_client = 4 * (64 * 10 + 10)
    for record in records:
        assert record["upload_bytes"] == record["download_bytes"] == 3 * bytes_a_client
        assert record["plans"] == {"0-0": 3}
        assert 0 < record["train_loss"] < 5
        assert record["wall_seconds"] > 0
    last = records[-1]
    tiers = last["tier_accuracy"]
    assert list(tiers) == ["strong", "medium", "weak"]
    assert last["worst_tier_accuracy"] == min(tiers.values())
    assert last["tier_spread"] == max(tiers.values()) - min(tiers.values())
    own = last["tier_test_accuracy"]
    assert list(own) == ["strong", "medium", "weak"]
    assert last["worst_tier_test_accuracy"] == min(own.values())
    # The tiers share the test set, so that none is above it without another below.
    assert min(own.values()) <= last["test_accuracy"] <= max(own.values())
    assert f"after 3 rounds: test accuracy {last['test_accuracy']:.4f}" in done.out
    assert f"own test examples strong {own['strong']:.4f}" in done.out


def test_config_json_is_resolved_and_names_versions_and_device(call, tmp_path):
    mixed = "--tiers=fast:0.5:1:1:1,slow:0.5:0.66:0.5-1:0.66"
    arguments = (*FEDAVG, "--rounds=1", "--seed=5", mixed, f"--workdir={tmp_path}")
    assert call(train, *arguments).code == 0
    stored = json.loads((tmp_path / "config.json").read_text())
    fields = set(configs.Config.__dataclass_fields__)
    assert set(stored["config"]) == fields | {
        "dataset_sha256",
        "blocks_sha256",
        "cost_table_sha256",
        "fleet_sha256",
    }
    assert stored["config"]["clock"]["upload_rate"] == 1e6  # filled in
    assert stored["config"]["cost_table_sha256"] is None
    given = {"algorithm": "fedavg", "network": "logistic", "rounds": 1, "seed": 5}
    assert given.items() <= stored["config"].items()
    assert stored["config"]["lr"] == 0.1  # not given
    tiers = [
        {"name": "fast", "share": 0.5, "time": 1, "upload": 1, "memory": 1},
        {
            "name": "slow",
            "share": 0.5,
            "time": 0.66,
            "upload": [0.5, 1],
            "memory": 0.66,
        },
    ]
    more = {"download": 1, "availability": 1, "failure": 0, "watts": "nan"}
    assert stored["config"]["tiers"] == [tier | more for tier in tiers]
    (mean,), (std,) = stored["config"]["mean"], stored["config"]["std"]
    with np.load(_ROOT / "fljax" / "data" / "digits.npz") as digits:
        pixels = digits["x_train"] / 255
    assert (mean, std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-6)
    assert stored["config"]["client_width"] >= 1
    assert stored["config"]["cost_table"] == "operation counts"
    environment = stored["environment"]
    assert environment["jax"] == jax.__version__
    assert {"fljax", "flax", "optax", "numpy", "python"} < set(environment)
    assert environment["device"].endswith(jax.devices()[0].device_kind)


def test_without_a_terminal_a_round_is_a_line_and_compiling_is_announced(call):
    ended = call(train, *FEDAVG, "--rounds=4", "--eval_every=2", "--workdir=")
    lines = ended.err.splitlines()
    kind = jax.devices()[0].device_kind
    assert lines.pop(0) == (
        "[fedavg] logistic of 650 parameters; 1,437 examples of 12 clients; "
        f"on 1 x {kind}, 1 client at a time on each"
    )
    assert lines[0] == "[fedavg] round 0: compiling for plan 0-0"
    line = (
        r"\[fedavg\] round {} \({}/4 done\) loss \d\.\d{{3}}{} \d+\.\d s eta "
        r"\d+:\d\d"
    )
    accuracy = r" accuracy 0\.\d{3}"
    for done, shown in enumerate(lines[1:], start=1):
        wanted = line.format(done - 1, done, "" if done % 2 else accuracy)
        assert re.fullmatch(wanted, shown), shown
    assert len(lines) == 5
    assert "\r" not in ended.err


def test_a_finished_run_prints_its_result_again_and_goes_on_with_more_rounds(
    call, tmp_path
):
    command = (*FEDAVG, f"--workdir={tmp_path}")
    first = call(train, *command, "--rounds=2")
    before = contents(tmp_path)
    again = call(train, *command, "--rounds=2")
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert contents(tmp_path) == before
    more = call(train, *command, "--rounds=4")
    assert more.code == 0
    assert f"[fedavg] resuming {tmp_path} at round 2 of 4" in more.err.splitlines()
    assert "2/4 done" not in more.err  # it was run before
    assert [record["round"] for record in records_of(tmp_path)] == [0, 1, 2, 3]
    assert records_of(tmp_path)[:2] == [
        json.loads(line) for line in before["metrics.jsonl"][1].splitlines()
    ]


def assert_refused(done, *words):
    """Asserts that a command ended with one clear line and exit code 2.

    The words are the flag or the file, what was expected and what came.
    """
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--algorithm=cocofel", ("--algorithm", "did you mean 'cocofl'")),
        ("--network=mobilnet", ("--network", "did you mean 'mobilenetv2'")),
        ("--partition=dirichlett", ("--partition", "did you mean 'dirichlet'")),
        ("--dataset=digit", ("--dataset", "'digit'", "did you mean 'digits'")),
        ("--image_mode=gray", ("--image_mode", "stored, grey, rgb", "'gray'")),
        ("--image_size=-1", ("--image_size", "from 0", "-1")),
        ("--test_share=1", ("--test_share", "below 1", "1.0")),
        ("--augment=flip", ("--augment", "none, crop_flip", "'flip'")),
        ("--dataset=folder:/no", ("--dataset", "no folder /no")),
        ("--weighting=even", ("--weighting", "uniform, examples", "'even'")),
        ("--num_client=3", ("'num_client'", "num_clients")),
        ("stray", ("--rounds=10", "'stray'")),
        ("--flagfile=/no/such.flags", ("/no/such.flags",)),
        ("--lr=fast", ("--lr=fast",)),
        ("--lr=nan", ("--lr", "from 1e-30", "nan")),
        ("--lr=0", ("--lr", "from 1e-30", "0.0")),
        ("--alpha=-1", ("--alpha", "from 1e-06", "-1.0")),
        ("--rounds=0", ("--rounds", "whole number from 1", "0")),
        ("--frozen.bits=9", ("--frozen.bits", "from 2 to 8", "9")),
        ("--checkpoint_every=0", ("--checkpoint_every=0", "from 1")),
        ("--clients_per_round=13", ("--clients_per_round", "--num_clients=12", "13")),
        ("--momentum=1", ("--momentum", "below 1", "1.0")),
        ("--num_clients=1438", ("--num_clients", "1437", "1438")),
        ("--lr_schedule=800,600", ("--lr_schedule", "600,800", "'800,600'")),
        ("--lr_schedule=soon", ("--lr_schedule", "a whole number", "'soon'")),
        ("--lr_warmup=-1", ("--lr_warmup", "from 0", "-1")),
        ("--lr_schedule=-5", ("--lr_schedule", "from 0", "-5")),
        ("--seed=-1", ("--seed", "from 0", "-1")),
        ("--seed=1.5", ("--seed=1.5",)),
        ("--seed=4294967296", ("--seed", "to 4294967295", "4294967296")),
        ("--mean=0.1,0.2", ("--mean", "1 number", "'0.1,0.2'")),
        ("--std=0", ("--std", "from 1e-30", "0.0")),
        ("--partition=natural", ("--partition=natural", "users", "'digits'")),
        ("--tiers=fast:1:1:1", ("--tiers", "name:share:time", "'fast:1:1:1'")),
        ("--tiers=a:0.5:1:1:1", ("--tiers", "sum to 1", "0.5")),
        ("--tiers=a:0.5:1:1:1,a:0.5:1:1:1", ("--tiers", "different names", "'a'")),
        ("--tiers=a:1:x:1:1", ("--tiers", "a number or low-high", "'x'")),
        ("--tiers=a:1:0:1:1", ("--tiers", "low <= high", "0.0")),
        ("--tiers_file=/no/tiers.json", ("--tiers_file", "/no/tiers.json", "no file")),
        ("--cost_table=/no/table.json", ("/no/table.json", "no file")),
        ("--dataset=npz:/no/data.npz", ("--dataset", "/no/data.npz")),
        ("--rollback.drop=1", ("--rollback.drop", "below 1", "1.0")),
        ("--rollback.loss=1", ("--rollback.loss", "0 or a number above 1", "1.0")),
        ("--rollback.loss=nan", ("--rollback.loss", "0 or a number above 1", "nan")),
        ("--rollback.window=0", ("--rollback.window", "from 1", "0")),
        ("--clock.deadline=-1", ("--clock.deadline", "0 or a number", "-1.0")),
        ("--clock.dedline=.9", ("'clock.dedline'", "clock.deadline")),
        ("--clock.late=cary", ("--clock.late", "did you mean 'carry'")),
        (
            "--clock=deadline=.9,late=carry",
            ("--clock", "expected --clock.deadline=.9 --clock.late=carry"),
        ),
        ("--failures=.1", ("--failures", "flags such as --failures.drop=")),
        ("--bits=4", ("--bits", "--frozen.bits")),
        ("--noreference_quirks", ("--frozen.reference_quirks",)),
        ("--drop=.1", ("--drop", "--failures.drop or --rollback.drop")),
        ("--frozen.reference_quirks=8", ("--frozen.reference_quirks", "true or")),
        ("--clock.buffer=99", ("--clock.buffer", "at most 12", "99")),
        ("--fleet=lognormal::.7", ("--fleet", "three numbers", "':.7'")),
        ("--fleet=lognormal:800", ("--fleet", "compute", "0 to 10", "800")),
        ("--table_error=inf", ("--table_error", "from 0 to 10", "inf")),
        ("--rollback.lowers=all", ("--rollback.lowers", "server, tier", "'all'")),
        ("--rollback.lowers=tier", ("--rollback.lowers=tier", "budgets", "fedavg")),
        ("--rollback.limit=5", ("--rollback.limit", "--rollback.drop", "neither")),
        ("--rollback.factor=1", ("--rollback.factor", "below 1", "1.0")),
        ("--rollback.limit=-1", ("--rollback.limit", "from 0", "-1")),
        ("--alert_command=no_such_thing", ("--alert_command", "'no_such_thing'")),
        ("--workdir=/dev/null/run", ("/dev/null/run", "Not a directory")),
        ("--workdir=/dev/null", ("/dev/null", "is a file", "folder")),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(call, arguments, words):
    assert_refused(call(train, *FEDAVG, "--rounds=1", arguments), *words)


def test_a_width_is_no_more_than_a_round_has():
    settings = configs.Config(
        network="logistic", num_clients=9, clients_per_round=3, client_width=64,
        devices="1",
    )  # fmt: skip
    assert experiment.build(settings).federation.layout.width == 3
    wider = dataclasses.replace(settings, clock=clock.Clock(over_selection=1.5))
    assert experiment.build(wider).federation.layout.width == 5


class Own(nn.Module):
    """A network of the user's."""

    activation: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(10)(x.reshape(len(x), -1))
        return getattr(nn, self.activation)(x)


def test_another_network_of_ones_own_is_another_run(tmp_path):
    settings = configs.Config(algorithm="fedavg", num_clients=9, clients_per_round=3,
                              rounds=1)  # fmt: skip

    def run(activation):
        block = flax_block.FlaxBlock(Own(activation))
        net = network.Network("own", (block,), (8, 8, 1), 10)
        ready = experiment.build(settings, net=net)
        experiment.run(ready, str(tmp_path), tensorboard=False)

    run("relu")
    run("relu")
    with pytest.raises(ValueError, match="blocks_sha256"):
        run("tanh")


def _ready(**fields):
    """Makes a small experiment of 9 clients."""
    fields = {"algorithm": "fedavg", "network": "logistic", "rounds": 1, **fields}
    settings = configs.Config(num_clients=9, clients_per_round=3, **fields)
    return experiment.build(settings)


@pytest.mark.parametrize(
    "changes", [{"lr": 0.2, "seed": 2}, {"network": "cnn"}, {"dataset": "npz:x.npz"}]
)
def test_settings_stay_with_what_was_built_from_them(changes):
    ready = _ready()
    settings = dataclasses.replace(ready.settings, **changes)
    with pytest.raises(ValueError, match=rf"--{min(changes)}: expected .*build it aga"):
        dataclasses.replace(ready, settings=settings)


def test_one_experiment_serves_all_settings_that_nothing_is_built_from(tmp_path):
    ready = _ready()
    free = {"algorithm": "centralized", "rounds": 2}
    changed = dataclasses.replace(
        ready,
        settings=configs.replace(ready.settings, free | {"rollback.drop": 0.5}),
    )
    assert changed.federation is ready.federation
    result = experiment.run(changed, str(tmp_path), tensorboard=False)
    assert len(result.records) == 2
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert {name: stored[name] for name in free} == free
    assert experiment.rollback(ready) is None
    assert experiment.rollback(changed).drop == 0.5


def test_a_file_that_changes_after_the_build_is_not_what_ran(tmp_path):
    path = tmp_path / "tiers.json"
    tier = {"name": "all", "share": 1, "time": 1, "upload": 1, "memory": 1}
    path.write_text(json.dumps([tier]))
    ready = _ready(tiers_file=str(path))
    path.write_text(json.dumps([tier | {"name": "others"}]))
    assert [tier["name"] for tier in experiment.resolved(ready)["tiers"]] == ["all"]


def test_what_is_given_in_python_does_not_bear_the_name_of_a_setting():
    y = np.arange(8) % 2
    data = types.Dataset(_zeros(8, 8, 8, 1), y, _zeros(4, 8, 8, 1), y[:4], 2)
    settings = configs.Config(
        algorithm="fedavg", network="logistic", num_clients=2, clients_per_round=1
    )
    net = models.BY_NAME["logistic"]((8, 8, 1), 2)
    told = experiment.resolved(experiment.build(settings, data, net=net))
    assert told["dataset"] == "given in Python"
    assert told["network"] == "logistic (given in Python)"
    asked = dataclasses.replace(settings, test_share=0.5)
    with pytest.raises(ValueError, match=r"--test_share: expected 0.0 .* got 0.5"):
        experiment.build(asked, data)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"eval_batch_size": 1}, "the statistics of batches of 1 example, which"),
        ({"eval_batch_size": 359}, "the statistics of its last batch of 1 example,"),
        ({"eval_batch_size": 1, "network": "logistic"}, ""),
        ({"eval_batch_size": 1, "norm_statistics": "running"}, ""),
        ({"eval_batch_size": 16}, "the statistics of its last batch of 8 examples"),
        ({}, ""),
        (
            {"mean": (90.0,), "std": (40.0,)},
            "--mean and --std bring inputs to means of -2.2",
        ),
    ],
)
def test_what_evaluation_goes_by_is_noted(fields, line):
    notes = _ready(**{"network": "small_convnet", **fields}).notes
    assert any(line in note for note in notes) if line else notes == ()


def test_notes_are_said_once_before_training(call, tmp_path):
    write_npz(tmp_path / "a.npz", y_test=np.full(6, 3))
    folder = f"--workdir={tmp_path / 'run'}"
    asked = (*FEDAVG, f"--dataset=npz:{tmp_path / 'a.npz'}", "--rounds=1", folder)
    done = call(train, *asked)
    assert done.code == 2, done.err  # there is nothing that anybody could learn
    write_npz(tmp_path / "a.npz", y_test=np.array([3, 3, 0, 1, 2, 0]))
    done = call(train, *asked)
    assert done.code == 0, done.err
    line = "note: class 3 is in the test set only"
    assert done.err.count(line) == 1
    assert done.err.index(line) < done.err.index("compiling")
    (record,) = records_of(tmp_path / "run")
    own = record["tier_test_accuracy"]
    assert min(own.values()) == record["worst_tier_test_accuracy"]


def test_codes_are_not_adapted_where_there_are_none(call):
    asked = ("--policy=adaptive_bits", "--frozen.fixed_point=none")
    done = call(train, *SMALL, "--algorithm=cocofl", *asked)
    assert_refused(done, "--policy=adaptive_bits", "--frozen.fixed_point=none")


def test_a_policy_is_asked_for_beside_cocofl_only(call):
    done = call(compare, *SMALL, "--algorithms=cocofl,fedavg:balanced")
    assert_refused(done, "--algorithms", "cocofl", "fedavg:balanced")


def test_tiers_are_not_lowered_where_the_policy_ignores_them(call):
    asked = ("--policy=uniform", "--rollback.lowers=tier")
    done = call(train, *SMALL, "--algorithm=cocofl", *asked)
    assert_refused(done, "--rollback.lowers=tier", "--policy=uniform")


def test_both_kinds_of_tiers_are_refused(call):
    tiers = ("--tiers=a:1:1:1:1", "--tiers_file=x.json")
    assert_refused(call(train, *FEDAVG, *tiers), "--tiers", "--tiers_file", "both")


def test_the_rate_rises_to_what_is_asked_for_and_falls_as_scheduled():
    rates = list(map(learning_rate.steps(0.4, (2, 5), warmup=4), range(6)))
    assert rates == pytest.approx([0.1, 0.2, 0.03, 0.04, 0.04, 0.004])
    assert learning_rate.steps(0.4)(0) == 0.4


def test_momentum_is_refused_beside_adamw(call):
    arguments = ("--client_optimizer=adamw", "--momentum=0.9")
    assert_refused(call(train, *FEDAVG, *arguments), "--momentum", "adamw", "0.9")


def test_the_optimizer_of_the_clients_changes_what_they_train(call, tmp_path):
    losses = set()
    for name in ("sgd", "adamw"):
        folder = tmp_path / name
        done = call(
            train,
            *(*FEDAVG, "--rounds=1", f"--client_optimizer={name}", "--lr=0.01"),
            f"--workdir={folder}",
        )
        assert done.code == 0, done.err
        losses.add(records_of(folder)[0]["train_loss"])
    assert len(losses) == 2


def write_npz(path, drop=None, users=None, **changes):
    """Writes a data set of 24 grey images of 8 x 8 and 3 classes."""
    pixels = np.arange(24 * 64, dtype=np.uint8).reshape(24, 8, 8)
    arrays = {
        "x_train": pixels,
        "y_train": np.arange(24) % 3,
        "x_test": pixels[:6],
        "y_test": np.arange(6) % 3,
        **changes,
    }
    arrays |= {} if users is None else {"users": users}
    arrays.pop(drop, None)
    np.savez(path, **arrays)


def _zeros(*shape):
    return np.zeros(shape, np.uint8)


def _nan():
    x = np.zeros((24, 8, 8), np.float32)
    x[3, 2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "flags_too", "words"),
    [
        ({"drop": "y_test"}, (), ("lacks y_test", "'x_train'")),
        (
            {"y_train": np.zeros(23, int)},
            (),
            ("x_train and y_train", "24 and 23 rows"),
        ),
        (
            {"x_test": _zeros(6, 9, 9)},
            (),
            ("x_train and x_test", "[24, 8, 8, 1]", "[6, 9, 9, 1]"),
        ),
        ({"x_train": _nan()}, (), ("x_train holds 1 NaN", "(3, 2, 1)")),
        ({"y_train": np.full(24, 0.5)}, (), ("y_train", "integer", "float64[24]")),
        (
            {"y_train": np.zeros(24, int), "y_test": np.full(6, 2)},
            (),
            ("a test set with classes of the training set", "[2] there", "[0] here"),
        ),
        ({"y_test": np.full(6, -1)}, (), ("y_test", "from 0", "-1 at index 0")),
        (
            {"x_train": _zeros(24, 7, 7), "x_test": _zeros(6, 7, 7)},
            ("--network=mobilenetv2",),
            ("--network", "'mobilenetv2'", "8 x 8", "[7, 7, 1]"),
        ),
        (
            {"x_train": _zeros(24, 5), "x_test": _zeros(6, 5)},
            ("--network=small_convnet",),
            ("--network", "'small_convnet'", "[height, width, channels]", "[5]"),
        ),
        (
            {"users": np.arange(24) % 2},
            ("--partition=natural",),
            ("--clients_per_round", "at most the 2 users", "3"),
        ),
        ({"users": np.arange(5)}, (), ("users", "24 and 5 rows")),
        ({}, ("--num_clients=25",), ("num_clients", "24", "25")),
    ],
)  # fmt: skip
def test_bad_data_is_refused_in_one_line(call, tmp_path, changes, flags_too, words):
    path = tmp_path / "data.npz"
    write_npz(path, **changes)
    done = call(train, *FEDAVG, f"--dataset=npz:{path}", *flags_too)
    of_data = not flags_too
    assert_refused(done, *words, *([str(path), "--dataset"] if of_data else []))


@pytest.mark.parametrize(
    ("fields", "changes", "words"),
    [
        ({"lr": -1.0}, {}, "--lr: expected a number from 1e-30 to 1e.38, got -1"),
        ({"rounds": -1}, {}, "--rounds: expected a whole number from 1 to .*, got -1"),
        ({"algorithm": "fedvg"}, {}, "did you mean 'fedavg'"),
        ({}, {"y_train": np.zeros(5, int)}, "one row an example, got 8 and 5 rows"),
        ({}, {"x_test": _zeros(4, 9, 9, 1)}, "x_train and x_test must have the same"),
        ({}, {"num_classes": 1}, "num_classes must be above all labels, got 1 and a"),
    ],
)
def test_what_a_notebook_makes_is_checked_as_flags_and_files_are(
    fields, changes, words
):
    settings = configs.Config(num_clients=2, clients_per_round=1, **fields)
    y = np.arange(8) % 2
    data = types.Dataset(_zeros(8, 8, 8, 1), y, _zeros(4, 8, 8, 1), y[:4], 2)
    with pytest.raises(ValueError, match=words):
        experiment.build(settings, data._replace(**changes))


def test_other_data_under_the_same_path_are_refused_on_resume(call, tmp_path):
    path, run = tmp_path / "data.npz", tmp_path / "run"
    write_npz(path)
    command = (*FEDAVG, f"--dataset=npz:{path}", f"--workdir={run}")
    assert call(train, *command, "--rounds=1").code == 0
    write_npz(path, y_train=np.arange(24)[::-1] % 3)
    done = call(train, *command, "--rounds=2")
    assert_refused(done, str(run), "dataset_sha256", "in the folder", "now")
    write_npz(path)
    assert call(train, *command, "--rounds=2").code == 0


def test_another_cost_table_under_the_same_path_is_refused_on_resume(call, tmp_path):
    path, run = tmp_path / "table.json", tmp_path / "run"
    command = (*FEDAVG, f"--cost_table={path}", f"--workdir={run}")
    path.write_text('{"blocks": 1, "windows": [[0, 0, 1, 1, 1]]}')
    assert call(train, *command, "--rounds=1").code == 0
    path.write_text('{"blocks": 1, "windows": [[0, 0, 1, 1, 0.5]]}')
    assert_refused(call(train, *command, "--rounds=2"), str(run), "cost_table_sha256")


def test_augmentation_needs_images(call, tmp_path):
    write_npz(tmp_path / "a.npz", x_train=_zeros(24, 5), x_test=_zeros(6, 5))
    data = f"--dataset=npz:{tmp_path / 'a.npz'}"
    done = call(train, *FEDAVG, data, "--augment=crop_flip")
    assert_refused(done, "--augment=crop_flip", "images", "[5]")


class _Bag(nn.Module):
    """The smallest network for tokens: embeds them, averages, and classifies."""

    vocabulary: int
    num_classes: int

    @nn.compact
    def __call__(self, x, call):
        del call
        x = nn.Embed(self.vocabulary, 4)(x).mean(1)
        return nn.Dense(self.num_classes)(x)


def _bag(input_shape, num_classes, tracked=False, vocabulary=0):
    del tracked
    blocks = (_Bag(vocabulary, num_classes),)
    return network.Network(
        "bag", blocks, input_shape, num_classes, vocabulary=vocabulary
    )


@pytest.fixture
def play(tmp_path):
    """Writes LEAF's JSON of 12 roles, who all speak the same line."""
    line = "What light through yonder window breaks?"
    x, y = [line[i : i + 5] for i in range(30)], list(line[5:35])
    users = {f"ROLE {i}": {"x": x, "y": y} for i in range(12)}
    path = tmp_path / "play.json"
    path.write_text(json.dumps({"user_data": users}))
    return path


def test_tokens_reach_a_network_that_takes_a_vocabulary(
    call, tmp_path, play, monkeypatch
):
    monkeypatch.setitem(models.BY_NAME, "logistic", _bag)
    cache, run = tmp_path / "cache", tmp_path / "run"
    command = (*FEDAVG, f"--dataset=leaf:{play}", "--partition=natural", "--rounds=2")
    done = call(train, *command, f"--data_cache={cache}", f"--workdir={run}")
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    stored = json.loads((run / "config.json").read_text())["config"]
    assert (stored["num_clients"], stored["mean"], stored["std"]) == (12, [0], [1])
    assert records_of(run)[1]["train_loss"] < records_of(run)[0]["train_loss"]
    uncached = tmp_path / "uncached"
    assert call(train, *command, f"--workdir={uncached}").code == 0
    assert _without_time(records_of(uncached)) == _without_time(records_of(run))
    assert not (run / "vocabulary.json").exists()  # characters have a fixed one
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    (entry / "manifest.json").write_text("{}")
    done = call(train, *command, f"--data_cache={cache}")
    assert_refused(done, "--dataset", "manifest.json", f"delete {entry}")


def test_tokens_are_refused_by_a_network_for_images(call, play):
    data = f"--dataset=leaf:{play}"
    assert_refused(call(train, *FEDAVG, data), "--network", "tokens", "'logistic'")


def test_images_are_refused_by_a_network_for_tokens(call):
    done = call(train, "--network=transformer", "--dataset=digits")
    assert_refused(done, "--network", "numbers", "'transformer'")


def test_a_trained_vocabulary_is_kept_in_the_run_folder_and_used_again(
    call, tmp_path, monkeypatch
):
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(models.BY_NAME, "logistic", _bag)
    path, run = tmp_path / "texts.jsonl", tmp_path / "run"
    line = json.dumps({"text": "some words and others", "label": 1})
    path.write_text(
        "\n".join([line, line.replace("1", "0").replace("some", "no")] * 20)
    )
    command = (
        *(
            *FEDAVG,
            f"--dataset=jsonl:{path}",
            "--test_share=0.2",
            "--text.max_tokens=8",
        ),
        *("--text.vocabulary_size=40", f"--workdir={run}"),
    )
    assert call(train, *command, "--rounds=1").code == 0
    kept = (run / "vocabulary.json").read_bytes()
    assert b"[PAD]" in kept
    monkeypatch.setattr(text, "train_vocabulary", None)
    done = call(train, *command, "--rounds=2")
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert (run / "vocabulary.json").read_bytes() == kept
    (run / "vocabulary.json").write_bytes(b"{}")
    assert_refused(call(train, *command, "--rounds=3"), "expected a vocabulary")


def test_an_npz_that_is_none_is_refused(call, tmp_path):
    path = tmp_path / "data.npz"
    path.write_text("x_train")
    assert_refused(call(train, *FEDAVG, f"--dataset=npz:{path}"), str(path), "no npz")
    write_npz(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(call(train, *FEDAVG, f"--dataset=npz:{path}"), str(path))


def test_good_data_from_a_file_trains(call, tmp_path):
    write_npz(tmp_path / "data.npz", users=np.repeat([7, 3, 9], 8))
    data = (f"--dataset=npz:{tmp_path / 'data.npz'}", "--partition=natural")
    run = tmp_path / "run"
    done = call(train, *FEDAVG, *data, "--rounds=1", f"--workdir={run}")
    assert (done.code, "Traceback" in done.err) == (0, False)
    (record,) = records_of(run)
    assert record["plans"] == {"0-0": 3}
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["num_clients"] == 3  # of the users, whatever the flag says


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"blocks": 1, "windows": [[0, 1, 1, 1, 1]]}, ("last < 1", "0-1 in row 0")),
        ({"blocks": 1, "windows": [[0, 0, 1, -1, 1]]}, ("from 1e-9", "upload", "-1")),
        ({"blocks": 1, "windows": [[0, 0, 1, 1]]}, ("[first, last, time", "row 0")),
        ({"blocks": 1}, ("blocks and windows", "['blocks']")),
        (
            {"blocks": 8, "windows": [[0, 7, 1, 1, 1]]},
            ("--cost_table", "logistic's 1 blocks", "of 8"),
        ),
    ],
)
def test_a_bad_cost_table_is_refused_in_one_line(call, tmp_path, table, words):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    done = call(train, *SMALL, "--algorithm=cocofl", f"--cost_table={path}")
    assert_refused(done, str(path), *words)


@pytest.mark.parametrize("text", ["{", "[]", '[{"name": "a"}]'])
def test_a_bad_tiers_file_is_refused_in_one_line(call, tmp_path, text):
    path = tmp_path / "tiers.json"
    path.write_text(text)
    done = call(train, *FEDAVG, f"--tiers_file={path}")
    assert_refused(done, "--tiers_file", str(path))


def test_budgets_that_no_window_fits_are_refused_with_the_smallest_that_would(
    call, tmp_path
):
    path = tmp_path / "table.json"
    windows = [[0, 7, 1, 1, 1], [4, 7, 0.5, 0.25, 0.5], [7, 7, 0.25, 0.3, 0.125]]
    path.write_text(json.dumps({"blocks": 8, "windows": windows}))
    convnet = (*SMALL, "--network=small_convnet", "--algorithm=cocofl")
    tiers = "--tiers=able:0.5:1:1:1,tiny:0.5:0.2:0.2-1:0.2"
    done = call(train, *convnet, f"--cost_table={path}", tiers)
    # 4-7 needs 2.5 times the time; 7-7 no more than 1.5 times the upload.
    assert_refused(
        done,
        *("--tiers", "'tiny'", str(path), "fits time 0.2, upload 0.2, memory 0.2"),
        "7-7, which needs time 0.25, upload 0.3, memory 0.125",
        "multiply the budgets by 1.5",
    )


def test_a_drop_of_everybody_is_refused(call):
    done = call(train, *SMALL, "--algorithm=fedavg_drop", "--tiers=low:1:0.5:1:1")
    assert_refused(done, "--tiers", "fedavg_drop", "budgets of 1", "low")


def test_another_configuration_is_refused_with_the_difference_named(call, tmp_path):
    tiers = tmp_path / "tiers.json"
    tier = {"name": "one", "share": 1, "time": 1, "upload": 1, "memory": 1}
    tiers.write_text(json.dumps([tier]))
    run = tmp_path / "run"
    command = (*FEDAVG, f"--workdir={run}", f"--tiers_file={tiers}")
    assert call(train, *command, "--rounds=2").code == 0
    before = contents(run)
    done = call(train, *command, "--rounds=3", "--lr=0.2", "--seed=12")
    assert_refused(
        done,
        str(run),
        "lr: 0.1 in the folder, 0.2 now",
        "seed: 11 in the folder, 12 now",
        "another folder",
    )
    done = call(train, *command, "--rounds=2", "--clock.deadline=.9")
    assert_refused(done, "clock.deadline: 0.0 in the folder, 0.9 now")
    assert_refused(
        call(train, *command, "--rounds=1"), "rounds: 2 in the folder, 1 now"
    )
    tiers.write_text(json.dumps([{**tier, "time": 0.5}]))  # the same path
    done = call(train, *command, "--rounds=2")
    assert_refused(done, "tiers: ", "'time': 0.5")
    assert contents(run) == before
    assert call(train, *command[:-1], "--rounds=2").code == 2  # tiers of the paper


def test_a_folder_from_before_sections_is_refused_in_one_line(call, tmp_path):
    stored = {"config": {"lr": 0.1, "failures": "drop=.1", "clock": {}}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    done = call(train, *FEDAVG, f"--workdir={tmp_path}")
    assert_refused(done, str(tmp_path), "another version of fljax", "failures")


def test_a_folder_of_something_else_is_refused(call, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    done = call(train, *FEDAVG, f"--workdir={tmp_path}")
    assert_refused(done, str(tmp_path), "'thesis.tex'", "empty folder")
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num_clients=30", "--nosuch=1"), ("'nosuch'",)),
        (("--network=mobilenet",), ("--network", "did you mean 'mobilenetv2'")),
        (
            ("--network=cnn", "--tiers=a:1:0.01:1:1"),
            ("--tiers", "by operation counts"),
        ),
    ],
)
def test_bad_input_is_one_line_in_a_process_of_its_own(tmp_path, arguments, words):
    command = [sys.executable, "-m", "experiments.train", *SMALL, *arguments]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused(conftest.Outcome(done.returncode, done.stdout, done.stderr), *words)
    assert os.listdir(tmp_path) == []


def _damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _without_time(records):
    return [{k: v for k, v in r.items() if k != "wall_seconds"} for r in records]


def test_damaged_checkpoints_fall_back_and_if_all_are_nothing_is_touched(
    call, tmp_path
):
    one, other = tmp_path / "one", tmp_path / "other"
    call(train, *FEDAVG, "--rounds=5", f"--workdir={one}")
    call(train, *FEDAVG, "--rounds=3", f"--workdir={other}")
    newest = other / "checkpoints" / "round_00000003.ckpt"
    _damage(newest)
    done = call(train, *FEDAVG, "--rounds=5", f"--workdir={other}")
    assert done.code == 0
    assert (
        "[fedavg] passed over round_00000003.ckpt: damaged (wrong sha256); "
        "using round_00000002.ckpt"
    ) in done.err.splitlines()
    assert _without_time(records_of(other)) == _without_time(records_of(one))
    last = pathlib.Path("checkpoints", "round_00000005.ckpt")
    assert (one / last).read_bytes() == (other / last).read_bytes()

    for path in (other / "checkpoints").iterdir():
        _damage(path)
    before = contents(other)
    done = call(train, *FEDAVG, "--rounds=5", f"--workdir={other}")
    names = ("round_00000004.ckpt", "round_00000005.ckpt")
    assert_refused(done, "no checkpoint in", str(other), *names, "wrong sha256")
    assert contents(other) == before


def test_a_run_that_diverges_names_round_clients_and_plans(call, tmp_path):
    # One step a round: the first is huge but finite, the second overflows.
    wild = ("--lr=1e30", "--batch_size=200", "--rounds=5", f"--workdir={tmp_path}")
    done = call(train, *FEDAVG, *wild)
    assert done.code == 1
    *_, line = done.err.splitlines()
    assert re.match(
        r"error: round 1: loss or update is not finite for clients? \d+ \(plan 0-0\)",
        line,
    )
    assert "Traceback" not in done.err
    good, last = records_of(tmp_path)
    assert (good["round"], last["round"]) == (0, 1)
    assert "stopped" not in good
    assert f"error: round 1: {last['stopped']}" == line
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.name == "round_00000001.ckpt"


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("run", "stopped; the same command goes on from here"),
        ("", "stopped; without --workdir nothing is kept"),
    ],
)
def test_ctrl_c_is_one_line(call, monkeypatch, folder, line):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fljax, "run", stop)
    done = call(train, *FEDAVG, f"--workdir={folder}")
    assert (done.code, done.out, done.err) == (130, "", line + "\n")


COMPARED = (
    *SMALL,
    "--algorithms=fedavg,fedavg_drop",
    "--seeds=1,2",
    "--rounds=3",
    "--eval_every=2",
    "--partition=resource_correlated",
)


def test_compare_prints_and_writes_the_statistics_of_the_runs(call, tmp_path):
    done = call(compare, *COMPARED, f"--workdir={tmp_path}")
    assert done.code == 0
    assert done.err.count("[fedavg_drop seed 2] round 2 (3/3 done)") == 1
    written = json.loads((tmp_path / "summary.json").read_text())
    assert list(written) == ["algorithms"]
    summary = written["algorithms"]
    assert list(summary) == ["fedavg", "fedavg_drop"]

    header, *rest, note = done.out.splitlines()
    rows, legend = rest[:2], rest[2:]
    assert header.split()[0] == "algorithm"
    for title, _, _ in comparison.COLUMNS:  # each is defined where it is shown
        assert title in header
        assert sum(line.startswith(f"{title}: ") for line in legend) == 1
        assert f"{title}: " in compare.__doc__
    assert legend[-1].startswith("±: sample standard deviation")
    assert str(tmp_path / "summary.json") in note
    for row, (name, figures) in zip(rows, summary.items(), strict=True):
        runs = [records_of(tmp_path / name / f"seed_{seed}") for seed in (1, 2)]
        assert [len(run) for run in runs] == [3, 3]
        keys = ("test_accuracy", "worst_tier_accuracy", "worst_tier_test_accuracy")
        for key in keys:
            a, b = (run[-1][key] for run in runs)
            std = abs(a - b) / 2**0.5  # the sample's
            assert set(figures[key]) == {"mean", "std", "interval_95"}
            assert math.isclose(figures[key]["mean"], (a + b) / 2, rel_tol=1e-12)
            assert math.isclose(figures[key]["std"], std, rel_tol=1e-9)
            assert f"{(a + b) / 2:.4f} ± {std:.4f}" in row
        upload = [sum(record["upload_bytes"] for record in run) for run in runs]
        assert figures["upload_bytes"] == statistics.fmean(upload)
        seconds = statistics.fmean(
            sum(record["wall_seconds"] for record in run) for run in runs
        )
        assert math.isclose(figures["wall_seconds"]["mean"], seconds)
        assert figures["compute_share"]["mean"] == 1
        cells = row.split()
        assert cells[0] == name
        clock = statistics.fmean(run[-1]["clock_seconds"] for run in runs)
        assert figures["clock_seconds"]["mean"] == pytest.approx(clock)
        assert cells[-4:] == [
            f"{statistics.fmean(upload) / 1e6:.2f}",
            "1.000",
            f"{clock:.4g}",
            f"{seconds:.1f}",
        ]
    # 3 rounds of 3 clients, of whom all are able; a third of 12 clients is 3.
    assert summary["fedavg"]["upload_bytes"] == 3 * 3 * 2600
    png = (tmp_path / "curves.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) > (600, 300)

    before = contents(tmp_path)
    again = call(compare, *COMPARED, f"--workdir={tmp_path}")
    assert (again.code, again.out, again.err) == (0, done.out, "")
    for name, content in contents(tmp_path).items():
        if name not in ("summary.json", "curves.png", "report.html"):  # written again
            assert content == before[name], name
    assert (tmp_path / "summary.json").read_text() == json.dumps(
        written, indent=2
    ) + "\n"

    more = call(compare, *COMPARED, f"--workdir={tmp_path}", "--against=fedavg")
    assert more.code == 0
    title, ahead = more.out[more.out.index("\n\n") + 2 :].splitlines()[:2]
    assert title.startswith("less the same seed's ")
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["algorithms"] == written["algorithms"]
    assert found["differences"]["against"] == "fedavg"
    of = found["differences"]["algorithms"]["fedavg_drop"]["test_accuracy"]
    means = [figures["test_accuracy"]["mean"] for figures in summary.values()]
    assert of["mean"] == pytest.approx(means[1] - means[0])
    assert ahead.split()[:2] == ["fedavg_drop", f"{of['mean']:+.3f}"]


def test_compare_adds_up_the_energy_of_devices_whose_power_is_known(call, tmp_path):
    tier = dict.fromkeys(("time", "upload", "memory"), 1)
    tiers = [
        {"name": "wall", "share": 0.5, **tier},
        {"name": "battery", "share": 0.5, **tier, "watts": 2},
    ]
    (tmp_path / "tiers.json").write_text(json.dumps(tiers))
    done = call(
        compare,
        *(flag for flag in SMALL if not flag.startswith("--tiers=")),
        "--algorithms=fedavg,centralized",
        f"--tiers_file={tmp_path}/tiers.json",
        f"--workdir={tmp_path}/run",
        "--seeds=1",
        "--rounds=2",
    )
    assert done.code == 0, done.err
    header, fedavg, centralized, *_ = done.out.splitlines()
    records = records_of(tmp_path / "run" / "fedavg" / "seed_1")
    joules = sum(record["joules"] for record in records)
    assert joules > 0
    assert header.split()[-1] == "joules"
    assert fedavg.split()[-1] == f"{joules:.4g}"
    assert len(centralized.split()) == len(fedavg.split()) - 1  # no device


def test_compared_algorithms_share_splits_devices_and_seeds(call, tmp_path):
    all_able = ("--tiers=one:1:1:1:1", "--rounds=2", f"--workdir={tmp_path}")
    assert call(compare, *COMPARED, *all_able).code == 0
    held = {
        path.parent.relative_to(tmp_path).as_posix(): json.loads(path.read_text())
        for path in tmp_path.rglob("config.json")
    }
    assert sorted(held) == [
        *("fedavg/seed_1", "fedavg/seed_2"),
        *("fedavg_drop/seed_1", "fedavg_drop/seed_2"),
    ]
    for name, stored in held.items():
        algorithm, seed = name.split("/seed_")
        other = held["fedavg/seed_1"]["config"]
        mine = {**other, "algorithm": algorithm, "seed": int(seed)}
        assert stored["config"] == mine
    # Where every device is able, nobody is dropped, and both are the same algorithm.
    records = {name: _without_time(records_of(tmp_path / name)) for name in held}
    assert records["fedavg/seed_1"] == records["fedavg_drop/seed_1"]
    assert records["fedavg/seed_2"] == records["fedavg_drop/seed_2"]
    assert records["fedavg/seed_1"] != records["fedavg/seed_2"]


def test_centralized_may_have_rounds_of_its_own(call, tmp_path):
    names = ("--algorithms=fedavg,centralized", "--centralized_rounds=2", "--seeds=1")
    assert call(compare, *COMPARED, *names, f"--workdir={tmp_path}").code == 0
    assert len(records_of(tmp_path / "fedavg" / "seed_1")) == 3
    assert len(records_of(tmp_path / "centralized" / "seed_1")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--algorithms=fedavg,fedavgdrop",), ("--algorithms", "'fedavg_drop'")),
        (("--algorithms=",), ("--algorithms", "at least one")),
        (("--against=fedprox",), ("--against", "fedavg, fedavg_drop", "'fedprox'")),
        (("--seeds=1,x",), ("--seeds", "10,11", "'1,x'")),
        (("--seeds=1,1",), ("--seeds", "different", "'1,1'")),
        (("--seeds=-1",), ("--seeds", "'-1'")),
        (("--seeds=",), ("--seeds", "''")),
        (("--seeds=1,4294967296",), ("--seed", "4294967295", "4294967296")),
        (("--clients_per_round=13",), ("--clients_per_round", "13")),
        (
            ("--algorithms=fedavg,cocofl", "--network=cnn", "--tiers=a:1:0.01:1:1"),
            ("--tiers", "no plan"),
        ),
    ],
)
def test_compare_refuses_bad_input_before_any_training(
    call, tmp_path, arguments, words
):
    done = call(compare, *COMPARED, f"--workdir={tmp_path}", *arguments)
    assert_refused(done, *words)
    assert os.listdir(tmp_path) == []
