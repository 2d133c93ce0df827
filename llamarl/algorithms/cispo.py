"""CISPO: clipped importance weights instead of clipped updates, so that rare but decisive tokens keep their gradient.

With `min_weight = 0` its objective is AIPO's; the advantages differ (standardised here).
"MiniMax-M1", 2025, arXiv 2506.13585, section 3.1.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import ScaledConfig
from llamarl.functional.losses import LossBatch
from llamarl.functional.ratios import Objective, weighted_objective

if TYPE_CHECKING:
    from torch import Tensor


class CISPOConfig(ScaledConfig):
    """Settings of CISPO: the mean over the step's tokens, no KL term."""

    type: Literal["cispo"] = "cispo"
    min_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest importance weight, 1 - epsilon_low; the paper sets no lower bound."""
    max_weight: float = Field(default=5.0, ge=1.0)
    """Largest importance weight, 1 + epsilon_high. The paper names none; ScaleRL (arXiv 2510.13786) uses this order."""

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `sg(clamp(r, min_weight, max_weight)) A log policy`."""
        low, high = self.min_weight, self.max_weight
        return weighted_objective(batch.logprobs, log_ratios, batch.advantages, low=low, high=high)
