"""The server: masked aggregation and the server optimizer, as pure functions.

CoCoFL (Algorithm 2): with K clients, r the share of them that trained a leaf,
new = r * mean(theirs) + (1 - r) * old = old + (1/K) * sum(theirs - old).
Observed ranges are averaged plainly over those who trained the block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax import trees, types

# Averaged over those who trained the block, not weighted by their share.
PLAIN = ("ranges", "backward")


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      blocks: state of the global network, a tuple over blocks of collections.
      optimizer: state of the server optimizer.
      round: rounds that are done, [] int32.
    """

    blocks: tuple[dict, ...]
    optimizer: optax.OptState
    round: types.Array


class Totals(NamedTuple):
    """Sums over the clients of a round.

    Attributes:
      deltas: [P] weight * (theirs - old), summed; the blocks' leaves strung together
        (`trees.ravel`), since one long vector compiles and adds up faster than hundreds
        of short ones.
      weights: [blocks] weight of those who trained the block.
      cohort: [] weight of all whose update was taken.
    """

    deltas: types.Array
    weights: types.Array
    cohort: types.Array


def zero_totals(blocks: tuple[dict, ...]) -> Totals:
    """Makes the totals of no client."""
    weights = jnp.zeros(len(blocks))
    return Totals(jnp.zeros(trees.size(blocks)), weights, jnp.zeros(()))


def init(
    blocks: tuple[dict, ...], optimizer: optax.GradientTransformation
) -> ServerState:
    """Makes the state before the first round."""
    params = tuple(block["params"] for block in blocks)
    return ServerState(blocks, optimizer.init(params), jnp.zeros((), jnp.int32))


def _moved(trained: types.Array, new: types.Tree, old: types.Tree) -> types.Tree:
    # A leaf that nobody trained keeps its bits: adding zero would turn -0 into 0, and
    # a server optimizer with momentum would move it.
    return jax.tree.map(lambda a, b: jnp.where(trained, a, b), new, old)


def step(
    state: ServerState,
    totals: Totals,
    optimizer: optax.GradientTransformation,
) -> ServerState:
    """Ends a round.

    Args:
      state: of the server.
      totals: sums over the cohort.
      optimizer: moves the parameters along the mean delta; `optax.sgd(1.0)` is the
        paper's rule.

    Returns:
      The state of the next round.
    """
    deltas = trees.unravel(totals.deltas, state.blocks)
    cohort = jnp.where(totals.cohort > 0, totals.cohort, 1.0)  # nobody left: no change
    pseudo_gradients = tuple(
        jax.tree.map(lambda d: -d / cohort, delta["params"]) for delta in deltas
    )
    params = tuple(block["params"] for block in state.blocks)
    updates, optimizer_state = optimizer.update(
        pseudo_gradients, state.optimizer, params
    )
    params = optax.apply_updates(params, updates)
    blocks = []
    for block, new, delta, weight in zip(
        state.blocks, params, deltas, totals.weights, strict=True
    ):
        divisors = dict.fromkeys(block, cohort)
        divisors.update({name: jnp.maximum(weight, 1e-9) for name in PLAIN})
        moved = {
            name: jax.tree.map(
                lambda old, d, by=divisors[name]: old + d / by, block[name], delta[name]
            )
            for name in block
        }
        moved["params"] = new
        blocks.append(_moved(weight > 0, moved, block))
    return ServerState(tuple(blocks), optimizer_state, state.round + 1)
