"""Hostile clients in rounds: who they are, what of them enters the network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fljax
from fljax import plans, trees
from fljax.algorithms import cocofl
from fljax.devices import fleet, hostile
from fljax.engine import schedule
from fljax.updates import server
from tests import small

LONG = functools.partial(pytest.param, marks=pytest.mark.long)


# --- who


@pytest.mark.parametrize(
    ("clients", "share", "number"),
    [(100, 0.2, 20), (10, 0.25, 3), (10, 0.24, 2), (9, 0.01, 1), (7, 0, 0), (3, 1, 3)],
)
def test_the_share_is_exact(clients, share, number):
    drawn = hostile.draw(share, "", fleet.of_tiers(clients), 3)
    assert drawn.sum() == number


def test_hostile_clients_are_of_the_seed_the_fewer_among_the_more():
    devices = fleet.of_tiers(100)
    few, same, other = (hostile.draw(0.1, "", devices, s) for s in (1, 1, 2))
    assert np.array_equal(few, same)
    assert not np.array_equal(few, other)
    assert np.all(hostile.draw(0.3, "", devices, 1) >= few)


def test_a_share_of_a_tier_is_of_its_clients():
    devices = fleet.of_tiers(100)  # 33, 33, 34
    drawn = hostile.draw(0.5, "weak", devices, 1)
    assert drawn.sum() == 17
    assert np.all(devices.tier[drawn] == 2)
    with pytest.raises(ValueError, match="tier: expected one of strong, medium, weak"):
        hostile.draw(0.5, "week", devices, 1)


# --- what of them enters


def algorithm(net=None, **settings):
    settings = {"clients_per_round": 9} | settings
    return fljax.experiment.algorithm(small.build(net, **settings))


def params(state):
    return np.asarray(trees.ravel(server.params_of(state.server.blocks)), np.float64)


def step(made, ids, windows=((0, 0),)):
    """Gives how far a round of given clients moves the parameters."""
    assigned = [plans.Plan(*w) for w in (windows * len(ids))[: len(ids)]]
    before = made.init()
    after, report = made.round(before, schedule.by_hand(0, np.array(ids), assigned))
    return params(after) - params(before), report


@functools.cache
def updates(seed=1, **settings):
    """Gives every client's own update, which nobody attacks."""
    made = algorithm(seed=seed, **settings)
    return np.stack([step(made, [i])[0] for i in range(len(small.SIZES))])


def enemies(attack, seed=1):
    devices = small.build(attack=attack, seed=seed).federation.population.fleet
    return hostile.draw(float(attack.split(":")[1]), "", devices, seed)


EVERYBODY = list(range(len(small.SIZES)))
MIDDLE = {"mean": np.mean, "median": np.median}


def crafted(attack, own, bad):
    """Gives what the hostile send, by numpy."""
    honest = own[~bad]
    mean, deviation = honest.mean(axis=0), honest.std(axis=0)
    if attack.startswith("sign_flip"):
        return -own[bad]
    if attack.startswith("ipm"):
        return -mean
    # f 3 of 9: q = 5 - 3, z = Phi^-1(4 / 6)
    return mean - 0.430727 * deviation


@pytest.mark.parametrize("aggregate", MIDDLE)
@pytest.mark.parametrize("attack", ["sign_flip:.33", "ipm:.33", "alie:.33"])
def test_the_network_moves_by_what_was_sent(attack, aggregate):
    bad, rows = enemies(attack), updates().copy()
    assert bad.sum() == 3
    rows[bad] = crafted(attack, rows, bad)
    moved, report = step(algorithm(attack=attack, aggregate=aggregate), EVERYBODY)
    np.testing.assert_allclose(moved, MIDDLE[aggregate](rows, axis=0), atol=1e-6)
    assert report.hostile.tolist() == bad.tolist()


def test_clients_that_weigh_by_examples_do_so_under_attack():
    sizes = np.array(small.SIZES, float)
    bad, rows = enemies("ipm:.33"), updates().copy()
    rows[bad] = crafted("ipm:.33", rows, bad)
    moved, _ = step(algorithm(attack="ipm:.33", weighting="examples"), EVERYBODY)
    np.testing.assert_allclose(moved, sizes @ rows / sizes.sum(), atol=1e-6)


def test_what_is_sent_goes_through_the_codec():
    # Of ten coordinates the codec leaves one, of those of the attack as well.
    moved, _ = step(algorithm(attack="ipm:1", codec="top_k:.1"), EVERYBODY)
    assert not moved.any()  # nobody is honest: nothing is known
    bad, rows = enemies("ipm:.33"), updates().copy()
    number = int(np.ceil(0.1 * rows.shape[1]))

    def top(rows):
        sent = np.zeros_like(rows)
        for row, into in zip(rows, sent, strict=True):
            places = np.argsort(-np.abs(row), kind="stable")[:number]
            into[places] = row[places]
        return sent

    rows = top(rows)
    rows[bad] = top(-rows[~bad].mean(axis=0)[None])
    moved, _ = step(algorithm(attack="ipm:.33", codec="top_k:.1"), EVERYBODY)
    np.testing.assert_allclose(moved, rows.mean(axis=0), atol=1e-6)


def test_labels_that_are_flipped_are_those_of_flipped_data():
    attack = "label_flip:.33"
    bad, data = enemies(attack), small.data()
    own = np.isin(data.users, np.flatnonzero(bad))
    flipped = data._replace(
        y_train=np.where(own, small.OUTPUTS - 1 - data.y_train, data.y_train)
    )
    config = small.build(clients_per_round=9).settings
    theirs = fljax.experiment.algorithm(fljax.build(config, flipped))
    made = algorithm(attack=attack)
    moved, plain = step(made, EVERYBODY)[0], updates().mean(axis=0)
    np.testing.assert_allclose(moved, step(theirs, EVERYBODY)[0], atol=1e-6)
    assert np.abs(moved - plain).max() > 1e-3


@pytest.mark.long
def test_of_windows_each_coordinate_is_of_those_who_trained_it():
    attack, windows = "ipm:.33", ((0, 2), (0, 1), (1, 2))
    settings = {"algorithm": "cocofl", "weight_decay": 0.0}
    fed = small.build(small.CONVNET, attack=attack, **settings).federation
    made = fljax.cocofl(fed)
    bad = hostile.draw(0.33, "", fed.population.fleet, fed.seed)
    # The hostile one has the window of all three blocks.
    order = [*np.flatnonzero(bad)[:1], *np.flatnonzero(~bad)[:2]]
    own = [  # of each alone
        step(algorithm(small.CONVNET, **settings), [i], (window,))[0]
        for i, window in zip(order, windows, strict=True)
    ]
    sizes = [count.params for count in fed.model.counts]
    block = np.repeat(np.arange(3), sizes)
    first, last = np.array(windows).T[:, :, None]
    here = ((first <= block) & (block <= last))[1:]
    honest = np.array(own[1:])
    assert np.all(honest[~here] == 0)
    mean = honest.sum(axis=0) / here.sum(axis=0)
    moved, _ = step(made, order, windows)
    # The hostile update is a third of the cohort's in every block.
    np.testing.assert_allclose(moved, (honest.sum(axis=0) - mean) / 3, atol=2e-6)


# --- side by side, together, late


@pytest.mark.parametrize(
    "method",
    [
        {"attack": "backdoor:.4", "aggregate": "median"},
        {"attack": "min_max:.4", "codec": "qsgd:4"},
        LONG({"attack": "gaussian:.4", "codec": "top_k:.1"}),
        LONG({"attack": "label_flip:.4", "algorithm": "scaffold"}),
        LONG({"attack": "sign_flip:.4", "algorithm": "scaffold"}),
        LONG({"attack": "alie:.4", "algorithm": "feddyn"}),
        LONG({"attack": "sign_flip:.4", "algorithm": "fednova"}),
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_side_by_side_clients_are_as_one_by_one(method):
    def end(width):
        ready = small.build(client_width=width, **method)
        *_, (_, _, state, _) = small.rounds(ready, 3)
        return state

    small.assert_alike(end(1), end(3))


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        {"attack": "gaussian:.4"},
        {"attack": "min_max:.4", "codec": "drive", "aggregate": "median"},
        {"attack": "backdoor:.4"},
        {"attack": "alie:.4"},
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_windows_in_one_program_are_as_those_of_their_own(method):
    windows = [plans.Plan(*window) for window in ((0, 1), (1, 1), (1, 2), (0, 2))]
    assignment = schedule.by_hand(0, np.array([0, 4, 8, 5]), windows)

    def run(**more):
        settings = {"algorithm": "cocofl", **method, **more}
        made = cocofl.cocofl(small.build(small.CONVNET, **settings).federation)
        after, report = made.round(made.init(), assignment)
        assert 0 < report.hostile.sum() < 4
        return after

    own = run(programs="windows")
    for width in (1, 2):
        small.assert_alike(own, run(programs="one", client_width=width))


def test_updates_that_are_late_or_tampered_with_are_attacked_as_well():
    ready = small.build(
        attack="alie:.4",
        clock=fljax.Clock(buffer=3, staleness_power=0.5),
        failures=fljax.Failures(nonfinite=0.3, huge=0.1),
    )
    there = refused = 0
    for _, assignment, state, report in small.rounds(ready, 8):
        assert trees.all_finite(state.server)
        failed = np.asarray(report.failed)[: len(assignment.ids)] != 0
        there += report.hostile.sum()
        refused += (failed & report.hostile).sum()
    assert 0 < refused < there


# --- what is seen of it


def test_records_say_who_was_hostile_and_how_far_the_backdoor_opens():
    result = fljax.run(
        small.build(
            attack="backdoor:.4:target=1",
            failures=fljax.Failures(nonfinite=0.6),
            clients_per_round=6,
            rounds=4,
        )
    )
    drawn = set(np.flatnonzero(enemies("backdoor:.4")).tolist())
    for record in result.records:
        refused = set(record.get("refused", ())) & drawn
        assert record.get("hostile_refused", []) == sorted(refused)
        assert 0 <= record["hostile"] <= 4
        assert 0 <= record["attack_success"] <= 1
    assert any("hostile_refused" in record for record in result.records)


def test_a_backdoor_opens_for_those_who_train_it_and_for_nobody_else():
    def run(attack):
        settings = {"rounds": 25, "clients_per_round": 9, "lr": 0.2}
        return fljax.run(small.build(attack=attack, **settings)).final

    # The more light the higher the class: by itself a white square leads elsewhere.
    shape = "target=0:size=4:value=6"
    without, trained = (run(f"backdoor:{s}:{shape}") for s in (0, 0.45))
    assert "hostile" not in without
    assert without["attack_success"] < 0.1
    assert trained["attack_success"] > 0.9
    assert trained["test_accuracy"] > without["test_accuracy"] - 0.15


def test_success_is_of_examples_of_other_classes():
    """Against a loop over the test set in numpy."""
    ready = small.build(attack="backdoor:.4:target=1:value=3", rounds=2)
    result, data = fljax.run(ready), small.data()
    x = data.x_test.copy()
    x[:, -3:, -3:] = 3
    mean, std = data.x_train.mean(), data.x_train.std()
    bias, kernel = jax.tree.leaves(result.state.server.blocks[0]["params"])
    logits = ((x - mean) / std).reshape(len(x), -1) @ kernel + bias
    others = data.y_test != 1
    success = np.mean(np.argmax(logits, axis=1)[others] == 1)
    assert result.final["attack_success"] == pytest.approx(float(success), abs=1e-6)


# --- one's own, and what is refused


@dataclasses.dataclass(frozen=True)
class Silence(fljax.Attack):
    """Sends zeros."""

    alters = True

    def sent(self, key, update):
        return jnp.zeros_like(update)


@dataclasses.dataclass(frozen=True)
class Short(fljax.Attack):
    """Sends too little."""

    colludes = True

    def together(self, honest):
        return honest.mean[1:]


def silent(fed):
    return fljax.fedavg(fed.having(attack=Silence(0.33)))


def test_an_attack_of_ones_own_is_named():
    made = silent(small.build(clients_per_round=9).federation)
    rows = updates().copy()
    rows[enemies("ipm:.33")] = 0
    np.testing.assert_allclose(step(made, EVERYBODY)[0], rows.mean(axis=0), atol=1e-6)
    assert made.parts == {"attack": Silence(0.33)}


def refused(line, make=fljax.fedavg, net=None, **settings):
    with pytest.raises(ValueError, match="^" + line) as error:
        make(small.build(net, **settings).federation)
    assert "\n" not in str(error.value)


def test_what_makes_no_sense_is_refused():
    refused("--attack: tier: expected one of strong, m", attack="alie:.2:week")
    refused("--attack: target: expected a class from", attack="backdoor:.2:target=9")
    refused("--norm_bound: expected 0 beside Alie", attack="alie:.2", norm_bound=3.0)
    refused(
        "--attack: expected one on a client's own data or update beside networks",
        fljax.algorithms.BY_NAME["heterofl"], small.CONVNET, attack="alie:.2",
    )  # fmt: skip
    refused("--attack: expected none", algorithm="centralized", attack="ipm:.1")

    def short(fed):
        return fljax.fedavg(fed.having(attack=Short(0.2)))

    def no_attack(fed):
        return fljax.fedavg(fed.having(attack="alie"))

    refused(r"Short\(share=0.2, tier=''\): expected together to give", short)
    refused("attack: expected an instance of fljax.Attack, got", no_attack)
