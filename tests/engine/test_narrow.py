"""Networks of several widths in a round: what is trained, sent and averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fljax
from fljax import devices, plans, policies, trees, types
from fljax.algorithms.widths import levels as narrow
from fljax.devices import fleet
from fljax.engine import client, federation
from fljax.engine.program import single
from fljax.nn import layers, narrowing, network, slicing
from fljax.updates import server, server_rule
from tests import conftest, small

LEVELS = "1/.5/.25"
PLAIN = f"heterofl:levels={LEVELS}:scaler=false:masked=false"


def build(algorithm=PLAIN, **changes):
    """Builds an experiment on the small convnet."""
    return small.build(small.CONVNET, algorithm=algorithm, **changes)


ABLE = (devices.Tier(name="all", share=1, time=1, upload=1, memory=1),)


def end(ready, number=2):
    """Gives the state after rounds."""
    *_, (_, _, state, _) = small.rounds(ready, number)
    return state


# --- the server


def kernel(rows):
    return ({"params": {"w": jnp.asarray(rows, jnp.float32)}},)


def held_by(*masks):
    """Counts who has each value, of clients that have leading parts of [2, 2]."""
    counts = np.zeros((2, 2))
    for side in masks:
        counts[:side, :side] += 1
    return jnp.asarray(counts.ravel(), jnp.float32)


def test_a_value_is_the_mean_of_those_who_have_it_by_hand():
    # Widths 1, 1/2, 1/2 return [[1, 2], [3, 4]], [[3]], [[5]] of zeros.
    rule = server_rule.Averaging()
    state = server.init(kernel(np.zeros((2, 2))), rule)
    deltas = jnp.array([1 + 3 + 5, 2, 3, 4.0])
    sums = server.Totals(
        deltas, jnp.array([3.0]), jnp.float32(3), held=held_by(2, 1, 1)
    )
    state = server.step(state, sums, rule)
    np.testing.assert_array_equal(state.blocks[0]["params"]["w"], [[3, 2], [3, 4]])
    # Next only a half takes part, and returns [[7]]: all else keeps its bits.
    sums = server.Totals(
        jnp.array([7 - 3.0, 0, 0, 0]), jnp.ones(1), jnp.float32(1), held=held_by(1)
    )
    state = server.step(state, sums, rule)
    np.testing.assert_array_equal(state.blocks[0]["params"]["w"], [[7, 2], [3, 4]])


def test_of_a_block_that_half_the_cohort_trained_half_is_taken():
    # The paper's r beside the mean of holders: of 4 clients two train the block, one of
    # them at full width; they move its first value by 2 and 4, the last by 8.
    rule = server_rule.Averaging()
    state = server.init(kernel(np.full((2, 2), 10.0)), rule)
    deltas = jnp.array([2 + 4.0, 0, 0, 8])
    sums = server.Totals(deltas, jnp.array([2.0]), jnp.float32(4), held=held_by(2, 1))
    new = server.step(state, sums, rule).blocks[0]["params"]["w"]
    np.testing.assert_array_equal(new, [[10 + 3 / 2, 10], [10, 10 + 8 / 2]])


def test_momentum_leaves_values_alone_that_nobody_has():
    rule = fljax.server_rule(optax.sgd, 1.0, momentum=0.9)
    state = server.init(kernel(np.zeros((2, 2))), rule)
    everything = server.Totals(
        jnp.ones(4), jnp.ones(1), jnp.float32(1), held=held_by(2)
    )
    state = server.step(state, everything, rule)
    corner = server.Totals(
        jnp.array([1.0, 0, 0, 0]), jnp.ones(1), jnp.float32(1), held=held_by(1)
    )
    new = server.step(state, corner, rule).blocks[0]["params"]["w"]
    np.testing.assert_allclose(new, [[1 + 1.9, 1], [1, 1]])


# --- a round


def alone(fed, state, number, width, channels):
    """Trains one client of the network built at a width, outside of any group."""
    net, _ = fed.model.at(width)
    places = slicing.places(fed.model.net, fed.model.cut(width), channels)
    blocks = slicing.take(state.server.blocks, places)
    shards = fed.population.shards
    plan = plans.full(net.num_blocks)
    static = client.Static(net, single.Single(plan), fed.training)
    begin, count = int(shards.starts[number]), int(shards.counts[number])
    key = jax.random.fold_in(federation.round_key(fed.seed, 0), number)
    one = client.Client(
        jnp.asarray(shards.indices)[begin : begin + count], jnp.int32(count), key
    )
    frozen = client.freeze(static, blocks, None)
    rate = jnp.float32(fed.rules.learning_rate(0))
    start = client.Start(blocks, frozen, fed.population.data, rate)
    result = client.train(static, start, one)
    small_delta = jax.tree.map(np.asarray, result.delta)
    ones = jax.tree.map(np.ones_like, small_delta)
    whole = state.server.blocks
    return tuple(
        jax.tree.map(np.asarray, slicing.put(tree, places, whole))
        for tree in (small_delta, ones)
    )


@pytest.mark.parametrize("method", ["heterofl", "fedrolex", "federated_dropout"])
def test_a_round_is_the_mean_of_networks_trained_alone(method):
    ready = build(f"{method}:levels={LEVELS}:scaler=false:masked=false", batch_size=16)
    state, assignment, new, _ = next(small.rounds(ready, 1))
    widths = {plan.width for plan in assignment.plans}
    assert len(widths) > 1
    fed = ready.federation
    rule = {
        "heterofl": narrowing.Leading(),
        "fedrolex": narrowing.Rolling(),
        "federated_dropout": narrowing.Random(),
    }[method]
    choose = rule.choose(fed.seed, 0, narrowing.NOBODY)
    returned = [
        alone(fed, state, number, plan.width, choose)
        for number, plan in zip(assignment.ids.tolist(), assignment.plans, strict=True)
    ]
    total, held = (
        jax.tree.map(lambda *x: sum(x), *trees_)
        for trees_ in zip(*returned, strict=True)
    )
    expected = jax.tree.map(
        lambda old, t, h: old + t / np.maximum(h, 1), state.server.blocks, total, held
    )
    conftest.assert_close(new.server.blocks, expected)


def test_at_level_1_it_is_federated_averaging():
    one = end(build("heterofl:levels=1:scaler=false:masked=false", tiers=ABLE))
    conftest.assert_close(one.server, end(build("fedavg", tiers=ABLE)).server)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": PLAIN},
        {"algorithm": f"heterofl:levels={LEVELS}", "codec": "top_k:.1"},
        {"algorithm": f"federated_dropout:levels={LEVELS}:each=true"},
    ],
    ids=["plain", "top_k", "each"],
)
def test_side_by_side_clients_are_as_one_by_one(changes):
    one, three = (end(build(client_width=width, **changes)) for width in (1, 3))
    small.assert_alike(one, three)


def test_what_nobody_has_keeps_its_bits():
    ready = build("heterofl:levels=.5/.25")
    first = fljax.experiment.algorithm(ready).init()
    last = end(ready)
    fed = ready.federation
    places = slicing.places(fed.model.net, fed.model.cut(0.5))
    inside = slicing.put(
        jax.tree.map(jnp.ones_like, slicing.take(first.server.blocks, places)),
        places,
        first.server.blocks,
    )
    moved = 0
    for old, new, here in zip(
        *map(jax.tree.leaves, (first.server.blocks, last.server.blocks, inside)),
        strict=True,
    ):
        outside = np.asarray(here) == 0
        np.testing.assert_array_equal(
            np.asarray(old)[outside], np.asarray(new)[outside]
        )
        moved += np.sum(np.asarray(old) != np.asarray(new))
    assert moved > 10


def test_an_error_memory_moves_where_something_was_sent():
    ready = build("heterofl:levels=.5/.25:scaler=false", codec="top_k:.1")
    state = end(ready, 1)
    fed, blocks = ready.federation, server.params_of(state.server.blocks)
    places = slicing.places(fed.model.net, fed.model.cut(0.5))
    params = server.params_of(places)
    ones = jax.tree.map(jnp.ones_like, slicing.take(blocks, params))
    inside = np.asarray(trees.ravel(slicing.put(ones, params, blocks))) > 0
    visited = small.rows(state)
    assert not visited[:, ~inside].any()
    assert (visited[:, inside] != 0).any()


def test_a_rolled_transformer_adds_the_positions_of_its_own_channels():
    # An embedding of zeros gives the positions' table alone: with rolled channels, the
    # columns that these are in the whole table.
    net = small.TEXTNET
    cut = slicing.Cut(0.5)
    kept = slicing.places(net, cut, slicing.rolling(1))
    columns = slicing.columns(kept)
    assert columns.tolist() == [3, 0]
    tokens = jnp.array([[1, 2, 3, 0, 0]])

    def embedded(network_, **call):
        block = network_.blocks[0]
        variables = block.init(jax.random.key(0), tokens, layers.Call())
        zeros = jax.tree.map(jnp.zeros_like, variables)
        return block.apply(zeros, tokens, layers.Call(**call)).value

    wide = embedded(net)
    narrow_ = embedded(slicing.sliced(net, cut), columns=jnp.asarray(columns))
    np.testing.assert_array_equal(narrow_, wide[..., columns])


# --- HeteroFL's extras


def test_a_client_without_a_class_leaves_its_row_of_the_classifier():
    # Clients have one class each, so that of a row only those of its class know.
    generator = np.random.default_rng(0)
    x = generator.normal(size=(8, 8, 8, 1)).astype(np.float32)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    users = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    data = fljax.Dataset(x, y, x, y, 3, users=users)
    config = fljax.Config(
        algorithm="heterofl:levels=1", tiers=ABLE, partition="natural",
        clients_per_round=4, batch_size=2, lr=0.1, weight_decay=0.1,
    )  # fmt: skip
    ready = fljax.build(config, data, small.CONVNET)
    state, _, new, _ = next(small.rounds(ready, 1))
    old, new = (s.server.blocks[-1]["params"]["dense"]["kernel"] for s in (state, new))
    changed = np.any(np.asarray(old != new), axis=0)
    assert changed.tolist() == [True, True, False]


def test_masked_logits_are_zero_not_lost():
    # One class of three: softmax of (z, 0, 0), by hand.
    batch = fljax.engine.program.Batch(
        None, jnp.array([0]), jnp.ones(1), None,
        classes=jnp.array([True, False, False]),
    )  # fmt: skip
    loss = batch.loss(jnp.array([[2.0, 5.0, -7.0]]))
    np.testing.assert_allclose(loss, -2 + np.log(np.exp(2) + 2), rtol=1e-6)


# --- what it costs


def test_levels_cost_what_the_networks_of_their_width_do():
    ready = build()
    fed = ready.federation
    table = narrow.table_of(fed, (1.0, 0.5))
    assert (table.time[0], table.upload[0], table.memory[0]) == (1, 1, 1)
    _, counts = fed.model.at(0.5)
    full = plans.full(3)
    sent = plans.upload_bytes(full, counts)
    everything = plans.upload_bytes(full, fed.model.counts)
    assert table.upload[1] == sent / everything
    _, assignment, _, report = next(small.rounds(ready, 1))
    by_width = {w: plans.upload_bytes(full, fed.model.at(w)[1]) for w in (1, 0.5, 0.25)}
    expected = sum(by_width[plan.width] for plan in assignment.plans)
    assert report.books.upload_bytes == report.books.download_bytes == expected


def test_the_network_that_is_trained_is_evaluated():
    # Of 4 and 8 channels .3 are 1 and 2 by floor, 2 and 3 by ceil.
    ready = build("heterofl:levels=.3:rounding=floor")
    made = fljax.experiment.algorithm(ready)
    state, model = made.init(), made.federation.model
    net, _ = model.at(0.3)
    assert [block.features for block in net.blocks[:2]] == [1, 2]
    blocks = slicing.take(
        state.server.blocks, slicing.places(model.net, model.cut(0.3))
    )
    data = ready.federation.population.data  # which is the test data as well
    x = client.inputs(data, jnp.arange(len(data.y)))
    logits, _ = network.run(net, blocks, x, [layers.Call()] * net.num_blocks)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, data.y)
    evaluator = ready.evaluator.of(made)
    fields = evaluator.fields(jax.device_get(evaluator.scores(state)))
    np.testing.assert_allclose(fields["test_loss"], expected.mean(), rtol=1e-5)
    assert fields["evaluated_width"] == 0.3


def test_each_device_gets_the_largest_level_that_fits():
    ready = build()
    fed = ready.federation
    table = narrow.table_of(fed, (1.0, 0.5, 0.25))
    costs = np.stack([table.time, table.upload, table.memory])
    budgets = types.Budgets(*(np.array([1.0, c[1], c[2]]) for c in costs))
    chosen = narrow.largest(table).assign((), None, np.arange(3), budgets)
    assert [plan.width for plan in chosen] == [1, 0.5, 0.25]


def fitting(fed, budgets):
    """Gives for rows of budgets [T, 3] the largest hundredth that fits, one by one."""
    largest = []
    for row in budgets:
        fits = [k for k in range(1, 101) if (limits_of(fed, k / 100) <= row).all()]
        largest.append(max(fits, default=1) / 100)
    return tuple(sorted({*largest}, reverse=True))


def limits_of(fed, level):
    """Gives what the network at a level asks for."""
    table = narrow.table_of(fed, (level,))
    return np.array([table.time[0], table.upload[0], table.memory[0]])


def test_fitting_levels_are_the_largest_of_the_tiers():
    ready = build("heterofl:levels=fit")
    fed = ready.federation
    levels = narrow.levels_of("fit", fed)
    assert 1 < len(levels) <= 3
    assert levels[0] == 1
    assert levels == fitting(fed, fed.population.fleet.profile.limits[..., 0])
    end(ready, 1)


def test_fitting_levels_are_the_largest_of_measured_classes():
    """Phones are of no tier; the server finds a level for each class of them."""
    more = {"fleet": "phones", "seed": 3}
    with pytest.raises(ValueError, match="--tiers=auto sorts one into classes"):
        fljax.experiment.algorithm(build("heterofl:levels=fit", **more))
    ready = build("heterofl:levels=fit", tiers=devices.classes.Auto(3), **more)
    fed, found = ready.federation, ready.federation.population.fleet
    labels = fleet.sorted_at(found, 3, 0)
    seen = np.stack(fleet.believed(found, 3, 0, np.arange(len(labels))), axis=1)
    least = [seen[labels == label].min(axis=0) for label in range(3)]
    assert narrow.levels_of("fit", fed) == fitting(fed, least)
    end(ready, 1)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algorithm": "heterofl:levels=2"}, "levels: expected shares"),
        ({"algorithm": "heterofl:levels=half"}, "levels: expected shares"),
        ({"algorithm": "heterofl:rounding=up"}, "rounding: expected ceil or floor"),
        ({"aggregate": "median"}, "--aggregate: expected mean beside networks of"),
        ({"algorithm": "heterofl:levels=1"}, "by operation counts"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        fljax.experiment.algorithm(build(**changes))


def test_a_plan_of_a_width_needs_a_rule():
    fed = build().federation
    table = narrow.table_of(fed, (1.0, 0.5))
    with pytest.raises(ValueError, match="narrowing: expected a rule for plans of"):
        fljax.averaging(fed.having(table=table), policies.full(3))


def test_the_rule_is_a_value():
    assert narrowing.Narrowing() == narrowing.Narrowing(narrowing.Leading())
    assert hash(narrowing.Narrowing()) == hash(narrowing.Narrowing())
    assert dataclasses.replace(narrowing.Narrowing(), scaler=True) != (
        narrowing.Narrowing()
    )
