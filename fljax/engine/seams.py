"""What an algorithm asks for beside plain averaging, and the state that clients keep.

A client's state [S] is one vector: what its local rule keeps of each block, then an
error memory for each that the codec wants, as long as the parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax import plans, trees, types
from fljax.nn import narrowing
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
    """

    local: local_rule.LocalRule | None = None
    codec: codecs.Codec | None = None
    aggregate: aggregates.Aggregate = aggregates.Mean()
    server: server_rule.ServerRule = server_rule.Averaging()
    narrowing: narrowing.Narrowing | None = None
    attack: attacks.Attack | None = None
    secure: secure_sum.Words | None = None
    privacy: privacy.Mechanism | None = None

    @property
    def of_clients(self) -> Seams:
        """Gives what the clients' programs depend on.

        One aggregate stands for all that see updates, so that comparing them compiles
        once.
        """
        sees, attack = self.sees_updates, self.attack and self.attack.of_clients
        aggregate = aggregates.Median() if sees else NONE.aggregate
        return self._replace(
            aggregate=aggregate,
            server=NONE.server,
            attack=attack,
            privacy=self.privacy and privacy.CLIPS,
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
        return bool(self.memories or (self.local and self.local.keeps))


NONE = Seams()


def sent_bytes(
    seams: Seams, plan: plans.Plan, counts: Sequence[types.BlockCounts]
) -> int:
    """Counts what a client sends under a plan.

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


class Kept(NamedTuple):
    """The state of a client, taken apart.

    Attributes:
      own: of the local rule, a tuple over blocks; None: it keeps none.
      memories: of the codec, each [Q] of the parameters of all blocks.
    """

    own: tuple | None
    memories: tuple[types.Array, ...]


def first_state(seams: Seams, blocks: tuple[dict, ...]) -> types.Array:
    """Makes the state [S] of a client before its first round."""
    own = seams.local.own(blocks) if seams.local and seams.local.keeps else None
    size = trees.size(server.params_of(blocks))
    return joined(Kept(own, (jnp.zeros(size),) * seams.memories))


def state_size(seams: Seams, blocks: tuple[dict, ...]) -> int:
    """Counts the values S that a client keeps; 0: it keeps none."""
    if not seams.keeps:
        return 0
    return jax.eval_shape(functools.partial(first_state, seams), blocks).size


def joined(kept: Kept) -> types.Array:
    """Strings a client's state together, [S]."""
    own = () if kept.own is None else kept.own
    return jnp.concatenate([trees.ravel(own), *kept.memories])


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
    own, size = None, trees.size(server.params_of(blocks))
    beside = seams.memories * size
    if seams.local and seams.local.keeps:
        like = seams.local.own(blocks)
        own = trees.unravel(state[: state.size - beside], like)
    rows = state[state.size - beside :].reshape(seams.memories, size)
    return Kept(own, tuple(rows))
