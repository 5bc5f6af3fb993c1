"""Evaluation: classes, tiers and losses by hand, order, padding, statistics."""

import jax.numpy as jnp
import numpy as np
import pytest

from fljax.engine import client, evaluate
from fljax.models import logistic, mobilenetv2
from fljax.nn import network
from fljax.tasks import base, classification
from tests import conftest

NET = logistic.logistic((2,), 3)
STATIC = evaluate.Static(NET)
# Logits are the two inputs and 0: class 2 wins where both are negative.
X = np.array([[2.0, 1], [0, 3], [-1, -1], [5, 0], [1, 2], [-2, -3], [4, 1]])
Y = np.array([0, 1, 2, 1, 0, 2, 0])  # right but for rows 3 and 4


@pytest.fixture(scope="module")
def by_hand():
    params = {"dense": {"kernel": jnp.eye(2, 3), "bias": jnp.zeros(3)}}
    data = client.Data(
        jnp.asarray(X, jnp.float32),
        jnp.asarray(Y, jnp.int32),
        jnp.zeros(1),
        jnp.ones(1),
    )
    return ({"params": params, "norms": {}, "ranges": {}, "backward": {}},), data


def scores_of(by_hand, batch_size, seed=0):
    batches = evaluate.batches(len(Y), batch_size, seed)
    return evaluate.evaluate(*by_hand, batches, static=STATIC)


@pytest.mark.parametrize("batch_size", [3, 7, 16])
def test_scores_by_hand(by_hand, batch_size):
    # Three batches of 3 hold 7 examples: the last one is padded.
    scores = scores_of(by_hand, batch_size).whole
    np.testing.assert_array_equal(scores.total, [3, 2, 2])
    np.testing.assert_array_equal(scores.correct, [2, 1, 2])
    np.testing.assert_array_equal(scores.predicted, [3, 2, 2])
    logits = np.concatenate([X, np.zeros((7, 1))], 1)
    powers = np.exp(logits)
    losses = -np.log(powers[np.arange(7), Y] / powers.sum(1))
    np.testing.assert_allclose(scores.loss, losses.sum(), rtol=1e-5)


def test_summary_by_hand(by_hand):
    # Accuracies 2/3, 1/2, 1. Tiers: all of class 0; half 1 and half 2.
    mixes = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    fields = evaluate.summary(scores_of(by_hand, 7), mixes, ("weak", "strong"))
    assert fields["test_accuracy"] == pytest.approx(5 / 7)
    assert fields["class_accuracy"] == pytest.approx([2 / 3, 0.5, 1])
    assert fields["tier_accuracy"] == pytest.approx({"weak": 2 / 3, "strong": 0.75})
    assert fields["worst_tier_accuracy"] == pytest.approx(2 / 3)
    assert fields["tier_spread"] == pytest.approx(0.75 - 2 / 3)
    assert fields["test_loss"] > 0
    # Class by class 2 * right / (there + predicted).
    assert fields["macro_f1"] == pytest.approx((4 / 6 + 2 / 4 + 4 / 4) / 3)


def test_a_class_without_test_data_is_left_out():
    predicted = np.array([7.0, 0, 1])
    scores = classification.Scores(
        np.array([3.0, 0, 1]), np.array([4.0, 0, 4]), 8.0, predicted
    )
    accuracy = classification.per_class(scores)
    np.testing.assert_array_equal(accuracy, [0.75, np.nan, 0.25])
    mixes = np.array([[0.2, 0.6, 0.2], [0.0, 1, 0], [0, 0, 0]])
    fields = evaluate.summary(
        evaluate.Scores(scores), mixes, ("a", "only unknown", "empty")
    )
    assert fields["class_accuracy"] == [0.75, None, 0.25]
    assert fields["tier_accuracy"] == pytest.approx({"a": 0.5})
    assert fields["test_loss"] == 1
    assert fields["macro_f1"] == pytest.approx((6 / 11 + 2 / 5) / 2)


def test_padding_adds_nothing_whatever_comes_of_it(by_hand):
    # A norm over padding alone may overflow; a row of NaN stands for that.
    blocks, data = by_hand
    broken = data._replace(x=data.x.at[6].set(jnp.nan))
    batches = evaluate.Batches(
        jnp.array([[0, 1], [2, 6], [6, 6]]),
        jnp.array([[1.0, 1], [1, 0], [0, 0]]),
    )
    scores = evaluate.evaluate(blocks, broken, batches, static=STATIC)
    clean = evaluate.evaluate(blocks, data, batches, static=STATIC)
    for one, other in zip(scores.whole, clean.whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_macro_f1_by_hand():
    # Always the majority: 90 % accurate; the rare class has F1 0, the other 1.8 / 1.9.
    majority = np.array([90.0, 0]), np.array([90.0, 10]), np.array([100.0, 0])
    assert base.macro_f1(*majority) == pytest.approx(1.8 / 1.9 / 2)
    # A class that is not in the test set but predicted counts, with F1 0.
    stray = np.array([3.0, 0]), np.array([4.0, 0]), np.array([3.0, 1])
    assert base.macro_f1(*stray) == pytest.approx(6 / 7 / 2)


def test_tier_mixes_by_hand():
    counts = np.array([[4, 0], [0, 2], [1, 1], [9, 9]])
    mixes = evaluate.tier_mixes(counts, np.array([0, 0, 2, 2]), 4)
    np.testing.assert_allclose(mixes, [[2 / 3, 1 / 3], [0, 0], [0.5, 0.5], [0, 0]])


def test_tiers_are_tested_on_examples_of_their_own(by_hand):
    # Right are 0 and 0 of 0, 0, 0; 1 of 1, 1; both of 2, 2.
    blocks, data = by_hand
    tiers = evaluate.one_hot(np.array([0, 0, 0, 1, 1, 2, -1]), 3)
    batches = evaluate.batches(7, 3, seed=0, tiers=tiers)
    scores = evaluate.evaluate(blocks, data, batches, static=STATIC)
    np.testing.assert_array_equal(scores.tier_total, [3, 2, 1])
    right = np.argmax(np.concatenate([X, np.zeros((7, 1))], 1), 1) == Y
    correct = jnp.sum(scores.by_tier.correct, axis=1)
    np.testing.assert_array_equal(correct, right @ tiers)
    mixes = np.full((3, 3), 1 / 3)
    fields = evaluate.summary(scores, mixes, ("a", "b", "c"))
    assert fields["tier_test_accuracy"] == pytest.approx(
        dict(zip("abc", right @ tiers / [3, 2, 1], strict=True))
    )
    lowest = min(fields["tier_test_accuracy"].values())
    assert fields["worst_tier_test_accuracy"] == lowest
    alone = evaluate.summary(scores_of(by_hand, 7), mixes, ("a", "b", "c"))
    assert not {"tier_test_accuracy", "worst_tier_test_accuracy"} & set(alone)


def test_test_examples_are_dealt_out_as_training_examples_are():
    labels = np.repeat([0, 1, 2, 3], [30, 60, 7, 5])
    by_tier = np.array([[10, 0, 1, 0], [20, 0, 1, 0], [0, 40, 1, 0]])
    dealt = evaluate.tiers_of_test(labels, by_tier, seed=0)
    by_class = np.stack([dealt[labels == c].sum(0) for c in range(4)])
    np.testing.assert_array_equal(by_class[:2], [[10, 20, 0], [0, 0, 60]])
    assert sorted(by_class[2]) == [2, 2, 3]
    np.testing.assert_array_equal(by_class[3], [0, 0, 0])  # nobody trains on it
    again = evaluate.tiers_of_test(labels, by_tier, seed=0)
    np.testing.assert_array_equal(dealt, again)
    assert (dealt != evaluate.tiers_of_test(labels, by_tier, seed=1)).any()
    # One example of a class is not always the same tier's.
    single = [evaluate.tiers_of_test([0], np.ones((3, 1)), s) for s in range(20)]
    assert (np.sum(single, axis=0) > 0).all()


def test_the_order_is_fixed_by_the_seed():
    indices, mask, _ = evaluate.batches(10, 4, seed=3)
    assert indices.shape == mask.shape == (3, 4)
    assert sorted(indices[mask == 1]) == list(range(10))
    np.testing.assert_array_equal(mask, [[1] * 4, [1] * 4, [1, 1, 0, 0]])
    assert indices[2, 2] == indices[2, 3] == indices[2, 0]  # padding repeats a row
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, evaluate.batches(10, 4, seed=3)[0])
    assert np.any(indices != evaluate.batches(10, 4, seed=4)[0])
    assert indices[mask == 1].tolist() != list(range(10))


TRACKED = network.Network(
    "tracked", (mobilenetv2.Outer(4, 3, True), mobilenetv2.Classifier(3)), (8, 8, 1), 3
)


def test_statistics_of_the_batch_or_running_ones():
    generator = np.random.default_rng(0)
    blocks = (
        {
            "params": {
                "conv": {
                    "kernel": jnp.float32(generator.standard_normal((3, 3, 1, 4))),
                    "scale": jnp.ones(4),
                    "bias": jnp.zeros(4),
                }
            },
            "norms": {"conv": {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 9.0)}},
        },
        {
            "params": {
                "dense": {
                    "kernel": jnp.float32(generator.standard_normal((4, 3))),
                    "bias": jnp.zeros(3),
                }
            }
        },
    )
    data = conftest.make_data(examples=21)

    def loss(batch_size, running, seed=0):
        batches = evaluate.batches(21, batch_size, seed)
        static = evaluate.Static(TRACKED, running=running)
        scores = evaluate.evaluate(blocks, data, batches, static=static)
        return float(scores.whole.loss)

    # Running statistics: a row's loss is its own, whatever its batch or its padding.
    assert loss(21, True) == pytest.approx(loss(8, True), rel=1e-5)
    assert loss(8, True) == pytest.approx(loss(8, True, seed=1), rel=1e-5)
    # Statistics of the batch: it matters who is in it, and padding does not count.
    assert abs(loss(21, False) - loss(8, False)) > 1e-3
    assert abs(loss(8, False) - loss(8, False, seed=1)) > 1e-3
    assert loss(21, False) == pytest.approx(loss(32, False), rel=1e-5)
    assert abs(loss(21, False) - loss(21, True)) > 1e-2
