"""REINFORCE++: PPO's clip on advantages standardised over the whole batch instead of within a group.

One sample per prompt is enough. With several, `group_baseline` first subtracts each group's mean (the paper's
"REINFORCE++-baseline"). "REINFORCE++", Hu et al. 2025, arXiv 2501.03262.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import DualClipConfig, PolicyGradientConfig
from llamarl.core.algorithm import Needs
from llamarl.functional.advantages import group_advantages
from llamarl.functional.kl import KLLoss
from llamarl.functional.losses import LossBatch
from llamarl.functional.ratios import Objective, clipped_objective

if TYPE_CHECKING:
    from torch import Tensor


class ReinforcePPConfig(PolicyGradientConfig, DualClipConfig):
    """Settings of REINFORCE++. Set `kl_coef = 0` to do without a reference model."""

    type: Literal["reinforce_pp"] = "reinforce_pp"
    clip: float = Field(default=0.2, gt=0.0)
    """The policy / behaviour ratio keeps its gradient within 1 -+ this."""
    group_baseline: bool = False
    """Subtract the group's mean before the batch is standardised."""
    kl_coef: float = Field(default=0.01, ge=0.0)
    """Weight of the KL term."""
    kl_estimator: KLLoss = "k1_return"
    """The penalty of all later tokens, as in the paper; added after standardising, where the paper adds it before."""

    @property
    def needs(self) -> Needs:
        """The needs of every policy gradient; without a group baseline a sample is compared with the whole batch."""
        return replace(super().needs, comparison="group" if self.group_baseline else "batch")

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes rewards, minus group means if asked, standardised over all samples of the step."""
        values = group_advantages(rewards, groups) if self.group_baseline else rewards
        return group_advantages(values, [0] * len(values), scale="group")

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `min(r A, clamp(r, 1 - clip, 1 + clip) A)`, at least `delta A`."""
        low = high = self.clip
        return clipped_objective(log_ratios, batch.advantages, low=low, high=high, delta=self.delta)
