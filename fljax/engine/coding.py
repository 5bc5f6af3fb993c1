"""What clients send through their codec, and what they keep of it.

A codec may send less than the update, and keep what it left out. What is not asked for
leaves no trace in the program.

Legend: W clients of a chunk, b blocks of a program, P and Q values and parameters of
these b blocks, S of a client's state.
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
from fljax.nn import slicing
from fljax.runtime import streams
from fljax.updates import codecs, server, server_rule


class Coded(NamedTuple):
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


def coded(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    result: client.Result,
    trained: types.Array,
) -> Coded:
    """Encodes and decodes what each client of a chunk sends.

    Args:
      static: the network, the program, and how clients train and send.
      begun: the round that they began with.
      chunk: the clients.
      result: of their training.
      trained: [W, b] bool, which blocks.

    Returns:
      What is sent and kept, [W, ...].
    """
    asked = static.seams
    if asked.codec is None and result.message is None and chunk.states is None:
        return Coded(result.delta[static.span], None, None, None)
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
) -> Coded:
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
    return Coded(delta, finite, message, None if state is None else seams.joined(kept))


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
