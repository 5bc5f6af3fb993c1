"""The configuration of an experiment: one frozen dataclass, with sections.

What most runs set is a field of its own; what belongs to a part of a run is that
part's dataclass in one field, as in

    Config(lr=0.1, clock=clock.Clock(deadline=0.9), frozen=specs.Frozen(bits=4))

Each field says beside its default what it may be; `check` adds what must hold between
them, in one clear line, before anything heavy starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fljax import algorithms, bounds, models, notation, policies, tasks
from fljax import devices as kinds
from fljax.data import augment, hub, load, skewed
from fljax.devices import arrivals, classes, fleet_sources
from fljax.devices import clock as clocks
from fljax.devices import failures as faults
from fljax.devices import fleet as fleets
from fljax.engine import per_client
from fljax.kernels import specs
from fljax.runs import guard
from fljax.updates import aggregates, attacks, codecs, secure_sum
from fljax.updates import privacy as privacies

BY_CLASS = (  # partitions that need class numbers
    *("dirichlet", "resource_correlated"),
    *("inner_dirichlet", "shard", "pathological"),
)
PARTITIONS = ("iid", *BY_CLASS, "natural")

_DEVIATION = bounds.of(fleets.Changes, "drift")  # of a logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What an experiment depends on; the help of each flag is its documentation."""

    algorithm: str = bounds.field(
        "cocofl",
        "cocofl, fedavg, fedavg_drop, centralized, fedprox:MU, fedavgm:BETA:NESTEROV, "
        "fedadam, fedyogi or fedadagrad:LR:B1:B2:TAU, scaffold:OPTION, feddyn:ALPHA, "
        "fednova:MU, heterofl, fedrolex, federated_dropout or fjord:LEVELS, "
        "slt:ROUNDS:LEVELS, cocofl_width, fedper:BLOCKS, fedrep:HEAD:BLOCKS, fedbn, "
        "ditto:PULL:EPOCHS or local; what follows a name may be left out, but for "
        "ROUNDS.",
    )
    network: str = bounds.field(
        "small_convnet",
        "mobilenetv2, mobilenetv2_gn, mobilenetv2_large, resnet18, resnet50, "
        "resnet20, resnet44, resnet56, densenet40, small_convnet, cnn, cnn_dropout, "
        "logistic, transformer or char_transformer.",
        choices=models.BY_NAME,
    )
    init: str = bounds.field(
        "",
        "A file .safetensors or a folder .orbax whose parameters the network starts "
        "from (fljax.export writes them); empty: they are drawn.",
    )
    init_head: bool = bounds.field(
        True,
        "With --init: the last block's as well, where the number of classes is the "
        "same.",
    )
    dataset: str = bounds.field(
        "digits",
        "digits, npz:PATH, folder:DIR, leaf:DIR, jsonl:PATH, tfds:NAME or "
        "hf:NAME (of the Hugging Face hub).",
    )
    task: str = bounds.field(
        "classification",
        "What labels mean: classification, tokens (the next one at every position), "
        "regression or multilabel[:THRESHOLD].",
    )
    test_share: float = bounds.field(
        0.0,
        "Share of all examples that are for testing, drawn "
        "by the seed; 0: the data's split.",
        most=1,
        below=True,
    )
    image_size: int = bounds.field(
        0, "Height and width that images are resized to; 0: as they are.", most=65_536
    )
    image_mode: str = bounds.field(
        "stored",
        "Images in grey or rgb, or as stored.",
        choices=("stored", "grey", "rgb"),
    )
    augment: str = bounds.field(
        "none",
        "Training batches: none, or crop_flip (shifted by up "
        "to 4 pixels, half of them mirrored).",
        choices=augment.BY_NAME,
    )
    mean: tuple[float, ...] = bounds.field(
        (),
        "Means that inputs are normalized by, one a channel; empty: the training "
        "set's.",
        each=float,
        least=-1e38,
        most=1e38,
    )
    std: tuple[float, ...] = bounds.field(
        (),
        "Standard deviations that they are divided by, likewise.",
        each=float,
        least=1e-30,
        most=1e38,
    )
    partition: str = bounds.field(
        "iid",
        "iid, dirichlet, resource_correlated, natural; by Flower's names "
        "inner_dirichlet, shard or pathological.",
        choices=PARTITIONS,
    )
    alpha: float = bounds.field(
        0.1, "Concentration of the Dirichlet partitions.", least=1e-6, most=1e6
    )
    shards_per_client: int = bounds.field(
        2, "Of the partition shard: pieces of the data in order of classes.", least=1
    )
    classes_per_client: int = bounds.field(
        2, "Of the partition pathological: how many classes, exactly.", least=1
    )
    class_assignment: str = bounds.field(
        "random",
        "Of the partition pathological: which classes are a client's, random, "
        "first-deterministic (the first one in turn) or deterministic (all in turn).",
        choices=skewed.ASSIGNMENTS,
    )
    num_clients: int = bounds.field(
        100, "Clients in all (natural: one a user).", least=1
    )
    clients_per_round: int = bounds.field(10, "Clients of a round.", least=1)
    selection: str = bounds.field(
        "uniform",
        "Who takes part: uniform, poisson:ROOM (each by a coin of its own), "
        "power_of_choice:CANDIDATES (the highest losses of so many drawn) or oort.",
    )
    rounds: int = bounds.field(
        100, "Rounds; a finished run goes on when they grow.", least=1
    )
    local_epochs: int = bounds.field(
        1, "Passes over a client's data in a round.", least=1, most=100_000
    )
    batch_size: int = bounds.field(32, "Examples of a local step.", least=1)
    lr: float = bounds.field(
        0.1, "Learning rate of the clients.", least=1e-30, most=1e38
    )
    lr_schedule: tuple[int, ...] = bounds.field(
        (),
        "Rounds, counted from 0, from which on it is divided by 10: 600,800.",
        each=int,
        least=0,
    )
    lr_warmup: int = bounds.field(
        0,
        "Rounds in which it rises to --lr, in equal steps; Transformers want some.",
        least=0,
    )
    weight_decay: float = bounds.field(1e-3, "Weight decay of the clients.", most=1e6)
    momentum: float = bounds.field(
        0.0, "Momentum of the clients, from zero every round.", most=1, below=True
    )
    client_optimizer: str = bounds.field(
        "sgd", "Clients train by sgd or adamw.", choices=("sgd", "adamw")
    )
    server_lr: float = bounds.field(
        1.0, "Learning rate of the server.", least=1e-30, most=1e38
    )
    weighting: str = bounds.field(
        "uniform",
        "Clients count uniform or by examples.",
        choices=("uniform", "examples"),
    )
    codec: str = bounds.field(
        "none",
        "What clients send instead of their updates, such as top_k:0.01, qsgd:4 or "
        "clip:1+drive; none: these.",
    )
    aggregate: str = bounds.field(
        "mean",
        "How updates become one: mean, median, trimmed_mean:SHARE, "
        "krum:HOSTILE:CHOSEN, bulyan:HOSTILE, geometric_median, "
        "centered_clipping:RADIUS or fltrust:EXAMPLES.",
    )
    attack: str = bounds.field(
        "none",
        "What hostile clients do: label_flip, backdoor, sign_flip, gaussian, alie, ipm "
        "or min_max, with their share of the clients, sign_flip:.2, or of a tier, "
        "sign_flip:.2:weak; none.",
    )
    secure_sum: str = bounds.field(
        "none",
        "The server gets the sum of updates, not each: none or "
        "BITS:NEIGHBOURS:MASKS; bits after the binary point, the rest may be left out. "
        "Simulated, not secure.",
    )
    tiers: tuple[kinds.Tier, ...] | classes.Auto = bounds.field(
        (),
        "Device tiers name:share:time:upload:memory, comma "
        "separated; a budget is a number or low-high. Empty: the "
        "paper's three. auto:NUMBER:BY: the server sorts the devices of any fleet into "
        "classes, by kmeans or quantiles.",
        kind=tuple | classes.Auto,
        each=kinds.Tier,
    )
    tiers_file: str = bounds.field(
        "", "A JSON file with the tiers, instead of --tiers."
    )
    fleet: str | fleet_sources.Lognormal = bounds.field(
        "tiers",
        "Devices: tiers, phones:BANDWIDTH, lognormal:COMPUTE:BANDWIDTH:MEMORY "
        "(deviations of logs) or file:PATH; BASE+trace:PATH says when they are there.",
        kind=str | fleet_sources.Lognormal,
    )
    norm_bound: float = bounds.field(
        0.0,
        "Refuse updates longer than this many times the "
        "usual length (a running median); 0: none.",
        off=True,
        least=1e-6,
        most=1e6,
    )
    policy: str = bounds.field(
        "random_maximal",
        "Which plan for which device (cocofl): "
        "random_maximal, random_shared, uniform, largest, "
        "largest_compute, balanced, round_robin, "
        "online or adaptive_bits.",
        choices=policies.BY_NAME,
    )
    max_windows: int = bounds.field(
        0,
        "Most windows of the cost table that are used, those "
        "that the paper's policy chooses most; 0: "
        "all.",
        least=0,
    )
    table_error: float = bounds.field(
        0.0,
        "Deviation of the log of what windows really cost against the cost table.",
        within=_DEVIATION,
    )
    cost_table: str = bounds.field(
        "",
        "A JSON file with measured costs of the windows; "
        "empty: a model from operation counts.",
    )
    device_class: str = bounds.field(
        "generic", "Whose prices the cost model takes: generic, x64, arm or a file."
    )
    precision: str = bounds.field(
        "float32",
        "Of activations in training: float32 or "
        "bfloat16 (parameters and sums stay "
        "float32).",
        choices=("float32", "bfloat16"),
    )
    norm_statistics: str = bounds.field(
        "batch",
        "Norms in evaluation use the test batch's statistics or running ones.",
        choices=("batch", "running"),
    )
    evaluation: str = bounds.field(
        "global",
        "What is evaluated beside the global network: nothing (global), or each client "
        "on its own test examples, clients:EPOCHS:MOST, after so many epochs of "
        "fine-tuning; of more than MOST (1000) a sample.",
    )
    eval_every: int = bounds.field(
        1, "Rounds between evaluations; the last always is.", least=1
    )
    eval_batch_size: int = bounds.field(
        500, "Examples of an evaluation batch.", least=1
    )
    client_width: int = bounds.field(
        0,
        "Clients that run side by side in a program; 0: 1 on "
        "CPU, on accelerators what fits.",
        least=0,
    )
    programs: str = bounds.field(
        "one",
        "Windows share one program, compiled once for all "
        "of them, or have one each (windows).",
        choices=("one", "windows"),
    )
    data_memory: str = bounds.field(
        "auto",
        "Where training data lie: device; host, from where each round brings what its "
        "clients need; auto: host if they would take half of a device's memory.",
        choices=("auto", "device", "host"),
    )
    devices: str = bounds.field(
        "all", "Devices that a round is spread over: all or a number."
    )
    seed: int = bounds.field(11, "Of everything that is drawn.", most=2**32 - 1)
    changes: fleets.Changes = bounds.field(
        fleets.Changes(), "How devices change from round to round."
    )
    clock: clocks.Clock = bounds.field(
        clocks.Clock(), "The virtual clock: what takes time, and who is waited for."
    )
    failures: faults.Rates = bounds.field(
        faults.Rates(), "Rates of what goes wrong, of each client in each round."
    )
    frozen: specs.Frozen = bounds.field(specs.Frozen(), "How blocks are frozen.")
    rollback: guard.Rollback = bounds.field(
        guard.Rollback(), "When to go back to a good state; by itself never."
    )
    privacy: privacies.Privacy = bounds.field(
        privacies.Privacy(), "Differential privacy of the clients; by itself none."
    )
    text: load.Text = bounds.field(load.Text(), "How texts become tokens.")
    columns: hub.Columns = bounds.field(
        hub.Columns(), "Which columns of an hf set are what."
    )


WITH_POLICY = ("cocofl",)  # of which a policy makes plans
# Whose plans follow the budgets of devices.
WITH_BUDGETS = (
    *WITH_POLICY,
    "cocofl_width",
    "depthfl",
    "heterofl",
    "fjord",
    "fedrolex",
    "federated_dropout",
    "slt",
)
OWN_ALGORITHM = "docs/tutorials/algorithm.md"


def follows_budgets(algorithm: str) -> bool:
    """Tells whether an algorithm's plans follow devices' budgets."""
    return algorithm.partition(":")[0] in WITH_BUDGETS


def check_algorithm(text: str) -> None:
    """Refuses what names no algorithm.

    Raises:
      ValueError: one line without the flag.
    """
    name, colon, _ = text.partition(":")
    if name not in algorithms.BY_NAME:
        raise ValueError(
            f"expected {', '.join(algorithms.BY_NAME)}, or one of your own in Python "
            f"({OWN_ALGORITHM}), got {name!r}"
            f"{bounds.nearest(name, algorithms.BY_NAME)}"
        )
    if colon and name in WITH_POLICY:
        raise ValueError(
            f"expected {name}, with what follows it in --policy, got {text!r}"
        )
    notation.bind(text, algorithms.BY_NAME, before=1)


def fields() -> dict[str, dataclasses.Field]:
    """Gives every field by the name of its flag: `lr`, `clock.deadline`."""
    found = {field.name: field for field in dataclasses.fields(Config)}
    for section in sections():
        inner = dataclasses.fields(bounds.kind(found.pop(section)))
        found |= {f"{section}.{field.name}": field for field in inner}
    return found


def sections() -> dict[str, dataclasses.Field]:
    """Gives the fields that hold a dataclass of settings."""
    return {
        field.name: field
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(bounds.kind(field))
    }


def get(config: Config, name: str) -> Any:
    """Gives a field by the name of its flag."""
    return operator.attrgetter(name)(config)


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """Changes fields by the names of their flags.

    >>> replace(Config(), {"lr": 0.2, "clock.deadline": 1.5}).clock.deadline
    1.5

    Raises:
      ValueError: what a section becomes makes no sense.
    """
    flat = {name: value for name, value in changes.items() if "." not in name}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, dot, field = name.partition(".")
        if dot:
            inner.setdefault(section, {})[field] = value
    for section, given in inner.items():
        try:
            flat[section] = dataclasses.replace(getattr(config, section), **given)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
    return dataclasses.replace(config, **flat)


def algorithm_fields(entry: str) -> dict[str, Any]:
    """Reads ALGORITHM or cocofl:POLICY into fields of the configuration."""
    name, colon, policy = entry.partition(":")
    if policy in policies.BY_NAME and name not in WITH_POLICY:
        raise ValueError(
            f"--algorithms: expected a policy beside {', '.join(WITH_POLICY)} only, "
            f"got {entry!r}"
        )
    if not colon or name not in WITH_POLICY:
        with naming("algorithms"):
            check_algorithm(entry)
        return {"algorithm": entry}
    if policy not in policies.BY_NAME:
        raise unknown("algorithms", policy, policies.BY_NAME)
    return {"algorithm": name, "policy": policy}


def unknown(flag: str, value: str, choices: Iterable[str]) -> ValueError:
    """Makes the error for a name that is none of the choices."""
    choices = tuple(choices)
    return ValueError(
        f"--{flag}: expected {', '.join(choices)}, got {value!r}"
        f"{bounds.nearest(value, choices)}"
    )


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Puts a flag before the library's errors, which know no flags."""
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: of a path
        if str(error).startswith("--"):  # it knows a better one
            raise
        raise ValueError(f"--{flag}: {error}") from error


def check(config: Config) -> None:
    """Checks what can be checked without data.

    Raises:
      ValueError: one line that names the flag, what was expected and what came.
    """
    if not isinstance(config, Config):
        raise ValueError(f"expected a config.Config, got a {type(config).__name__}")
    bounds.check(config, "--{}".format)
    with naming("algorithm"):
        check_algorithm(config.algorithm)
    with naming("codec"):
        codec = codecs.read(config.codec)
    with naming("aggregate"):
        aggregate = notation.make(config.aggregate, aggregates.BY_NAME)
    with naming("attack"):
        attack = attacks.read(config.attack)
    with naming("secure_sum"):
        secure = secure_sum.read(config.secure_sum)
    unsent = {
        "codec": ("none", codec is not None),
        "aggregate": ("mean", aggregate.sees_updates),
        "attack": ("none", attack is not None),
        "secure_sum": ("none", secure is not None),
    }
    for flag, (usual, given) in unsent.items():
        if config.algorithm == "centralized" and given:
            raise ValueError(
                f"--{flag}: expected {usual} beside --algorithm=centralized, which "
                f"sends nothing, got {getattr(config, flag)!r}"
            )
    with naming("evaluation"):
        notation.make(config.evaluation, per_client.BY_NAME)
    with naming("task"):
        made = tasks.named(config.task)
    if not made.classes and config.partition in BY_CLASS:
        raise ValueError(
            f"--partition: expected iid or natural for --task={config.task}, which has "
            f"no classes to split by, got {config.partition!r}"
        )
    if config.client_optimizer == "adamw" and config.momentum:
        raise ValueError(
            f"--momentum: expected 0 with --client_optimizer=adamw, got "
            f"{config.momentum}"
        )
    if config.partition != "natural" and config.clients_per_round > config.num_clients:
        raise ValueError(
            f"--clients_per_round: expected at most --num_clients="
            f"{config.num_clients}, got {config.clients_per_round}"
        )
    if isinstance(config.tiers, tuple) and config.tiers and config.tiers_file:
        raise ValueError("--tiers and --tiers_file: expected one of them, got both")
    if list(config.lr_schedule) != sorted(set(config.lr_schedule)):
        raise ValueError(
            f"--lr_schedule: expected rising round numbers such as 600,800, got "
            f"{','.join(map(str, config.lr_schedule))!r}"
        )
    if isinstance(config.tiers, tuple) and config.tiers:
        with naming("tiers"):
            kinds.check_tiers(config.tiers)
    if config.policy == "adaptive_bits" and config.frozen.fixed_point == "none":
        raise ValueError(
            "--policy=adaptive_bits: expected frozen blocks in codes, got "
            "--frozen.fixed_point=none"
        )
    if not config.init_head and not config.init:
        raise ValueError("--init_head: expected --init=FILE beside it, got none")
    _check_selection(config)
    _check_rollback(config)
    _check_privacy(config)


def _check_selection(config: Config) -> None:
    with naming("selection"):
        made = notation.make(config.selection, policies.SELECTIONS)
        made.check(arrivals.chosen(config.clock, config.clients_per_round))
    if config.algorithm == "centralized" and made != policies.Uniform():
        raise ValueError(
            f"--selection: expected uniform with --algorithm=centralized, which has "
            f"one client, got {config.selection!r}"
        )


def _check_privacy(config: Config) -> None:
    if not config.privacy.clip:
        return
    if config.algorithm == "centralized":
        raise ValueError(
            "--privacy.clip: expected 0 with --algorithm=centralized, which has one "
            "client"
        )
    for name in ("drop", "loss"):
        if getattr(config.rollback, name):
            raise ValueError(
                f"--rollback.{name}: expected 0 beside --privacy.clip, since a guard "
                f"goes by losses of clients, which no noise hides"
            )


def _check_rollback(config: Config) -> None:
    wanted = config.rollback
    if wanted.lowers == "tier" and not follows_budgets(config.algorithm):
        raise ValueError(
            f"--rollback.lowers=tier: expected an algorithm whose plans follow "
            f"budgets, got --algorithm={config.algorithm}"
        )
    if wanted.lowers == "tier" and config.policy == "uniform":
        raise ValueError(
            "--rollback.lowers=tier: expected a policy that follows each device's "
            "budgets, got --policy=uniform"
        )
    if not wanted.asked_for:
        for field in dataclasses.fields(wanted):
            if getattr(wanted, field.name) != field.default:
                raise ValueError(
                    f"--rollback.{field.name}: expected --rollback.drop or "
                    f"--rollback.loss beside it, got neither"
                )
