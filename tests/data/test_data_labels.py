"""Labels that do not fit their task: one line that names the fix."""

import numpy as np
import pytest

from fljax import types
from fljax.data import checks, labels

X = np.zeros((4, 3), np.float32)


def made(check, y, **fields):
    tokens = np.ones((4, 3), np.int32)
    x = tokens if "vocabulary" in fields else X
    data = types.Dataset(x, y, x, y, **fields)
    return checks.made_by_hand(data, check)


@pytest.mark.parametrize(
    ("check", "y", "fields", "expected"),
    [
        (labels.class_numbers, [0, 2, 1, 1], {}, (np.int32, (4,), 3)),
        (labels.class_numbers, [0, 2, 1, 1], {"num_classes": 5}, (np.int32, (4,), 5)),
        (labels.numbers, [0, 2, 1, 1], {}, (np.float32, (4,), 1)),
        (labels.numbers, np.ones((4, 2)), {}, (np.float32, (4, 2), 2)),
        (labels.multi_hot, np.ones((4, 3), bool), {}, (np.int32, (4, 3), 3)),
        (labels.multi_hot, np.eye(4), {}, (np.int32, (4, 4), 4)),
        (
            labels.token_ids,
            np.ones((4, 3), np.uint16),
            {"vocabulary": 6},
            (np.int32, (4, 3), 6),
        ),
        (labels.any_numbers, np.ones((4, 2, 5)), {}, (np.float32, (4, 2, 5), 5)),
        (labels.any_numbers, [True, False] * 2, {}, (np.int32, (4,), 1)),
    ],
)
def test_labels_are_brought_into_form(check, y, fields, expected):
    data = made(check, y, **fields)
    dtype, shape, width = expected
    for part in (data.y_train, data.y_test):
        assert (part.dtype, part.shape) == (dtype, shape)
    assert data.num_classes == width


@pytest.mark.parametrize(
    ("check", "y", "fields", "words"),
    [
        (
            labels.class_numbers,
            np.zeros(4),
            {},
            r"integer class numbers from 0, which --task=classification needs, got "
            r"float64\[4\]; cast it .*, or take --task=regression$",
        ),
        (
            labels.class_numbers,
            np.zeros((4, 2)),
            {},
            r"got float64\[4, 2\]; .* or take --task=multilabel or --task=regression$",
        ),
        (
            labels.class_numbers,
            np.zeros((4, 2), int),
            {},
            r"\[4, 2\]; .*argmax.* or take --task=multilabel$",
        ),
        (
            labels.numbers,
            np.zeros((4, 2, 2)),
            {},
            r"--task=regression needs, got float64\[4, 2, 2\]",
        ),
        (labels.numbers, np.array(["a"] * 4), {}, "regression needs, got <U1"),
        (labels.numbers, np.array([0, np.nan, 0, 0]), {}, "1 NaN .* first at index"),
        (labels.numbers, np.zeros(4), {"num_classes": 2}, "must be 1, .* got 2"),
        (
            labels.multi_hot,
            np.full((4, 2), 2),
            {},
            r"rows of 0 and 1 .*got int64\[4, 2\] with other values",
        ),
        (labels.multi_hot, np.ones(4, int), {}, r"multilabel needs, got int64\[4\]$"),
        (
            labels.token_ids,
            np.ones(4, int),
            {"vocabulary": 6},
            r"\[examples, 3\], the inputs moved by one, .* got int64\[4\]",
        ),
        (
            labels.token_ids,
            np.full((4, 3), -1),
            {"vocabulary": 6},
            r"token ids from 0, but 12 are not, the first is -1 at index \(0, 0\)",
        ),
        (
            labels.token_ids,
            np.full((4, 3), 6),
            {"vocabulary": 6},
            "num_classes must be above all labels, got 6 and a label 6",
        ),
        (labels.any_numbers, np.array(["a"] * 4), {}, "must be numbers with a row"),
        (labels.any_numbers, np.full(4, 2**40), {}, "whole numbers of 32 bits"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(check, y, fields, words):
    with pytest.raises(ValueError, match=f"^data: .*{words}") as error:
        made(check, y, **fields)
    assert "\n" not in str(error.value)


def test_both_parts_have_one_shape():
    data = types.Dataset(X, np.zeros((4, 2)), X, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"same shape .*\[4, 2\] and .*\[4, 3\]"):
        checks.made_by_hand(data, labels.numbers)
    data = types.Dataset(X, np.zeros(3), X, np.zeros(4))
    with pytest.raises(ValueError, match="x_train and y_train must have one row"):
        checks.made_by_hand(data, labels.numbers)


def test_numbers_far_from_those_of_a_network_are_noted():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    years = 1990 + np.arange(40)
    data = checks.made_by_hand(types.Dataset(x, years, x, years), labels.numbers)
    (note,) = checks.notes(data, classes=False)
    assert "bring them to 0 and 1" in note
    small = data._replace(y_train=(data.y_train - 2010) / 12)
    assert checks.notes(small, classes=False) == ()
