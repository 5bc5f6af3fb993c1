"""What the user should know of an experiment that was built."""

from __future__ import annotations

import jax
import numpy as np

from fljax import types
from fljax.data import load
from fljax.engine import federation
from fljax.experiment import config as configs
from fljax.experiment.building import examples
from fljax.nn import network


def scales(config: configs.Config, data: types.Dataset) -> list[str]:
    """Says where --mean and --std are of other units than the data."""
    if not (config.mean or config.std) or data.vocabulary is not None:
        return []
    mean, std = load.normalization(data)
    given = (
        examples.scale_of("mean", config.mean, mean),
        examples.scale_of("std", config.std, std),
    )
    means, deviations = (mean - given[0]) / given[1], std / given[1]
    if np.abs(means).max() < 10 and 0.1 < deviations.min() <= deviations.max() < 10:
        return []
    unit = "255ths" if data.x_train.dtype == np.uint8 else "the units of the data"
    return [
        f"--mean and --std bring inputs to means of {_list(means)} and deviations of "
        f"{_list(deviations)}; they count in {unit}"
    ]


def _list(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers.tolist())


FEWEST = 16  # examples whose statistics a norm can go by


def few_tested(
    config: configs.Config, fed: federation.Federation, size: int
) -> list[str]:
    """Says where evaluation goes by the statistics of few of `size` test examples."""
    batch = min(config.eval_batch_size, size)
    least = size % batch or batch
    if config.norm_statistics == "running" or least >= FEWEST:
        return []
    state = jax.eval_shape(lambda: network.init(fed.model.net, jax.random.key(0)))
    if not any(jax.tree.leaves(block["norms"]) for block in state):
        return []
    few = f"{least} example{'s' * (least > 1)}"
    which = "batches" if least == batch else "its last batch"
    return [
        f"evaluation goes by the statistics of {which} of {few}, which say little "
        f"below {FEWEST}: --norm_statistics=running takes those of training, "
        f"--eval_batch_size other batches"
    ]
