"""A fleet of phones: drawn from quantiles of 333 real ones.

The phones of 2009 to 2019 that AI Benchmark had ranked (Ignatov et al., "AI Benchmark:
All About Deep Learning on Smartphones in 2019", ICCV Workshops 2019), as the list lies
in FLASH (Yang et al., "Characterizing Impacts of Heterogeneity in Federated Learning
upon Large-Scale Smartphone Data", WWW 2021; github.com/PKU-Chengxu/FLASH,
`models/utils/device_util/raw_ai_benchmark_list.json`): speeds are its scores of float
networks on the CPU, memory is what the phones are sold with. The list counts models,
not the phones that people own. Of bandwidths it says nothing.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from fljax import bounds
from fljax.devices import fleet, fleet_sources
from fljax.runtime import streams

# Quantiles 0, .1, ..., 1 of the scores, over the best, 4310.
SPEEDS = (0.024, 0.064, 0.09, 0.175, 0.308, 0.359, 0.394, 0.473, 0.616, 0.798, 1.0)
# Gigabytes -> phones of the list.
MEMORIES = {
    **{0.5: 10, 0.75: 4, 1.0: 40, 1.5: 7, 2.0: 18, 3.0: 13},
    **{4.0: 96, 6.0: 78, 8.0: 57, 10.0: 1, 12.0: 9},
}
# Of the ranks of speed and memory over the list (Spearman's).
RANK_CORRELATION = 0.859


def phones(num_clients: int, seed: int, bandwidth: float = 0.5) -> fleet.Fleet:
    """Draws a fleet of phones.

    1.0 is the list's best phone in speed, and in memory, and the fleet's best in
    bandwidth. Speed and memory go together as their ranks do over the list, by a
    Gaussian copula; bandwidth is lognormal, independent of them, and the same both
    ways.

    Args:
      num_clients: N.
      seed: of the experiment.
      bandwidth: standard deviation of its log.

    Returns:
      A fleet of N rows, fastest device first.

    Raises:
      ValueError: the deviation is none.
    """
    allowed = bounds.Bounds(most=fleet.MOST_DEVIATION)
    if bandwidth not in allowed:
        raise ValueError(f"expected bandwidth as a number {allowed}, got {bandwidth}")
    generator = streams.generator(seed, streams.PHONES)
    fast, other, rates = generator.standard_normal((3, num_clients))
    together = 2 * np.sin(np.pi / 6 * RANK_CORRELATION)  # of normals of these ranks
    large = together * fast + np.sqrt(1 - together**2) * other
    speed = np.interp(special.ndtr(fast), np.linspace(0, 1, len(SPEEDS)), SPEEDS)
    sizes, numbers = np.array([*MEMORIES.items()]).T
    ends = np.cumsum(numbers) / numbers.sum()
    memory = sizes[np.searchsorted(ends[:-1], special.ndtr(large))]
    rate = np.exp(bandwidth * rates)
    return fleet_sources.drawn(speed, rate / rate.max(), memory / sizes.max())
