"""The configuration of an experiment: one frozen dataclass, from absl flags.

Every field is a flag of the same name; `from_flags` checks names and numbers, with one
clear line for what is wrong, before anything heavy starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import flags

from fljax import (
    algorithms,
    augment,
    clock,
    failures,
    fleet,
    guard,
    models,
    policies,
)

PARTITIONS = ("iid", "dirichlet", "resource_correlated", "natural")


Settings = TypeVar("Settings")


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What an experiment depends on; the help of each flag is its documentation."""

    algorithm: str = _field("cocofl", "cocofl, fedavg, fedavg_drop or centralized.")
    network: str = _field(
        "small_convnet",
        "mobilenetv2, mobilenetv2_gn, mobilenetv2_large, resnet18, resnet50, "
        "densenet40, small_convnet, cnn, cnn_dropout, logistic, transformer or "
        "char_transformer.",
    )
    dataset: str = _field("digits", "digits, npz:PATH, folder:DIR, leaf:DIR, "
                                    "jsonl:PATH or tfds:NAME.")  # fmt: skip
    test_share: float = _field(0.0, "Share of all examples that are for testing, drawn "
                                    "by the seed; 0: the data's split.")  # fmt: skip
    image_size: int = _field(0, "Height and width that images are resized to; 0: as "
                                "they are.")  # fmt: skip
    image_mode: str = _field("stored", "Images in grey or rgb, or as stored.")
    max_tokens: int = _field(512, "Tokens of a text; longer ones are cut. Of leaf's "
                                  "characters the last are kept.")  # fmt: skip
    vocabulary_size: int = _field(16_000, "Subwords that texts are made of, at most.")
    augment: str = _field("none", "Training batches: none, or crop_flip (shifted by up "
                                  "to 4 pixels, half of them mirrored).")  # fmt: skip
    mean: str = _field("", "Means that inputs are normalised by, one a channel, comma "
                           "separated; empty: the training set's.")  # fmt: skip
    std: str = _field("", "Standard deviations, likewise.")
    partition: str = _field("iid", "iid, dirichlet, resource_correlated or natural.")
    alpha: float = _field(0.1, "Concentration of the Dirichlet partitions.")
    num_clients: int = _field(100, "Clients in all (natural: one a user).")
    clients_per_round: int = _field(10, "Clients of a round.")
    rounds: int = _field(100, "Rounds; a finished run goes on when they grow.")
    local_epochs: int = _field(1, "Passes over a client's data in a round.")
    batch_size: int = _field(32, "Examples of a local step.")
    lr: float = _field(0.1, "Learning rate of the clients.")
    lr_schedule: str = _field("", "Rounds at which it is divided by 10: 600,800.")
    lr_warmup: int = _field(0, "Rounds in which it rises to --lr, in equal steps; "
                               "Transformers want some.")  # fmt: skip
    weight_decay: float = _field(1e-3, "Weight decay of the clients.")
    momentum: float = _field(0.0, "Momentum of the clients, from zero every round.")
    client_optimizer: str = _field("sgd", "Clients train by sgd or adamw.")
    server_lr: float = _field(1.0, "Learning rate of the server.")
    weighting: str = _field("uniform", "Clients count uniform or by examples.")
    tiers: str = _field("", "Device tiers name:share:time:upload:memory, comma "
                            "separated; a budget is a number or low-high. Empty: the "
                            "paper's three.")  # fmt: skip
    tiers_file: str = _field("", "A JSON file with the tiers, instead of --tiers.")
    fleet: str = _field("tiers", "Devices: tiers, lognormal:COMPUTE:BANDWIDTH:MEMORY "
                                 "(deviations of logs) or file:PATH."
                        )  # fmt: skip
    changes: str = _field("", "How devices change: drift=, drift_rounds=, bandwidth=, "
                              "diurnal=, day_rounds=, refresh=, refresh_seconds=; "
                              "see docs/devices.md.")  # fmt: skip
    clock: str = _field("", "The virtual clock: step_seconds=, upload_rate=, "
                            "download_rate=, deadline=, over_selection=, late=, "
                            "buffer=, max_staleness=, staleness_power=."
                        )  # fmt: skip
    failures: str = _field("", "Rates of what goes wrong: drop=, lost=, truncated=, "
                               "duplicated=, delayed=, nonfinite=, huge=, delay=; see "
                               "docs/devices.md.")  # fmt: skip
    norm_bound: float = _field(0.0, "Refuse updates longer than this many times the "
                                    "usual length (a running median); 0: none."
                               )  # fmt: skip
    policy: str = _field("random_maximal", "Which plan for which device (cocofl): "
                                           "random_maximal, uniform, largest, "
                                           "largest_compute, balanced, round_robin, "
                                           "online or adaptive_bits.")  # fmt: skip
    max_windows: int = _field(0, "Most windows of the cost table that are used, those "
                                 "that the paper's policy chooses most; 0: "
                                 "all.")  # fmt: skip
    table_error: float = _field(0.0, "Deviation of the log of what windows really cost "
                                     "against the cost table.")  # fmt: skip
    cost_table: str = _field("", "A JSON file with measured costs of the windows; "
                                 "empty: a model from operation counts.")  # fmt: skip
    device_class: str = _field("generic", "Whose prices the cost model takes: generic, "
                                          "x64, arm or a file.")  # fmt: skip
    fixed_point: str = _field("default", "Fixed point of frozen blocks: default (the "
                                         "best measured), reference (the paper's) or "
                                         "none (float32)."
                              )  # fmt: skip
    bits: int = _field(8, "Width of the codes of frozen blocks, 2 to 8.")
    weight_scales: str = _field("own", "Scales of frozen weights: one a channel, one a "
                                       "tensor, or fixed_point's own.")  # fmt: skip
    rounding: str = _field("nearest", "Rounding to codes: nearest or stochastic.")
    reference_quirks: bool = _field(False, "Reproduce the slips of the paper's code: "
                                           "see docs/design.md.")  # fmt: skip
    precision: str = _field("float32", "Of activations in training: float32 or "
                                       "bfloat16 (parameters and sums stay "
                                       "float32).")  # fmt: skip
    norm_statistics: str = _field("batch", "Norms in evaluation use the test batch's "
                                           "statistics or running ones.")  # fmt: skip
    eval_every: int = _field(1, "Rounds between evaluations; the last always is.")
    eval_batch_size: int = _field(500, "Examples of an evaluation batch.")
    client_width: int = _field(0, "Clients that run side by side in a program; 0: 1 on "
                                  "CPU, on accelerators what fits.")  # fmt: skip
    programs: str = _field("one", "Windows share one program, compiled once for all "
                                  "of them, or have one each (windows).")  # fmt: skip
    devices: str = _field("all", "Devices that a round is spread over: all or a "
                                 "number.")  # fmt: skip
    seed: int = _field(11, "Of everything that is drawn.")
    rollback_drop: float = _field(0.0, "Go back to the last good state when the test "
                                       "accuracy is by more than this, such as 0.1, "
                                       "below the best of --rollback_window; 0: "
                                       "never.")  # fmt: skip
    rollback_loss: float = _field(0.0, "Go back, too, when the training loss is above "
                                       "this times its median, such as 3; 0: never. "
                                       "With either one, updates that are not finite "
                                       "are also a reason.")  # fmt: skip
    rollback_window: int = _field(10, "Evaluations, and rounds for the loss, that are "
                                      "looked back.")  # fmt: skip
    rollback_lowers: str = _field("server", "What a rollback lowers: the learning rate "
                                            "of the server, or the budgets of the tier "
                                            "that did worst.")  # fmt: skip
    rollback_factor: float = _field(0.5, "What it is multiplied by, each time.")
    rollback_limit: int = _field(3, "Rollbacks of a run; the next reason stops it.")


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
_LEAST: dict[str, float] = {
    "image_size": 0,
    "max_tokens": 1,
    "vocabulary_size": 2,
    "num_clients": 1,
    "clients_per_round": 1,
    "rounds": 1,
    "lr_warmup": 0,
    "local_epochs": 1,
    "batch_size": 1,
    "weight_decay": 0,
    "momentum": 0,
    "max_windows": 0,
    "norm_bound": 0,
    "table_error": 0,
    "eval_every": 1,
    "eval_batch_size": 1,
    "client_width": 0,
    "seed": 0,
    "rollback_window": 1,
    "rollback_limit": 0,
}
_WITHOUT_BUDGETS = ("fedavg", "fedavg_drop", "centralized")  # plans ignore them


def define_flags(skip: Iterable[str] = ()) -> None:
    """Defines a flag for every field that is not in `skip`.

    Two command lines may do so in one process (`allow_override`), as tests do.
    """
    define: dict[Any, Callable] = {
        "int": flags.DEFINE_integer,
        "float": flags.DEFINE_float,
        "str": flags.DEFINE_string,
        "bool": flags.DEFINE_bool,
    }
    for field in dataclasses.fields(Config):
        if field.name not in skip:
            define[field.type](
                field.name, field.default, field.metadata["help"], allow_override=True
            )


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
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error


def _type(field: dataclasses.Field) -> type:
    return type(field.default)


def settings(flag: str, text: str, kind: type[Settings]) -> Settings:
    """Reads `name=value` pairs, comma separated, into a dataclass of defaults.

    Raises:
      ValueError: a name or value that the dataclass does not take.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if name not in fields:
            raise unknown(flag, name, fields)
        try:
            given[name] = _type(fields[name])(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(
                f"--{flag}: expected {name}= and a "
                f"{_type(fields[name]).__name__}, got {item!r}"
            )
    with naming(flag):
        return kind(**given)


def schedule(config: Config) -> tuple[int, ...]:
    """Reads `lr_schedule`: the rounds at which the rate falls.

    Raises:
      ValueError: it is no rising list of rounds.
    """
    parts = [part for part in config.lr_schedule.split(",") if part.strip()]
    try:
        rounds = tuple(int(part) for part in parts)
    except ValueError:
        rounds = (-1,)
    if list(rounds) != sorted(set(rounds)) or any(r < 0 for r in rounds):
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
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise unknown(name, value, choices)
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if not least <= value < float("inf"):
            raise ValueError(f"--{name}: expected {least} or more, got {value}")
    for name in ("alpha", "lr", "server_lr"):
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name}: expected a number above 0, got {value}")
    if not 0 <= config.test_share < 1:
        raise ValueError(
            f"--test_share: expected 0 or more and less than 1, got {config.test_share}"
        )
    if config.momentum >= 1:
        raise ValueError(
            f"--momentum: expected 0 or more and less than 1, got {config.momentum}"
        )
    if config.client_optimizer == "adamw" and config.momentum:
        raise ValueError(
            f"--momentum: expected 0 with --client_optimizer=adamw, got "
            f"{config.momentum}"
        )
    if config.seed >= 2**32:
        raise ValueError(f"--seed: expected a number below 2**32, got {config.seed}")
    if not 2 <= config.bits <= 8:
        raise ValueError(f"--bits: expected 2 to 8, got {config.bits}")
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
    drop, loss, factor = (
        getattr(config, f"rollback_{name}") for name in ("drop", "loss", "factor")
    )
    if not 0 <= drop < 1:
        raise ValueError(f"--rollback_drop: expected 0 or more, below 1, got {drop}")
    if loss and not 1 < loss < float("inf"):
        raise ValueError(f"--rollback_loss: expected 0 or above 1, got {loss}")
    if not 0 < factor < 1:
        raise ValueError(f"--rollback_factor: expected above 0, below 1, got {factor}")
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
    if not (drop or loss):
        for name in ("window", "lowers", "factor", "limit"):
            field = f"rollback_{name}"
            if getattr(config, field) != getattr(Config(), field):
                raise ValueError(
                    f"--{field}: expected --rollback_drop or --rollback_loss beside "
                    f"it, got neither"
                )
