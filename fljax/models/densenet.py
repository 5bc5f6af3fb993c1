"""DenseNet40-BC for CIFAR (Huang et al., CVPR 2017), as CoCoFL's reference has it.

Growth 12, bottlenecks of four times that, transitions that halve the width; norm and
ReLU come before each convolution. 22 blocks: stem, three groups of six dense blocks
with a transition between them, classifier. Stem and classifier stay in float32 when
frozen.
"""

from __future__ import annotations

import numpy as np
from flax import linen as nn

from fljax.nn import joins, layers, lone_norms, network, signals, slicing

GROWTH = 12
MOMENTUM = 0.1  # of all running statistics, as in the reference


def _bare_conv(features: int, kernel_size: int, **fields) -> layers.Product:
    """Makes a convolution without norm and bias."""
    return layers.conv(features, kernel_size, norm=False, bias=False, **fields)


class Stem(nn.Module):
    """A 3 x 3 convolution without norm and ReLU, in float32 in every role.

    Attributes:
      features: output channels.
    """

    features: int = 2 * GROWTH

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H, W, features]."""
        return _bare_conv(self.features, 3, quantized=False, name="conv")(x, call)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own."""
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"conv": (at.kept, kept)}, kept)


class DenseBlock(nn.Module):
    """Narrow, filter to a few new channels, and append them to the input.

    Attributes:
      growth: new channels.
      inside: channels in between.
    """

    growth: int = GROWTH
    inside: int = 4 * GROWTH

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H, W, in + growth]."""
        h = lone_norms.BatchNorm(momentum=MOMENTUM, name="norm")(x, call)
        h = layers.conv(self.inside, 1, relu=True, momentum=MOMENTUM, name="narrow")(
            h, call
        )
        h = _bare_conv(self.growth, 3, name="filter")(h, call)
        return joins.Concat(name="concat")(x, h, call)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps what enters, and so many new ones that n(s c) of all c are kept.

        Of every segment the channels that its own layer chose: what is kept of the
        joined axis is no leading part of it.
        """
        joined, number = at.channels + self.growth, at.cut.number
        grown = max(1, number(joined) - number(at.channels))
        inside = at.choose("narrow", self.inside)
        new = at.choose("filter", self.growth, grown)
        parts = {
            "norm": (None, at.kept),
            "narrow": (at.kept, inside),
            "filter": (inside, new),
        }
        old = np.arange(at.channels, dtype=np.int32) if at.kept is None else at.kept
        small = self.clone(growth=grown, inside=inside.size)
        return slicing.Slice(small, parts, np.concatenate([old, at.channels + new]))


class Transition(nn.Module):
    """Half the channels, and half the image by averaging.

    Attributes:
      features: output channels; None: half as many as enter.
    """

    features: int | None = None

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / 2, W / 2, features]."""
        h = lone_norms.BatchNorm(momentum=MOMENTUM, name="norm")(x, call)
        features = self._features(x.shape[-1])
        return joins.mean_pool(_bare_conv(features, 1, name="conv")(h, call))

    def _features(self, channels: int) -> int:
        return channels // 2 if self.features is None else self.features

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own."""
        kept = at.choose("conv", self._features(at.channels))
        parts = {"norm": (None, at.kept), "conv": (at.kept, kept)}
        return slicing.Slice(self.clone(features=kept.size), parts, kept)


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
        x = joins.global_mean_pool(norm(x, call))
        logits = layers.dense(self.num_classes, quantized=False, name="dense")(x, call)
        return signals.to_float(logits)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all logits, of the channels that enter."""
        parts = {"norm": (None, at.kept), "dense": (at.kept, None)}
        return slicing.Slice(self, parts, None)


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
