"""Initialization of the global network: the same for all algorithms of a seed."""

from __future__ import annotations

import functools

import jax

from fljax import types
from fljax.engine import client, federation
from fljax.kernels import specs
from fljax.nn import network
from fljax.runtime import programs, streams


def _initial(key: types.Key, *, net: network.Network, spec: specs.Spec):
    init_key, calibration_key = jax.random.split(key)
    return client.calibrate(net, network.init(net, init_key), spec, calibration_key)


@functools.cache  # the options ask what backend there is, so not on import
def jitted():
    """Gives (key, net=, spec=) -> blocks as one program; by operations it is many."""
    options = programs.once_options()
    return jax.jit(_initial, static_argnames=("net", "spec"), compiler_options=options)


def blocks(fed: federation.Federation) -> tuple[dict, ...]:
    """Draws and calibrates the network of a federation."""
    key = jax.random.fold_in(jax.random.key(fed.seed), streams.INITIAL)
    return jitted()(key, net=fed.model.net, spec=fed.training.spec)
