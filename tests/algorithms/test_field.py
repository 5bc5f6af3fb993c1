"""The algorithms of the field: rules by hand, and whole runs against numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fljax
from fljax import plans
from fljax.algorithms import fedavgm, feddyn, fednova, fedopt, fedprox, scaffold
from fljax.engine import schedule
from fljax.updates import local_rule, server_rule


def params(*values):
    return ({"w": jnp.asarray(values, jnp.float32)},)


def got(delta, message=None, numbers=None, weight=1.0):
    return server_rule.Received(
        delta,
        message,
        None if numbers is None else jnp.asarray(numbers, jnp.float32),
        jnp.float32(weight),
        jnp.array([True]),
    )


def value(tree):
    (leaf,) = (block["w"] for block in tree)
    return np.asarray(leaf)


def moved(rule, *rounds):
    """Gives where a network of 0 is after rounds of these deltas."""
    x = params(0.0)
    state, way = rule.init(x), []
    for delta in rounds:
        updates, state = rule.step(state, x, got(params(delta)))
        x = params(*(value(x) + value(updates)))
        way.append(float(value(x)[0]))
    return way


def local(delta, steps, rate=0.1, gradient=None):
    return local_rule.Local(
        params(delta), jnp.int32(steps), jnp.float32(rate), lambda: params(gradient)
    )


def test_fedavgm_by_hand():
    assert moved(fedavgm.Momentum(0.9), 1, 1) == pytest.approx([1, 2.9])
    assert moved(fedavgm.Momentum(0.9, True), 1, 1) == pytest.approx([1.9, 4.61])


def test_fedadam_by_hand():
    # m = .1, v = .99 tau^2 + .01: lr m / (sqrt v + tau).
    assert moved(fedopt.Adaptive("adam"), 1) == pytest.approx([0.0990051], rel=1e-5)


def test_fedyogi_and_fedadagrad_by_hand():
    tau = 1e-3
    v = tau**2 + 0.01  # v is below D^2
    expected = 0.1 * 0.1 / (np.sqrt(v) + tau)
    assert moved(fedopt.Adaptive("yogi"), 1) == pytest.approx([expected], rel=1e-5)
    v = tau**2 + 1
    expected = 0.1 / (np.sqrt(v) + tau)
    assert moved(fedopt.Adaptive("adagrad", b1=0.0), 1) == pytest.approx(
        [expected], rel=1e-5
    )


def test_adaptive_rules_without_what_optax_corrects():
    rule = server_rule.server_rule(optax.adam, 0.1, b2=0.99, eps=1e-3)
    assert moved(rule, 1) == pytest.approx([0.0999001], rel=1e-5)
    assert repr(rule) == "optax.adam(0.1, b2=0.99, eps=0.001)"


def test_fedprox_by_hand():
    rule = fedprox.Proximal(0.5).transform(None, None)
    state = rule.init(params(0.0))
    gradients, _ = rule.update(params(2.0), state, params(1.0))
    assert 1 - 0.1 * value(gradients)[0] == pytest.approx(0.75)
    first, _ = rule.update(params(2.0), state, params(0.0))
    assert value(first)[0] == 2  # finite where y = x


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_by_hand(option):
    # g is 3 always: two steps of .1 along 3 - 0 + 1 from 0.
    rule = scaffold.Corrected(option)
    own, shared = params(0.0), params(1.0)
    change = rule.transform(shared, own)
    gradients, _ = change.update(params(3.0), change.init(params(0.0)))
    y = -2 * 0.1 * value(gradients)[0]
    assert y == pytest.approx(-0.8)
    done = rule.finish(shared, own, local(y, steps=2, gradient=3.0))
    assert value(done.own)[0] == pytest.approx(3)
    control = scaffold.Control(10)
    updates, state = control.step(shared, params(0.0), got(done.delta, done.message))
    assert value(updates)[0] == pytest.approx(-0.8)
    assert value(state)[0] == pytest.approx(1.3)


def test_fednova_by_hand():
    rule = fednova.Normalized()
    sent = [rule.finish(None, None, local(d, t)) for d, t in ((-1.0, 1), (-6.0, 3))]
    mean = params(np.mean([value(done.delta)[0] for done in sent]))
    numbers = np.mean([done.numbers for done in sent], axis=0)
    updates, _ = fednova.Rescaled().step((), params(0.0), got(mean, numbers=numbers))
    assert value(updates)[0] == pytest.approx(-3)
    (a,) = fednova.Normalized(0.9).finish(None, None, local(1.0, 2)).numbers
    assert float(a) == pytest.approx(2.9, rel=1e-5)


@pytest.mark.parametrize(
    ("momentum", "mu", "steps", "length"),
    [
        # v <- r v + 1, a <- a + v; or a <- (1 - e mu) a + 1, with e = .1.
        (0.9, 0.0, 3, 1 + 1.9 + 2.71),
        (0.999999, 0.0, 3, 1 + 1.999999 + 2.999997),
        (0.0, 1.0, 3, 1 + 0.9 + 0.81),
        (0.0, 1e-8, 4, 4),
        (0.0, 1e-3, 4, 4 - 6e-4),
    ],
)
def test_fednova_counts_what_steps_sum_to(momentum, mu, steps, length):
    done = fednova.Normalized(momentum, mu).finish(None, None, local(1.0, steps))
    assert 1 / value(done.delta)[0] == pytest.approx(length, rel=1e-6)
    (leading,) = done.numbers
    assert float(leading) == pytest.approx(steps if mu else length, rel=1e-6)


def test_feddyn_by_hand():
    done = feddyn.Regularized(1.0).finish(None, params(0.0), local(1.0, 1))
    assert value(done.own)[0] == -1
    rule = feddyn.Dynamic(2, 1.0)
    updates, state = rule.step(params(0.0), params(0.0), got(done.delta))
    assert value(state)[0] == -0.5
    assert value(updates)[0] == 1.5


# Whole runs: a softmax regression whose clients take full steps, so that no order of
# examples matters, against a loop over clients and steps in numpy.

N, CLASSES, RATE, STEPS, ROUNDS = 4, 3, 0.2, 3, 4
SIZES = (5, 3, 8, 4)


def data():
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(N), SIZES)
    x = random.normal(size=(sum(SIZES), 4)).astype(np.float32)
    y = random.integers(0, CLASSES, len(x)).astype(np.int32)
    y[:CLASSES] = range(CLASSES)
    return fljax.Dataset(x, y, x, y, CLASSES, users=users)


def settings(algorithm, **changes):
    return fljax.Config(
        **{
            "algorithm": algorithm,
            "network": "logistic",
            "partition": "natural",
            "clients_per_round": 2,
            "rounds": ROUNDS,
            "local_epochs": STEPS,
            "batch_size": max(SIZES),
            "lr": RATE,
            "weight_decay": 0.0,
            **changes,
        }
    )


class Reference:
    """The algorithms as loops in float64."""

    def __init__(self, given):
        mean, std = given.x_train.mean(0), given.x_train.std(0)
        x = (given.x_train.astype(np.float64) - mean) / std
        ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        self.x = [ones[given.users == i] for i in range(N)]
        self.y = [np.eye(CLASSES)[given.y_train[given.users == i]] for i in range(N)]

    def gradient(self, i, w):
        logits = self.x[i] @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return self.x[i].T @ (p - self.y[i]) / len(self.x[i])

    def walk(self, i, x, change=lambda g, y: g, steps=STEPS):
        y = x.copy()
        for _ in range(steps):
            y -= RATE * change(self.gradient(i, y), y)
        return y

    def fedavg(self, x, cohorts):
        for ids in cohorts:
            x = np.mean([self.walk(i, x) for i in ids], axis=0)
        return x

    def fedprox(self, x, cohorts, mu=0.5):
        for ids in cohorts:
            x = np.mean(
                [self.walk(i, x, lambda g, y, x=x: g + mu * (y - x)) for i in ids], 0
            )
        return x

    def scaffold(self, x, cohorts, option=2):
        c, own = np.zeros_like(x), [np.zeros_like(x) for _ in range(N)]
        for ids in cohorts:
            ys, changes = [], []
            for i in ids:
                y = self.walk(i, x, lambda g, y, i=i, c=c: g - own[i] + c)
                new = own[i] - c + (x - y) / (STEPS * RATE)
                if option == 1:
                    new = self.gradient(i, x)
                changes.append(new - own[i])
                own[i] = new
                ys.append(y)
            c = c + np.sum(changes, axis=0) / N
            x = np.mean(ys, axis=0)
        return x

    def feddyn(self, x, cohorts, alpha=0.3):
        h, own = np.zeros_like(x), [np.zeros_like(x) for _ in range(N)]
        for ids in cohorts:
            ys = []
            for i in ids:
                y = self.walk(i, x, lambda g, y, i=i, x=x: g - own[i] + alpha * (y - x))
                own[i] = own[i] - alpha * (y - x)
                ys.append(y)
            h = h - alpha / N * np.sum([y - x for y in ys], axis=0)
            x = np.mean(ys, axis=0) - h / alpha
        return x


def ran(ready):
    """Runs rounds by hand; gives the networks before and after, and who took part."""
    made, state, cohorts = fljax.experiment.algorithm(ready), None, []
    state = first = made.init()
    for index in range(ready.settings.rounds):
        assignment = made.assign(state, index)
        cohorts.append(assignment.ids.tolist())
        state, _ = made.round(state, assignment)
    return weights(first), weights(state), cohorts


def weights(state):
    (block,) = state.server.blocks
    kernel, bias = sorted(
        (np.asarray(x, np.float64) for x in jax.tree.leaves(block["params"])),
        key=lambda x: -x.ndim,
    )
    return np.concatenate([kernel.reshape(-1, CLASSES), bias[None]])


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("fedavg", "fedavg", {}),
        ("fedprox:0.5", "fedprox", {}),
        ("scaffold", "scaffold", {}),
        ("scaffold:1", "scaffold", {"option": 1}),
        ("feddyn:0.3", "feddyn", {}),
        ("fednova", "fedavg", {}),  # all take as many steps
    ],
)
def test_whole_runs_follow_the_loop(name, method, options):
    given = data()
    first, last, cohorts = ran(fljax.build(settings(name), given))
    assert len({i for ids in cohorts for i in ids}) == N  # some come again
    expected = getattr(Reference(given), method)(first, cohorts, **options)
    np.testing.assert_allclose(last, expected, atol=2e-6)
    assert np.abs(last - first).max() > 0.1


def test_fednova_of_uneven_steps_follows_the_loop():
    given = data()
    first, last, cohorts = ran(
        fljax.build(settings("fednova", batch_size=1, rounds=1, local_epochs=1), given)
    )
    mean_steps = np.mean([SIZES[i] for i in cohorts[0]])
    one_by_one = fljax.build(
        settings("fedavg", batch_size=1, rounds=1, local_epochs=1), given
    )
    made = fljax.experiment.algorithm(one_by_one)
    deltas = []
    for i in cohorts[0]:
        alone = schedule.by_hand(0, np.array([i]), [plans.full(1)])
        state, _ = made.round(made.init(), alone)
        deltas.append((weights(state) - first) / SIZES[i])
    expected = first + mean_steps * np.mean(deltas, axis=0)
    np.testing.assert_allclose(last, expected, atol=1e-6)


def test_one_full_step_of_fedavg_is_gradient_descent():
    given = data()
    changes = {"local_epochs": 1, "clients_per_round": N, "weighting": "examples"}
    first, last, _ = ran(fljax.build(settings("fedavg", rounds=1, **changes), given))
    reference = Reference(given)
    shares = np.array(SIZES) / sum(SIZES)
    gradient = sum(p * reference.gradient(i, first) for i, p in enumerate(shares))
    np.testing.assert_allclose(last, first - RATE * gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"momentum": 0.9}, "--momentum: expected 0 beside scaffold"),
        ({"client_optimizer": "adamw"}, "--client_optimizer: expected sgd beside"),
        ({"weighting": "examples"}, "--weighting: expected uniform beside scaffold"),
        ({"clock": fljax.Clock(buffer=2)}, "--clock.buffer: expected rounds without"),
        ({"aggregate": "median"}, "--aggregate: expected mean beside scaffold"),
    ],
)
def test_scaffold_refuses_what_makes_no_sense(changes, line):
    ready = fljax.build(settings("scaffold", **changes), data())
    with pytest.raises(ValueError, match=line):
        fljax.experiment.algorithm(ready)


@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        ("fedproxx", "--algorithm: .*docs/tutorials/algorithm.*did you mean 'fedprox'"),
        ("fedprox:-1", "--algorithm: fedprox: mu: expected 0 or more"),
        ("fedprox:a", "--algorithm: fedprox: mu: expected a number"),
        ("fedprox:1:2", "--algorithm: expected fedprox:MU, got"),
        ("cocofl:balanced", "--algorithm: expected cocofl, with .* in --policy"),
        ("fednova:5", "--algorithm: fednova: mu: expected less than 1 over .*, 5, got"),
        ("scaffold:3", "--algorithm: scaffold: option: expected 1 or 2"),
    ],
)
def test_wrong_algorithms_are_one_line(algorithm, line):
    with pytest.raises(ValueError, match=line) as error:
        fljax.run(settings(algorithm, num_clients=5, partition="iid"))
    assert "\n" not in str(error.value)
