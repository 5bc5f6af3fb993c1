"""Times named workloads through the real engine, on random data.

    python -m experiments.bench --workload=small_cnn,logistic [--repeats=10]
        [--json=PATH]

Rounds run in the loop of `experiments.train`. Ceilings (a large matrix product, a large
copy) are taken in the same run, since machines differ and are noisy: compare ratios and
medians, never single times.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import config as configs
from experiments import experiment, main, windows, workloads
from fljax import client, cohort, federation, plans, programs, quant, simulation, types
from fljax.algorithms import averaging, fedavg

_WORKLOAD = flags.DEFINE_list("workload", ["small_cnn", "logistic"], "Which to time.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Rounds to time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File that the figures go to as well.")
_COST_TABLE = flags.DEFINE_string(
    "cost_table",
    "",
    "Measured costs of MobileNetV2's windows for mobilenetv2_cocofl and tiers.",
)
_CLIENT_WIDTH = flags.DEFINE_integer(
    "client_width",
    0,
    "Clients that run side by side; 0: the backend's default.",
    lower_bound=0,
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    configs.CHOICES["precision"],
    "Of activations in training; windows, tiers and cohort run in float32.",
)
_PROGRAMS = flags.DEFINE_enum(
    "programs",
    "one",
    configs.CHOICES["programs"],
    "Whether windows have a program each or share one; windows and tiers do not ask.",
)

# Windows of MobileNetV2 whose step times are compared; the full network comes first.
WINDOWS = ((0, 19), (4, 11), (5, 19), (10, 16), (12, 19), (19, 19), (0, 0))
FROZEN = {"int8": quant.DEFAULT, "float": quant.FLOAT}

# Windows that the tiers' rounds are held to: each is compiled alone, too.
TIER_WINDOWS = 6

COHORTS = (1, 10, 100, 1000, 10_000)
POPULATIONS = (1000, 10_000, 100_000, 1_000_000)
_LONGEST = 20.0  # seconds a round: a cohort that would take longer is not tried
# Rounds of a population whose memory is compared.
EARLY, LATE = 10, 200

Figures = dict[str, Any]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def ceilings() -> Figures:
    """Measures what this machine can do: float32 products and copies."""
    size = 2048
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    big = jnp.ones(2**26)
    copy = jax.jit(lambda x: x + 1)
    best = [
        min(_seconds(functools.partial(f, x)) for _ in range(6))
        for f, x in ((product, a), (copy, big))
    ]
    return {
        "matmul_gflops": 2 * size**3 / best[0] / 1e9,
        "copy_gb_per_s": 2 * big.nbytes / best[1] / 1e9,
    }


def _operations(plan: plans.Plan, counts: tuple[types.BlockCounts, ...]) -> int:
    """Counts the operations of a training step for one example."""
    total = 0
    for index, block in enumerate(counts):
        macs = block.macs + block.depthwise_macs
        total += macs  # forward
        total += macs * (plan.first <= index <= plan.last)  # gradient of the weights
        total += macs * (index > plan.first)  # gradient of the input
    return 2 * total


def _traffic(examples: int) -> dict[plans.Plan | plans.Mixed, float]:
    """Gives the bytes that a step reads and writes, by plan, as XLA counts them.

    It counts the body of a loop once, which is a step of a chunk of clients; what is
    around the steps counts in, too, and is little. A batch that is gathered counts as
    all examples, which are taken off again.

    Args:
      examples: bytes of the data that batches are gathered from.
    """
    return {
        plan: (program.cost_analysis() or {}).get("bytes accessed", float("nan"))
        - examples
        for plan, program in cohort.compiled_programs()
    }


def _spread(times: list[float]) -> Figures:
    return {
        "median_seconds": statistics.median(times),
        "min_seconds": min(times),
        "max_seconds": max(times),
    }


def _resident() -> float:
    """Gives the memory of this process in MB: now, or the most so far."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _device_peak() -> Figures:
    """Gives the most memory that the first device held, where it tells."""
    usage = jax.devices()[0].memory_stats() or {}
    peak = usage.get("peak_bytes_in_use")
    return {} if peak is None else {"device_peak_mb": peak / 1e6}


def _warm(algorithm: averaging.Algorithm, state, rounds: int) -> None:
    """Runs those of the rounds that compile."""
    seen: set[plans.Plan | plans.Mixed] = set()
    for index in range(rounds):
        assignment = algorithm.assign(state, index)
        wanted = set(algorithm.programs(assignment))
        if not wanted <= seen:
            jax.block_until_ready(algorithm.round(state, assignment)[0])
            seen |= wanted


def measure(load: workloads.Workload, repeats: int, **fields: Any) -> Figures:
    """Times rounds of a workload.

    Args:
      load: what to run.
      repeats: rounds to time.
      **fields: of the configuration, over those of the workload.

    Returns:
      Figures by name.
    """
    settings = workloads.config(
        load,
        client_width=_CLIENT_WIDTH.value,
        precision=_PRECISION.value,
        programs=_PROGRAMS.value,
        **fields,
    )
    ready = workloads.build(load, settings)
    algorithm = experiment.algorithm(settings, ready)
    fed, compiled_before = ready.federation, cohort.num_programs()
    spent_before = programs.seconds_spent()
    state = algorithm.init()
    _warm(algorithm, state, repeats + 1)
    compiling = programs.seconds_spent() - spent_before
    evaluator = ready.evaluator if load.eval_every else None
    if evaluator is not None:
        first, second = (_seconds(lambda: evaluator.scores(state)) for _ in range(2))
        compiling += max(first - second, 0.0)
    rounds = simulation.iterate(algorithm, state, 0, repeats + 1, evaluator)
    records = [record for _, record in rounds][1:]
    spread = _spread([record["wall_seconds"] for record in records])
    traffic, operations, moved = _traffic(fed.data.x.nbytes), [], []
    for record in records:
        assigned = algorithm.assign(state, record["round"])
        counts = np.asarray(fed.shards.counts)[assigned.ids]
        steps = client.steps_of(counts, fed.training) / fed.width
        work = [_operations(plan, fed.counts) for plan in assigned.plans]
        operations.append(float(np.dot(work, counts)))
        moved.append(
            float(
                np.dot(
                    [traffic.get(p, np.nan) for p in algorithm.programs(assigned)],
                    steps,
                )
            )
        )
    images = settings.clients_per_round * load.examples
    median = spread["median_seconds"]
    return {
        "compile_seconds": compiling,
        "programs": cohort.num_programs() - compiled_before,
        **spread,
        "total_seconds": sum(record["wall_seconds"] for record in records),
        "images_per_second": images / median,
        "gflops": float(np.mean(operations)) / median / 1e9,
        "gb_per_s": float(np.mean(moved)) / median / 1e9,
        "peak_memory_mb": _peak(),
        **_device_peak(),
    }


def measure_windows(repeats: int, steps: int = 16) -> Figures:
    """Times a step of one client of MobileNetV2 under several windows.

    Args:
      repeats: how often each is timed, in turns.
      steps: local steps of one timed call.

    Returns:
      By window and kind of frozen blocks, and by window in the program that windows
      share: milliseconds a step and the ratio to the full step.
    """
    load = workloads.BY_NAME["mobilenetv2"]
    settings = workloads.config(load, num_clients=2, clients_per_round=1)
    fed = workloads.build(load, settings).federation
    blocks = averaging.initial_blocks(fed)
    made: dict[str, windows.Step] = {}
    start = time.perf_counter()
    for window in WINDOWS:
        plan = plans.Plan(*window)
        for kind, spec in FROZEN.items():
            full = window == WINDOWS[0]
            if full and kind != "int8":  # nothing is frozen
                continue
            made[f"{plan}" if full else f"{plan} {kind}"] = windows.compile_step(
                fed, blocks, plan, steps, fed.training._replace(spec=spec)
            )
    compiling = time.perf_counter() - start
    start = time.perf_counter()
    wanted = [plans.Plan(*window) for window in WINDOWS]
    shared = windows.compile_shared(fed, blocks, wanted, steps)
    made |= {f"{p} shared": step for p, step in zip(wanted, shared, strict=True)}
    sharing = time.perf_counter() - start
    seconds = windows.interleaved(list(made.values()), repeats)
    times = {
        name: [1e3 * value for value in of_step]
        for name, of_step in zip(made, seconds, strict=True)
    }
    full_step = statistics.median(next(iter(times.values())))
    return {"compile_seconds": compiling, "shared_compile_seconds": sharing} | {
        name: {
            "milliseconds": statistics.median(t),
            "min_milliseconds": min(t),
            "ratio": statistics.median(t) / full_step,
        }
        for name, t in times.items()
    }


def measure_tiers(repeats: int) -> Figures:
    """Compares rounds of CoCoFL with what the steps of their windows take alone.

    Args:
      repeats: rounds to time.

    Returns:
      Seconds of the rounds and of the same steps one by one, timed before and after
      them; what rounds take more, and both as shares of training everything.
    """
    load = workloads.BY_NAME["mobilenetv2_cocofl"]
    settings = workloads.config(
        load, client_width=1, cost_table=_COST_TABLE.value, max_windows=TIER_WINDOWS
    )
    ready = workloads.build(load, settings)
    algorithm, fed = experiment.algorithm(settings, ready), ready.federation
    state = algorithm.init()
    _warm(algorithm, state, repeats + 1)
    counts, steps = np.asarray(fed.shards.counts), dict[plans.Plan, int]()
    for index in range(1, repeats + 1):
        assigned = algorithm.assign(state, index)
        of_clients = client.steps_of(counts[assigned.ids], fed.training).tolist()
        for plan, more in zip(assigned.plans, of_clients, strict=True):
            steps[plan] = steps.get(plan, 0) + more
    full = plans.full(fed.net.num_blocks)
    used = list(dict.fromkeys((full, *steps)))
    blocks = averaging.initial_blocks(fed)
    made = [windows.compile_step(fed, blocks, plan, 4) for plan in used]
    before = windows.interleaved(made, 4)
    rounds = simulation.iterate(algorithm, state, 0, repeats + 1)
    taken = sum([record["wall_seconds"] for _, record in rounds][1:])
    after = windows.interleaved(made, 4)
    alone = {
        plan: statistics.median([*a, *b])
        for plan, a, b in zip(used, before, after, strict=True)
    }
    expected = sum(number * alone[plan] for plan, number in steps.items())
    everything = sum(steps.values()) * alone[full]
    return {
        "rounds_seconds": taken,
        "windows_seconds": expected,
        "excess": taken / expected - 1,
        "rounds_ratio": taken / everything,
        "windows_ratio": expected / everything,
        "windows": {str(plan): alone[plan] / alone[full] for plan in used},
    }


def measure_cohorts(name: str, repeats: int) -> Iterator[tuple[str, Figures]]:
    """Times rounds of growing cohorts; yields a line for each size."""
    load = workloads.BY_NAME[name]
    for size in COHORTS:
        settings = workloads.config(
            load, num_clients=size, clients_per_round=size, client_width=_width()
        )
        fed = workloads.build_population(load, settings, 10_000)
        median, *_ = _rounds(fed, repeats)
        yield (
            f"{name} cohort {size}",
            {"seconds": median, "ms_per_client": median / size * 1e3},
        )
        if median * COHORTS[1] / COHORTS[0] > _LONGEST:
            return


def measure_populations(name: str) -> Iterator[tuple[str, Figures]]:
    """Times rounds out of growing populations; yields a line for each."""
    load = workloads.BY_NAME[name]
    for population in POPULATIONS:
        settings = workloads.config(load, num_clients=population, client_width=_width())
        fed = workloads.build_population(load, settings, 10_000)
        median, early, late = _rounds(fed, LATE)
        yield (
            f"{name} population {population}",
            {
                "seconds": median,
                f"mb_at_round_{EARLY}": early,
                f"mb_at_round_{LATE}": late,
                "growth": late / early - 1,
            },
        )


def _width() -> int:
    return _CLIENT_WIDTH.value


def _rounds(fed: federation.Federation, repeats: int) -> tuple[float, float, float]:
    """Runs FedAvg; returns median seconds a round, MB at an early and the last one."""
    algorithm = fedavg.fedavg(fed)
    times, memory = [], []
    for _, record in simulation.iterate(algorithm, algorithm.init(), 0, repeats + 2):
        times.append(record["wall_seconds"])
        memory.append(_resident())
    return statistics.median(times[2:]), memory[min(EARLY, repeats)], memory[-1]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figures(name: str) -> Iterator[tuple[str, Any]]:
    """Yields the figures of a workload as they come."""
    repeats = _REPEATS.value
    if name == "windows":
        yield from measure_windows(repeats).items()
    elif name == "tiers":
        yield from measure_tiers(repeats).items()
    elif name == "cohort":
        for load in ("logistic", "small_cnn"):
            yield from measure_cohorts(load, repeats)
        yield from measure_populations("logistic")
    else:
        table = {"cost_table": _COST_TABLE.value} if name.endswith("cocofl") else {}
        yield from measure(workloads.BY_NAME[name], repeats, **table).items()


def _main() -> None:
    known = (*workloads.BY_NAME, "windows", "tiers", "cohort")
    for name in _WORKLOAD.value:
        if name not in known:
            raise configs.unknown("workload", name, known)
    if not pathlib.Path(_JSON.value).parent.is_dir():
        raise ValueError(f"--json: expected a file in a folder, got {_JSON.value!r}")
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    figures: Figures = {"device": device, "ceilings": ceilings()}
    print(f"{device}: {_shown(figures['ceilings'])}", flush=True)
    for name in _WORKLOAD.value:
        figures[name] = {}
        for key, value in _figures(name):
            figures[name][key] = value
            print(f"{name:20s} {key:20s} {_shown(value)}", flush=True)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main.run(_main)
