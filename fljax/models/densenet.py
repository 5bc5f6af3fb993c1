"""DenseNet40-BC for CIFAR (Huang et al., CVPR 2017), as CoCoFL's reference has it.

Growth 12, bottlenecks of four times that, transitions that halve the width; norm and
ReLU come before each convolution. 22 blocks: stem, three groups of six dense blocks
with a transition between them, classifier. Stem and classifier stay in float32 when
frozen.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from fljax.nn import joins, layers, lone_norms, network, signals

GROWTH = 12
MOMENTUM = 0.1  # of all running statistics, as in the reference


def _bare_conv(features: int, kernel_size: int, **fields) -> layers.Product:
    """Makes a convolution without norm and bias."""
    return layers.conv(features, kernel_size, norm=False, bias=False, **fields)


class Stem(nn.Module):
    """A 3 x 3 convolution without norm and ReLU, in float32 in every role."""

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H, W, 24]."""
        return _bare_conv(2 * GROWTH, 3, quantized=False, name="conv")(x, call)


class DenseBlock(nn.Module):
    """Narrow to 48 channels, filter to 12, and append them to the input."""

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H, W, in + 12]."""
        h = lone_norms.BatchNorm(momentum=MOMENTUM, name="norm")(x, call)
        h = layers.conv(4 * GROWTH, 1, relu=True, momentum=MOMENTUM, name="narrow")(
            h, call
        )
        h = _bare_conv(GROWTH, 3, name="filter")(h, call)
        return joins.Concat(name="concat")(x, h, call)


class Transition(nn.Module):
    """Half the channels, and half the image by averaging."""

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / 2, W / 2, in / 2]."""
        h = lone_norms.BatchNorm(momentum=MOMENTUM, name="norm")(x, call)
        return joins.mean_pool(_bare_conv(x.shape[-1] // 2, 1, name="conv")(h, call))


class Classifier(nn.Module):
    """Norm and ReLU, average over positions, a dense layer; in float32.

    Attributes:
      num_classes: width of the logits.
      tracked: send running statistics.
    """

    num_classes: int
    tracked: bool = False

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to logits [B, num_classes]."""
        norm = lone_norms.BatchNorm(
            quantized=False, tracked=self.tracked, momentum=MOMENTUM, name="norm"
        )
        x = jnp.mean(signals.to_float(norm(x, call)), axis=(1, 2))
        logits = layers.dense(self.num_classes, quantized=False, name="dense")(x, call)
        return signals.to_float(logits)


def densenet40(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network; arguments as of `mobilenetv2.mobilenetv2`."""
    network.check_image("densenet40", input_shape, 8)
    blocks: list[nn.Module] = [Stem()]
    for group in range(3):
        blocks += [Transition()] if group else []
        blocks += [DenseBlock() for _ in range(6)]
    blocks.append(Classifier(num_classes, tracked))
    return network.Network("densenet40", tuple(blocks), input_shape, num_classes)
