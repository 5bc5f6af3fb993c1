"""What a run will cost before it starts: programs, memory, time, upload, who arrives.

One step of the full network is compiled and timed; the rest follows from the plans
that the rounds will assign and from the cost table.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fljax import experiment, plans
from fljax.algorithms import base
from fljax.engine import (
    client,
    client_rows,
    cohort,
    federation,
    feeding,
    group,
    program,
    seams,
)
from fljax.engine import sums as totals
from fljax.engine.program import single
from fljax.experiment import compilations, rehearsal
from fljax.nn import narrowing, slicing
from fljax.runtime import memory, mesh, programs

_LOOKED_AT = 1000  # rounds whose plans are drawn; a longer run goes on like them
_TIMED = 3
# An evaluated example costs a forward pass, a trained one about three of them.
_EVALUATION = 1 / 3


class Estimate(NamedTuple):
    """What a run will cost.

    Attributes:
      rounds: of the run.
      programs: distinct ones.
      measured: what the program is of that was measured.
      compile_seconds: of that program.
      step_seconds: of that program, one client's share.
      round_seconds: mean over the rounds, evaluation included.
      total_seconds: of all rounds, compilation included.
      device_bytes: most that a device holds while it runs that program; None
        where the backend does not tell.
      upload_bytes: of all clients in all rounds.
      clock_seconds: of all rounds on the virtual clock of the devices.
      rehearsal: of the rounds looked at: who arrives, which blocks are trained.
      client_bytes: of host memory at the end, for what clients keep between rounds.
      notes: a line for each thing that the user should know of the algorithm.
    """

    rounds: int
    programs: int
    measured: str
    compile_seconds: float
    step_seconds: float
    round_seconds: float
    total_seconds: float
    device_bytes: int | None
    upload_bytes: int
    clock_seconds: float
    rehearsal: rehearsal.Rehearsal
    client_bytes: int = 0
    notes: tuple[str, ...] = ()


def _silent(_: str) -> None:
    """Says nothing."""


def estimate(
    ready: experiment.Experiment, tell: Callable[[str], None] = _silent
) -> Estimate:
    """Works out what a run will cost.

    Args:
      ready: of `experiment.build`.
      tell: is given a line for each step that may take long.

    Returns:
      The estimate.

    Raises:
      ValueError: the algorithm's devices cannot run it.
    """
    config, algorithm = ready.settings, experiment.algorithm(ready)
    fed = algorithm.federation or experiment.seen_by(ready)
    looked_at = min(config.rounds, _LOOKED_AT)
    rounds = f"{looked_at} round{'s' * (looked_at > 1)}"
    tell(f"drawing {fed.model.net.name} and playing {rounds} without training")
    seen = rehearsal.rehearse(algorithm, fed, looked_at)
    everything = single.Single(plans.full(fed.model.net.num_blocks))
    shared = [one for one in sorted(seen.programs) if one.any_window and one.width == 1]
    made_for = _of_mean(fed, (*shared, everything)[0])
    measured = "all windows" if shared else "the full network"
    tell(f"compiling the program of {measured} anew, to time it")
    with compilations.watched(fed, [made_for], tell):
        compile_seconds, step_seconds, size = _measure(fed, seen.state, made_for)
    training = seen.steps * step_seconds / fed.layout.devices.size
    real = client.fitting(fed.training, int(fed.population.shards.counts.max()))
    batches = ready.evaluator.examples / real.batch_size
    evaluation = _EVALUATION * batches * step_seconds / config.eval_every
    round_seconds = training + evaluation / fed.layout.devices.size
    return Estimate(
        rounds=config.rounds,
        programs=len(seen.programs),
        measured=measured,
        compile_seconds=compile_seconds,
        step_seconds=step_seconds,
        round_seconds=round_seconds,
        total_seconds=(
            config.rounds * round_seconds + len(seen.programs) * compile_seconds
        ),
        device_bytes=size,
        upload_bytes=seen.upload_bytes * config.rounds // looked_at,
        clock_seconds=seen.clock_seconds * config.rounds / looked_at,
        rehearsal=seen,
        client_bytes=_client_bytes(fed, seen.state, config.rounds),
        notes=algorithm.notes,
    )


def _client_bytes(fed: federation.Federation, state: base.State, rounds: int) -> int:
    """Gives the bytes of the rows that clients keep, at the end of a run."""
    clients, a_round = len(fed.population.shards.counts), fed.rules.clients_per_round
    visited = client_rows.most_visited(clients, rounds, a_round)
    kept = client_rows.found(state)
    return sum(client_rows.estimate(visited, rows.width) for rows in kept)


def _mean_client(fed: federation.Federation) -> int:
    """Finds a client whose examples are as many as the mean."""
    counts = np.asarray(fed.population.shards.counts)
    return int(np.argmin(np.abs(counts - counts.mean())))


def _of_mean(fed: federation.Federation, kind: program.Program) -> program.Program:
    """Gives the program with room for a client of the mean size."""
    counts = np.asarray(fed.population.shards.counts)
    rooms = client.capacities(counts, fed.training.batch_size)
    return kind.holding(int(rooms[_mean_client(fed)]), short=False)


def _measure(fed: federation.Federation, state: base.State, made_for: program.Program):
    """Compiles a program and times a chunk of clients of the mean size.

    Returns:
      Seconds to compile, seconds a step of a client, bytes on a device or None.
    """
    devices, width = fed.layout.devices, fed.layout.width
    begun, call, steps = _call(fed, state.server.blocks, made_for.width)
    sums, *shares = call
    net, _ = fed.model.at(made_for.width)
    static = client.Static(net, made_for, fed.training, width, _seams(made_for.width))
    start = time.perf_counter()
    with programs.anew():  # what is kept of this program says nothing of the others
        (compiled,) = group.compile_groups([(static, begun)], call, devices)
    compiling, seconds = time.perf_counter() - start, []
    for _ in range(_TIMED + 1):
        start = time.perf_counter()
        sums = compiled(begun, sums, *shares)
        jax.block_until_ready(sums)
        seconds.append(time.perf_counter() - start)
    size = _size(compiled, state, fed)
    return compiling, float(statistics.median(seconds[1:]) / steps), size


def _seams(width: float) -> seams.Seams:
    """Gives the seams of a program of networks of a width."""
    return seams.Seams(narrowing=None if width == 1 else narrowing.Narrowing())


def _call(
    fed: federation.Federation, blocks: tuple[dict, ...], width: float
) -> tuple[cohort.Round, group.Call, int]:
    """Makes arguments of a program: a chunk of clients of the mean size.

    Returns:
      The arguments, of networks of a width, and the steps of all clients.
    """
    layout, shards = fed.layout, fed.population.shards
    everywhere = functools.partial(mesh.replicate, layout.devices)
    number, num_blocks = _mean_client(fed), fed.model.net.num_blocks
    ids = np.full(fed.rules.clients_per_round, number)
    windows = np.tile([0, num_blocks - 1], (len(ids), 1))
    weights = np.ones(len(shards.counts))
    clients = cohort.gather(ids, shards, weights, windows=windows)
    most = feeding.room(shards.counts, len(ids))
    data, clients = feeding.place(fed, clients, len(ids), most)
    chunk, work = min(layout.width, len(ids)), np.ones(len(ids))
    (few,) = cohort.spread([np.arange(chunk)], work, layout.devices.size, layout.width)
    blocks = everywhere(blocks)
    begun = cohort.Round(
        blocks,
        data,
        everywhere(jax.random.key(0)),
        everywhere(np.float32(fed.rules.learning_rate(0))),
        everywhere(np.full((2, num_blocks), np.inf, np.float32)),
    )
    if width != 1:
        cut = slicing.places(fed.model.net, fed.model.cut(width))
        begun = begun._replace(channels=everywhere(cut))
    sums = totals.zero_sums(
        blocks, size=len(ids), seams=_seams(width), devices=layout.devices
    )
    few = mesh.distribute(layout.devices, few)
    steps = chunk * client.steps_of(shards.counts[number], fed.training)
    return begun, (sums, clients, few), steps


def _size(
    compiled: jax.stages.Compiled, state: base.State, fed: federation.Federation
) -> int | None:
    """Gives the bytes that a device holds while a program runs; None: it is not told.

    That is what lies there (data, network, test set), what the program takes for
    itself, and the old networks that late updates begin from.
    """
    usage = compiled.memory_analysis()
    if usage is None:
        return None
    device = jax.local_devices()[0]
    there = [
        shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
        if shard.device == device
    ]
    # Before the first round all networks that are kept are the same arrays.
    blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(state.server.blocks))
    old = len(state.history) * blocks
    new = usage.output_size_in_bytes - usage.alias_size_in_bytes
    return sum(there) + old + new + usage.temp_size_in_bytes


def show(cost: Estimate) -> str:
    """Lays an estimate out as text."""
    known = cost.device_bytes is not None
    size = memory.written(cost.device_bytes or 0) if known else "an unknown amount"
    kept = memory.written(cost.client_bytes)
    return "\n".join(
        (
            f"{cost.programs} program{'s' * (cost.programs != 1)} to compile "
            f"where none is kept, {cost.compile_seconds:.1f} s each",
            f"{size} on each device",
            *([f"{kept} in host memory for what clients keep"] * (kept != "0 B")),
            f"{_duration(cost.round_seconds)} a round ("
            f"{cost.step_seconds * 1e3:.3g} ms a step of {cost.measured})",
            f"{_duration(cost.total_seconds)} for {cost.rounds} rounds",
            f"{memory.written(cost.upload_bytes)} sent by clients",
            f"{_duration(cost.clock_seconds)} on the clock of the devices",
            *_arriving(cost.rehearsal),
            *cost.notes,
        )
    )


def _arriving(seen: rehearsal.Rehearsal) -> list[str]:
    """Says who arrives and what is trained."""
    tiers = ", ".join(f"{name} {share:.0%}" for name, share in seen.tiers.items())
    blocks = " ".join(f"{share:.0%}" for share in seen.blocks)
    events = ", ".join(f"{number:.3g} {name}" for name, number in seen.events.items())
    return [
        f"{seen.arrived:.3g} of {seen.over:.3g} clients a round arrive ({tiers})",
        *([f"of a round's clients: {events}"] if events else []),
        f"blocks trained by, of those who arrive: {blocks}",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"
