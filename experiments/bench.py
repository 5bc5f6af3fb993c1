"""Times named workloads through the real engine, on random data.

    python -m experiments.bench --workload=small_cnn,logistic [--repeats=10]
        [--json=PATH]

A round that compiles counts as compilation; the others are timed one by one. Ceilings
(a large matrix product, a large copy) are taken in the same run, since machines differ
and are noisy: compare ratios and medians, never single times.
"""

from __future__ import annotations

import functools
import json
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import config as configs
from experiments import experiment, main
from fljax import client, cohort, plans, types
from fljax.algorithms import averaging
from fljax.models import network

_WORKLOAD = flags.DEFINE_list("workload", ["small_cnn", "logistic"], "Which to time.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Rounds to time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File that the figures go to as well.")
_COST_TABLE = flags.DEFINE_string(
    "cost_table", "", "Measured costs of MobileNetV2's windows for mobilenetv2_cocofl."
)
_CLIENT_WIDTH = flags.DEFINE_integer(
    "client_width", 0, "Clients that run side by side; 0: the backend's default."
)


class Workload(NamedTuple):
    """A federation on random data.

    Attributes:
      shape: of an example.
      classes: number of classes.
      examples: of every client.
      fields: of the configuration.
    """

    shape: tuple[int, ...]
    classes: int
    examples: int
    fields: dict[str, Any]


def _fields(network: str, clients: int, cohort_size: int, batch: int, **more):
    return {
        "network": network,
        "num_clients": clients,
        "clients_per_round": cohort_size,
        "batch_size": batch,
        "weight_decay": 0.0,
        "algorithm": "fedavg",
        **more,
    }


WORKLOADS = {
    "small_cnn": Workload((32, 32, 3), 10, 500, _fields("cnn", 100, 10, 32)),
    "logistic": Workload((28, 28, 1), 10, 50, _fields("logistic", 1000, 50, 10)),
    "mobilenetv2": Workload((32, 32, 3), 10, 500, _fields("mobilenetv2", 100, 10, 32)),
    "mobilenetv2_cocofl": Workload(
        (32, 32, 3), 10, 500, _fields("mobilenetv2", 100, 10, 32, algorithm="cocofl")
    ),
    "pfl_cifar10": Workload((32, 32, 3), 10, 50, _fields("cnn_dropout", 1000, 50, 10)),
    "femnist_cnn": Workload((28, 28, 1), 62, 200, _fields("cnn_dropout", 3400, 10, 20)),
}
# Windows of MobileNetV2 whose step times are compared; the full network comes first.
WINDOWS = ((0, 19), (4, 11), (5, 19), (10, 16), (12, 19), (19, 19), (0, 0))


def _random_data(load: Workload, clients: int) -> types.Dataset:
    generator = np.random.default_rng(0)

    def draw(size):
        x = generator.integers(0, 256, (size, *load.shape), np.uint8)
        return x, (np.arange(size) % load.classes).astype(np.int32)

    train, test = draw(clients * load.examples), draw(1000)
    return types.Dataset(train[0], train[1], test[0], test[1], load.classes)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def ceilings() -> dict[str, float]:
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


def _spread(times: list[float]) -> dict[str, float]:
    return {
        "median_seconds": statistics.median(times),
        "min_seconds": min(times),
        "max_seconds": max(times),
    }


def measure(load: Workload, repeats: int) -> dict[str, Any]:
    """Times rounds of a workload.

    Args:
      load: what to run.
      repeats: rounds to time, those that compile not counted.

    Returns:
      Figures by name.
    """
    width = _CLIENT_WIDTH.value
    config = configs.Config(**load.fields, client_width=width)
    ready = experiment.build(config, _random_data(load, config.num_clients))
    algorithm = experiment.algorithm(config, ready)
    fed = ready.federation
    compiling, index = 0.0, 0
    times: list[float] = []
    operations: list[float] = []
    programs = cohort.num_programs()
    start = time.perf_counter()
    state = jax.block_until_ready(algorithm.init())
    compiling += time.perf_counter() - start
    while len(times) < repeats:
        before = cohort.num_programs()
        start = time.perf_counter()
        assignment = algorithm.assign(state, index)
        state = jax.block_until_ready(algorithm.round(state, assignment)[0])
        seconds = time.perf_counter() - start
        if cohort.num_programs() > before:
            compiling += seconds
        elif index > 0:
            times.append(seconds)
            counts = np.asarray(fed.shards.counts)[assignment.ids]
            work = [_operations(plan, fed.counts) for plan in assignment.plans]
            operations.append(float(np.dot(work, counts)))
        index += 1
    images = config.clients_per_round * load.examples
    spread = _spread(times)
    return {
        "compile_seconds": compiling,
        "programs": cohort.num_programs() - programs,
        **spread,
        "images_per_second": images / spread["median_seconds"],
        "gflops": float(np.mean(operations)) / spread["median_seconds"] / 1e9,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def measure_windows(repeats: int, steps: int = 4) -> dict[str, Any]:
    """Times a step of one client of MobileNetV2 under several windows.

    Args:
      repeats: how often each is timed, in turns.
      steps: local steps of one timed call.

    Returns:
      Milliseconds a step and the ratio to the full step, by window.
    """
    load = WORKLOADS["mobilenetv2"]
    config = configs.Config(**load.fields | {"num_clients": 2, "clients_per_round": 1})
    fed = experiment.build(config, _random_data(load, 2)).federation
    blocks = averaging.initial_blocks(fed)
    indices = jnp.arange(steps * config.batch_size, dtype=jnp.int32)

    def step(blocks, data, indices, plan_key, rate, plan):
        roles = plans.roles(plan, fed.net.num_blocks)
        spec = client.plan_spec(plan, fed.training)
        frozen = network.freeze(fed.net, blocks, roles, spec)
        count = jnp.int32(indices.shape[0])
        return client.train(
            fed.net, plan, fed.training, blocks, frozen, data, indices, count, plan_key,
            rate,
        )  # fmt: skip

    timed = jax.jit(step, static_argnames="plan")
    calls = {}
    for window in WINDOWS:
        plan = plans.Plan(*window)
        calls[str(plan)] = lambda plan=plan: timed(
            blocks, fed.data, indices, jax.random.key(0), jnp.float32(0.1), plan=plan
        )
    compiling = sum(_seconds(call) for call in calls.values())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_seconds(call) / steps * 1e3)
    full = statistics.median(next(iter(times.values())))
    return {"compile_seconds": compiling} | {
        name: {
            "milliseconds": statistics.median(t),
            "min_milliseconds": min(t),
            "ratio": statistics.median(t) / full,
        }
        for name, t in times.items()
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _main() -> None:
    names = _WORKLOAD.value
    known = (*WORKLOADS, "windows")
    for name in names:
        if name not in known:
            raise configs.unknown("workload", name, known)
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    figures: dict[str, Any] = {"device": device, "ceilings": ceilings()}
    print(f"{device}: {_shown(figures['ceilings'])}", flush=True)
    for name in names:
        if name == "windows":
            figures[name] = measure_windows(_REPEATS.value)
        else:
            load = WORKLOADS[name]
            if name == "mobilenetv2_cocofl":
                load.fields["cost_table"] = _COST_TABLE.value
            figures[name] = measure(load, _REPEATS.value)
        for key, value in figures[name].items():
            print(f"{name:20s} {key:20s} {_shown(value)}", flush=True)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main.run(_main)
