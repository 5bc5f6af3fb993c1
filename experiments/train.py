"""Trains one algorithm; stop it anywhere, run the same command, and it goes on.

    python -m experiments.train --algorithm=cocofl --network=mobilenetv2 \\
        --dataset=npz:cifar10.npz --partition=resource_correlated --alpha=0.1 \\
        --rounds=1000 --lr=0.1 --lr_schedule=600,800 --seed=10 --workdir=runs/x
"""

from __future__ import annotations

import dataclasses

from absl import flags

from experiments import config as configs
from experiments import experiment, main, progress
from fljax import simulation

configs.define_flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder; empty: nothing is kept.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "Write TensorBoard events.")
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 1, "Rounds between checkpoints.", lower_bound=1
)


def train(
    config: configs.Config,
    ready: experiment.Experiment,
    workdir: str | None,
    tensorboard: bool = True,
    checkpoint_every: int = 1,
    label: str | None = None,
) -> list[simulation.Record]:
    """Runs one configuration with a progress bar; returns its records."""
    algorithm = experiment.algorithm(config, ready)
    with progress.Progress(config.rounds, label=label or config.algorithm) as bar:
        hooks = simulation.Hooks(bar.start, bar.update, bar.message)
        _, records = simulation.run(
            algorithm,
            config.rounds,
            ready.evaluator,
            workdir=workdir,
            config=dataclasses.asdict(config),
            tensorboard=tensorboard,
            checkpoint_every=checkpoint_every,
            hooks=hooks,
        )
    return records


def _main() -> None:
    config = configs.from_flags(flags.FLAGS)
    records = train(
        config,
        experiment.build(config),
        _WORKDIR.value or None,
        _TENSORBOARD.value,
        _CHECKPOINT_EVERY.value,
    )
    last = [r for r in records if "test_accuracy" in r][-1]
    tiers = ", ".join(f"{k} {v:.4f}" for k, v in last["tier_accuracy"].items())
    print(
        f"round {last['round']}: test accuracy {last['test_accuracy']:.4f}, "
        f"test loss {last['test_loss']:.4f}, tiers {tiers}"
    )


if __name__ == "__main__":
    main.run(_main)
