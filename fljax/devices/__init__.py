"""The clients' devices: tiers, fleets, failures, and the virtual clock."""

from fljax.devices.tiers import (
    REFERENCE_TIERS,
    Limit,
    Tier,
    check_tiers,
    draw_between,
    limits,
    load_tiers,
    parse_tiers,
    tier_of,
)

__all__ = [
    "REFERENCE_TIERS",
    "Limit",
    "Tier",
    "check_tiers",
    "draw_between",
    "limits",
    "load_tiers",
    "parse_tiers",
    "tier_of",
]
