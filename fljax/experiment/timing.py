"""One client's training step under a window: compiled, to be timed and measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax import plans
from fljax.engine import client, federation
from fljax.engine.program import mixed, single
from fljax.runtime import programs


class Step(NamedTuple):
    """A compiled call of some local steps.

    Attributes:
      run: () -> the client's result, still computing.
      steps: of one call.
      bytes: peak memory of the program: arguments, results and temporaries, without
        the data set, which a device does not share with others; None: not told.
      traffic: bytes that a step reads and writes, as XLA counts them: what caches serve
        and what a call does once count in; NaN: not told.
    """

    run: Callable[[], Any]
    steps: int
    bytes: int | None
    traffic: float


def bytes_accessed(program: jax.stages.Compiled) -> float:
    """Gives the bytes that a program reads and writes, or NaN, as XLA counts them.

    It counts the body of a loop once, and what is gathered as all it is taken from.
    """
    return (program.cost_analysis() or {}).get("bytes accessed", float("nan"))


def compile_step(
    fed: federation.Federation,
    blocks: tuple[dict, ...],
    plan: plans.Plan,
    steps: int,
    training: client.Training | None = None,
) -> Step:
    """Compiles what a client does under a plan: freeze, then train for some steps.

    Args:
      fed: its data, of which the first examples are used, and how it trains.
      blocks: state of the network.
      plan: the window.
      steps: local steps of a call.
      training: instead of the federation's.

    Returns:
      The step.
    """
    training = training or fed.training
    static = client.Static(fed.model.net, single.Single(plan), training)
    train = functools.partial(_train, static)
    arguments = _arguments(fed, blocks, steps, training)
    options = programs.compiler_options()
    program = jax.jit(train).lower(*arguments).compile(compiler_options=options)
    usage = program.memory_analysis()
    size = None
    if usage is not None:
        kinds = ("argument", "output", "temp")
        size = sum(getattr(usage, f"{kind}_size_in_bytes") for kind in kinds)
        size -= sum(leaf.nbytes for leaf in jax.tree.leaves(fed.population.data))
    run = functools.partial(program, *arguments)
    return Step(
        run, steps, size, bytes_accessed(program) - fed.population.data.x.nbytes
    )


def compile_shared(
    fed: federation.Federation,
    blocks: tuple[dict, ...],
    wanted: Sequence[plans.Plan],
    steps: int,
) -> list[Step]:
    """Compiles the program that windows share where clients run one at a time.

    Args:
      fed: as of `compile_step`.
      blocks: state of the network.
      wanted: the windows.
      steps: local steps of a call.

    Returns:
      For each window its step, of unknown memory and traffic.
    """
    static = client.Static(fed.model.net, mixed.Mixed(), fed.training)

    def places(blocks):
        return client.places(static, blocks, client.freeze(static, blocks, None))

    def train(places, window, start, one):
        result = _train(static, start, one, window, places)
        return result.places, result._replace(places=None)

    arguments = _arguments(fed, blocks, steps, fed.training)
    # Of a round: each client leaves them to the next.
    given = [jax.jit(places)(blocks)]
    windows = [(jnp.int32(p.first), jnp.int32(p.last)) for p in wanted]
    program = (
        jax.jit(train, donate_argnums=0)
        .lower(given[0], windows[0], *arguments)
        .compile(compiler_options=programs.compiler_options())
    )

    def run(window):
        left, result = program(given.pop(), window, *arguments)
        given.append(left)
        return result

    unknown = float("nan")  # of blocks that branch XLA counts the dearest branch
    return [Step(functools.partial(run, w), steps, None, unknown) for w in windows]


def _train(
    static: client.Static,
    start: client.Start,
    one: client.Client,
    window=None,
    places=None,
) -> client.Result:
    frozen = client.freeze(static, start.state, None)
    start, one = start._replace(frozen=frozen), one._replace(window=window)
    return client.train(static, start, one, places)


def _arguments(
    fed, blocks, steps: int, training: client.Training
) -> tuple[client.Start, client.Client]:
    count = steps * training.batch_size
    indices = jnp.arange(count, dtype=jnp.int32)
    return (
        client.Start(blocks, (), fed.population.data, jnp.float32(0.1)),
        client.Client(indices, jnp.int32(count), jax.random.key(0)),
    )


def interleaved(steps: Sequence[Step], repeats: int) -> list[list[float]]:
    """Times steps in turns, after one call of each.

    Args:
      steps: what to time.
      repeats: how often each.

    Returns:
      For every step the seconds of one local step, `repeats` of them.
    """
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for step, seconds in zip(steps, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(step.run())
            if turn:
                seconds.append((time.perf_counter() - start) / step.steps)
    return times
