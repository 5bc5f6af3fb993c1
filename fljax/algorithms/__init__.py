"""The algorithms, one file a paper; `BY_NAME` maps each name to its factory.

A factory takes the federation, and what may follow its name in a setting
(`fedprox:0.1`).
"""

from collections.abc import Callable

from fljax.algorithms import (
    base,
    centralized,
    cocofl,
    depthfl,
    fedavg,
    fedavg_drop,
    fedavgm,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    scaffold,
)
from fljax.algorithms.personal import ditto, fedbn, fedper, fedrep, local
from fljax.algorithms.widths import (
    cocofl_width,
    federated_dropout,
    fedrolex,
    fjord,
    heterofl,
    slt,
)

BY_NAME: dict[str, Callable[..., base.Algorithm]] = {
    "cocofl": cocofl.cocofl,
    "fedavg": fedavg.fedavg,
    "fedavg_drop": fedavg_drop.fedavg_drop,
    "centralized": centralized.centralized,
    "fedprox": fedprox.fedprox,
    "fedavgm": fedavgm.fedavgm,
    "fedadam": fedopt.fedadam,
    "fedyogi": fedopt.fedyogi,
    "fedadagrad": fedopt.fedadagrad,
    "scaffold": scaffold.scaffold,
    "feddyn": feddyn.feddyn,
    "fednova": fednova.fednova,
    "cocofl_width": cocofl_width.cocofl_width,
    "heterofl": heterofl.heterofl,
    "fedrolex": fedrolex.fedrolex,
    "fjord": fjord.fjord,
    "federated_dropout": federated_dropout.federated_dropout,
    "depthfl": depthfl.depthfl,
    "slt": slt.slt,
    "fedper": fedper.fedper,
    "fedrep": fedrep.fedrep,
    "fedbn": fedbn.fedbn,
    "ditto": ditto.ditto,
    "local": local.local,
}
