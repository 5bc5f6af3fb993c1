"""The network of an experiment: by name, with its costs, and what it starts from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fljax import models, tasks, types
from fljax.experiment import config as configs
from fljax.nn import network
from fljax.plans import cost_model, costs
from fljax.runs import weights


def named(
    config: configs.Config, data: types.Dataset, task: tasks.Task
) -> network.Network:
    """Makes the network that `config.network` names, for the data.

    Raises:
      ValueError: it is not for such data, or for such a task.
    """
    make: Any = models.BY_NAME[config.network]
    running = config.norm_statistics == "running"
    parameters = inspect.signature(make).parameters
    if (data.vocabulary is not None) != ("vocabulary" in parameters):
        kind = "numbers" if data.vocabulary is None else "tokens"
        raise ValueError(
            f"--network: expected one for {kind}, which {config.dataset!r} is made of, "
            f"got {config.network!r}"
        )
    if task.positions and "positions" not in parameters:
        raise ValueError(
            f"--network: expected transformer or char_transformer for task {task!r}, "
            f"which wants an output at every position, got {config.network!r}"
        )
    options = {"tracked": running, "vocabulary": data.vocabulary}
    options["reference_quirks"] = config.frozen.reference_quirks
    options["positions"] = task.positions
    taken = {name: value for name, value in options.items() if name in parameters}
    with configs.naming("network"):
        return make(data.x_train.shape[1:], data.num_classes, **taken)


def table(config: configs.Config, net, counts) -> costs.CostTable:
    """Gives the cost table of a network: measured, of a file, or modeled.

    Raises:
      ValueError: the file is none, or of another network.
    """
    if not config.cost_table:
        with configs.naming("device_class"):
            made = config.device_class
            return cost_model.from_counts(counts, config.batch_size, made)
    with configs.naming("cost_table"):
        measured = costs.load(config.cost_table)
    if measured.num_blocks != net.num_blocks:
        raise ValueError(
            f"--cost_table: expected a table of {net.name}'s {net.num_blocks} blocks, "
            f"got one of {measured.num_blocks} in {config.cost_table}"
        )
    return measured


class Start(NamedTuple):
    """What the network starts from, beside what is drawn."""

    found: Mapping[str, np.ndarray] | None = None
    facts: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()


def pretrained(config: configs.Config, net: network.Network) -> Start:
    """Reads what --init names.

    Raises:
      ValueError: there is no such file, or it does not fit the network.
    """
    if not config.init:
        return Start()
    with configs.naming("init"):
        tensors = weights.read(config.init)
        found = weights.chosen(config.init, net, tensors, config.init_head)
    facts: dict[str, Any] = {"init_sha256": weights.digest(tensors)}
    if config.init_head and not any(weights.of_head(net, name) for name in found):
        note = f"--init: the head of {net.num_classes} classes is drawn: the file's is"
        return Start(found, facts, (f"{note} of another number",))
    return Start(found, facts)
