"""Fixed point: kernels against exact arithmetic in int64 and float64, and by hand."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from fljax.kernels import convs, norms, quant, specs

BASES = {"default": specs.DEFAULT, "reference": specs.REFERENCE}
FAN_IN = 12544  # the largest of the networks: 7 x 7 x 256
booleans = strategies.booleans()


def array(codes, scale=1.0, zero_point=0):
    return quant.QArray(jnp.asarray(codes, jnp.int8), jnp.float32(scale), zero_point)


@strategies.composite
def any_spec(draw):
    base = BASES[draw(strategies.sampled_from(sorted(BASES)))]
    bits = draw(strategies.integers(2, 8))
    return dataclasses.replace(
        base,
        bits=bits,
        per_channel=draw(booleans),
        stepwise=draw(booleans),
        narrow=draw(strategies.sampled_from((0, 3))),
    )


DEPTHWISE = functools.partial(quant.conv, form=convs.depthwise)

# name -> (our product, its float form, shapes of x and w): few, for each compiles.
PRODUCTS = {
    "dot": (quant.dot, convs.dot, (3, 7), (7, 4)),
    "long dot": (quant.dot, convs.dot, (2, 2, 300), (300, 5)),
    "conv": (quant.conv, convs.conv, (2, 5, 4, 3), (3, 3, 3, 4)),
    "pointwise": (quant.conv, convs.conv, (2, 3, 3, 6), (1, 1, 6, 4)),
    "depthwise": (DEPTHWISE, convs.depthwise, (2, 5, 4, 6), (3, 3, 6)),
}


@strategies.composite
def products(draw):
    """Draws a product of codes, a bias that its sums could reach, and a ratio."""
    spec = draw(any_spec())
    name = draw(strategies.sampled_from(sorted(PRODUCTS)))
    kernel, form, x_shape, w_shape = PRODUCTS[name]
    generator = np.random.default_rng(draw(strategies.integers(0, 2**32 - 1)))
    nonnegative = draw(booleans)
    zero = spec.zero_point_of(nonnegative)
    low = zero if nonnegative else spec.lowest
    x = array(
        generator.integers(low, spec.highest + 1, x_shape),
        10.0 ** draw(strategies.floats(-6, 2)),
        zero,
    )
    outputs = w_shape[-1:] if spec.per_channel else ()
    w = quant.QArray(
        jnp.asarray(generator.integers(spec.lowest, spec.highest + 1, w_shape), "int8"),
        jnp.asarray(10 ** generator.uniform(-3, -1, outputs), jnp.float32),
    )
    unit = np.float64(x.scale) * np.asarray(w.scale, np.float64)
    reach = np.prod(w_shape[:-1]) * 2.0 ** (2 * spec.bits - 2)
    bias = None
    if draw(booleans):
        bias = generator.uniform(-0.9, 0.9, w_shape[-1]) * unit * reach
        bias = jnp.asarray(bias, jnp.float32)
    ratio = 10.0 ** draw(strategies.floats(-6, 1))
    out_scale = jnp.float32(np.max(unit) / ratio)
    return spec, kernel, form, x, w, bias, out_scale, draw(booleans)


def exact_sums(x, w):
    """Multiplies codes in int64; kernels [in, out], [k, k, in, out] or [k, k, in]."""
    codes, kernel = (np.asarray(q.codes, np.int64) - q.zero_point for q in (x, w))
    if kernel.ndim == 2:
        return codes @ kernel
    k = kernel.shape[0]
    margin = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(codes, margin), (k, k), (1, 2)
    )
    to = "ijco->bhwo" if kernel.ndim == 4 else "ijc->bhwc"
    return np.einsum(f"bhwcij,{to}", windows, kernel)


def exact_codes(value, out_scale, spec, relu):
    """Rounds float64 values to codes, ties up."""
    zero, lowest, highest, odd = spec.grid(relu)
    steps = value / np.float64(out_scale)
    codes = 2 * np.floor(steps / 2) + 1 if odd else np.floor(steps + 0.5) + zero
    return np.clip(codes, zero if relu else lowest, highest)


def off_by(codes, exact):
    """Gives by how many codes two tensors differ; odd ones are two apart."""
    apart = 2 if codes.odd else 1
    return np.abs(np.asarray(codes.codes, int) - exact).max() / apart


def requantized_floats(form, x, w, bias, out_scale, spec, relu):
    """Multiplies the float values of codes and quantizes the result: slow and plain."""
    value = form(x.dequantize(), w.dequantize())
    value = value if bias is None else value + bias
    return exact_codes(np.asarray(value), out_scale, spec, relu)


@hypothesis.given(products())
def test_products_and_requantization_are_within_one_code(case):
    spec, kernel, form, x, w, bias, out_scale, relu = case
    codes = quant.requantize(kernel(x, w, bias), out_scale, spec, relu)
    assert codes.codes.dtype == jnp.int8
    assert codes.zero_point == spec.zero_point_of(relu)
    unit = np.float64(x.scale) * np.asarray(w.scale, np.float64)
    value = exact_sums(x, w) * unit
    value = value if bias is None else value + np.asarray(bias, np.float64)
    exact = exact_codes(value, out_scale, spec, relu)
    assert off_by(codes, exact) <= 1
    plain = requantized_floats(form, x, w, bias, out_scale, spec, relu)
    assert off_by(codes, plain) <= 1


def test_a_large_bias_is_not_lost():
    # The norm of a channel may have a scale near 0 (weight decay takes it there) and
    # any bias: the channel is its bias, whatever the scale of its weights.
    w = quant.quantize_weights(jnp.array([[1.0, 1e-7, 0.0]] * 9), specs.DEFAULT)
    x = array([[20] * 9], 0.02)
    sums = quant.dot(x, w, jnp.array([0.5, 0.5, -0.5]))
    y = quant.requantize(sums, jnp.float32(0.05), specs.DEFAULT)
    # 9 * 20 * 0.02 * 1 + 0.5 = 4.1; two channels of bias alone
    np.testing.assert_array_equal(y.codes, [[82, 10, -10]])


@hypothesis.given(
    strategies.integers(0, 2**32 - 1),
    any_spec(),
    strategies.floats(-6, 1),
    strategies.floats(-6, 1),
    strategies.tuples(booleans, booleans, booleans),
)
def test_add_is_within_one_code(seed, spec, log_a, log_b, nonnegative):
    generator = np.random.default_rng(seed)
    *inputs, relu = nonnegative
    a, b = (
        array(
            generator.integers(spec.lowest, spec.highest + 1, (4, 5)),
            0.3 * 10.0**log,
            spec.zero_point_of(sign),
        )
        for log, sign in zip((log_a, log_b), inputs, strict=True)
    )
    y = quant.add(a, b, jnp.float32(0.3), spec, relu)
    value = sum(
        np.float64(q.scale) * (np.asarray(q.codes, np.float64) - q.zero_point)
        for q in (a, b)
    )
    exact = exact_codes(value, np.float32(0.3), spec, relu)
    assert off_by(y, exact) <= 1
    assert y.zero_point == spec.zero_point_of(relu)


def test_add_by_hand():
    a = array([100, -100, 3], 0.5)  # 50, -50, 1.5
    b = array([-128, 127, 0], 0.25, -128)  # 0, 63.75, 32
    y = quant.add(a, b, jnp.float32(1.0), specs.DEFAULT)
    np.testing.assert_array_equal(y.codes, [50, 14, 34])
    np.testing.assert_array_equal(y.dequantize(), [50, 14, 34])
    # After a ReLU the zero point is the lowest code: 50 - 128, 14 - 128, 34 - 128.
    z = quant.add(a, b, jnp.float32(1.0), specs.DEFAULT, relu=True)
    np.testing.assert_array_equal(z.codes, [-78, -114, -94])
    cut = quant.add(
        a, array([-128] * 3, 0.25, -128), jnp.float32(1), specs.DEFAULT, True
    )
    np.testing.assert_array_equal(cut.dequantize(), [50, 0, 2])


def draw_ratios(generator, size):
    """Draws float32 ratios from 1e-6 to 10, powers of two and their neighbors too."""
    ratios = (10.0 ** generator.uniform(-6, 1, size)).astype(np.float32)
    powers = (2.0 ** generator.integers(-19, 4, size)).astype(np.float32)
    edges = np.nextafter(powers, np.float32(generator.choice([0, 100])))
    return np.where(
        generator.random(size) < 0.2,
        np.where(generator.random(size) < 0.5, powers, edges),
        ratios,
    )


def test_rescale_against_exact_integers():
    generator = np.random.default_rng(3)
    size = 200_000
    ratio = draw_ratios(generator, size)
    magnitude = np.floor(2.0 ** generator.uniform(0, 30, size)).astype(np.int64)
    accumulator = magnitude * generator.choice([-1, 1], size)
    got = np.asarray(
        jax.jit(quant.rescale)(accumulator.astype(np.int32), jnp.asarray(ratio)),
        np.int64,
    )
    mantissa, exponent = np.frexp(ratio.astype(np.float64))
    product = accumulator * (mantissa * 2**24).astype(np.int64)  # below 2^55
    shift = 24 - exponent.astype(np.int64)  # result = product / 2^shift
    half = np.left_shift(1, shift - 1)
    exact = (product + half) >> shift
    small = np.abs(exact) < 2**9
    # What the kernel drops is at most 3 units of 2^-19: it may lower a near tie only.
    dropped = (3 * np.left_shift(1, shift - 19)).astype(np.int64)
    lowest = (product + half - dropped) >> shift
    assert small.mean() > 0.4
    assert np.all((lowest <= got) & (got <= exact), where=small)
    assert np.mean(got == exact, where=small) > 0.9999
    # Beyond, any result saturates every code, on the right side.
    assert np.all(np.abs(got[~small]) >= 2**9 - 1)
    assert np.all(np.sign(got[~small]) == np.sign(exact[~small]))


def test_rescale_by_hand_rounds_ties_up():
    half = jnp.float32(0.5)
    sums = jnp.array([1, 2, 3, -1, -2, -3, 0], jnp.int32)
    np.testing.assert_array_equal(quant.rescale(sums, half), [1, 1, 2, 0, -1, -1, 0])
    by_channel = quant.rescale(jnp.full((2, 2), 100), jnp.array([0.1, 3.0]))
    np.testing.assert_array_equal(by_channel, [[10, 300]] * 2)


@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 1.0, 10.0, 1e6])
def test_rescale_saturates_without_turning_over(ratio):
    extremes = jnp.array([2**31 - 1, -(2**31), 2**30, -(2**30)], jnp.int32)
    got = np.asarray(quant.rescale(extremes, jnp.float32(ratio)), np.float64)
    exact = np.asarray(extremes, np.float64) * ratio
    # Right up to what any code needs; an accumulator itself is clipped at 2^30.
    assert np.all(got * np.sign(exact) >= np.minimum(np.abs(exact), 512) - 1)


@pytest.mark.parametrize("x_code", [-128, 127])
@pytest.mark.parametrize("w_code", [-128, 127])
@pytest.mark.parametrize("zero", [-128, -64, 0])
def test_the_largest_fan_in_does_not_overflow(x_code, w_code, zero):
    x = array(np.full((1, FAN_IN), x_code), 2.0**-7, zero)
    w = array(np.full((FAN_IN, 2), w_code), 2.0**-7)
    exact = (x_code - zero) * w_code * FAN_IN * 2.0**-14
    sums, unit, _ = quant.dot(x, w)
    np.testing.assert_array_equal(np.asarray(sums, np.float64) * unit, [[exact] * 2])
    value = np.float32(max(abs(exact), 1.0))
    y = quant.requantize(quant.dot(x, w), jnp.float32(value / 100), specs.DEFAULT)
    np.testing.assert_array_equal(y.codes, np.full((1, 2), np.sign(exact) * 100))


def test_a_bias_beyond_all_sums_saturates_on_its_side():
    x, w = array(np.full((1, FAN_IN), 127)), array(np.full((FAN_IN, 2), 127))
    sums = quant.dot(x, w, jnp.array([1e30, -1e30]))
    y = quant.requantize(sums, jnp.float32(1.0), specs.DEFAULT)
    np.testing.assert_array_equal(y.codes, [[127, -128]])


@pytest.mark.parametrize("largest", [63.5, 1.0, 0.3, 1e-4, 7e5])
def test_reference_codes_by_hand(largest):
    # Facts sheet, section 7, item 5, in quint8: 0 or 1, 64, 127 or 128.
    x = jnp.float32([-largest, 0, largest])
    q = quant.quantize(
        x, quant.scale_of(specs.REFERENCE, quant.amax(x)), specs.REFERENCE
    )
    low, middle, high = np.asarray(q.codes, int) + 128
    assert (low in (0, 1), middle, high in (127, 128)) == (True, 64, True)
    if largest == 63.5:  # the scale is 1: 63.5 is a tie, and goes to the even 64
        assert (low, high) == (0, 128)


def test_reference_headroom_by_hand():
    # Range of quint8 with zero point 64: -64 s to 191 s = -1.008 to 3.008 of max|x|.
    scale = quant.scale_of(specs.REFERENCE, jnp.float32(63.5))
    values = quant.quantize(jnp.float32([-1e3, 100, 1e3]), scale, specs.REFERENCE)
    np.testing.assert_allclose(values.dequantize(), [-64, 100, 191], rtol=1e-6)


def reference_codes(x, scale):
    """Quantizes as PyTorch, by a fused multiply-add; exact for |x| > scale."""
    inverse = np.float64(np.float32(1) / scale)
    total = (x.astype(np.float64) * inverse + 64).astype(np.float32)
    return np.clip(np.rint(total), 0, 255).astype(int)


def eager_and_jitted(function, *arguments):
    """Gives what a function computes operation by operation, and as a program."""
    arguments = [jnp.asarray(x) for x in arguments]
    return [np.asarray(run(*arguments)) for run in (function, jax.jit(function))]


def test_reference_rounds_ties_as_a_fused_multiply_add():
    generator = np.random.default_rng(0)
    scale = np.float32(0.0173)
    borders = ((generator.integers(-64, 192, 20000) + 0.5) * scale).astype(np.float32)
    bits = borders.view(np.int32) + generator.integers(-6, 7, borders.size, np.int32)
    x = np.concatenate([bits.view(np.float32), 40 * scale * borders])
    x = x[np.abs(x) > 2 * scale]
    for codes in eager_and_jitted(
        lambda x, s: quant.quantize(x, s, specs.REFERENCE).codes, x, scale
    ):
        np.testing.assert_array_equal(
            codes.astype(int) + 128, reference_codes(x, scale)
        )
    separate = np.rint(x * (1 / scale)) + 64  # what the zero point after rounding gives
    assert np.sum(np.clip(separate, 0, 255) != reference_codes(x, scale)) > 100


def test_reference_scales_and_codes_of_extremes():
    # The largest value lies on a tie by construction: every last bit before it counts.
    x = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    scale = 2 * np.abs(x).max(1) / np.float32(127)

    def chain(x):
        scale = quant.scale_of(specs.REFERENCE, quant.amax(x))
        return scale, quant.quantize(x, scale, specs.REFERENCE).codes

    ours, codes = jax.jit(jax.vmap(chain))(x)
    np.testing.assert_array_equal(ours, scale)
    far = np.abs(x) > 2 * scale[:, None]
    expected = reference_codes(x, scale[:, None])
    np.testing.assert_array_equal((np.asarray(codes, int) + 128)[far], expected[far])


def test_reference_folds_and_quantizes_weights_step_by_step():
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((4, 5000)).astype(np.float32)
    mean, variance, gain, bias = draws[0], np.square(draws[1]), draws[2], draws[3]
    kernel = generator.standard_normal((2, 5000)).astype(np.float32)
    inverse = 1 / np.sqrt(variance + np.float32(1e-5))
    folded = kernel * (gain * inverse)
    scale = 2 * np.abs(folded).max() / np.float32(127)
    expected = (
        (0 - mean) * inverse * gain + bias,
        scale,
        np.rint(folded * (1 / scale)),
    )

    def freeze(mean, variance, gain, bias, kernel):
        factor, offset = norms.folded(mean, variance, gain, bias, stepwise=True)
        weights = quant.quantize_weights(kernel * factor, specs.REFERENCE)
        return offset, weights.scale, weights.codes

    given = [jnp.asarray(x) for x in (mean, variance, gain, bias, kernel)]
    constants = jax.jit(lambda: freeze(*given))
    for ours in (freeze(*given), jax.jit(freeze)(*given), constants()):
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_default_codes_by_hand():
    spec = specs.DEFAULT
    signed = quant.quantize(jnp.float32([-127, 0, 2.5, 127, 300]), jnp.float32(1), spec)
    np.testing.assert_array_equal(signed.codes, [-127, 0, 2, 127, 127])
    scale = quant.scale_of(spec, jnp.float32(255), nonnegative=True)
    assert scale == 1
    positive = quant.quantize(jnp.float32([0, 1, 254, 255, 999]), scale, spec, True)
    np.testing.assert_array_equal(positive.codes, [-128, -127, 126, 127, 127])
    np.testing.assert_array_equal(positive.dequantize(), [0, 1, 254, 255, 255])


@pytest.mark.parametrize(
    ("bits", "signed", "nonnegative"), [(2, 1, 3), (4, 7, 15), (8, 127, 255)]
)
def test_levels_by_width(bits, signed, nonnegative):
    spec = specs.Spec(bits=bits, narrow=0)
    assert (spec.levels(False), spec.levels(True)) == (signed, nonnegative)
    assert (spec.lowest, spec.highest) == (-signed - 1, signed)
    halved = dataclasses.replace(spec, reduced_range=True)
    assert (halved.levels(False), halved.levels(True)) == (signed / 2, nonnegative / 2)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("base", BASES)
def test_codes_are_rounded_half_to_even_and_saturate(base, bits):
    spec = dataclasses.replace(BASES[base], bits=bits, narrow=0)
    halves = np.arange(-1200, 1200) / 4
    steps = np.float32(np.concatenate([halves, halves * 1e30, [np.inf, -np.inf, -0.0]]))
    for nonnegative in (False, True):
        zero = spec.zero_point_of(nonnegative)
        q = quant.quantize(jnp.asarray(steps), jnp.float32(1), spec, nonnegative)
        expected = np.clip(np.rint(steps) + zero, spec.lowest, spec.highest)
        np.testing.assert_array_equal(q.codes, expected)


@hypothesis.given(strategies.integers(0, 2**32 - 1), any_spec(), booleans)
def test_quantize_is_within_half_a_code_of_what_it_can_hold(seed, spec, nonnegative):
    spec = dataclasses.replace(spec, half_steps=False, unbiased=False)
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((4, 5)).astype(np.float32)
    x = np.abs(x) if nonnegative else x
    x[0, 0] = 0
    scale = quant.scale_of(spec, quant.amax(jnp.asarray(x)), nonnegative)
    q = quant.quantize(jnp.asarray(x), scale, spec, nonnegative)
    assert q.codes[0, 0] == q.zero_point  # zero is exact: padding relies on it
    codes = np.asarray(q.codes, int)
    assert spec.lowest <= codes.min()
    assert codes.max() <= spec.highest
    # A "quarter" zero point has fewer codes below zero than max|x| needs.
    low = (spec.lowest - q.zero_point) * np.float64(scale)
    error = np.abs(np.asarray(q.dequantize(), np.float64) - np.maximum(x, low))
    assert error.max() <= float(scale) * (0.5 + 1e-4)


def test_amax_by_axis():
    x = jnp.array([[1.0, -7.0], [-3.0, 2.0]])
    assert quant.amax(x) == 7
    np.testing.assert_array_equal(quant.amax(x, (0,)), [3, 7])


def test_a_tensor_of_zeros_has_a_scale():
    assert quant.scale_of(specs.DEFAULT, jnp.float32(0)) > 0
    zeros = quant.quantize_weights(jnp.zeros((3, 2)), specs.DEFAULT)
    np.testing.assert_array_equal(zeros.dequantize(), np.zeros((3, 2)))


def test_weights_by_channel_and_by_tensor():
    w = jnp.array([[127.0, 0.5], [-63.5, -0.25]])
    by_channel = quant.quantize_weights(w, specs.DEFAULT)
    np.testing.assert_allclose(by_channel.scale, [1, 0.5 / 127], rtol=1e-6)
    np.testing.assert_array_equal(by_channel.codes, [[127, 127], [-64, -64]])
    by_tensor = quant.quantize_weights(w, specs.Spec(per_channel=False))
    np.testing.assert_array_equal(by_tensor.codes, [[127, 0], [-64, 0]])
    assert by_tensor.scale == 1
    # The reference's weights reach 63.5 codes, which round to 64 at most.
    reference = quant.quantize_weights(w, specs.REFERENCE)
    np.testing.assert_array_equal(reference.codes, [[64, 0], [-32, 0]])
    assert reference.zero_point == 0
    kernel = quant.quantize_weights(jnp.ones((3, 3, 2, 5)), specs.DEFAULT)
    assert kernel.scale.shape == (5,)


DRAWS = 40_000


def stochastic(operation):
    """Runs an operation of a key twice with one key, and once with another."""
    first, again, other = (operation(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.asarray(first) != np.asarray(other)) > 0.01
    return np.asarray(first, np.float64)


def check_unbiased(codes, value):
    """Checks that codes are the two neighbors of the value, on average the value."""
    assert set(np.unique(codes)) == {np.floor(value), np.ceil(value)}
    upwards = value - np.floor(value)
    deviation = np.sqrt(upwards * (1 - upwards) / DRAWS)
    assert abs(codes.mean() - value) < 5 * deviation


@pytest.mark.parametrize("value", [12.3, -12.3, 0.02])
def test_stochastic_rounding_is_unbiased_and_keyed(value):
    spec = specs.Spec(rounding="stochastic")
    x, one = jnp.full((DRAWS,), jnp.float32(value)), jnp.float32(1)
    check_unbiased(
        stochastic(lambda key: quant.quantize(x, one, spec, key=key).codes), value
    )


@pytest.mark.parametrize(("sums", "ratio"), [(1234, 0.01), (-1234, 0.01), (3, 0.3)])
def test_stochastic_requantization_is_unbiased(sums, ratio):
    accumulator = quant.Accumulator(jnp.full((DRAWS,), sums), jnp.float32(ratio))

    def codes(key):
        return quant.requantize(
            accumulator, jnp.float32(1), specs.DEFAULT, key=key
        ).codes

    check_unbiased(stochastic(codes), sums * ratio)


def test_stochastic_addition_is_unbiased():
    a, b = array(np.full(DRAWS, 33), 0.1), array(np.full(DRAWS, -50), 0.13)

    def codes(key):
        return quant.add(a, b, jnp.float32(1), specs.DEFAULT, key=key).codes

    check_unbiased(stochastic(codes), 33 * 0.1 - 50 * 0.13)


def test_stochastic_weights_are_unbiased():
    w = jnp.full((DRAWS,), 0.203).at[0].set(1.0)
    spec = specs.Spec(per_channel=False)
    codes = stochastic(lambda key: quant.quantize_weights(w, spec, key).codes)
    check_unbiased(codes[1:], 0.203 * 127)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits: expected 2 to 8, got 1"),
        ({"bits": 9}, "bits: expected 2 to 8, got 9"),
        ({"zero_point": "quarter"}, "needs reduced_range=True"),
        ({"relu_zero_point": "quarter"}, "needs reduced_range=True"),
        ({"gradient_place": "output"}, "expected input, product, nowhere"),
        # Results of the backward pass then take the scale of an observed gradient,
        # and nobody observes one: all gradients would saturate near 1e-12.
        ({"requantize_after": True}, "gradient_place"),
    ],
)
def test_spec_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        specs.Spec(**fields)


def test_spec_is_static():
    assert hash(specs.Spec()) == hash(specs.DEFAULT)
    assert specs.Spec() == specs.DEFAULT != specs.REFERENCE
    with pytest.raises(TypeError):
        specs.Spec(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        specs.DEFAULT.bits = 4
