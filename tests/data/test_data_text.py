"""Tokens: characters, subwords, padding, a vocabulary that comes back."""

import doctest
import sys

import numpy as np
import pytest

from fljax.data import text

TEXTS = ["the cat sat on the mat", "the dog sat", "a dog and a cat", ""] * 5


def test_the_alphabet_is_leafs():
    assert len(text.ALPHABET) == len(set(text.ALPHABET)) == 80
    assert text.SYMBOLS == 81


def test_characters_by_hand():
    codes = text.characters(["a}", "\n", "~é"], 3)
    assert codes.tolist() == [[54, 80, 0], [1, 0, 0], [0, 0, 0]]
    assert codes.dtype == np.uint16
    assert text.characters(["abcd"], 2).tolist() == [[54, 55]]


def test_subwords():
    pytest.importorskip("tokenizers")
    vocabulary = text.train_vocabulary("x", TEXTS, 50)
    assert vocabulary == text.train_vocabulary("x", TEXTS, 50)
    steps = []
    ids, count = text.encode("x", TEXTS, vocabulary, 4, lambda *s: steps.append(s))
    assert ids.shape == (20, 4)
    assert ids.dtype == np.uint16
    assert 2 < ids.max() < count <= 50
    assert ids[3].tolist() == [0, 0, 0, 0]  # nothing but padding
    assert np.all(ids[0] > 1)  # cut
    np.testing.assert_array_equal(ids[:4], ids[4:8])
    assert steps == [("tokenizing x", 20, 20)]
    unknown, _ = text.encode("x", ["€"], vocabulary, 4)
    assert 1 in unknown


def test_a_vocabulary_that_is_none():
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"x: expected a vocabulary .*, got 5 bytes"):
        text.encode("x", TEXTS, b"[1,2]", 4)


def test_the_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"x needs .*pip install -e '.\[text\]'"):
        text.train_vocabulary("x", TEXTS, 50)


def test_examples_of_the_docstrings():
    assert doctest.testmod(text).failed == 0
