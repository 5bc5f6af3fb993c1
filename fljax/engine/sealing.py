"""What clients send to a secure sum: words of 32 bits, masked.

After Bonawitz et al. (CCS 2017), see `updates.secure_sum`; `sums.opened` turns the sum
back.

Legend: W clients of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fljax import trees, types
from fljax.engine import client
from fljax.engine import cohort as cohorts
from fljax.engine import sums as totals
from fljax.runtime import streams
from fljax.updates import secure_sum


def sealed(
    static: client.Static,
    begun: cohorts.Round,
    chunk: cohorts.Clients,
    weights: types.Array,
    values: Mapping[str, types.Array | None],
) -> dict[str, types.Array | None]:
    """Turns what a chunk sends into words for a secure sum, and masks them.

    Who found that its own is not finite sends zeros: the server could not tell.

    Args:
      static: the network, the program, and how clients train and send.
      begun: the round that they began with.
      chunk: the clients.
      weights: [W], 0 of those whose values are left out.
      values: field of `server.Totals` -> what is sent of it, [W, ...]; None: nothing.

    Returns:
      field -> words, uint32, by weight.
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
    sent = {name: each for name, each in values.items() if each is not None}
    streams_of = totals.mask_streams(begun.key, begun.everything, span, sent)
    key = jax.random.fold_in(begun.key, streams.STEPS)

    def one(number, weight, partners, sent):
        mine = jax.random.fold_in(key, number)
        for tag, (name, row) in enumerate(sent.items()):
            stream = streams_of[name]
            draws = jax.random.uniform(jax.random.fold_in(mine, tag), (stream.whole,))
            draws = draws[stream.first :][: stream.size]
            up = upward if name == "deltas" else False
            coded = secure_sum.coded(words, row, weight, draws, up)
            if partners is not None:
                coded = secure_sum.masked(stream, coded, number, partners)
            sent = {**sent, name: coded}
        return sent

    taken = weights * chunk.scales
    sent = jax.vmap(one)(chunk.ids, taken, chunk.partners, sent)
    return {**values, **sent}
