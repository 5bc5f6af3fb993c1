"""Initialization of the global network: the same for all algorithms of a seed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from fljax import tasks, trees, types
from fljax.engine import client, federation
from fljax.kernels import specs
from fljax.nn import network
from fljax.runtime import programs, streams


def _initial(
    key: types.Key,
    *,
    net: network.Network,
    spec: specs.Spec,
    task: tasks.Task = tasks.DEFAULT,
):
    init_key, calibration_key = jax.random.split(key)
    state = network.init(net, init_key)
    return client.calibrate(net, state, spec, calibration_key, task)


def _pretrained(
    key: types.Key,
    found: Mapping[str, types.Array],
    *,
    net: network.Network,
    spec: specs.Spec,
    task: tasks.Task = tasks.DEFAULT,
):
    """Draws what was not found, and calibrates what it comes to."""
    init_key, calibration_key = jax.random.split(key)
    state = trees.fill(network.init(net, init_key), found)
    calibrated = client.calibrate(net, state, spec, calibration_key, task)
    return trees.fill(calibrated, found)


@functools.cache  # the options ask what backend there is, so not on import
def jitted(function=_initial):
    """Gives (key, net=, spec=, task=) -> blocks as one program."""
    # By operations it would be many.
    options = programs.once_options()
    return jax.jit(
        function, static_argnames=("net", "spec", "task"), compiler_options=options
    )


def shapes(fed: federation.Federation) -> tuple[dict, ...]:
    """Gives the shapes of what `blocks` draws."""
    return jax.eval_shape(lambda: network.init(fed.model.net, jax.random.key(0)))


def blocks(fed: federation.Federation) -> tuple[dict, ...]:
    """Draws and calibrates the network of a federation; pretrained parts stay."""
    key = jax.random.fold_in(jax.random.key(fed.seed), streams.INITIAL)
    static: dict[str, Any] = {"net": fed.model.net, "spec": fed.training.spec}
    static["task"] = fed.training.task
    if fed.model.pretrained is not None:
        return jitted(_pretrained)(key, dict(fed.model.pretrained), **static)
    return jitted()(key, **static)
