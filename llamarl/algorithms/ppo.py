"""PPO with a critic: clipped ratios on generalised advantages, a KL penalty per token in the reward.

    r_t       = - kl_coef * (log behaviour - log reference)_t, plus the judged reward at the last token
    A, return = generalised advantage estimation of r and the critic's values
    loss      = mean over tokens of  - min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A) + value_coef (V - return)^2 / 2

The critic is a linear head on the policy's last hidden states; it lives in the trainer and its checkpoints and is never
published or exported. Advantages and returns come from its values before the batch's first update, without gradient,
and stay the same in all updates. Values are not clipped.

"Proximal Policy Optimization Algorithms", Schulman et al. 2017, arXiv 1707.06347; for language models as in "Training
language models to follow instructions with human feedback", Ouyang et al. 2022, arXiv 2203.02155.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import (
    AlgorithmSettings,
    DualClipConfig,
    Loss,
    clip_metrics,
    judged_groups,
    policy_metrics,
    require_tensor,
    reward_of,
    train_sample,
    weigh_tokens,
)
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.records import Assignment, Group
from llamarl.functional.gae import Estimate, generalized_advantages, token_rewards
from llamarl.functional.losses import LossBatch, LossOutput, Reduction, masked_metric, reduce_terms
from llamarl.functional.ratios import clipped_objective, log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class PPOConfig(AlgorithmSettings, DualClipConfig):
    """Settings of PPO. Set `kl_coef = 0` to do without a reference model."""

    type: Literal["ppo"] = "ppo"
    reduction: Reduction = "token_mean"
    """Denominator of the sum over tokens (`llamarl.functional.losses`)."""
    clip: float = Field(default=0.2, gt=0.0)
    """The policy / behaviour ratio keeps its gradient within 1 -+ this."""
    kl_coef: float = Field(default=0.02, ge=0.0)
    """Penalty per token, in reward per nat of KL to the reference (InstructGPT's)."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """0 trusts the critic (less noise), 1 the rewards (no bias)."""
    value_coef: float = Field(default=0.1, gt=0.0)
    """Weight of the critic's loss. Its gradient reaches the policy's layers too, hence small: our choice."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """Weight of an entropy bonus."""

    @property
    def needs(self) -> Needs:
        """A critic; the reference for the KL penalty. A reward of 0 teaches the critic like any other."""
        return Needs(
            reference=self.kl_coef > 0,
            values=True,
            entropy_gradient=self.entropy_coef > 0,
            zero_advantages=True,
            corrects_staleness=True,
        )

    def credit(self) -> Credit:
        """Builds the half that passes rewards on."""
        return PPOCredit(self)

    def loss(self) -> Loss:
        """Builds the half with the critic."""
        return PPOLoss(self)


class PPOCredit(Credit):
    """Passes rewards on: the trainer estimates advantages from them. One reward each token would do as well."""

    def __init__(self, config: PPOConfig) -> None:
        self._config = config

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Turns the judged samples that may train into training samples, with the judged reward for the advantage."""
        batch, config = judged_groups(groups), self._config
        chosen = [(group, s) for group, members in batch for s in members if config.may_train(s)]
        samples = tuple(train_sample(s, group, reward_of(s)) for group, s in chosen)
        return Assignment(samples, num_prompts=len(batch), metrics=config.mask_metrics(groups))


class PPOLoss:
    """The policy's and the critic's loss, reduced over the step's denominators.

    Beside the policy gradients' metrics, over tokens: `train/value_loss` (squared error), `train/value/mean`,
    `train/return/mean`.
    """

    def __init__(self, config: PPOConfig) -> None:
        self._config = config

    def __call__(self, batch: LossBatch) -> LossOutput:
        """Computes one micro-batch's share of the step's loss.

        Raises:
            ValueError: the batch lacks values, or reference log-probs or entropy where their coefficient is not 0.
        """
        config = self._config
        values = require_tensor(batch.values, "values").masked_fill(~batch.mask, 0.0)
        found = self._estimate(batch, values if batch.old_values is None else batch.old_values)
        log_ratios = log_ratio(batch.logprobs, batch.behavior_logprobs, batch.mask)
        low = high = config.clip
        objective = clipped_objective(log_ratios, found.advantages, low=low, high=high, delta=config.delta)
        errors = (values - found.returns).square()
        terms = -weigh_tokens(objective.values, batch) + config.value_coef * errors / 2
        if config.entropy_coef > 0:
            terms = terms - config.entropy_coef * require_tensor(batch.entropy, "entropy", "entropy_coef")
        loss = reduce_terms(terms, batch.mask, batch.weights, batch.denominators, config.reduction)
        critic = {"train/value_loss": errors, "train/value/mean": values, "train/return/mean": found.returns}
        metrics = {key: masked_metric(value, batch.mask) for key, value in critic.items()}
        return LossOutput(loss, metrics | policy_metrics(batch, log_ratios) | clip_metrics(batch, objective))

    def _estimate(self, batch: LossBatch, values: "Tensor") -> Estimate:
        config, penalties = self._config, batch.behavior_logprobs.new_zeros(batch.mask.shape)
        if config.kl_coef > 0:
            reference = require_tensor(batch.reference_logprobs, "reference_logprobs", "kl_coef")
            penalties = config.kl_coef * (batch.behavior_logprobs - reference)
        rewards = token_rewards(batch.advantages, penalties, batch.mask)
        return generalized_advantages(rewards, values, batch.mask, gamma=config.gamma, lam=config.lam)
