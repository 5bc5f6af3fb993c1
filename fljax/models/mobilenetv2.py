"""MobileNetV2 for CIFAR (Sandler et al., CVPR 2018), as CoCoFL's reference has it.

Strides fit 32 x 32 images, ReLU instead of ReLU6, a residual sum on every stride 1
block (through a 1 x 1 convolution where the width changes), no ReLU after the sum.
20 blocks: stem, 17 inverted residuals, 1 x 1 convolution, classifier. Stem, last
convolution and classifier stay in float32 when frozen.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from fljax import layers, signals
from fljax.models import network

# (expansion, width, blocks, stride of the first)
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Outer(nn.Module):
    """A convolution block that stays in float32 in every role.

    Attributes:
      features: output channels.
      kernel_size: 3 for the stem, 1 for the last convolution.
      tracked: keep running statistics.
    """

    features: int
    kernel_size: int
    tracked: bool = False

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H, W, features]."""
        return layers.conv(
            self.features,
            self.kernel_size,
            relu=True,
            quantised=False,
            tracked=self.tracked,
            name="conv",
        )(x, call)


class InvertedResidual(nn.Module):
    """Widen, filter depthwise, narrow; the sum with the input at stride 1.

    Attributes:
      expansion: width inside, as a multiple of the input's.
      features: output channels.
      stride: of the depthwise convolution.
    """

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, features]."""
        channels = x.shape[-1]
        inside = self.expansion * channels
        h = layers.conv(inside, 1, relu=True, name="expand")(x, call)
        h = layers.depthwise(3, self.stride, relu=True, name="filter")(h, call)
        h = layers.conv(self.features, 1, name="project")(h, call)
        if self.stride != 1:
            return h
        if channels != self.features:
            x = layers.conv(self.features, 1, name="shortcut")(x, call)
        return layers.Add(name="add")(h, x, call)


class Classifier(nn.Module):
    """Average over positions, then a dense layer in float32.

    Attributes:
      num_classes: width of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to logits [B, num_classes]."""
        x = jnp.mean(signals.to_float(x), axis=(1, 2))
        logits = layers.dense(self.num_classes, quantised=False, name="dense")(x, call)
        return signals.to_float(logits)


def mobilenetv2(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network.

    Args:
      input_shape: [height, width, channels], at least 8 x 8.
      num_classes: width of the logits.
      tracked: the first and last norms keep running statistics too, which evaluation
        by running statistics needs (and clients then upload).

    Returns:
      A network of 20 blocks.

    Raises:
      ValueError: the input is no image of 8 x 8 or more.
    """
    network.check_image("mobilenetv2", input_shape, 8)
    blocks: list[nn.Module] = [Outer(32, 3, tracked)]
    for expansion, features, repeats, stride in GROUPS:
        for repeat in range(repeats):
            blocks.append(
                InvertedResidual(expansion, features, stride if repeat == 0 else 1)
            )
    blocks += [Outer(1280, 1, tracked), Classifier(num_classes)]
    return network.Network("mobilenetv2", tuple(blocks), input_shape, num_classes)
