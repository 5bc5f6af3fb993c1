"""Aggregates: how the updates of a cohort become one, `--aggregate=krum:2`.

The mean is a running sum. The others see each update, over those who trained a block:
what nobody sent is missing, not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fljax.updates.aggregates import (
    base,
    by_coordinate,
    clipping,
    geometric,
    krum,
    trust,
)

Aggregate = base.Aggregate
Combined = base.Combined
Seen = base.Seen

Mean = by_coordinate.Mean
Median = by_coordinate.Median
TrimmedMean = by_coordinate.TrimmedMean
Krum = krum.Krum
Bulyan = krum.Bulyan
GeometricMedian = geometric.GeometricMedian
CenteredClipping = clipping.CenteredClipping
FLTrust = trust.FLTrust

# What makes each, of the arguments that a text gives.
BY_NAME: Mapping[str, Callable[..., Aggregate]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "fltrust": FLTrust,
}
