"""The lengths of completions: a log-normal distribution whose longest are cut off at the limit of tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from llamarl.core.errors import ConfigError

_NORMAL = NormalDist()
SPREAD = 0.8
"""Standard deviation of the logarithm of a length, where nothing is known: half of all lengths are within 1.7 times the
median."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a completion: min(X, longest), X log-normal, so that the mean is `mean`."""

    mean: float
    longest: int
    spread: float = SPREAD
    """Standard deviation of ln X."""

    def __post_init__(self) -> None:
        if not 0 < self.mean <= self.longest:
            raise ConfigError(
                f"tokens={self.mean:g},{self.longest}: the mean must be above 0 and at most the longest; give MEAN,MAX"
            )

    @cached_property
    def location(self) -> float:
        """Mean of ln X, found by halving: the mean of what is cut off grows with it."""
        low, high = -5.0, math.log(self.longest) + 10.0 * self.spread + 1.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_at(middle) < self.mean else (low, middle)
        return (low + high) / 2

    def quantile(self, share: float) -> float:
        """The length that `share` of all completions do not exceed; `share` in (0, 1)."""
        return min(float(self.longest), math.exp(self.location + self.spread * _NORMAL.inv_cdf(share)))

    def sample(self, number: int) -> list[float]:
        """Lengths evenly spread over the distribution, ascending: the middles of as many equal shares."""
        return [self.quantile((index + 0.5) / number) for index in range(number)]

    @cached_property
    def mean_context(self) -> float:
        """Mean number of tokens before a token of a completion: E[l^2] / (2 E[l])."""
        lengths = self.sample(256)
        return sum(length**2 for length in lengths) / (2 * sum(lengths))

    def expected_longest(self, number: int) -> float:
        """The longest of so many completions, about: the quantile at number / (number + 1)."""
        return self.quantile(number / (number + 1))

    def _mean_at(self, location: float) -> float:
        """E[min(X, m)] = exp(mu + s^2/2) F((ln m - mu - s^2)/s) + m (1 - F((ln m - mu)/s)), F the normal cdf."""
        s, log_longest = self.spread, math.log(self.longest)
        within = math.exp(location + s**2 / 2) * _NORMAL.cdf((log_longest - location - s**2) / s)
        return within + self.longest * (1.0 - _NORMAL.cdf((log_longest - location) / s))


def mix(lengths: Sequence[float]) -> list[float]:
    """The lengths in an order that has nothing to do with them, the same at every call."""
    stride = next((each for each in (37, 41, 43, 47) if math.gcd(each, len(lengths)) == 1), 1)
    return [lengths[index * stride % len(lengths)] for index in range(len(lengths))]
