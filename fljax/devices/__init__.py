"""The clients' devices: tiers, fleets, failures, and the virtual clock."""

from fljax.devices.tiers import (
    BUDGET_TAG,
    REFERENCE_TIERS,
    Limit,
    Tier,
    check_tiers,
    draw_between,
    limits,
    load_tiers,
    normals,
    parse_tiers,
    tier_of,
    uniforms,
)

__all__ = [
    "BUDGET_TAG",
    "REFERENCE_TIERS",
    "Limit",
    "Tier",
    "check_tiers",
    "draw_between",
    "limits",
    "load_tiers",
    "normals",
    "parse_tiers",
    "tier_of",
    "uniforms",
]
