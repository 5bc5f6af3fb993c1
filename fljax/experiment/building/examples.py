"""The data of an experiment: what labels mean, where examples lie, whose they are."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fljax import tasks, types
from fljax.data import load as loading
from fljax.data import partition, skewed
from fljax.engine import client
from fljax.experiment import config as configs
from fljax.experiment import progress
from fljax.runtime import memory, mesh

TOKENIZER = "vocabulary.json"  # in a run folder


def task_of(config: configs.Config, data: types.Dataset | None) -> tasks.Task:
    """Gives what labels mean: the task that comes with the data, or `config.task`.

    Raises:
      ValueError: what comes with the data is none, or has no classes to split by.
    """
    given = getattr(data, "task", None)
    if given is None:
        return tasks.named(config.task)
    if not isinstance(given, tasks.Task):
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        raise ValueError(
            f"data: expected task as an instance of a fljax.Task, got {kind}"
        )
    try:
        hash(given)
    except TypeError:
        raise ValueError(
            f"data: expected task as a dataclass(frozen=True), which can be hashed, "
            f"got {type(given).__name__}"
        ) from None
    if not given.classes and config.partition in configs.BY_CLASS:
        raise ValueError(
            f"--partition: expected iid or natural for task {given!r}, which has no "
            f"classes to split by, got {config.partition!r}"
        )
    return given


def load(
    config: configs.Config, task: tasks.Task, workdir: Any, cache: str
) -> types.Dataset:
    """Loads `config.dataset`, with the tokenizer that a run folder holds."""
    held = pathlib.Path(workdir, TOKENIZER) if workdir else None
    options = loading.Options(
        image_size=config.image_size,
        image_mode=config.image_mode,
        test_share=config.test_share,
        texts=config.text,
        tokenizer=held.read_bytes() if held and held.is_file() else None,
        seed=config.seed,
        cache=cache,
        check=task.check,
        one_hot=task.classes,
        columns=config.columns,
        following=task.positions,
    )
    with configs.naming("dataset"), progress.Loading() as watch:
        return loading.load(config.dataset, options, watch)


def scale_of(flag: str, given: tuple[float, ...], otherwise: np.ndarray) -> np.ndarray:
    """Gives --mean or --std, or what it is if none is given, [channels]."""
    if not given:
        return otherwise
    channels = len(otherwise)
    if len(given) != channels:
        raise ValueError(
            f"--{flag}: expected {channels} number{'s' * (channels > 1)}, one for each "
            f"channel of the data, got {','.join(map(str, given))!r}"
        )
    return np.array(given, np.float32)


def _streams(config: configs.Config, data: types.Dataset) -> bool:
    """Tells whether training data stay in host memory."""
    if config.data_memory != "auto":
        return config.data_memory == "host"
    return data.x_train.nbytes + data.y_train.nbytes > memory.of_device() / 2


def placed(config: configs.Config, data: types.Dataset, devices: Mesh):
    """Normalizes training and test data, and puts them where they are to lie."""
    mean, std = loading.normalization(data)
    if data.vocabulary is not None and (config.mean or config.std):
        raise ValueError("--mean and --std: expected none for tokens, got some")
    statistics = (
        scale_of("mean", config.mean, mean),
        scale_of("std", config.std, std),
    )
    train = client.Data(data.x_train, data.y_train, *statistics)
    test = client.Data(data.x_test, data.y_test, *statistics)
    if not _streams(config, data):
        train = mesh.replicate(devices, train)
    return train, mesh.replicate(devices, test)


def split(config: configs.Config, data: types.Dataset) -> partition.Split:
    """Deals the training examples out to the clients.

    Raises:
      ValueError: the partition cannot be made.
    """
    labels, n, seed = data.y_train, config.num_clients, config.seed
    if config.partition == "natural":
        if data.users is None:
            raise ValueError(
                f"--partition=natural: expected a data set with users, got "
                f"{config.dataset!r}, which has none"
            )
        parts = partition.natural(data.users)
        if config.clients_per_round > len(parts):
            raise ValueError(
                f"--clients_per_round: expected at most the {len(parts)} users of the "
                f"data, got {config.clients_per_round}"
            )
        return parts
    with configs.naming("num_clients"):
        partition.check_clients(n, len(labels))
    with configs.naming(f"partition={config.partition}"):
        match config.partition:
            case "dirichlet":
                return partition.dirichlet(labels, n, config.alpha, seed)
            case "resource_correlated":
                return partition.resource_correlated(labels, n, config.alpha, seed)
            case "inner_dirichlet":
                return skewed.inner_dirichlet(labels, n, config.alpha, seed)
            case "shard":
                return skewed.shard(labels, n, seed, config.shards_per_client)
            case "pathological":
                each, how = config.classes_per_client, config.class_assignment
                return skewed.pathological(labels, n, seed, each, how)
        return partition.iid(labels, n, seed)
