"""Secure sums: numbers by hand, no overflow, masks that cancel, who masks whom."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fljax.updates import secure_sum

WORDS = secure_sum.Words(bits=3, most=100, unit=1.0, neighbours=3, masks=True)


def signed(words):
    """Reads words as whole numbers."""
    return np.asarray(words).view(np.int32).tolist()


@pytest.mark.parametrize(
    ("value", "draw", "expected"),
    [
        (0.3, 0.5, 2),  # 2.4 steps of 1/8
        (0.3, 0.3, 3),
        (-0.3, 0.5, -2),
        (-0.3, 0.7, -3),
        (0.25, 0.0, 2),  # what is a whole number stays
        (-0.25, 0.999, -2),
        (13.0, 0.0, 100),  # clipped
        (-1e30, 0.0, -100),
        (np.inf, 0.5, 100),
        (0.0, 0.0, 0),
    ],
)
def test_steps_by_hand(value, draw, expected):
    words = secure_sum.coded(WORDS, jnp.float32([value]), 1.0, jnp.float32([draw]))
    assert words.dtype == jnp.uint32
    assert signed(words) == [expected]


def test_weights_count_and_those_of_zero_send_zeros():
    heavy = secure_sum.Words(bits=3, most=100, unit=4.0, neighbours=3, masks=False)
    vector = jnp.float32([1.0, -0.5])
    assert signed(secure_sum.coded(heavy, vector, 3.0, 0.9)) == [6, -3]
    assert secure_sum.opened(heavy, jnp.uint32([6])).tolist() == [3.0]
    wrong = jnp.float32([np.nan, np.inf])
    assert signed(secure_sum.coded(heavy, wrong, 0.0, 0.9)) == [0, 0]


def test_rounding_keeps_the_mean():
    draws = np.random.default_rng(1).random(40_000, np.float32)
    vector = jnp.full(draws.size, 0.3, jnp.float32)
    mean = np.mean(signed(secure_sum.coded(WORDS, vector, 1.0, draws)))
    assert mean == pytest.approx(2.4, abs=4 * np.sqrt(0.24 / draws.size))


def test_no_mean_of_variances_falls_below_zero():
    generator = np.random.default_rng(2)
    old = np.float32(generator.random((50, 1)) / 100)  # far below a step
    new = np.float32(generator.random((50, 7)) / 100)
    coded = secure_sum.coded(WORDS, jnp.float32(new - old), 1.0, 0.9, upward=True)
    total = secure_sum.opened(WORDS, secure_sum.added(coded.T, None))
    mean = old[:, 0] + np.asarray(total) / 7
    true = new.mean(axis=1)
    assert np.all((true - 1e-6 <= mean) & (mean <= true + 1 / 8 + 1e-6))


@pytest.mark.parametrize("clients", [2, 3, 7, 10, 100, 1000, 65_537, 2**20 + 1])
def test_no_cohort_overflows(clients):
    for bits in range(1, 31):
        try:
            words = secure_sum.make(secure_sum.SecureSum(bits), clients, 1.0)
        except ValueError:
            assert (
                2**bits * clients >= 2**31 * 0.99
            )  # more than about half would be lost
            continue
        assert np.float32(words.most) == words.most  # rounds up to no more
        assert words.most * clients <= 2**31 - 1
        assert words.most * words.step >= 1
        for sign in (1, -1):
            word = secure_sum.coded(words, jnp.float32([sign * 1e9]), 1.0, 0.5)
            total = np.uint32(clients * int(word[0]) % 2**32)  # as clients add them up
            opened = secure_sum.opened(words, jnp.array([total]))
            assert (
                float(opened[0]) == np.float32(sign * clients * words.most) * words.step
            )


def test_sums_are_those_of_a_loop_to_the_bit_in_any_order():
    words = secure_sum.make(secure_sum.SecureSum(12), 9, 10.0)
    assert words.unit == 16
    generator = np.random.default_rng(3)
    vectors = np.float32(
        generator.normal(size=(9, 500)) * 10.0 ** np.arange(-4, 5)[:, None]
    )
    weights = np.float32(generator.integers(1, 11, 9))
    draws = generator.random((9, 500), np.float32)
    coded = jax.vmap(lambda v, w, d: secure_sum.coded(words, v, w, d))(
        vectors, weights, draws
    )
    total = [0] * 500
    for vector, weight, draw in zip(vectors, weights, draws, strict=True):
        for place in range(500):
            # In numpy's float32, as the client's device would.
            scaled = vector[place] * (weight / np.float32(words.step))
            scaled = np.clip(scaled, -np.float32(words.most), np.float32(words.most))
            low = np.floor(scaled)
            total[place] += int(low) + int(draw[place] < scaled - low)
    expected = np.float32(total) * np.float32(words.step)
    for order in (np.arange(9), generator.permutation(9), np.arange(9)[::-1]):
        parts = [secure_sum.added(coded[part], None) for part in np.split(order, 3)]
        got = secure_sum.opened(words, sum(parts))
        assert np.asarray(got).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "bits: expected a whole number from 1 to 30, got 0"),
        ("31", "bits: expected a whole number from 1 to 30, got 31"),
        ("16:3", "neighbours: expected an even number"),
        ("16:-2", "neighbours: expected a whole number"),
        ("16:2:maybe", "masks: expected true or false, got 'maybe'"),
        ("16:clip=3", "expected secure_sum:BITS:NEIGHBOURS:MASKS"),
        ("", "bits: "),
    ],
)
def test_bad_texts(text, message):
    with pytest.raises(ValueError, match=message) as error:
        secure_sum.read(text)
    assert len(str(error.value).splitlines()) == 1


def test_texts():
    assert secure_sum.read("none") is None
    assert secure_sum.read("16") == secure_sum.SecureSum(16)
    assert secure_sum.read("16:8:true") == secure_sum.SecureSum(16, 8, True)


@pytest.mark.parametrize(
    ("bits", "clients", "message"),
    [
        (16, 1, "--secure_sum: expected 2 clients a round or more"),
        (28, 10, "--secure_sum: expected at most 27 bits beside 10 clients"),
        (21, 1025, "--secure_sum: expected at most 20 bits beside 1,025 clients"),
    ],
)
def test_what_could_overflow_is_refused(bits, clients, message):
    with pytest.raises(ValueError, match=message):
        secure_sum.make(secure_sum.SecureSum(bits), clients, 1.0)


def test_bytes_by_hand():
    words = secure_sum.make(secure_sum.SecureSum(16), 10, 1.0)
    # Two keys; to nine neighbours 92 bytes of sealed shares and a share; five words.
    assert secure_sum.sent_beside(words, 4) == 64 + 9 * (92 + 32) + 4 * 5
    # Of nine neighbours two keys, sealed shares, a number.
    assert secure_sum.received_beside(words) == 9 * (64 + 92 + 4)
    few = secure_sum.make(secure_sum.SecureSum(16, 4), 10, 1.0)
    assert secure_sum.sent_beside(few, 4) == 64 + 4 * (92 + 32) + 4 * 5


# --- masks


BLOCK_OF = np.repeat(np.arange(3, dtype=np.int32), [5, 2, 6])
STREAM = secure_sum.Stream(jax.random.key(7), 13, 0, 13, BLOCK_OF)
# Of seven clients; block 2 is of four, of whom one is left.
WINDOWS = dict(
    zip(
        range(10, 17),
        [(0, 2), (0, 1), (1, 1), (1, 2), (2, 2), (2, 2), (0, 0)],
        strict=True,
    )
)


@jax.jit
def masked(values, me, partners):
    return secure_sum.masked(STREAM, values, me, partners)


@jax.jit
def unmasked(total, left):
    return secure_sum.unmasked(STREAM, total, left)


@pytest.mark.parametrize("neighbours", [6, 2])
@pytest.mark.parametrize("there", [range(10, 17), (10, 12, 13, 16), (11,)], ids=len)
def test_masks_cancel_and_those_of_drop_outs_are_taken_off(neighbours, there):
    generator = np.random.default_rng(4)
    order = generator.permutation(list(WINDOWS))
    found = secure_sum.partners(order, WINDOWS, neighbours)
    ids = generator.permutation(there)
    rows, left = secure_sum.masking(ids, found, (7, 18))
    words = generator.integers(0, 2**32, (7, 13), np.uint32)
    expected, total, changed = np.zeros(13, np.uint32), np.zeros(13, np.uint32), []
    for word, me, row in zip(words, ids, rows, strict=False):
        here = np.isin(BLOCK_OF, np.arange(WINDOWS[me][0], WINDOWS[me][1] + 1))
        word = np.where(here, word, np.uint32(0))
        sent = np.asarray(masked(word, me, row))
        assert not sent[~here].any()  # nothing of other blocks is sent
        changed += (sent != word)[here].tolist()
        expected, total = expected + word, total + sent
    assert np.mean(changed) > 0.9
    assert np.asarray(unmasked(total, left)).tolist() == expected.tolist()
    if len(there) < 7:
        assert total.tolist() != expected.tolist()


def test_masks_look_like_any_words():
    block_of = np.zeros(4000, np.int32)
    stream = secure_sum.Stream(jax.random.key(7), 4000, 0, 4000, block_of)
    drawn = secure_sum.mask(stream, jnp.int32(3), jnp.int32([9, 0, 0]))
    back = secure_sum.mask(stream, jnp.int32(9), jnp.int32([3, 0, 0]))
    assert not np.any(drawn + back)
    bits = np.unpackbits(np.asarray(drawn).view(np.uint8))
    assert bits.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(bits.size))
    others = secure_sum.mask(stream, jnp.int32(3), jnp.int32([8, 0, 0]))
    assert np.mean(np.asarray(drawn) == np.asarray(others)) < 0.01


def test_a_program_of_some_blocks_draws_what_one_of_all_does():
    part = secure_sum.Stream(STREAM.key, 13, 5, 8, BLOCK_OF[5:])
    for stream in (part, STREAM):
        drawn = secure_sum.mask(stream, jnp.int32(3), jnp.int32([9, 1, 2]))
        assert (
            np.asarray(drawn)[-8:].tolist()
            == np.asarray(secure_sum.mask(STREAM, jnp.int32(3), jnp.int32([9, 1, 2])))[
                5:
            ].tolist()
        )


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_everyone_has_as_many_neighbours_on_both_sides(clients, half, seed):
    order = np.random.default_rng(seed).permutation(clients)
    windows = dict.fromkeys(range(clients), (0, 3))
    found = secure_sum.partners(order, windows, 2 * half)
    expected = min(2 * half, clients - 1)
    for me, partners in found.items():
        assert [part[1:] for part in partners] == [(0, 3)] * expected
        assert len({other for other, *_ in partners} - {me}) == expected


def test_of_each_block_those_who_train_it_are_a_ring():
    found = secure_sum.partners(np.array([*WINDOWS]), WINDOWS, 2)
    count = collections.Counter()
    for me, partners in found.items():
        for other, first, last in partners:
            for block in range(first, last + 1):
                assert (me, block) != (other, block)
                count[me, block] += 1
                assert any(
                    back == me and f <= block <= last_
                    for back, f, last_ in found[other]
                )
                for who in (me, other):
                    assert WINDOWS[who][0] <= block <= WINDOWS[who][1]
    expected = {
        (me, block): 2
        for me, (first, last) in WINDOWS.items()
        for block in range(first, last + 1)
    }
    assert count == expected


def test_partners_in_full_share_their_common_blocks():
    found = secure_sum.partners(
        np.array([3, 1, 2]), {1: (0, 1), 2: (1, 3), 3: (2, 2)}, 2
    )
    assert found == {1: [(2, 1, 1)], 2: [(1, 1, 1), (3, 2, 2)], 3: [(2, 2, 2)]}


def test_who_is_alone_with_a_block():
    ids = np.array([5, 3, 9])
    assert secure_sum.alone(ids, [(0, 2), (0, 2), (0, 2)]) == []
    assert secure_sum.alone(ids, [(0, 1), (1, 2), (2, 2)]) == [5]
    assert secure_sum.alone(ids, [(0, 0), (1, 1), (2, 2)]) == [3, 5, 9]
    assert secure_sum.alone(ids[:0], []) == []


def test_nobody_is_a_partner_beyond_the_first_rows():
    found = dict(zip((1, 2), ([(2, 0, 0)], [(1, 0, 0)]), strict=True))
    rows, left = secure_sum.masking(np.array([2]), found, (3, 2))
    nobody = [secure_sum.NOBODY] * 3
    assert rows.tolist() == [[[1, 0, 0], nobody], [nobody] * 2, [nobody] * 2]
    assert left.tolist()[0] == [2, 1, 0, 0]
    assert set(itertools.chain(*left.tolist()[1:])) == {secure_sum.NOBODY}
