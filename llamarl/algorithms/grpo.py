"""GRPO: group relative policy optimization, PPO's clip on rewards standardised within each prompt's group.

"DeepSeekMath", Shao et al. 2024, arXiv 2402.03300, section 4.1.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import DualClipConfig, ScaledConfig
from llamarl.functional.kl import KLLoss
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective, clipped_objective

if TYPE_CHECKING:
    from torch import Tensor


class GRPOConfig(ScaledConfig, DualClipConfig):
    """Settings of GRPO. Set `kl_coef = 0` to do without a reference model."""

    type: Literal["grpo"] = "grpo"
    clip: float = Field(default=0.2, gt=0.0)
    """The policy / behaviour ratio keeps its gradient within 1 -+ this. The paper names none: PPO's value."""
    reduction: Reduction = "sequence_mean"
    """Each sample's mean over its own tokens, so a token of a long sample weighs less."""
    kl_coef: float = Field(default=0.04, ge=0.0)
    """Weight of the KL term (section 4.2)."""
    kl_estimator: KLLoss = "k3"
    """The paper's equation 4. As a loss it pulls by the reverse KL; `k2` is right for KL(policy || reference)."""

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `min(r A, clamp(r, 1 - clip, 1 + clip) A)`, at least `delta A`."""
        low = high = self.clip
        return clipped_objective(log_ratios, batch.advantages, low=low, high=high, delta=self.delta)
