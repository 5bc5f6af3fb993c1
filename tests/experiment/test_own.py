"""Networks and data of one's own: what does not fit is one line, before it runs."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import fljax
from experiments import train
from fljax import experiment, types
from fljax.data import checks
from fljax.experiment import config as configs
from fljax.models import logistic
from fljax.nn import flax_block, layers, network


def _zeros(*shape):
    return np.zeros(shape, np.uint8)


class Head(nn.Module):
    """A head of the user's, of layers of this library."""

    classes: int = 2

    @nn.compact
    def __call__(self, x, call):
        dense = layers.dense(self.classes, quantized=False, name="dense")
        return dense(layers.flatten(x), call)


class Broken(nn.Module):
    """A block that does not take what comes."""

    @nn.compact
    def __call__(self, x, call):
        return x @ jnp.ones((3, 4))


def _own(*blocks, **fields):
    return network.Network(
        **{"name": "own", "blocks": blocks, "input_shape": (8, 8, 1), "num_classes": 2}
        | fields
    )


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (_own(Head(3)), r"logits \[B, 2\], one a class, got \[B, 3\]"),
        (_own(Head(3), num_classes=3), "expected num_classes 2, as the data .* got 3"),
        (_own(Head(), input_shape=(32, 32, 3)), r"input_shape \(8, 8, 1\), .*32, 3"),
        (_own(nn.Dense(2)), r"\(x, call\), .* got Dense; wrap it in flax_block"),
        (_own(Head), "expected an instance of a linen module, got Head"),
        (_own(blocks=[Head()]), "expected blocks as a tuple of modules, got list"),
        (_own(Broken()), r"block 0: expected Broken to take \[B, 8, 8, 1\], got Type"),
        (_own(Head(), vocabulary=9), "expected vocabulary None, as the data .* got 9"),
        (Head(), "expected a fljax.Network of blocks, .*, got Head"),
        (logistic.logistic, "expected a fljax.Network of blocks, .*, got function"),
    ],
)
def test_a_network_of_ones_own_that_does_not_fit_is_one_line(net, words):
    y = np.arange(8) % 2
    data = types.Dataset(_zeros(8, 8, 8, 1), y, _zeros(4, 8, 8, 1), y[:4], 2)
    settings = configs.Config(num_clients=2, clients_per_round=1)
    with pytest.raises(ValueError, match=words) as error:
        experiment.build(settings, data, net=net)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tuple, "expected a fljax.types.Dataset, got a tuple"),
        (lambda d: d._replace(x_train=[[1, 2], [3]]), "expected x_train as an array"),
        (lambda d: d._replace(x_test=None), "x_test must be numbers of shape"),
        (lambda d: d._replace(num_classes="2"), "num_classes as a whole number .*'2'"),
        (lambda d: d._replace(num_classes=10**9), "num_classes as a whole number"),
        (lambda d: d._replace(tokenizer="x"), "tokenizer as bytes of JSON, got a str"),
        (lambda d: d._replace(vocabulary=5), "x_train must be token ids .* got uint8"),
    ],
)
def test_data_of_ones_own_that_are_none_are_one_line(change, words):
    y = np.arange(8) % 2
    data = types.Dataset(_zeros(8, 8, 8, 1), y, _zeros(4, 8, 8, 1), y[:4], 2)
    settings = configs.Config(num_clients=2, clients_per_round=1)
    with pytest.raises(ValueError, match=f"^data: .*{words}"):
        experiment.build(settings, change(data))


def test_lists_and_arrays_of_jax_are_data():
    y = [0, 1, 0, 1]
    x = jnp.arange(16.0).reshape(4, 4)
    made = checks.made_by_hand(types.Dataset(x.tolist(), y, x, y, 2))
    assert made.x_train.dtype == made.x_test.dtype == np.float32


def test_tokens_of_8_bits_are_no_images():
    x, y = np.arange(12, dtype=np.uint8).reshape(4, 3), np.arange(4) % 2
    data = types.Dataset(x, y, x, y, 2, vocabulary=12)
    assert checks.made_by_hand(data).x_train.dtype == np.int32
    with pytest.raises(ValueError, match="below the vocabulary of 11, got 0 to 11"):
        checks.made_by_hand(data._replace(vocabulary=11))


def test_a_single_block_cannot_be_frozen(call):
    done = call(train, "--network=logistic", "--algorithm=cocofl", "--data_cache=")
    (line,) = done.err.splitlines()
    assert done.code == 2
    assert line.startswith("error: --network: expected one of two blocks or more")
    assert line.endswith("take --algorithm=fedavg")


class Classify(nn.Module):
    """A plain head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def test_a_flax_module_takes_tokens():
    blocks = (flax_block.FlaxBlock(nn.Embed(12, 4)), flax_block.FlaxBlock(Classify()))
    net = _own(*blocks, input_shape=(6,), vocabulary=12)
    x, y = np.arange(60).reshape(10, 6) % 12, np.arange(10) % 2
    network.check(net, checks.made_by_hand(types.Dataset(x, y, x, y, 2, vocabulary=12)))
    assert [count.outputs for count in network.counts(net)] == [24, 2]


def test_data_in_place_of_a_folder_says_where_they_go():
    with pytest.raises(ValueError, match=r"workdir: expected a folder, got a Dataset"):
        fljax.run(configs.Config(), types.Dataset(*[_zeros(1)] * 4))
