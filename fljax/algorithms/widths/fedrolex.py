"""FedRolex (Alam et al., NeurIPS 2022): the channels that a device trains roll on.

As HeteroFL, but the window of channels of every layer moves by one a round and wraps,
so that all of the network is trained in time whatever the devices.
"""

from __future__ import annotations

from fljax.algorithms import base
from fljax.algorithms.widths import levels as kinds
from fljax.engine import federation
from fljax.nn import narrowing


def fedrolex(
    fed: federation.Federation,
    levels: str = kinds.HALVES,
    dynamic: bool = False,
    rounding: str = "ceil",
    scaler: bool = True,
    masked: bool = True,
) -> base.Algorithm:
    """Makes FedRolex; arguments, result and errors as of `heterofl.heterofl`."""
    classes = bool(fed.training.task.classes)
    rule = narrowing.Narrowing(narrowing.Rolling(), scaler, masked and classes)
    return kinds.narrow(fed, levels, rule, dynamic, rounding)
