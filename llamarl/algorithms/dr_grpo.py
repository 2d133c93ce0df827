"""Dr. GRPO: GRPO without its two biases, the division by the group's standard deviation and by each sample's length.

"Understanding R1-Zero-like training", Liu et al. 2025, arXiv 2503.20783.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import DualClipConfig, PolicyGradientConfig
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective, clipped_objective

if TYPE_CHECKING:
    from torch import Tensor


class DrGRPOConfig(PolicyGradientConfig, DualClipConfig):
    """Settings of Dr. GRPO."""

    type: Literal["dr_grpo"] = "dr_grpo"
    clip: float = Field(default=0.2, gt=0.0)
    """The policy / behaviour ratio keeps its gradient within 1 -+ this."""
    reduction: Reduction = "fixed_length"
    """Division by the token limit, a constant: neither short nor long samples are favoured."""

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `min(r A, clamp(r, 1 - clip, 1 + clip) A)`, at least `delta A`."""
        low = high = self.clip
        return clipped_objective(log_ratios, batch.advantages, low=low, high=high, delta=self.delta)
