"""What the studies run: settings, and the variants that stand side by side in each.

One more study is one more mapping below, by its name in `STUDIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import robustness
from fljax import devices

Fields = Mapping[str, Any]  # of the configuration, by the names of their flags

# setting -> variant -> fields: every variant of a setting is run.
Study = Mapping[str, Mapping[str, Fields]]


def cross(settings: Mapping[str, Fields], variants: Mapping[str, Fields]) -> Study:
    """Puts every variant under every setting; its fields go before the setting's."""
    return {
        setting: {name: {**fields, **more} for name, more in variants.items()}
        for setting, fields in settings.items()
    }


_MILD = devices.parse_tiers(
    "strong:.34:1:1:1,medium:.33:.8:.75-1:.8,weak:.33:.6:.6-1:.6"
)
_STRONG = devices.parse_tiers(
    "strong:.34:1:1:1,medium:.33:.5:.4-.8:.5,weak:.33:.3:.3-.6:.3"
)
_CORRELATED = {"partition": "resource_correlated", "alpha": 0.1}

_IMBALANCE = cross(
    {
        f"{how} imbalance, {data}": {"tiers": tiers, **fields}
        for how, tiers in (("mild", _MILD), ("strong", _STRONG))
        for data, fields in (
            ("IID", {"partition": "iid"}),
            ("resource-correlated", _CORRELATED),
        )
    },
    {
        "cocofl": {"algorithm": "cocofl"},
        "uniform": {"algorithm": "cocofl", "policy": "uniform"},
        "fedavg": {"algorithm": "fedavg"},
        "fedavg_drop": {"algorithm": "fedavg_drop"},
    },
)


def _codes(rounding: str, scales: str, *widths: int) -> dict[str, Fields]:
    """Gives a variant for each width of codes."""
    how = {"frozen.rounding": rounding, "frozen.weight_scales": scales, **_CORRELATED}
    return {f"{bits} bits": {**how, "frozen.bits": bits} for bits in widths}


_BITS: Study = {
    "nearest, one scale a channel": {
        "float": {"frozen.fixed_point": "none", **_CORRELATED},
        **_codes("nearest", "channel", 8, 6, 5, 4, 3, 2),
        "adaptive": {"policy": "adaptive_bits", **_CORRELATED},
    },
    "nearest, one scale a tensor": _codes("nearest", "tensor", 8, 4, 3, 2),
    "stochastic, one scale a channel": _codes("stochastic", "channel", 8, 4, 3, 2),
    "stochastic, one scale a tensor": _codes("stochastic", "tensor", 8, 4, 3, 2),
}

# Narrow codes by max|x|, and one choice after the other on top of it.
_STEPS: Mapping[str, Fields] = {
    "max|x|": {
        "frozen.clipping": False,
        "frozen.half_steps": False,
        "frozen.group": 0,
        "frozen.unbiased": False,
        "frozen.edges": 0,
    },
    "+ clipping": {"frozen.clipping": True},
    "+ half steps": {"frozen.half_steps": True},
    "+ groups": {"frozen.group": 16},
    "+ unbiased": {"frozen.unbiased": True},
    "+ edges of 8 bits": {"frozen.edges": 8},
}


def _steps(bits: int) -> dict[str, Fields]:
    """Gives a variant for every step, each with those before it."""
    fields: dict[str, Any] = {"frozen.bits": bits}
    variants: dict[str, Fields] = {}
    for name, more in _STEPS.items():
        fields = {**fields, **more}
        variants[f"{bits} bits, {name}"] = fields
    return variants


_NARROW = cross(
    {"resource-correlated": _CORRELATED},
    {"8 bits": {}, **_steps(2), **_steps(3)},
)

# Speeds and bandwidths that move while the server looks every tenth round only; a cost
# table that is off; a deadline that half a window too much misses, or one that a device
# of 1.0 misses that trains everything.
_STALE = {
    "changes.drift": 0.3,
    "changes.drift_rounds": 15.0,
    "changes.bandwidth": 0.3,
    "changes.refresh": 10,
    "table_error": 0.2,
    "clock.deadline": 1.5,
    **_CORRELATED,
}
_POLICIES = cross(
    {
        f"{rate:.0%} drop out": {"failures.drop": rate, **_STALE}
        for rate in (0.0, 0.2, 0.4)
    }
    | {"tight deadline": {**_STALE, "clock.deadline": 0.9}},
    {
        name: {"algorithm": "cocofl", "policy": name}
        for name in ("random_maximal", "balanced", "online", "uniform")
    },
)

# Rates of the servers' rules are about what each was published with on images.
_ALGORITHMS = cross(
    {"Dirichlet .3": {"partition": "dirichlet", "alpha": 0.3}},
    {
        **{
            name: {"algorithm": name}
            for name in (
                *("fedavg", "cocofl", "fedprox:0.01", "scaffold", "feddyn:0.1"),
                *("fednova", "fedavgm:0.5", "fedadam:0.01", "fedyogi:0.01"),
                "fedadagrad:0.03",
            )
        },
        **{
            f"fedavg, {codec}": {"algorithm": "fedavg", "codec": codec}
            for codec in ("top_k:0.01", "qsgd:4", "drive", "signsgd")
        },
        **{
            f"fedavg, {aggregate}": {"algorithm": "fedavg", "aggregate": aggregate}
            for aggregate in ("median", "trimmed_mean:0.2")
        },
        "fedavg, power of choice": {
            "algorithm": "fedavg",
            "selection": "power_of_choice:20",
        },
        "cocofl, drive": {"algorithm": "cocofl", "codec": "drive"},
    },
)

# What the method is measured against, under the same budgets: full training of all, or
# of who can; less of what is sent; narrower networks; windows. `fit` gives every tier
# the widest network of its budgets, where the published halves leave some of them.
_METHODS = cross(
    {
        f"{how} imbalance, {data}": {"tiers": tiers, **fields}
        for how, tiers in (("mild", _MILD), ("strong", _STRONG))
        for data, fields in (
            ("IID", {"partition": "iid"}),
            ("Dirichlet .3", {"partition": "dirichlet", "alpha": 0.3}),
            ("resource-correlated", _CORRELATED),
        )
    },
    {
        **{
            name: {"algorithm": name}
            for name in (
                *("fedavg", "fedavg_drop", "heterofl", "heterofl:levels=fit"),
                *("fjord", "fedrolex:levels=fit", "cocofl", "cocofl_width"),
            )
        },
        "cocofl, balanced": {"algorithm": "cocofl", "policy": "balanced"},
        **{
            f"{name}, {codec}": {"algorithm": name, "codec": codec}
            for name, codec in (
                *(("fedavg", "top_k:0.01"), ("fedavg", "qsgd:4")),
                *(("cocofl", "drive"), ("heterofl:levels=fit", "drive")),
            )
        },
    },
)

STUDIES = {
    "methods": _METHODS,
    "imbalance": _IMBALANCE,
    "bits": _BITS,
    "narrow": _NARROW,
    "policies": _POLICIES,
    "algorithms": _ALGORITHMS,
    "robust": cross(robustness.SETTINGS, robustness.VARIANTS),
}
