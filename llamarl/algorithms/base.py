"""What the shipped algorithms share: groups to training samples, and an objective to a loss with its extra terms.

An algorithm is a config whose defaults are the published setting and a class with two halves:

    assign   on the controller: judged groups -> samples with advantages (plain numbers)
    loss     on the trainer: one micro-batch of tensors -> its share of the step's loss

Of `loss` only `objective` differs between algorithms; of `assign` only `reward` and `advantages`. A new algorithm may
as well be any object with the same attributes. Nothing here imports torch, so controllers and `--help` stay light.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.records import Group, Sample, TrainSample
from llamarl.functional.advantages import group_advantages
from llamarl.functional.kl import KLLoss, kl_estimate, kl_loss
from llamarl.functional.losses import LossBatch, LossOutput, Metrics, Reduction, masked_metric, reduce_terms
from llamarl.functional.ratios import Objective, log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class PolicyGradientConfig(Config):
    """Settings every shipped algorithm has; each sets its own published defaults."""

    reduction: Reduction = "token_mean"
    """What the sum over tokens is divided by (`llamarl.functional.losses`)."""
    kl_coef: float = Field(default=0.0, ge=0.0)
    """Weight of the KL term towards the reference model; 0 needs no reference model."""
    kl_estimator: KLLoss = "k2"
    """The KL term (`llamarl.functional.kl`): k1_return and k2 pull by KL(policy || reference), k3 by its reverse."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """Weight of an entropy bonus."""


C = TypeVar("C", bound=PolicyGradientConfig)


class PolicyGradient(Generic[C]):
    """Base of the shipped algorithms: group-mean advantages, one objective, optional KL and entropy terms."""

    name: str
    """As in the config's `type`."""
    corrects_staleness: bool = True
    """Whether the objective weighs or clips by policy / behaviour. Without it, train with `max_staleness = 0`."""

    def __init__(self, config: C) -> None:
        self.config = config
        self.needs_reference = config.kl_coef > 0
        """Whether `loss` reads `reference_logprobs`."""
        self.needs_entropy_grad = config.entropy_coef > 0
        """Whether `loss` differentiates `entropy`; otherwise it only reports it, if given."""
        self.trains_zero_advantage = self.needs_reference or self.needs_entropy_grad
        """Whether samples of zero advantage still have a gradient; if not, the trainer may skip them."""
        self.drops_zero_signal = False
        """Whether the controller may drop groups whose rewards are all equal and generate others in their place."""

    def assign(self, groups: Sequence[Group]) -> list[TrainSample]:
        """Training samples with their advantages, in order. Samples without a finite reward leave every mean."""
        chosen = [(i, sample) for i, group in enumerate(groups) for sample in group.samples if _is_scored(sample)]
        advantages = self.advantages([self.reward(sample) for _, sample in chosen], [i for i, _ in chosen])
        return [
            TrainSample(
                prompt_ids=sample.completion.prompt_ids,
                token_ids=sample.completion.token_ids,
                logprobs=sample.completion.logprobs,
                versions=sample.completion.versions,
                advantage=advantage,
                group=groups[i].index,
            )
            for (i, sample), advantage in zip(chosen, advantages, strict=True)
        ]

    def reward(self, sample: Sample) -> float:
        """The reward that advantages are computed from; here the judged one."""
        assert sample.reward is not None
        return sample.reward

    def advantages(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Advantages `[N]` of scored samples; here the reward minus its group's mean."""
        return group_advantages(rewards, groups)

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """Per-token objective to maximise, of policy / behaviour log-ratios `[N, T]`."""
        raise NotImplementedError

    def loss(self, batch: LossBatch) -> LossOutput:
        """`-objective + kl_coef * KL - entropy_coef * entropy`, reduced over the whole step's denominators.

        Metrics, each a mean over the tokens that reached the loss: `train/ratio/mean` (policy / behaviour; its
        expectation is 1 for tokens of the behaviour policy), `train/ppo_kl` (k3 of behaviour to policy, nats),
        `train/clip_frac/low` and `/high` (tokens whose weight or gradient was cut), and, where the batch has them,
        `train/kl_ref` (k3, nats) and `train/entropy` (nats).

        Raises:
            ValueError: the batch lacks `reference_logprobs` or `entropy`, but their coefficient is not 0.
        """
        log_ratios = log_ratio(batch.logprobs, batch.behavior_logprobs, batch.mask)
        objective = self.objective(batch, log_ratios)
        terms = -objective.values
        if self.needs_reference:
            reference = _required(batch.reference_logprobs, "reference_logprobs", "kl_coef")
            terms = terms + self.config.kl_coef * kl_loss(
                batch.logprobs, reference, batch.mask, self.config.kl_estimator
            )
        if self.needs_entropy_grad:
            terms = terms - self.config.entropy_coef * _required(batch.entropy, "entropy", "entropy_coef")
        loss = reduce_terms(terms, batch.mask, batch.weights, batch.denominators, self.config.reduction)
        return LossOutput(loss, _metrics(batch, log_ratios.detach(), objective))


def _metrics(batch: LossBatch, log_ratios: "Tensor", objective: Objective) -> Metrics:
    ratios = log_ratios.exp()
    values = {
        "train/ratio/mean": ratios,
        "train/ppo_kl": log_ratios.expm1() - log_ratios,
        "train/clip_frac/low": objective.is_low,
        "train/clip_frac/high": objective.is_high,
    }
    if batch.reference_logprobs is not None:
        values["train/kl_ref"] = kl_estimate(batch.logprobs.detach(), batch.reference_logprobs, batch.mask, "k3")
    if batch.entropy is not None:
        values["train/entropy"] = batch.entropy
    return {key: masked_metric(value, batch.mask) for key, value in values.items()}


def _is_scored(sample: Sample) -> bool:
    return sample.reward is not None and math.isfinite(sample.reward)


def _required(value: "Tensor | None", name: str, coefficient: str) -> "Tensor":
    if value is None:
        raise ValueError(
            f"LossBatch.{name} is missing, but {coefficient} > 0 needs it; fill it or set {coefficient} = 0"
        )
    return value
