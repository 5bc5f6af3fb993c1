"""Trains one algorithm; stop it anywhere, run the same command, and it goes on.

    python -m experiments.train --algorithm=cocofl --network=mobilenetv2 \\
        --dataset=npz:cifar10.npz --partition=resource_correlated --alpha=0.1 \\
        --rounds=1000 --lr=0.1 --lr_schedule=600,800 --seed=10 --workdir=runs/x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags

import fljax
from experiments import define, main
from experiments import flags as config_flags
from fljax import tasks
from fljax.experiment import dry_run, progress

config_flags.define_flags()
for _module in (config_flags, main):
    flags.adopt_module_key_flags(_module)  # `--help` lists them
_TENSORBOARD = define.boolean("tensorboard", True, "Write TensorBoard events.")
_CHECKPOINT_EVERY = define.number(
    "checkpoint_every", 1, "Rounds between checkpoints.", least=1
)

_DRY_RUN = define.boolean(
    "dry_run",
    False,
    "Only say what the run will cost: programs, memory, time, upload; and who will "
    "arrive, by rounds played on the clock without training.",
)


def _main() -> None:
    config = config_flags.from_flags(flags.FLAGS)
    workdir = main.WORKDIR.value or None
    ready = fljax.build(config, workdir=workdir, cache=main.data_cache())
    if _DRY_RUN.value:
        with progress.Steps() as tell:
            cost = dry_run.estimate(ready, tell)
        if main.is_first():
            print("\n".join((*(f"note: {n}" for n in ready.notes), dry_run.show(cost))))
        return
    with main.hooks() as hooks:
        result = fljax.run(
            ready,
            workdir,
            hooks=hooks,
            tensorboard=_TENSORBOARD.value,
            checkpoint_every=_CHECKPOINT_EVERY.value,
        )
    if not main.is_first():
        return
    print(_ended(result.final, result.measure))


def _ended(last: Mapping[str, Any], measure: tasks.Measure) -> str:
    """Says in a line how a run ended."""
    loss = f", test loss {last['test_loss']:.4f}" * (measure.key != "test_loss")
    mixed, own = last.get("tier_accuracy"), last.get(f"tier_{measure.key}")
    return (
        f"after {last['round'] + 1} rounds: test {measure.title} "
        f"{last[measure.key]:.4f}{loss}"
        + (f", tiers by class mix {_listed(mixed)}" if mixed else "")
        + (
            f", {'' if mixed else 'tiers '}on their own test examples {_listed(own)}"
            if own
            else ""
        )
    )


def _listed(tiers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in tiers.items())


if __name__ == "__main__":
    main.run(_main)
