"""One number for a span of tokens, from a number for each: means, and means of the worst.

    pool = Pooling.parse("worst-10%")
    pool([0.9, 0.2, 0.7], lowest=True)      # 0.2: ten percent of three tokens are one

Reference: the internal states that Qin et al., https://arxiv.org/abs/2505.12265, section 3, compare.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

_WORST = re.compile(r"worst-([1-9]\d{0,5})(%?)")
SHIPPED = ("mean", "geometric", "worst-1", "worst-3", "worst-5", "worst-5%", "worst-10%", "worst-15%")
"""The paper's ways; K and P of `worst-K` and `worst-P%` may be any."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """A way to pool values."""

    name: str
    count: int | None = None
    """The number of worst values whose mean is taken; None: by share, or of all."""
    percent: int | None = None
    """The share of them; rounded up, so at least one value counts."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """The way of this name: `mean`, `geometric`, `worst-K` or `worst-P%`. Raises `ValueError` for another."""
        if name in ("mean", "geometric"):
            return cls(name)
        match = _WORST.fullmatch(name)
        if match is None or (match[2] and int(match[1]) > 100):
            raise ValueError(f"{name!r} is none of mean, geometric, worst-K and worst-P%, such as worst-3")
        number = int(match[1])
        return cls(name, None if match[2] else number, number if match[2] else None)

    def __call__(self, values: Sequence[float], *, lowest: bool) -> float:
        """The pooled value.

        Args:
            values: at least one; not negative where the mean is geometric.
            lowest: whether the worst values are the lowest, as probabilities are, or the highest, as entropies are.
        """
        if self.name == "geometric":
            if not all(values):
                return 0.0
            return math.exp(math.fsum(math.log(value) for value in values) / len(values))
        count = len(values)
        if self.count is not None:
            count = min(self.count, count)
        elif self.percent is not None:
            count = math.ceil(self.percent * count / 100)
        worst = sorted(values, reverse=not lowest)[:count]
        return math.fsum(worst) / count
