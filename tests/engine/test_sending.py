"""What clients send and keep: side by side as one by one, and who keeps its row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax import plans, policies, trees
from fljax.algorithms import cocofl, scaffold
from fljax.engine import schedule
from fljax.engine import sums as totals
from fljax.updates import norm_bound
from tests import small


def end(ready, number):
    """Gives the state after rounds."""
    *_, (_, _, state, _) = small.rounds(ready, number)
    return state


# --- side by side


LONG = functools.partial(pytest.param, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "method",
    [
        {"algorithm": "scaffold", "codec": "top_k:.1"},
        {"algorithm": "feddyn"},
        {"codec": "qsgd:4"},
        {"aggregate": "median"},
        LONG({"algorithm": "scaffold"}),
        LONG({"algorithm": "scaffold:1"}),
        LONG({"algorithm": "fednova"}),
        LONG({"codec": "top_k:.1"}),
        LONG({"codec": "drive"}),
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_side_by_side_clients_are_as_one_by_one(method):
    one, three = (end(small.build(client_width=width, **method), 3) for width in (1, 3))
    small.assert_alike(one, three)
    first = fljax.experiment.algorithm(small.build(**method)).init()
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            *(jax.tree.leaves(s.server.blocks) for s in (first, one)), strict=True
        )
    ]
    assert max(moved) > 1e-3


def corrected_windows(fed):
    """Makes SCAFFOLD of windows."""
    return fljax.averaging(
        fed,
        policies.BY_NAME["random_maximal"](cocofl.setting(fed)),
        local=scaffold.Corrected(),
        server=scaffold.Control(len(small.SIZES)),
    )


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (None, {"codec": "top_k:.1"}),
        LONG(None, {"codec": "qsgd:4"}),
        LONG(None, {"codec": "drive"}),
        LONG(None, {"aggregate": "median"}),
        LONG(corrected_windows, {"codec": "top_k:.1"}),
    ],
    ids=["top_k", "qsgd", "drive", "median", "corrected"],
)
def test_windows_in_one_program_send_what_those_of_their_own_do(make, changes):
    windows = [plans.Plan(*window) for window in ((0, 1), (1, 1), (1, 2))]
    assignment = schedule.by_hand(0, np.array([0, 4, 8]), windows)

    def run(**more):
        settings = {"algorithm": "cocofl", **changes, **more}
        fed = small.build(small.CONVNET, **settings).federation
        made = (make or fljax.cocofl)(fed)
        # One round: codes of frozen blocks multiply last bits.
        return made.round(made.init(), assignment)[0]

    own = run(programs="windows")
    for width in (1, 2):
        small.assert_alike(own, run(programs="one", client_width=width))


# --- who keeps its row


KEEPING = pytest.mark.parametrize(
    "method",
    [{"algorithm": "scaffold"}, {"codec": "top_k:.1"}],
    ids=lambda method: "-".join(method.values()),
)


def changed(before, after):
    """Lists the clients whose rows are others than before, to the bit."""
    pairs = zip(small.rows(before), small.rows(after), strict=True)
    return [i for i, (a, b) in enumerate(pairs) if a.tobytes() != b.tobytes()]


@KEEPING
@pytest.mark.parametrize(
    ("faults", "bound", "reason"),
    [
        ({"nonfinite": 0.5}, 0.0, "nonfinite"),
        ({"huge": 0.4}, 3.0, "huge"),
        ({"lost": 0.5}, 0.0, "lost"),
        LONG({"truncated": 0.5}, 0.0, "truncated"),
    ],
)
def test_who_is_not_heard_of_keeps_its_row(method, faults, bound, reason):
    ready = small.build(failures=fljax.Failures(**faults), norm_bound=bound, **method)
    kept = taken = 0
    for before, assignment, after, report in small.rounds(ready, 6):
        wrong = {*assignment.outcome.events.get(reason, ())}
        refused = np.asarray(report.failed)[: len(assignment.ids)] != 0
        heard = {*assignment.ids[~refused].tolist()}
        if reason not in ("lost", "truncated"):
            assert wrong == {*assignment.ids[refused].tolist()}
        assert changed(before, after) == sorted(heard)
        kept += len([i for i in wrong if small.rows(before)[i].any()])
        taken += len(heard)
    assert kept  # some had rows already
    assert taken


@KEEPING
@pytest.mark.parametrize("width", [1, 3])
def test_padding_writes_no_row(method, width):
    # Chunks of three leave room in the last; half of the clients are not there.
    tier = fljax.Tier(name="a", share=1.0, time=1, upload=1, memory=1, availability=0.5)
    ready = small.build(
        tiers=(tier,), client_width=width, clients_per_round=8, **method
    )
    sizes = set()
    for before, assignment, after, _ in small.rounds(ready, 4):
        assert changed(before, after) == sorted(assignment.ids.tolist())
        sizes.add(len(assignment.ids))
    assert min(sizes) < 8


def test_late_clients_code_with_the_memory_of_their_start():
    """Against a loop in numpy over clients that take one full step."""
    rate, share = 0.1, 0.1
    ready = small.build(
        codec=f"top_k:{share}",
        clock=fljax.Clock(buffer=2, staleness_power=0.5),
        batch_size=max(small.SIZES),
        lr=rate,
        weight_decay=0.0,
    )
    data = small.data()
    mean, std = data.x_train.mean(), data.x_train.std()
    x = (data.x_train.reshape(len(data.x_train), -1).astype(np.float64) - mean) / std
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    y = np.eye(small.OUTPUTS)[data.y_train]

    def update(i, w):
        mine = data.users == i
        logits = x[mine] @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return -rate * x[mine].T @ (p - y[mine]) / mine.sum()

    def flat(w):  # bias first, as leaves are sorted by name
        return np.concatenate([w[-1], w[:-1].ravel()])

    def weights(state):
        bias, kernel = jax.tree.leaves(state.server.blocks[0]["params"])
        return np.concatenate([kernel, bias[None]]).astype(np.float64)

    networks, ages = [], set()
    memories = np.zeros((len(small.SIZES), x.shape[1] * small.OUTPUTS))
    number = int(np.ceil(share * memories.shape[1]))
    for before, assignment, after, _ in small.rounds(ready, 8):
        networks.append(weights(before))
        total = 0.0
        versions = assignment.outcome.arrived.versions
        for i, version in zip(assignment.ids, versions, strict=True):
            whole = memories[i] + flat(update(i, networks[version]))
            sent = np.zeros_like(whole)
            largest = np.argsort(-np.abs(whole), kind="stable")[:number]
            sent[largest] = whole[largest]
            memories[i] = whole - sent
            age = assignment.round - version
            ages.add(int(age))
            total = total + sent * (1 + age) ** -0.5
        expected = flat(networks[-1]) + total / len(assignment.ids)
        np.testing.assert_allclose(flat(weights(after)), expected, atol=2e-6)
        np.testing.assert_allclose(small.rows(after), memories, atol=2e-6)
    assert len(ages) > 1


@dataclasses.dataclass(frozen=True)
class Spoilt(scaffold.Corrected):
    """Clients of two steps send or keep what is not finite beside a sound update."""

    what: str = "message"

    numbers = 1

    def finish(self, shared, own, local):
        """Spoils a part."""
        wrong = jnp.where(local.steps == 2, jnp.nan, 1.0)
        done = super().finish(shared, own, local)._replace(numbers=jnp.ones(1))
        part = jax.tree.map(lambda x: x * wrong, getattr(done, self.what))
        return done._replace(**{self.what: part})


def spoilt(fed, what):
    full = fljax.policies.full(fed.model.net.num_blocks)
    local, server = Spoilt(what=what), scaffold.Control(len(small.SIZES))
    return fljax.averaging(fed, full, constrained=False, local=local, server=server)


@pytest.mark.parametrize("what", ["message", "own", LONG("numbers")])
def test_what_is_not_finite_beside_an_update_is_refused_with_it(what):
    made = spoilt(small.build(clients_per_round=6).federation, what)
    before = made.init()
    assignment = made.assign(before, 0)
    after, report = made.round(before, assignment)
    wrong = np.array([-(-small.SIZES[i] // 4) == 2 for i in assignment.ids])
    assert wrong.any()
    assert not wrong.all()
    failed = np.asarray(report.failed)[: len(wrong)]
    assert failed.tolist() == (wrong * totals.NOT_FINITE).tolist()
    assert changed(before, after) == sorted(assignment.ids[~wrong].tolist())
    assert trees.all_finite(after.server)


# --- how long updates are


def test_a_median_norm_leaves_out_who_sent_nothing():
    l2 = np.zeros((4, 2, 2), np.float32)
    l2[0] = [[3, 0], [0, 4]]  # 5: parameters of one block, statistics of another
    l2[1], l2[3] = 1, 10  # 2 and 20
    assert norm_bound.median(l2) == 5
    assert np.isnan(norm_bound.median(l2[2:3]))


@pytest.mark.parametrize("codec", ["none", "clip:0.01"])
def test_a_record_says_how_long_updates_are(codec):
    ready = small.build(clients_per_round=1, codec=codec)
    (_, _, after, report), *_ = runs = [*small.rounds(ready, 2)]
    before = runs[0][0]
    moved = trees.ravel(after.server.blocks) - trees.ravel(before.server.blocks)
    expected = np.linalg.norm(moved)
    assert expected > 0
    np.testing.assert_allclose(report.said["update_norm"], expected, rtol=1e-5)
    if codec != "none":
        np.testing.assert_allclose(expected, 0.01, rtol=1e-5)


def test_nobody_sees_how_long_updates_of_a_secure_sum_are():
    (*_, report), *_ = small.rounds(small.build(secure_sum="16"), 1)
    assert "update_norm" not in report.said
