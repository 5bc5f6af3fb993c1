"""The workloads of the bench: federations on random data, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fljax import experiment, types
from fljax.data import partition
from fljax.experiment import config as configs
from fljax.runtime import mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A federation on random data.

    Attributes:
      shape: of an example.
      classes: number of classes.
      examples: of every client.
      test_examples: of the test set.
      eval_every: rounds between evaluations; 0: none.
      fields: of the configuration, by the names of their flags.
    """

    shape: tuple[int, ...]
    classes: int = 10
    examples: int
    test_examples: int = 1000
    eval_every: int = 0
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


_MOBILENET = _fields("mobilenetv2", 100, 10, 32)
BY_NAME = {
    "small_cnn": Workload(
        shape=(32, 32, 3), examples=500, fields=_fields("cnn", 100, 10, 32)
    ),
    "logistic": Workload(
        shape=(28, 28, 1), examples=50, fields=_fields("logistic", 1000, 50, 10)
    ),
    "mobilenetv2": Workload(shape=(32, 32, 3), examples=500, fields=_MOBILENET),
    "mobilenetv2_cocofl": Workload(
        shape=(32, 32, 3), examples=500, fields=_MOBILENET | {"algorithm": "cocofl"}
    ),
    "mobilenetv2_cocofl_100": Workload(
        shape=(32, 32, 3),
        examples=128,
        fields=_MOBILENET | {"algorithm": "cocofl", "clients_per_round": 100},
    ),
    "pfl_cifar10": Workload(
        shape=(32, 32, 3),
        examples=50,
        test_examples=10_000,
        eval_every=10,
        fields=_fields("cnn_dropout", 1000, 50, 10),
    ),
    "femnist_cnn": Workload(
        shape=(28, 28, 1),
        classes=62,
        examples=200,
        fields=_fields("cnn_dropout", 3400, 10, 20),
    ),
}


def config(load: Workload, **fields: Any) -> configs.Config:
    """Makes the configuration of a workload, some fields given here.

    Raises:
      ValueError: a field is wrong.
    """
    settings = {**load.fields, "eval_every": load.eval_every or 1, **fields}
    made = configs.replace(configs.Config(), settings)
    configs.check(made)
    return made


def random_data(load: Workload, examples: int) -> types.Dataset:
    """Draws a data set of the workload's shape, classes in turn."""
    generator = np.random.default_rng(0)

    def draw(size):
        x = generator.integers(0, 256, (size, *load.shape), np.uint8)
        return x, (np.arange(size) % load.classes).astype(np.int32)

    (x_train, y_train), (x_test, y_test) = draw(examples), draw(load.test_examples)
    return types.Dataset(x_train, y_train, x_test, y_test, load.classes)


def build(load: Workload, settings: configs.Config) -> experiment.Experiment:
    """Makes the experiment: as many examples as the clients hold."""
    examples = settings.num_clients * load.examples
    return experiment.build(settings, random_data(load, examples))


def build_population(load: Workload, settings: configs.Config, examples: int):
    """Makes a federation whose many clients share few examples.

    Args:
      load: the workload.
      settings: its `num_clients` is the population.
      examples: of the data set; every client holds some of them, drawn at random.

    Returns:
      The federation.
    """
    population = settings.num_clients
    few = dataclasses.replace(settings, num_clients=settings.clients_per_round)
    fed = experiment.build(few, random_data(load, examples)).federation
    generator = np.random.default_rng(1)
    sizes = np.full(population, load.examples)
    order = generator.integers(0, examples, sizes.sum(), np.int32)
    shards = partition.index_table(partition.Split(order, sizes))
    shards = shards._replace(indices=mesh.replicate(fed.layout.devices, shards.indices))
    devices = fed.population.fleet._replace(row=np.zeros(population, np.int32))
    return fed.having(shards=shards, fleet=devices)
