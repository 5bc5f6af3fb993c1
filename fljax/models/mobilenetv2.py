"""MobileNetV2 (Sandler et al., CVPR 2018), as CoCoFL's reference has it.

Strides fit 32 x 32 images (221 x 221: `mobilenetv2_large`), ReLU instead of ReLU6, a
residual sum on every stride 1 block (through a 1 x 1 convolution where the width
changes), no ReLU after the sum. 20 blocks: stem, 17 inverted residuals, 1 x 1
convolution, classifier. Stem, last convolution and classifier stay in float32 when
frozen. `mobilenetv2_gn` has group norms, with as many groups as channels, instead of
batch norms.
"""

from __future__ import annotations

from flax import linen as nn

from fljax.nn import joins, layers, lone_norms, network, signals, slicing

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


def normed(make, *arguments, name: str, group_norm: bool, relu: bool = False, **fields):
    """Makes a product with its norm, batch or group, and ReLU.

    Args:
      make: `layers.conv` or `layers.depthwise`, called with `arguments` and `fields`.
      arguments: of the product.
      name: of the product; a group norm is named NAME_norm.
      group_norm: of as many groups as channels; else a batch norm.
      relu: a ReLU follows.
      fields: of the product.

    Returns:
      (signal, call) -> signal; to be called inside a block.
    """
    if not group_norm:
        return make(*arguments, relu=relu, name=name, **fields)

    def run(x: signals.Signal, call: layers.Call) -> signals.Signal:
        product = make(*arguments, norm=False, bias=False, name=name, **fields)
        quantized = fields.get("quantized", True)
        norm = lone_norms.GroupNorm(relu, quantized, name=f"{name}_norm")
        return norm(product(x, call), call)

    return run


def _with_norms(kept: dict) -> dict:
    """Says of group norms, too, what is kept: the outputs of their products."""
    of_norms = {f"{name}_norm": (None, outputs) for name, (_, outputs) in kept.items()}
    return kept | of_norms


class Outer(nn.Module):
    """A convolution block that stays in float32 in every role.

    Attributes:
      features: output channels.
      kernel_size: 3 for the stem, 1 for the last convolution.
      tracked: send running statistics.
      stride: of the convolution.
      group_norm: instead of a batch norm.
    """

    features: int
    kernel_size: int
    tracked: bool = False
    stride: int = 1
    group_norm: bool = False

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, features]."""
        return normed(
            layers.conv,
            self.features,
            self.kernel_size,
            self.stride,
            relu=True,
            quantized=False,
            tracked=self.tracked,
            group_norm=self.group_norm,
            name="conv",
        )(x, call)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps channels of its own."""
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, _with_norms({"conv": (at.kept, kept)}), kept)


class InvertedResidual(nn.Module):
    """Widen, filter depthwise, narrow; the sum with the input at stride 1.

    Attributes:
      expansion: width inside, as a multiple of the input's.
      features: output channels.
      stride: of the depthwise convolution.
      group_norm: instead of batch norms.
      projects: at stride 1 the sum is with a 1 x 1 convolution of the input; None:
        where the width changes. Sliced, unequal widths may become equal.
    """

    expansion: int
    features: int
    stride: int
    group_norm: bool = False
    projects: bool | None = None

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to [B, H / stride, W / stride, features]."""
        channels = x.shape[-1]
        inside = self.expansion * channels

        def layer(name, make, *arguments, relu=False):
            norm = self.group_norm
            return normed(make, *arguments, name=name, group_norm=norm, relu=relu)

        h = layer("expand", layers.conv, inside, 1, relu=True)(x, call)
        h = layer("filter", layers.depthwise, 3, self.stride, relu=True)(h, call)
        h = layer("project", layers.conv, self.features, 1)(h, call)
        if self.stride != 1:
            return h
        if self._projects(channels):
            x = layer("shortcut", layers.conv, self.features, 1)(x, call)
        return layers.Add(name="add")(h, x, call)

    def _projects(self, channels: int) -> bool:
        return channels != self.features if self.projects is None else self.projects

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps the input's channels where they are added, else its own.

        Inside, as many times as many as enter.
        """
        channels, number = (self.expansion * n for n in (at.channels, at.number))
        inside = at.choose("expand", channels, number)
        projects = self._projects(at.channels)
        identity = self.stride == 1 and not projects
        kept = at.kept if identity else at.choose("project", self.features)
        parts = {
            "expand": (at.kept, inside),
            "filter": (None, inside),
            "project": (inside, kept),
            "shortcut": (at.kept, kept),
        }
        features = slicing.size(kept, self.features)
        small = self.clone(features=features, projects=projects)
        return slicing.Slice(small, _with_norms(parts), kept)


class Classifier(nn.Module):
    """Average over positions, then a dense layer in float32.

    Attributes:
      num_classes: width of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Signal:
        """Maps [B, H, W, in] to logits [B, num_classes]."""
        x = joins.global_mean_pool(x)
        logits = layers.dense(self.num_classes, quantized=False, name="dense")(x, call)
        return signals.to_float(logits)

    def slice(self, at: slicing.Site) -> slicing.Slice:
        """Keeps all logits, of the channels that enter."""
        return slicing.Slice(self, {"dense": (at.kept, None)}, None)


def mobilenetv2(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network.

    Args:
      input_shape: [height, width, channels], at least 8 x 8.
      num_classes: width of the logits.
      tracked: clients send the running statistics of the first and last norms, too,
        which evaluation by them needs; they are kept all the same.

    Returns:
      A network of 20 blocks.

    Raises:
      ValueError: the input is no image of 8 x 8 or more.
    """
    return _make("mobilenetv2", input_shape, num_classes, tracked)


def mobilenetv2_gn(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network with group norms (which have no statistics).

    Arguments as of `mobilenetv2`.
    """
    return _make("mobilenetv2_gn", input_shape, num_classes, tracked, group_norm=True)


def mobilenetv2_large(
    input_shape: tuple[int, ...] = (221, 221, 3),
    num_classes: int = 10,
    tracked: bool = False,
) -> network.Network:
    """Makes the network for images of 221 x 221: stride 2 in stem and second group.

    The reference's clients send its stem whatever they train. Arguments as of
    `mobilenetv2`.
    """
    net = _make("mobilenetv2_large", input_shape, num_classes, tracked, large=True)
    return net._replace(always_sent=(0,))


def _make(name, input_shape, num_classes, tracked, large=False, group_norm=False):
    """Makes a variant; arguments as of the public functions."""
    network.check_image(name, input_shape, 8)
    stem = Outer(32, 3, tracked, 2 if large else 1, group_norm)
    blocks: list[nn.Module] = [stem]
    for index, (expansion, features, repeats, first) in enumerate(GROUPS):
        for repeat in range(repeats):
            stride = first if repeat == 0 else 1
            if large and (index, repeat) == (1, 0):
                stride = 2
            blocks.append(InvertedResidual(expansion, features, stride, group_norm))
    last = Outer(1280, 1, tracked, group_norm=group_norm)
    blocks += [last, Classifier(num_classes)]
    return network.Network(name, tuple(blocks), input_shape, num_classes)
