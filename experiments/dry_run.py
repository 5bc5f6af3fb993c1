"""What a run will cost before it starts: programs, memory, time, upload, who arrives.

One step of the full network is compiled and timed; the rest follows from the plans
that the rounds will assign and from the cost table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments import compilations, experiment, rehearsal
from fljax import client, cohort, federation, memory, mesh, plans, programs
from fljax.algorithms import averaging

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
    fed = experiment.seen_by(ready)
    looked_at = min(config.rounds, _LOOKED_AT)
    rounds = f"{looked_at} round{'s' * (looked_at > 1)}"
    tell(f"drawing {fed.net.name} and playing {rounds} without training")
    seen = rehearsal.rehearse(algorithm, fed, looked_at)
    mixed = [p.plan for p in seen.programs if isinstance(p.plan, plans.Mixed)]
    plan = mixed[0] if mixed else plans.full(fed.net.num_blocks)
    measured = "all windows" if mixed else "the full network"
    tell(f"compiling the program of {measured} anew, to time it")
    with compilations.watched(fed, [plan], tell):
        compile_seconds, step_seconds, size = _measure(fed, seen.state, plan)
    training = seen.steps * step_seconds / fed.devices.size
    real = client.fitting(fed.training, int(fed.shards.counts.max()))
    batches = ready.evaluator.examples / real.batch_size
    evaluation = _EVALUATION * batches * step_seconds / config.eval_every
    round_seconds = training + evaluation / fed.devices.size
    sent = 0 if config.algorithm == "centralized" else seen.upload_bytes
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
        upload_bytes=sent * config.rounds // looked_at,
        clock_seconds=seen.clock_seconds * config.rounds / looked_at,
        rehearsal=seen,
    )


def _measure(fed: federation.Federation, state: averaging.State, plan):
    """Compiles a plan's program and times a chunk of clients of the mean size.

    Returns:
      Seconds to compile, seconds a step of a client, bytes on a device or None.
    """
    counts = np.asarray(fed.shards.counts)
    number = int(np.argmin(np.abs(counts - counts.mean())))
    ids = np.full(fed.clients_per_round, number)
    windows = np.tile([0, fed.net.num_blocks - 1], (len(ids), 1))
    clients = cohort.gather(ids, fed.shards, np.ones(len(counts)), windows=windows)
    work = np.ones(len(ids))
    chunk = min(fed.width, len(ids))
    (group,) = cohort.spread([np.arange(chunk)], work, fed.devices.size, fed.width)
    everywhere = [
        mesh.replicate(fed.devices, x)
        for x in (state.server.blocks, fed.data, clients, jax.random.key(0))
    ]
    blocks, data, clients, key = everywhere
    rate = mesh.replicate(fed.devices, np.float32(fed.learning_rate(0)))
    limits = np.full((2, fed.net.num_blocks), np.inf, np.float32)
    limits = mesh.replicate(fed.devices, limits)
    group = mesh.distribute(fed.devices, group)
    sums = cohort.zero_sums(blocks, size=len(ids), devices=fed.devices)
    start = time.perf_counter()
    room = client.capacities(counts, fed.training.batch_size)[number]
    made_for = cohort.Program(plan, int(room))
    with programs.anew():  # what is kept of this program says nothing of the others
        program = cohort.compile_groups(
            [made_for],
            *(blocks, sums, data, clients, group, key, rate, limits),
            net=fed.net,
            training=fed.training,
            width=fed.width,
            devices=fed.devices,
        )[made_for]
    compiling, seconds = time.perf_counter() - start, []
    for _ in range(_TIMED + 1):
        start = time.perf_counter()
        sums = program(blocks, sums, data, clients, group, key, rate, limits)
        jax.block_until_ready(sums)
        seconds.append(time.perf_counter() - start)
    steps = chunk * client.steps_of(counts[number], fed.training)
    size = _size(program, state, fed)
    return compiling, float(statistics.median(seconds[1:]) / steps), size


def _size(
    program: jax.stages.Compiled, state: averaging.State, fed: federation.Federation
) -> int | None:
    """Gives the bytes that a device holds while a program runs; None: it is not told.

    That is what lies there (data, network, test set), what the program takes for
    itself, and the old networks that late updates begin from.
    """
    usage = program.memory_analysis()
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
    return "\n".join(
        (
            f"{cost.programs} program{'s' * (cost.programs != 1)} to compile "
            f"where none is kept, {cost.compile_seconds:.1f} s each",
            f"{size} on each device",
            f"{_duration(cost.round_seconds)} a round ("
            f"{cost.step_seconds * 1e3:.3g} ms a step of {cost.measured})",
            f"{_duration(cost.total_seconds)} for {cost.rounds} rounds",
            f"{memory.written(cost.upload_bytes)} sent by clients",
            f"{_duration(cost.clock_seconds)} on the clock of the devices",
            *_arriving(cost.rehearsal),
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
