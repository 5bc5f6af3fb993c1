"""Local training of a round: its groups run one after the other, and add up.

Each begins with the network of the round that its clients began with.
"""

from __future__ import annotations

import jax
import numpy as np

from fljax import types
from fljax.devices import clock
from fljax.engine import client, cohort, feeding, group, schedule
from fljax.engine import sums as totals
from fljax.engine.rounds import grouping, participants, setting
from fljax.nn import slicing
from fljax.runtime import host_random


def train(
    rounds: setting.Rounds,
    start: setting.Begun,
    assignment: schedule.Assignment,
    limits: types.Array,
) -> totals.Sums:
    """Trains those who arrive, where runs share programs in the pool with others'.

    Args:
      rounds: of the run.
      start: what the round begins with.
      assignment: of the round.
      limits: as of `cohort.Round`.

    Returns:
      What they send, added up on each device.
    """
    if rounds.fed.layout.pool is not None:
        return rounds.fed.layout.pool(rounds, start, assignment, limits)
    devices, index = rounds.fed.layout.devices, assignment.round
    networks, seams = start.networks, rounds.seams.of_clients
    sums = totals.zero_sums(networks[0], size=rounds.size, seams=seams, devices=devices)
    assignment = participants.with_server(rounds, assignment)
    groups = grouping.groups(rounds, assignment)
    if not groups:
        return sums
    cohorts = participants.gather(rounds, assignment, start.states, start.masks)
    number = len(assignment.ids)
    data, clients = feeding.place(rounds.fed, cohorts, number, rounds.most)
    ages = sorted({members.age for members in groups})
    starts = {
        age: begun(rounds, data, start, networks[age], index - age, limits)
        for age in ages
    }
    for at in range(0, len(groups), group.AT_ONCE):
        few = [
            (members, _narrow(rounds, starts[members.age], index, members))
            for members in groups[at : at + group.AT_ONCE]
        ]
        wanted = {members.kind: narrow for members, narrow in few}
        statics = [(grouping.static(rounds, kind), one) for kind, one in wanted.items()]
        call = sums, clients, groups[0].group
        made = group.compile_groups(statics, call, devices)
        compiled = dict(zip(wanted, made, strict=True))
        for (age, kind, _, members), narrow in few:
            earlier = totals.weights_so_far(sums) if age else None
            sums = compiled[kind](narrow, sums, clients, members)
            if age:
                scale = clock.weight(rounds.fed.rules.clock, index, index - age)
                then = starts[age].blocks
                sums = totals.catch_up(sums, earlier, then, networks[0], scale)
        del compiled, made, call  # programs are held no longer than this
    return sums


def begun(
    rounds: setting.Rounds,
    data: client.Data,
    start: setting.Begun,
    blocks: tuple[dict, ...],
    index: int,
    limits: types.Array,
) -> cohort.Round:
    """Says what clients begin with that began with a round.

    Args:
      rounds: of the run.
      data: of training.
      start: what the round that they arrive in begins with.
      blocks: the network that they began with.
      index: of the round that they began with.
      limits: as of `cohort.Round`.

    Returns:
      It, on every device.
    """
    # The words of the key are drawn on the host: no program runs for them.
    key = rounds.everywhere(host_random.of_round(rounds.fed.seed, index))
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    rate = rounds.everywhere(np.float32(rounds.fed.rules.learning_rate(index)))
    then = cohort.Round(blocks, data, key, rate, limits, start.shared)
    exits = rounds.seams.exits
    if exits is not None and (pull := exits.pull(index)) is not None:
        then = then._replace(pull=rounds.everywhere(np.float32(pull)))
    return then._replace(clip=start.draw.clip) if start.draw else then


def _narrow(
    rounds: setting.Rounds, then: cohort.Round, index: int, members: grouping.Members
) -> cohort.Round:
    """Says which channels the clients of a group keep, who began with a round."""
    model, rule = rounds.fed.model, rounds.seams.narrowing
    if members.kind.width == 1:
        return then
    if rule is None:
        raise ValueError(
            f"plan {members.kind}: expected an algorithm that narrows networks, "
            f"such as heterofl, for a plan of width {members.kind.width:g}"
        )
    began = index - members.age
    choose = rule.channels.choose(rounds.fed.seed, began, members.keeper)
    kept = slicing.places(model.net, model.cut(members.kind.width), choose)
    return then._replace(channels=rounds.everywhere(kept))
