"""The algorithms, one file a paper; `BY_NAME` maps each name to its factory."""

from fljax.algorithms import centralized, cocofl, fedavg, fedavg_drop

BY_NAME = {
    "cocofl": cocofl.cocofl,
    "fedavg": fedavg.fedavg,
    "fedavg_drop": fedavg_drop.fedavg_drop,
    "centralized": centralized.centralized,
}
