"""What rounds spend: epsilon of a noise multiplier, by dp-accounting.

Accountants of Google's library (`pip install -e '.[privacy]'`): numerical composition
of privacy losses (PLD) for Poisson cohorts and plain Gaussian noise, Renyi divergences
for cohorts of a fixed size. A cohort is told apart by what an observer may know of who
takes part; each kind below is one neighbouring relation.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import math
from typing import Any, ClassVar

from scipy import optimize

from fljax import bounds

INSTALL = "pip install -e '.[privacy]'"

# Of privacy losses; ten times finer ones change epsilon by less than a thousandth.
INTERVAL = 5e-3

_PRECISION = 1e-4  # of the noise that is found, relative
_MOST = 12  # of the logarithm of noise that is looked for


def _library(name: str = "") -> Any:
    """Imports dp-accounting.

    Raises:
      ValueError: it is not installed.
    """
    try:
        return importlib.import_module("dp_accounting" + name)
    except ImportError:
        raise ValueError(
            f"--privacy.clip: expected the package dp-accounting beside it, got none; "
            f"{INSTALL}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Cohort(abc.ABC):
    """How cohorts are drawn, as far as it hides who takes part.

    Attributes:
      by_client: whether times are counted for each client, not for the run.
      says: what neighbouring runs differ in, and the accountant.
    """

    by_client: ClassVar[bool] = False
    says: ClassVar[str] = ""

    @abc.abstractmethod
    def epsilon(self, noise: float, delta: float, times: int) -> float:
        """Gives what is spent.

        Args:
          noise: multiplier z.
          delta: of (epsilon, delta)-differential privacy.
          times: rounds, or those that one client takes part in.

        Returns:
          Epsilon.
        """


@dataclasses.dataclass(frozen=True)
class Poisson(Cohort):
    """Every client takes part by a coin of its own; of too many some at random.

    Attributes:
      clients: N.
      mean: of those who take part; each does with probability mean / N.
      most: of those who take part, whatever the coins say.
    """

    clients: int
    mean: int
    most: int

    says: ClassVar[str] = "a client added or removed; PLD of truncated Poisson cohorts"

    def epsilon(self, noise, delta, times):
        """Composes the privacy losses of truncated Poisson sampling (2508.15089)."""
        if not times:
            return 0.0
        losses = _poisson(self, noise)
        return float(losses.self_compose(times).get_epsilon_for_delta(delta))


@functools.lru_cache(64)
def _poisson(cohort: Poisson, noise: float) -> Any:
    """Makes the distribution of privacy losses of a round."""
    library = _library(".pld.privacy_loss_distribution")
    return library.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=cohort.clients,
        sampling_probability=cohort.mean / cohort.clients,
        truncated_batch_size=cohort.most,
        noise_multiplier=noise,
        value_discretization_interval=INTERVAL,
    )


@dataclasses.dataclass(frozen=True)
class Fixed(Cohort):
    """K of N clients, drawn without replacement.

    Neighbours have as many clients, so that one's update is replaced by another, which
    moves the sum by 2 C: the accountant takes its noise for that of C, so z / 2.

    Attributes:
      clients: N.
      mean: K.
    """

    clients: int
    mean: int

    says: ClassVar[str] = "a client replaced; RDP of cohorts of a fixed size"

    def epsilon(self, noise, delta, times):
        """Adds up Renyi divergences of sampling without replacement (1808.00087)."""
        if not times:
            return 0.0
        orders, divergences = _fixed(self, noise)
        found = _library(".rdp.rdp_privacy_accountant").compute_epsilon
        return float(found(orders, times * divergences, delta)[0])


@functools.lru_cache(64)
def _fixed(cohort: Fixed, noise: float) -> tuple[Any, Any]:
    """Gives the Renyi divergences of a round, and their orders."""
    dp, rdp = _library(), _library(".rdp")
    relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    event = dp.GaussianDpEvent(noise / 2)
    sampled = dp.SampledWithoutReplacementDpEvent(cohort.clients, cohort.mean, event)
    accountant.compose(sampled)
    # Kept, since the library takes a second for them and gives no other way to them.
    return accountant._orders, accountant._rdp


@dataclasses.dataclass(frozen=True)
class Known(Cohort):
    """Whoever it is, an observer may know who takes part: nothing is amplified.

    Times are the rounds that a client takes part in: k of them are one with noise
    z / sqrt(k).
    """

    by_client: ClassVar[bool] = True
    says: ClassVar[str] = "a client's updates left out; Gaussian noise of its rounds"

    def epsilon(self, noise, delta, times):
        """Composes Gaussian noise, in closed form (1805.06530)."""
        if not times:
            return 0.0
        gaussian = _library().get_epsilon_gaussian
        return float(gaussian(noise / math.sqrt(times), delta))


@functools.lru_cache(4096)
def epsilon(cohort: Cohort, noise: float, delta: float, times: int) -> float:
    """Gives what is spent, as `Cohort.epsilon`, and remembers it."""
    return cohort.epsilon(noise, delta, times)


def noise_for(cohort: Cohort, budget: float, delta: float, times: int) -> float:
    """Finds the noise multiplier that spends a budget.

    Args:
      cohort: how cohorts are drawn.
      budget: epsilon.
      delta: beside it.
      times: as of `Cohort.epsilon`.

    Returns:
      The least z, to a few ten thousandths, that spends no more.

    Raises:
      ValueError: none does.
    """

    def over(log: float) -> float:
        spent = epsilon(cohort, math.exp(log), delta, times)
        return math.log(max(spent, 1e-12) / budget) if spent < math.inf else 1e3

    low = high = 0.0
    while over(high) > 0:
        low, high = high, high + 1
        if high > _MOST:
            raise ValueError(
                f"--privacy.epsilon: expected a budget that some noise keeps within "
                f"{times} rounds at delta {delta:g}, got {budget:g}"
            )
    while low == high or over(low) <= 0:
        if low < -_MOST:
            return math.exp(low)  # the budget is more than any noise spends
        low, high = low - 1, low
    found = math.exp(optimize.brentq(over, low, high, xtol=_PRECISION))
    while epsilon(cohort, found, delta, times) > budget:
        found *= 1 + _PRECISION
    return found


def times_for(cohort: Cohort, noise: float, delta: float, budget: float) -> int:
    """Counts how often a noise multiplier keeps within a budget.

    Args:
      cohort: how cohorts are drawn.
      noise: z.
      delta: beside the budget.
      budget: epsilon.

    Returns:
      The most times, as of `Cohort.epsilon`, that spend no more than the budget.
    """

    def within(times: int) -> bool:
        return epsilon(cohort, noise, delta, times) <= budget

    low, high = 0, 1
    while high < bounds.MOST and within(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low
