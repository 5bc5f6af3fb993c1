"""Several devices and several hosts give what one device gives."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import mesh

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_devices(number, program):
    """Runs a program on that many CPU devices, in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={number}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAME_AS_ONE = """
import jax, numpy as np
from experiments import config, experiment
from fljax import simulation

settings = dict(
    network="cnn", algorithm="cocofl", num_clients=30, clients_per_round=12, rounds=2,
    partition="dirichlet", alpha=1.0, weighting="examples", seed=3,
)
outcomes = []
for devices, width in (("1", 1), ("8", 1), ("8", 2)):
    made = config.Config(**settings, devices=devices, client_width=width)
    ready = experiment.build(made)
    algorithm = experiment.algorithm(made, ready)
    outcomes.append(simulation.run(algorithm, made.rounds, ready.evaluator))
    assert len(jax.tree.leaves(outcomes[-1][0])[0].devices()) == int(devices)
(one, first), *others = outcomes
for state, records in others:
    worst = max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(state))
    )
    assert worst < 1e-5, worst
    for ours, theirs in zip(first, records):
        assert ours["plans"] == theirs["plans"]
        assert abs(ours["train_loss"] - theirs["train_loss"]) < 1e-5
        assert abs(ours["test_loss"] - theirs["test_loss"]) < 1e-5
print("same", sorted(first[0]["plans"]))
"""


def test_eight_devices_give_what_one_gives():
    assert on_devices(8, SAME_AS_ONE).startswith("same")


def test_what_lies_there_already_is_not_moved():
    over = mesh.make()
    tree = {"a": np.arange(3), "key": jax.random.key(1), "b": jnp.float32(2)}
    there = mesh.replicate(over, tree)
    again = mesh.replicate(over, there)
    assert all(x is y for x, y in zip(there.values(), again.values(), strict=True))
    np.testing.assert_array_equal(there["a"], [0, 1, 2])
    assert there["a"].dtype == jnp.int32
    assert jnp.array_equal(jax.random.key_data(there["key"]), [0, 1])


@pytest.mark.parametrize("over", [mesh.make()])
def test_rows_go_to_their_devices(over):
    rows = mesh.distribute(over, np.arange(over.size)[:, None])
    assert [int(shard.data[0, 0]) for shard in rows.addressable_shards] == list(
        range(over.size)
    )
