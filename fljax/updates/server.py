"""The server: masked aggregation and the server's rule, as pure functions.

CoCoFL (Algorithm 2): with K clients, r the share of them that trained a leaf,
new = r * mean(theirs) + (1 - r) * old = old + (1/K) * sum(theirs - old).
Observed ranges are averaged plainly over those who trained the block. Where networks
differ in width, a value is the mean of those who have it (HeteroFL, Diao et al., ICLR
2021), and r the share of those who trained its block at any width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import trees, types
from fljax.updates import server_rule

# Averaged over those who trained the block, not weighted by their share.
PLAIN = ("ranges", "backward")


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      blocks: state of the global network, a tuple over blocks of collections.
      rule: state of the server rule.
      round: rounds that are done, [] int32.
      aggregate: what the aggregate keeps.
    """

    blocks: tuple[dict, ...]
    rule: Any
    round: types.Array
    aggregate: Any = ()


class Totals(NamedTuple):
    """Sums over the clients of a round.

    Attributes:
      deltas: [P] weight * (theirs - old), summed; the blocks' leaves strung together
        (`trees.ravel`), since one long vector compiles and adds up faster than hundreds
        of short ones.
      weights: [blocks] weight of those who trained the block.
      cohort: [] weight of all whose update was taken.
      message: [Q] weight * message of a local rule, summed; the parameters' leaves
        strung together. None: clients send none.
      numbers: [m] likewise of its numbers.
      held: [P] weight of those who trained each value, where networks differ in width;
        None: whoever trained a block trained all of it.
      below: [] 1/2 for each client whose update is at most as long as the clip norm,
        -1/2 for the others, summed; None: nothing is clipped.
    """

    deltas: types.Array
    weights: types.Array
    cohort: types.Array
    message: types.Array | None = None
    numbers: types.Array | None = None
    held: types.Array | None = None
    below: types.Array | None = None


def params_of(blocks: tuple[dict, ...]) -> tuple:
    """Takes the parameters of blocks."""
    return tuple(block["params"] for block in blocks)


def init(blocks: tuple[dict, ...], rule: server_rule.ServerRule) -> ServerState:
    """Makes the state before the first round."""
    state = rule.init(params_of(blocks))
    return ServerState(blocks, state, jnp.zeros((), jnp.int32))


def received(blocks: tuple[dict, ...], totals: Totals) -> server_rule.Received:
    """Turns sums into what a server rule sees: means over the cohort.

    Args:
      blocks: global state.
      totals: sums over the cohort.

    Returns:
      What the round brought; zeros if nobody's update was taken.
    """
    cohort = _cohort(totals)
    params = params_of(blocks)

    def by_cohort(tree):
        return jax.tree.map(lambda d: d / cohort, tree)

    trained: types.Tree = totals.weights > 0
    if totals.held is not None:
        means = _of_holders(blocks, totals.deltas, totals.held)
        delta = _by_share(totals, params_of(means))
        trained = params_of(trees.unravel(totals.held > 0, blocks))
    else:
        delta = by_cohort(params_of(trees.unravel(totals.deltas, blocks)))
    message, numbers = totals.message, totals.numbers
    return server_rule.Received(
        delta,
        None if message is None else by_cohort(trees.unravel(message, params)),
        None if numbers is None else numbers / cohort,
        totals.cohort,
        trained,
    )


def _by_share(totals: Totals, tree: tuple) -> tuple:
    """Multiplies blocks by the share of the cohort that trained them."""
    shares = tuple(totals.weights / _cohort(totals))
    return tuple(
        jax.tree.map(lambda d, share=share: share * d, block)
        for share, block in zip(shares, tree, strict=True)
    )


def _of_holders(
    blocks: tuple[dict, ...], deltas: types.Array, held: types.Array
) -> tuple:
    """Averages each value over those who have it; 0 where nobody does."""
    return trees.unravel(deltas / jnp.where(held > 0, held, 1.0), blocks)


def _cohort(totals: Totals) -> types.Array:
    return jnp.where(totals.cohort > 0, totals.cohort, 1.0)  # nobody left: no change


def of_holders(totals: Totals, blocks: tuple[dict, ...]) -> Totals:
    """Counts blocks as if all had trained them, each as the mean of those who did.

    Args:
      totals: over the cohort.
      blocks: global state; its values are not used.

    Returns:
      The sums, whose means over the cohort are those over who trained each block.
    """
    trained = totals.weights > 0
    factors = totals.cohort / jnp.where(trained, totals.weights, 1.0)
    block_of = np.repeat(np.arange(len(blocks)), [*map(trees.size, blocks)])
    return totals._replace(
        deltas=totals.deltas * factors[block_of],
        weights=jnp.where(trained, totals.cohort, 0.0),
    )


def step(
    state: ServerState,
    totals: Totals,
    rule: server_rule.ServerRule,
    rate: types.ArrayLike = 1.0,
) -> ServerState:
    """Ends a round.

    Args:
      state: of the server.
      totals: sums over the cohort.
      rule: moves the parameters; `server_rule.Averaging` is the paper's.
      rate: the server's learning rate, a factor of what the rule adds.

    Returns:
      The state of the next round.
    """
    old, got = params_of(state.blocks), received(state.blocks, totals)
    updates, rule_state = rule.step(state.rule, old, got)
    params = jax.tree.map(lambda p, u: p + rate * u, old, updates)
    trained: types.Tree = totals.weights > 0
    deltas, cohort = trees.unravel(totals.deltas, state.blocks), _cohort(totals)
    if totals.held is not None:
        trained = trees.unravel(totals.held > 0, state.blocks)
        deltas = _of_holders(state.blocks, totals.deltas, totals.held)
    blocks = []
    for block, new, delta, weight in zip(
        state.blocks, params, deltas, totals.weights, strict=True
    ):
        everybody, theirs = cohort, jnp.maximum(weight, 1e-9)
        if totals.held is not None:  # a mean already
            everybody, theirs = everybody / theirs, jnp.ones(())
        divisors = dict.fromkeys(block, everybody) | dict.fromkeys(PLAIN, theirs)
        moved = {
            name: jax.tree.map(
                lambda old, d, by=divisors[name]: old + d / by, block[name], delta[name]
            )
            for name in block
            if name != "params"
        }
        moved["params"] = new
        blocks.append(moved)
    # A leaf that nobody trained keeps its bits: adding zero would turn -0 into 0, and
    # a server rule with momentum would move it.
    kept = server_rule.kept(trained, tuple(blocks), state.blocks)
    return state._replace(blocks=kept, rule=rule_state, round=state.round + 1)
