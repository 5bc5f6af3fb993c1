"""Windows that share a program: as their own programs, client by client."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import workloads
from fljax import devices, experiment, models, plans
from fljax.engine import client, cohort, federation, group, program
from fljax.engine import sums as totals
from fljax.engine import width as side_by_side
from fljax.engine.program import mixed, single
from fljax.kernels import specs
from fljax.models import densenet, transformer
from fljax.nn import layers, network, signals
from fljax.runs import simulation
from fljax.runtime import backends, programs
from tests import conftest
from tests.engine.test_cohort import RATE, begun, run, started

ASSIGNED = {0: conftest.LATE, 1: conftest.MIDDLE, 3: conftest.FULL, 4: plans.Plan(1, 2)}


def run_mixed(problem, assigned, width, limits=((np.inf,) * 5,) * 2, spoilt=()):
    """Runs clients of several windows in one program; returns the totals."""
    weights = problem.shards.counts.astype(np.float32)
    ids = np.array(list(assigned))
    tampering = np.where(np.isin(ids, spoilt), np.nan, 1.0)
    clients = cohort.gather(
        ids,
        problem.shards,
        weights,
        factors=cohort.Factors(tampering),
        windows=np.array([(p.first, p.last) for p in assigned.values()]),
    )
    (few,) = cohort.spread([np.arange(len(ids))], clients.counts, 1, width)
    bits = min(plan.bits for plan in assigned.values())
    of_any = mixed.Mixed(bits, capacity=max(conftest.COUNTS))
    sums = group.run_group(
        begun(problem, limits=limits),
        started(problem, len(ids)),
        clients,
        few,
        static=client.Static(problem.net, of_any, problem.training, width),
        devices=conftest.MESH,
    )
    return totals.total(sums)


@pytest.fixture(scope="module")
def by_window(problem):
    """The same clients, every window in its own program."""
    sums = None
    for number, plan in ASSIGNED.items():
        sums = run(problem, plan, [number], cohort_ids=tuple(ASSIGNED), sums=sums)
    return totals.total(sums)


@pytest.mark.parametrize("width", [1, 3])
def test_it_gives_what_each_windows_own_program_gives(problem, by_window, width):
    ours = run_mixed(problem, ASSIGNED, width)
    conftest.assert_close(ours, by_window, 2e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_narrow_codes_are_those_of_each_windows_own_program(problem, width):
    assigned = {number: ASSIGNED[number].at(2) for number in (0, 1, 4)}
    sums = None
    for number, plan in assigned.items():
        sums = run(problem, plan, [number], cohort_ids=tuple(assigned), sums=sums)
    ours = run_mixed(problem, assigned, width)
    conftest.assert_close(ours, totals.total(sums), 2e-5)


def test_what_the_client_before_left_does_not_matter(problem):
    static = client.Static(problem.net, mixed.Mixed(), problem.training)

    @jax.jit
    def trained(filled, window):
        blocks = problem.blocks
        data = jax.tree.map(jnp.asarray, problem.data)
        frozen = client.freeze(static, blocks, None)
        places = client.places(static, blocks, frozen)
        places = jax.tree.map(lambda x: jnp.where(filled, _worst(x), x), places)
        indices, count = conftest.shard(problem.shards, 0)
        start = client.Start(blocks, frozen, data, jnp.float32(RATE))
        own = client.Client(indices, count, jax.random.key(3), window)
        result = client.train(static, start, own, places)
        return result._replace(places=None)

    for window in (conftest.MIDDLE, conftest.LATE, conftest.FULL, plans.Plan(0, 0)):
        edges = jnp.int32(window.first), jnp.int32(window.last)
        empty, full = (trained(filled, edges) for filled in (False, True))
        jax.tree.map(np.testing.assert_array_equal, full, empty)


def _worst(x):
    """Gives the value that would be seen most: not a number, or the largest."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.full_like(x, jnp.nan)
    return jnp.ones_like(x) if x.dtype == bool else jnp.full_like(x, 127)


def test_blocks_outside_a_window_get_exactly_nothing(problem):
    ours = run_mixed(problem, {0: conftest.MIDDLE, 1: conftest.MIDDLE}, 2)
    deltas = np.asarray(ours.totals.deltas)
    sizes = [sum(x.size for x in jax.tree.leaves(block)) for block in problem.blocks]
    bounds = np.cumsum([0, *sizes])
    moved = [bool(np.any(deltas[a:b])) for a, b in itertools.pairwise(bounds)]
    assert moved == [False, False, True, False, False]
    assert (np.asarray(ours.l2) > 0).tolist() == [[moved, moved]] * 2
    weight = float(problem.shards.counts[:2].sum())
    assert np.asarray(ours.totals.weights).tolist() == [0, 0, weight, 0, 0]


def test_a_client_that_is_not_finite_or_too_far_is_left_out(problem, by_window):
    spoilt = run_mixed(problem, ASSIGNED, 2, spoilt=[1])
    assert np.asarray(spoilt.failed).tolist() == [0, totals.NOT_FINITE, 0, 0]
    # The limit of a window is of its own blocks: block 0 is in that of client 3 alone.
    lengths = np.square(np.asarray(by_window.l2))
    limits = lengths.max(0) * 4
    limits[0] = np.where(np.arange(5) == 2, lengths[1, 0, 2] / 2, np.inf)
    far = run_mixed(problem, ASSIGNED, 2, limits=limits)
    assert np.asarray(far.failed).tolist() == [0, totals.TOO_LARGE, 0, 0]
    assert np.isfinite(np.asarray(far.totals.deltas)).all()


# Of the two kinds of network that need more than a value handed from block to block:
# one of sequences, whose padding goes along, and one whose blocks record less where
# they are the window's first. With the windows to try.
KINDS = {
    "sequences": (
        network.Network(
            "small",
            (
                transformer.Embedding(11, 8),
                transformer.EncoderLayer(12, 2),
                transformer.EncoderLayer(12, 2),
                transformer.Classifier(3),
            ),
            (6,),
            3,
            vocabulary=11,
        ),
        [(0, 3), (0, 0), (1, 1), (3, 3)],
    ),
    "norms first": (
        network.Network(
            "dense",
            (
                densenet.Stem(),
                densenet.DenseBlock(),
                densenet.DenseBlock(),
                densenet.Classifier(3),
            ),
            (8, 8, 1),
            3,
        ),
        [(0, 3), (0, 0), (1, 1), (2, 3)],
    ),
}


@pytest.mark.parametrize(
    ("kind", "spec", "count"),
    [
        ("sequences", specs.FLOAT, 20),
        pytest.param("norms first", specs.FLOAT, 20, marks=pytest.mark.long),
        # One step: a flipped code would change more than the program does.
        pytest.param("sequences", specs.DEFAULT, 8, marks=pytest.mark.long),
        ("norms first", specs.REFERENCE, 8),
    ],
)
def test_networks_of_all_kinds_share_a_program(kind, spec, count):
    net, windows = KINDS[kind]
    training = client.Training(batch_size=8, spec=spec)
    state = jax.jit(
        lambda keys: client.calibrate(net, network.init(net, keys[0]), spec, keys[1])
    )((jax.random.key(0), jax.random.key(1)))
    x = np.array(network.noise(net, jax.random.key(2), 24))
    if net.vocabulary is not None:
        x[::2, 3:] = 0  # padding
    data = client.Data(x, np.arange(24, dtype=np.int32) % 3, np.zeros(1), np.ones(1))
    data = jax.tree.map(jnp.asarray, data)

    def train(program, window=None, alone=False):
        static = client.Static(net, program, training)
        frozen = client.freeze(static, state, None)
        places = client.places(static, state, frozen) if alone else None
        start = client.Start(state, frozen, data, jnp.float32(0.05))
        key = jax.random.key(3)
        own = client.Client(jnp.arange(24), jnp.int32(count), key, window)
        result = client.train(static, start, own, places)
        return result.delta, result.loss

    def compiled(function, *arguments):
        lowered = jax.jit(function).lower(*arguments)
        return lowered.compile(compiler_options=programs.once_options())

    edges = jnp.array(windows, jnp.int32)
    shared = compiled(lambda *w: train(mixed.Mixed(), w, alone=True), *edges[0])
    beside = jax.vmap(lambda *w: train(mixed.Mixed(), w))
    together = compiled(beside, *edges.T)(*edges.T)
    for i, (first, last) in enumerate(windows):
        window = single.Single(plans.Plan(first, last))
        own, loss = compiled(functools.partial(train, window))()
        alone = shared(*edges[i])
        for delta, same in (alone, jax.tree.map(lambda x, i=i: x[i], together)):
            np.testing.assert_allclose(same, loss, rtol=1e-5)
            for j, block in enumerate(delta):
                if first <= j <= last:
                    _assert_moved_alike(block, own[j])
                else:
                    assert not any(np.any(leaf) for leaf in jax.tree.leaves(block))


def _assert_moved_alike(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert np.max(np.abs(a - b), initial=0) <= 1e-3 * np.max(np.abs(b), initial=0)


def test_a_block_that_ends_in_a_relu_says_so():
    net = models.BY_NAME["small_convnet"]((8, 8, 1), 3)
    assert network.nonnegative(net)[:-1] == (True,) * (net.num_blocks - 1)
    assert not network.nonnegative(net)[-1]
    slim = models.BY_NAME["mobilenetv2"]((8, 8, 3), 3)
    assert sum(network.nonnegative(slim)) == 2  # the stem and the last convolution


def small(**fields):
    """Makes an experiment of CoCoFL with 6 of 12 clients a round."""
    load = workloads.Workload(
        shape=(8, 8, 1),
        examples=20,
        test_examples=20,
        fields={
            "network": "small_convnet",
            "num_clients": 12,
            "clients_per_round": 6,
            "batch_size": 10,
            "algorithm": "cocofl",
        },
    )
    settings = workloads.config(load, **fields)
    return workloads.build(load, settings)


def test_rounds_are_the_same_with_one_program():
    losses, made = [], []
    tiers = devices.parse_tiers("strong:.5:1:1:1,weak:.5:.6:.6:.6")
    for fields in ({"programs": "windows"}, {}, {"client_width": 4}):
        before = group.num_programs()
        ready = small(network="cnn", tiers=tiers, **fields)
        algorithm = experiment.algorithm(ready)
        records = simulation.iterate(algorithm, algorithm.init(), range(2))
        losses.append([record["train_loss"] for _, record in records])
        made.append(group.num_programs() - before)
    np.testing.assert_allclose(losses[1:], losses[:1] * 2, rtol=1e-5)
    assert made[0] > 1
    assert made[1:] == [1, 1]


def test_windows_share_a_program_unless_told_not_to():
    plan = [plans.Plan(0, 1), plans.Plan(2, 3, 4)]
    whole = [plans.full(8)] * 2
    own, of_whole = ([single.Single(p) for p in some] for some in (plan, whole))

    def made(**fields):
        fed = small(**fields).federation
        return federation.programs(fed, plan), federation.programs(fed, whole)

    shared = [mixed.Mixed(), mixed.Mixed(4)]
    assert made() == (shared, of_whole)
    assert made(client_width=2) == (shared, of_whole)
    assert made(programs="windows") == (own, of_whole)


def test_who_trains_everything_needs_no_program_of_its_width():
    fed = small().federation
    assigned = [plans.full(8), plans.Plan(0, 1, 4), plans.Plan(2, 3, 5)]
    expected = [mixed.Mixed(4), mixed.Mixed(4), mixed.Mixed(5)]
    assert federation.programs(fed, assigned) == expected


def test_clients_of_a_chunk_compute_each_others_roles():
    assigned, alone = [plans.full(8), plans.Plan(2, 3)], np.array([1, 0.25])

    def work(**fields):
        return federation.work(small(**fields).federation, assigned, alone)

    assert work().tolist() == work(client_width=2, programs="windows").tolist()
    assert work().tolist() == [1, 0.25]
    # Both train all blocks, those before the window forward and behind it both ways.
    first, second = work(client_width=2)
    assert first == second > 1


def test_roles_that_a_chunk_has_by_hand():
    windows = jnp.array([[0, 0], [1, 2], [0, 3]])
    kind = mixed.Mixed()
    expected = [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]  # of the first two
    real = jnp.array([True, True, False])
    np.testing.assert_array_equal(kind.present(windows, real, 4), expected)
    everybody = kind.present(windows, jnp.ones(3, bool), 4)
    np.testing.assert_array_equal(everybody[1], [True] * 4)
    assert single.Single(plans.Plan(0, 1)).present(windows, real, 4) is None


def test_a_block_has_a_condition_for_each_of_its_roles_and_passes(problem):
    """Forward one a role, backward one for each that has a gradient: five a block.

    The first block is after no window, forward and backward, the last before none.
    """
    static = client.Static(problem.net, mixed.Mixed(), problem.training)

    def step(x, labels, window, present):
        frozen = client.freeze(static, problem.blocks, None)
        blocks = program.Blocks(frozen, problem.blocks)
        batch = program.Batch(x, labels, jnp.ones(len(x)), jax.random.key(0))
        own = program.Own(window, None, present)
        return mixed.gradient_step(problem.net, static.spec, blocks, batch, own).loss

    n, x = problem.net.num_blocks, jnp.zeros((2, *problem.net.input_shape))
    window, present = (jnp.int32(0),) * 2, jnp.ones((3, n), bool)
    traced = jax.make_jaxpr(step)(x, jnp.zeros(2, jnp.int32), window, present)
    names = [equation.primitive.name for equation in traced.eqns]
    assert names.count("cond") == 5 * n - 3


class Frames(nn.Module):
    """Frames of a sound, [B, L, C] floats; one of zeros is padding."""

    @nn.compact
    def __call__(self, x, call):
        valid = jnp.any(x != 0, axis=-1)
        return signals.Padded(layers.dense(8, quantized=False)(x, call), valid)


@pytest.mark.parametrize("alone", [True, False])
def test_sequences_of_floats_share_a_program_too(alone):
    blocks = Frames(), transformer.EncoderLayer(12, 2), transformer.Classifier(3)
    net, training = network.Network("frames", blocks, (6, 4), 3), client.Training(4)
    static, rows = client.Static(net, mixed.Mixed(), training), jnp.arange(8)
    data = jax.tree.map(
        jnp.asarray, client.Data(np.ones((8, 6, 4)), rows % 3, np.zeros(4), np.ones(4))
    )

    def train(window):
        state = network.init(net, jax.random.key(0))
        frozen = client.freeze(static, state, None)
        places = client.places(static, state, frozen) if alone else None
        start = client.Start(state, frozen, data, jnp.float32(0.1))
        own = client.Client(rows, jnp.int32(8), jax.random.key(1), window)
        return client.train(static, start, own, places).loss

    one = jnp.int32(1)
    assert jax.eval_shape(train, (one, one)).shape == ()


def test_the_width_follows_the_memory(monkeypatch):
    counts = network.counts(models.BY_NAME["small_convnet"]((8, 8, 1), 3))
    training = client.Training(batch_size=32)
    assert side_by_side.default_width(counts, training, 10) == 1  # on CPU
    monkeypatch.setattr(backends, "accelerated", lambda: True)
    assert side_by_side.default_width(counts, training, 10) == 10
    assert (
        side_by_side.default_width(counts, training, 1000)
        == side_by_side.MOST_SIDE_BY_SIDE
    )
    one = side_by_side.bytes_of_client(counts, training)
    half = side_by_side.bytes_of_client(counts, training._replace(precision="bfloat16"))
    kept = 32 * sum(count.kept for count in counts)
    assert one - half == 2 * kept  # of activations alone
    room = 3 * one * side_by_side._EXCESS / side_by_side._SHARE
    monkeypatch.setattr(side_by_side, "_UNTOLD", room)
    assert side_by_side.default_width(counts, training, 10) == 3
    monkeypatch.setattr(side_by_side, "_UNTOLD", 0.0)
    assert side_by_side.default_width(counts, training, 10) == 1
