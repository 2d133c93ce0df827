"""Base of the algorithms on pairs: one better and one worse sample of each prompt, and a preference likelihood."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.base import (
    AlgorithmSettings,
    Loss,
    judged_groups,
    policy_metrics,
    require_tensor,
    reward_of,
    train_sample,
)
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.records import Assignment, Group, Sample
from llamarl.functional.losses import LossBatch, LossOutput, Metrics
from llamarl.functional.pairs import PairRows, dpo_terms, pair_rows
from llamarl.functional.ratios import by_token, log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class PairConfig(AlgorithmSettings):
    """Settings of algorithms on pairs. A subclass says which pair a group gives."""

    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference: DPO's usual value; CGPO names none."""
    off_policy: Literal["none", "as_is"] = "none"
    """`none`: as published, on pairs of the current policy, needs `schedule.max_staleness = 0`. `as_is`: stale pairs
    too. The loss is a likelihood of preferences, so it needs no ratio; but old pairs teach about old mistakes."""

    @property
    def needs(self) -> Needs:
        """The reference, and both samples of a pair in one micro-batch."""
        return Needs(
            reference=True,
            groups_together=True,
            comparison="group",
            corrects_staleness=self.off_policy != "none",
        )

    def credit(self) -> Credit:
        """Builds the half that picks the pairs."""
        return PairCredit(self)

    def loss(self) -> Loss:
        """Builds the preference loss."""
        return PairLoss(self)

    @abstractmethod
    def pair(self, samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
        """Picks the better and the worse of a group's judged samples, or None where there is no pair."""

    def likelihood(self, batch: LossBatch, pairs: PairRows) -> "Tensor | float":
        """Computes a further term to maximise, `[P]` or a number."""
        return 0.0

    def batch_metrics(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Measures a batch of judged groups; the names are logged under `algorithm/`."""
        return {}


class PairCredit(Credit):
    """Picks the pair of each group that has one: advantage 1 for the better sample, -1 for the worse.

    Of advantages per token the loss reads the sign of their mean, too.
    """

    def __init__(self, config: PairConfig) -> None:
        self._config = config

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Picks the pairs. Prompts without one count in the denominator."""
        batch = judged_groups(groups)
        pairs = ((group, self._pair(samples)) for group, samples in batch)
        found = [(group, pair) for group, pair in pairs if pair is not None]
        signs = (1.0, -1.0)
        samples = [train_sample(s, group, a) for group, pair in found for s, a in zip(pair, signs, strict=True)]
        metrics = {"skipped_prompts": float(len(batch) - len(found))}
        if batch:
            metrics["kept_frac"] = len(found) / len(batch)
        if found:
            metrics["reward_gap/mean"] = fmean(reward_of(better) - reward_of(worse) for _, (better, worse) in found)
        metrics |= {**self._config.batch_metrics(groups), **self._config.mask_metrics(groups)}
        return Assignment(tuple(samples), num_prompts=len(batch), metrics=metrics)

    def _pair(self, samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
        return self._config.pair([sample for sample in samples if self._config.may_train(sample)])


class PairLoss:
    """`-sum over pairs of (log sigmoid(beta * difference of log-ratios) + further term) / prompts of the batch`.

    Metrics over pairs: `train/pair/margin` (beta times the difference, nats), `train/pair/accuracy` (share of pairs
    whose better sample is the likelier one, relative to the reference), `train/pair/chosen_logprob` (per token).
    """

    def __init__(self, config: PairConfig) -> None:
        self._config = config

    def __call__(self, batch: LossBatch) -> LossOutput:
        """Computes one micro-batch's share of the step's loss.

        Raises:
            ValueError: no reference log-probs, or a group of the micro-batch is not a pair.
        """
        beta = self._config.beta
        reference = require_tensor(batch.reference_logprobs, "reference_logprobs")
        pairs = pair_rows(by_token(batch.advantages).mean(-1), batch.groups)
        log_ratios = (batch.logprobs - reference).masked_fill(~batch.mask, 0.0).sum(-1)
        terms = dpo_terms(log_ratios, pairs, beta) + self._config.likelihood(batch, pairs)
        loss = -(batch.weights[pairs.chosen] * terms).sum() / batch.denominators.prompts
        margins = beta * (log_ratios[pairs.chosen] - log_ratios[pairs.rejected]).detach()  # of metrics only
        metrics = policy_metrics(batch, log_ratio(batch.logprobs, batch.behavior_logprobs, batch.mask))
        return LossOutput(loss, metrics | _pair_metrics(margins, mean_logprobs(batch)[pairs.chosen]))


def mean_logprobs(batch: LossBatch) -> "Tensor":
    """Computes the log-prob per token of each completion, `[N]`, with gradient."""
    return batch.logprobs.masked_fill(~batch.mask, 0.0).sum(-1) / batch.mask.sum(-1).clamp(min=1)


def best_and_worst(better: Sequence[Sample], worse: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """Picks the best of one list and the worst of the other; None where they are one sample, or say the same."""
    if not better or not worse:
        return None
    best, worst = max(better, key=reward_of), min(worse, key=reward_of)
    is_same = best is worst or best.completion.text == worst.completion.text
    return None if is_same else (best, worst)


def _pair_metrics(margins: "Tensor", chosen: "Tensor") -> Metrics:
    count = float(len(margins))
    return {
        "train/pair/margin": (margins.sum(), count),
        "train/pair/accuracy": ((margins > 0).sum(), count),
        "train/pair/chosen_logprob": (chosen.detach().sum(), count),
    }
