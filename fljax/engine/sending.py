"""What the server gets of the clients of a chunk, after they have trained.

Attack, codec, clipping, the server's verdict and words of a secure sum, one after the
other. What is not asked for leaves no trace in the program.

Legend: W clients of a chunk, n blocks of the network, b of a program, P and Q values
and parameters of these b blocks, S of a client's state.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax import trees, types
from fljax.engine import client, coding, sealing
from fljax.engine import cohort as cohorts
from fljax.engine import sums as totals
from fljax.runtime import streams
from fljax.updates import privacy, server, server_rule


class Received(NamedTuple):
    """What the server gets of the W clients of a chunk, and what they keep.

    Attributes:
      vectors: [W, P] of the program's blocks; in a secure sum these, the message and
        the numbers are words, by weight, and masked.
      losses: [W] of training.
      weights: [W], 0 of those who are refused.
      scales: [W], how much of their updates is taken.
      trained: [W, b] bool.
      verdict: [W] 0: taken.
      l2: L2 norms [W, 2, b], 0 of those who teach nothing of what is usual.
      ids: [W] client numbers; None: nobody looks at each.
      message: [W, Q] of their local rule; None: there is none.
      numbers: [W, m] likewise.
      states: [W, S] of all blocks, after the round; None: they keep none.
      held: [W, P] bool, which values each has; None: all of the blocks that it trained.
      below: [W] 1/2 if what it sends is at most as long as the clip norm, else -1/2;
        None: nothing is clipped.
    """

    vectors: types.Array
    losses: types.Array
    weights: types.Array
    scales: types.Array
    trained: types.Array
    verdict: types.Array
    l2: types.Array
    ids: types.Array | None
    message: types.Array | None
    numbers: types.Array | None
    states: types.Array | None
    held: types.Array | None = None
    below: types.Array | None = None


def received(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
) -> Received:
    """Takes what a chunk's clients send, and refuses what is no use.

    An attack changes it, a codec encodes and decodes it, its L2 norm is clipped, the
    server judges it, and a secure sum makes words of it.

    Args:
      static: the network, the program, and how clients train and send.
      begun: the round that they began with.
      chunk: the clients.
      result: of their training.

    Returns:
      What is received of each.
    """
    factor = chunk.tampering[:, None]  # of who sends another thing than it trained
    trained = static.program.trains(chunk.windows, static.net.num_blocks)
    result = _attacked(static, begun, chunk, result, trained)
    held = _held(static, begun, trained, result)
    coded = coding.coded(static, begun, chunk, result, trained)
    vectors, below = _clipped(begun, coded.delta, factor, held)
    l2 = _l2(coded.delta) * factor[:, None]
    finite = _finite(vectors, result, coded)
    verdict = _judged(static, begun, chunk, trained, l2, finite)
    weights = jnp.where(verdict == 0, chunk.weights, 0.0)
    teaches = finite & (chunk.weights != 0)  # refused or not
    l2 = jnp.where(teaches[:, None, None], l2, 0.0)
    states = _kept(chunk, coded, verdict)
    sent: dict[str, Any] = {
        "deltas": vectors,
        "message": coded.message,
        "numbers": result.numbers,
    }
    if static.seams.secure is not None:
        sent = sealing.sealed(static, begun, chunk, weights, sent)
    return Received(
        sent["deltas"],
        result.loss,
        weights,
        chunk.scales,
        trained,
        verdict,
        l2,
        chunk.ids if static.seams.sees_updates else None,
        sent["message"],
        sent["numbers"],
        states,
        held,
        below,
    )


def _attacked(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
    trained: types.Array,
) -> client.Result:
    """Puts what the hostile of a chunk send in the place of what they trained.

    Those who collude send nothing yet: what they send is made in the server's step.
    """
    span, attack = static.span, static.seams.attack
    if attack is None or not (attack.alters or attack.colludes):
        return result
    key = jax.random.fold_in(begun.key, streams.ATTACK)
    outside = [
        trees.size(server.params_of(blocks))
        for blocks in (begun.blocks[: span.start], begun.blocks[span.stop :])
    ]

    def one(number, hostile, delta, trained):
        honest = server.params_of(delta[span])
        draws = jax.random.fold_in(key, number)
        # Of all blocks, so that programs of other windows draw the same.
        update = jnp.pad(trees.ravel(honest), outside)
        silent = attack.colludes
        changed = jnp.zeros_like(update) if silent else attack.sent(draws, update)
        mine = changed[outside[0] : update.size - outside[1]]
        sent = trees.unravel(mine, honest)
        sent = server_rule.kept(trained & hostile, sent, honest)
        blocks = [
            {**block, "params": params}
            for block, params in zip(delta[span], sent, strict=True)
        ]
        after = (*delta[: span.start], *blocks, *delta[span.stop :])
        if static.seams.withheld is None:
            return after
        zeros = jax.tree.map(jnp.zeros_like, after)  # what stays is not sent either
        return static.seams.withheld.of_server(after, zeros)

    delta = jax.vmap(one)(chunk.ids, chunk.hostile, result.delta, trained)
    return result._replace(delta=delta)


def _held(
    static: client.Static,
    begun: cohorts.Round,
    trained: types.Array,
    result: client.Result,
) -> types.Array | None:
    """Tells which values [W, P] each has, of narrower networks; None: all."""
    if static.seams.narrowing is None:
        return None
    one = functools.partial(_held_by_one, static, begun.blocks)
    return jax.vmap(one)(trained, result)


def _held_by_one(
    static: client.Static,
    blocks: tuple[dict, ...],
    trained: types.Array,
    result: client.Result,
) -> types.Array:
    """Tells which values [P] one client has that trained blocks [b].

    Of the last block, what belongs to a class it has no example of is not among them,
    where logits are masked; outputs are the last axis of what it is made of.
    """
    flags = [
        jax.tree.map(lambda x, t=t: jnp.broadcast_to(t, x.shape), block)
        for t, block in zip(trained, blocks[static.span], strict=True)
    ]
    if result.classes is not None and static.span.stop == static.net.num_blocks:
        number, mine = static.net.num_classes, result.classes
        flags[-1] = jax.tree.map(
            lambda x: x & mine if x.shape[-1:] == (number,) else x, flags[-1]
        )
    return trees.ravel(flags)


def _clipped(
    begun: cohorts.Round,
    delta: tuple,
    factor: types.Array,
    held: types.Array | None,
) -> tuple[types.Array, types.Array | None]:
    """Gives what is sent as vectors [W, P], of the clip norm where updates are clipped.

    Beside them as much of `Received.below` as each tells.
    """
    sent = jax.vmap(trees.ravel)(delta) * factor
    if held is not None:
        sent = jnp.where(held, sent, 0.0)
    if begun.clip is None:
        return sent, None
    return privacy.clipped(sent, begun.clip)


def _l2(delta: tuple) -> types.Array:
    """Measures how far parameters, and all else of each block, went: [W, 2, blocks]."""
    width = jax.tree.leaves(delta)[0].shape[0]

    def length(part):
        rows = [leaf.reshape(width, -1) for leaf in jax.tree.leaves(part)]
        squares = [jnp.sum(jnp.square(row), axis=1) for row in rows]
        return jnp.sqrt(sum(squares, jnp.zeros(width)))

    params = [length(block["params"]) for block in delta]
    others = [length({**block, "params": None}) for block in delta]
    return jnp.stack([jnp.stack(kind, axis=1) for kind in (params, others)], axis=1)


def _finite(
    vectors: types.Array, result: client.Result, coded: coding.Coded
) -> types.Array:
    """Tells of whom all is finite that the server takes, or that it keeps, [W]."""
    finite = jnp.all(jnp.isfinite(vectors), axis=1) & jnp.isfinite(result.loss)
    if coded.finite is not None:
        finite &= coded.finite
    for beside in (coded.message, result.numbers, coded.state):
        if beside is not None:  # it would spoil what server or client keep
            finite &= jnp.all(jnp.isfinite(beside), axis=1)
    return finite


def _judged(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    trained: types.Array,
    l2: types.Array,
    finite: types.Array,
) -> types.Array:
    """Gives the verdict on each, [W]: refused is what is not finite, or too long."""
    span = static.span
    limit = jnp.sum(jnp.where(trained[:, None], begun.limits[:, span], 0.0), axis=2)
    small = jnp.all(jnp.sum(jnp.square(l2), axis=2) <= limit, axis=1)
    if static.seams.aggregate.root_size:  # the server believes itself
        small |= chunk.ids == cohorts.SERVER
    verdict = jnp.where(
        finite, jnp.where(small, 0.0, totals.TOO_LARGE), totals.NOT_FINITE
    )
    return jnp.where(chunk.weights != 0, verdict, 0.0)  # or padding


def _kept(
    chunk: cohorts.Clients, coded: coding.Coded, verdict: types.Array
) -> types.Array | None:
    """Gives the states [W, S] after the round: who is refused keeps what it had."""
    if coded.state is None or chunk.states is None:
        return coded.state
    return jnp.where((verdict == 0)[:, None], coded.state, chunk.states)
