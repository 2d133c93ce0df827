"""DAPO: decoupled clip and dynamic sampling.

Four changes to GRPO: a higher upper clip, groups without signal replaced by others, every token weighs the same, and a
soft penalty on overlong completions. "DAPO", Yu et al. 2025, arXiv 2503.14476.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from llamarl.algorithms.base import DualClipConfig, ScaledConfig, reward_of
from llamarl.core.algorithm import Needs
from llamarl.core.records import Sample
from llamarl.functional.losses import LossBatch
from llamarl.functional.ratios import Objective, clipped_objective

if TYPE_CHECKING:
    from torch import Tensor


class DAPOConfig(ScaledConfig, DualClipConfig):
    """Settings of DAPO."""

    type: Literal["dapo"] = "dapo"
    clip_low: float = Field(default=0.2, gt=0.0)
    """Largest fall of the policy / behaviour ratio below 1 (section 4.1)."""
    clip_high: float = Field(default=0.28, gt=0.0)
    """Largest rise of the ratio above 1: room for unlikely tokens to grow (section 4.1)."""
    dynamic_sampling: bool = True
    """Replace groups whose rewards are all equal by others (section 3.2)."""
    overlong_limit: int | None = Field(default=None, ge=1)
    """Completion length at which the length penalty reaches -1 (20480 in the paper); None adds no penalty."""
    overlong_buffer: int = Field(default=4096, ge=1)
    """The penalty starts this many tokens below the limit and falls linearly (section 3.4)."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.overlong_limit is not None and self.overlong_buffer > self.overlong_limit:
            raise ValueError(
                f"overlong_buffer = {self.overlong_buffer} exceeds overlong_limit = {self.overlong_limit}; lower it"
            )
        return self

    @property
    def needs(self) -> Needs:
        """The needs of every policy gradient, and groups whose rewards differ."""
        return replace(super().needs, varied_rewards=self.dynamic_sampling)

    def shaped_reward(self, sample: Sample) -> float:
        """Computes the judged reward plus the length penalty in [-1, 0]."""
        reward = reward_of(sample)
        if self.overlong_limit is None:
            return reward
        excess = sample.completion.trajectory.response_length - (self.overlong_limit - self.overlong_buffer)
        return reward - min(max(excess / self.overlong_buffer, 0.0), 1.0)

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes `min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A)`, at least `delta A`."""
        low, high = self.clip_low, self.clip_high
        return clipped_objective(log_ratios, batch.advantages, low=low, high=high, delta=self.delta)
