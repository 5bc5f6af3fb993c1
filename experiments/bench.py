"""Times named workloads through the real engine, on random data.

    python -m experiments.bench --workload=small_cnn,logistic [--repeats=10]
        [--json=PATH]

Rounds run in the loop of `experiments.train`. Ceilings (a large matrix product, a large
copy) are taken in the same run, since machines differ and are noisy: compare ratios and
medians, never single times.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import define, machine, main, traces, workloads
from experiments import flags as config_flags
from fljax import experiment, plans, types
from fljax.algorithms import base, fedavg
from fljax.engine import client, federation, group, initial, program
from fljax.experiment import config as configs
from fljax.experiment import timing
from fljax.kernels import specs
from fljax.runs import simulation
from fljax.runtime import mesh, programs

_WORKLOAD = flags.DEFINE_list("workload", ["small_cnn", "logistic"], "Which to time.")
_REPEATS = define.number("repeats", 10, "Rounds to time.", least=1, most=1_000_000)
_JSON = flags.DEFINE_string("json", "", "File that the figures go to as well.")
_COST_TABLE = flags.DEFINE_string(
    "cost_table",
    "",
    "Measured costs of MobileNetV2's windows for CoCoFL's workloads and tiers; empty: "
    "a model of them.",
)
_LONGEST = define.number(
    "longest",
    20.0,
    "Seconds a round beyond which cohort tries no larger one.",
    most=1e6,
)
_TRACE = flags.DEFINE_string(
    "trace",
    "",
    "Folder that a profile of one more round goes to; prints the share of it in which "
    "the device waits, and what takes longest. Not of windows, tiers and cohort.",
)

_EXAMPLES = define.number(
    "examples",
    0,
    "Examples of every client; 0: as many as the workload says. Not of windows, tiers "
    "and cohort.",
)
_TURN = flags.DEFINE_string(
    "turn",
    "",
    "File to wait for before rounds are timed; PATH.ready tells that all is compiled "
    "by then. So several of these compile at a time and are timed one by one.",
)

# Fields of a run that are flags here, too; windows and tiers take none of them, cohort
# the width alone.
_FIELDS = (
    "client_width",
    "precision",
    "programs",
    "frozen.fixed_point",
    "partition",
    "alpha",
)
config_flags.define_flags(name for name in configs.fields() if name not in _FIELDS)

# Windows of MobileNetV2 whose step times are compared; the full network comes first.
WINDOWS = ((0, 19), (4, 11), (5, 19), (10, 16), (12, 19), (19, 19), (0, 0))
FROZEN = {"int8": specs.DEFAULT, "float": specs.FLOAT}

# Windows that the tiers' rounds are held to: each is compiled alone, too.
TIER_WINDOWS = 6

COHORTS = (1, 10, 100, 1000, 10_000)
POPULATIONS = (1000, 10_000, 100_000, 1_000_000)
# Rounds of a population whose memory is compared.
EARLY, LATE = 10, 200

Figures = dict[str, Any]


def _operations(plan: plans.Plan, counts: tuple[types.BlockCounts, ...]) -> int:
    """Counts the operations of a training step for one example."""
    total = 0
    for index, block in enumerate(counts):
        macs = block.macs + block.depthwise_macs
        total += macs  # forward
        total += macs * (plan.first <= index <= plan.last)  # gradient of the weights
        total += macs * (index > plan.first)  # gradient of the input
    return 2 * total


def _traffic(fed: federation.Federation) -> dict[program.Program, float]:
    """Gives the bytes that a step reads and writes, by program, as XLA counts them.

    It counts the body of a loop once, which is a step of a chunk of clients; what is
    around the steps counts in, too, and is little. A batch that is gathered counts as
    all examples, which are taken off again. What caches serve counts in as well.
    Nothing is told of blocks that branch: it counts their dearest branch.
    """
    return {
        made_for: timing.bytes_accessed(compiled) - fed.population.data.x.nbytes
        for made_for, compiled in group.compiled_programs()
        if fed.layout.width > 1 or not made_for.any_window
    }


def _spread(times: Sequence[float], unit: str = "seconds", of: float = 1) -> Figures:
    return {
        f"median_{unit}": statistics.median(times) / of,
        f"min_{unit}": min(times) / of,
        f"max_{unit}": max(times) / of,
    }


def _memory() -> Figures:
    return {"peak_memory_mb": machine.peak_mb(), **machine.device_peak_mb()}


def _shares(gflops: float, gb_per_s: float, roof: Figures) -> Figures:
    """Gives what is achieved, if it is told, and its shares of the ceilings."""
    figures = {
        "gflops": gflops,
        "share_of_matmul": gflops / roof["matmul_gflops"],
        "gb_per_s": gb_per_s,
        "share_of_copy": gb_per_s / roof["copy_gb_per_s"],
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}


class _Played(NamedTuple):
    """Rounds that were timed.

    Attributes:
      records: of the rounds.
      memory: MB of this process after each of them.
      state: after them.
      compiling: seconds before them that compilation took.
    """

    records: list[simulation.Record]
    memory: list[float]
    state: base.State
    compiling: float


def _warm(algorithm: base.Algorithm, state, rounds: int) -> None:
    """Runs those of the rounds that compile."""
    seen: set[program.Program] = set()
    for index in range(rounds):
        assignment = algorithm.assign(state, index)
        wanted = set(algorithm.programs(assignment))
        if not wanted <= seen:
            jax.block_until_ready(algorithm.round(state, assignment)[0])
            seen |= wanted


def _await_turn() -> None:
    """Says that all is compiled, and waits until it may be timed."""
    if not _TURN.value:
        return
    pathlib.Path(f"{_TURN.value}.ready").touch()
    while not pathlib.Path(_TURN.value).exists():
        time.sleep(0.02)


def _play(
    algorithm: base.Algorithm,
    repeats: int,
    evaluator: simulation.Evaluator | None = None,
) -> _Played:
    """Runs rounds in the loop of `experiments.train`, and one before them."""
    machine.forget_peak()
    spent_before, state = programs.seconds_spent(), algorithm.init()
    _warm(algorithm, state, repeats + 1)
    compiling = programs.seconds_spent() - spent_before
    if evaluator is not None:
        score = functools.partial(evaluator.scores, state)
        first, second = (machine.seconds(score) for _ in range(2))
        compiling += max(first - second, 0.0)
    _await_turn()
    rounds = simulation.iterate(algorithm, state, range(repeats + 1), evaluator)
    records, memory = [], []
    for state, record in rounds:  # noqa: B007
        records.append(record)
        memory.append(machine.resident_mb())
    return _Played(records[1:], memory[1:], state, compiling)


def _figures_of(
    played: _Played,
    fed: federation.Federation,
    algorithm: base.Algorithm,
    roof: Figures,
) -> Figures:
    """Says how fast rounds were, and what share of the machine's ceilings that is."""
    times = [record["wall_seconds"] for record in played.records]
    traffic, counts = _traffic(fed), np.asarray(fed.population.shards.counts)
    operations, moved, images = [], [], []
    for record in played.records:
        assigned = algorithm.assign(played.state, record["round"])
        of_clients = counts[assigned.ids]
        steps = client.steps_of(of_clients, fed.training) / fed.layout.width
        work = [_operations(plan, fed.model.counts) for plan in assigned.plans]
        bytes_ = [traffic.get(p, np.nan) for p in algorithm.programs(assigned)]
        operations.append(float(np.dot(work, of_clients)))
        moved.append(float(np.dot(bytes_, steps)))
        images.append(int(of_clients.sum()))
    median = statistics.median(times)
    return {
        "compile_seconds": played.compiling,
        **_spread(times),
        "total_seconds": sum(times),
        "images_per_second": float(np.mean(images)) / median,
        **_shares(
            float(np.mean(operations)) / median / 1e9,
            float(np.mean(moved)) / median / 1e9,
            roof,
        ),
        **_memory(),
    }


def measure(
    load: workloads.Workload, repeats: int, roof: Figures, **fields: Any
) -> Iterator[tuple[str, Any]]:
    """Times rounds of a workload; yields its figures by name as they are known.

    Args:
      load: what to run.
      repeats: rounds to time.
      roof: `machine.ceilings` of the same devices and precision.
      **fields: of the configuration, over those of the workload.
    """
    settings = workloads.config(load, **fields)
    ready = workloads.build(load, settings)
    algorithm = experiment.algorithm(ready)
    made, found = group.num_programs(), programs.found_on_disk()
    evaluator = ready.evaluator if load.eval_every else None
    played = _play(algorithm, repeats, evaluator)
    yield from _figures_of(played, ready.federation, algorithm, roof).items()
    yield "programs", group.num_programs() - made
    yield "programs_from_disk", programs.found_on_disk() - found
    if _TRACE.value:
        state = played.state
        assignment = algorithm.assign(state, repeats + 1)
        jax.block_until_ready(algorithm.round(state, assignment)[0])  # may compile
        play = functools.partial(algorithm.round, state, assignment)
        yield from traces.profile(lambda: play()[0], _TRACE.value).items()


def measure_windows(repeats: int, roof: Figures, steps: int = 16) -> Figures:
    """Times a step of one client of MobileNetV2 under several windows.

    Args:
      repeats: how often each is timed, in turns.
      roof: `machine.ceilings`.
      steps: local steps of one timed call.

    Returns:
      By window and kind of frozen blocks, and by window in the program that windows
      share: milliseconds a step, the ratio to the full step, what is achieved.
    """
    load = workloads.BY_NAME["mobilenetv2"]
    settings = workloads.config(load, num_clients=2, clients_per_round=1)
    fed = workloads.build(load, settings).federation
    blocks = initial.blocks(fed)
    made: dict[str, timing.Step] = {}
    plan_of: dict[str, plans.Plan] = {}
    machine.forget_peak()
    start = time.perf_counter()
    for window in WINDOWS:
        plan = plans.Plan(*window)
        for kind, spec in FROZEN.items():
            full = window == WINDOWS[0]
            if full and kind != "int8":  # nothing is frozen
                continue
            name = f"{plan}" if full else f"{plan} {kind}"
            training = fed.training._replace(spec=spec)
            made[name] = timing.compile_step(fed, blocks, plan, steps, training)
            plan_of[name] = plan
    compiling, own = time.perf_counter() - start, len(made)
    start = time.perf_counter()
    wanted = [plans.Plan(*window) for window in WINDOWS]
    shared = timing.compile_shared(fed, blocks, wanted, steps)
    for plan, step in zip(wanted, shared, strict=True):
        made[f"{plan} shared"], plan_of[f"{plan} shared"] = step, plan
    sharing = time.perf_counter() - start
    _await_turn()
    seconds = dict(
        zip(made, timing.interleaved(list(made.values()), repeats), strict=True)
    )
    full_step = statistics.median(seconds[f"{wanted[0]}"])
    size = fed.training.batch_size

    def figures(name: str) -> Figures:
        step, median = made[name], statistics.median(seconds[name])
        operations = size * _operations(plan_of[name], fed.model.counts)
        return {
            **_spread(seconds[name], "milliseconds", 1e-3),
            "ratio": median / full_step,
            "images_per_second": size / median,
            **_shares(operations / median / 1e9, step.traffic / median / 1e9, roof),
            **({} if step.bytes is None else {"program_mb": step.bytes / 1e6}),
        }

    return {
        "compile_seconds": compiling,
        "shared_compile_seconds": sharing,
        "programs": own + 1,
        **{name: figures(name) for name in made},
        **_memory(),
    }


def measure_tiers(repeats: int, roof: Figures) -> Figures:
    """Compares rounds of CoCoFL with what the steps of their windows take alone.

    Args:
      repeats: rounds to time.
      roof: `machine.ceilings`.

    Returns:
      Figures of the rounds; their seconds and those of the same steps one by one,
      timed before and after them; what rounds take more, and both as shares of
      training everything.
    """
    load = workloads.BY_NAME["mobilenetv2_cocofl"]
    settings = workloads.config(
        load, client_width=1, cost_table=_COST_TABLE.value, max_windows=TIER_WINDOWS
    )
    ready = workloads.build(load, settings)
    algorithm, fed = experiment.algorithm(ready), ready.federation
    state, before = algorithm.init(), group.num_programs()
    counts, steps = np.asarray(fed.population.shards.counts), dict[plans.Plan, int]()
    for index in range(1, repeats + 1):
        assigned = algorithm.assign(state, index)
        of_clients = client.steps_of(counts[assigned.ids], fed.training).tolist()
        for plan, more in zip(assigned.plans, of_clients, strict=True):
            steps[plan] = steps.get(plan, 0) + more
    full = plans.full(fed.model.net.num_blocks)
    used = list(dict.fromkeys((full, *steps)))
    blocks = initial.blocks(fed)
    made = [timing.compile_step(fed, blocks, plan, 4) for plan in used]
    _warm(algorithm, state, repeats + 1)
    early = timing.interleaved(made, 4)
    played = _play(algorithm, repeats)
    late = timing.interleaved(made, 4)
    alone = {
        plan: statistics.median([*a, *b])
        for plan, a, b in zip(used, early, late, strict=True)
    }
    figures = _figures_of(played, fed, algorithm, roof)
    expected = sum(number * alone[plan] for plan, number in steps.items())
    everything = sum(steps.values()) * alone[full]
    taken = figures["total_seconds"]
    return figures | {
        "programs": group.num_programs() - before,
        "windows_seconds": expected,
        "excess": taken / expected - 1,
        "rounds_ratio": taken / everything,
        "windows_ratio": expected / everything,
        "windows": {str(plan): alone[plan] / alone[full] for plan in used},
    }


# Algorithms whose rounds are compared, the first one with the others.
METHODS: dict[str, Figures] = {
    **{
        name: {"algorithm": name}
        for name in (
            *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"),
            *("scaffold", "feddyn", "fednova"),
        )
    },
    **{
        codec: {"codec": codec}
        for codec in (
            *("clip:1", "top_k:0.01", "random_k:0.01", "qsgd:4", "uniform:4"),
            *("ternary", "signsgd", "drive", "eden:2"),
        )
    },
    "median": {"aggregate": "median"},
    "trimmed_mean": {"aggregate": "trimmed_mean:0.2"},
    "power_of_choice": {"selection": "power_of_choice:20"},
}


def measure_methods(name: str, repeats: int) -> Iterator[tuple[str, Figures]]:
    """Times rounds of algorithms and of what they are put together from, in turns.

    Args:
      name: of the workload.
      repeats: rounds to time of each.

    Yields:
      Of each the seconds a round, and the median's ratio to the first one's.
    """
    load, made, states = _chosen(name), {}, {}
    for method, fields in METHODS.items():
        settings = workloads.config(load, **fields)
        made[method] = experiment.algorithm(workloads.build(load, settings))
        states[method] = made[method].init()
    times: dict[str, list[float]] = {method: [] for method in made}
    for index in range(repeats + 2):
        for method, algorithm in made.items():
            assignment = algorithm.assign(states[method], index)
            start = time.perf_counter()
            states[method], _ = algorithm.round(states[method], assignment)
            jax.block_until_ready(states[method].server.blocks)
            times[method].append(time.perf_counter() - start)
    first = statistics.median(next(iter(times.values()))[2:])  # two compile
    for method, seconds in times.items():
        figures = _spread(seconds[2:])
        ratio = figures["median_seconds"] / first
        yield f"{name} {method}", {**figures, "ratio": ratio}


def measure_cohorts(
    name: str, repeats: int, roof: Figures
) -> Iterator[tuple[str, Figures | str]]:
    """Times rounds of growing cohorts; yields a line for each size."""
    load, median = workloads.BY_NAME[name], 0.0
    for size, before in zip(COHORTS, (0, *COHORTS), strict=False):
        line = f"{name} cohort {size}"
        if before and median * size / before > 10 * _LONGEST.value:
            yield line, f"left out: about {median * size / before:.3g} s a round"
            continue
        settings = workloads.config(
            load, num_clients=size, clients_per_round=size, client_width=_width()
        )
        fed = workloads.build_population(load, settings, 10_000)
        algorithm = fedavg.fedavg(fed)
        figures = _figures_of(_play(algorithm, repeats), fed, algorithm, roof)
        median = figures["median_seconds"]
        yield line, {"ms_per_client": median / size * 1e3} | figures


def measure_populations(name: str, roof: Figures) -> Iterator[tuple[str, Figures]]:
    """Times rounds out of growing populations; yields a line for each."""
    load = workloads.BY_NAME[name]
    for population in POPULATIONS:
        settings = workloads.config(load, num_clients=population, client_width=_width())
        fed = workloads.build_population(load, settings, 10_000)
        algorithm = fedavg.fedavg(fed)
        played = _play(algorithm, LATE)
        early, late = played.memory[EARLY - 1], played.memory[-1]
        yield (
            f"{name} population {population}",
            {
                f"mb_after_round_{EARLY}": early,
                f"mb_after_round_{LATE}": late,
                "growth": late / early - 1,
                **_figures_of(played, fed, algorithm, roof),
            },
        )


def _width() -> int:
    return flags.FLAGS.client_width


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figures(name: str, roof: Figures) -> Iterator[tuple[str, Any]]:
    """Yields the figures of a workload as they come."""
    repeats = _REPEATS.value
    if name == "windows":
        yield from measure_windows(repeats, roof).items()
    elif name == "tiers":
        yield from measure_tiers(repeats, roof).items()
    elif name == "methods":
        yield from measure_methods("small_cnn", repeats)
    elif name == "cohort":
        for load in ("logistic", "small_cnn"):
            yield from measure_cohorts(load, repeats, roof)
        yield from measure_populations("logistic", roof)
    else:
        fields = {field: flags.FLAGS[field].value for field in _FIELDS}
        if name in _WITH_COSTS:
            fields["cost_table"] = _COST_TABLE.value
        yield from measure(_chosen(name), repeats, roof, **fields)


def _chosen(name: str) -> workloads.Workload:
    """Gives a workload, with as many examples as are asked for."""
    load = workloads.BY_NAME[name]
    if not _EXAMPLES.value:
        return load
    return dataclasses.replace(load, examples=_EXAMPLES.value)


_WITH_COSTS = ("mobilenetv2_cocofl", "mobilenetv2_cocofl_100", "tiers")


def _check() -> None:
    """Checks the flags, before anything is measured."""
    known = (*workloads.BY_NAME, "windows", "tiers", "cohort", "methods")
    for name in _WORKLOAD.value or [""]:
        if name not in known:
            raise configs.unknown("workload", name, known)
    if _COST_TABLE.value and not set(_WORKLOAD.value) & set(_WITH_COSTS):
        raise ValueError(
            f"--cost_table: expected with {', '.join(_WITH_COSTS)}, got "
            f"--workload={','.join(_WORKLOAD.value)}"
        )
    path = pathlib.Path(_JSON.value or "figures.json")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--json: expected a file in a folder, got {_JSON.value!r}")


def _main() -> None:
    _check()
    says = print if main.is_first() else lambda *_, **__: None
    devices = mesh.make()
    kind = f"{devices.size} x {jax.devices()[0].device_kind}"
    precision = flags.FLAGS.precision
    roof = machine.ceilings(devices, precision)
    figures: Figures = {"device": kind, "precision": precision, "ceilings": roof}
    says(f"{kind}, {precision}: {_shown(roof)}", flush=True)
    for name in _WORKLOAD.value:
        figures[name] = {}
        if name in _WITH_COSTS:
            figures[name]["costs"] = _COST_TABLE.value or "modeled"
            says(f"{name:20s} {'costs':20s} {figures[name]['costs']}", flush=True)
        for key, value in _figures(name, roof):
            figures[name][key] = value
            says(f"{name:20s} {key:20s} {_shown(value)}", flush=True)
            if _JSON.value and main.is_first():  # whoever ends this loses no figure
                text = json.dumps(figures, indent=2)
                pathlib.Path(_JSON.value).write_text(text + "\n")


if __name__ == "__main__":
    main.run(_main)
