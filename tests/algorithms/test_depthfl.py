"""DepthFL: networks that end at an exit, what they learn, send and predict."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax import models, plans, policies, tasks
from fljax.engine import client, federation, group
from fljax.engine.program import prefix, single
from fljax.exporting import model as exported
from fljax.exporting import onnx_file
from fljax.nn import exits, layers, network, signals
from fljax.tasks import exits as losses
from fljax.updates import server, server_rule
from tests import conftest, small

EVERYTHING = ("strong", 1.0)
FIRST = ("weak", 0.7)  # of each resource: fits the network up to the first exit


def fleet(*kinds):
    """Makes tiers of as many devices, able to spend a share of each resource."""
    return tuple(
        fljax.Tier(name=name, share=1 / len(kinds), time=has, upload=has, memory=has)
        for name, has in kinds
    )


def build(*kinds, algorithm="depthfl", **changes):
    """Builds an experiment on the small convnet: exits behind blocks 0 and 1."""
    tiers = fleet(*(kinds or (EVERYTHING, FIRST)))
    return small.build(small.CONVNET, algorithm=algorithm, tiers=tiers, **changes)


def end(ready, number=2):
    """Gives the state after rounds."""
    *_, (_, _, state, _) = small.rounds(ready, number)
    return state


def named(ready):
    """Gives the federation as the algorithm has it."""
    return fljax.experiment.algorithm(ready).federation


@pytest.fixture(scope="module")
def played():
    """Plays three rounds; gives the experiment and what `small.rounds` does of each."""
    ready = build()
    group.forget()  # other tests may have compiled some of them
    before = group.num_programs()
    found = list(small.rounds(ready, 3))
    assert group.num_programs() - before == 2  # one a depth, over all rounds
    return ready, found


# --- the loss

ONE, TWO = jnp.array([[math.log(3), 0.0]]), jnp.array([[0.0, 0.0]])  # 3/4, 1/4; halves
# KL(two || one) and KL(one || two)
APART = (
    0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
    (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)),
)


def loss(logits, pull):
    return losses.loss(tasks.DEFAULT, logits, jnp.array([0]), jnp.ones(1), pull)


def test_the_loss_of_two_exits_by_hand():
    plain = -math.log(0.75) - math.log(0.5)
    assert loss((ONE, TWO), None) == pytest.approx(plain)
    both = plain + 0.1 * sum(APART)
    assert loss((ONE, TWO), 0.1) == pytest.approx(both)
    # Of three, the mean over the two others of each: pairs of equals are 0 apart.
    three = plain - math.log(0.5) + 0.1 * (2 * sum(APART)) / 2
    assert loss((ONE, TWO, TWO), 0.1) == pytest.approx(three)
    assert loss((ONE,), 0.1) == pytest.approx(-math.log(0.75))


def test_an_exit_is_pulled_towards_the_others_which_stay():
    gradient = jax.grad(lambda z: loss((z, TWO), 0.1))(ONE)
    # p - y of the cross-entropy, and p - q of KL(q || p); of KL(p || q) none.
    np.testing.assert_allclose(gradient, [[-0.25 + 0.025, 0.25 - 0.025]], rtol=1e-5)


def test_padding_does_not_count():
    logits = [jnp.concatenate([x, 9 * x - 1]) for x in (ONE, TWO)]
    labels, mask = jnp.array([0, 1]), jnp.array([1.0, 0])
    padded = losses.loss(tasks.DEFAULT, tuple(logits), labels, mask, 0.1)
    assert padded == pytest.approx(float(loss((ONE, TWO), 0.1)))


def test_the_ramp_by_hand():
    rule = exits.Exits(ramp=4)
    given = [rule.pull(index) for index in (0, 2, 4, 9)]
    assert given == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    assert exits.Exits(ramp=0).pull(0) == 1
    assert exits.Exits(distill=False).pull(7) is None


# --- the network


@pytest.mark.parametrize(
    ("name", "shape", "borders", "read"),
    [
        ("resnet18", (32, 32, 3), (2, 4, 6), (64, 128, 256, 512)),
        ("resnet20", (16, 16, 3), (3, 6), (4 * 4 * 16, 2 * 2 * 32, 64)),
        ("small_convnet", (8, 8, 1), (1, 3), (16, 32, 64)),
        ("cnn", (8, 8, 1), (0, 1), (4 * 4 * 32, 2 * 2 * 64, 128)),
    ],
)
def test_exits_come_behind_groups_of_blocks(name, shape, borders, read):
    net = models.BY_NAME[name](shape, 10)
    assert exits.borders(net) == borders
    made = exits.insert(net, borders)
    ends, last = exits.ends(made), net.num_blocks + len(borders) - 1
    assert ends == (*(b + i + 1 for i, b in enumerate(borders)), last)
    params = [network.shapes(made)[i]["params"] for i in ends]
    kernels = [one["dense"]["kernel"].shape for one in params]
    assert kernels == [(features, 10) for features in read]


def test_blocks_keep_the_names_of_their_parameters():
    net = small.CONVNET
    made = exits.insert(net, (0,))
    old, new = network.shapes(net), network.shapes(made)
    for before, after in ((0, 0), (1, 2), (2, 3)):
        assert jax.tree.structure(old[before]) == jax.tree.structure(new[after])
    assert jax.tree.structure(new[1]) == jax.tree.structure(new[3])


def test_an_exit_leaves_what_flows_alone():
    net, key = small.CONVNET, jax.random.key(0)
    made = exits.insert(net, (0,))
    state = network.init(made, key)
    x = network.noise(net, jax.random.key(1), 5)
    without = (state[0], state[2], state[3])
    calls = [layers.Call()] * 4
    alone, _ = network.run(net, without, x, calls[:3])
    whole, _ = network.run(made, state, x, calls)
    first, _ = network.run(exits_up_to(made, 2), state[:2], x, calls[:2])
    assert isinstance(whole, signals.Exited)
    np.testing.assert_array_equal(whole.logits[1], alone)
    np.testing.assert_array_equal(whole.logits[0], first.logits[0])
    mean = (whole.logits[0] + alone) / 2
    np.testing.assert_allclose(signals.to_float(whole), mean, rtol=1e-6)
    np.testing.assert_array_equal(signals.to_float(first), first.logits[0])


def exits_up_to(net, number):
    """Gives the first blocks of a network."""
    return net._replace(blocks=net.blocks[:number])


def test_sequences_have_exits_too():
    made = exits.insert(small.TEXTNET, (0,))
    state = network.init(made, jax.random.key(0))
    x = network.noise(made, jax.random.key(1), 2)
    found, _ = network.run(made, state, x, [layers.Call()] * 4)
    assert [logits.shape for logits in found.logits] == [(2, small.LENGTH, 7)] * 2


# --- a round


def test_a_block_is_the_mean_of_those_who_have_it_by_hand():
    # Of three clients who move by 3, 6 and 9 the last has one of two blocks.
    blocks = tuple({"params": {"w": jnp.zeros(2)}} for _ in range(2))
    sums = server.Totals(
        jnp.array([18.0, 18, 9, 9]), jnp.array([3.0, 2]), jnp.float32(3)
    )
    sums = server.of_holders(sums, blocks)
    state = server.init(blocks, server_rule.Averaging())
    new = server.step(state, sums, server_rule.Averaging()).blocks
    np.testing.assert_allclose(new[0]["params"]["w"], [6, 6], rtol=1e-6)
    np.testing.assert_allclose(new[1]["params"]["w"], [4.5, 4.5], rtol=1e-6)
    # Nobody has the second: it stays, to its bits.
    sums = server.Totals(
        jnp.array([18.0, 18, 0, 0]), jnp.array([3.0, 0]), jnp.float32(3)
    )
    new = server.step(state, server.of_holders(sums, blocks), server_rule.Averaging())
    np.testing.assert_allclose(new.blocks[0]["params"]["w"], [6, 6], rtol=1e-6)
    np.testing.assert_array_equal(new.blocks[1]["params"]["w"], [0, 0])


def alone(fed, state, assignment):
    """Trains each client of a round on a network of its own, outside of any group."""
    shards, rate = fed.population.shards, jnp.float32(fed.rules.learning_rate(0))
    key = federation.round_key(fed.seed, 0)
    room, found = int(shards.counts.max()), []

    @functools.partial(jax.jit, static_argnums=0)
    def trained(depth, indices, size, key):
        net = exits_up_to(fed.model.net, depth)
        static = client.Static(net, single.Single(plans.full(depth)), fed.training)
        blocks, pull = state.server.blocks[:depth], jnp.float32(math.exp(-5))
        data, frozen = fed.population.data, (None,) * depth
        start = client.Start(blocks, frozen, data, rate, pull=pull)
        return client.train(static, start, client.Client(indices, size, key)).delta

    for number, plan in zip(assignment.ids.tolist(), assignment.plans, strict=True):
        begin, count = int(shards.starts[number]), int(shards.counts[number])
        own = np.resize(shards.indices[begin : begin + count], room)
        mine = jax.random.fold_in(key, number)
        found.append(trained(plan.last + 1, own, jnp.int32(count), mine))
    return found


def test_a_round_is_the_mean_of_networks_trained_alone(played):
    ready, ((state, assignment, new, _), *_) = played
    sent = alone(named(ready), state, assignment)
    assert sorted({len(delta) for delta in sent}) == [2, 4]
    for index, (old, now) in enumerate(
        zip(state.server.blocks, new.server.blocks, strict=True)
    ):
        theirs = [delta[index] for delta in sent if len(delta) > index]
        expected = jax.tree.map(lambda x, *d: x + sum(d) / len(d), old, *theirs)
        conftest.assert_close(now, expected)


def test_with_one_exit_it_is_federated_averaging():
    usual = {"algorithm": "fedavg", "tiers": fleet(EVERYTHING)}
    ready = small.build(small.CONVNET, **usual)
    fed = ready.federation
    rule = exits.Exits(distill=False)
    made = fljax.averaging(
        fed.having(net=exits.insert(fed.model.net, ()), exits=rule), policies.full(3)
    )
    state = made.init()
    for index in range(2):
        state, _ = made.round(state, made.assign(state, index))
    conftest.assert_close(state.server, end(ready).server)


def test_what_nobody_trains_keeps_its_bits_and_is_not_evaluated():
    ready = build(FIRST, rounds=2)
    made = fljax.experiment.algorithm(ready)
    (note,) = made.notes
    assert "with 59, 390 parameters; no device trains more than those up to" in note
    assert made.depth == 2
    first = made.init()
    result = fljax.run(ready)
    for old, new in zip(
        *(s.server.blocks[2:] for s in (first, result.state)), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, old, new)
    fed, blocks = made.federation, result.state.server.blocks
    data = small.data()
    x = client.inputs(fed.population.data, np.arange(len(data.y_test)))
    net = exits_up_to(fed.model.net, 2)
    found, _ = network.run(net, blocks[:2], x, [layers.Call()] * 2)
    right = np.mean(np.argmax(found.logits[0], axis=1) == data.y_test)
    assert result.final["test_accuracy"] == pytest.approx(float(right))


def test_the_mean_of_the_exits_is_evaluated():
    ready = build(rounds=1)
    result = fljax.run(ready)
    fed, data = named(ready), small.data()
    x = client.inputs(fed.population.data, np.arange(len(data.y_test)))
    calls = [layers.Call()] * 4
    found, _ = network.run(fed.model.net, result.state.server.blocks, x, calls)
    logits = np.mean(found.logits, axis=0)
    right = np.mean(np.argmax(logits, axis=1) == data.y_test)
    assert result.final["test_accuracy"] == pytest.approx(float(right))
    model = exported.of(result)
    assert model.net == fed.model.net
    with pytest.raises(ValueError, match="one of one output for int8, got one with"):
        onnx_file.int8(model)


def test_a_device_sends_and_fetches_what_it_trains(played):
    ready, rounds = played
    counts = named(ready).model.counts
    for _, assignment, _, report in rounds:
        expected = sum(
            count.upload_bytes
            for plan in assignment.plans
            for count in counts[: plan.last + 1]
        )
        assert report.books.upload_bytes == report.books.download_bytes == expected


def test_each_device_has_the_most_that_fits(played):
    ready, ((_, assignment, _, _), *_) = played
    table = named(ready).model.table
    assert [str(plan) for plan in table.listed] == ["0-1", "0-3"]
    assert (table.time[1], table.upload[1], table.memory[1]) == (1, 1, 1)
    assert 0 < table.time[0] < 0.7
    tier = ready.federation.population.fleet.row[assignment.ids]
    assert [plan.last for plan in assignment.plans] == [3 - 2 * t for t in tier]


def test_side_by_side_clients_are_as_one_by_one():
    one, three = (end(build(client_width=width, codec="top_k:.1")) for width in (1, 3))
    small.assert_alike(one, three)


def test_a_masked_sum_is_the_sum(played):
    _, ((_, _, plain, _), *_) = played
    secure = end(build(secure_sum="24:0:true"), 1)
    conftest.assert_close(plain.server, secure.server, 1e-4)


def test_it_learns_from_what_the_others_give(played):
    _, ((_, _, weak, _), *_) = played
    strong = end(build(algorithm="depthfl:ramp=0"), 1)
    leaves = zip(*(jax.tree.leaves(s.server) for s in (weak, strong)), strict=True)
    assert any(np.any(a != b) for a, b in leaves)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    ready = build(rounds=3, algorithm="depthfl:ramp=2", codec="top_k:.1")
    whole = fljax.run(ready)
    few = dataclasses.replace(
        ready, settings=dataclasses.replace(ready.settings, rounds=1)
    )
    fljax.run(few, tmp_path)
    resumed = fljax.run(ready, tmp_path)
    assert len(resumed.records) == 3
    jax.tree.map(
        np.testing.assert_array_equal, resumed.state.server, whole.state.server
    )
    np.testing.assert_array_equal(small.rows(resumed.state), small.rows(whole.state))
    other = dataclasses.replace(
        ready,
        settings=dataclasses.replace(ready.settings, algorithm="depthfl:ramp=3"),
    )
    with pytest.raises(ValueError, match=r"parts.exits|algorithm"):
        fljax.run(other, tmp_path)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algorithm": "depthfl:half"}, "behind: expected numbers of blocks"),
        ({"algorithm": "depthfl:1"}, "exits: expected blocks from 0 to 0 of network"),
        ({"algorithm": "depthfl:0/0"}, "exits: expected blocks in ascending order"),
        ({"algorithm": "depthfl:ramp=-1"}, "ramp: expected a number of rounds, got -1"),
        ({"privacy": fljax.Privacy(clip=1.0, noise=1.0, delta=0.01)}, "one depth"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        fljax.experiment.algorithm(build(**changes))


def test_a_device_too_small_for_the_first_exit_is_refused():
    with pytest.raises(ValueError, match="tier 'tiny' at its lowest"):
        fljax.experiment.algorithm(build(("tiny", 0.01)))


def test_networks_without_blocks_of_several_sizes_want_them_named():
    with pytest.raises(ValueError, match="whose blocks give signals of one size"):
        fljax.experiment.algorithm(small.build(algorithm="depthfl"))


def test_clients_train_by_their_optimizer_alone():
    fed = named(build())
    rule = fljax.algorithms.feddyn.Regularized(0.1)
    with pytest.raises(ValueError, match="exits: expected clients that train by their"):
        fljax.averaging(fed, policies.largest(fed.model.table), local=rule)


def test_a_program_says_which_blocks_its_clients_have():
    made = prefix.Prefix(plans.Plan(0, 1))
    assert str(made) == "0-1 alone"
    assert made != single.Single(plans.Plan(0, 1))
    assert made.holds(small.CONVNET).blocks == small.CONVNET.blocks[:2]
