"""Which plan for which client, and who takes part."""

from collections.abc import Callable

from fljax.policies.base import Seen, When, unmoved
from fljax.policies.oort import Oort
from fljax.policies.selection import Poisson, PowerOfChoice, Selection, Uniform
from fljax.policies.windows import (
    BY_NAME,
    Observation,
    Policy,
    Setting,
    check_feasible,
    from_function,
    full,
    largest,
    random_maximal,
    random_shared,
    too_small,
    uniform,
)

# Who takes part, by name: what `fljax.notation.make` reads.
SELECTIONS: dict[str, Callable[..., Selection]] = {
    "uniform": Uniform,
    "poisson": Poisson,
    "power_of_choice": PowerOfChoice,
    "oort": Oort,
}

__all__ = [
    "BY_NAME",
    "SELECTIONS",
    "Observation",
    "Oort",
    "Poisson",
    "Policy",
    "PowerOfChoice",
    "Seen",
    "Selection",
    "Setting",
    "Uniform",
    "When",
    "check_feasible",
    "from_function",
    "full",
    "largest",
    "random_maximal",
    "random_shared",
    "too_small",
    "uniform",
    "unmoved",
]
