"""What the clients of a chunk send and keep, after they have trained.

A codec may send less than the update, and keep what it left out; the server refuses
what is of no use. What is not asked for leaves no trace in the program.

Legend: W clients of a chunk, n blocks of the network, b of a program, P and Q values
and parameters of these b blocks, S of a client's state.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax import trees, types
from fljax.engine import client, seams
from fljax.engine import cohort as cohorts
from fljax.engine import sums as totals
from fljax.nn import slicing
from fljax.runtime import streams
from fljax.updates import codecs, privacy, secure_sum, server, server_rule


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


class _Coded(NamedTuple):
    """What one client sends and keeps.

    Attributes:
      delta: as the server decodes it, a tuple over the program's blocks.
      finite: whether it was before; a codec may leave out what was not. None: there
        is no codec.
      message: of its local rule, [Q]; None: there is none.
      state: [S] after the round; None: it keeps none.
    """

    delta: tuple
    finite: types.Array | None
    message: types.Array | None
    state: types.Array | None


def received(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
) -> Received:
    """Takes what a chunk's clients send, and refuses what is no use.

    Args:
      static: the network, the program, and how clients train and send.
      begun: the round that they began with.
      chunk: the clients.
      result: of their training.

    Returns:
      What is received of each.
    """
    span, factor = static.span, chunk.tampering[:, None]
    trained = static.program.trains(chunk.windows, static.net.num_blocks)
    result = _attacked(static, begun, chunk, result, trained)
    held = None
    if static.seams.narrowing is not None:
        held = jax.vmap(functools.partial(_held, static, begun.blocks))(trained, result)
    coded = _coded(static, begun, chunk, result, trained)
    sent = jax.vmap(trees.ravel)(coded.delta) * factor
    if held is not None:
        sent = jnp.where(held, sent, 0.0)
    below = None
    if begun.clip is not None:
        sent, below = privacy.clipped(sent, begun.clip)
    l2 = _l2(coded.delta) * factor[:, None]
    finite = jnp.all(jnp.isfinite(sent), axis=1) & jnp.isfinite(result.loss)
    if coded.finite is not None:
        finite &= coded.finite
    for beside in (coded.message, result.numbers, coded.state):
        if beside is not None:  # it would spoil what server or client keep
            finite &= jnp.all(jnp.isfinite(beside), axis=1)
    limit = jnp.sum(jnp.where(trained[:, None], begun.limits[:, span], 0.0), axis=2)
    small = jnp.all(jnp.sum(jnp.square(l2), axis=2) <= limit, axis=1)
    if static.seams.aggregate.root_size:  # the server believes itself
        small |= chunk.ids == cohorts.SERVER
    verdict = jnp.where(
        finite, jnp.where(small, 0.0, totals.TOO_LARGE), totals.NOT_FINITE
    )
    verdict = jnp.where(chunk.weights != 0, verdict, 0.0)  # or padding
    weights = jnp.where(verdict == 0, chunk.weights, 0.0)
    teaches = finite & (chunk.weights != 0)  # refused or not
    l2 = jnp.where(teaches[:, None, None], l2, 0.0)
    ids, states = None, coded.state
    if static.seams.sees_updates:
        ids = chunk.ids
    if states is not None and chunk.states is not None:
        # Who is refused goes on from where it was.
        states = jnp.where((verdict == 0)[:, None], states, chunk.states)
    got = Received(
        sent, result.loss, weights, chunk.scales, trained, verdict, l2, ids,
        coded.message, result.numbers, states, held, below,
    )  # fmt: skip
    return got if static.seams.secure is None else _sealed(static, begun, chunk, got)


def _sealed(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    got: Received,
) -> Received:
    """Turns what a chunk sends into words for a secure sum, and masks them.

    Who found that its own is not finite sends zeros: the server could not tell.
    """
    words, blocks, span = static.seams.secure, begun.blocks, static.span
    assert words is not None  # nobody asks otherwise
    upward = trees.ravel(
        [
            {name: jax.tree.map(lambda x, up=name != "params": jnp.full(x.shape, up), t)
             for name, t in block.items()}
            for block in blocks[span]
        ]
    )  # fmt: skip
    named = {"deltas": got.vectors, "message": got.message, "numbers": got.numbers}
    sent = {name: values for name, values in named.items() if values is not None}
    streams_of = totals.mask_streams(begun.key, blocks, span, sent)
    key = jax.random.fold_in(begun.key, streams.STEPS)

    def one(number, weight, partners, sent):
        mine = jax.random.fold_in(key, number)
        for tag, (name, values) in enumerate(sent.items()):
            stream = streams_of[name]
            draws = jax.random.uniform(jax.random.fold_in(mine, tag), (stream.whole,))
            draws = draws[stream.first :][: stream.size]
            up = upward if name == "deltas" else False
            coded = secure_sum.coded(words, values, weight, draws, up)
            if partners is not None:
                coded = secure_sum.masked(stream, coded, number, partners)
            sent = {**sent, name: coded}
        return sent

    taken = got.weights * got.scales
    sent = jax.vmap(one)(chunk.ids, taken, chunk.partners, sent)
    return got._replace(
        vectors=sent["deltas"],
        message=sent.get("message"),
        numbers=sent.get("numbers"),
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


def _coded(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
    trained: types.Array,
) -> _Coded:
    """Encodes and decodes what each client of a chunk sends."""
    asked = static.seams
    if asked.codec is None and result.message is None and chunk.states is None:
        return _Coded(result.delta[static.span], None, None, None)
    key = jax.random.fold_in(begun.key, streams.CODEC)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(chunk.ids)
    one = functools.partial(_one, static, begun)
    return jax.vmap(one)(keys, result, trained, chunk.states)


def _one(
    static: client.Static,
    begun: cohorts.Round,
    key: types.Key,
    result: client.Result,
    trained: types.Array,
    state: types.Array | None,
) -> _Coded:
    """Encodes and decodes what one client sends, which trained blocks [b]."""
    span, asked, blocks = static.span, static.seams, begun.blocks
    delta, kept = result.delta[span], seams.parted(asked, begun.everything, state)
    if kept.own is not None and result.own is not None:
        own = server_rule.kept(trained, result.own[span], kept.own[span])
        before, after = kept.own[: span.start], kept.own[span.stop :]
        kept = kept._replace(own=(*before, *own, *after))
    if result.personal is not None:
        kept = kept._replace(personal=result.personal)
    finite = message = None
    if result.message is not None:
        mine = result.message[span]
        mine = server_rule.kept(trained, mine, server_rule.zeros(mine))
        message = trees.ravel(mine)
    if asked.codec is not None:
        begin = trees.size(server.params_of(blocks[: span.start]))
        part, whole = None, server.params_of(delta)
        finite = trees.all_finite(whole)
        if static.program.any_window:
            part = _part(trained, whole)
        places: slice | np.ndarray = slice(begin, begin + trees.size(whole))
        vector = trees.ravel(whole)
        if asked.withheld is not None:  # all blocks are trained
            places = asked.withheld.shared(blocks)
            vector = vector[places]
        before = tuple(_narrow(begun, memory)[places] for memory in kept.memories)
        sent, after = asked.codec.apply(key, vector, part, before)
        if asked.withheld is not None:
            sent = jnp.zeros(trees.size(whole)).at[places].set(sent)
        delta = tuple(
            {**block, "params": params}
            for block, params in zip(delta, trees.unravel(sent, whole), strict=True)
        )
        both = zip(kept.memories, after, strict=True)
        memories = tuple(_noted(begun, memory, places, new) for memory, new in both)
        kept = kept._replace(memories=memories)
    return _Coded(delta, finite, message, None if state is None else seams.joined(kept))


def _narrow(begun: cohorts.Round, memory: types.Array) -> types.Array:
    """Takes what a client's network has of an error memory of all parameters."""
    if begun.channels is None:
        return memory
    whole = trees.unravel(memory, server.params_of(begun.everything))
    return trees.ravel(slicing.take(whole, server.params_of(begun.channels)))


def _noted(
    begun: cohorts.Round,
    memory: types.Array,
    places: slice | np.ndarray,
    new: types.Array,
) -> types.Array:
    """Puts what was sent anew of an error memory into it; the rest stays."""
    if begun.channels is None:
        return memory.at[places].set(new)
    whole, small = map(server.params_of, (begun.everything, begun.blocks))
    channels = server.params_of(begun.channels)

    def wide(values):
        row = jnp.zeros(trees.size(small)).at[places].set(values)
        return trees.ravel(slicing.put(trees.unravel(row, small), channels, whole))

    return jnp.where(wide(jnp.ones_like(new)) > 0, wide(new), memory)


def _part(trained: types.Array, params: tuple) -> codecs.Part:
    """Says which parameters a client sends that trained blocks [b]."""
    block_of = np.repeat(np.arange(len(params)), [*map(trees.size, params)])
    here = trained[block_of]
    return codecs.Part(here, jnp.argmax(here), jnp.sum(here))
