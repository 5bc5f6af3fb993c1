"""Codecs: numbers by hand, what is unbiased, error memories, windows, bytes."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from fljax.updates import codecs
from fljax.updates.codecs import rotated, sparse
from tests import conftest

SEED = 5
ALL = [
    "clip:1",
    "top_k:.3",
    "random_k:.3",
    "random_k:.3:feedback",
    "qsgd:4",
    "uniform:4",
    "ternary",
    "signsgd",
    "drive",
    "drive:least_error",
    "eden:2",
    "eden:.5",
    "clip:3+top_k:.5+qsgd:4",
]


@functools.partial(jax.jit, static_argnames=("codec",))
def apply(codec, key, update, part, memory):
    return codec.apply(key, update, part, memory)


@functools.partial(jax.jit, static_argnames=("codec",))
def side_by_side(codec, keys, updates, parts, memories):
    return jax.vmap(codec.apply)(keys, updates, parts, memories)


def coded(text, update, memory=None, part=None, seed=SEED):
    """Gives what is decoded, and the memories, as arrays of numpy."""
    key = jax.random.key(seed)
    codec, update = codecs.read(text), jnp.asarray(update, jnp.float32)
    if memory is None:
        memory = [np.zeros(update.size)] * codec.memories
    memory = tuple(jnp.asarray(row, jnp.float32) for row in memory)
    return jax.tree.map(np.asarray, apply(codec, key, update, part, memory))


def many(text, update, draws):
    """Gives what is decoded with many keys, [draws, d]."""
    codec = codecs.read(text)
    update = jnp.asarray(update, jnp.float32)
    memory = (jnp.zeros(update.size),) * codec.memories
    run = jax.jit(jax.vmap(lambda key: codec.apply(key, update, None, memory)[0]))
    return np.asarray(run(jax.random.split(jax.random.key(SEED), draws)))


def window(size, first, count):
    place = np.arange(size)
    here = jnp.asarray((place >= first) & (place < first + count))
    return codecs.Part(here, jnp.int32(first), jnp.int32(count))


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


# --- numbers by hand


@pytest.mark.parametrize(
    ("text", "update", "decoded"),
    [
        ("clip:1", [3, 4], [0.6, 0.8]),
        ("clip:5", [3, 4], [3, 4]),
        ("top_k:.01", [3, -1, 2], [3, 0, 0]),
        ("top_k:.4", [1, -2, 2, -2, 0], [0, -2, 2, 0, 0]),  # ties: the first
        ("top_k:1", [1, -2, 0], [1, -2, 0]),
        ("qsgd:5", [3, -4], [3, -4]),  # on levels, whatever is drawn
        ("uniform:3", [-1, 3, 1, 1], [-1, 3, 1, 1]),
        ("ternary", [2, -2, 0, 2], [2, -2, 0, 2]),
        ("signsgd", [1, -3, 2], [2, -2, 2]),
        ("signsgd", [0, -3, 0], [1, -1, 1]),  # 0 is sent as +1
        ("drive", [3, 1], [10 / 3, 0]),  # for all four patterns of signs
        ("drive:least_error", [3, 1], [3, 0]),
        ("eden:1", [3, 1], [10 / 3, 0]),
    ],
)
def test_numbers_by_hand(text, update, decoded):
    for seed in range(4):
        ours, _ = coded(text, update, seed=seed)
        np.testing.assert_allclose(ours, decoded, rtol=2e-7, atol=1e-6)


def test_top_k_sends_later_what_it_kept():
    decoded, memory = coded("top_k:.3", [3, -1, 2])
    np.testing.assert_array_equal(decoded, [3, 0, 0])
    np.testing.assert_array_equal(memory, [[0, -1, 2]])
    decoded, memory = coded("top_k:.3", [1, -2, 0], memory)
    np.testing.assert_array_equal(decoded, [0, -3, 0])
    np.testing.assert_array_equal(memory, [[1, 0, 2]])


def test_qsgd_of_one_level_draws_by_size():
    ours = many("qsgd:1", [3, -4], 4000)
    assert set(ours[:, 0]) == {0, 5}
    assert set(ours[:, 1]) == {0, -5}
    assert np.mean(ours[:, 0] > 0) == pytest.approx(0.6, abs=0.04)  # 5 deviations
    assert np.mean(ours[:, 1] < 0) == pytest.approx(0.8, abs=0.04)


def test_ternary_clips_at_two_and_a_half_deviations():
    update = np.r_[np.zeros(98), 10, -10]  # deviation sqrt(2)
    ours, _ = coded("ternary", update)
    np.testing.assert_allclose(ours, np.clip(update, -3.5355339, 3.5355339), rtol=1e-6)


def test_random_k_scales_what_it_keeps():
    update = np.arange(1.0, 11.0)
    for kind, scale in (("unbiased", 10 / 3), ("feedback", 1)):
        decoded, _ = coded(f"random_k:.3:{kind}", update)
        sent = decoded != 0
        assert sent.sum() == 3
        np.testing.assert_allclose(decoded[sent], update[sent] * scale, rtol=1e-6)


def test_eden_takes_the_values_that_suit_normal_ones():
    np.testing.assert_allclose(rotated.centroids(1), [-0.79788, 0.79788], atol=1e-5)
    four = [-1.51042, -0.45278, 0.45278, 1.51042]
    np.testing.assert_allclose(rotated.centroids(2), four, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 4), (16, 16), (9, 16)])
def test_hadamard_is_the_matrix_of_the_next_power_of_two(count, size):
    vector = np.zeros(32, np.float32)
    vector[:count] = np.arange(1, count + 1)
    want = scipy.linalg.hadamard(size) @ vector[:size]
    for given_count in (count, jnp.int32(count)):
        ours = rotated.hadamard(jnp.asarray(vector), given_count)
        np.testing.assert_array_equal(ours[:size], want)
        np.testing.assert_array_equal(ours[size:], 0)


# --- bias and error


def deviations(text, update, draws=4000):
    """Gives how many standard errors the mean is off, at the worst coordinate."""
    ours = many(text, update, draws).astype(np.float64)
    error = ours.std(0) / math.sqrt(draws)
    off = np.abs(ours.mean(0) - update)
    return np.max(off / np.maximum(error, 1e-6 * np.max(np.abs(update))))


UPDATE = np.float32([1.5, -0.3, 0.8, 0.01, -1.1, 0.4, 0, 2])


@pytest.mark.parametrize("text", ["random_k:.3", "qsgd:1", "qsgd:4", "uniform:4"])
def test_the_mean_over_keys_is_the_update(text):
    assert deviations(text, UPDATE) < 4.5


def test_ternary_is_unbiased_up_to_the_clip():
    assert deviations("ternary", UPDATE) < 4.5
    clipped = np.r_[np.full(19, 0.1), 10].astype(np.float32)
    assert deviations("ternary", clipped) > 10


def test_what_is_biased_is_seen():
    assert deviations("random_k:.3:feedback", UPDATE) > 10


@pytest.mark.parametrize(
    ("text", "error"),
    [("drive", math.pi / 2 - 1), ("eden:2", 0.1331), ("eden:.5", math.pi - 1)],
)
def test_rotations_are_unbiased_and_as_exact_as_published(text, error):
    # Squared error beside the update's: pi/2 - 1 of DRIVE; of EDEN 1/(1 - D) - 1, with
    # D the Lloyd-Max quantizer's, .1175 for two bits.
    update, draws = normal(1000), 400
    ours = many(text, update, draws)
    square = np.sum(update**2)
    found = np.mean(np.sum((ours - update) ** 2, 1)) / square
    assert found == pytest.approx(error, rel=0.06)
    off = np.sum((ours.mean(0) - update) ** 2) / square
    assert off < 2 * error / draws


def test_least_error_has_less_and_is_shorter():
    update = normal(1024)
    ours = many("drive:least_error", update, 100)
    square = np.sum(update**2)
    error = np.mean(np.sum((ours - update) ** 2, 1)) / square
    assert error == pytest.approx(1 - 2 / math.pi, rel=0.05)
    shorter = np.sum(ours.mean(0) * update) / square
    assert shorter == pytest.approx(2 / math.pi, rel=0.02)


@pytest.mark.parametrize("text", ["top_k:.3", "random_k:.3:feedback", "signsgd"])
def test_a_memory_is_what_was_not_sent(text):
    memory = [normal(50, 1)]
    for round_ in range(3):
        update = normal(50, 2 + round_)
        vector = update + memory[0]
        decoded, memory = coded(text, update, memory, seed=round_)
        assert np.any(decoded != vector)
        np.testing.assert_array_equal(memory[0], vector - decoded)


@pytest.mark.parametrize("text", ["clip:1", "random_k:.3", "qsgd:4", "drive"])
def test_others_keep_no_memory(text):
    assert codecs.read(text).memories == 0


# --- which k


def exactly(share, count):
    return max(1, math.ceil(fractions.Fraction(share) * count))


@pytest.mark.parametrize("share", ["0.07", "1", "0.000001", "0.333333", "0.999999"])
def test_k_is_exact_on_the_host_and_in_programs(share):
    counts = [*range(1, 400), 10**6, 10**6 + 1, 123_456_789, 2**31 - 2, 2**31 - 1]
    want = [exactly(share, count) for count in counts]
    assert [sparse.kept(float(share), count) for count in counts] == want
    ours = sparse.kept(float(share), jnp.asarray(counts, jnp.int32))
    np.testing.assert_array_equal(ours, want)


def test_k_is_not_one_more_by_rounding():
    assert math.ceil(0.07 * 100) == 8
    assert sparse.kept(0.07, 100) == 7
    assert sparse.kept(1 / 3, 300) == 100
    assert sparse.kept(1e-9, 300) == 1


@pytest.mark.parametrize("missing", [0, 3])
def test_the_largest_are_those_of_a_stable_sort(missing):
    size = 300  # more than the ones that fit into a byte
    here = np.arange(size) % 3 >= missing / 3
    run = jax.jit(sparse.largest)
    for seed in range(10):
        sizes = np.random.default_rng(seed).integers(0, 1 + seed, size)  # many ties
        for k in (1, 7, 200):
            order = np.lexsort([np.arange(size), -sizes, ~here])
            want = np.zeros(size, bool)
            want[order[:k]] = True
            ours = run(jnp.asarray(sizes, jnp.int32), jnp.asarray(here), jnp.int32(k))
            np.testing.assert_array_equal(ours, want)


# --- windows, chunks, chains


@pytest.mark.parametrize("text", ALL)
@given(st.data())
def test_a_window_is_coded_as_if_it_were_alone(text, data):
    size = 40
    count = data.draw(st.sampled_from([1, 20]))
    first = data.draw(st.integers(0, size - count))
    seed = data.draw(st.integers(0, 100))
    span = slice(first, first + count)
    memories = codecs.read(text).memories
    update, memory = normal(size, seed), [normal(size, seed + 1)] * memories
    update[: first // 2] = np.nan  # nothing of it is read
    decoded, kept = coded(text, update, memory, window(size, first, count), seed)
    alone, kept_alone = coded(text, update[span], [m[span] for m in memory], None, seed)
    np.testing.assert_allclose(decoded[span], alone, rtol=2e-6, atol=2e-6)
    outside = np.delete(np.arange(size), span)
    np.testing.assert_array_equal(decoded[outside], 0)
    for new, new_alone, old in zip(kept, kept_alone, memory, strict=True):
        np.testing.assert_allclose(new[span], new_alone, rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(new[outside], old[outside])
    if text in ("top_k:.3", "random_k:.3:feedback"):
        conftest.assert_same_bits(decoded[span], alone)


@pytest.mark.parametrize("text", ALL)
def test_clients_side_by_side_are_as_one_by_one(text):
    codec, size = codecs.read(text), 40
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    updates = jnp.stack([jnp.asarray(normal(size, seed)) for seed in range(3)])
    parts = [window(size, 0, 40), window(size, 3, 7), window(size, 39, 1)]
    memories = (updates * 0.5,) * codec.memories
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    together = side_by_side(codec, keys, updates, stacked, memories)
    for i, part in enumerate(parts):
        own = tuple(memory[i] for memory in memories)
        alone = apply(codec, jax.random.key(i), updates[i], part, own)
        row = jax.tree.map(lambda x, i=i: x[i], together)
        conftest.assert_close(row, alone, 2e-6)


def test_a_chain_applies_from_left_to_right():
    decoded, memory = coded("clip:1+top_k:.5", [3, 4])
    np.testing.assert_allclose(decoded, [0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(memory, [[0.6, 0]], rtol=1e-6)
    decoded, memory = coded("top_k:.5+clip:1", [3, 4])
    np.testing.assert_allclose(decoded, [0, 1], rtol=1e-6)
    np.testing.assert_allclose(memory, [[3, 0]], rtol=1e-6)


def test_each_part_of_a_chain_has_its_own_memory():
    text = "top_k:.5+signsgd"
    assert codecs.read(text).memories == 2
    decoded, memory = coded(text, [3, 4], [[0, 0], [2, 0]])
    np.testing.assert_array_equal(decoded, [3, 3])  # signs of (0, 4) + (2, 0)
    np.testing.assert_array_equal(memory, [[3, 0], [-1, 1]])


def test_parts_of_a_chain_draw_apart():
    update = np.ones(1000)
    kept = coded("random_k:.5:feedback+random_k:.5:feedback", update)[0].sum()
    assert 200 < kept < 300  # those drawn once would be 500


# --- awkward vectors


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize(
    "update",
    [
        [0.0] * 5,
        [2.0] * 5,
        [-2.0] * 5,
        [3e38, -3e38, 1.0, 0, 0],
        [1e30, 1e-30, -1e30, 0, 0],
        [1e-42, -1e-45, 0, 0, 0],
        [1e-37, -1e-38, 0, 0, 1e-38],
    ],
)
def test_finite_vectors_stay_so(text, update):
    decoded, memory = coded(text, update)
    assert not np.any(np.isnan(decoded))
    assert not np.any(np.isnan(memory))
    if not any(update):
        np.testing.assert_array_equal(decoded, 0)
    if text == "clip:1":
        assert np.linalg.norm(decoded.astype(np.float64)) <= 1 + 1e-6


@pytest.mark.parametrize("text", [text for text in ALL if "random" not in text])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_does_not_hide(text, wrong):
    if text == "eden:.5":
        text = "eden:1"  # of half the values, those drawn
    decoded, _ = coded(text, [1, wrong, 2, 3, 4])
    assert not np.all(np.isfinite(decoded))


# --- bytes


@pytest.mark.parametrize(
    ("text", "size", "exact"),
    [
        ("clip:1", 1000, 4000),
        ("top_k:.01", 3, 4.25),  # a place of 2 bits
        ("top_k:.01", 1000, 10 * 4 + 10 * 10 / 8),
        ("top_k:.5", 1000, 500 * 4 + 1000 / 8),  # a bit for each is less
        ("random_k:.01", 1000, 10 * 4 + 8),
        ("random_k:.01:feedback", 1000, 10 * 4 + 8),
        ("qsgd:4", 1000, 4 + 1000 * 4 / 8),  # 5 levels: 3 bits and a sign
        ("qsgd:1", 1000, 4 + 1000 * 2 / 8),
        ("uniform:4", 1000, 8 + 1000 * 2 / 8),
        ("ternary", 1000, 4 + 1000 * math.log2(3) / 8),
        ("signsgd", 1000, 4 + 1000 / 8),
        ("drive", 1000, 4 + 1024 / 8),
        ("eden:3", 1000, 4 + 3 * 1024 / 8),
        ("eden:.5", 1000, 4 + 512 / 8),
        ("clip:1+top_k:.01+qsgd:4", 1000, 10 * 4 / 8 + 10 * 10 / 8 + 4),
        ("qsgd:4+top_k:.01", 1000, 10 * 4 / 8 + 10 * 10 / 8 + 4),
        ("top_k:.01+signsgd", 1000, 4 + 1000 / 8),  # a sign even of what is 0
    ],
)
def test_bytes(text, size, exact):
    message = codecs.read(text).message(codecs.Message(size), size)
    assert message.values * message.bits / 8 + message.beside == exact
    assert message.bytes == math.ceil(exact)


def test_a_message_is_as_long_as_what_is_sent():
    decoded, _ = coded("top_k:.07", normal(100))
    assert np.count_nonzero(decoded) == 7
    message = codecs.read("top_k:.07").message(codecs.Message(100), 100)
    assert message.values == 7


# --- texts


def test_a_text_names_a_codec():
    assert codecs.read("qsgd:4") == codecs.read(" qsgd:levels=4 ")
    assert hash(codecs.read("drive")) == hash(codecs.read("drive:unbiased"))
    assert codecs.read("top_k:.1") != codecs.read("top_k:.2")
    clip, top = (codecs.read(text) for text in ("clip:1e+3", "top_k:.1"))
    assert clip.norm == 1000
    assert codecs.read("clip:1e+3 + top_k:.1") == codecs.Chain((clip, top))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "expected clip, top_k, random_k, "),
        ("topk:.1", "did you mean 'top_k'?"),
        ("top_k", "expected top_k:SHARE, got 'top_k'"),
        ("top_k:0", "top_k: share: expected a number above 0, up to 1, got 0.0"),
        ("top_k:nan", "top_k: share: expected a number above 0, up to 1, got nan"),
        ("top_k:.1+", "top_k: share: expected a number such as 0.1, got '.1+'"),
        ("random_k:.1:x", "random_k: kind: expected unbiased, feedback, got 'x'"),
        ("qsgd:0", "qsgd: levels: expected a whole number from 1 to 65536, got 0"),
        ("qsgd:1.5", "qsgd: levels: expected a whole number such as 10, got '1.5'"),
        ("uniform:1", "levels: expected a whole number from 2 to 65536, got 1"),
        ("ternary:3", "expected ternary, got 'ternary:3'"),
        ("signsgd:3", "expected signsgd, got 'signsgd:3'"),
        ("drive:x", "drive: kind: expected unbiased, least_error, got 'x'"),
        ("drive+qsgd:4", "expected Drive(kind='unbiased') as the last of a chain"),
        ("eden:1.5", "eden: bits: expected 1 to 8, or below 1, got 1.5"),
        ("clip:0", "clip: norm: expected a number above 0, up to 1e+30, got 0.0"),
    ],
)
def test_a_bad_text_is_told_in_one_line(text, error):
    with pytest.raises(ValueError, match="expected") as raised:
        codecs.read(text)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("parts", [[], ("top_k:.1",), codecs.read("drive")])
def test_a_chain_is_of_codecs(parts):
    with pytest.raises(ValueError, match="expected a tuple of codecs, got "):
        codecs.Chain(parts)
