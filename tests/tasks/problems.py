"""A tiny data set and network of each task, which compile in seconds."""

import numpy as np
from flax import linen as nn

import fljax
from fljax.models import transformer
from fljax.nn import layers

TRAIN, TEST = 96, 40
VOCABULARY, LENGTH = 7, 6
TIERS = (
    fljax.Tier(name="new", share=0.5, time=1, upload=1, memory=1),
    fljax.Tier(name="old", share=0.5, time=0.7, upload=0.7, memory=0.7),
)


class Hidden(nn.Module):
    """A layer that freezes."""

    features: int = 8

    @nn.compact
    def __call__(self, x, call):
        return layers.dense(self.features, relu=True, name="dense")(x, call)


class Head(nn.Module):
    """A linear layer."""

    outputs: int

    @nn.compact
    def __call__(self, x, call):
        return layers.dense(self.outputs, quantized=False, name="dense")(x, call)


def dense(outputs):
    """Makes a network of three blocks on four numbers."""
    blocks = (Hidden(), Hidden(), Head(outputs))
    return fljax.Network("dense", blocks, (4,), outputs)


def language():
    """Makes a small causal Transformer."""
    blocks = (
        transformer.Embedding(VOCABULARY, 8),
        transformer.EncoderLayer(8, dropout=0.0, causal=True),
        transformer.Classifier(VOCABULARY, positions=True),
    )
    return fljax.Network(
        "language", blocks, (LENGTH,), VOCABULARY, vocabulary=VOCABULARY
    )


def _split(x, y, **fields):
    return fljax.Dataset(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], **fields)


def numbers():
    """Draws rows of four numbers."""
    return np.random.default_rng(0).normal(size=(TRAIN + TEST, 4)).astype(np.float32)


def regression():
    """Makes two sums of the numbers the labels."""
    x = numbers()
    return _split(x, np.stack([x[:, 0] + x[:, 1], x[:, 2]], 1)), dense(2)


def multilabel():
    """Makes the signs of the numbers the labels."""
    x = numbers()
    return _split(x, (x[:, :3] > 0).astype(int)), dense(3)


def classification():
    """Makes the sign of the first number the class."""
    x = numbers()
    return _split(x, (x[:, 0] > 0).astype(int)), dense(2)


def tokens():
    """Counts on from a first token, in texts of different lengths."""
    random = np.random.default_rng(0)
    first = random.integers(0, VOCABULARY - 1, (TRAIN + TEST, 1))
    text = (first + np.arange(LENGTH + 1)) % (VOCABULARY - 1) + 1
    lengths = random.integers(3, LENGTH + 2, (TRAIN + TEST, 1))
    text = np.where(np.arange(LENGTH + 1) < lengths, text, 0)
    data = _split(text[:, :-1], text[:, 1:], vocabulary=VOCABULARY)
    return data, language()


BY_NAME = {
    "classification": classification,
    "tokens": tokens,
    "regression": regression,
    "multilabel": multilabel,
}


def settings(task, **fields):
    """Makes settings of a few clients."""
    small = {
        "task": task,
        "algorithm": "fedavg",
        "num_clients": 8,
        "clients_per_round": 4,
        "batch_size": 8,
        "rounds": 2,
        "weight_decay": 0.0,
        "lr": 0.3,
        "tiers": TIERS,
    }
    return fljax.Config(**(small | fields))


def ready(name, **fields):
    """Builds an experiment of the task of a name."""
    data, net = BY_NAME[name]()
    return fljax.build(settings(**{"task": name} | fields), data, net)
