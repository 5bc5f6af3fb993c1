"""Aggregates: how the updates of a cohort become one, `--aggregate=krum:2`.

The mean is a running sum. The others see each update, over those who trained a block:
what nobody sent is missing, not 0.
"""

from fljax.updates.aggregates.base import Aggregate as Aggregate
from fljax.updates.aggregates.base import Combined as Combined
from fljax.updates.aggregates.base import Seen as Seen
from fljax.updates.aggregates.by_coordinate import Mean as Mean
from fljax.updates.aggregates.by_coordinate import Median as Median
from fljax.updates.aggregates.by_coordinate import TrimmedMean as TrimmedMean
from fljax.updates.aggregates.clipping import CenteredClipping as CenteredClipping
from fljax.updates.aggregates.geometric import GeometricMedian as GeometricMedian
from fljax.updates.aggregates.krum import Bulyan as Bulyan
from fljax.updates.aggregates.krum import Krum as Krum
from fljax.updates.aggregates.trust import FLTrust as FLTrust

BY_NAME = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "fltrust": FLTrust,
}
