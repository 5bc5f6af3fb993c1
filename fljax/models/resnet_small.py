"""ResNet20, 44 and 56 for CIFAR (He et al., CVPR 2016, section 4.2).

Three groups of 3, 7 or 9 blocks of two 3 x 3 convolutions, of 16, 32 and 64 channels.
As the later code of CoCoFL's authors has them: where the shape changes the shortcut is
a 3 x 3 convolution of stride 2 (neither padded zeros nor a 1 x 1), and the classifier
reads means over 4 x 4 windows, not over the whole image. Stem and classifier stay in
float32 when frozen.
"""

from __future__ import annotations

from flax import linen as nn

from fljax.models import mobilenetv2, resnet
from fljax.nn import joins, layers, network, signals, slicing

WIDTHS = (16, 32, 64)  # of the groups; the second and third halve the image
WINDOW = 4


class Classifier(nn.Module):
    """Means over 4 x 4 windows, then a dense layer on all of them, in float32.

    Of an image smaller than that, the mean over all of it.

    Attributes:
      num_classes: width of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to logits [B, num_classes]."""
        x = signals.to_float(x)
        x = layers.flatten(joins.mean_pool(x, _window(x.shape[1:])))
        logits = layers.dense(self.num_classes, quantized=False, name="dense")(x, call)
        return signals.to_float(logits)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all logits, of the channels that enter, in all windows."""
        window = _window(at.shape)
        windows = (at.shape[0] // window) * (at.shape[1] // window)
        return slicing.Slice(self, {"dense": (at.flattened(windows), None)}, None)


def _window(shape: tuple[int, ...]) -> int:
    return min(WINDOW, *shape[:2])


def resnet20(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network of 11 blocks; arguments as of `mobilenetv2.mobilenetv2`."""
    return _make("resnet20", 3, input_shape, num_classes, tracked)


def resnet44(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network of 23 blocks; arguments as of `mobilenetv2.mobilenetv2`."""
    return _make("resnet44", 7, input_shape, num_classes, tracked)


def resnet56(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network of 29 blocks; arguments as of `mobilenetv2.mobilenetv2`."""
    return _make("resnet56", 9, input_shape, num_classes, tracked)


def _make(name, repeats, input_shape, num_classes, tracked):
    network.check_image(name, input_shape, 8)
    blocks: list[nn.Module] = [mobilenetv2.Outer(WIDTHS[0], 3, tracked)]
    for group, width in enumerate(WIDTHS):
        for repeat in range(repeats):
            stride = 2 if group and not repeat else 1
            blocks.append(resnet.BasicBlock(width, stride, projection=3))
    blocks.append(Classifier(num_classes))
    return network.Network(name, tuple(blocks), input_shape, num_classes)
