"""Session-wide strictness, and the small problem that the engine's tests share.

Rank promotion stays allowed: layers broadcast vectors of channels [C] against
activations [B, ..., C] everywhere, as linen does, and would need a `[None]` an axis.
"""

import functools
import os
import pathlib
import sys
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from experiments import interrupts, main
from fljax import devices, plans, types
from fljax.data import partition
from fljax.devices import fleet
from fljax.engine import client, federation, initial
from fljax.engine.program import single
from fljax.experiment import environment
from fljax.kernels import specs
from fljax.models import mobilenetv2, small_convnet
from fljax.nn import network
from fljax.runtime import mesh, programs

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"

jax.config.update("jax_debug_key_reuse", True)
# What an earlier session of tests left in the user's cache takes no part in this one.
flags.FLAGS.set_default("compilation_cache", "")
programs.keep("")
hypothesis.settings.register_profile(
    "fljax", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.load_profile("fljax")


# No LLVM optimization, which takes two fifths of a compilation, and the older emitters
# of fusions, whose code is a quarter as long to compile.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """Turns warnings into errors, and leaves long tests to `-m long`.

    Long tests run what users run. The others, which compile for most of their time, do
    it the quick way.
    """
    config.addinivalue_line("filterwarnings", "error")
    if not config.option.markexpr:
        config.option.markexpr = "not long"
        os.environ.setdefault("XLA_FLAGS", _QUICK)


@pytest.fixture(scope="session")
def shared():
    """Gives the folder of reference facts beside the repository, or skips."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference's figures in {SHARED}")
    return SHARED


@pytest.fixture
def kept(tmp_path):
    """Gives the folder that compiled programs are kept in, of this test alone."""
    name = "jax_compilation_cache_dir"
    old = jax.config.values[name]
    jax.config.update(name, str(tmp_path))
    compilation_cache.reset_cache()  # JAX would stay with the folder before
    yield tmp_path
    jax.config.update(name, old)
    compilation_cache.reset_cache()


class Problem(NamedTuple):
    """A network and clients of uneven size, small enough to compile in seconds.

    Attributes:
      net: five blocks of the small_convnet on images of 8 x 8, three classes.
      training: two epochs in batches of 4.
      blocks: calibrated state of the network.
      data: 40 examples.
      shards: of 6 clients, 3 to 10 examples each.
    """

    net: network.Network
    training: client.Training
    blocks: tuple[dict, ...]
    data: client.Data
    shards: partition.Shards


COUNTS = (10, 3, 8, 5, 4, 10)
# Stem and classifier in floats; three blocks that freeze, so that a window can have a
# fixed point block on either side. It compiles in half the time of `small_convnet`.
NET = network.Network(
    "half_convnet",
    (
        mobilenetv2.Outer(8, 3),
        small_convnet.ConvBlock(8, 1),
        small_convnet.ConvBlock(16, 2),
        small_convnet.ConvBlock(16, 2),
        mobilenetv2.Classifier(3),
    ),
    (8, 8, 1),
    3,
)
FULL, MIDDLE, LATE = plans.Plan(0, 4), plans.Plan(2, 2), plans.Plan(3, 4)


@functools.cache
def _mesh():
    return mesh.make()


def __getattr__(name):
    """Gives MESH, made when it is asked for: the first device reads XLA_FLAGS."""
    if name == "MESH":
        return _mesh()
    raise AttributeError(name)


def make_data(seed: int = 0, examples: int = 40, classes: int = 3) -> client.Data:
    """Draws images whose class shows in their mean."""
    generator = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    x = generator.normal(size=(examples, 8, 8, 1)) + labels[:, None, None, None]
    return client.Data(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(1),
        jnp.full(1, 1.5),
    )


def start(net: network.Network, spec: specs.Spec = specs.DEFAULT) -> tuple[dict, ...]:
    """Draws and calibrates a network by the program that algorithms start with.

    Operation by operation it would compile a hundred.
    """
    return initial.jitted()(jax.random.key(0), net=net, spec=spec)


@pytest.fixture(scope="session")
def problem():
    """Makes the problem once: what has the same shapes compiles once a session."""
    spec = specs.DEFAULT
    blocks = start(NET, spec)
    order = np.random.default_rng(1).permutation(40)
    return Problem(
        NET,
        client.Training(batch_size=4, local_epochs=2, spec=spec),
        blocks,
        make_data(),
        partition.index_table(np.split(order, np.cumsum(COUNTS))[:-1]),
    )


def shard(shards: partition.Shards, number: int, capacity: int | None = None):
    """Gives a client's examples, padded to the largest shard's, and their count."""
    start, count = shards.starts[number], shards.counts[number]
    indices = np.zeros(capacity or max(shards.counts), np.int32)
    indices[:count] = shards.indices[start : start + count]
    return jnp.asarray(indices), jnp.asarray(count)


@functools.partial(jax.jit, static_argnames=("net", "plan", "training"))
def train_one(blocks, data, indices, count, key, rate, *, net, plan, training):
    """Trains one client as an engine without cohorts would."""
    static = client.Static(net, single.Single(plan), training)
    roles = plans.roles(plan, net.num_blocks)
    frozen = network.freeze(net, blocks, roles, static.spec)
    start = client.Start(blocks, frozen, data, rate)
    return client.train(static, start, client.Client(indices, count, key))


def federated(net, problem, table, tiers, **changes):
    """Makes a federation of the problem's clients."""
    rules = federation.Rules(3, lambda index: 0.1)
    everyone = fleet.of_tiers(len(problem.shards.counts), tiers)
    fed = federation.Federation(
        federation.Population(problem.data, problem.shards, everyone),
        federation.Model(net, network.counts(net), table),
        problem.training,
        rules,
        federation.Layout(_mesh()),
        seed=3,
    )
    return fed.having(**changes)


def draw_budgets(key, ids, index, tiers=devices.REFERENCE_TIERS):
    """Draws the limits of clients of tiers."""
    ranges = np.stack([devices.limits(tier) for tier in tiers])[index[np.asarray(ids)]]
    return devices.draw_between(key, ids, ranges)


def assert_close(ours, theirs, tolerance: float = 1e-5) -> None:
    """Asserts that two trees agree in structure and, by leaf, to the tolerance."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=where)


def assert_same_bits(ours: types.Tree, theirs: types.Tree) -> None:
    """Asserts that two trees agree in structure, dtypes and every bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys, monkeypatch):
    """Gives a function that runs a command line in this process."""

    def run(module, *arguments, **options):
        flags.FLAGS.unparse_flags()
        command = [f"python -m {module.__name__}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(interrupts, "leave", lambda: sys.exit(interrupts.CODE))
        monkeypatch.setattr(environment, "notes", list)  # of XLA_FLAGS, see above
        with pytest.raises(SystemExit) as stop:
            main.run(module._main, **options)
        return Outcome(stop.value.code, *capsys.readouterr())

    return run
