"""What the shipped algorithms share: groups to training samples, and an objective to a loss with its extra terms.

An algorithm is a config whose defaults are the published setting and a class with two halves:

    assign   on the controller: judged groups -> samples with advantages (plain numbers)
    loss     on the trainer: one micro-batch of tensors -> its share of the step's loss

Of `loss` only `objective` differs between algorithms; of `assign` only `reward` and `advantages`. A new algorithm may
as well be any object with the same attributes. Nothing here imports torch, so controllers and `--help` stay light.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.records import Assignment, Group, Sample, TrainSample
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


Comparison = Literal["group", "batch"]
"""Whom a sample's reward is compared with: the samples of its prompt, or those of the whole step."""

C = TypeVar("C", bound=PolicyGradientConfig)


class PolicyGradient(Generic[C]):
    """Base of the shipped algorithms: group-mean advantages, one objective, optional KL and entropy terms."""

    name: str
    """As in the config's `type`."""
    needs_values: bool = False
    """Whether `loss` reads `values`; the trainer then trains a value head."""
    keeps_groups_together: bool = False
    """Whether all samples of a group must reach `loss` in one micro-batch."""
    corrects_staleness: bool = True
    """Whether the objective weighs or clips by policy / behaviour. Without it, train with `max_staleness = 0`."""

    compares_within: Comparison | None = "group"
    """Among whom an advantage is relative: alone there, a sample has none. None: one sample teaches by itself."""
    learns_by_heart: bool = False
    """Whether completions train whoever sampled them, under whatever prompt: no probability of theirs is read."""
    assigns_in_thread: bool = False
    """Whether `assign` takes so long that it runs beside the loop. It is still called for one batch at a time."""

    def __init__(self, config: C) -> None:
        self.config = config
        self.needs_reference = config.kl_coef > 0
        """Whether samples need `reference_logprobs`."""
        self.needs_entropy_grad = config.entropy_coef > 0
        """Whether `loss` differentiates `entropy`; otherwise it only reports it, if given."""
        self.trains_zero_advantage = config.kl_coef > 0 or config.entropy_coef > 0
        """Whether samples of zero advantage still have a gradient; if not, the trainer may skip them."""
        self.drops_zero_signal = False
        """Whether the controller may drop groups whose rewards are all equal and generate others in their place."""

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Training samples with their advantages, in order. Samples without a finite reward leave every mean."""
        chosen = [(i, sample) for i, group in enumerate(groups) for sample in group.samples if is_judged(sample)]
        advantages = self.advantages([self.reward(sample) for _, sample in chosen], [i for i, _ in chosen])
        samples = tuple(
            train_sample(sample, groups[i], advantage)
            for (i, sample), advantage in zip(chosen, advantages, strict=True)
        )
        return Assignment(samples, num_prompts=len({i for i, _ in chosen}))

    def reward(self, sample: Sample) -> float:
        """The reward that advantages are computed from; here the judged one."""
        return reward_of(sample)

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
        if self.config.kl_coef > 0:
            reference = required(batch.reference_logprobs, "reference_logprobs", "kl_coef")
            terms = terms + self.config.kl_coef * kl_loss(
                batch.logprobs, reference, batch.mask, self.config.kl_estimator
            )
        if self.needs_entropy_grad:
            terms = terms - self.config.entropy_coef * required(batch.entropy, "entropy", "entropy_coef")
        loss = reduce_terms(terms, batch.mask, batch.weights, batch.denominators, self.config.reduction)
        return LossOutput(loss, policy_metrics(batch, log_ratios) | clip_metrics(batch, objective))


def policy_metrics(batch: LossBatch, log_ratios: "Tensor") -> Metrics:
    """How far the policy is from who sampled and from the reference, and its entropy, over the batch's tokens."""
    known = log_ratios.detach()
    values = {"train/ratio/mean": known.exp(), "train/ppo_kl": known.expm1() - known}
    if batch.reference_logprobs is not None:
        values["train/kl_ref"] = kl_estimate(batch.logprobs.detach(), batch.reference_logprobs, batch.mask, "k3")
    if batch.entropy is not None:
        values["train/entropy"] = batch.entropy
    return {key: masked_metric(value, batch.mask) for key, value in values.items()}


def clip_metrics(batch: LossBatch, objective: Objective) -> Metrics:
    """Shares of the batch's tokens that a bound acted on."""
    flags = {"train/clip_frac/low": objective.is_low, "train/clip_frac/high": objective.is_high}
    return {key: masked_metric(flag, batch.mask) for key, flag in flags.items()}


def is_judged(sample: Sample) -> bool:
    """Whether it may enter a mean: it has a finite reward, and it is known whether it meets its constraints."""
    return sample.reward is not None and math.isfinite(sample.reward) and sample.is_satisfied is not None


def judged(groups: Sequence[Group]) -> list[tuple[Group, list[Sample]]]:
    """Groups with at least one judged sample, and those samples."""
    found = [(group, [sample for sample in group.samples if is_judged(sample)]) for group in groups]
    return [(group, samples) for group, samples in found if samples]


def reward_of(sample: Sample) -> float:
    """The reward of a judged sample."""
    assert sample.reward is not None
    return sample.reward


def train_sample(sample: Sample, group: Group, advantage: float) -> TrainSample:
    """The trainer's view of a sample."""
    completion = sample.completion
    return TrainSample(
        prompt_ids=completion.prompt_ids,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        versions=completion.versions,
        advantage=advantage,
        group=group.index,
        reference_logprobs=sample.reference_logprobs or (),
    )


def required(value: "Tensor | None", name: str, coefficient: str = "") -> "Tensor":
    """The tensor. Raises `ValueError` if the batch lacks it, naming the coefficient that asks for it."""
    if value is None:
        why = f"{coefficient} > 0 needs it; fill it or set {coefficient} = 0" if coefficient else "the loss needs it"
        raise ValueError(f"LossBatch.{name} is missing, but {why}")
    return value
