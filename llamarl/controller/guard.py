"""Stops a run whose policy degenerates, before another checkpoint replaces a healthy one."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.errors import CollapseError


class GuardConfig(Config):
    """Settings of the guard that stops a collapsed run. Both signs must hold for `patience` steps in a row."""

    patience: int = Field(default=10, ge=1)
    """Steps."""
    reward_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Collapsed if the step's mean reward is below this share of the best mean over `patience` steps; 0 turns it off.
    Only watched once that best is positive, so negative-only rewards are never judged by it."""
    min_length: float = Field(default=1.5, ge=0.0)
    """Collapsed if the mean completion is shorter than this many tokens, in a run that started longer; 0 is off."""


class CollapseGuard:
    """Watches reward and length, one step at a time."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._rewards: deque[float] = deque(maxlen=config.patience)
        self._best = 0.0
        self._starting_length: float | None = None
        self._low_reward = self._short = 0

    def state(self) -> dict[str, Any]:
        """State for `restore`, as plain JSON."""
        return {
            "rewards": list(self._rewards),
            "best": self._best,
            "starting_length": self._starting_length,
            "low_reward": self._low_reward,
            "short": self._short,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; an empty one changes nothing."""
        if not state:
            return
        self._rewards = deque(state["rewards"], maxlen=self.config.patience)
        self._best, self._starting_length = state["best"], state["starting_length"]
        self._low_reward, self._short = state["low_reward"], state["short"]

    def check(self, step: int, reward: float, length: float) -> None:
        """Takes one step's mean reward and mean completion length in tokens.

        Raises:
            CollapseError: says which sign held for how long.
        """
        config = self.config
        if self._starting_length is None:
            self._starting_length = length
        is_low = self._best > 0 and reward < config.reward_fraction * self._best
        self._low_reward = self._low_reward + 1 if is_low else 0
        self._short = self._short + 1 if length < config.min_length <= self._starting_length else 0
        self._rewards.append(reward)
        if len(self._rewards) == config.patience:
            self._best = max(self._best, fmean(self._rewards))
        if self._low_reward >= config.patience:
            raise CollapseError(
                f"step {step}: mean reward {reward:.4g} has been under {config.reward_fraction:g} of its best "
                f"({self._best:.4g}) for {config.patience} steps. Lower trainer.learning_rate or lengthen its warm-up, "
                "and go on with `llamarl resume RUN --step best`; guard.reward_fraction=0 turns this guard off"
            )
        if self._short >= config.patience:
            raise CollapseError(
                f"step {step}: completions average {length:.2f} tokens for {config.patience} steps (they started at "
                f"{self._starting_length:.1f}): the policy ends at once. Lower trainer.learning_rate, and go on with "
                "`llamarl resume RUN --step best`; guard.min_length=0 turns this guard off"
            )
