"""What a client trains, and what that costs."""

from fljax.plans.plan import (
    DEFAULT_BITS,
    WIDTHS,
    Plan,
    all_windows,
    covering,
    freezes,
    full,
    is_full,
    of_windows,
    roles,
    upload_bytes,
    windows_of,
)

__all__ = [
    "DEFAULT_BITS",
    "WIDTHS",
    "Plan",
    "all_windows",
    "covering",
    "freezes",
    "full",
    "is_full",
    "of_windows",
    "roles",
    "upload_bytes",
    "windows_of",
]
