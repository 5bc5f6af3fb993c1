"""Builds an experiment from its configuration: library calls only."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fljax import (
    algorithms,
    bounds,
    models,
    notation,
    policies,
    tasks,
    types,
)
from fljax.algorithms import base, centralized, cocofl, fedavg_drop, private
from fljax.data import augment, checks, load, partition, skewed
from fljax.devices import arrivals, fleet
from fljax.engine import (
    client,
    federation,
    width,
)
from fljax.experiment import (
    client_evaluation,
    environment,
    evaluating,
    facts,
    fits,
    fleets,
    progress,
)
from fljax.experiment import config as configs
from fljax.nn import network
from fljax.plans import cost_model, costs, typical
from fljax.runs import guard, simulation, weights
from fljax.runtime import memory, mesh, programs
from fljax.updates import aggregates, attacks, codecs, learning_rate, secure_sum

# Settings that nothing is built from: one experiment serves all their values.
FREE = ("algorithm", "policy", "rounds", "rollback")


Make = Callable[[federation.Federation], base.Algorithm]


class Own(NamedTuple):
    """What was given in Python, instead of by a name in the settings; None: it was not.

    Attributes:
      data: the data set.
      net: the network.
      algorithm: (federation) -> the algorithm.
    """

    data: types.Dataset | None = None
    net: network.Network | None = None
    algorithm: Make | None = None


_NOTHING = Own()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What is ready to run, and the settings that it was built from.

    Attributes:
      settings: of the run; may differ from `built_from` in what is `FREE` alone, as in
        `dataclasses.replace(ready, settings=...)`.
      built_from: the settings that the rest was built from.
      federation: the clients, shared by all algorithms of a comparison.
      evaluator: of the global network.
      facts: what the settings left open, for `config.json`.
      notes: a line for each thing about the data that the user should know.
      tokenizer: that made tokens of the data, if they are of a trained one.
      own: what was given in Python.
    """

    settings: configs.Config
    built_from: configs.Config
    federation: federation.Federation
    evaluator: simulation.Evaluator
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    tokenizer: bytes | None = None
    own: Own = _NOTHING

    def __post_init__(self) -> None:
        """Refuse settings that it was not built from."""
        configs.check(self.settings)
        for name, was, now in unlike(self.built_from, self.settings):
            raise ValueError(
                f"--{name}: expected {was!r}, which the experiment was built with, got "
                f"{now!r}; build it again"
            )


def unlike(one: configs.Config, two: configs.Config) -> list[tuple[str, Any, Any]]:
    """Lists in what settings differ of which something is built: name and both."""
    names = [n for n in sorted(configs.fields()) if n.partition(".")[0] not in FREE]
    values = [(n, configs.get(one, n), configs.get(two, n)) for n in names]
    return [(name, was, now) for name, was, now in values if was != now]


TOKENIZER = "vocabulary.json"  # in a run folder


def _numbers(flag: str, given: tuple[float, ...], otherwise: np.ndarray) -> np.ndarray:
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


def _task(config: configs.Config, data: types.Dataset | None) -> tasks.Task:
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


def _load(
    config: configs.Config, task: tasks.Task, workdir: Any, cache: str
) -> types.Dataset:
    """Loads `config.dataset`, with the tokenizer that a run folder holds."""
    held = pathlib.Path(workdir, TOKENIZER) if workdir else None
    options = load.Options(
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
        return load.load(config.dataset, options, watch)


def _network(
    config: configs.Config, data: types.Dataset, task: tasks.Task
) -> network.Network:
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


def _augment(config: configs.Config, net: network.Network):
    if config.augment != "none" and len(net.input_shape) != 3:
        raise ValueError(
            f"--augment={config.augment}: expected images, got examples of shape "
            f"{list(net.input_shape)}"
        )
    return augment.BY_NAME[config.augment]


def _streams(config: configs.Config, data: types.Dataset) -> bool:
    """Tells whether training data stay in host memory."""
    if config.data_memory != "auto":
        return config.data_memory == "host"
    return data.x_train.nbytes + data.y_train.nbytes > memory.of_device() / 2


def _data(config: configs.Config, data: types.Dataset, devices: Mesh):
    """Normalizes training and test data, and puts them where they are to lie."""
    mean, std = load.normalization(data)
    if data.vocabulary is not None and (config.mean or config.std):
        raise ValueError("--mean and --std: expected none for tokens, got some")
    statistics = (
        _numbers("mean", config.mean, mean),
        _numbers("std", config.std, std),
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


def _table(config: configs.Config, net, counts) -> costs.CostTable:
    if not config.cost_table:
        with configs.naming("device_class"):
            made = config.device_class
            return cost_model.from_counts(counts, config.batch_size, made)
    with configs.naming("cost_table"):
        table = costs.load(config.cost_table)
    if table.num_blocks != net.num_blocks:
        raise ValueError(
            f"--cost_table: expected a table of {net.name}'s {net.num_blocks} blocks, "
            f"got one of {table.num_blocks} in {config.cost_table}"
        )
    return table


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
    net: network.Network | None = None,
    algorithm: Make | None = None,
    *,
    workdir: str | os.PathLike[str] | None = None,
    cache: str = "",
) -> Experiment:
    """Loads data and makes everything that does not depend on the algorithm.

    Args:
      config: of the run.
      data: instead of loading `config.dataset`.
      net: instead of `config.network`.
      algorithm: (federation) -> algorithm, instead of `config.algorithm`.
      workdir: run folder whose vocabulary is to be used, if it has one.
      cache: folder that keeps decoded data; empty: none.

    Returns:
      The experiment.

    Raises:
      ValueError: one line that names the flag or file, what was expected and what
        came.
    """
    configs.check(config)
    environment.check()
    kept = programs.keep_at_home()
    given, task = Own(data, net, algorithm), _task(config, data)
    own = facts.own(config, data)
    if data is None:
        data = _load(config, task, workdir, cache)
    else:
        data = checks.made_by_hand(data, task.check)
    if net is None:
        net = _network(config, data, task)
    else:
        network.check(net, data, task.positions)
        own["network"] = f"{net.name} ({facts.OWN})"
    if data.task is not None:
        tasks.check_traced(task, net, data)
    start = _pretrained(config, net)
    parts = split(config, data)
    shards = partition.index_table(parts)
    made = fleets.make(config, len(parts))
    over = _mesh(config.devices)
    train_data, test_data = _data(config, data, over)
    fed = _federation(config, net, (train_data, task), (shards, made), over)
    fed = fed.having(pretrained=start.found)
    shares = evaluating.shares_of(config, task, data, parts, len(made.known_as))
    each = client_evaluation.who(config, task, data, parts)
    evaluator = evaluating.evaluator(config, fed, test_data, (shares, each))
    return Experiment(
        settings=config,
        built_from=config,
        federation=fed,
        evaluator=evaluator,
        facts=facts.of(config, fed, data) | dict(start.facts) | own,
        notes=(
            *start.notes,
            *filter(None, [kept, fleets.note(made, config.seed)]),
            *checks.notes(data, task.classes),
            *_scale_notes(config, data),
            *_small(config, fed, len(data.y_test)),
            *client_evaluation.notes(each, len(parts)),
        ),
        tokenizer=data.tokenizer,
        own=given,
    )


class _Start(NamedTuple):
    """What the network starts from, beside what is drawn."""

    found: Mapping[str, np.ndarray] | None = None
    facts: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()


def _pretrained(config: configs.Config, net: network.Network) -> _Start:
    """Reads what --init names.

    Raises:
      ValueError: there is no such file, or it does not fit the network.
    """
    if not config.init:
        return _Start()
    with configs.naming("init"):
        tensors = weights.read(config.init)
        found = weights.chosen(config.init, net, tensors, config.init_head)
    facts: dict[str, Any] = {"init_sha256": weights.digest(tensors)}
    if config.init_head and not any(weights.of_head(net, name) for name in found):
        note = f"--init: the head of {net.num_classes} classes is drawn: the file's is"
        return _Start(found, facts, (f"{note} of another number",))
    return _Start(found, facts)


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


def _federation(config, net, data, clients, over: Mesh) -> federation.Federation:
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
        federation.Model(net, counts, _table(config, net, counts), config.device_class),
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


def _scale_notes(config: configs.Config, data: types.Dataset) -> list[str]:
    """Says where --mean and --std are of other units than the data."""
    if not (config.mean or config.std) or data.vocabulary is not None:
        return []
    mean, std = load.normalization(data)
    given = (
        _numbers("mean", config.mean, mean),
        _numbers("std", config.std, std),
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


def _small(config: configs.Config, fed: federation.Federation, size: int) -> list[str]:
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


def algorithm(ready: Experiment) -> base.Algorithm:
    """Makes the configured algorithm.

    Raises:
      ValueError: its devices cannot run it.
    """
    config, fed = ready.settings, ready.federation
    fits.rounds(seen_by(ready))
    fits.buffer(fed)
    fed = private.replaced(fed, config.rounds)
    made = _algorithm(config, fed, ready.own.algorithm)
    if config.privacy.clip and "privacy" not in made.parts:
        raise ValueError(
            "--privacy.clip: expected an algorithm made by fljax.averaging, which "
            "clips and adds noise, got one of your own without it"
        )
    fits.kept(config, fed, made)
    return made


def _algorithm(
    config: configs.Config, fed: federation.Federation, own: Make | None
) -> base.Algorithm:
    """Makes the algorithm of the settings, or one's own.

    Raises:
      ValueError: its devices cannot run it.
    """
    if own is not None:
        return _made(own, fed)
    if config.algorithm == "cocofl" and fed.model.net.num_blocks == 1:
        raise ValueError(
            f"--network: expected one of two blocks or more for --algorithm=cocofl, "
            f"which freezes some of them, got {fed.model.net.name!r}, whose only block "
            f"is always trained; take --algorithm=fedavg"
        )
    if config.algorithm == "cocofl":
        with fleets.naming(config):
            policy = policies.BY_NAME[config.policy]
            return cocofl.cocofl(fed, config.frozen.bits, policy)
    if config.algorithm == "fedavg_drop":
        with fleets.naming(config):
            return fedavg_drop.fedavg_drop(fed)
    with configs.naming("algorithm"):
        return notation.make(config.algorithm, algorithms.BY_NAME, fed)


def _made(make: Make, fed: federation.Federation) -> base.Algorithm:
    """Makes an algorithm of the user's own."""
    made = make(fed)
    if not isinstance(made, base.Algorithm):
        raise ValueError(
            f"algorithm: expected a function of the federation that returns a "
            f"fljax.Algorithm, got one that returns a {type(made).__name__}"
        )
    return made


def rollback(ready: Experiment) -> guard.Guard | None:
    """Makes the configured guard; None: there is none."""
    wanted = ready.settings.rollback
    devices = ready.federation.population.fleet
    if not wanted.asked_for:
        return None
    return guard.Guard(
        **dataclasses.asdict(wanted),
        tiers=devices.known_as,
        tier_index=fleet.sorted_at(devices, ready.federation.seed, 0),
        measure=ready.federation.training.task.measure,
    )


def resolved(ready: Experiment, made: base.Algorithm | None = None) -> dict[str, Any]:
    """Gives the settings as plain data, with what they left open.

    Args:
      ready: the experiment.
      made: its algorithm, if that is made already.

    Returns:
      What a run folder holds of the run.

    Raises:
      ValueError: an algorithm of the user's own, or what it is made of, has no name.
    """
    named = {**dataclasses.asdict(ready.settings), **ready.facts}
    if ready.own.algorithm is not None:
        named["algorithm"] = f"{_full_name(ready.own.algorithm)} ({facts.OWN})"
    parts = (made or algorithm(ready)).parts
    return named | {f"parts.{part}": _part(part, parts[part]) for part in parts}


def _part(name: str, part: Any) -> str:
    """Names a part of an algorithm.

    Raises:
      ValueError: its repr is of this process alone, or that of others as well.
    """
    if callable(part) and not dataclasses.is_dataclass(part):
        return _full_name(part)
    if re.search(r" at 0x[0-9a-f]+|<lambda>|<locals>", repr(part)):
        raise ValueError(
            f"{name}: expected one that a run folder can tell from others, got "
            f"{bounds.shown(part)}; define it outside of functions, as a frozen "
            f"dataclass of numbers, texts and dataclasses"
        )
    return repr(part)


def name(ready: Experiment) -> str:
    """Gives the algorithm's name, to be shown."""
    if ready.own.algorithm is None:
        return ready.settings.algorithm
    return getattr(ready.own.algorithm, "__name__", "algorithm")


def _full_name(make: Make) -> str:
    """Names a function of the user's by its module and its name there.

    Raises:
      ValueError: it has none, so that a run folder could not tell it from another.
    """
    module = getattr(make, "__module__", None)
    found = getattr(make, "__qualname__", "")
    if not module or not found or "<" in found:
        raise ValueError(
            f"algorithm: expected a function with a name of its own for a run folder, "
            f"got {found or type(make).__name__!r}; define it with def outside of "
            f"other functions, or give it a __qualname__"
        )
    return f"{module}.{found}"


def seen_by(ready: Experiment) -> federation.Federation:
    """Gives the federation as the algorithm has it: centralized pools the clients."""
    named = ready.own.algorithm is None
    pooled = named and ready.settings.algorithm == "centralized"
    return centralized.pooled(ready.federation) if pooled else ready.federation
