"""Networks of a smaller width, as parts of a full one.

A network of width s keeps n(s c) of the c channels of every layer that chooses its
own; norms, depthwise layers and sums have the channels of what enters them. It is
built of small blocks of its own, so that what it saves is real, and `places` says
where each of its values lies in the full network: `take` cuts it out, `put` lays what
it became back in. Which channels a layer keeps is a method's choice: the leading ones
(HeteroFL, Diao et al., ICLR 2021; FjORD, Horvath et al., NeurIPS 2021), a window that
moves (FedRolex, Alam et al., NeurIPS 2022), random ones (Federated Dropout, Caldas et
al., 2018).

A block says itself how it is sliced, in a method beside its `__call__`:

    def slice(self, at: slicing.Site) -> slicing.Slice:
        kept = at.choose("conv", self.features)
        small = self.clone(features=kept.size)
        return slicing.Slice(small, {"conv": (at.kept, kept)}, kept)

What stays whole is None: the channels of an image, the logits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fljax import bounds, types
from fljax.nn import layers, network, signals

# Like a state, with a tuple in place of each leaf: for each of its axes the indices
# [n] int32 that are kept, in the client's order, or None: all.
Places = Any
Choose = Callable[[str, int, int], np.ndarray]  # (layer, c channels, n) -> [n] of them
Kept = np.ndarray | None  # indices [n] of channels in the client's order; None: all

NEARLY = 1e-6  # .1 * 30 is 3.0000000000000004, and means 3


class Cut(NamedTuple):
    """How wide a network is, and how channels are counted; static.

    Attributes:
      width: s, share of the channels, above 0 and at most 1.
      rounding: of a number of channels that is no integer: "ceil" as in the first
        papers' code, or "floor".
      whole: first blocks that keep all channels, whatever the width (SLT, Pfeiffer et
        al., NeurIPS 2023); so does what adds its input to its output behind them.
    """

    width: float
    rounding: Literal["ceil", "floor"] = "ceil"
    whole: int = 0

    def number(self, channels: int) -> int:
        """Gives how many of so many channels are kept, at least one.

        Example:
          >>> Cut(0.3).number(12), Cut(0.3, "floor").number(12), Cut(0.1).number(30)
          (4, 3, 3)
        """
        exact = self.width * channels
        if self.rounding == "floor":
            return max(1, math.floor(exact + NEARLY))
        return max(1, math.ceil(exact - NEARLY))


def leading(name: str, channels: int, number: int) -> np.ndarray:
    """Chooses the first channels: HeteroFL, FjORD."""
    del name, channels
    return np.arange(number)


def rolling(shift: int) -> Choose:
    """Makes a window that starts `shift` channels before the first, and wraps.

    FedRolex, of round `shift`: the window moves down, as in its authors' code.

    Example:
      >>> rolling(1)("conv", 4, 2).tolist()
      [3, 0]
    """

    def choose(name: str, channels: int, number: int) -> np.ndarray:
        del name
        return (np.arange(number) - shift) % channels

    return choose


def random(seed: int | np.random.Generator) -> Choose:
    """Makes a choice of random channels, in ascending order: Federated Dropout.

    What a layer draws depends on the seed and its name alone. Of a generator one
    number is drawn, as the seed.
    """
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**63))

    def choose(name: str, channels: int, number: int) -> np.ndarray:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return np.sort(generator.choice(channels, number, replace=False))

    return choose


def size(kept: Kept, channels: int) -> int:
    """Counts the kept ones of so many channels."""
    return channels if kept is None else kept.size


class Slice(NamedTuple):
    """What is kept of a block.

    Attributes:
      block: the same block, with as many channels.
      layers: name -> (kept inputs, kept outputs). Outputs are the last axis of every
        array of the layer, inputs the last but one of those that have more: of a
        depthwise kernel, or a norm, give None. Layers within a layer are named
        "outer/inner", a parameter of the block itself by its own name; all that is
        not named is whole.
      output: the channels that leave the block.
    """

    block: nn.Module
    layers: dict[str, tuple[Kept, Kept]]
    output: Kept


@dataclasses.dataclass(frozen=True)
class Site:
    """What a block that is to be sliced is told.

    Attributes:
      cut: width and rounding.
      block: its index.
      shape: of one example that enters the full block, channels last.
      kept: the channels of it that are kept.
      pick: the method's choice, see `choose`.
    """

    cut: Cut
    block: int
    shape: tuple[int, ...]
    kept: Kept
    pick: Choose

    @property
    def channels(self) -> int:
        """How many channels enter the full block."""
        return self.shape[-1]

    @property
    def number(self) -> int:
        """How many channels enter the sliced block."""
        return size(self.kept, self.channels)

    def choose(self, layer: str, channels: int, number: int | None = None):
        """Chooses channels of a layer, n(s c) of them unless a number is given.

        Args:
          layer: its name in the block; layers that keep the same channels share one.
          channels: c, of the full layer.
          number: of channels that are kept.

        Returns:
          Indices [n] int32.
        """
        number = self.cut.number(channels) if number is None else number
        kept = self.pick(f"{self.block}/{layer}", channels, number)
        return np.asarray(kept, np.int32)

    def choose_of_heads(self, layer: str, channels: int, heads: int) -> np.ndarray:
        """Chooses the same channels of every head; heads lie side by side."""
        each = channels // heads
        kept = self.choose(layer, each)
        return (np.arange(heads, dtype=np.int32)[:, None] * each + kept).ravel()

    def flattened(self, positions: int | None = None) -> Kept:
        """Gives what is kept where the input is flattened, channels last.

        Args:
          positions: of the image that is flattened, if it is not the whole input.

        Returns:
          Indices [positions * n] int32: all positions of the kept channels.
        """
        if self.kept is None:
            return None
        positions = math.prod(self.shape[:-1]) if positions is None else positions
        at = np.arange(positions, dtype=np.int32)[:, None] * self.channels
        return (at + self.kept).ravel()


@functools.cache
def entering(net: network.Network) -> tuple[tuple[int, ...], ...]:
    """Gives the shape of one example as it enters each block; nothing is run."""

    def inputs(state):
        x: Any = network.zeros(net)
        given = []
        for index, block in enumerate(state):
            given.append(signals.bare(x))
            x, _ = network.run(net, [block], x, [layers.Call()], index)
        return given

    return tuple(x.shape[1:] for x in jax.eval_shape(inputs, network.shapes(net)))


def _slices(net: network.Network, cut: Cut, choose: Choose) -> list[Slice]:
    """Slices block after block; what one keeps enters the next."""
    if not 0 < cut.width <= 1:
        raise ValueError(f"width: expected above 0 and at most 1, got {cut.width}")
    slices = [Slice(block, {}, None) for block in net.blocks[: cut.whole]]
    for index, block in enumerate(net.blocks[cut.whole :], start=cut.whole):
        how = getattr(block, "slice", None)
        if how is None:
            raise ValueError(
                f"network {net.name!r}: block {index} ({type(block).__name__}) does "
                f"not say how it is sliced; expected a method slice(at), see "
                f"docs/your_own.md, Its widths"
            )
        kept = slices[-1].output if slices else None
        slices.append(how(Site(cut, index, entering(net)[index], kept, choose)))
    return slices


@functools.cache
def sliced(net: network.Network, cut: Cut) -> network.Network:
    """Makes the network of a width: blocks of its own, with as many channels.

    Args:
      net: the full network.
      cut: width and rounding.

    Returns:
      A network whose state has the shapes of `take(state, places(net, cut))`; of
      width 1 the network itself.

    Raises:
      ValueError: a block does not say how it is sliced, or says it wrongly.
    """
    if cut.width == 1:
        return net
    blocks = tuple(part.block for part in _slices(net, cut, leading))
    small = net._replace(blocks=blocks)
    _compare(net, cut, small)
    return small


def _compare(net: network.Network, cut: Cut, small: network.Network) -> None:
    """Raises ValueError unless a sliced network has the shapes that its blocks say."""

    def named(block):
        leaves = jax.tree_util.tree_leaves_with_path(block)
        return {_path(path): x.shape for path, x in leaves}

    about = f"network {net.name!r} at width {cut.width}"
    expected = jax.eval_shape(lambda x: take(x, places(net, cut)), network.shapes(net))
    try:
        given = network.shapes(small)
    except Exception as error:  # whatever a block of the user's raises
        raise ValueError(
            f"{about}: its blocks do not fit: {bounds.gist(error)}"
        ) from error
    for index, (ours, theirs) in enumerate(zip(expected, given, strict=True)):
        said, has = named(ours), named(theirs)
        for path in sorted(said.keys() | has.keys()):
            if said.get(path) != has.get(path):
                block = type(net.blocks[index]).__name__
                raise ValueError(
                    f"{about}: block {index} ({block}) says that it keeps "
                    f"{said.get(path)} of {path}, the sliced block has {has.get(path)}"
                )


def _path(path) -> str:
    return "/".join(key.key for key in path)


def places(net: network.Network, cut: Cut, choose: Choose = leading) -> Places:
    """Says where the state of the sliced network lies in that of the full one.

    Args:
      net: the full network.
      cut: width and rounding.
      choose: which channels a layer keeps.

    Returns:
      Of every array of `network.init`, a tuple over its axes: the kept indices in the
      client's order, int32 in host memory, or None: all. The shapes depend on net and
      cut alone; of width 1 the leading channels are None throughout.

    Raises:
      ValueError: a block does not say how it is sliced.
    """
    state = network.shapes(net)
    if cut.width == 1 and choose is leading:
        return jax.tree.map(lambda x: (None,) * x.ndim, state)

    def of_block(part: Slice, block):
        def leaf(path, x):
            name = _path(path[1:])  # the collection is not part of it
            layer = part.layers.get(name) or part.layers.get(_path(path[1:-1]))
            axes = (None,) * max(x.ndim - 2, 0) + (layer or (None, None))
            return axes[len(axes) - x.ndim :]

        return jax.tree_util.tree_map_with_path(leaf, block)

    parts = _slices(net, cut, choose)
    return tuple(of_block(*pair) for pair in zip(parts, state, strict=True))


def columns(places: Places) -> types.Array | None:
    """Gives the channels [n] that an embedding keeps, for `layers.Call.columns`.

    None: the network does not begin with one, or keeps all of them.
    """
    axes = places[0]["params"].get("embedding")
    return None if axes is None else axes[-1]


def _leads(kept) -> bool:
    """Tells whether kept channels are known to be the leading ones: no gather, then."""
    return isinstance(kept, np.ndarray) and np.array_equal(kept, np.arange(kept.size))


def _inverse(kept: types.ArrayLike, channels: int) -> types.Array:
    """Tells where each channel lies among those kept [n]; n where it does not.

    By comparing all with all: scatters take long to compile, and there are many. The
    barrier keeps it from being computed anew for every value that is gathered by it.
    """
    same = jnp.asarray(kept)[:, None] == jnp.arange(channels)
    lies = jnp.where(same, jnp.arange(kept.size)[:, None], kept.size)
    return lax.optimization_barrier(jnp.min(lies, axis=0))


def take(tree: types.Tree, places: Places) -> types.Tree:
    """Cuts the kept part out of a tree of the full network.

    Args:
      tree: a state, or what has its shape: the parameters of all blocks, an update.
      places: of the same arrays.

    Returns:
      The same tree of the sliced network.
    """

    def leaf(x, axes):
        for axis, kept in enumerate(axes):
            if _leads(kept):
                x = lax.slice_in_dim(x, 0, kept.size, axis=axis)
            elif kept is not None:
                x = jnp.take(x, kept, axis, mode="clip")
        return x

    return jax.tree.map(leaf, tree, places)


def put(tree: types.Tree, places: Places, like: types.Tree) -> types.Tree:
    """Lays a tree of the sliced network back in: `take(put(x)) == x`.

    Args:
      tree: of the sliced network.
      places: of the same arrays.
      like: the same tree of the full network, or its shapes.

    Returns:
      The tree of the full network, 0 where nothing is kept.
    """

    def leaf(x, axes, full):
        for axis, kept in enumerate(axes):
            if _leads(kept):
                widths = [(0, 0, 0)] * x.ndim
                widths[axis] = (0, full.shape[axis] - kept.size, 0)
                x = lax.pad(x, jnp.zeros((), x.dtype), widths)
            elif kept is not None:
                where = _inverse(kept, full.shape[axis])
                x = jnp.take(x, where, axis, mode="fill", fill_value=0)
        return x

    return jax.tree.map(leaf, tree, places, like)


def check(net: network.Network) -> None:
    """Checks that a network can be sliced.

    Args:
      net: it is traced, not run.

    Raises:
      ValueError: one line: a block does not say how it is sliced, or says it wrongly,
        or there are no channels to choose from.
    """
    if sliced(net, Cut(0.5)) == net:
        raise ValueError(
            f"network {net.name!r}: expected a network with channels between its "
            f"layers, got one that has nothing to slice"
        )
