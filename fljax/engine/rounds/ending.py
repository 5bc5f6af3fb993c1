"""The end of a round: what clients sent becomes one, and the server moves by it.

Legend: K clients of the cohort with its padding, n blocks, S of a client's state.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from fljax import trees, types
from fljax.engine import federation, schedule
from fljax.engine import seams as kinds
from fljax.engine import sums as totals
from fljax.engine.rounds import lengths, participants, setting
from fljax.runtime import mesh
from fljax.updates import norm_bound, privacy, server
from fljax.updates.aggregates import combined


class Beside(NamedTuple):
    """What the end of a round needs beside the sums; None: nothing.

    Attributes:
      attackers: of hostile clients who collude.
      left: masks of a secure sum, of who dropped out.
      draw: what the noise of a private round is made of.
    """

    attackers: totals.Attackers | None = None
    left: totals.Left | None = None
    draw: privacy.Draw | None = None


def beside(
    rounds: setting.Rounds, start: setting.Begun, assignment: schedule.Assignment
) -> Beside:
    """Says what `step` needs of a round beside its sums.

    Args:
      rounds: of the run.
      start: what the round began with.
      assignment: of the round.

    Returns:
      It, on every device.
    """
    left = None
    if start.masks is not None:
        key = federation.round_key(rounds.fed.seed, assignment.round)
        left = totals.Left(*rounds.everywhere((key, start.masks.left)))
    return Beside(participants.attackers(rounds, assignment), left, start.draw)


def step(
    rounds: setting.Rounds,
    state: server.ServerState,
    sums: totals.Sums,
    bounds: lengths.Bounds,
    rate: types.ArrayLike,
    beside: Beside = Beside(),
) -> Ended:
    """Ends a round.

    Args:
      rounds: of the run.
      state: of the server, on the devices.
      sums: of the round.
      bounds: of the round.
      rate: learning rate of the server.
      beside: of the function `beside`.

    Returns:
      What the round ends with.
    """
    ended = server_step(
        state,
        sums,
        bounds.l2,
        rounds.everywhere(rate),
        beside,
        static=Ending(
            rounds.seams,
            rounds.sizes if rounds.fed.rules.norm_bound else (),
            rounds.fed.layout.devices,
        ),
    )
    if bounds.waiting:
        large = np.asarray(ended.failed) == totals.TOO_LARGE
        failed = np.where(large, totals.UNMEASURED, ended.failed)
        return ended._replace(failed=failed, usual=bounds.l2)
    return ended


def states_after(rounds: setting.Rounds, sums: totals.Sums) -> types.Array | None:
    """Gives the clients' states [K, S] after a round; None: they keep none."""
    states = _states_after(sums)
    return states[1:] if rounds.rooted and states is not None else states


@jax.jit
def _states_after(sums: totals.Sums) -> types.Array | None:
    """Adds up the rows of the devices."""
    return None if sums.states is None else jnp.sum(sums.states, axis=0)


class Ended(NamedTuple):
    """What a round ends with; arrays may still be computing.

    Attributes:
      state: of the server.
      losses: [K] of those who arrived, with padding.
      failed: [K] verdicts on their updates.
      finite: [] whether the new network is.
      usual: [2, n] usual L2 norms of updates.
      norm: [] median L2 norm of what they sent; None: a secure sum hides it.
      clip: [] norm that the next round clips at; None: nothing is clipped.
    """

    state: server.ServerState
    losses: types.Array
    failed: types.Array
    finite: types.Array
    usual: types.Array
    norm: types.Array | None
    clip: types.Array | None


class Ending(NamedTuple):
    """What the end of a round depends on beside shapes; hashable.

    Attributes:
      seams: how updates become one, and how the server moves.
      sizes: of the blocks, where usual L2 norms of updates are kept; else empty.
      devices: the mesh.
    """

    seams: kinds.Seams
    sizes: norm_bound.Sizes | tuple[()]
    devices: Mesh


@functools.partial(jax.jit, static_argnames=("static",))
def server_step(state, sums, l2, rate, beside=Beside(), *, static: Ending):
    """Adds up the devices' sums and ends the round; every device gets the result."""
    seams, sizes, devices = static
    added, kept = totals.total(sums._replace(states=None)), state.aggregate
    summed, clip = added.totals, None
    summed = totals.opened(summed, seams.secure, beside.left, state.blocks)
    if seams.privacy is not None:
        summed, clip = privacy.released(seams.privacy, beside.draw, summed)
    added = added._replace(totals=summed)
    if beside.attackers is not None:
        added = totals.filled(added, seams, beside.attackers, state.blocks)
    if seams.aggregate.root_size:  # the server is nobody's business but the aggregate's
        added = added._replace(
            losses=added.losses[1:], failed=added.failed[1:], l2=added.l2[1:]
        )
    if added.updates is not None:
        counted, kept = combined.combine(
            seams.aggregate, kept, added.updates, added.totals, state.blocks
        )
        added = added._replace(totals=counted)
    if seams.exits is not None:
        added = added._replace(totals=server.of_holders(added.totals, state.blocks))
    new = server.step(state, added.totals, seams.server, rate)
    new = new._replace(aggregate=kept)
    if seams.privacy is not None:
        new = new._replace(blocks=privacy.bounded(new.blocks, state.blocks))
    if seams.withheld is not None:  # adding zero would turn -0 into 0
        new = new._replace(blocks=seams.withheld.of_server(new.blocks, state.blocks))
    if sizes:
        l2 = norm_bound.usual(l2, added.l2, sizes)
    result = Ended(
        new,
        added.losses,
        added.failed,
        trees.all_finite(new.blocks),
        l2,
        None if seams.secure is not None else norm_bound.median(added.l2),
        clip,
    )
    return lax.with_sharding_constraint(result, NamedSharding(devices, mesh.SHARED))
