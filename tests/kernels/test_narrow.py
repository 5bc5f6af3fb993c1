"""Codes of 2 and 3 bits: levels, scales and ranges by hand and against brute force."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.kernels import convs, narrow, quant, specs

TWO = specs.Spec(bits=2)
ALONE = dataclasses.replace(TWO, clipping=False, group=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_two_bits_have_four_levels_of_half_steps():
    # -3/2, -1/2, 1/2, 3/2 steps of two units; ties go to the even half.
    x = jnp.float32([-9, -3, -1, -0.1, 0.1, 1, 1.9, 2.1, 9])
    q = quant.quantize(x, jnp.float32(1), TWO)
    np.testing.assert_array_equal(q.codes, [-3, -3, -1, -1, 1, 1, 1, 3, 3])
    assert (q.zero_point, q.odd) == (0, True)
    assert TWO.levels(False) == 3
    # max|x| is the largest code: of a range of 3, the levels are whole numbers.
    assert quant.scale_of(TWO, jnp.float32(3)) == 1


def test_what_a_relu_gives_keeps_a_code_of_zero():
    q = quant.quantize(jnp.float32([0, 0.4, 0.6, 2.6, 9]), jnp.float32(1), TWO, True)
    np.testing.assert_array_equal(q.codes, [-2, -2, -1, 1, 1])
    assert q.zero_point == -2
    assert not q.odd


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_level_is_used(bits):
    spec = specs.Spec(bits=bits, narrow=4)
    x = jnp.linspace(-1, 1, 1001)
    codes = quant.quantize(x, quant.scale_of(spec, jnp.float32(1)), spec).codes
    assert np.unique(codes).tolist() == list(range(1 - 2**bits, 2**bits, 2))


@pytest.mark.parametrize(
    "spec",
    [
        specs.Spec(bits=4),
        specs.Spec(bits=8),
        specs.Spec(bits=2, narrow=0),
        dataclasses.replace(specs.REFERENCE, bits=2),
        dataclasses.replace(specs.REFERENCE, bits=2, narrow=3),
    ],
)
def test_wider_codes_and_the_reference_are_made_as_they_were(spec):
    assert spec.grid(False) == (
        spec.zero_point_of(False),
        -(2 ** (spec.bits - 1)),
        2 ** (spec.bits - 1) - 1,
        False,
    )
    assert not spec.clips
    w = jnp.asarray(normal(0, 32, 3))
    codes = quant.quantize_weights(w, spec)
    axes = 0 if spec.per_channel else None
    largest = np.abs(w).max(axes)
    np.testing.assert_allclose(codes.scale, largest / spec.levels(False), rtol=1e-6)
    assert quant.range_of(w, spec) == np.abs(w).max()


def test_products_of_odd_codes_by_hand():
    x = quant.QArray(jnp.int8([[3, -1]]), jnp.float32(1), odd=True)
    w = quant.QArray(jnp.int8([[1, 3], [-3, 1]]), jnp.float32(1))
    sums = quant.dot(x, w)
    np.testing.assert_array_equal(sums.sums, [[6, 8]])
    assert sums.sums.dtype == jnp.int32
    # Of a scale of 4 they are 1.5 and 2 units: the odd ones next to them are 1 and 3
    # (2 is a tie of 1 and 3, and 1/2 goes to the even 0: to 1).
    y = quant.requantize(sums, jnp.float32(4), TWO)
    np.testing.assert_array_equal(y.codes, [[1, 1]])
    np.testing.assert_array_equal(
        quant.requantize(sums, jnp.float32(3.9), TWO).codes, [[1, 3]]
    )


def test_sums_concatenations_and_averages_stay_odd():
    a = quant.QArray(jnp.int8([[3, -1, 1, -3]]), jnp.float32(1), odd=True)
    b = quant.QArray(jnp.int8([[1, -1, -2, 1]]), jnp.float32(0.5), -2)  # 1.5 .5 0 1.5
    total = quant.add(a, b, jnp.float32(1), TWO)  # 4.5, -.5, 1, -1.5
    np.testing.assert_array_equal(total.codes, [[3, -1, 1, -1]])
    assert total.odd
    halved = quant.concat(a, b, jnp.float32(0.6), TWO)
    # 5, -1.7, 1.7, -5 and 2.5, .8, 0, 2.5
    np.testing.assert_array_equal(halved.codes, [[3, -1, 1, -3, 3, 1, 1, 3]])
    tile = jnp.int8([[1, 3], [3, 3]]).reshape(1, 2, 2, 1)  # 2.5
    assert convs.mean_pool(tile, 2, odd=True).item() == 3
    assert convs.mean_pool(-tile, 2, odd=True).item() == -3
    assert (
        convs.mean_pool(jnp.int8([[1, 1], [-1, 1]]).reshape(1, 2, 2, 1), 2, True) == 1
    )


@pytest.mark.parametrize("value", [0.3, -1.7, 2.5])
def test_stochastic_half_steps_are_unbiased(value):
    draws, one = 40_000, jnp.float32(1)
    ratio, sums = (
        jnp.float32(abs(value) / 10),
        jnp.full((draws,), int(10 * np.sign(value))),
    )
    given = quant.QArray(sums.astype(jnp.int8), ratio)
    nothing = quant.QArray(jnp.zeros(draws, jnp.int8), one)
    keys = jax.random.split(jax.random.key(0), 4)
    ways = {
        "quantize": quant.quantize(
            value * jnp.ones(draws), one, TWO, key=keys[0]
        ).codes,
        "add": quant.add(given, nothing, one, TWO, key=keys[1]).codes,
        "rescale": quant.rescale(sums, ratio, key=keys[2], odd=True),
        "requantize": quant.requantize(
            quant.Accumulator(sums, ratio), one, TWO, key=keys[3]
        ).codes,
    }
    low = 2 * np.floor((value - 1) / 2) + 1
    for way, codes in ways.items():
        codes = np.asarray(codes, np.float64)
        assert set(np.unique(codes)) == {low, low + 2}, way
        assert abs(codes.mean() - value) < 5 / draws**0.5, way


def error_of(w, scale, grid):
    steps = w / scale
    codes = 2 * np.floor(steps / 2) + 1 if grid.odd else np.round(steps)
    return np.square(w - scale * np.clip(codes, grid.lowest, grid.highest)).sum()


@pytest.mark.parametrize("half_steps", [False, True])
@pytest.mark.parametrize("bits", [2, 3])
def test_clipping_is_as_good_as_brute_force(bits, half_steps):
    spec = specs.Spec(bits=bits, half_steps=half_steps, group=0, unbiased=False)
    w = normal(bits, 40, 3) * np.float32([1, 0.01, 30])
    w[0, 2] = 200.0  # one outlier
    ours = quant.quantize_weights(jnp.asarray(w), spec)
    grid = spec.grid(False)
    assert ours.scale.shape == (3,)
    for channel, scale in zip(w.T, np.asarray(ours.scale), strict=True):
        largest = np.abs(channel).max()
        tried = largest * np.linspace(0.001, 1, 3000)
        best = min(error_of(channel, s, grid) for s in tried)
        mine = error_of(channel, scale, grid)
        assert mine <= 1.03 * best
        assert mine < error_of(channel, largest / spec.levels(False), grid)


def test_scales_by_hand():
    # One of 5 and eight of 1. Codes 3 and 1 of half steps have least squares at a unit
    # of (15 + 8) / (9 + 8) = 1.353; units of 5/3 x i/32 are tried, of which 26 is next.
    w = jnp.float32([5, *[1] * 4, *[-1] * 4])[:, None]
    spec = dataclasses.replace(TWO, group=0, unbiased=False)
    half = quant.quantize_weights(w, spec)
    np.testing.assert_array_equal(half.codes[:, 0], [3, 1, 1, 1, 1, -1, -1, -1, -1])
    np.testing.assert_allclose(half.scale, [5 / 3 * 26 / 32], rtol=1e-6)
    # x x / x q = 33 / (23 x 1.354) more, which is 33 / 23.
    full = quant.quantize_weights(w, dataclasses.replace(spec, unbiased=True))
    np.testing.assert_allclose(full.scale, [33 / 23], rtol=1e-6)


def test_groups_have_whole_multiples_of_the_scale_of_the_channel():
    signs = jnp.tile(jnp.float32([3, -1, 1, -3]), 4)
    w = jnp.concatenate([15 * signs, signs, 4 * signs])[:, None]
    q = quant.quantize_weights(w, ALONE)  # a channel: one scale, 45 / 3
    np.testing.assert_allclose(q.scale, [15])
    q = quant.quantize_weights(w, dataclasses.replace(ALONE, group=16))
    np.testing.assert_allclose(q.scale, [1], rtol=1e-6)
    np.testing.assert_array_equal(q.codes, w)
    x = quant.QArray(jnp.ones((1, 48), jnp.int8).at[0, 0].set(3), jnp.float32(2))
    sums = quant.dot(x, q)
    # A group at a time: 15 * (9 - 1 + 1 - 3), and the others add up to 0.
    np.testing.assert_array_equal(sums.sums, [[15 * 6]])
    np.testing.assert_allclose(sums.unit, [2], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "most", "size"),
    [(144, 16, 16), (9, 16, 9), (27, 16, 9), (20, 16, 10), (17, 16, 17), (26, 16, 13)],
)
def test_groups_divide_the_inputs(inputs, most, size):
    assert narrow._group(inputs, most) == size


@pytest.mark.parametrize(("bits", "largest"), [(2, 3 * 15), (3, 7 * 15), (4, 15 * 8)])
def test_codes_of_groups_fit_a_byte(bits, largest):
    w = normal(0, 3, 3, 16, 4) * 10 ** np.linspace(-3, 3, 9).reshape(3, 3, 1, 1)
    spec = specs.Spec(bits=bits, narrow=4)
    q = quant.quantize_weights(jnp.asarray(w, jnp.float32), spec)
    assert q.codes.dtype == jnp.int8
    assert np.abs(np.asarray(q.codes, int)).max() == largest
    by_tap = np.asarray(q.codes, int).reshape(9, 16, 4)
    for group in by_tap.transpose(0, 2, 1).reshape(-1, 16):
        assert len(np.unique(np.abs(group))) <= 2 ** (bits - 1)


def test_weights_of_nothing_and_of_no_number():
    zeros = quant.quantize_weights(jnp.zeros((32, 2)), TWO)
    np.testing.assert_allclose(zeros.dequantize(), 0, atol=1e-11)
    odd = quant.quantize_weights(jnp.ones((32, 2)).at[3, 1].set(jnp.nan), TWO)
    assert np.isfinite(odd.scale).tolist() == [True, False]


@pytest.mark.parametrize(
    ("levels", "odd", "known"),
    # Ends of the best uniform quantizers of a normal with 3, 4, 7 and 8 levels (Max,
    # "Quantizing for minimum distortion", 1960): steps 1.224, .9957, .6508, .5860.
    [(1, False, 1.224), (3, True, 1.494), (3, False, 1.952), (7, True, 2.051)],
)
def test_reach_is_what_is_known_of_a_normal(levels, odd, known):
    assert narrow.reach(float(levels), odd) == pytest.approx(known, rel=0.03)


def test_fitted_ranges_by_hand():
    # sum x^2 / sum |x| = 8 / 4, whatever zeros are there; a normal has sqrt(pi / 2).
    x = jnp.float32([0, 2, -2, 0, 0])
    expected = narrow.reach(1.0, False) * (2 / np.pi) ** 0.5 * 2
    np.testing.assert_allclose(narrow.fitted(x, 1.0), expected, rtol=1e-6)
    wide = narrow.fitted(x, 7.0, True)  # no more than is there
    assert wide == 2
    assert narrow.fitted(jnp.zeros(4), 1.0) == 0
    assert not np.isfinite(narrow.fitted(x.at[1].set(jnp.inf), 1.0))


def test_fitted_ranges_are_close_to_the_best():
    generator = np.random.default_rng(0)
    draws = {
        "normal": generator.normal(size=4000),
        "laplace": generator.laplace(size=4000),
    }
    for bits, most in ((2, 1.03), (3, 1.1)):
        spec = specs.Spec(bits=bits, half_steps=False)
        for x in draws.values():
            grid, levels = spec.grid(False), spec.levels(False)
            grid = grid._replace(lowest=-grid.highest)
            mine = error_of(x, float(narrow.fitted(x, levels)) / levels, grid)
            ends = np.linspace(0.3, np.abs(x).max(), 500)
            assert mine <= most * min(error_of(x, end / levels, grid) for end in ends)


def test_expected_ranges_are_those_of_the_norm():
    scale, bias = jnp.float32([2.0]), jnp.float32([0.0])
    at = functools.partial(narrow.expected, jnp.float32(9), TWO)
    # N(0, 4): of half steps 1.494 deviations; after a ReLU three steps, 1.952.
    np.testing.assert_allclose(at(False, (scale, bias)), 2 * 1.494, rtol=0.03)
    np.testing.assert_allclose(at(True, (scale, bias)), 2 * 1.952, rtol=0.03)
    # No norm: the observed 9 is taken for 4.4 deviations.
    np.testing.assert_allclose(at(False), 9 / 4.4 * 1.494, rtol=0.03)
    # Nobody saw more than 0.1; and without clipping there is what was observed.
    assert narrow.expected(jnp.float32(0.1), TWO, True, (scale, bias)) == jnp.float32(
        0.1
    )
    assert narrow.expected(jnp.float32(9), ALONE, True, (scale, bias)) == 9
    assert narrow.expected(jnp.float32(9), specs.DEFAULT, True, (scale, bias)) == 9


def test_examples_have_ranges_of_their_own():
    x = jnp.float32([[1, -4], [100, 50], [0, 0]])
    one, two = (narrow.fitted(x[i], 3.0, True) for i in range(2))
    ranges = quant.range_of(x, TWO)
    np.testing.assert_allclose(ranges[:, 0], [one, two, 0], rtol=1e-6)
    assert quant.range_of(x, ALONE) == 100
    # Of 3.4 and 83.3 (the codes end at 1.19 times 17 / 5 and 12500 / 150).
    q = quant.quantize(x, quant.scale_of(TWO, ranges), TWO)
    np.testing.assert_array_equal(q.codes[:2], [[1, -3], [3, 1]])
    w = quant.QArray(jnp.int8([[1], [1]]), jnp.float32([1.0]))
    sums, unit, _ = quant.dot(q, w)
    gain = narrow.gain(3.0, True)
    expected = [-2 * one / 3 * gain, 4 * two / 3 * gain]
    np.testing.assert_allclose((sums * unit)[:2, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("levels", "odd", "error"),
    # Squared errors of those quantizers: what they are short of.
    [(1, False, 0.1902), (3, True, 0.1188), (3, False, 0.0440), (7, True, 0.0374)],
)
def test_gain_makes_up_for_the_squared_error(levels, odd, error):
    known = 1 / (1 - error)
    assert narrow.gain(float(levels), odd) == pytest.approx(known, abs=0.015)


def test_unbiased_codes_are_as_long_in_the_direction_of_the_values():
    w = jnp.asarray(normal(0, 3, 3, 16, 4))
    short, full = (
        quant.quantize_weights(w, dataclasses.replace(TWO, unbiased=unbiased))
        for unbiased in (False, True)
    )
    np.testing.assert_array_equal(short.codes, full.codes)
    along = [
        np.sum(np.asarray(q.dequantize() * w).reshape(-1, 4), 0) for q in (short, full)
    ]
    length = np.sum(np.square(w).reshape(-1, 4), 0)
    np.testing.assert_allclose(along[1], length, rtol=1e-5)
    assert np.all(along[0] < 0.95 * length)
    by_tensor = dataclasses.replace(TWO, per_channel=False)
    q = quant.quantize_weights(w, by_tensor)
    assert q.scale.shape == ()
    np.testing.assert_allclose(jnp.sum(q.dequantize() * w), length.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"narrow": 5}, "narrow: expected 0 to 4, got 5"),
        ({"group": -1}, "group: expected 0 or more, got -1"),
        ({"edges": 9}, "edges: expected 0 or 2 to 8, got 9"),
    ],
)
def test_spec_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        specs.Spec(**fields)


def test_flags_of_a_run_reach_the_spec():
    chosen = specs.Frozen(bits=2, clipping=False, group=8, edges=6).spec
    assert chosen == specs.Spec(bits=2, clipping=False, group=8, edges=6)
    assert chosen.of_edge.bits == 6
    assert specs.Frozen(bits=8, edges=6).spec.of_edge.bits == 8
    kept = specs.Frozen(fixed_point="reference", narrow=3).spec
    assert kept == dataclasses.replace(specs.REFERENCE, gradient_place="input")
