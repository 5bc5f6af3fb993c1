"""An experiment from its settings: build, run, show."""

from fljax.experiment.build import (
    FEWEST,
    FREE,
    OWN,
    TOKENIZER,
    Experiment,
    algorithm,
    build,
    describe,
    resolved,
    rollback,
    run,
    seen_by,
    split,
)

__all__ = [
    "FEWEST",
    "FREE",
    "OWN",
    "TOKENIZER",
    "Experiment",
    "algorithm",
    "build",
    "describe",
    "resolved",
    "rollback",
    "run",
    "seen_by",
    "split",
]
