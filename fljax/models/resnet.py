"""ResNet18 and ResNet50 for CIFAR (He et al., CVPR 2016), as CoCoFL's reference has it.

The stem is a 3 x 3 convolution of stride 1 without pooling. A block sums a branch of
convolutions and its input (through a 1 x 1 convolution where the shape changes), then
ReLU. Stem and classifier stay in float32 when frozen.

A sliced block says itself whether it projects its input: unequal widths may become
equal.
"""

from __future__ import annotations

from flax import linen as nn

from fljax.models import mobilenetv2
from fljax.nn import layers, network, signals, slicing

WIDTHS = (64, 128, 256, 512)  # of the groups; the second and later ones halve the image


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      projection: size of the kernel on the shortcut.
      projects: there is one; None: where the shape changes.
    """

    features: int
    stride: int = 1
    projection: int = 1
    projects: bool | None = None

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, features]."""
        features, stride, channels = self.features, self.stride, x.shape[-1]
        h = layers.conv(features, 3, stride, relu=True, name="first")(x, call)
        h = layers.conv(features, 3, name="second")(h, call)
        if self._projects(channels):
            shortcut = layers.conv(features, self.projection, stride, name="shortcut")
            x = shortcut(x, call)
        return layers.Add(relu=True, name="add")(h, x, call)

    def _projects(self, channels: int) -> bool:
        changes = self.stride != 1 or channels != self.features
        return changes if self.projects is None else self.projects

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps the input's channels where they are added, else its own."""
        projects = self._projects(at.channels)
        kept = at.choose("second", self.features) if projects else at.kept
        features = slicing.size(kept, self.features)
        inside = at.choose("first", self.features, features)
        parts = {
            "first": (at.kept, inside),
            "second": (inside, kept),
            "shortcut": (at.kept, kept),
        }
        small = self.clone(features=features, projects=projects)
        return slicing.Slice(small, parts, kept)


class Bottleneck(nn.Module):
    """Narrow, filter, widen to four times the width, beside a shortcut.

    Its running statistics weigh the newest batch by 0.1, as the reference's do.

    Attributes:
      width: of the 3 x 3 convolution.
      stride: of it.
      features: output channels; None: 4 * width.
      projects: a convolution is on the shortcut; None: where the shape changes.
    """

    width: int
    stride: int = 1
    features: int | None = None
    projects: bool | None = None

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, 4 * width]."""
        channels, features, stride = x.shape[-1], self._features, self.stride

        def conv(name, *arguments, relu=False):
            return layers.conv(*arguments, relu=relu, momentum=0.1, name=name)

        h = conv("reduce", self.width, 1, relu=True)(x, call)
        h = conv("filter", self.width, 3, stride, relu=True)(h, call)
        h = conv("widen", features, 1)(h, call)
        if self._projects(channels):
            x = conv("shortcut", features, 1, stride)(x, call)
        return layers.Add(relu=True, name="add")(h, x, call)

    @property
    def _features(self) -> int:
        return 4 * self.width if self.features is None else self.features

    def _projects(self, channels: int) -> bool:
        changes = self.stride != 1 or channels != self._features
        return changes if self.projects is None else self.projects

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps the input's channels where they are added, else its own."""
        projects = self._projects(at.channels)
        narrow, inside = (at.choose(name, self.width) for name in ("reduce", "filter"))
        kept = at.choose("widen", self._features) if projects else at.kept
        parts = {
            "reduce": (at.kept, narrow),
            "filter": (narrow, inside),
            "widen": (inside, kept),
            "shortcut": (at.kept, kept),
        }
        features = slicing.size(kept, self._features)
        small = self.clone(width=inside.size, features=features, projects=projects)
        return slicing.Slice(small, parts, kept)


def resnet18(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network of 10 blocks; arguments as of `mobilenetv2.mobilenetv2`."""
    return _make(
        "resnet18", BasicBlock, (2, 2, 2, 2), input_shape, num_classes, tracked
    )


def resnet50(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network of 18 blocks; arguments as of `mobilenetv2.mobilenetv2`."""
    return _make(
        "resnet50", Bottleneck, (3, 4, 6, 3), input_shape, num_classes, tracked
    )


def _make(name, block, repeats, input_shape, num_classes, tracked):
    network.check_image(name, input_shape, 8)
    blocks: list[nn.Module] = [mobilenetv2.Outer(64, 3, tracked)]
    for group, (width, count) in enumerate(zip(WIDTHS, repeats, strict=True)):
        strides = [1 if group == 0 else 2] + [1] * (count - 1)
        blocks += [block(width, stride) for stride in strides]
    blocks.append(mobilenetv2.Classifier(num_classes))
    return network.Network(name, tuple(blocks), input_shape, num_classes)
