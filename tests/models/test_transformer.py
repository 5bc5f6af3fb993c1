"""Transformers: parts by hand, padding, roles, and the slips of the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import models, plans, types
from fljax.engine import client
from fljax.engine.program import single
from fljax.kernels import norms, quant, specs
from fljax.models import transformer
from fljax.nn import attention, layers, network, operations, signals
from tests import conftest

BEFORE, TRAINED, AFTER = (
    types.Role.FROZEN_BEFORE,
    types.Role.TRAINED,
    types.Role.FROZEN_AFTER,
)
VOCABULARY, LENGTH, CLASSES = 11, 6, 3


def make(**fields):
    """Makes a small transformer of four blocks."""
    blocks = (
        transformer.Embedding(VOCABULARY, 8),
        transformer.EncoderLayer(12, 2),
        transformer.EncoderLayer(12, 2),
        transformer.Classifier(CLASSES, **fields),
    )
    return network.Network(
        "small", blocks, (LENGTH,), CLASSES, vocabulary=VOCABULARY
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared():
    net = make()
    return net, conftest.start(net)


def test_sinusoids_by_hand():
    table = transformer.sinusoids(3, 4)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1])
    expected = [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]
    np.testing.assert_allclose(table[2], expected, rtol=1e-6)


def test_layer_norm_by_hand():
    # 1 and 3: mean 2, variance 1; the other position does not matter.
    x = jnp.array([[[1.0, 3.0], [10.0, 50.0]]])
    y = norms.layer_norm(x, jnp.array([2.0, 1.0]), jnp.array([5.0, 0.0]))
    np.testing.assert_allclose(y[0, 0], [3, 1], rtol=1e-4)


def test_attention_by_hand():
    # One head of width 1; the scores of the query 1 are the keys.
    key = jnp.log(jnp.array([1.0, 3.0, 100.0])).reshape(1, 3, 1)
    value = jnp.array([4.0, 8.0, 99.0]).reshape(1, 3, 1)
    valid = jnp.array([[True, True, False]])
    module = attention.Attention(1)
    y = module.apply({}, jnp.ones((1, 3, 1)), key, value, valid, layers.Call())
    np.testing.assert_allclose(y[0, :, 0], [0.25 * 4 + 0.75 * 8] * 3, rtol=1e-6)


def test_embedding_counts_positions_from_one_and_padding_from_none():
    block = transformer.Embedding(5, 4, appended=1)
    tokens = jnp.array([[3, 0, 2], [0, 0, 0]])
    variables = block.init(jax.random.key(0), tokens, layers.Call())
    out = block.apply(variables, tokens, layers.Call())
    # The first position is never padding.
    assert out.valid.tolist() == [[True, False, True, False], [True] + [False] * 3]
    table = np.asarray(variables["params"]["embedding"])
    places = transformer.sinusoids(5, 4)
    expected = table[[3, 0, 2, 0]] + places[[1, 0, 3, 0]]
    np.testing.assert_allclose(out.value[0], expected, rtol=1e-6)


def test_padding_changes_nothing(prepared):
    net, state = prepared
    calls = [layers.Call()] * net.num_blocks

    def logits(tokens):
        return network.run(net, state, jnp.asarray([tokens]), calls)[0]

    np.testing.assert_allclose(
        logits([4, 7, 2]), logits([4, 7, 2, 0, 0, 0, 0]), atol=1e-5
    )
    assert not np.allclose(logits([4, 7, 2]), logits([4, 7, 2, 9]), atol=1e-3)
    assert np.all(np.isfinite(logits([0, 0, 0])))


def test_no_position_of_a_causal_one_sees_a_later_token(prepared):
    net, state = prepared
    blocks = (
        net.blocks[0],
        *(block.clone(causal=True) for block in net.blocks[1:3]),
        net.blocks[3].clone(positions=True),
    )
    causal = net._replace(blocks=blocks)  # of the same parameters
    calls = [layers.Call()] * net.num_blocks

    def logits(network_, tokens):
        return network.run(network_, state, jnp.asarray([tokens]), calls)[0]

    one, two = logits(causal, [4, 7, 2, 9]), logits(causal, [4, 7, 5, 0])
    assert one.shape == (1, 4, CLASSES)
    np.testing.assert_array_equal(one[:, :2], two[:, :2])
    assert not np.allclose(one[:, 2], two[:, 2], atol=1e-3)
    # Without the mask the first position sees them all.
    open_ = net._replace(blocks=(*net.blocks[:3], blocks[3]))
    assert not np.allclose(
        logits(open_, [4, 7, 2, 9])[:, 0], logits(open_, [4, 7, 5, 0])[:, 0], atol=1e-3
    )


@pytest.mark.parametrize("name", ["transformer", "char_transformer"])
def test_networks_by_name_answer_at_every_position_if_they_are_asked(name):
    make_ = models.BY_NAME[name]
    net = make_((LENGTH,), VOCABULARY, vocabulary=VOCABULARY, positions=True)
    assert (net.num_blocks, network.counts(net)[-1].outputs) == (8, LENGTH * VOCABULARY)
    plain = make_((LENGTH,), LENGTH + 1, vocabulary=VOCABULARY)
    assert network.counts(plain)[-1].outputs == LENGTH + 1
    assert all(block.causal for block in net.blocks[1:-1])
    assert not any(block.causal for block in plain.blocks[1:-1])


@pytest.mark.parametrize("spec", [specs.DEFAULT, specs.REFERENCE, specs.FLOAT])
def test_frozen_blocks_are_the_float_blocks_within_a_few_codes(spec):
    net = make()
    state = conftest.start(net, spec)
    tokens = network.noise(net, jax.random.key(2), 8)
    whole = [layers.Call(spec=spec)] * net.num_blocks
    exact, _ = network.run(net, state[:3], tokens, whole[:3])
    for role in (BEFORE, AFTER):
        calls = [layers.Call(role, spec)] * net.num_blocks
        frozen = network.freeze(net, state, (role,) * net.num_blocks, spec)
        assert {name for block in frozen for name in block} == {"frozen"}
        y, _ = network.run(net, frozen[:3], tokens, calls[:3])
        ours, theirs = signals.to_float(y.value), np.asarray(exact.value)
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < (1e-5 if spec is specs.FLOAT else 0.15), (role, error)
        cosine = np.sum(ours * theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert cosine > 0.995


def test_gradients_pass_frozen_blocks(prepared):
    net, state = prepared
    tokens = network.noise(net, jax.random.key(2), 8)

    def gradient(role):
        roles = (TRAINED, role, role, role)
        frozen = network.freeze(net, state, roles, specs.DEFAULT)
        calls = [layers.Call(r) for r in roles]

        def loss(params):
            first = {**state[0], "params": params}
            rest = state[1:] if role is TRAINED else frozen[1:]
            return jnp.sum(network.run(net, (first, *rest), tokens, calls)[0][:, 0])

        return np.asarray(jax.grad(loss)(state[0]["params"])["embedding"])

    exact, ours = gradient(TRAINED), gradient(AFTER)
    cosine = np.sum(exact * ours) / np.linalg.norm(exact) / np.linalg.norm(ours)
    assert cosine > 0.98
    assert not exact[0].any()  # padding does not occur in these inputs


@pytest.mark.long
def test_a_client_learns_and_moves_its_window_alone(prepared):
    net, state = prepared
    generator = np.random.default_rng(0)
    x = generator.integers(1, VOCABULARY, (64, LENGTH)).astype(np.uint16)
    y = (x == 3).any(1).astype(np.int32)  # which a look at every token tells
    data = client.Data(jnp.asarray(x), jnp.asarray(y), jnp.zeros(1), jnp.ones(1))
    training = client.Training(batch_size=16, local_epochs=20, weight_decay=0.0)
    losses = {}
    for window in ((0, 3), (2, 2)):
        plan = plans.Plan(*window)
        roles = plans.roles(plan, net.num_blocks)
        frozen = network.freeze(net, state, roles, training.spec)
        start = client.Start(state, frozen, data, jnp.float32(0.1))
        static = client.Static(net, single.Single(plan), training)
        result = jax.jit(
            lambda epochs, static=static, start=start: client.train(
                static._replace(training=training._replace(local_epochs=epochs)),
                start,
                client.Client(jnp.arange(64), jnp.int32(64), jax.random.key(3)),
            ),
            static_argnums=0,
        )
        short, long = result(1), result(20)
        losses[window] = float(short.loss), float(long.loss)
        moved = [block is not None for block in long.delta]
        assert moved == [window[0] <= i <= window[1] for i in range(4)]
    assert all(late < 0.9 * early for early, late in losses.values()), losses
    assert losses[0, 3][1] < losses[2, 2][1]


def test_two_softmaxes_by_quirk(prepared):
    net, state = prepared
    tokens = network.noise(net, jax.random.key(2), 4)
    calls = [layers.Call()] * net.num_blocks
    plain, _ = network.run(net, state, tokens, calls)
    quirk, _ = network.run(make(reference_quirks=True), state, tokens, calls)
    np.testing.assert_allclose(quirk, jax.nn.softmax(plain), rtol=1e-6)


def test_the_last_position_and_its_quirk():
    h = signals.Padded(jnp.arange(12.0).reshape(1, 4, 3), jnp.ones((1, 4), bool))
    heads = [transformer.Classifier(4, True, quirk) for quirk in (False, True)]
    variables = {"params": {"dense": {"kernel": jnp.eye(3, 4), "bias": jnp.zeros(4)}}}
    variables["params"]["dense"]["kernel"] = jnp.eye(3, 4, 1)
    plain, quirk = (head.apply(variables, h, layers.Call()) for head in heads)
    np.testing.assert_array_equal(plain, [[0, 9, 10, 11]])
    np.testing.assert_array_equal(quirk, [[2, 5, 8, 11]])  # class 3 at each position
    with pytest.raises(ValueError, match=r"as many classes .* got 5 classes .*\[8\]"):
        transformer.char_transformer((8,), 5, reference_quirks=True)


@pytest.mark.parametrize("quirks", [False, True])
def test_gradient_scale_of_the_first_token_by_quirk(quirks):
    # The first position has gradients up to 1, the second of 2 and -2: in the range of
    # the first, -2 saturates at -64 codes of 1 / 63.5, 2 does not.
    spec = dataclasses.replace(specs.REFERENCE, reference_quirks=quirks)
    spec = dataclasses.replace(spec, requantize_after=False)
    weights = quant.QArray(jnp.eye(2, dtype=jnp.int8), jnp.float32(1.0))
    one = jnp.float32(1.0)
    frozen = operations.Frozen(weights, None, one, one)
    dense = operations.Operation("dense")

    def run(x):
        ranged = signals.Ranged(x, None)
        return operations.after(dense, spec, False, ranged, frozen, None)

    g = jnp.array([[[1.0, 1.0], [2.0, -2.0]]])
    _, pull = jax.vjp(run, jnp.ones((1, 2, 2)))
    (dx,) = pull(g)
    lowest = -64 / 63.5 if quirks else -2
    np.testing.assert_allclose(dx[0, 1], [2, lowest], rtol=0.02)


def test_what_is_sent_of_layers_after_the_window_is_a_quirk():
    net = transformer.transformer((8,), 2, vocabulary=20)
    plain, quirk = (network.counts(net, quirks) for quirks in (False, True))
    first = plans.Plan(0, 0)
    assert plans.upload_bytes(first, plain) == 4 * 20 * 128
    # Scale and bias of two norms of 128 channels in each of the six layers.
    assert plans.upload_bytes(first, quirk) == 4 * 20 * 128 + 6 * 4 * 4 * 128
    layer = plain[1]
    products = 8 * 6 * 128 * 128
    assert layer.macs == products + 2 * 8 * 8 * 128
    assert layer.outputs == 8 * 128
