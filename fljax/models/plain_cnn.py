"""Plain convolutional networks without norms, as federated benchmarks use them.

Convolutions with bias and ReLU, max pooling, one hidden dense layer. `cnn` is the
network of common CIFAR-10 comparisons, `cnn_dropout` that of FedML and FLUTE for
FEMNIST (there with 62 classes) and, with `VALID` convolutions, of pfl-research.
"""

from __future__ import annotations

from flax import linen as nn

from fljax.models import logistic
from fljax.nn import layers, network, signals, slicing


class ConvBlock(nn.Module):
    """A 3 x 3 convolution with bias, ReLU, and maybe pooling and dropout.

    Attributes:
      features: output channels.
      same: pad by 1, or not at all.
      pool: max pooling over 2 x 2.
      dropout: rate after it; 0: none.
      quantized: fixed point in the frozen roles.
    """

    features: int
    same: bool = True
    pool: bool = False
    dropout: float = 0.0
    quantized: bool = True

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H', W', features]."""
        x = layers.conv(
            self.features,
            3,
            same=self.same,
            norm=False,
            relu=True,
            quantized=self.quantized,
            name="conv",
        )(x, call)
        x = layers.max_pool(x) if self.pool else x
        return layers.Dropout(self.dropout)(x, call) if self.dropout else x

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own."""
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"conv": (at.kept, kept)}, kept)


class DenseBlock(nn.Module):
    """A dense layer with ReLU on the flattened example, and maybe dropout.

    Attributes:
      features: width.
      dropout: rate after it; 0: none.
    """

    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, ...] to [B, features]."""
        dense = layers.dense(self.features, relu=True, name="dense")
        x = dense(layers.flatten(x), call)
        return layers.Dropout(self.dropout)(x, call) if self.dropout else x

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own, and of the image those that enter."""
        kept = at.choose("dense", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"dense": (at.flattened(), kept)}, kept)


def cnn(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes conv32-pool-conv64-pool-dense128: 545,098 parameters at 32 x 32 x 3.

    Arguments as of `mobilenetv2.mobilenetv2`; there is no norm to track.
    """
    del tracked
    network.check_image("cnn", input_shape, 8)
    blocks = (
        ConvBlock(32, pool=True, quantized=False),
        ConvBlock(64, pool=True),
        DenseBlock(128),
        logistic.Logistic(num_classes),
    )
    return network.Network("cnn", blocks, input_shape, num_classes)


def cnn_dropout(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes conv32-conv64-pool-dense128 with dropout and no padding.

    1,626,442 parameters at 32 x 32 x 3 and 10 classes. Arguments as of `cnn`.
    """
    del tracked
    network.check_image("cnn_dropout", input_shape, 8)
    blocks = (
        ConvBlock(32, same=False, quantized=False),
        ConvBlock(64, same=False, pool=True, dropout=0.25),
        DenseBlock(128, dropout=0.5),
        logistic.Logistic(num_classes),
    )
    return network.Network("cnn_dropout", blocks, input_shape, num_classes)
