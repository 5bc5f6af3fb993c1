"""Evaluation per client: against each by itself, fine-tuning, figures by hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import fljax
from fljax import tasks
from fljax.devices import hostile as draw
from fljax.engine import client, evaluate
from fljax.engine.per_client import figures
from fljax.experiment import client_evaluation
from fljax.experiment.pictures import panels
from tests import small

MEASURE = tasks.DEFAULT.measure
OWNER = np.array([0, 0, 0, 2, 2, 4, 4, 4, 4, 4, 8] + [-1] * 4)


def data():
    """Gives data in which clients 0, 2, 4 and 8 have test examples."""
    whole, few = small.data(), len(OWNER)
    x, y = whole.x_train[:few], whole.y_train[:few]
    return whole._replace(x_test=x, y_test=y, users_test=OWNER)


def build(net=None, given=None, **changes):
    usual = small.build().settings
    settings = dataclasses.replace(usual, **({"evaluation": "clients"} | changes))
    return fljax.build(settings, data() if given is None else given, net)


def ran(net=None, **changes):
    return fljax.run(build(net, rounds=2, **changes))


def each(ready, state):
    """Evaluates the clients of an experiment; gives their accuracies before, after."""
    found = jax.device_get(ready.evaluator.scores(state).clients)
    rows = {}
    for which in ("before", "after"):
        parts = [getattr(tested, which) for tested in found.scores]
        if parts[0] is not None:
            sums = [(np.sum(p.correct, -1), np.sum(p.total, -1)) for p in parts]
            correct, total = (np.concatenate(x) for x in zip(*sums, strict=True))
            rows[which] = correct, total
    return rows


def test_figures_by_hand():
    found = np.array([0.9, 0.1, 0.5, 0.5] + [1.0] * 7)  # of 11: a tenth is 2
    counts, tier = np.ones(11, int), np.array([0, 0, 1, 1] + [0] * 7)
    counts[1] = 10
    made = figures.summary(found, counts, tier, ["a", "b", "none"], MEASURE)
    assert made["mean"] == pytest.approx(9 / 11)
    assert made["by_samples"] == pytest.approx((9 - 0.1 + 10 * 0.1) / 20)
    assert made["worst_tenth"] == pytest.approx(0.3)
    assert made["spread"] == pytest.approx(np.std(found, ddof=0))
    assert made["by_tier"] == pytest.approx({"a": 8 / 9, "b": 0.5})
    worst = figures.summary(found, counts, tier, ["a", "b"], tasks.base.LOSS)
    assert worst["worst_tenth"] == 1.0  # of losses the highest are the worst


@pytest.mark.parametrize("net", [None, small.CONVNET], ids=["logistic", "convnet"])
def test_clients_score_what_the_network_scores_on_their_examples(net):
    # CONVNET goes by statistics of the batch: those of a client's own examples.
    ready = build(net)
    (_, _, state, _), *_ = small.rounds(ready, 1)
    given, fed = data(), ready.federation
    people = fed.population.data
    test = client.Data(given.x_test, given.y_test, people.mean, people.std)
    static = evaluate.Static(fed.model.net)
    fields = ready.evaluator.fields(jax.device_get(ready.evaluator.scores(state)))
    shares = []
    for number in (0, 2, 4, 8):
        rows = np.flatnonzero(number == OWNER).astype(np.int32)
        alone = evaluate.Batches(rows[None], np.ones((1, len(rows)), np.float32))
        whole = evaluate.evaluate(state.server.blocks, test, alone, static=static).whole
        shares.append(float(np.sum(whole.correct)) / len(rows))
    assert fields["client_test_accuracy"] == pytest.approx(np.mean(shares))
    assert fields["client_test_accuracy_worst_tenth"] == pytest.approx(min(shares))
    assert fields["client_test_accuracy_spread"] == pytest.approx(np.std(shares))
    by_samples = np.average(shares, weights=[3, 2, 5, 1])
    assert fields["client_test_accuracy_by_samples"] == pytest.approx(by_samples)
    assert (fields["clients_evaluated"], fields["clients_with_test"]) == (4, 4)


def test_the_global_records_keep_their_bits():
    plain, beside = ran(evaluation="global"), ran()
    for one, two in zip(plain.records, beside.records, strict=True):
        assert {k: two[k] for k in one if k != "wall_seconds"} == {
            k: v for k, v in one.items() if k != "wall_seconds"
        }


def test_fine_tuning_is_a_round_of_one_client():
    # What a client of one round of its own would have, without momentum or noise.
    ready = build(evaluation="clients:2", batch_size=10, weight_decay=0.0)
    (_, _, state, _), *_ = small.rounds(ready, 1)
    scores = each(ready, state)
    fed, given = ready.federation, data()
    blocks = jax.tree.map(np.asarray, state.server.blocks)
    kernel, bias = (blocks[0]["params"]["dense"][n] for n in ("kernel", "bias"))
    people = fed.population.data
    correct = []
    for number in (0, 2, 4, 8):
        rows = np.flatnonzero(given.users == number)
        test = np.flatnonzero(number == OWNER)
        x, t = (
            ((a - np.asarray(people.mean)) / np.asarray(people.std)).reshape(len(a), -1)
            for a in (given.x_train[rows], given.x_test[test])
        )
        w, b, wanted = kernel, bias, np.eye(3)[given.y_train[rows]]
        for _ in range(2):  # all examples in one batch
            powers = np.exp(x @ w + b)
            off = (powers / powers.sum(1, keepdims=True) - wanted) / len(rows)
            w, b = w - 0.05 * x.T @ off, b - 0.05 * off.sum(0)
        guess = np.argmax(t @ w + b, 1)
        correct.append(np.sum(guess == given.y_test[test]))
    assert sorted(scores["after"][0].tolist()) == sorted(correct)
    assert scores["before"][0].sum() <= scores["after"][0].sum()


def test_padding_and_width_change_nothing():
    runs = [
        ran(
            small.CONVNET, evaluation="clients:1", client_width=width, eval_batch_size=b
        )
        for width, b in ((1, 500), (3, 45))
    ]
    for key, value in runs[0].final.items():
        if "client_test" in key:
            assert runs[1].final[key] == pytest.approx(value, abs=1e-5), key


def test_a_sample_is_said():
    ready = build(evaluation="clients:0:3")
    note = next(note for note in ready.notes if "drawn by the seed" in note)
    assert note.startswith("3 of the 4 clients that have test examples")
    assert any("5 of 9 clients have no test examples" in note for note in ready.notes)
    record = fljax.run(ready).final
    assert (record["clients_evaluated"], record["clients_with_test"]) == (3, 4)


def test_hostile_clients_are_left_out_of_the_figures():
    ready = build(attack="sign_flip:.5", rounds=1)
    result = fljax.run(ready)
    hostile = draw.draw(0.5, "", ready.federation.population.fleet, 1)[[0, 2, 4, 8]]
    assert 0 < hostile.sum() < 4
    correct, total = each(ready, result.state)["after"]  # of all, in another order
    found = dict(zip(total.tolist(), correct / total, strict=True))
    shares = [found[n] for n, bad in zip((3, 2, 5, 1), hostile, strict=True) if not bad]
    assert result.final["clients_evaluated"] == len(shares)
    assert result.final["client_test_accuracy"] == pytest.approx(np.mean(shares))
    spread = result.final["client_test_accuracy_spread"]
    assert spread == pytest.approx(np.std(shares))


def test_nobody_is_evaluated_where_all_are_hostile():
    ready = build(attack="sign_flip:1", evaluation="clients:0:1")
    with pytest.raises(ValueError, match=r"^--evaluation: .*not hostile, since"):
        fljax.run(ready)


def test_other_tasks_have_their_measure():
    whole = small.data("regression")
    whole = whole._replace(users_test=whole.users)
    result = fljax.run(build(given=whole, task="regression", rounds=1))
    key = result.measure.key
    final = result.final
    assert final[f"client_{key}_worst_tenth"] >= final[f"client_{key}"] > 0
    assert math.isfinite(panels.of(result.measure)["worst_tenth"].value(final))


@pytest.mark.parametrize(
    ("evaluation", "text"),
    [
        ("clients:-1", "epochs: expected 0 to 100000"),
        ("clients:0:0", "most: expected 1 or more"),
        ("client", "expected global, clients, got 'client'"),
        ("clients:x", "epochs"),
    ],
)
def test_bad_settings_are_one_line(evaluation, text):
    with pytest.raises(ValueError, match=r"^--evaluation: ") as error:
        fljax.build(fljax.Config(evaluation=evaluation))
    assert text in str(error.value)


def test_nobody_knows_whose_the_test_examples_are():
    with pytest.raises(ValueError, match=r"^--evaluation: expected global beside"):
        build(given=small.data())


def test_nothing_is_compiled_again_from_round_to_round():
    ready = build(evaluation="clients:1")
    compiled = client_evaluation.program.run._cache_size
    fljax.run(dataclasses.replace(ready, settings=ready.settings))
    before = compiled()
    fljax.run(ready)
    assert compiled() == before
