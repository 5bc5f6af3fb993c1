"""Rows of clients: by hand, against a dict of arrays, and what a change costs."""

import collections
import copy
import tracemalloc

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from fljax.engine import client_rows
from fljax.runtime import memory, mesh

FIRST = np.float32([0.5, -1])


def rows_of(values):
    """Makes rows [A, 2] that tell a number each."""
    return np.stack([np.float32([value, -value]) for value in values])


def test_rows_by_hand():
    start = client_rows.Rows.empty(FIRST)
    assert (start.width, start.visited, start.nbytes) == (2, 0, 0)
    np.testing.assert_array_equal(start.gather(np.array([7, 0])), [FIRST, FIRST])
    one = start.put(np.array([7, 3]), rows_of([70, 30]))
    two = one.put(np.array([3, 2_000_000_000]), rows_of([31, 20]))
    assert (one.visited, two.visited) == (2, 3)
    ids = np.array([3, 7, 5, 2_000_000_000])
    expected = np.float32([[31, -31], [70, -70], FIRST, [20, -20]])
    np.testing.assert_array_equal(two.gather(ids), expected)
    assert two.gather(ids).dtype == np.float32
    # What was there before is what it was.
    np.testing.assert_array_equal(one.gather(ids[:2]), rows_of([30, 70]))
    np.testing.assert_array_equal(start.gather(ids[:2]), [FIRST, FIRST])
    assert two.changed(one) == one.changed(two) == [3, 2_000_000_000]
    assert two.changed(start) == [3, 7, 2_000_000_000]
    assert two.nbytes == 3 * (2 * 4 + 64) == client_rows.estimate(3, 2)


def test_nobody_and_rows_without_values():
    start = client_rows.Rows.empty(FIRST)
    nobody = np.zeros(0, np.int32)
    assert start.gather(nobody).shape == (0, 2)
    assert start.put(nobody, np.zeros((0, 2), np.float32)) == start
    hollow = client_rows.Rows.empty(np.zeros(0, np.float32))
    hollow = hollow.put(np.array([4]), np.zeros((1, 0), np.float32))
    assert (hollow.visited, hollow.gather(np.arange(5)).shape) == (1, (5, 0))


def test_what_is_given_and_what_is_got_is_the_callers_own():
    first, new = FIRST.copy(), rows_of([1])
    rows = client_rows.Rows.empty(first).put(np.array([1]), new)
    first[:], new[:] = 9, 9
    rows.gather(np.array([1, 2]))[:] = 9
    np.testing.assert_array_equal(rows.gather(np.array([1, 2])), [[1, -1], FIRST])
    with pytest.raises(ValueError, match="read-only"):
        rows.first[0] = 9


def test_every_bit_of_a_row_stays_also_from_the_device():
    bits = np.array([[0x7FC00001, 0x80000000], [0xFFA00002, 1]], np.uint32)
    new = bits.view(np.float32)
    for given in (new, jax.device_put(new)):
        rows = client_rows.Rows.empty(FIRST).put(jnp.arange(2), given)
        assert rows.gather(jnp.arange(2)).tobytes() == bits.tobytes()


def test_rows_are_one_leaf_of_a_tree_and_equal_by_their_bits():
    rows = client_rows.Rows.empty(FIRST).put(np.array([5]), rows_of([1]))
    tree = {"a": np.zeros(2), "clients": rows, "none": None}
    assert client_rows.found(tree) == [rows]
    assert client_rows.found({"a": np.zeros(2), "none": None}) == []
    assert jax.tree.map(lambda leaf: leaf, tree)["clients"] is rows
    assert copy.deepcopy(rows) == rows
    again = client_rows.Rows.empty(FIRST).put(np.array([5]), rows_of([1]))
    assert again == rows != again.put(np.array([5]), rows_of([2]))
    other = client_rows.Rows.empty(FIRST + 1).put(np.array([5]), rows_of([1]))
    assert other != rows
    # A row of its own that is as the first one is a row all the same.
    assert again.put(np.array([6]), FIRST[None]) != rows


@pytest.mark.parametrize(
    ("ids", "rows", "words"),
    [
        ([1, 1], rows_of([1, 2]), r"expected each client once, got \[1, 1\]"),
        ([1], rows_of([1, 2]), r"float32\[1, 2\], got float32\[2, 2\]"),
        ([1], np.zeros((1, 3), np.float32), r"got float32\[1, 3\]"),
        ([1], np.zeros((1, 2)), r"float32\[1, 2\], got float64\[1, 2\]"),
        ([-1], rows_of([1]), "numbers from 0 below 2,147,483,648, got"),
        ([2**31], rows_of([1]), "numbers from 0 below"),
        ([[1]], rows_of([1]), "numbers from 0 below"),
        ([1.0], rows_of([1]), "numbers from 0 below"),
    ],
)
def test_rows_that_make_no_sense_are_refused(ids, rows, words):
    with pytest.raises(ValueError, match=words):
        client_rows.Rows.empty(FIRST).put(np.array(ids), rows)


@pytest.mark.parametrize("first", [np.zeros(2), np.zeros((1, 2), np.float32)])
def test_a_first_row_that_makes_no_sense_is_refused(first):
    with pytest.raises(
        ValueError, match="first row: expected a vector of float32, got"
    ):
        client_rows.Rows.empty(first)


numbers = strategies.one_of(
    strategies.integers(0, 40), strategies.integers(0, 2**31 - 1)
)
puts = strategies.lists(
    strategies.dictionaries(numbers, strategies.integers(0, 3), max_size=40),
    max_size=8,
)


@hypothesis.given(puts, strategies.lists(numbers, max_size=10))
def test_rows_are_a_dict_of_arrays(rounds, others):
    versions = [(client_rows.Rows.empty(FIRST), {})]
    for new in rounds:
        rows, known = versions[-1]
        ids = np.array([*new], np.int64)
        given = rows_of(new.values()) if new else np.zeros((0, 2), np.float32)
        versions.append((rows.put(ids, given), known | new))
    seen = np.array([*{*others, *versions[-1][1]}], np.int64)
    last, newest = versions[-1]
    for rows, known in versions:  # the older ones too
        expected = [rows_of([known[i]])[0] if i in known else FIRST for i in seen]
        got = rows.gather(seen)
        np.testing.assert_array_equal(got, np.reshape(expected, (-1, 2)))
        assert rows.visited == len(known)
        unlike = sorted(i for i in newest if known.get(i) != newest[i])
        assert last.changed(rows) == rows.changed(last) == unlike
        assert (rows == last) == (not unlike)


def test_a_round_costs_no_more_however_many_clients_have_rows(monkeypatch):
    put, differences = client_rows._put, client_rows._differences
    calls = collections.Counter()

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    ids, new = np.arange(0, 1000, 10), np.ones((100, 16), np.float32)
    costs = []
    for visited in (1000, 1_000_000):
        start = client_rows.Rows.empty(np.zeros(16, np.float32))
        rows = start.holding(dict.fromkeys(range(visited), bytes(64)))
        with monkeypatch.context() as patch:
            patch.setattr(client_rows, "_put", counted("put", put))
            patch.setattr(client_rows, "_differences", counted("differ", differences))
            calls.clear()
            assert rows.put(ids, new).changed(rows) == ids.tolist()
            costs.append(dict(calls))
    assert costs[0] == costs[1]
    # Nodes of 32 numbers up to 990, and one on each of the six levels above them.
    assert costs[0] == {"put": 31 + 6, "differ": 31 + 6}


@pytest.mark.parametrize(("step", "most"), [(1, 1.1), (1000, 12)])
def test_the_estimate_is_about_what_rows_take(step, most):
    ids = np.arange(20_000) * step
    given = np.zeros((len(ids), 16), np.float32)
    tracemalloc.start()
    try:
        rows = client_rows.Rows.empty(given[0]).put(ids, given)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 * rows.nbytes < size < most * rows.nbytes


def test_rows_that_cannot_fit_are_refused_before_a_run(monkeypatch):
    assert client_rows.most_visited(1000, 20, 10) == 200
    assert client_rows.most_visited(100, 20, 10) == 100
    monkeypatch.setattr(memory, "of_host", lambda: 4e6)
    client_rows.require("--algorithm", 100, 9000)
    words = (
        "--algorithm: expected what fits into 4 MB of memory, got rows of 1,000 "
        "clients, 9,000 values each, which would take 36.1 MB"
    )
    with pytest.raises(ValueError, match=words):
        client_rows.require("--algorithm", 1000, 9000)


def test_every_host_gets_the_rows_of_the_first_in_parts(monkeypatch):
    rows = client_rows.Rows.empty(FIRST)
    assert client_rows.from_first_host(rows) is rows
    ids = np.arange(0, 1000, 7)
    rows = rows.put(ids, rows_of(ids))
    sent = []

    def send(tree):
        sent.append(tree)
        return tree

    def receive(tree):
        shapes = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in tree]
        first = sent.pop(0)
        assert shapes == [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in first]
        return first

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(client_rows, "_SENT", 12 * 50)
    monkeypatch.setattr(mesh, "from_first_host", send)
    assert client_rows.from_first_host(rows) == rows
    assert len(sent) == 1 + 3  # 143 rows in parts of 50
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(mesh, "from_first_host", receive)
    elsewhere = client_rows.Rows.empty(FIRST * 2).put(np.array([3]), rows_of([1]))
    assert client_rows.from_first_host(elsewhere) == rows
    assert not sent
