"""Networks of clients' own: each method against numpy, or against what it equals."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

import fljax
from fljax.algorithms.personal import ditto, fedper
from fljax.engine import seams as kinds
from fljax.models import logistic
from fljax.nn import layers
from fljax.nn import network as networks
from fljax.updates import personal
from tests import conftest, small

RATE, CLIENTS = 0.05, len(small.SIZES)
# A body of 64 x 4 and a head of 4 x 3, both linear.
TWO = fljax.Network(
    "two",
    (logistic.Logistic(4), logistic.Logistic(small.OUTPUTS)),
    (8, 8, 1),
    small.OUTPUTS,
)


class Normed(nn.Module):
    """A dense layer with a batch norm."""

    @nn.compact
    def __call__(self, x, call):
        x = x.reshape(x.shape[0], -1)
        return layers.dense(4, norm=True, relu=False, quantized=False)(x, call)


NORMED = fljax.Network(
    "normed", (Normed(), logistic.Logistic(small.OUTPUTS)), (8, 8, 1), small.OUTPUTS
)


def build(algorithm, net=TWO, given=None, **changes):
    """Builds an experiment in which each epoch of a client is one step."""
    usual = {"algorithm": algorithm, "batch_size": 10, "weight_decay": 0.0, "lr": RATE}
    settings = dataclasses.replace(small.build().settings, **(usual | changes))
    return fljax.build(settings, small.data() if given is None else given, net)


@functools.cache
def ran(algorithm, net=TWO, number=2, **changes):
    """Gives (state before, assignment, state after) of rounds."""
    ready = build(algorithm, net, **changes)
    return [done[:3] for done in small.rounds(ready, number)]


def own(made, state):
    """Gives the networks of all clients."""
    rows = small.rows(state)
    return [kinds.network_of(made.seams, state.server.blocks, row) for row in rows]


def weights(blocks):
    """Gives kernels and biases, float64, of the body and the head."""
    return [
        [
            np.asarray(block["params"]["dense"][n], np.float64)
            for n in ("kernel", "bias")
        ]
        for block in blocks
    ]


def gradients(blocks, number):
    """Differentiates the loss of TWO over a client's examples, as numpy."""
    (w, b), (u, c) = blocks
    given = small.data()
    x, y = (part[given.users == number] for part in (given.x_train, given.y_train))
    x = ((x - given.x_train.mean()) / given.x_train.std()).reshape(len(x), -1)
    h = x @ w + b
    powers = np.exp(h @ u + c)
    off = powers / powers.sum(1, keepdims=True) - np.eye(small.OUTPUTS)[y]
    off /= len(x)
    back = off @ u.T
    return [[x.T @ back, back.sum(0)], [h.T @ off, off.sum(0)]]


def stepped(blocks, number, body=1.0, head=1.0):
    """Takes a step of gradient descent, of the body, the head or both."""
    rates = RATE * body, RATE * head
    return [
        [value - rate * g for value, g in zip(block, gradient, strict=True)]
        for rate, block, gradient in zip(
            rates, blocks, gradients(blocks, number), strict=True
        )
    ]


def mean(networks):
    return jax.tree.map(lambda *x: np.mean(x, axis=0), *networks)


def close(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_heads_are_the_clients_and_the_body_is_the_mean():
    made = fljax.experiment.algorithm(build("fedper"))
    (before, assignment, after), (_, second, end) = ran("fedper")
    first, (body, head) = weights(before.server.blocks), weights(after.server.blocks)
    trained = {n: stepped(first, n) for n in assignment.ids.tolist()}
    networks = own(made, after)
    for number in range(CLIENTS):
        mine = weights(networks[number])
        close(mine[1], trained[number][1] if number in trained else first[1])
    close(body, mean([one[0] for one in trained.values()]))
    conftest.assert_same_bits(after.server.blocks[1], before.server.blocks[1])
    assert (after.clients.width, after.clients.visited) == (4 * 3 + 3, 4)
    # The second time a client goes on from its own head and the body of today.
    number = second.ids.tolist()[0]
    begun = [body, trained[number][1] if number in trained else head]
    close(weights(own(made, end)[number])[1], stepped(begun, number)[1])


def test_fedrep_trains_the_head_first_then_the_body():
    made = fljax.experiment.algorithm(build("fedrep:2"))
    ((before, assignment, after),) = ran("fedrep:2", number=1)
    first, networks = weights(before.server.blocks), own(made, after)
    bodies = []
    for number in assignment.ids.tolist():
        one = first
        for _ in range(2):
            one = stepped(one, number, body=0)
        head = one[1]
        bodies.append(stepped(one, number, head=0)[0])
        close(weights(networks[number])[1], head)
    close(weights(after.server.blocks)[0], mean(bodies))
    assert made.federation.training.local_epochs == 3  # of the clock as well


def test_fedbn_of_one_client_is_fedavg():
    one = small.data()._replace(users=np.zeros(sum(small.SIZES), int))
    given = {"given": one, "clients_per_round": 1, "batch_size": 20}
    ends = {}
    for name in ("fedavg", "fedbn", "local"):
        ready = build(name, NORMED, **given)
        *_, (before, _, after, _) = small.rounds(ready, 2)
        made = fljax.experiment.algorithm(ready)
        row = after.clients.gather([0])[0] if after.clients else None
        ends[name] = kinds.network_of(made.seams, after.server.blocks, row)
        if name == "fedbn":  # server's norms never move
            norm = (s.server.blocks[0]["norms"] for s in (before, after))
            conftest.assert_same_bits(*norm)
    for name in ("fedbn", "local"):
        conftest.assert_close(ends[name], ends["fedavg"])


def test_norms_are_scale_bias_and_statistics():
    shapes = networks.shapes(NORMED)
    marked = personal.norms(shapes)
    assert marked[0]["params"] == {
        "Product_0": {"kernel": False, "scale": True, "bias": True}
    }
    assert jax.tree.leaves(marked[0]["norms"]) == [True, True]
    assert not any(jax.tree.leaves(marked[1]))


def test_ditto_without_pull_is_local_training_beside_fedavg():
    rounds = {name: ran(name) for name in ("fedavg", "ditto:0", "local")}
    for plain, beside, alone in zip(*rounds.values(), strict=True):
        conftest.assert_same_bits(beside[2].server, plain[2].server)
        np.testing.assert_array_equal(small.rows(beside[2]), small.rows(alone[2]))
        conftest.assert_same_bits(alone[2].server.blocks, alone[0].server.blocks)


def test_ditto_follows_the_server_by_its_pull():
    pull = 4.0
    made = fljax.experiment.algorithm(build(f"ditto:{pull}"))
    _, (before, assignment, after) = ran(f"ditto:{pull}")
    x = weights(before.server.blocks)
    mine, new = own(made, before), own(made, after)
    for number in assignment.ids.tolist():
        v = weights(mine[number])
        pulled = [
            [a - RATE * pull * (a - b) for a, b in zip(*pair, strict=True)]
            for pair in zip(v, x, strict=True)
        ]
        steps = [
            [s - a for s, a in zip(*pair, strict=True)]
            for pair in zip(stepped(v, number), v, strict=True)
        ]
        expected = jax.tree.map(np.add, pulled, steps)
        close(weights(new[number]), expected)


def test_a_large_pull_leaves_the_clients_at_the_server():
    far = {}
    for pull in ("0", "20"):  # 20 is 1 / RATE: one step goes all the way
        _, (before, assignment, after) = ran(f"ditto:{pull}")
        x = np.concatenate([np.ravel(v) for v in jax.tree.leaves(before.server.blocks)])
        rows = small.rows(after)[assignment.ids]
        again = [n in set(ran(f"ditto:{pull}")[0][1].ids) for n in assignment.ids]
        far[pull] = np.linalg.norm(rows - x, axis=1)[again]
    assert len(far["0"]) > 0
    assert np.all(far["20"] < far["0"])


def test_what_stays_is_not_sent():
    total = 4 * (64 * 4 + 4 + 4 * 3 + 3)
    head = 4 * (4 * 3 + 3)
    for name, bytes_of_one in (
        ("fedavg", total),
        ("fedper", total - head),
        ("fedrep", total - head),
        ("ditto", total),
        ("local", 0),
        ("fedper top_k:.1", 4 * 26 + int(np.ceil(min(26 * 9, 260) / 8))),
    ):
        algorithm, _, codec = name.partition(" ")
        ready = build(algorithm, codec=codec or "none")
        made = fljax.experiment.algorithm(ready)
        _, books = made.rehearse(state := made.init(), made.assign(state, 0))
        assert books.upload_bytes == 4 * bytes_of_one, name
        if not codec:
            assert books.download_bytes == 4 * bytes_of_one, name
    counts = networks.counts(NORMED)
    made = fljax.experiment.algorithm(build("fedbn", NORMED))
    kept = kinds.without(made.seams, counts, networks.shapes(NORMED))
    # Scale and bias, mean and variance of 4 channels, and PyTorch's counter.
    assert counts[0].upload_bytes - kept[0].upload_bytes == 4 * (4 * 4 + 1)


def test_a_codec_is_of_what_is_shared():
    ((before, assignment, after),) = ran("fedper", number=1, codec="top_k:.1")
    ((_, _, plain),) = ran("fedper", number=1)
    made = fljax.experiment.algorithm(build("fedper", codec="top_k:.1"))
    exact = fljax.experiment.algorithm(build("fedper"))
    for number in assignment.ids.tolist():
        coded, whole = own(made, after)[number], own(exact, plain)[number]
        conftest.assert_same_bits(coded[1], whole[1])
    moved = np.concatenate(
        [
            np.ravel(np.asarray(a) != np.asarray(b))
            for a, b in zip(
                *(jax.tree.leaves(s.server.blocks[0]) for s in (before, after)),
                strict=True,
            )
        ]
    )
    assert 26 <= moved.sum() <= 4 * 26


def test_clients_are_evaluated_by_networks_of_their_own():
    given = small.data()._replace(users_test=small.data().users)
    for name in ("fedper", "ditto:0"):
        ready = build(name, given=given, evaluation="clients")
        made = fljax.experiment.algorithm(ready)
        *_, (_, _, state, _) = small.rounds(ready, 2)
        evaluator = ready.evaluator.of(made)
        found = evaluator.fields(jax.device_get(evaluator.scores(state)))
        shares = []
        for number, blocks in enumerate(own(made, state)):
            (w, b), (u, c) = weights(blocks)
            x, y = (
                part[given.users == number] for part in (given.x_train, given.y_train)
            )
            x = ((x - given.x_train.mean()) / given.x_train.std()).reshape(len(x), -1)
            shares.append(np.mean(np.argmax((x @ w + b) @ u + c, 1) == y))
        assert found["client_test_accuracy"] == pytest.approx(np.mean(shares))
        assert found["client_test_accuracy_spread"] == pytest.approx(np.std(shares))
        assert found["clients_met"] == state.clients.visited < CLIENTS
        theirs = ready.evaluator.fields(jax.device_get(ready.evaluator.scores(state)))
        assert theirs["client_test_accuracy"] != found["client_test_accuracy"]


def test_side_by_side_is_one_by_one():
    for name in ("fedper", "ditto"):
        one, two = (ran(name, number=1, client_width=width) for width in (1, 2))
        small.assert_alike(one[0][2], two[0][2])


def test_resumed_a_run_ends_as_one_that_was_not(tmp_path):
    given = small.data()._replace(users_test=small.data().users)
    ready = build("ditto", given=given, evaluation="clients", rounds=4)
    whole = fljax.run(ready, tmp_path / "whole", tensorboard=False)
    few = dataclasses.replace(ready.settings, rounds=2)
    half = dataclasses.replace(ready, settings=few)
    fljax.run(half, tmp_path / "half", tensorboard=False)
    end = fljax.run(ready, tmp_path / "half", tensorboard=False)
    np.testing.assert_array_equal(small.rows(end.state), small.rows(whole.state))
    for one, two in zip(whole.records, end.records, strict=True):
        assert {**one, "wall_seconds": 0} == {**two, "wall_seconds": 0}


@dataclasses.dataclass(frozen=True)
class Odd(personal.Personal):
    """Says nothing of leaves."""

    def stays(self, blocks):
        """Marks blocks, not leaves."""
        return (True,) * len(blocks)


def test_one_of_ones_own_stays_too():
    ready = build("fedavg")
    made = fljax.fedprox(ready.federation.having(personal=fedper.Head()), 0.1)
    assert made.seams.personal == fedper.Head()
    assert made.parts["personal"] == fedper.Head()
    with pytest.raises(ValueError, match="expected stays to give True or False"):
        fljax.fedavg(ready.federation.having(personal=Odd()))


@pytest.mark.parametrize("rule", [fedper.Head(), ditto.Beside()], ids=str)
@pytest.mark.parametrize("name", ["cocofl", "scaffold", "feddyn", "heterofl"])
def test_what_makes_no_sense_beside_it_is_refused(rule, name):
    fed = build("fedavg", small.CONVNET).federation.having(personal=rule)
    with pytest.raises(ValueError, match=r"^(personal|narrowing): expected ") as error:
        fljax.algorithms.BY_NAME[name](fed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"algorithm": "fedper", "net": None},
            "--network: expected one of more blocks",
        ),
        ({"algorithm": "fedrep:blocks=2"}, "--network: expected one of more blocks"),
        ({"algorithm": "fedrep:0"}, "--algorithm: fedrep: head: expected 1"),
        ({"algorithm": "fedbn"}, "--network: expected one with norms"),
        ({"algorithm": "ditto:-1"}, "--algorithm: ditto: pull: expected 0 or more"),
        ({"algorithm": "local", "codec": "drive"}, "--codec: expected none beside loc"),
        ({"algorithm": "local", "aggregate": "median"}, "--aggregate: expected mean"),
        ({"algorithm": "local", "norm_bound": 2.0}, "--norm_bound: expected 0 beside"),
    ],
)
def test_bad_settings_are_one_line(settings, text):
    with pytest.raises(ValueError, match=r"^--") as error:
        fljax.experiment.algorithm(build(**settings))
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_rows_that_cannot_fit_are_refused_before_a_run(monkeypatch):
    ready = build("local")
    monkeypatch.setattr(fljax.runtime.memory, "of_host", lambda: 15_000)
    with pytest.raises(ValueError, match=r"^--algorithm: .*rows of 21 clients"):
        fljax.experiment.algorithm(ready)


def test_a_hostile_client_sends_nothing_of_what_stays_with_it():
    ready = small.build(
        small.CONVNET,
        algorithm="fedper",
        attack="gaussian:.9",
        norm_bound=1e5,  # so that lengths are measured
    )
    made = fljax.experiment.algorithm(ready)
    state = made.init()
    after, _ = made.round(state, made.assign(state, 0))
    parameters = np.asarray(after.l2)[0]
    assert parameters[:-1].all()
    assert not parameters[-1]  # of the head
    old, new = state.server.blocks[-1], after.server.blocks[-1]
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_network_that_clients_have_in_part_is_not_exported(tmp_path):
    ready = small.build(small.CONVNET, algorithm="fedper", rounds=1)
    with pytest.raises(ValueError, match="a network that the server has whole"):
        fljax.export(fljax.run(ready), tmp_path / "x.safetensors")
