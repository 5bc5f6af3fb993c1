"""Robust aggregates by hand, and what their results may not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.updates import aggregates, server
from fljax.updates.aggregates import base, combined, krum

ALL = (
    aggregates.Median(),
    aggregates.TrimmedMean(0.2),
    aggregates.Krum(1),
    aggregates.Krum(1, 3),
    aggregates.Bulyan(1),
    aggregates.GeometricMedian(),
    aggregates.CenteredClipping(0.5),
    aggregates.CenteredClipping(0.5, 3),
    aggregates.FLTrust(),
)


def seen(rows, trained=None, ids=None, root=None):
    """Makes what an aggregate sees of one block, or of several."""
    rows = rows if isinstance(rows, tuple) else (rows,)
    rows = tuple(jnp.asarray(block, jnp.float32) for block in rows)
    number = len(rows[0])
    if trained is None:
        trained = np.ones((number, len(rows)), bool)
    trained = jnp.asarray(trained, bool)
    rows = tuple(
        jnp.where(h[:, None], r, 0.0) for r, h in zip(rows, trained.T, strict=True)
    )
    ids = np.arange(number) if ids is None else ids
    if root is not None:
        root = tuple(jnp.asarray(block, jnp.float32) for block in root)
    return base.Seen(rows, trained, jnp.asarray(ids, jnp.int32), root)


def column(*values):
    return np.array(values, float)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def _combined(aggregate, state, what):
    return aggregate.combine(state, what)


def combine(aggregate, what, state=None):
    """Gives where updates lie, blocks strung together, the weights and the state."""
    if state is None:
        state = aggregate.init(tuple({"w": rows[0]} for rows in what.rows))
    got, state = _combined(aggregate, state, what)
    return np.concatenate(got.values), np.asarray(got.weights), state


@pytest.mark.parametrize(
    ("aggregate", "values", "middle"),
    [
        (aggregates.Mean(), (1, 2, 3, 100), 26.5),
        (aggregates.Median(), (1, 2, 3, 100), 2.5),
        (aggregates.TrimmedMean(0.25), (1, 2, 3, 100), 2.5),
        (aggregates.Krum(1), (0, 1, 2.1, 3, 100), 2.1),
        (aggregates.Krum(1, 3), (0, 1, 2.1, 3, 100), 6.1 / 3),
        (aggregates.GeometricMedian(1), (0, 0, 10), 2.0),
        (aggregates.GeometricMedian(2), (0, 0, 10), 10 / 9),
        # Krum takes 3 (scores 31.45, 17.32, 11.05, 10.85, 17.81, 30.45), then 2
        # (10.05), 4.2 (11.53), and of equal ones, .81 and 16.81, first 0, then .9; of
        # these the three nearest to 2 are averaged.
        (aggregates.Bulyan(1), (0, 0.9, 2, 3, 4.2, 5, 100), (0.9 + 2 + 3) / 3),
        (aggregates.CenteredClipping(1), (0.5, 2, -100), 0.5 / 3),
        # .1667 further on: 0.5 and 2 are .333 and 1 above, -100 is 1 below.
        (aggregates.CenteredClipping(1, 2), (0.5, 2, -100), 0.5 / 3 + 1 / 9),
    ],
    ids=repr,
)
def test_by_hand(aggregate, values, middle):
    got, _, _ = combine(aggregate, seen(column(*values)))
    np.testing.assert_allclose(got, [middle], rtol=1e-6)


def test_scores_of_krum_by_hand():
    what = seen(column(0, 1, 2.1, 3, 100))
    found = krum.scores(what.distances(), what.taken, 1)
    np.testing.assert_allclose(found[:4], [5.41, 2.21, 2.02, 4.81], rtol=1e-6)


def test_fltrust_by_hand():
    what = seen(np.array([[2, 0], [0, 3], [1, 1]]), root=([1, 0],))
    got, weights, _ = combine(aggregates.FLTrust(), what)
    np.testing.assert_allclose(got, [0.87868, 0.29289], atol=1e-5)
    np.testing.assert_allclose(weights, [1, 0, np.sqrt(0.5)], atol=1e-6)
    opposed = seen(np.array([[-2, 0], [0, 0]]), root=([1, 0],))
    got, weights, _ = combine(aggregates.FLTrust(), opposed)
    assert not got.any()
    assert not weights.any()


def test_centered_clipping_goes_on_from_where_it_was():
    # v = 1 after the first round; then it moves by the mean of 1 and -1/2.
    rule, state = aggregates.CenteredClipping(1.0), None
    for values, middle in (((1, 5), 1.0), ((3, 0.5), 1.25)):
        got, _, state = combine(rule, seen(column(*values)), state)
        np.testing.assert_allclose(got, [middle])
    # A block that nobody trains keeps its v; half a network of 4 counts as long as a
    # whole one of 4 root 2, so that 5 is moved by 1 / root 2.
    two = seen((column(1, 5), column(7, 7)), [[1, 0], [1, 0]])
    _, _, state = combine(rule, two, (jnp.ones(1), jnp.full(1, 0.25)))
    np.testing.assert_allclose(np.concatenate(state), [1 + np.sqrt(0.5) / 2, 0.25])


def test_what_is_missing_is_not_0():
    # Two of five trained the second block: 4 and 6. Of 0 from the others the median
    # would be 0.
    trained = [[1, 1], [1, 1], [1, 0], [1, 0], [1, 0]]
    what = seen((column(1, 2, 3, 4, 5), column(4, 6, 0, 0, 0)), trained)
    for rule, wanted in (
        (aggregates.Median(), [3, 5]),
        (aggregates.TrimmedMean(0.2), [3, 5]),
        (aggregates.GeometricMedian(1), None),
    ):
        got, _, _ = combine(rule, what)
        if wanted is not None:
            np.testing.assert_allclose(got, wanted)
        assert 4 <= got[1] <= 6


def test_distances_are_over_what_both_trained():
    # 0 and 1 share both blocks, of 1 and 3 parameters; 2 trained the second one alone.
    rows = column(0, 2, 9), np.array([[0, 0, 0], [1, 1, 1], [3, 0, 0]])
    what = seen(rows, [[1, 1], [1, 1], [0, 1]])
    expected = [[0, 7, 9 * 4 / 3], [7, 0, 6 * 4 / 3], [12, 8, 0]]
    np.testing.assert_allclose(what.distances(), expected, rtol=1e-6)
    np.testing.assert_allclose(what.lengths(), np.sqrt([0, 7, 12]), rtol=1e-6)
    # Who shares nothing is as far as the farthest pair that does.
    apart = seen(
        (column(0, 3, 0, 0), column(0, 0, 0, 1)), [[1, 0], [1, 0], [0, 1], [0, 1]]
    )
    expected = np.full((4, 4), 18.0)
    expected[[0, 1, 2, 3], [0, 1, 2, 3]] = 0
    expected[2, 3] = expected[3, 2] = 2
    np.testing.assert_allclose(apart.distances(), expected)


def test_long_updates_that_are_alike_have_their_distances():
    # Products of rows would cancel: 1e4 squared has no place for .01 squared.
    rows = 1e4 + 0.01 * np.array([[0, 0], [1, 0], [0, 2]])
    rows = rows.astype(np.float32)
    exact = np.sum(np.square(rows[:, None].astype(float) - rows[None]), axis=-1)
    np.testing.assert_allclose(seen(rows).distances(), exact, rtol=1e-5)


def windows(number=9, sizes=(5, 40, 3), hostile=0):
    """Draws updates of windows, the last of them hostile."""
    generator = np.random.default_rng(4)
    rows = tuple(generator.normal(1, 0.3, (number, size)) for size in sizes)
    for block in rows:
        block[number - hostile :] = 1e6
    trained = generator.random((number, len(sizes))) < 0.6
    trained[:, 1] = True
    root = tuple(np.ones(size) for size in sizes)
    return rows, trained, root


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_neither_order_nor_padding_matters(rule):
    rows, trained, root = windows()
    ids = np.arange(20, 29)
    root = root if rule.root_size else None
    expected, weights, state = combine(rule, seen(rows, trained, ids, root))
    assert np.all(np.isfinite(expected))
    order = np.random.default_rng(1).permutation(9)
    places = np.concatenate([order[:4], [9], order[4:], [9]])
    padded = tuple(np.concatenate([r, np.zeros_like(r[:1])])[places] for r in rows)
    mask = np.concatenate([trained, trained[:1] & False])[places]
    numbers = np.append(ids, 0)[places]
    got, other, new = combine(rule, seen(padded, mask, numbers, root))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(other, np.append(weights, 0)[places], rtol=1e-4)
    for a, b in zip(state, new, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_one_hostile_client_moves_nothing_far(rule):
    if isinstance(rule, aggregates.GeometricMedian):  # a pass comes 8 times nearer
        rule = aggregates.GeometricMedian(12)
    rows, trained, root = windows(hostile=1)
    root = root if rule.root_size else None
    for factor in (1.0, -1.0, 1e20):  # squares of the last are beyond float32
        far = tuple(np.concatenate([r[:-1], factor * r[-1:]]) for r in rows)
        got, _, _ = combine(rule, seen(far, trained | True, root=root))
        # All is within what honest clients sent, or shorter.
        assert np.all((got > -1.5) & (got < 2.5)), factor


def test_ties_go_to_the_lower_number():
    for order in ([3, 1, 2, 0], [0, 2, 1, 3]):
        numbers = np.array([7, 5, 8, 6])[order]
        rows = column(1, 1, 1, 1)[order]
        _, weights, _ = combine(aggregates.Krum(0), seen(rows, ids=numbers))
        assert numbers[weights > 0] == [5]


def test_nobody_gives_nothing():
    rows, trained, root = windows()
    for rule in ALL:
        what = seen(rows, trained & False, root=root if rule.root_size else None)
        got, weights, _ = combine(rule, what)
        assert not got.any()
        assert not weights.any()


def test_parts_give_what_the_whole_gives(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(5, 23)).astype(np.float32)
    here = jnp.array([True, True, False, True, True])
    what = seen(rows, here[:, None])
    expected = [np.median(rows[np.asarray(here)], axis=0), what.distances()]
    monkeypatch.setattr(base, "_AT_ONCE", 5 * 4)
    monkeypatch.setattr(base, "_fold", functools.partial(base._fold, values=5 * 4))
    middle = base.by_parts(
        functools.partial(aggregates.by_coordinate.median, here=here), jnp.array(rows)
    )
    np.testing.assert_allclose(middle, expected[0], rtol=1e-6)


BLOCKS = (
    {
        "norms": {"var": jnp.ones(1)},
        "params": {"w": jnp.zeros(2)},
        "ranges": {"range": jnp.ones(1)},
    },
    {"params": {"w": jnp.zeros(1)}},
)


def updates(rows, trained):
    """Makes updates of `BLOCKS`: variance, two parameters, range; a parameter."""
    rows, trained = np.array(rows, np.float32), np.array(trained, np.float32)
    rows = np.concatenate([np.repeat(trained[:, :1], 4, 1), trained[:, 1:]], 1) * rows
    numbers = jnp.arange(len(rows), dtype=jnp.int32)
    room = combined.zeros(BLOCKS, len(rows))
    sent = combined.noted(room, numbers, jnp.asarray(rows), BLOCKS, slice(0, 2))
    return sent._replace(trained=jnp.asarray(trained), ids=numbers)


def stepped(rule, sent):
    """Gives the server's state after a round."""
    weights = jnp.sum(sent.trained, axis=0)
    cohort = jnp.float32(len(sent.ids))
    totals = server.Totals(jnp.zeros(5), weights, cohort)
    state = rule.init(server.params_of(BLOCKS))
    totals, _ = combined.combine(rule, state, sent, totals, BLOCKS)
    averaging = server.server_rule.Averaging()
    return server.step(server.init(BLOCKS, averaging), totals, averaging).blocks


def test_a_hostile_clients_statistics_do_not_pass():
    # Changes of the variance -.1, -.2, -.3, and one of -50; ranges likewise.
    rows = [[-0.1, 1, 1, 0.1, 4], [-0.2, 1, 1, 0.2, 4], [-0.3, 1, 1, 0.3, 4],
            [-50, 1, 1, 90, 4]]  # fmt: skip
    sent = updates(rows, np.ones((4, 2)))
    for rule in (aggregates.Median(), aggregates.GeometricMedian()):
        first, _ = stepped(rule, sent)
        np.testing.assert_allclose(first["norms"]["var"], [0.75], rtol=1e-6)
        np.testing.assert_allclose(first["ranges"]["range"], [1.25], rtol=1e-6)
        np.testing.assert_allclose(first["params"]["w"], [1, 1], rtol=1e-6)


def test_statistics_are_of_those_who_are_chosen():
    rows = [[-0.1, 0, 0, 1, 0], [-0.2, 1, 1, 2, 0], [-0.4, 2, 2, 4, 0],
            [-0.3, 9, 9, 9, 0]]  # fmt: skip
    first, _ = stepped(aggregates.Krum(0, 2), updates(rows, np.ones((4, 2))))
    # Scores are the two nearest of each: 1 and 0 of ties at 10, 4, 10, 146.
    np.testing.assert_allclose(first["params"]["w"], [0.5, 0.5])
    np.testing.assert_allclose(first["norms"]["var"], [0.85], rtol=1e-6)
    np.testing.assert_allclose(first["ranges"]["range"], [2.5], rtol=1e-6)


def test_a_block_moves_by_the_share_that_trained_it():
    # One of four trained the second block, by 4: it moves by 1. Of the two that Krum
    # chooses nobody did, so that it keeps its bits.
    rows = [[0, 1, 1, 0, 9], [0, 1, 1, 0, 9], [0, 1, 1, 0, 9], [0, 5, 5, 0, 4]]
    sent = updates(rows, [[1, 0], [1, 0], [1, 0], [1, 1]])
    _, second = stepped(aggregates.Median(), sent)
    np.testing.assert_allclose(second["params"]["w"], [1.0])
    first, second = stepped(aggregates.Krum(0, 2), sent)
    np.testing.assert_allclose(first["params"]["w"], [1, 1])
    assert not np.any(second["params"]["w"])


def test_what_clients_send_lies_where_it_belongs():
    values = jnp.arange(10.0).reshape(2, 5)
    # The second of two rows is padding, whose position nobody has.
    what = combined.noted(
        combined.zeros(BLOCKS, 3), jnp.array([2, 3]), values, BLOCKS, slice(0, 2)
    )
    np.testing.assert_array_equal(what.params[0], [[0, 0], [0, 0], [1, 2]])
    np.testing.assert_array_equal(what.params[1], [[0], [0], [4]])
    np.testing.assert_array_equal(what.others, [[0, 0], [0, 0], [0, 3]])
    last = combined.noted(what, jnp.array([0]), values[:1, :1], BLOCKS, slice(1, 2))
    np.testing.assert_array_equal(last.params[1], [[0], [0], [4]])
    # Two who are late by a half and a quarter: variance and range were 3 and 4.
    then = ({**BLOCKS[0], "norms": {"var": 4.0}, "ranges": {"range": 5.0}}, BLOCKS[1])
    then = jax.tree.map(jnp.atleast_1d, then)
    late = jnp.array([[0.5, 0], [0.25, 1], [0, 0]])[None]
    on_devices = jax.tree.map(lambda x: x[None], what)
    moved = combined.shifted(on_devices, late, then, BLOCKS)
    np.testing.assert_array_equal(moved.others[0], [[1.5, 2], [0.75, 1], [0, 3]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: aggregates.Krum(-1), "hostile: expected at least 0, got -1"),
        (lambda: aggregates.Krum(1, 0), "chosen: expected at least 1, got 0"),
        (lambda: aggregates.Bulyan(-2), "hostile: expected at least 0, got -2"),
        (lambda: aggregates.GeometricMedian(0), "passes: expected at least 1, got 0"),
        (lambda: aggregates.GeometricMedian(2, 0.0), "floor: expected above 0"),
        (lambda: aggregates.CenteredClipping(0.0), "radius: expected above 0, got 0.0"),
        (lambda: aggregates.CenteredClipping(1.0, 0), "passes: expected at least 1"),
        (lambda: aggregates.FLTrust(0), "examples: expected at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
