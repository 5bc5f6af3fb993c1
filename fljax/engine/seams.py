"""What an algorithm asks for beside plain averaging, and the state that clients keep.

A client's state [S] is one vector: what its local rule keeps of each block, then an
error memory for each that the codec wants, as long as the parameters, then what stays
with it of the network, [L].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax import plans, trees, types
from fljax.nn import exits, narrowing
from fljax.updates import (
    aggregates,
    attacks,
    codecs,
    local_rule,
    privacy,
    secure_sum,
    server,
    server_rule,
)
from fljax.updates import personal as personals


class Seams(NamedTuple):
    """What an algorithm asks for beside plain averaging; static and hashable.

    Attributes:
      local: a rule of the clients beside their optimizer; None: there is none.
      codec: what they send instead of the update; None: the update.
      aggregate: how updates become one.
      server: how the server moves the network.
      narrowing: how clients train whose plan asks for a narrower network; None: no plan
        does.
      attack: what hostile clients do; None: there are none.
      secure: what clients send becomes words whose sum alone the server gets; None: it
        gets floats.
      privacy: what makes the sum of the updates private; None: nothing.
      personal: what of the network stays with a client; None: nothing.
      exits: how clients train whose networks end at exits; None: all have the whole.
    """

    local: local_rule.LocalRule | None = None
    codec: codecs.Codec | None = None
    aggregate: aggregates.Aggregate = aggregates.Mean()
    server: server_rule.ServerRule = server_rule.Averaging()
    narrowing: narrowing.Narrowing | None = None
    attack: attacks.Attack | None = None
    secure: secure_sum.Words | None = None
    privacy: privacy.Mechanism | None = None
    personal: personals.Personal | None = None
    exits: exits.Exits | None = None

    @property
    def withheld(self) -> personals.Personal | None:
        """Gives the rule of what is not sent; None: all is."""
        return None if self.personal is None or self.personal.beside else self.personal

    @property
    def of_clients(self) -> Seams:
        """Gives what the clients' programs depend on.

        One aggregate stands for all that see updates, so that comparing them compiles
        once.
        """
        attack = self.attack and self.attack.of_clients
        aggregate = aggregates.Median() if self.sees_updates else NONE.aggregate
        if self.aggregate.root_size:  # the server trains beside the clients
            aggregate = self.aggregate
        return self._replace(
            aggregate=aggregate,
            server=NONE.server,
            attack=attack,
            privacy=self.privacy and privacy.CLIPS,
            exits=self.exits and exits.Exits(self.exits.distill),
        )

    @property
    def colludes(self) -> bool:
        """Tells whether hostile clients make updates of all the honest ones."""
        return self.attack is not None and self.attack.colludes

    @property
    def sees_updates(self) -> bool:
        """Tells whether somebody looks at the updates one by one."""
        return self.aggregate.sees_updates or self.colludes

    @property
    def memories(self) -> int:
        """Counts the error memories of a client."""
        return self.codec.memories if self.codec else 0

    @property
    def keeps(self) -> bool:
        """Tells whether clients keep a state from round to round."""
        of_rules = self.personal or (self.local and self.local.keeps)
        return bool(self.memories or of_rules)


NONE = Seams()


def sent_bytes(
    seams: Seams, plan: plans.Plan, counts: Sequence[types.BlockCounts]
) -> int:
    """Counts what a client sends under a plan, if nothing of its blocks stays with it.

    A codec is of parameters; statistics and ranges are sent as they are.

    Args:
      seams: what is asked for.
      plan: of the client.
      counts: of the network's blocks.

    Returns:
      Bytes.
    """
    params = sum(count.params for count in counts[plan.first : plan.last + 1])
    total = plans.upload_bytes(plan, counts)
    if seams.codec is not None:
        message = seams.codec.message(codecs.Message(params), params)
        total += message.bytes - 4 * params
    if seams.local is not None:
        total += 4 * (params * seams.local.messages + seams.local.numbers)
    if seams.secure is not None:
        total += secure_sum.sent_beside(seams.secure, plan.last - plan.first + 1)
    return total


def without(
    seams: Seams,
    counts: Sequence[types.BlockCounts],
    blocks: tuple[dict, ...],
) -> tuple[types.BlockCounts, ...]:
    """Counts the parameters and bytes of blocks without what stays with a client.

    Args:
      seams: what is asked for.
      counts: of the network's blocks.
      blocks: shapes of the network.

    Returns:
      The counts.
    """
    if seams.withheld is None:
        return tuple(counts)
    found = []
    sizes = personals.sizes(seams.withheld, blocks)
    for count, block, (params, ranges, share) in zip(
        counts, blocks, sizes, strict=True
    ):
        others = trees.size([block[n] for n in ("params", "ranges", "backward")])
        statistics = count.upload_bytes - 4 * others
        kept = 4 * (params + ranges) + round(share * statistics)
        found.append(
            count._replace(
                params=count.params - params,
                upload_bytes=count.upload_bytes - kept,
            )
        )
    return tuple(found)


class Kept(NamedTuple):
    """The state of a client, taken apart.

    Attributes:
      own: of the local rule, a tuple over blocks; None: it keeps none.
      memories: of the codec, each [Q] of the parameters of all blocks.
      personal: [L] of the network, what stays with the client; None: nothing.
    """

    own: tuple | None
    memories: tuple[types.Array, ...]
    personal: types.Array | None = None


def first_state(seams: Seams, blocks: tuple[dict, ...]) -> types.Array:
    """Makes the state [S] of a client before its first round."""
    own = seams.local.own(blocks) if seams.local and seams.local.keeps else None
    size = trees.size(server.params_of(blocks))
    stays = seams.personal.take(blocks) if seams.personal else None
    return joined(Kept(own, (jnp.zeros(size),) * seams.memories, stays))


def state_size(seams: Seams, blocks: tuple[dict, ...]) -> int:
    """Counts the values S that a client keeps; 0: it keeps none."""
    if not seams.keeps:
        return 0
    return jax.eval_shape(functools.partial(first_state, seams), blocks).size


def network_of(
    seams: Seams, blocks: tuple[dict, ...], state: types.Array | None
) -> tuple[dict, ...]:
    """Gives the network that a client has: the server's, with what is its own.

    Args:
      seams: of the algorithm.
      blocks: of the server.
      state: [S] of the client; None: it keeps none.
    """
    if seams.personal is None:
        return blocks
    return seams.personal.put(blocks, parted(seams, blocks, state).personal)


def joined(kept: Kept) -> types.Array:
    """Strings a client's state together, [S]."""
    own = () if kept.own is None else kept.own
    stays = [] if kept.personal is None else [kept.personal]
    return jnp.concatenate([trees.ravel(own), *kept.memories, *stays])


def parted(seams: Seams, blocks: tuple[dict, ...], state: types.Array | None) -> Kept:
    """Undoes `joined`.

    Args:
      seams: whose state it is.
      blocks: global state; its values are not used.
      state: [S]; None: clients keep none.

    Returns:
      The state, taken apart.
    """
    if state is None:
        return Kept(None, ())
    own, size, stays = None, trees.size(server.params_of(blocks)), None
    if seams.personal:
        like = jax.eval_shape(seams.personal.take, blocks)
        state, stays = jnp.split(state, [state.size - like.size])
    beside = seams.memories * size
    if seams.local and seams.local.keeps:
        like = seams.local.own(blocks)
        own = trees.unravel(state[: state.size - beside], like)
    rows = state[state.size - beside :].reshape(seams.memories, size)
    return Kept(own, tuple(rows), stays)
