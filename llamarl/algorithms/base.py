"""Base of the shipped algorithms: it turns groups into training samples, and an objective into a loss with its terms.

An algorithm is one class: its settings, whose defaults are the published ones, with what it computes from them.

    needs            what it asks of the run                          `core.algorithm.Needs`
    shaped_reward    a judged sample -> the reward that counts        plain numbers, on the controller
    advantages       rewards -> advantages                            plain numbers, on the controller
    objective        log-ratios -> what to maximise, token by token   tensors, on the trainer

`PolicyGradientCredit` and `PolicyGradientLoss` do the rest. An algorithm that is no policy gradient has halves of its
own (`core.algorithm.Algorithm`). Nothing here imports torch, so controllers and `--help` stay light.
"""

import math
from abc import abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from llamarl.core.algorithm import Algorithm, Credit, Needs
from llamarl.core.config import Config
from llamarl.core.records import Assignment, Group, Sample, TrainSample, pack_numbers
from llamarl.functional.advantages import Scale, group_advantages
from llamarl.functional.kl import KLLoss, kl_estimate, kl_loss
from llamarl.functional.losses import LossBatch, LossOutput, Metrics, Reduction, masked_metric, reduce_terms
from llamarl.functional.ratios import Objective, log_ratio

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[LossBatch], LossOutput]
"""The trainer's half of an algorithm."""


class AlgorithmSettings(Config, Algorithm):
    """Settings of every shipped algorithm."""

    mask_truncated: bool = False
    """Leave completions that the token limit cut out of the loss. Their rewards still count in means and standard
    deviations; but none is picked as the best, the worst or a right one."""

    def may_train(self, sample: Sample) -> bool:
        """Says whether a judged sample may reach the loss."""
        return not (self.mask_truncated and sample.completion.finish_reason == "length")

    def mask_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Measures `masked_frac`, the share of the judged samples that may not train; nothing where all may."""
        masked = [not self.may_train(sample) for group in groups for sample in group.samples if is_judged(sample)]
        return {"masked_frac": sum(masked) / len(masked)} if self.mask_truncated and masked else {}


class PolicyGradientConfig(AlgorithmSettings):
    """Settings of every policy gradient, which sets its own published defaults; by default group-mean advantages."""

    reduction: Reduction = "token_mean"
    """Denominator of the sum over tokens (`llamarl.functional.losses`)."""
    kl_coef: float = Field(default=0.0, ge=0.0)
    """Weight of the KL term towards the reference model; 0 needs no reference model."""
    kl_estimator: KLLoss = "k2"
    """The KL term (`llamarl.functional.kl`): k1_return and k2 pull by KL(policy || reference), k3 by its reverse."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """Weight of an entropy bonus."""

    @property
    def needs(self) -> Needs:
        """The reference for a KL term, and groups of several samples; stale samples are allowed."""
        return Needs(
            reference=self.kl_coef > 0,
            entropy_gradient=self.entropy_coef > 0,
            zero_advantages=self.kl_coef > 0 or self.entropy_coef > 0,
            comparison="group",
            corrects_staleness=True,
        )

    def credit(self) -> Credit:
        """Builds the half that assigns `advantages` to all judged samples."""
        return PolicyGradientCredit(self)

    def loss(self) -> Loss:
        """Builds the half that turns `objective` into a loss."""
        return PolicyGradientLoss(self)

    def shaped_reward(self, sample: Sample) -> float:
        """Computes the reward of a judged sample that advantages are taken from; here it is the judged one."""
        return reward_of(sample)

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes advantages `[N]` from shaped rewards and group numbers; here the reward minus its group's mean."""
        return group_advantages(rewards, groups)

    @abstractmethod
    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Computes the objective to maximise, per token, from policy / behaviour log-ratios `[N, T]`."""

    def batch_metrics(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Measures a batch of judged groups; the names are logged under `algorithm/`."""
        return {}


class ScaledConfig(PolicyGradientConfig):
    """Settings of algorithms that divide group-mean advantages by a standard deviation."""

    scale: Scale = "group"
    """Divisor of advantages: the standard deviation of the prompt's rewards (published), of all rewards of the step, or
    none."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the standard deviation, in the reward's unit."""

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Computes the reward minus the group's mean, over a standard deviation."""
        return group_advantages(rewards, groups, scale=self.scale, eps=self.eps)


class DualClipConfig(Config):
    """Settings of PPO's clip from below."""

    delta: float | None = Field(default=3.0, gt=1.0)
    """Dual clip: a token of negative advantage loses its gradient above this policy / behaviour ratio, which nothing
    else bounds. It can't act on samples of the newest policy. None: no bound, as published."""


class PolicyGradientCredit(Credit):
    """Gives every judged sample of a batch that may train its advantage."""

    def __init__(self, config: PolicyGradientConfig) -> None:
        self._config = config

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Turns judged samples into training samples, in order. Samples without a finite reward leave every mean."""
        chosen = [(i, sample) for i, group in enumerate(groups) for sample in group.samples if is_judged(sample)]
        rewards = [self._config.shaped_reward(sample) for _, sample in chosen]
        advantages = self._config.advantages(rewards, [i for i, _ in chosen])
        samples = tuple(
            train_sample(sample, groups[i], advantage)
            for (i, sample), advantage in zip(chosen, advantages, strict=True)
            if self._config.may_train(sample)
        )
        metrics = {**self._config.batch_metrics(groups), **self._config.mask_metrics(groups)}
        return Assignment(samples, num_prompts=len({i for i, _ in chosen}), metrics=metrics)


class PolicyGradientLoss:
    """`-objective + kl_coef * KL - entropy_coef * entropy`, reduced over the whole step's denominators.

    Metrics, each a mean over the tokens that reached the loss: `train/ratio/mean` (policy / behaviour; its expectation
    is 1 for tokens of the behaviour policy), `train/ppo_kl` (k3 of behaviour to policy, nats), `train/clip_frac/low`,
    `/high` and `/delta` (tokens whose weight or gradient was cut), and, where the batch has them, `train/kl_ref` (k3,
    nats) and `train/entropy` (nats).
    """

    def __init__(self, config: PolicyGradientConfig) -> None:
        self._config = config

    def __call__(self, batch: LossBatch) -> LossOutput:
        """Computes one micro-batch's share of the step's loss.

        Raises:
            ValueError: the batch lacks `reference_logprobs` or `entropy`, but their coefficient is not 0.
        """
        config = self._config
        log_ratios = log_ratio(batch.logprobs, batch.behavior_logprobs, batch.mask)
        objective = config.objective(batch, log_ratios)
        terms = -weigh_tokens(objective.values, batch)
        if config.kl_coef > 0:
            reference = require_tensor(batch.reference_logprobs, "reference_logprobs", "kl_coef")
            terms = terms + config.kl_coef * kl_loss(batch.logprobs, reference, batch.mask, config.kl_estimator)
        if config.entropy_coef > 0:
            terms = terms - config.entropy_coef * require_tensor(batch.entropy, "entropy", "entropy_coef")
        loss = reduce_terms(terms, batch.mask, batch.weights, batch.denominators, config.reduction)
        return LossOutput(loss, policy_metrics(batch, log_ratios) | clip_metrics(batch, objective))


def weigh_tokens(objective: "Tensor", batch: LossBatch) -> "Tensor":
    """Weighs each token's objective, where ratios are not taken to the policy that sampled it."""
    return objective if batch.token_weights is None else objective * batch.token_weights


def policy_metrics(batch: LossBatch, log_ratios: "Tensor") -> Metrics:
    """Measures the policy's distance from who sampled and from the reference, and its entropy, by token."""
    known = log_ratios.detach()  # metrics outlive the loss, and must not keep its graph in memory
    values = {"train/ratio/mean": known.exp(), "train/ppo_kl": known.expm1() - known}
    if batch.reference_logprobs is not None:
        values["train/kl_ref"] = kl_estimate(batch.logprobs.detach(), batch.reference_logprobs, batch.mask, "k3")
    if batch.entropy is not None:
        values["train/entropy"] = batch.entropy
    if batch.token_weights is not None:
        values["train/behavior_weight/mean"] = batch.token_weights
    return {key: masked_metric(value, batch.mask) for key, value in values.items()}


def clip_metrics(batch: LossBatch, objective: Objective) -> Metrics:
    """Counts the tokens of a batch that a bound acted on."""
    flags = {"train/clip_frac/low": objective.is_low, "train/clip_frac/high": objective.is_high}
    if objective.is_floored is not None:
        flags["train/clip_frac/delta"] = objective.is_floored
    return {key: masked_metric(flag, batch.mask) for key, flag in flags.items()}


def is_judged(sample: Sample) -> bool:
    """Says whether a sample may enter a mean: its reward is finite, and its constraints were judged."""
    return sample.reward is not None and math.isfinite(sample.reward) and sample.is_satisfied is not None


def judged_groups(groups: Sequence[Group]) -> list[tuple[Group, list[Sample]]]:
    """Finds the groups with at least one judged sample, and those samples."""
    found = [(group, [sample for sample in group.samples if is_judged(sample)]) for group in groups]
    return [(group, samples) for group, samples in found if samples]


def reward_of(sample: Sample) -> float:
    """Returns the reward of a judged sample."""
    assert sample.reward is not None
    return sample.reward


def train_sample(
    sample: Sample, group: Group, advantages: float | Sequence[float], loss_mask: Sequence[bool] | None = None
) -> TrainSample:
    """Makes the trainer's view of a sample.

    Args:
        sample: judged.
        group: the sample's group.
        advantages: one for all response tokens, or one for each.
        loss_mask: True for each response token that trains; None: all train.
    """
    return TrainSample(
        sample.completion.trajectory,
        pack_numbers(advantages) if isinstance(advantages, Sequence) else advantages,
        group.index,
        loss_mask=None if loss_mask is None else array("b", loss_mask),
        reference_logprobs=sample.reference_logprobs,
    )


def require_tensor(value: "Tensor | None", name: str, coefficient: str = "") -> "Tensor":
    """Returns the tensor. Raises `ValueError` if the batch lacks it, naming the coefficient that asks for it."""
    if value is None:
        why = f"{coefficient} > 0 needs it; fill it or set {coefficient} = 0" if coefficient else "the loss needs it"
        raise ValueError(f"LossBatch.{name} is missing, but {why}")
    return value
