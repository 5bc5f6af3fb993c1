"""The federation of an experiment: how clients train, how the server goes about it."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from fljax import notation, policies, tasks
from fljax.algorithms import cocofl
from fljax.data import augment
from fljax.devices import arrivals
from fljax.engine import client, federation, width
from fljax.experiment import config as configs
from fljax.experiment.building import networks
from fljax.nn import network
from fljax.plans import typical
from fljax.runtime import mesh
from fljax.updates import aggregates, attacks, codecs, learning_rate, secure_sum


def mesh_of(devices: str) -> Mesh:
    """Makes the mesh of --devices."""
    there = jax.devices()
    if devices == "all":
        return mesh.make(there)
    if jax.process_count() > 1:
        raise ValueError(f"--devices: expected all on several hosts, got {devices!r}")
    if not devices.isdecimal() or not 1 <= int(devices) <= len(there):
        raise ValueError(
            f"--devices: expected all or a number from 1 to {len(there)}, the devices "
            f"at hand, got {devices!r}"
        )
    return mesh.make(there[: int(devices)])


def _augment(config: configs.Config, net: network.Network):
    """Gives what --augment does to images."""
    if config.augment != "none" and len(net.input_shape) != 3:
        raise ValueError(
            f"--augment={config.augment}: expected images, got examples of shape "
            f"{list(net.input_shape)}"
        )
    return augment.BY_NAME[config.augment]


def _training(
    config: configs.Config, net: network.Network, task: tasks.Task
) -> client.Training:
    """Says how clients train."""
    if config.precision != "float32" and net.vocabulary is not None:
        raise ValueError(
            f"--precision: expected float32 for network {net.name!r}, which reads "
            f"tokens, got {config.precision!r}"
        )
    rule: Any = config.client_optimizer  # names that config.check lets through
    precision: Any = config.precision
    return client.Training(
        batch_size=config.batch_size,
        local_epochs=config.local_epochs,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        rule=rule,
        spec=config.frozen.spec,
        augment=_augment(config, net),
        precision=precision,
        task=task,
    )


def make(config, net, data, clients, over: Mesh) -> federation.Federation:
    """Puts together what does not depend on the algorithm.

    Args:
      config: of the run.
      net: the network.
      data: of training, where it is to lie, and what its labels mean.
      clients: their shards and their devices.
      over: the mesh.

    Returns:
      The federation.
    """
    (data, task), (shards, made) = data, clients
    streams = not isinstance(data.x, jax.Array)
    if not streams:
        shards = shards._replace(indices=mesh.replicate(over, shards.indices))
    training = _training(config, net, task)
    counts = network.counts(net, config.frozen.reference_quirks)
    selection = notation.make(config.selection, policies.SELECTIONS)
    everybody = len(shards.counts)
    cohort = selection.most(config.clients_per_round, everybody)
    most = arrivals.most_arrivals(config.clock, cohort, everybody)
    share = -(-config.clients_per_round // over.size)
    real = client.fitting(training, int(shards.counts.max()))
    fit = width.default_width(counts, real, share)
    beside = min(config.client_width or fit, -(-most // over.size))
    fed = federation.Federation(
        federation.Population(
            data,
            shards,
            made,
            config.failures,
            config.table_error,
        ),
        federation.Model(
            net, counts, networks.table(config, net, counts), config.device_class
        ),
        training,
        federation.Rules(
            config.clients_per_round,
            learning_rate.steps(config.lr, config.lr_schedule, config.lr_warmup),
            config.server_lr,
            config.weighting,
            config.clock,
            config.norm_bound,
            codecs.read(config.codec),
            notation.make(config.aggregate, aggregates.BY_NAME),
            selection,
            attack=attacks.read(config.attack),
            secure_sum=secure_sum.read(config.secure_sum),
            privacy=config.privacy if config.privacy.clip else None,
        ),
        federation.Layout(over, beside, config.programs == "one", streams),
        config.seed,
    )
    if not config.max_windows:
        return fed
    known = cocofl.setting(fed)
    with configs.naming("max_windows"):
        few = typical.restrict(
            fed.model.table, known.typical, known.lowest, config.max_windows
        )
    return fed.having(table=few)
