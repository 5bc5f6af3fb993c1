"""What the reference calls the parameters and buffers of our blocks and networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from fljax import models
from fljax.models import densenet, mobilenetv2, resnet, transformer
from fljax.nn import network

_SHORTCUT = ("shortcut.0", "shortcut.1")
# Ours -> (what the reference multiplies with, what it observes after that: a norm, or
# nothing, where it observes the product itself).
_BLOCKS = {
    mobilenetv2.InvertedResidual: {
        "expand": ("conv1", "bn1"),
        "filter": ("conv2", "bn2"),
        "project": ("conv3", "bn3"),
        "shortcut": _SHORTCUT,
        "add": ("", "add"),
    },
    resnet.BasicBlock: {
        "first": ("conv1", "bn1"),
        "second": ("conv2", "bn2"),
        "shortcut": _SHORTCUT,
        "add": ("", "add"),
    },
    resnet.Bottleneck: {
        "reduce": ("conv1", "bn1"),
        "filter": ("conv2", "bn2"),
        "widen": ("conv3", "bn3"),
        "shortcut": _SHORTCUT,
        "add": ("", "add"),
    },
    densenet.DenseBlock: {
        "norm": ("", "bn1"),
        "narrow": ("conv1", "bn2"),
        "filter": ("conv2", ""),
        "concat": ("", "cat"),
    },
    densenet.Transition: {"norm": ("", "bn1"), "conv": ("conv1", "")},
    mobilenetv2.Outer: {"conv": ("conv1", "bn1")},
    # The reference swaps keys and values: by name alone.
    transformer.EncoderLayer: {
        "query": ("linear_q", ""),
        "key": ("linear_v", ""),
        "value": ("linear_k", ""),
        "output": ("linear_o", ""),
        "add1": ("", "add1"),
        "norm1": ("", "layernorm1"),
        "widen": ("linear1", ""),
        "narrow": ("linear2", ""),
        "add2": ("", "add2"),
        "norm2": ("", "layernorm2"),
    },
}
_GROUP_NORM = {
    "expand": ("conv1", ""),
    "expand_norm": ("", "gn1"),
    "filter": ("conv2", ""),
    "filter_norm": ("", "gn2"),
    "project": ("conv3", ""),
    "project_norm": ("", "gn3"),
    "shortcut": ("shortcut.0", ""),
    "shortcut_norm": ("", "shortcut.1"),
    "add": ("", "add"),
}
# Our layers whose result may leave a block, by precedence.
_LAST = ("norm2", "add", "concat", "project_norm", "project", "conv")


class Names(NamedTuple):
    """The reference's names for one block.

    Attributes:
      parameters: (layer, field) -> its name.
      buffers: (collection, layer, field) -> its name.
      last: what is observed last in the block.
    """

    parameters: dict[tuple[str, str], str]
    buffers: dict[tuple[str, str, str], str]
    last: str


def _of(table: dict, shapes: dict, prefix: str) -> Names:
    """Names what a block has, given as {collection: {layer: {field: shape}}}."""
    parameters, buffers = {}, {}
    for layer, fields in shapes.get("params", {}).items():
        product, norm = table[layer]
        for field in fields:
            owner = product if field == "kernel" or not norm else norm
            kind = "bias" if field == "bias" else "weight"
            parameters[layer, field] = f"{prefix}{owner}.{kind}"
    for collection in ("norms", "ranges", "backward"):
        for layer, fields in shapes.get(collection, {}).items():
            product, norm = table[layer]
            for field in fields:
                name = {
                    "norms": f"running_{field}",
                    "ranges": "op_scale",
                    "backward": "op_scale_bw",
                }[collection]
                buffers[collection, layer, field] = f"{prefix}{norm or product}.{name}"
    observed = [layer for layer in _LAST if layer in shapes.get("ranges", {})]
    last = (table[observed[0]][1] or table[observed[0]][0]) if observed else ""
    return Names(parameters, buffers, last)


def _table(block) -> dict:
    return _GROUP_NORM if getattr(block, "group_norm", False) else _BLOCKS[type(block)]


def _tables(block) -> tuple[dict, ...]:
    """Lists the spellings inside a block; small ResNets name the shortcut's layers."""
    table = _table(block)
    named = {"shortcut": ("shortcut.conv", "shortcut.bn")}
    return (table, table | named) if "shortcut" in table else (table,)


def names_of(block, shapes: dict) -> Names:
    """Names a block of its own; shapes as of `jax.eval_shape` of its init."""
    return _of(_table(block), shapes, "")


def _mobilenet(data):
    inside, channels = data["state/conv1.weight"].shape[:2]
    group_norm = "state/gn1.weight" in data
    features = data["cal_y"].shape[1]
    return mobilenetv2.InvertedResidual(
        inside // channels, features, _stride(data), group_norm
    )


def _stride(data) -> int:
    return data["cal_x"].shape[2] // data["cal_y"].shape[2]


def _resnet(data):
    if "state/conv3.weight" in data:
        return resnet.Bottleneck(data["state/conv1.weight"].shape[0], _stride(data))
    return resnet.BasicBlock(data["cal_y"].shape[1], _stride(data))


def _densenet(data):
    with_filter = "state/conv2.weight" in data
    return densenet.DenseBlock() if with_filter else densenet.Transition()


def _encoder(data):
    return transformer.EncoderLayer(data["state/linear1.weight"].shape[0])


FAMILIES = {
    "mobilenet": _mobilenet,
    "resnet": _resnet,
    "densenet": _densenet,
    "encoder": _encoder,
}


def block_of(case: str, data):
    """Makes our block of a case `block_<family>_...` with the shapes of its data."""
    return FAMILIES[case.split("_")[1]](data)


# Names of networks in the reference's files -> ours.
_UNNAMED = ("logistic", "cnn", "transformer", "char_transformer")
NETWORKS = {name: name for name in models.BY_NAME if name not in _UNNAMED}
NETWORKS |= {
    "mobilenetv2_groupnorm": "mobilenetv2_gn",
    "mobilenetgroupnorm": "mobilenetv2_gn",
    "mobilenetlarge": "mobilenetv2_large",
}


def network_of(tag: str):
    """Gives our factory of the network that a file calls `tag`."""
    return models.BY_NAME[NETWORKS[tag]]


# Several spellings where the facts leave the name open: the first that is stored.
_HEADS = ({"dense": ("linear", "")}, {"dense": ("fc", "")})
_DENSE_HEADS = tuple(
    {"norm": ("", norm), "dense": (dense, "")}
    for norm in ("bn", "bn1", "norm", "layer_out.bn", "layer_out.bn1")
    for dense in ("fc", "linear", "layer_out.fc", "layer_out.linear")
)


def _outer(*prefixes: str) -> tuple[dict, ...]:
    """Lists spellings of a convolution with its norm."""
    inner = (
        ("conv1", "bn1"),
        ("0", "1"),
        ("conv1", "gn1"),
        ("conv", "bn"),
        ("0.conv1", "0.bn1"),
    )
    pairs = [(f"{p}.{c}", f"{p}.{n}") for p in prefixes for c, n in inner]
    pairs.append(("conv1", "bn1"))
    lone = [{"conv": (c, ""), "conv_norm": ("", n)} for c, n in pairs]
    return tuple([{"conv": pair} for pair in pairs] + lone)


def _groups(net: network.Network) -> Iterator[tuple[int, int]]:
    """Yields (group, index in it) of the blocks inside; stride 2 opens a group."""
    group, index = 0, -1
    for i, block in enumerate(net.blocks[1:-1]):
        opens = i > 0 and getattr(block, "stride", 1) == 2
        group, index = (group + 1, 0) if opens else (group, index + 1)
        yield group, index


def _spellings(net: network.Network) -> list[tuple[dict, ...]]:
    """Lists for each block the tables that its names may follow, prefixes included."""

    def inside(block, *prefixes):
        return tuple(
            {
                ours: tuple(f"{prefix}.{name}" if name else "" for name in theirs)
                for ours, theirs in table.items()
            }
            for prefix in prefixes
            for table in _tables(block)
        )

    if net.name == "densenet40":
        result = [tuple({"conv": (p, "")} for p in ("conv1", "layer_in.conv1"))]
        group, index = 1, 0
        for i, block in enumerate(net.blocks[1:-1]):
            if isinstance(block, densenet.Transition):
                name = f"trans{group}"
                group, index = group + 1, 0
            else:
                name = f"dense{group}.{index}"
                index += 1
            result.append(inside(block, name, f"layers.{i}"))
        return [*result, _DENSE_HEADS]
    result = [_outer("layer_in", "input_layer")]
    for i, (group, index) in enumerate(_groups(net)):
        block = net.blocks[i + 1]
        if isinstance(block, mobilenetv2.Outer):
            result.append(_outer("layer_out", "output_layer"))
            continue
        of_group = (f"layer{group + 1}.{index}", f"layers.{group}.{index}")
        result.append(inside(block, f"layers.{i}", *of_group))
    return [*result, _HEADS]


def names_of_network(
    net: network.Network,
    shapes,
    data,
    choose: Callable[[int, list[Names]], Names] | None = None,
) -> list[Names]:
    """Names the blocks of a network, by what is stored of it.

    Args:
      net: ours.
      shapes: of its state.
      data: stored results; `gradnorm/NAME` and `buffer/NAME` tell the names.
      choose: picks the names of a block, given by its index, among those that it may
        have, where nothing of it is stored; None: that is an error.

    Returns:
      Names of every block.

    Raises:
      ValueError: a block has no known spelling among what is stored.
    """
    marked = [
        re.match(r"(?:w[^/]*/)?(gradnorm|buffer)/(.+)", key) for key in data.files
    ]
    stored = {match[2] for match in marked if match}
    result = []
    for index, (tables, block) in enumerate(zip(_spellings(net), shapes, strict=True)):
        layers = set(jax.tree.leaves(list(block["params"])))
        known = [_of(table, block, "") for table in tables if layers <= set(table)]
        fits = [names for names in known if _told(names, stored)]
        if not fits and choose is not None:
            fits = [choose(index, known)]
        if not fits:
            raise ValueError(
                f"block {index} of {net.name}: expected parameters such as "
                f"{sorted(known[0].parameters.values())}, stored are {sorted(stored)}"
            )
        result.append(fits[0])
    return result


def _told(names: Names, stored: set[str]) -> bool:
    """Tells whether a block's parameters, or its buffers, are stored under names."""
    buffers = set(names.buffers.values())
    parameters = set(names.parameters.values())
    return parameters <= stored or bool(buffers & stored)
