"""Which plan for which client."""

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
    too_small,
    uniform,
)

__all__ = [
    "BY_NAME",
    "Observation",
    "Policy",
    "Setting",
    "check_feasible",
    "from_function",
    "full",
    "largest",
    "random_maximal",
    "too_small",
    "uniform",
]
