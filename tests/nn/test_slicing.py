"""Networks of a smaller width: what is kept of which layer, by hand; and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fljax import models
from fljax.models import (
    densenet,
    logistic,
    mobilenetv2,
    plain_cnn,
    resnet,
    resnet_small,
    small_convnet,
    transformer,
)
from fljax.nn import layers, network, slicing
from tests import conftest

HALF = slicing.Cut(0.5)
THIRD = slicing.Cut(0.3)


def state_of(net, seed=0):
    """Draws a state in which all arrays are random, vectors and ranges included."""
    leaves, tree = jax.tree.flatten(network.shapes(net))
    r = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [r.uniform(0.5, 1.5, x.shape).astype(np.float32) for x in leaves]
    )


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


def of(places, block, layer):
    """Gives the places of a layer's parameters."""
    return places[block]["params"][layer]


def network_of(*blocks, shape=(4, 4, 1), classes=2):
    return network.Network("by_hand", blocks, shape, classes)


@pytest.mark.parametrize(
    ("width", "channels", "ceil", "floor"),
    [
        (0.5, 16, 8, 8),
        (0.3, 16, 5, 4),
        (0.1, 30, 3, 3),  # .1 * 30 is 3.0000000000000004 in floats
        (0.29, 100, 29, 29),  # and .29 * 100 is 28.999999999999996
        (0.0625, 12, 1, 1),  # never none
        (0.01, 1, 1, 1),
        (1.0, 7, 7, 7),
    ],
)
def test_numbers_of_channels(width, channels, ceil, floor):
    assert slicing.Cut(width).number(channels) == ceil
    assert slicing.Cut(width, "floor").number(channels) == floor


def test_the_window_of_fedrolex_moves_down():
    windows = [slicing.rolling(r)("conv", 4, 2).tolist() for r in range(4)]
    assert windows == [[0, 1], [3, 0], [2, 3], [1, 2]]
    assert slicing.rolling(5)("conv", 3, 3).tolist() == [1, 2, 0]


def test_random_channels_depend_on_seed_and_layer_alone():
    one, again, other = (slicing.random(seed) for seed in (1, 1, 2))
    drawn = [one(name, 50, 10) for name in ("a", "b")]
    np.testing.assert_array_equal(drawn[1], again("b", 50, 10))
    assert not np.array_equal(*drawn)
    assert not np.array_equal(drawn[0], other("a", 50, 10))
    assert len(set(drawn[0])) == 10
    assert np.all(np.diff(drawn[0]) > 0)
    by_generator = slicing.random(np.random.default_rng(3))
    np.testing.assert_array_equal(by_generator("a", 9, 4), by_generator("a", 9, 4))


CHOICES = {
    "leading": slicing.leading,
    "rolling": slicing.rolling(3),
    "random": slicing.random(4),
}
# The others are of the same blocks, and take long to trace.
SLICED = (
    *("mobilenetv2", "mobilenetv2_gn", "resnet18", "resnet20", "resnet50"),
    *("densenet40", "transformer", "char_transformer"),
    *("small_convnet", "cnn", "cnn_dropout"),
)


def by_name(name):
    shape = (6,) if "transformer" in name else (8, 8, 3)
    return models.BY_NAME[name](shape, 5)


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.parametrize("cut", [slicing.Cut(0.3, "floor"), slicing.Cut(0.01)])
def test_what_is_kept_fits_the_network_of_that_width(name, cut):
    net = by_name(name)
    small = slicing.sliced(net, cut)
    full = network.shapes(net)
    for choose in CHOICES.values():
        places = slicing.places(net, cut, choose)
        kept = jax.eval_shape(slicing.take, full, places)
        assert kept == network.shapes(small)
        back = jax.eval_shape(lambda x, p: slicing.put(x, p, full), kept, places)
        assert back == full
    last = jax.tree.leaves(kept[-1]["params"])
    assert any(x.shape[-1] == net.num_classes for x in last)
    assert all(x.size for x in jax.tree.leaves(kept))


@pytest.mark.parametrize("name", CHOICES)
def test_put_undoes_take(name):
    net = network_of(
        mobilenetv2.Outer(6, 3),
        resnet.BasicBlock(7, 2, projection=3),
        resnet_small.Classifier(2),
        shape=(8, 8, 3),
    )
    state, places = state_of(net), slicing.places(net, THIRD, CHOICES[name])
    small = jax.jit(slicing.take)(state, places)
    put = jax.jit(slicing.put)
    back = put(small, places, state)
    conftest.assert_same_bits(jax.jit(slicing.take)(back, places), small)
    # Known while tracing, leading channels are slices; the values are the same.
    closed = jax.jit(lambda x: slicing.put(x, places, state))(small)
    conftest.assert_same_bits(closed, back)
    closed = jax.jit(lambda x: slicing.take(x, places))(state)
    conftest.assert_same_bits(closed, small)
    held = put(jax.tree.map(np.ones_like, small), places, state)
    for x, y, h in zip(*map(jax.tree.leaves, (back, state, held)), strict=True):
        assert set(np.unique(h)) <= {0.0, 1.0}
        np.testing.assert_array_equal(x, np.where(h, y, 0))
    # Of one collection alone, as parameters are.
    only = [tuple(block["params"] for block in tree) for tree in (state, places)]
    conftest.assert_same_bits(
        slicing.take(*only), tuple(block["params"] for block in small)
    )


def test_places_may_differ_from_client_to_client():
    net = network_of(mobilenetv2.Outer(6, 3), mobilenetv2.Classifier(2))
    state = state_of(net)
    all_places = [slicing.places(net, HALF, slicing.rolling(r)) for r in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *all_places)
    together = jax.jit(jax.vmap(slicing.take, in_axes=(None, 0)))(state, stacked)
    take = jax.jit(slicing.take)
    for r, places in enumerate(all_places):
        alone = take(state, places)
        conftest.assert_same_bits(jax.tree.map(lambda x, r=r: x[r], together), alone)


def test_width_one_is_the_network_itself():
    net = small_convnet.small_convnet((8, 8, 1), 3)
    full = slicing.Cut(1.0)
    assert slicing.sliced(net, full) is net
    places = slicing.places(net, full)
    assert jax.tree.leaves(places) == []
    state = state_of(net)
    conftest.assert_same_bits(slicing.take(state, places), state)
    conftest.assert_same_bits(slicing.put(state, places, state), state)
    rolled = of(slicing.places(net, full, slicing.rolling(1)), 0, "conv")
    assert rolled["scale"][0].tolist() == [15, *range(15)]


def test_a_chain_of_convolutions():
    net = small_convnet.small_convnet((8, 8, 1), 3)
    places = slicing.places(net, slicing.Cut(0.25))
    stem, first = (of(places, i, "conv") for i in (0, 2))
    head = of(places, 7, "dense")
    assert stem["kernel"][:3] == (None, None, None)  # image channels are whole
    assert stem["kernel"][3].tolist() == stem["scale"][0].tolist() == [0, 1, 2, 3]
    assert first["kernel"][2].tolist() == [0, 1, 2, 3]
    assert first["kernel"][3].tolist() == list(range(8))
    assert places[2]["norms"]["conv"]["mean"][0].tolist() == list(range(8))
    assert places[2]["ranges"]["conv"]["range"] == ()
    assert head["kernel"][0].tolist() == list(range(16))
    assert head["kernel"][1] is None
    assert head["bias"] == (None,)


def test_a_flattened_image_keeps_channels_of_every_position():
    blocks = plain_cnn.ConvBlock(4, pool=True), plain_cnn.DenseBlock(6)
    net = network_of(*blocks, logistic.Logistic(2))
    places = slicing.places(net, HALF, slicing.rolling(1))
    rows, columns = of(places, 1, "dense")["kernel"]
    # Channels 3 and 0 of each of 2 x 2 positions: rows are position * 4 + channel.
    assert rows.tolist() == [3, 0, 7, 4, 11, 8, 15, 12]
    assert columns.tolist() == [5, 0, 1]


def test_sums_and_projections():
    blocks = (
        mobilenetv2.Outer(4, 3),
        resnet.BasicBlock(4),
        resnet.BasicBlock(6, 2),
        resnet.Bottleneck(6, 1, 6),
        mobilenetv2.Classifier(2),
    )
    net = network_of(*blocks)
    drawn = {}

    def choose(name, channels, number):
        drawn[name] = slicing.random(1)(name, channels, number)
        return drawn[name]

    places = slicing.places(net, HALF, choose)
    # An identity keeps what its input keeps, and asks for no channels of its own.
    asked = ["0/conv", "1/first", "2/second", "2/first", "3/reduce", "3/filter"]
    assert sorted(drawn) == sorted(asked)
    second = of(places, 1, "second")["kernel"]
    np.testing.assert_array_equal(second[2], drawn["1/first"])
    np.testing.assert_array_equal(second[3], drawn["0/conv"])
    # A projection takes the block's input in and gives what the branch gives.
    projection = of(places, 2, "shortcut")["kernel"]
    np.testing.assert_array_equal(projection[2], drawn["0/conv"])
    np.testing.assert_array_equal(projection[3], drawn["2/second"])
    np.testing.assert_array_equal(of(places, 3, "widen")["scale"][0], drawn["2/second"])


@pytest.mark.parametrize(
    "block",
    [
        resnet.Bottleneck(3, 1, 4),
        resnet.BasicBlock(4),
        mobilenetv2.InvertedResidual(2, 4, 1),
    ],
)
def test_full_widths_decide_between_identity_and_projection(block):
    # 3 channels enter, 4 leave: of both, two are kept.
    net = network_of(mobilenetv2.Outer(3, 3), block, mobilenetv2.Classifier(2))
    small = slicing.sliced(net, HALF)
    assert "shortcut" in network.shapes(net)[1]["params"]
    assert "shortcut" in network.shapes(small)[1]["params"]
    twice = slicing.sliced(small, HALF)
    assert "shortcut" in network.shapes(twice)[1]["params"]


@pytest.mark.parametrize("group_norm", [False, True])
def test_depthwise_layers_and_norms_follow(group_norm):
    outer = mobilenetv2.Outer(4, 3, group_norm=group_norm)
    block = mobilenetv2.InvertedResidual(3, 5, 2, group_norm)
    net = network_of(outer, block, mobilenetv2.Classifier(2))
    places = slicing.places(net, THIRD, slicing.rolling(1))
    # ceil(.3 * 4) = 2 enter, so 3 * 2 of 12 are inside: not ceil(.3 * 12) = 4.
    inside = [11, 0, 1, 2, 3, 4]
    assert of(places, 1, "expand")["kernel"][2].tolist() == [3, 0]
    assert of(places, 1, "expand")["kernel"][3].tolist() == inside
    depthwise = of(places, 1, "filter")["kernel"]
    assert depthwise[:2] == (None, None)
    assert depthwise[2].tolist() == inside
    norm = "filter_norm" if group_norm else "filter"
    assert of(places, 1, norm)["scale"][0].tolist() == inside
    assert of(places, 1, "project")["kernel"][2].tolist() == inside
    assert of(places, 1, "project")["kernel"][3].tolist() == [4, 0]


def test_what_is_kept_of_a_joined_axis_is_kept_of_its_segments():
    blocks = densenet.Stem(10), *[densenet.DenseBlock(4, 6)] * 2, densenet.Transition()
    net = network_of(*blocks, densenet.Classifier(2), shape=(8, 8, 1))
    floor = slicing.Cut(0.3, "floor")
    places = slicing.places(net, floor, slicing.rolling(1))
    # Floors of .3 times 10, 14, 18 are 3, 4, 5: one new channel each, though
    # .3 * 4 = 1.2. Old channels lie before new ones.
    assert of(places, 1, "norm")["scale"][0].tolist() == [9, 0, 1]
    assert of(places, 1, "narrow")["kernel"][2].tolist() == [9, 0, 1]
    assert of(places, 1, "narrow")["scale"][0].tolist() == [5]
    assert of(places, 1, "filter")["kernel"][3].tolist() == [3]
    assert of(places, 2, "norm")["scale"][0].tolist() == [9, 0, 1, 13]
    assert of(places, 3, "norm")["bias"][0].tolist() == [9, 0, 1, 13, 17]
    # Half of 18 leave; floor(.3 * 9) = 2 of them, not half of 5 as by itself.
    assert of(places, 3, "conv")["kernel"][3].tolist() == [8, 0]
    assert of(places, 4, "dense")["kernel"][0].tolist() == [8, 0]
    # By the ceiling there are 3, 5 and 6: two new ones, then one.
    places = slicing.places(net, THIRD)
    assert of(places, 3, "norm")["scale"][0].tolist() == [0, 1, 2, 10, 11, 14]
    small = slicing.sliced(net, THIRD)
    assert [b.growth for b in small.blocks[1:3]] == [2, 1]
    assert small.blocks[3].features == 3


def text_network():
    encoder = transformer.EncoderLayer(inner=6, heads=2, dropout=0.0)
    blocks = transformer.Embedding(9, 8), encoder, transformer.Classifier(2)
    return network.Network("texts", blocks, (5,), 2, vocabulary=9)


def test_every_head_keeps_channels_and_queries_meet_keys():
    net = text_network()
    places = slicing.places(net, HALF, slicing.rolling(1))
    kept = [7, 0, 1, 2]
    assert of(places, 0, "embedding")[0] is None
    assert of(places, 0, "embedding")[1].tolist() == kept
    # Two heads of four channels: 3 and 0 of the first, 3 and 0 of the second.
    heads = [3, 0, 7, 4]
    for name in ("query", "key", "value"):
        assert of(places, 1, name)["kernel"][0].tolist() == kept
        assert of(places, 1, name)["kernel"][1].tolist() == heads
    assert [k.tolist() for k in of(places, 1, "output")["kernel"]] == [heads, kept]
    assert [k.tolist() for k in of(places, 1, "widen")["kernel"]] == [kept, [5, 0, 1]]
    assert [k.tolist() for k in of(places, 1, "narrow")["kernel"]] == [[5, 0, 1], kept]
    assert of(places, 1, "norm2")["scale"][0].tolist() == kept
    drawn = slicing.places(net, HALF, slicing.random(5))
    q, k, v = (of(drawn, 1, n)["kernel"][1] for n in ("query", "key", "value"))
    np.testing.assert_array_equal(q, k)
    assert np.array_equal(q[:2] + 4, q[2:])
    assert v.size == 4


def test_positions_are_columns_of_the_full_table():
    net = text_network()
    small = slicing.sliced(net, HALF)
    x = jnp.array([[1, 2, 0, 3, 0]])
    state = state_of(net)

    @functools.partial(jax.jit, static_argnums=0)
    def run(net, state, columns=None):
        call = layers.Call(columns=columns)
        return network.run(net, state[:1], x, [call])[0]

    full = run(net, state)
    for choose in CHOICES.values():
        places = slicing.places(net, HALF, choose)
        columns = places[0]["params"]["embedding"][1]
        y = run(small, slicing.take(state[:1], places[:1]), columns)
        np.testing.assert_array_equal(y.value, full.value[..., columns])
    places = slicing.places(net, HALF)
    y = run(small, slicing.take(state[:1], places[:1]))
    np.testing.assert_array_equal(y.value, full.value[..., :4])


@pytest.mark.parametrize("norm", [False, True])
def test_the_scaler_multiplies_products_before_their_norm(norm):
    x = jnp.arange(12.0).reshape(4, 3)
    block = layers.dense(2, norm=norm, relu=True, quantized=False)
    net = network_of(block, logistic.Logistic(2), shape=(3,))
    state = state_of(net)
    plain, scaled = (layers.Call(scale=scale) for scale in (1.0, 4.0))
    (y, _), (z, _) = (network.run(net, state[:1], x, [c]) for c in (plain, scaled))
    params = state[0]["params"]
    if norm:
        # The norm takes the scale out again but for its eps: variances are 16 times.
        product = 4 * x @ params["kernel"]
        var = product.var(axis=0)
        expected = (product - product.mean(axis=0)) / np.sqrt(var + 1e-5)
        expected = np.maximum(expected * params["scale"] + params["bias"], 0)
    else:
        expected = 4 * y
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)
    # Logits are not scaled, and what is not asked for adds no operation.
    (y, _), (z, _) = (
        network.run(net, state[1:], x[:, :2], [call], 1) for call in (plain, scaled)
    )
    np.testing.assert_array_equal(y, z)


def text_of(net, call):
    def run(state, x):
        return network.run(net, state, x, [call] * net.num_blocks)[0]

    return str(jax.make_jaxpr(run)(network.shapes(net), network.zeros(net)))


def test_no_scaler_is_no_operation():
    net = small_convnet.small_convnet((8, 8, 1), 3)
    assert text_of(net, layers.Call(scale=1.0)) == text_of(net, layers.Call())
    scaled = text_of(net, layers.Call(scale=2.0))
    assert scaled.count(" mul ") == text_of(net, layers.Call()).count(" mul ") + 7


class Silent(nn.Module):
    """A block that does not say how it is sliced."""

    features: int = 4

    @nn.compact
    def __call__(self, x, call):
        return layers.conv(self.features, 3, name="conv")(x, call)


class Wrong(Silent):
    """A block that says it wrongly: its norm has two channels, its module four."""

    def slice(self, at):
        kept = at.choose("conv", self.features)
        return slicing.Slice(self, {"conv": (at.kept, kept)}, kept)


class Narrow(Wrong):
    """A block that says what it gives wrongly, so that the next does not fit."""

    def slice(self, at):
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"conv": (at.kept, kept)}, None)


def test_what_cannot_be_sliced_is_refused_in_one_line():
    def complaint(net, call=slicing.check):
        with pytest.raises(ValueError, match=r"expected|says|fit") as error:
            call(net)
        assert "\n" not in str(error.value)
        return str(error.value)

    head = mobilenetv2.Classifier(2)
    silent = complaint(network_of(mobilenetv2.Outer(4, 3), Silent(), head))
    assert "'by_hand': block 1 (Silent) does not say how it is sliced" in silent
    wrong = complaint(network_of(Wrong(), head))
    assert "block 0 (Wrong) says that it keeps (2,)" in wrong
    assert "the sliced block has (4,)" in wrong
    assert "block 1 (Classifier)" in complaint(network_of(Narrow(), head))
    nothing = complaint(models.BY_NAME["logistic"]((4, 4, 1), 2))
    assert "'logistic'" in nothing
    assert "nothing to slice" in nothing
    net = small_convnet.small_convnet((8, 8, 1), 3)
    slicing.check(net)
    for width in (0.0, 1.5, -1.0):
        line = complaint(net, lambda net, w=width: slicing.sliced(net, slicing.Cut(w)))
        assert f"got {width}" in line
    # Of width 1 there is nothing to say.
    net = network_of(Silent(), head)
    assert slicing.sliced(net, slicing.Cut(1.0)) is net
