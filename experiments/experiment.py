"""Builds an experiment from its configuration and runs it: library calls only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import config as configs
from experiments import progress
from fljax import (
    alerts,
    algorithms,
    arrivals,
    augment,
    client,
    clock,
    cost_model,
    costs,
    devices,
    evaluate,
    failures,
    federation,
    fleet,
    fleet_sources,
    guard,
    mesh,
    models,
    policies,
    quant,
    simulation,
    types,
    typical,
    width,
    writers,
)
from fljax.algorithms import base, centralized, cocofl
from fljax.data import checks, load, partition
from fljax.models import network


class Experiment(NamedTuple):
    """What is ready to run.

    Attributes:
      federation: the clients, shared by all algorithms of a comparison.
      evaluator: of the global network.
      dataset_sha256: of the data, as training and evaluation see them.
      tokenizer: that made tokens of the data, if they are of a trained one.
    """

    federation: federation.Federation
    evaluator: simulation.Evaluator
    dataset_sha256: str
    tokenizer: bytes | None = None


TOKENIZER = "vocabulary.json"  # in a run folder


def _numbers(flag: str, text: str, channels: int, otherwise: np.ndarray) -> np.ndarray:
    """Reads --mean or --std."""
    if not text:
        return otherwise
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        values = np.full(0, np.nan, np.float32)
    low = 0 if flag == "std" else -np.inf
    if values.shape != (channels,) or not np.all(np.isfinite(values) & (values > low)):
        raise ValueError(
            f"--{flag}: expected {channels} number{'s' * (channels > 1)}, one for each "
            f"channel of the data, got {text!r}"
        )
    return values


def _load(config: configs.Config, workdir: str | None, cache: str) -> types.Dataset:
    """Loads `config.dataset`, with the tokenizer that a run folder holds."""
    held = pathlib.Path(workdir, TOKENIZER) if workdir else None
    options = load.Options(
        image_size=config.image_size,
        image_mode=config.image_mode,
        test_share=config.test_share,
        max_tokens=config.max_tokens,
        vocabulary_size=config.vocabulary_size,
        tokenizer=held.read_bytes() if held and held.is_file() else None,
        seed=config.seed,
        cache=cache,
    )
    with configs.naming("dataset"), progress.Loading() as watch:
        return load.load(config.dataset, options, watch)


def _network(config: configs.Config, data: types.Dataset) -> network.Network:
    make: Any = models.BY_NAME[config.network]
    running = config.norm_statistics == "running"
    parameters = inspect.signature(make).parameters
    if (data.vocabulary is not None) != ("vocabulary" in parameters):
        kind = "numbers" if data.vocabulary is None else "tokens"
        raise ValueError(
            f"--network: expected one for {kind}, which {config.dataset!r} is made of, "
            f"got {config.network!r}"
        )
    options = {"tracked": running, "vocabulary": data.vocabulary}
    options["reference_quirks"] = config.reference_quirks
    taken = {name: value for name, value in options.items() if name in parameters}
    with configs.naming("network"):
        return make(data.x_train.shape[1:], data.num_classes, **taken)


def _augment(config: configs.Config, data: types.Dataset):
    if config.augment != "none" and data.x_train.ndim != 4:
        raise ValueError(
            f"--augment={config.augment}: expected images, got examples of shape "
            f"{list(data.x_train.shape[1:])}"
        )
    return augment.BY_NAME[config.augment]


def _data(config: configs.Config, data: types.Dataset, devices: Mesh):
    """Puts training and test data on the devices."""
    mean, std = load.normalisation(data)
    if data.vocabulary is not None and (config.mean or config.std):
        raise ValueError("--mean and --std: expected none for tokens, got some")
    channels = len(mean)
    statistics = (
        _numbers("mean", config.mean, channels, mean),
        _numbers("std", config.std, channels, std),
    )
    return tuple(
        mesh.replicate(devices, client.Data(x, y, *statistics))
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
    )


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
        if config.partition == "iid":
            return partition.iid(labels, n, seed)
        make = {
            "dirichlet": partition.dirichlet,
            "resource_correlated": partition.resource_correlated,
        }[config.partition]
        return make(labels, n, config.alpha, seed)


def _tiers(config: configs.Config) -> tuple[devices.Tier, ...]:
    with _naming_tiers(config):
        if config.tiers_file:
            return devices.load_tiers(config.tiers_file)
        if config.tiers:
            return devices.parse_tiers(config.tiers)
    return devices.REFERENCE_TIERS


def _fleet(config: configs.Config, num_clients: int) -> fleet.Fleet:
    """Makes the devices of --fleet and how they change."""
    kind, _, rest = config.fleet.partition(":")
    if (config.tiers or config.tiers_file) and kind != "tiers":
        raise ValueError(
            f"--tiers and --tiers_file: expected with --fleet=tiers, got "
            f"{config.fleet!r}"
        )
    changes = configs.settings("changes", config.changes, fleet.Changes)
    if config.fleet == "tiers":
        return fleet.of_tiers(num_clients, _tiers(config))._replace(changes=changes)
    with configs.naming("fleet"):
        if kind == "lognormal":
            made = fleet_sources.lognormal(num_clients, config.seed, *_floats(rest))
        elif kind == "file" and rest:
            made = fleet_sources.load(rest, num_clients)
        else:
            raise ValueError(
                "expected tiers, lognormal:COMPUTE:BANDWIDTH:MEMORY or file:PATH, got "
                f"{config.fleet!r}"
            )
    return made._replace(changes=changes)


def _floats(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(":")] if text else []
    except ValueError:
        values = [np.nan]
    if len(values) > 3 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"expected up to three numbers, such as lognormal:.5:.5:.3, got {text!r}"
        )
    return values


def _naming_tiers(config: configs.Config):
    if config.fleet != "tiers":
        return configs.naming("fleet")
    return configs.naming("tiers_file" if config.tiers_file else "tiers")


def _table(config: configs.Config, net, counts) -> costs.CostTable:
    if not config.cost_table:
        with configs.naming("device_class"):
            made = config.device_class
            return cost_model.from_counts(counts, config.batch_size, made)
    table = costs.load(config.cost_table)
    if table.num_blocks != net.num_blocks:
        raise ValueError(
            f"--cost_table: expected a table of {net.name}'s {net.num_blocks} blocks, "
            f"got one of {table.num_blocks} in {config.cost_table}"
        )
    return table


def _spec(config: configs.Config) -> quant.Spec:
    base = {
        "default": quant.DEFAULT,
        "reference": quant.REFERENCE,
        "none": quant.FLOAT,
    }[config.fixed_point]
    rounding: Any = config.rounding  # one of the names that config.check lets through
    quirks = config.reference_quirks
    if base.gradient_place == "product" and not quirks:
        base = dataclasses.replace(base, gradient_place="input")
    if config.weight_scales != "own":
        base = dataclasses.replace(base, per_channel=config.weight_scales == "channel")
    return dataclasses.replace(
        base, bits=config.bits, rounding=rounding, reference_quirks=quirks
    )


def _learning_rate(config: configs.Config):
    steps, rising = configs.schedule(config), max(config.lr_warmup, 1)

    def rate(index: int) -> float:
        risen = min((index + 1) / rising, 1.0)
        return config.lr * risen * 0.1 ** sum(index >= step for step in steps)

    return rate


def _mesh(devices: str) -> Mesh:
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


def build(
    config: configs.Config,
    data: types.Dataset | None = None,
    workdir: str | None = None,
    cache: str = "",
    net: network.Network | None = None,
) -> Experiment:
    """Loads data and makes everything that does not depend on the algorithm.

    Args:
      config: of the run.
      data: instead of loading `config.dataset`.
      workdir: run folder whose vocabulary is to be used, if it has one.
      cache: folder that keeps decoded data; empty: none.
      net: instead of `config.network`.

    Returns:
      The experiment.

    Raises:
      ValueError: one line that names the flag or file, what was expected and what
        came.
    """
    configs.check(config)
    data = _load(config, workdir, cache) if data is None else checks.made_by_hand(data)
    net = net or _network(config, data)
    running = config.norm_statistics == "running"
    parts = split(config, data)
    shards = partition.index_table(parts)
    made = _fleet(config, len(parts))
    if config.precision != "float32" and net.vocabulary is not None:
        raise ValueError(
            f"--precision: expected float32 for network {net.name!r}, which reads "
            f"tokens, got {config.precision!r}"
        )
    rule: Any = config.client_optimizer  # names that config.check lets through
    precision: Any = config.precision
    training = client.Training(
        batch_size=config.batch_size,
        local_epochs=config.local_epochs,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        rule=rule,
        spec=_spec(config),
        augment=_augment(config, data),
        precision=precision,
    )
    over = _mesh(config.devices)
    train_data, test_data = _data(config, data, over)
    counts = network.counts(net, config.reference_quirks)
    rules = configs.settings("clock", config.clock, clock.Clock)
    most = arrivals.most_arrivals(rules, config.clients_per_round)
    share = -(-config.clients_per_round // over.size)
    real = client.fitting(training, shards.indices.shape[1])
    fit = width.default_width(counts, real, share)
    beside = min(config.client_width or fit, -(-most // over.size))
    fed = federation.Federation(
        federation.Population(
            train_data,
            shards,
            made,
            configs.settings("failures", config.failures, failures.Rates),
            config.table_error,
        ),
        federation.Model(net, counts, _table(config, net, counts)),
        training,
        federation.Rules(
            config.clients_per_round,
            _learning_rate(config),
            config.server_lr,
            config.weighting,
            rules,
            config.norm_bound,
        ),
        federation.Layout(over, beside, config.programs == "one"),
        config.seed,
    )
    if config.max_windows:
        known = cocofl.setting(fed)
        with configs.naming("max_windows"):
            few = typical.restrict(
                fed.model.table, known.typical, known.lowest, config.max_windows
            )
        fed = fed.having(table=few)
    counts_by_class = partition.class_counts(data.y_train, parts, data.num_classes)
    mixes = evaluate.tier_mixes(counts_by_class, made.tier, len(made.names))
    tested = np.unique(test_data.y)
    if not mixes[:, tested].any():
        raise ValueError(
            f"--dataset: {config.dataset}: expected a test set with classes of the "
            f"training set, got {tested.tolist()} there and "
            f"{np.unique(data.y_train).tolist()} here"
        )
    evaluator = _evaluator(config, fed, test_data, mixes, running)
    return Experiment(fed, evaluator, load.digest(data), data.tokenizer)


def _evaluator(config, fed, test_data, mixes, running) -> simulation.Evaluator:
    size, over = len(test_data.y), fed.layout.devices
    batch_size = min(config.eval_batch_size, size)
    order = evaluate.batches(size, batch_size, config.seed, over.size)
    batches = mesh.distribute(over, order)
    names = fed.population.fleet.names

    def scores(state: base.State) -> evaluate.Scores:
        blocks = mesh.replicate(over, state.server.blocks)
        return evaluate.evaluate(
            blocks,
            test_data,
            batches,
            net=fed.model.net,
            running=running,
            devices=over,
        )

    return simulation.Evaluator(
        scores,
        lambda sums: evaluate.summary(sums, mixes, names),
        config.eval_every,
        size,
    )


def algorithm(config: configs.Config, ready: Experiment) -> base.Algorithm:
    """Makes the configured algorithm.

    Raises:
      ValueError: its devices cannot run it.
    """
    fed = ready.federation
    everyone = len(fed.population.shards.counts)
    if fed.rules.clock.buffer > everyone:
        raise ValueError(
            f"--clock: expected a buffer of at most {everyone}, the number of clients, "
            f"got {fed.rules.clock.buffer}"
        )
    with _naming_tiers(config):
        if config.algorithm == "cocofl":
            policy = policies.BY_NAME[config.policy]
            return cocofl.cocofl(ready.federation, config.bits, policy)
        return algorithms.BY_NAME[config.algorithm](ready.federation)


def rollback(config: configs.Config, fed: federation.Federation) -> guard.Guard | None:
    """Makes the configured guard; None: there is none."""
    if not (config.rollback_drop or config.rollback_loss):
        return None
    return guard.Guard(
        accuracy_drop=config.rollback_drop,
        loss_factor=config.rollback_loss,
        window=config.rollback_window,
        lower=config.rollback_lowers,
        factor=config.rollback_factor,
        limit=config.rollback_limit,
        tiers=fed.population.fleet.names,
        tier_index=fed.population.fleet.tier,
    )


def resolved(config: configs.Config, ready: Experiment) -> dict[str, Any]:
    """Gives the configuration as plain data, with what its flags left open."""
    fed = ready.federation
    return (
        dataclasses.asdict(config)
        | {
            "num_clients": len(fed.population.shards.counts),
            "mean": fed.population.data.mean,
            "std": fed.population.data.std,
            "tiers": _described_tiers(config, fed),
            "fleet_sha256": _digest(fed.population.fleet),
            "clock": dataclasses.asdict(federation.clock(fed)),
            "dataset_sha256": ready.dataset_sha256,
            "cost_table": fed.model.table.source,
            "cost_table_sha256": _sha256(config.cost_table),
            "client_width": fed.layout.width,
            # A network may be one's own, whose name says nothing.
            "blocks_sha256": hashlib.sha256(
                _described(fed.model.net.blocks)
            ).hexdigest(),
        }
        | _own_prices(config)
    )


def _described(blocks: tuple) -> bytes:
    """Gives the repr of blocks without the addresses of what has no name."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(blocks)).encode()


def _own_prices(config: configs.Config) -> dict[str, str | None]:
    """Hashes the prices of a device class that lies in a file."""
    if not pathlib.Path(config.device_class).is_file():
        return {}
    return {"device_class_sha256": _sha256(config.device_class)}


def _sha256(path: str) -> str | None:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if path else None


def _described_tiers(config: configs.Config, fed) -> list:
    if config.fleet != "tiers":
        return list(fed.population.fleet.names)
    return [dataclasses.asdict(tier) for tier in _tiers(config)]


def _digest(devices: fleet.Fleet) -> str:
    """Hashes the devices' profiles, wherever they come from."""
    digest = hashlib.sha256()
    for array in (*devices.profile, devices.row, devices.tier_of_row):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def seen_by(config: configs.Config, ready: Experiment) -> federation.Federation:
    """Gives the federation as the algorithm has it: centralized pools the clients."""
    pooled = config.algorithm == "centralized"
    return centralized.pooled(ready.federation) if pooled else ready.federation


def describe(fed: federation.Federation) -> str:
    """Says in a line what a run trains, on whose data, and on which devices."""
    params = sum(count.params for count in fed.model.counts)
    there, counts = fed.layout.devices.devices, fed.population.shards.counts
    clients = f"{len(counts):,} client{'s' * (len(counts) > 1)}"
    beside = f"{fed.layout.width} client{'s' * (fed.layout.width > 1)}"
    return (
        f"{fed.model.net.name} of {params:,} parameters; {counts.sum():,} examples of "
        f"{clients}; on {there.size} x {there.flat[0].device_kind}, {beside} at a "
        f"time on each"
    )


def _keep_tokenizer(workdir: str, tokenizer: bytes | None) -> None:
    path = pathlib.Path(workdir, TOKENIZER)
    if tokenizer is not None and not path.exists():
        writers.replace_file(path, tokenizer)


def run(
    config: configs.Config,
    ready: Experiment,
    workdir: str | None,
    tensorboard: bool = True,
    checkpoint_every: int = 1,
    label: str | None = None,
    alert_command: str = "",
) -> list[simulation.Record]:
    """Runs one configuration with a progress bar; returns its records."""
    made = algorithm(config, ready)
    label = label or config.algorithm
    watch = rollback(config, ready.federation)
    first_host = jax.process_index() == 0
    shown = sys.stderr if first_host else io.StringIO()
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            progress.Progress(config.rounds, label=label, stream=shown)
        )
        hooks = simulation.Hooks(record=bar.update, message=bar.message)
        if alert_command and first_host:
            command = alerts.Command(alert_command, bar.message)
            hooks = hooks._replace(alert=stack.enter_context(command))

        def start(first: int) -> None:  # the folder is this run's by now
            if workdir is not None:
                _keep_tokenizer(workdir, ready.tokenizer)
            if first < config.rounds:
                bar.message(describe(seen_by(config, ready)))
            bar.start(first)

        hooks = hooks._replace(start=start)
        if config.algorithm == "cocofl":
            small = policies.too_small(
                ready.federation.model.table, ready.federation.population.fleet
            )
            if small.any():
                bar.message(
                    f"{small.sum()} of {len(small)} devices have less memory than any "
                    f"window needs: they drop out of every round"
                )
        if workdir is None:
            return simulation.run(made, config.rounds, ready.evaluator, hooks, watch)[1]
        return simulation.run_in_folder(
            made,
            config.rounds,
            ready.evaluator,
            workdir,
            resolved(config, ready),
            # Nothing but the order of sums; a stopped run goes on with more rollbacks.
            may_change=("client_width", "programs", "devices", "rollback_limit"),
            tensorboard=tensorboard,
            checkpoint_every=checkpoint_every,
            hooks=hooks,
            rollback=watch,
        )[1]
