"""Losses and scores by hand; what a mask leaves out, and how sums add up."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import tasks
from fljax.tasks import base

LOG2 = math.log(2)
EVERYBODY = jnp.ones(2)

# Two texts of three positions, of 2 tokens and of 1; of four token ids. The first
# position gives id 1 a probability of 1/2, the others give all ids 1/4.
NEXT = jnp.array([[1, 2, 0], [3, 0, 0]])
TEXTS = jnp.zeros((2, 3, 4)).at[0, 0, 1].set(math.log(3))

# Errors 0, 2, 2, 4; the first output's labels do not differ.
NUMBERS = jnp.array([[1.0, 0], [1, 1]])
GUESSES = jnp.array([[1.0, 2], [3, 5]])

MANY = jnp.array([[1, 0], [1, 1], [0, 0]])
LOGITS = jnp.array([[2.0, -1], [-0.5, 1], [1, -2]])

EXAMPLES = {  # outputs and labels
    tasks.Classification(): (TEXTS[:, 0], NEXT[:, 0]),
    tasks.Tokens(): (TEXTS, NEXT),
    tasks.Regression(): (GUESSES, NUMBERS),
    tasks.MultiLabel(): (LOGITS, MANY),
}


def recorded(task, outputs, labels, mask=None):
    mask = jnp.ones(len(labels)) if mask is None else mask
    return task.record(jax.device_get(task.scores(outputs, labels, mask)))


def test_tokens_by_hand():
    task = tasks.Tokens()
    assert task.loss(TEXTS, NEXT, EVERYBODY) == pytest.approx(5 / 3 * LOG2)
    assert task.loss(TEXTS, NEXT, jnp.array([1.0, 0])) == pytest.approx(1.5 * LOG2)
    record = recorded(task, TEXTS, NEXT)
    assert record["test_loss"] == pytest.approx(5 / 3 * LOG2)
    assert record["perplexity"] == pytest.approx(2 ** (5 / 3))
    assert record["token_accuracy"] == pytest.approx(1 / 3)  # argmax of equals is 0


def test_positions_of_padding_do_not_count():
    task = tasks.Tokens()
    wild = TEXTS.at[:, 2].set(jnp.array([9.0, -9, 0, 5]))
    assert task.loss(wild, NEXT, EVERYBODY) == task.loss(TEXTS, NEXT, EVERYBODY)
    assert recorded(task, wild, NEXT) == recorded(task, TEXTS, NEXT)
    gradient = jax.grad(task.loss)(TEXTS, NEXT, EVERYBODY)
    np.testing.assert_array_equal(gradient[NEXT == 0], 0.0)
    assert np.all(np.abs(gradient[NEXT != 0]).sum(-1) > 0)


def test_perplexity_of_a_loss_beyond_all_numbers_is_infinite():
    hopeless = jnp.full((1, 1, 2), 0.0).at[0, 0, 0].set(5000.0)
    assert recorded(tasks.Tokens(), hopeless, jnp.array([[1]]))["perplexity"] == np.inf


def test_regression_by_hand():
    task = tasks.Regression()
    assert task.loss(GUESSES, NUMBERS, EVERYBODY) == pytest.approx(6)  # of 2 and 10
    assert task.loss(GUESSES, NUMBERS, jnp.array([0.0, 1])) == pytest.approx(10)
    record = recorded(task, GUESSES, NUMBERS)
    # The second output's labels are .5 away from their mean, its errors 2 and 4.
    assert record == pytest.approx(
        {"test_loss": 6, "rmse": 6**0.5, "mae": 2, "r2": 1 - 20 / 0.5}
    )


def test_one_number_is_a_label_with_or_without_an_axis():
    task, labels = tasks.Regression(), jnp.array([1.0, 3])
    outputs = jnp.array([[2.0], [3]])
    assert task.loss(outputs, labels, EVERYBODY) == pytest.approx(0.5)
    assert task.loss(outputs, labels[:, None], EVERYBODY) == pytest.approx(0.5)
    assert recorded(task, outputs, labels)["r2"] == pytest.approx(1 - 1 / 2)
    same = recorded(task, outputs, jnp.ones(2))
    assert same["r2"] is None


def test_several_labels_by_hand():
    task = tasks.MultiLabel()
    signs = np.where(MANY == 1, 1, -1) * np.asarray(LOGITS)
    losses = np.log1p(np.exp(-signs)).mean(1)
    assert task.loss(LOGITS, MANY, jnp.ones(3)) == pytest.approx(losses.mean())
    record = recorded(task, LOGITS, MANY)
    # Predicted are 10, 01, 10: of label 0 one of two is right and one there is missed.
    assert record == pytest.approx(
        {
            "test_loss": losses.mean(),
            "macro_f1": (2 * 1 / (2 + 2) + 2 * 1 / (1 + 1)) / 2,
            "micro_f1": 2 * 2 / (3 + 3),
            "subset_accuracy": 1 / 3,
        }
    )
    # Above .3 is a logit of -.5, too, but not one of -1: 10, 11, 10.
    assert recorded(tasks.MultiLabel(0.3), LOGITS, MANY)["subset_accuracy"] == (
        pytest.approx(2 / 3)
    )


def test_a_label_that_nobody_has_is_left_out_of_macro_f1():
    nothing, ones = np.zeros(2), np.array([1.0, 0])
    assert base.macro_f1(ones, ones, ones) == 1
    assert base.macro_f1(nothing, nothing, nothing) == 0


def test_classification_by_hand():
    task = tasks.Classification()
    labels = jnp.array([1, 2])
    loss = task.loss(TEXTS[:, 0], labels, EVERYBODY)
    assert loss == pytest.approx((LOG2 + 2 * LOG2) / 2)
    assert recorded(task, TEXTS[:, 0], labels)["test_accuracy"] == 0.5


@pytest.mark.parametrize("task", EXAMPLES, ids=repr)
def test_what_the_mask_leaves_out_changes_nothing(task):
    outputs, labels = EXAMPLES[task]
    mask = jnp.ones(len(labels))
    pad = [(0, 2)] + [(0, 0)] * (outputs.ndim - 1)
    more = jnp.pad(outputs, pad, mode="edge")
    many = jnp.pad(labels, pad[: labels.ndim], mode="edge")
    masked = jnp.pad(mask, (0, 2))
    loss = float(task.loss(outputs, labels, mask))
    assert task.loss(more, many, masked) == pytest.approx(loss, rel=1e-6)
    assert task.loss(more, many, 0 * masked) == 0
    # A norm over padding alone may overflow: rows of NaN count for nothing.
    broken = more.at[len(labels) :].set(jnp.nan)
    sums, whole = (
        task.scores(*given)
        for given in ((broken, many, masked), (outputs, labels, mask))
    )
    jax.tree.map(np.testing.assert_allclose, sums, whole)


@pytest.mark.parametrize("task", EXAMPLES, ids=repr)
def test_sums_of_parts_are_those_of_the_whole(task):
    outputs, labels = EXAMPLES[task]
    mask = jnp.arange(len(labels)) == 0
    parts = [task.scores(outputs, labels, part * 1.0) for part in (mask, ~mask)]
    added = jax.tree.map(jnp.add, *parts)
    whole, found = recorded(task, outputs, labels), task.record(jax.device_get(added))
    assert found.pop("class_accuracy", None) == whole.pop("class_accuracy", None)
    assert found == pytest.approx(whole)
    assert {"test_loss", task.measure.key} <= whole.keys()


@pytest.mark.parametrize("task", EXAMPLES, ids=repr)
def test_noise_has_the_shape_of_labels(task):
    outputs, _ = EXAMPLES[task]
    drawn = task.noise(jax.random.key(0), outputs.shape)
    assert np.isfinite(task.loss(outputs, drawn, jnp.ones(len(outputs))))


def test_tasks_are_told_apart_by_their_numbers():
    assert tasks.named("multilabel:0.3") == tasks.MultiLabel(threshold=0.3)
    assert hash(tasks.named("multilabel")) == hash(tasks.MultiLabel(0.5))
    assert tasks.named("multilabel:.4") != tasks.MultiLabel()
    assert repr(tasks.named("multilabel:.4")) == "MultiLabel(threshold=0.4)"
    assert tasks.named("regression") == tasks.Regression() != tasks.Tokens()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clasification", "did you mean 'classification'"),
        ("multilabel:2", "multilabel: expected threshold between 0 and 1, got 2"),
        ("regression:2", "expected regression, got 'regression:2'"),
    ],
)
def test_what_is_no_task_is_one_line(text, words):
    with pytest.raises(ValueError, match=words):
        tasks.named(text)


def test_a_measure_knows_what_is_better():
    more, less = tasks.Measure("a", "a"), tasks.Measure("a", "a", more=False)
    assert (more.worst([1, 2]), less.worst([1, 2])) == (1, 2)
    assert more.reaches(2, 1)
    assert less.reaches(1, 2)
    assert not less.reaches(2, 1)


def test_records_tell_what_they_were_judged_by():
    for task, (outputs, labels) in EXAMPLES.items():
        assert tasks.measure_of(recorded(task, outputs, labels)) == task.measure
    assert tasks.measure_of({"test_loss": 1.0, "mine": 2}) == base.LOSS
