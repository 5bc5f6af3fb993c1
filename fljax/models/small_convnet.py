"""A small convolutional network of 8 blocks, for images from 8 x 8 to 32 x 32.

Block 0 is a float32 stem, blocks 1 to 6 are 3 x 3 convolutions that freeze in fixed
point, block 7 averages over positions and classifies.
"""

from __future__ import annotations

from flax import linen as nn

from fljax.models import mobilenetv2
from fljax.nn import layers, network, signals, slicing

# (width, stride) of blocks 1 to 6
WIDTHS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1))


class ConvBlock(nn.Module):
    """A 3 x 3 convolution, its norm and a ReLU.

    Attributes:
      features: output channels.
      stride: of the convolution.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, features]."""
        return layers.conv(self.features, 3, self.stride, relu=True, name="conv")(
            x, call
        )

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own."""
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"conv": (at.kept, kept)}, kept)


def small_convnet(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network; arguments as of `mobilenetv2.mobilenetv2`."""
    network.check_image("small_convnet", input_shape, 8)
    blocks: list[nn.Module] = [mobilenetv2.Outer(16, 3, tracked)]
    blocks += [ConvBlock(features, stride) for features, stride in WIDTHS]
    blocks.append(mobilenetv2.Classifier(num_classes))
    return network.Network("small_convnet", tuple(blocks), input_shape, num_classes)
