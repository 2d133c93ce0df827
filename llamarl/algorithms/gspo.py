"""GSPO: group sequence policy optimization, one length-normalised ratio and one clip per completion.

"Group Sequence Policy Optimization", Zheng et al. 2025, arXiv 2507.18071.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import DualClipConfig, ScaledConfig
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective, clipped_objective, sequence_log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class GSPOConfig(ScaledConfig, DualClipConfig):
    """Settings of GSPO.

    The clip is narrow because the mean log-ratio of a long sequence varies far less than a token's. Short completions,
    several steps of staleness or a low-precision generator leave the published range at once: widen it there and watch
    `train/clip_frac/low` and `/high`.
    """

    type: Literal["gspo"] = "gspo"
    clip_low: float = Field(default=3e-4, gt=0.0)
    """Largest fall of the sequence ratio below 1 (section 5.1)."""
    clip_high: float = Field(default=4e-4, gt=0.0)
    """Largest rise of the sequence ratio above 1 (section 5.1)."""
    reduction: Reduction = "sequence_mean"
    """Every completion weighs the same (equation 5)."""

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `min(s A, clamp(s, 1 - clip_low, 1 + clip_high) A)`, at least `delta A`, of the sequence ratio s."""
        ratios, low, high = sequence_log_ratio(log_ratios, batch.mask), self.clip_low, self.clip_high
        return clipped_objective(ratios, batch.advantages, low=low, high=high, delta=self.delta)
