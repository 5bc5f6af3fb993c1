"""An experiment from its settings: build, run, compare, show."""

from fljax.experiment.building.build import build
from fljax.experiment.building.built import (
    FREE,
    Experiment,
    Make,
    Own,
    name,
    seen_by,
    unlike,
)
from fljax.experiment.building.examples import TOKENIZER, split
from fljax.experiment.building.learning import algorithm, rollback
from fljax.experiment.building.notes import FEWEST
from fljax.experiment.building.resolved import resolved
from fljax.experiment.comparing.comparison import Comparison, compare
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
