"""A pool: the clients of several runs in the same compiled programs.

Runs that differ in what is data alone, as the seed, the split and the learning rate,
train a round together: their networks are stacked, a client takes that of its run, and
sums are kept a run. So ten clients of four seeds fill a device as forty of one do.

Legend: R runs, K clients of a run's cohort, D devices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fljax import types
from fljax.algorithms import base
from fljax.engine import client, cohort, federation, group, program, schedule
from fljax.engine import seams as kinds
from fljax.engine import sums as totals
from fljax.engine.rounds import grouping, participants, setting, training
from fljax.runtime import backends, mesh


class Request(NamedTuple):
    """What a run wants trained: the arguments of `training.train`."""

    rounds: setting.Rounds
    start: setting.Begun
    assignment: schedule.Assignment
    limits: types.Array


class Pool(NamedTuple):
    """What the runs of a pool have in common.

    Attributes:
      indices: the examples of the clients of all runs, on the devices.
      offsets: [R] where each run's begin.
      rooms: [R][N] examples that the programs of clients have room for.
    """

    indices: types.Array
    offsets: np.ndarray
    rooms: tuple[np.ndarray, ...]


def make(algorithms: Sequence[base.Algorithm]) -> Pool:
    """Makes the pool of several runs.

    Args:
      algorithms: of the runs, on the same devices and of the same training data.

    Returns:
      The pool.

    Raises:
      ValueError: their programs cannot be the same; one line, without a flag.
    """
    feds = [made.federation for made in algorithms if made.federation is not None]
    if len(feds) < len(algorithms):
        raise ValueError("expected algorithms that fljax.averaging makes, got others")
    first = feds[0]
    for fed, made in zip(feds, algorithms, strict=True):
        _check(fed, first)
        _check_seams(made.seams, algorithms[0].seams)
    tables = [np.asarray(fed.population.shards.indices) for fed in feds]
    counts = [np.asarray(fed.population.shards.counts) for fed in feds]
    rooms = client.capacities(np.concatenate(counts), first.training.batch_size)
    ends = np.cumsum([len(each) for each in counts])
    return Pool(
        mesh.replicate(first.layout.devices, np.concatenate(tables)),
        np.cumsum([0, *map(len, tables[:-1])]),
        tuple(np.split(rooms, ends[:-1])),
    )


def _check(fed: federation.Federation, first: federation.Federation) -> None:
    """Refuses a run that cannot share its programs with the first."""
    layout = fed.layout._replace(pool=None)
    alike = {
        "networks": fed.model.net == first.model.net,
        "ways of local training": fed.training == first.training,
        "numbers of clients a round": (
            fed.rules.clients_per_round == first.rules.clients_per_round
        ),
        "layouts": layout == first.layout._replace(pool=None),
        "selections": fed.rules.selection == first.rules.selection,
        "clocks": fed.rules.clock == first.rules.clock,
        "training data": fed.population.data.x is first.population.data.x,
    }
    if different := [what for what, same in alike.items() if not same]:
        raise ValueError(
            f"expected runs that differ in seed, split, fleet and learning rate alone, "
            f"got different {', '.join(different)}"
        )
    if fed.rules.clock.carries:
        raise ValueError(
            "expected rounds whose late updates are dropped, since those that are kept "
            "begin with networks of other rounds"
        )
    if layout.streams:
        raise ValueError("expected training data on the devices, got them on the host")
    if layout.devices.size > 1 and backends.accelerated():
        raise ValueError(
            f"expected one accelerator, on which programs of several runs wait for "
            f"nobody, got {layout.devices.size}; take --devices=1"
        )


def _check_seams(seams: kinds.Seams, first: kinds.Seams) -> None:
    """Refuses what clients of several runs cannot do in one program."""
    if seams.of_clients != first.of_clients:
        raise ValueError("expected algorithms of which clients do the same")
    if seams.narrowing is not None:
        raise ValueError("expected networks of one width, got an algorithm of several")
    if seams.exits is not None:
        raise ValueError("expected networks of one depth, got an algorithm of several")
    if seams.secure is not None:
        raise ValueError("expected sums of floats, got a secure sum, which is of words")
    if seams.aggregate.root_size:
        raise ValueError(
            f"expected clients alone, got {seams.aggregate}, whose server trains too"
        )


def train(pool: Pool, requests: Mapping[int, Request]) -> dict[int, totals.Sums]:
    """Trains a round of each run that asks for one; which round is its own affair.

    Args:
      pool: of the runs.
      requests: run -> what it wants; one at least. A run without one takes no part, and
        programs stay the same.

    Returns:
      run -> its sums, as of `training.train`.

    Raises:
      ValueError: their rounds are of different sizes.
    """
    runs, lead = len(pool.rooms), next(iter(requests.values()))
    size, seams = lead.rounds.size, lead.rounds.seams.of_clients
    if any(one.rounds.size != size for one in requests.values()):
        sizes = sorted({one.rounds.size for one in requests.values()})
        raise ValueError(f"--together: expected as many updates a round, got {sizes}")
    devices = lead.rounds.fed.layout.devices
    everyone = [requests.get(run, lead) for run in range(runs)]
    blocks = lead.start.networks[0]
    sums = _zeros(
        totals.zero_sums(blocks, size=runs * size, seams=seams, devices=devices),
        runs=runs,
        devices=devices,
    )
    groups = _groups(pool, requests)
    if groups:
        clients = mesh.replicate(devices, _clients(pool, everyone))
        begun = _stack([_begun(one) for one in everyone])
        begun = begun._replace(data=lead.rounds.fed.population.data)
    for at in range(0, len(groups), group.AT_ONCE):
        few = groups[at : at + group.AT_ONCE]
        statics = [(grouping.static(lead.rounds, kind), begun) for kind, _ in few]
        call = sums, clients, few[0][1]
        compiled = group.compile_groups(statics, call, devices)
        for run, (_, members) in zip(compiled, few, strict=True):
            sums = run(begun, sums, clients, members)
        del compiled, call
    each = _split(sums, runs=runs)
    return {run: each[run] for run in requests}


def _begun(one: Request) -> cohort.Round:
    """Gives what a run's clients begin with, without the data."""
    data, index = one.rounds.fed.population.data, one.assignment.round
    blocks = one.start.networks[0]
    begun = training.begun(one.rounds, data, one.start, blocks, index, one.limits)
    return begun._replace(data=None)  # type: ignore[arg-type]


@jax.jit
def _stack(begun: Sequence[cohort.Round]) -> cohort.Round:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)


def _clients(pool: Pool, everyone: Sequence[Request]) -> cohort.Clients:
    """Puts the cohorts one after the other, [R * K], in host memory."""
    rows = []
    for run, one in enumerate(everyone):
        mine = participants.gather(one.rounds, one.assignment, one.start.states)
        size = len(mine.ids)
        rows.append(
            mine._replace(
                indices=None,
                starts=(mine.starts + pool.offsets[run]).astype(np.int32),
                run=np.full(size, run, np.int32),
            )
        )
    both = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    return both._replace(indices=pool.indices)


def _groups(
    pool: Pool, requests: Mapping[int, Request]
) -> list[tuple[program.Program, cohort.Group]]:
    """Sorts who arrives by program, and deals them out, as `grouping` does.

    Those of a run keep their order among themselves, so that on one device, one by one,
    its sums are what they are alone.
    """
    lead = next(iter(requests.values())).rounds
    size, total = lead.size, lead.size * len(pool.rooms)
    most = max(int(rooms.max()) for rooms in pool.rooms)
    load, windows = np.zeros(total), np.zeros((total, 2), int)
    kinds: list[program.Program] = []
    places, order, operations = [], [], None
    for run, one in requests.items():
        ids = one.assignment.ids
        there = run * size + np.arange(len(ids))
        load[there], roles = grouping.load(one.rounds, one.assignment)
        if roles is not None:
            windows[there], operations = roles
        made = federation.programs(one.rounds.fed, one.assignment.plans)
        rooms = pool.rooms[run][ids].tolist()
        kinds += [k.holding(r, r < most) for k, r in zip(made, rooms, strict=True)]
        places.append(there)
        order.append(run * len(pool.rooms[run]) + ids)  # by run, then by number
    if not kinds:
        return []
    by_kind = cohort.group_by(kinds, np.concatenate(order))
    there = np.concatenate(places)
    roles = None if operations is None else cohort.Roles(windows, operations)
    dealt = cohort.spread(
        [there[rows] for _, rows in by_kind],
        load,
        lead.fed.layout.devices.size,
        lead.fed.layout.width,
        total,
        roles,
    )
    return [
        (kind, mesh.distribute(lead.fed.layout.devices, rows))
        for (kind, _), rows in zip(by_kind, dealt, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("runs", "devices"))
def _zeros(sums: totals.Sums, *, runs: int, devices) -> totals.Sums:
    """Makes the totals of no client, of each run: [D, R, ...]."""
    one = sums.totals
    many = jax.tree.map(lambda x: jnp.zeros((len(x), runs, *x.shape[1:]), x.dtype), one)
    new = sums._replace(totals=many)
    own = NamedSharding(devices, mesh.PER_DEVICE)
    return jax.lax.with_sharding_constraint(new, own)


@functools.partial(jax.jit, static_argnames=("runs",))
def _split(sums: totals.Sums, *, runs: int) -> tuple[totals.Sums, ...]:
    """Gives the sums of each run."""

    def of(run: int) -> totals.Sums:
        mine = jax.tree.map(lambda x: x[:, run], sums.totals)
        rows = sums._replace(totals=None)  # type: ignore[arg-type]
        size = sums.losses.shape[1] // runs
        rows = jax.tree.map(lambda x: x[:, run * size : (run + 1) * size], rows)
        return rows._replace(totals=mine)

    return tuple(map(of, range(runs)))
