"""The configuration of an experiment: one frozen dataclass, from absl flags.

Every field is a flag of the same name; `from_flags` checks names and numbers, with one
clear line for what is wrong, before anything heavy starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from absl import flags

from experiments import define
from fljax import algorithms, bounds, models, policies
from fljax.devices import clock, failures, fleet
from fljax.engine import augment
from fljax.runs import guard

PARTITIONS = ("iid", "dirichlet", "resource_correlated", "natural")


Settings = TypeVar("Settings")

_DEVIATION = bounds.of(fleet.Changes, "drift")  # of a logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What an experiment depends on; the help of each flag is its documentation."""

    algorithm: str = bounds.field(
        "cocofl", "cocofl, fedavg, fedavg_drop or centralized."
    )
    network: str = bounds.field(
        "small_convnet",
        "mobilenetv2, mobilenetv2_gn, mobilenetv2_large, resnet18, resnet50, "
        "densenet40, small_convnet, cnn, cnn_dropout, logistic, transformer or "
        "char_transformer.",
    )
    dataset: str = bounds.field(
        "digits", "digits, npz:PATH, folder:DIR, leaf:DIR, jsonl:PATH or tfds:NAME."
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
    image_mode: str = bounds.field("stored", "Images in grey or rgb, or as stored.")
    max_tokens: int = bounds.field(
        512,
        "Tokens of a text; longer ones are cut. Of leaf's "
        "characters the last are kept.",
        least=1,
        most=2**20,
    )
    vocabulary_size: int = bounds.field(
        16_000, "Subwords that texts are made of, at most.", least=2, most=10_000_000
    )
    augment: str = bounds.field(
        "none",
        "Training batches: none, or crop_flip (shifted by up "
        "to 4 pixels, half of them mirrored).",
    )
    mean: str = bounds.field(
        "",
        "Means that inputs are normalised by, one a channel, comma "
        "separated; empty: the training set's.",
    )
    std: str = bounds.field("", "Standard deviations, likewise.")
    partition: str = bounds.field(
        "iid", "iid, dirichlet, resource_correlated or natural."
    )
    alpha: float = bounds.field(
        0.1, "Concentration of the Dirichlet partitions.", least=1e-6, most=1e6
    )
    num_clients: int = bounds.field(
        100, "Clients in all (natural: one a user).", least=1
    )
    clients_per_round: int = bounds.field(10, "Clients of a round.", least=1)
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
    lr_schedule: str = bounds.field(
        "", "Rounds, counted from 0, from which on it is divided by 10: 600,800."
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
    client_optimizer: str = bounds.field("sgd", "Clients train by sgd or adamw.")
    server_lr: float = bounds.field(
        1.0, "Learning rate of the server.", least=1e-30, most=1e38
    )
    weighting: str = bounds.field("uniform", "Clients count uniform or by examples.")
    tiers: str = bounds.field(
        "",
        "Device tiers name:share:time:upload:memory, comma "
        "separated; a budget is a number or low-high. Empty: the "
        "paper's three.",
    )
    tiers_file: str = bounds.field(
        "", "A JSON file with the tiers, instead of --tiers."
    )
    fleet: str = bounds.field(
        "tiers",
        "Devices: tiers, lognormal:COMPUTE:BANDWIDTH:MEMORY "
        "(deviations of logs) or file:PATH.",
    )
    changes: str = bounds.field(
        "",
        "How devices change: drift=, drift_rounds=, bandwidth=, "
        "diurnal=, day_rounds=, refresh=, refresh_seconds=; "
        "see docs/devices.md.",
    )
    clock: str = bounds.field(
        "",
        "The virtual clock: step_seconds=, upload_rate=, "
        "download_rate=, deadline=, over_selection=, late=, "
        "buffer=, max_staleness=, staleness_power=.",
    )
    failures: str = bounds.field(
        "",
        "Rates of what goes wrong: drop=, lost=, truncated=, "
        "duplicated=, delayed=, nonfinite=, huge=, delay=; see "
        "docs/devices.md.",
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
        "random_maximal, uniform, largest, "
        "largest_compute, balanced, round_robin, "
        "online or adaptive_bits.",
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
    fixed_point: str = bounds.field(
        "default",
        "Fixed point of frozen blocks: default (the "
        "best measured), reference (the paper's) or "
        "none (float32).",
    )
    bits: int = bounds.field(
        8, "Width of the codes of frozen blocks, 2 to 8.", least=2, most=8
    )
    weight_scales: str = bounds.field(
        "own",
        "Scales of frozen weights: one a channel, one a tensor, or fixed_point's own.",
    )
    rounding: str = bounds.field("nearest", "Rounding to codes: nearest or stochastic.")
    reference_quirks: bool = bounds.field(
        False, "Reproduce the slips of the paper's code: see docs/design.md."
    )
    precision: str = bounds.field(
        "float32",
        "Of activations in training: float32 or "
        "bfloat16 (parameters and sums stay "
        "float32).",
    )
    norm_statistics: str = bounds.field(
        "batch", "Norms in evaluation use the test batch's statistics or running ones."
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
    )
    devices: str = bounds.field(
        "all", "Devices that a round is spread over: all or a number."
    )
    seed: int = bounds.field(11, "Of everything that is drawn.", most=2**32 - 1)
    rollback_drop: float = bounds.field(
        0.0,
        "Go back to the last good state when the test "
        "accuracy is by more than this, such as 0.1, "
        "below the best of --rollback_window; 0: "
        "never.",
        within=bounds.of(guard.Guard, "accuracy_drop"),
    )
    rollback_loss: float = bounds.field(
        0.0,
        "Go back, too, when the training loss is above "
        "this times its median, such as 3; 0: never. "
        "With either one, updates that are not finite "
        "are also a reason.",
        within=bounds.of(guard.Guard, "loss_factor"),
    )
    rollback_window: int = bounds.field(
        10,
        "Evaluations, and rounds for the loss, that are looked back.",
        within=bounds.of(guard.Guard, "window"),
    )
    rollback_lowers: str = bounds.field(
        "server",
        "What a rollback lowers: the learning rate "
        "of the server, or the budgets of the tier "
        "that did worst.",
    )
    rollback_factor: float = bounds.field(
        0.5,
        "What it is multiplied by, each time.",
        within=bounds.of(guard.Guard, "factor"),
    )
    rollback_limit: int = bounds.field(
        3,
        "Rollbacks of a run; the next reason stops it.",
        within=bounds.of(guard.Guard, "limit"),
    )


CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm": tuple(algorithms.BY_NAME),
    "network": tuple(models.BY_NAME),
    "partition": PARTITIONS,
    "policy": tuple(policies.BY_NAME),
    "image_mode": ("stored", "grey", "rgb"),
    "augment": tuple(augment.BY_NAME),
    "client_optimizer": ("sgd", "adamw"),
    "weighting": ("uniform", "examples"),
    "fixed_point": ("default", "reference", "none"),
    "rounding": ("nearest", "stochastic"),
    "weight_scales": ("own", "channel", "tensor"),
    "precision": ("float32", "bfloat16"),
    "norm_statistics": ("batch", "running"),
    "programs": ("one", "windows"),
    "rollback_lowers": guard.LOWERS,
}
_WITHOUT_BUDGETS = ("fedavg", "fedavg_drop", "centralized")  # plans ignore them


def define_flags(skip: Iterable[str] = ()) -> None:
    """Defines a flag for every field that is not in `skip`."""
    for field in dataclasses.fields(Config):
        if field.name not in skip:
            define.of_field(field.name, field)


def from_flags(values: flags.FlagValues, **fixed: Any) -> Config:
    """Reads a configuration from parsed flags, `fixed` fields given here.

    Raises:
      ValueError: as of `check`.
    """
    names = {field.name for field in dataclasses.fields(Config)} - fixed.keys()
    given: dict[str, Any] = {name: values[name].value for name in names}
    config = Config(**given, **fixed)
    check(config)
    return config


def algorithm_fields(entry: str) -> dict[str, Any]:
    """Reads ALGORITHM or ALGORITHM:POLICY into fields of the configuration."""
    name, colon, policy = entry.partition(":")
    if name not in algorithms.BY_NAME:
        raise unknown("algorithms", name, algorithms.BY_NAME)
    if not colon:
        return {"algorithm": name}
    if policy not in policies.BY_NAME:
        raise unknown("algorithms", policy, policies.BY_NAME)
    if name in _WITHOUT_BUDGETS:
        raise ValueError(
            f"--algorithms: expected a policy beside cocofl only, got {entry!r}"
        )
    return {"algorithm": name, "policy": policy}


def unknown(flag: str, value: str, choices: Iterable[str]) -> ValueError:
    """Makes the error for a name that is none of the choices."""
    choices = tuple(choices)
    near = difflib.get_close_matches(value, choices, 1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"--{flag}: expected {', '.join(choices)}, got {value!r}{hint}")


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Puts a flag before the library's errors, which know no flags."""
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: of a path
        raise ValueError(f"--{flag}: {error}") from error


def settings(flag: str, text: str, kind: type[Settings]) -> Settings:
    """Reads `name=value` pairs, comma separated, into a dataclass of defaults.

    Raises:
      ValueError: a name or value that the dataclass does not take.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in fields:
            raise unknown(flag, name, fields)
        if name in given:
            raise ValueError(
                f"--{flag}: expected {name} once, got it twice in {text!r}"
            )
        if not equals:
            wanted = bounds.wanted(fields[name])
            raise ValueError(f"--{flag}: expected {name}= and {wanted}, got {item!r}")
        with naming(f"{flag}={name}"):
            given[name] = bounds.read(bounds.kind(fields[name]), value)
    with naming(flag):
        return kind(**given)


def schedule(config: Config) -> tuple[int, ...]:
    """Reads `lr_schedule`: the rounds at which the rate falls.

    Raises:
      ValueError: it is no rising list of rounds.
    """
    parts = [part for part in config.lr_schedule.split(",") if part.strip()]
    try:
        rounds = tuple(bounds.read(int, part) for part in parts)
    except ValueError:
        rounds = (-1,)
    if list(rounds) != sorted(set(rounds)) or any(
        r not in bounds.Bounds() for r in rounds
    ):
        raise ValueError(
            f"--lr_schedule: expected rising round numbers such as 600,800, got "
            f"{config.lr_schedule!r}"
        )
    return rounds


def check(config: Config) -> None:
    """Checks what can be checked without data.

    Raises:
      ValueError: one line that names the flag, what was expected and what came.
    """
    if not isinstance(config, Config):
        raise ValueError(f"expected a config.Config, got a {type(config).__name__}")
    bounds.check(config, "--{}: expected".format)
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise unknown(name, value, choices)
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
    if config.tiers and config.tiers_file:
        raise ValueError("--tiers and --tiers_file: expected one of them, got both")
    schedule(config)
    settings("changes", config.changes, fleet.Changes)
    settings("clock", config.clock, clock.Clock)
    settings("failures", config.failures, failures.Rates)
    if config.policy == "adaptive_bits" and config.fixed_point == "none":
        raise ValueError(
            "--policy=adaptive_bits: expected frozen blocks in codes, got "
            "--fixed_point=none"
        )
    _check_rollback(config)


def _check_rollback(config: Config) -> None:
    if config.rollback_lowers == "tier" and config.algorithm in _WITHOUT_BUDGETS:
        raise ValueError(
            f"--rollback_lowers=tier: expected an algorithm whose plans follow "
            f"budgets, got --algorithm={config.algorithm}"
        )
    if config.rollback_lowers == "tier" and config.policy == "uniform":
        raise ValueError(
            "--rollback_lowers=tier: expected a policy that follows each device's "
            "budgets, got --policy=uniform"
        )
    if not (config.rollback_drop or config.rollback_loss):
        for name in ("window", "lowers", "factor", "limit"):
            field = f"rollback_{name}"
            if getattr(config, field) != getattr(Config(), field):
                raise ValueError(
                    f"--{field}: expected --rollback_drop or --rollback_loss beside "
                    f"it, got neither"
                )
