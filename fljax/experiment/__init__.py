"""An experiment from its settings: build, run, compare, show."""

from fljax.experiment.building import (
    FEWEST,
    FREE,
    TOKENIZER,
    Experiment,
    Make,
    Own,
    algorithm,
    build,
    name,
    resolved,
    rollback,
    seen_by,
    split,
    unlike,
)
from fljax.experiment.comparison import Comparison, compare
from fljax.experiment.facts import OWN
from fljax.experiment.running import Result, describe, restore, run
from fljax.experiment.together import run_together

__all__ = [
    "FEWEST",
    "FREE",
    "OWN",
    "TOKENIZER",
    "Comparison",
    "Experiment",
    "Make",
    "Own",
    "Result",
    "algorithm",
    "build",
    "compare",
    "describe",
    "name",
    "resolved",
    "restore",
    "rollback",
    "run",
    "run_together",
    "seen_by",
    "split",
    "unlike",
]
