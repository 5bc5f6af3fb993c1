"""Networks with exits: classifiers between the blocks, so that one may end at any.

An exit reads what the block before it gives, puts its logits beside it and passes it
on (`signals.Exited`). The first blocks up to an exit are a network as well; what a
network with exits predicts is the mean of their logits (DepthFL, Kim et al., ICLR
2023).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flax import linen as nn

from fljax import bounds
from fljax.nn import layers, network, signals, slicing


class Exit(nn.Module):
    """A classifier beside the chain; its variables have the names of the classifier's.

    Attributes:
      head: the classifier.
    """

    head: nn.Module

    def setup(self) -> None:
        """Has the variables of the classifier as its own."""
        nn.share_scope(self, self.head)

    def __call__(self, x: signals.Signal, call: layers.Call) -> signals.Exited:
        """Passes x on, with its logits behind those of the exits before."""
        if not isinstance(x, signals.Exited):
            x = signals.Exited(x, ())
        return signals.Exited(x.value, (*x.logits, self.head(x.value, call)))


class Past(nn.Module):
    """A block behind an exit: the logits pass it by.

    Attributes:
      block: the block.
    """

    block: nn.Module

    def setup(self) -> None:
        """Has the variables of the block as its own."""
        nn.share_scope(self, self.block)

    def __call__(self, x: signals.Exited, call: layers.Call) -> signals.Exited:
        """Runs the block on what flows."""
        return signals.Exited(self.block(x.value, call), x.logits)


@dataclasses.dataclass(frozen=True)
class Exits:
    """How clients train networks that end at exits.

    The loss is the sum of the exits' losses, and with `distill` l(r) times the mean KL
    divergence of each exit from the others, l(r) = exp(-5 (1 - min(r, R) / R)^2) in
    round r from 0.

    Attributes:
      distill: into each exit what the others give (mutual self-distillation).
      ramp: R, rounds in which its weight rises to 1; 0: it is 1 from the first.
    """

    distill: bool = True
    ramp: int = 300

    def __post_init__(self) -> None:
        if self.ramp < 0:
            raise ValueError(f"ramp: expected a number of rounds, got {self.ramp}")

    def pull(self, index: int) -> float | None:
        """Gives the weight of the distillation in a round; None: there is none.

        Example:
          >>> [round(Exits().pull(r), 4) for r in (0, 150, 300, 900)]
          [0.0067, 0.2865, 1.0, 1.0]
        """
        if not self.distill:
            return None
        done = min(index, self.ramp) / self.ramp if self.ramp else 1.0
        return math.exp(-5 * (1 - done) ** 2)


def borders(net: network.Network) -> tuple[int, ...]:
    """Finds where groups of blocks end: the next block gives images of another size.

    Args:
      net: the network; it is traced, not run.

    Returns:
      Indices of blocks; the last group, before the classifier, is left out.
    """
    sizes = [shape[:-1] for shape in slicing.entering(net)[1:]]
    return tuple(i for i in range(len(sizes) - 1) if sizes[i] != sizes[i + 1])


def insert(net: network.Network, behind: Sequence[int]) -> network.Network:
    """Puts exits into a network, each of the form of its last block, the classifier.

    Args:
      net: the network.
      behind: indices of the blocks that an exit comes behind, ascending; one more is
        the classifier.

    Returns:
      The network. Parameters are named as before, blocks are further back by the exits
      before them.

    Raises:
      ValueError: there is no such block, or the classifier cannot read what it gives.
    """
    last = net.num_blocks - 2  # the classifier's own
    if sorted({*behind}) != [*behind]:
        raise ValueError(f"exits: expected blocks in ascending order, got {behind}")
    if behind and not 0 <= behind[0] <= behind[-1] < last:
        raise ValueError(
            f"exits: expected blocks from 0 to {last - 1} of network {net.name!r}, "
            f"behind whose block {last} the classifier is, got {behind}"
        )
    head, blocks = net.blocks[-1], []
    for index, block in enumerate(net.blocks[:-1]):
        blocks.append(Past(block) if any(b < index for b in behind) else block)
        if index in behind:
            blocks.append(Exit(head))
    made = net._replace(blocks=(*blocks, Exit(head)), always_sent=())
    try:
        network.shapes(made)
    except Exception as error:  # whatever a block of the user's raises
        raise ValueError(
            f"network {net.name!r}: its classifier cannot be an exit behind each of "
            f"the blocks {behind}: {bounds.gist(error)}"
        ) from error
    return made


def ends(net: network.Network) -> tuple[int, ...]:
    """Gives the indices of the exits of a network."""
    return tuple(i for i, block in enumerate(net.blocks) if isinstance(block, Exit))
