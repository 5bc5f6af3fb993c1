"""Networks: parameters, bytes and operations against published figures and by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax import models, plans, types
from fljax.models import logistic, mobilenetv2, plain_cnn, small_convnet
from fljax.nn import layers, network
from tests import conftest

BEFORE, TRAINED, AFTER = (
    types.Role.FROZEN_BEFORE,
    types.Role.TRAINED,
    types.Role.FROZEN_AFTER,
)
# Facts sheet, section 4: parameters and upload bytes of MobileNetV2's blocks.
MOBILENET_BLOCKS = {
    0: (928, 3_712),
    1: (2_528, 10_932),
    2: (5_568, 24_244),
    3: (8_832, 37_864),
    4: (10_000, 42_596),
    5: (14_848, 62_760),
    7: (21_056, 87_844),
    8: (54_272, 223_784),
    11: (72_960, 299_572),
    12: (118_272, 483_112),
    14: (155_264, 631_588),
    15: (320_000, 1_296_680),
    17: (525_760, 2_123_572),
    18: (412_160, 1_648_640),
    19: (12_810, 51_240),
}


@pytest.fixture(scope="module")
def mobilenet_counts():
    return network.counts(mobilenetv2.mobilenetv2())


def test_mobilenetv2_is_as_large_as_the_reference(mobilenet_counts):
    assert len(mobilenet_counts) == 20
    assert sum(block.params for block in mobilenet_counts) == 2_296_922
    assert plans.upload_bytes(plans.full(20), mobilenet_counts) == 9_318_260
    for index, (params, upload) in MOBILENET_BLOCKS.items():
        block = mobilenet_counts[index]
        assert (block.params, block.upload_bytes) == (params, upload), index


def test_mobilenetv2_operations(mobilenet_counts):
    total = sum(block.macs + block.depthwise_macs for block in mobilenet_counts)
    assert round(total / 1e6, 1) == 91.2
    stem, second, *_, last = mobilenet_counts
    assert (stem.macs, stem.depthwise_macs) == (32 * 32 * 27 * 32, 0)
    # 32 > 16, expansion 1, through a 1 x 1 shortcut: expand, project, shortcut
    assert second.macs == 32 * 32 * (32 * 32 + 32 * 16 + 32 * 16)
    assert second.depthwise_macs == 32 * 32 * 9 * 32
    assert (last.macs, last.outputs, last.kept) == (1280 * 10, 10, 1280 + 10)


# Facts sheet, 1.2 and 1.7: name -> blocks, parameters, bytes of all. The large
# network has no published total.
SIZES = {
    "mobilenetv2": (20, 2_296_922, 9_318_260),
    "mobilenetv2_gn": (20, 2_296_922, 9_188_624),
    "resnet18": (10, 11_173_962, 44_733_996),
    "resnet50": (18, 23_520_842, 94_296_024),
    "densenet40": (22, 176_122, 724_472),
    "transformer": (8, 2_645_762, 10_583_480),
    "char_transformer": (8, 618_321, 2_473_716),
}
TABLES = {
    "mobilenetv2": ("MobileNet", 210),
    "mobilenetv2_gn": ("MobileNetGroupNorm", 210),
    "mobilenetv2_large": ("MobileNetLarge", 210),
    "resnet18": ("ResNet18", 55),
    "resnet50": ("ResNet50", 171),
    "densenet40": ("DenseNet40", 253),
    "transformer": ("Transformer", 36),
    "char_transformer": ("TransformerSeq2Seq", 36),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_as_large_as_the_reference(name):
    counts = network.counts(models.BY_NAME[name]())
    blocks, params, upload = SIZES[name]
    assert len(counts) == blocks
    assert sum(block.params for block in counts) == params
    assert plans.upload_bytes(plans.full(blocks), counts) == upload


# Conformance README, Widths: 294 874, and 691 418 for images of 64 x 64. ResNet56 has
# six more blocks of two 3 x 3 convolutions and norms in each group than ResNet20.
@pytest.mark.parametrize(
    ("name", "side", "blocks", "params"),
    [
        ("resnet20", 32, 11, 294_874),
        ("resnet44", 64, 23, 691_418),
        (
            "resnet56",
            32,
            29,
            294_874 + 6 * sum(18 * w * w + 4 * w for w in (16, 32, 64)),
        ),
    ],
)
def test_small_resnets_are_as_large_as_they_should_be(name, side, blocks, params):
    net = models.BY_NAME[name]((side, side, 3))
    counts = network.counts(net)
    assert len(counts) == blocks
    assert sum(block.params for block in counts) == params
    # Ranges are sent of two layers and the sum of a block, of a projection as well;
    # statistics of their norms: mean, variance and PyTorch's counter.
    assert counts[1].upload_bytes == 4 * (counts[1].params + 2 * (2 * 16 + 1) + 5)
    assert plans.upload_bytes(plans.Plan(1, 1), counts) == counts[1].upload_bytes
    head = network.shapes(net)[-1]["params"]["dense"]["kernel"]
    assert head.shape == (64 * (side // 16) ** 2, 10)


@pytest.mark.parametrize("name", TABLES)
def test_upload_of_every_window_is_the_published_one(name, shared):
    file, size = TABLES[name]
    table = json.loads((shared / f"reference/tables/{file}.json").read_text())
    counts = network.counts(models.BY_NAME[name](), reference_quirks=True)
    full = plans.upload_bytes(plans.full(len(counts)), counts)
    assert len(table["windows"]) == size
    for first, last, _, data, _ in table["windows"]:
        upload = plans.upload_bytes(plans.Plan(first, last), counts)
        assert abs(upload / full - data) <= 0.5e-5 + 1e-9, (first, last)


def test_the_stem_of_the_large_network_is_sent_by_quirk_alone():
    net = models.BY_NAME["mobilenetv2_large"]((16, 16, 3))
    plain, quirk = (network.counts(net, quirks) for quirks in (False, True))
    late = plans.Plan(19, 19)
    assert plans.upload_bytes(late, plain) == 51_240
    assert plans.upload_bytes(late, quirk) == 51_240 + 3_712
    assert plans.upload_bytes(plans.full(20), quirk) == sum(
        block.upload_bytes for block in plain
    )


def test_the_entry_norm_of_the_first_block_is_not_sent():
    counts = network.counts(models.BY_NAME["densenet40"]((8, 8, 3)))
    # Of 24 channels: mean, variance, batch counter and two ranges.
    assert counts[1].entry_bytes == 4 * (2 * 24 + 1 + 2)
    alone, both = (plans.upload_bytes(plans.Plan(a, 1), counts) for a in (1, 0))
    assert both - alone == counts[0].upload_bytes + counts[1].entry_bytes


def test_small_convnet_by_hand():
    counts = network.counts(small_convnet.small_convnet((8, 8, 1), 3))
    assert len(counts) == 8
    # Stem: 9 taps x 16, scale and bias of 16; outer norms keep no statistics.
    assert counts[0].params == 9 * 16 + 32
    assert counts[0].upload_bytes == 4 * counts[0].params
    # A block inside sends mean and variance, two ranges and the norm's batch counter.
    assert counts[1].params == 9 * 16 * 16 + 32
    assert counts[1].upload_bytes == 4 * (counts[1].params + 32 + 2 + 1)
    assert [block.outputs for block in counts] == [
        *(64 * 16, 64 * 16, 16 * 32, 16 * 32, 4 * 64, 4 * 64, 4 * 64),
        3,
    ]
    assert counts[2].macs == 16 * 9 * 16 * 32
    assert counts[2].kept == 64 * 16 + 16 * 32
    assert counts[7].params == 64 * 3 + 3


def test_tracked_norms_are_uploaded():
    plain, tracked = (
        network.counts(small_convnet.small_convnet((8, 8, 1), 3, tracked))[0]
        for tracked in (False, True)
    )
    assert tracked.params == plain.params
    assert tracked.upload_bytes == plain.upload_bytes + 4 * (2 * 16 + 1)


def test_logistic_is_one_dense_layer():
    net = logistic.logistic((2, 2, 1), 3)
    assert network.counts(net) == (
        types.BlockCounts(12, 0, 4 + 3, 3, 15, 60, float_macs=12),
    )
    variables = {
        "params": {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.arange(3.0)}}
    }
    logits, _ = network.run(net, [variables], jnp.ones((1, 2, 2, 1)), [layers.Call()])
    np.testing.assert_array_equal(logits, [[4, 5, 6]])


@pytest.mark.parametrize("name", models.BY_NAME)
def test_networks_by_name_are_static(name):
    make = models.BY_NAME[name]
    shape = (8,) if "transformer" in name else (8, 8, 3)
    net = make(shape, 5)
    assert (net.name, net.num_classes, net.input_shape) == (name, 5, shape)
    assert net == make(shape, 5)  # equal networks share compiled programs
    assert hash(net) == hash(make(shape, 5))
    assert network.counts(net)[-1].outputs == 5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenetv2", (32, 32)),
        ("mobilenetv2", (4, 32, 3)),
        ("small_convnet", (8, 3, 1)),
    ],
)
def test_networks_refuse_what_is_no_image(name, shape):
    with pytest.raises(ValueError, match=f"{name!r} expects images .* got"):
        models.BY_NAME[name](shape, 10)


@pytest.mark.parametrize("name", ["transformer", "char_transformer"])
def test_networks_of_tokens_refuse_what_is_no_sequence(name):
    with pytest.raises(ValueError, match=f"{name!r} expects token ids .* got"):
        models.BY_NAME[name]((8, 8, 3), 10)


def test_the_key_of_a_block_depends_on_its_index_alone():
    net = logistic.logistic((2, 2, 1), 3)
    twice = net._replace(blocks=net.blocks * 2)
    (alone,) = network.init(net, jax.random.key(3))
    # The second block takes the first one's logits: its kernel is 3 x 3.
    first, second = network.init(twice, jax.random.key(3))
    conftest.assert_same_bits(first, alone)
    assert second["params"]["dense"]["kernel"].shape == (3, 3)
    assert second["params"]["dense"]["bias"][0] != first["params"]["dense"]["bias"][0]


def test_a_slice_of_blocks_runs_as_in_the_whole(problem):
    net, blocks, calls = problem.net, problem.blocks, [layers.Call()] * 5

    @jax.jit
    def run(x):
        whole, updates = network.run(net, blocks, x, calls, mutable=("ranges",))
        half, _ = network.run(net, blocks[:3], x, calls[:3])
        rest, late = network.run(net, blocks[3:], half, calls[3:], 3, ("ranges",))
        return (whole, updates[3:]), (rest, late)

    whole, parts = run(problem.data.x[:4])
    conftest.assert_close(whole, parts, 1e-6)
    assert set(parts[1][0]) == {"ranges"}


def test_freeze_gives_frozen_variables_outside_the_window_only(problem):
    roles = (BEFORE, BEFORE, TRAINED, AFTER, AFTER)
    call = layers.Call()
    frozen = jax.jit(
        lambda blocks: network.freeze(problem.net, blocks, roles, call.spec)
    )(problem.blocks)
    assert [block is None for block in frozen] == [role is TRAINED for role in roles]
    assert all(set(block) == {"frozen"} for block in frozen if block)
    weights = frozen[1]["frozen"]["conv"]["layer"].weights
    # The norm is folded into the kernel before it is quantized, eps 1e-5.
    state = jax.tree.map(np.asarray, problem.blocks[1])
    params, norms = state["params"]["conv"], state["norms"]["conv"]
    folded = params["kernel"] * params["scale"] / np.sqrt(norms["var"] + 1e-5)
    half_a_code = np.asarray(weights.scale).max() * 0.51
    np.testing.assert_allclose(weights.dequantize(), folded, atol=half_a_code)
    bias = frozen[1]["frozen"]["conv"]["layer"].bias
    expected = params["bias"] - norms["mean"] * params["scale"] / np.sqrt(
        norms["var"] + 1e-5
    )
    np.testing.assert_allclose(bias, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "size"),
    [(plain_cnn.cnn, 545_098), (plain_cnn.cnn_dropout, 1_626_442)],
)
def test_plain_networks_have_the_published_sizes(make, size):
    counts = network.counts(make())
    assert sum(block.params for block in counts) == size
    # No norm: parameters and, but for stem and logits, two observed ranges a block.
    assert sum(block.upload_bytes for block in counts) == 4 * (size + 2 * 2)


def test_dropout_drops_in_training_and_not_before_the_window():
    net = plain_cnn.cnn_dropout((8, 8, 1), 3)
    block = net.blocks[2]  # dense, then half of it dropped
    x = jnp.ones((4, 64))
    variables = block.init(jax.random.key(0), x, layers.Call())
    state = ({name: variables.get(name, {}) for name in network.STATE},)
    (plain, _), (dropped, _) = (
        network.run(net, state, x, [layers.Call(key=key)], 2)
        for key in (None, jax.random.key(1))
    )
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)
    alive = np.asarray(plain) > 0
    assert 0.3 < kept[alive].mean() < 0.7
    call = layers.Call(types.Role.FROZEN_BEFORE)
    _, frozen = network.run(net, state, x, [call], 2, ("frozen",))
    (one, _), (two, _) = (
        network.run(net, frozen, x, [call._replace(key=jax.random.key(k))], 2)
        for k in (1, 2)
    )
    np.testing.assert_array_equal(one.codes, two.codes)


def test_parameters_are_drawn_without_a_forward_pass():
    net = small_convnet.small_convnet((8, 8, 1))
    draw = jax.jit(lambda key: network.init(net, key)).lower(jax.random.key(0))
    assert "dot_general" not in draw.as_text()
    ranges = [block["ranges"] for block in draw.compile()(jax.random.key(0))]
    assert jax.tree.leaves(ranges)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(ranges))
