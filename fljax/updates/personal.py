"""What of the network stays with a client: never sent, never averaged.

A rule says which leaves of the blocks' state are each client's own. They lie in the
client's row from round to round and take the place of the server's where the client
trains and where it is evaluated; the server's keep their bits. A client begins with
those of the first network.

Legend: L values that stay.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np
import optax

from fljax import trees, types


class Personal(abc.ABC):
    """Which leaves stay with a client; frozen dataclasses, pure functions.

    Attributes:
      beside: the leaves are those of a second network that the client trains for
        itself, beside the server's, of which it sends all.
    """

    beside: ClassVar[bool] = False

    @abc.abstractmethod
    def stays(self, blocks: tuple[dict, ...]) -> tuple[dict, ...]:
        """Tells of each leaf whether it stays with the client.

        Args:
          blocks: state of the network, a tuple over blocks of collections.

        Returns:
          A tree like it, of bools of Python.
        """

    @property
    def alone(self) -> int:
        """Counts the first epochs in which what stays trains, and nothing else.

        The epochs after them train all else, and not what stays; 0: all trains in all.
        """
        return 0

    def epochs(self, local_epochs: int) -> int:
        """Counts the epochs in which a network `beside` is trained."""
        return local_epochs

    def transform(self, params: tuple) -> optax.GradientTransformation:
        """Changes the gradients of a network `beside`.

        Args:
          params: that the server sent, a tuple over blocks.
        """
        return optax.identity()

    def take(self, blocks: tuple[dict, ...]) -> types.Array:
        """Strings the leaves that stay together, [L]."""
        return trees.ravel(self._leaves(blocks))

    def put(
        self, blocks: tuple[dict, ...], values: types.Array | None
    ) -> tuple[dict, ...]:
        """Puts a client's values [L] into a network."""
        assert values is not None  # who has such a rule keeps a row
        new = iter(trees.unravel(values, self._leaves(blocks)))
        return jax.tree.map(
            lambda mine, leaf: next(new) if mine else leaf, self.stays(blocks), blocks
        )

    def _leaves(self, blocks: tuple[dict, ...]) -> list[types.Array]:
        flags = jax.tree.leaves(self.stays(blocks))
        return [
            leaf for mine, leaf in zip(flags, jax.tree.leaves(blocks), strict=True)
            if mine
        ]  # fmt: skip

    def of_server(
        self, mine: tuple[dict, ...], theirs: tuple[dict, ...]
    ) -> tuple[dict, ...]:
        """Takes the second of two networks where leaves stay, else the first."""
        return jax.tree.map(
            lambda stay, a, b: b if stay else a, self.stays(mine), mine, theirs
        )

    def shared(self, blocks: tuple[dict, ...]) -> np.ndarray:
        """Finds the parameters that do not stay: their places, strung together."""
        flags = [
            np.full(leaf.size, not mine)
            for stay, block in zip(self.stays(blocks), blocks, strict=True)
            for mine, leaf in zip(
                *map(jax.tree.leaves, (stay["params"], block["params"])), strict=True
            )
        ]
        return np.flatnonzero(np.concatenate([np.zeros(0, bool), *flags]))


def everything(blocks: tuple[dict, ...]) -> tuple[dict, ...]:
    """Marks all leaves of blocks."""
    return jax.tree.map(lambda _: True, blocks)


def last(blocks: tuple[dict, ...], number: int) -> tuple[dict, ...]:
    """Marks all leaves of the last blocks, the head of a network."""
    border = len(blocks) - number
    return tuple(
        jax.tree.map(lambda _, mine=place >= border: mine, block)
        for place, block in enumerate(blocks)
    )


def norms(blocks: tuple[dict, ...]) -> tuple[dict, ...]:
    """Marks scale and bias of norms, and their statistics."""

    def marked(tree):
        if not isinstance(tree, dict):
            return False
        # A bias beside a scale is a norm's, any other one a layer's.
        pair = {"scale", "bias"} if "scale" in tree else set()
        return {name: name in pair or marked(part) for name, part in tree.items()}

    return tuple(
        {
            name: everything(part) if name == "norms" else marked(part)
            for name, part in block.items()
        }
        for block in blocks
    )


def sizes(rule: Personal, blocks: tuple[dict, ...]) -> Iterator[tuple[int, int, float]]:
    """Counts what stays of each block.

    Args:
      rule: which leaves stay.
      blocks: shapes of the network.

    Yields:
      Values among the parameters, among ranges, and the share of the statistics.
    """
    for stay, block in zip(rule.stays(blocks), blocks, strict=True):

        def values(*names, stay=stay, block=block):
            pairs = zip(
                *(jax.tree.leaves([tree[n] for n in names]) for tree in (stay, block)),
                strict=True,
            )
            return sum(leaf.size * mine for mine, leaf in pairs)

        statistics = trees.size(block["norms"])
        share = values("norms") / statistics if statistics else 0.0
        yield values("params"), values("ranges", "backward"), share
