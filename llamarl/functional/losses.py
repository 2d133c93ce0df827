"""The reduction of per-token objectives to one scalar: masks, weights, denominators and metrics.

A step's samples reach the loss in micro-batches. Each micro-batch loss is already divided by the denominators of the
whole step, so the micro-batch losses (and their gradients) simply add up, however the step was cut:

    reduction        loss                                                     a sample's tokens weigh
    token_mean       sum of all terms / tokens of the step                     the same as everybody's tokens
    sequence_mean    sum over samples of (their sum / their tokens) / samples    less in a long sample
    fixed_length     sum of all terms / (samples * max_tokens)                 the same, whatever the step's lengths
    sample_sum       sum of all terms / samples                                1: the log-prob of whole sequences
    group_sum        sum of all terms / groups with a sample                   1, per prompt
    prompt_sum       sum of all terms / prompts, those without a sample too    1, per prompt

Shape legend: N samples, T tokens. Nothing here imports torch: only methods of the tensors that come in are used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean", "fixed_length", "sample_sum", "group_sum", "prompt_sum"]
"""Denominator of a sum of per-token terms."""

Metrics = dict[str, tuple["Tensor | float", "Tensor | float"]]
"""Metric name -> a sum, and the count that it is divided by at the end. Both add up over micro-batches and ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Counts of one whole optimizer step, over all ranks, before any sample is skipped or put into a micro-batch."""

    tokens: int
    """Response tokens that train."""
    samples: int
    groups: int
    """Distinct prompts of these samples."""
    prompts: int
    """Prompts of the batch, those included of which no sample trains."""
    max_tokens: int
    """The token limit of a completion."""

    def __post_init__(self) -> None:
        if min(self.tokens, self.samples, self.groups, self.max_tokens) < 1:
            raise ValueError(f"{self}: every count must be at least 1; do not step on an empty batch")
        if self.prompts < self.groups:
            raise ValueError(f"{self}: prompts must count every group, those without a sample included")

    @classmethod
    def count(cls, lengths: Sequence[int], groups: Sequence[int], *, prompts: int, max_tokens: int) -> "Denominators":
        """Counts a step from each sample's tokens that train and its group, and the prompts of its batch."""
        return cls(
            tokens=sum(lengths),
            samples=len(lengths),
            groups=len(set(groups)),
            prompts=prompts,
            max_tokens=max_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossBatch:
    """One micro-batch of responses, padded right. What lies where the mask is False never matters."""

    logprobs: "Tensor"
    """`[N, T]` float, of the policy being trained, with gradient."""
    behavior_logprobs: "Tensor"
    """`[N, T]` float, that ratios are taken to: recorded by the generator at sampling time, or, where a batch gets
    several updates, the trainer's own from before the first."""
    mask: "Tensor"
    """`[N, T]` bool, True on response tokens that train, the end token included; False on padding, and where a sample's
    loss mask says so."""
    advantages: "Tensor"
    """`[N]` float, or `[N, T]` where each token has its own."""
    weights: "Tensor"
    """`[N]` float: multiplies all loss terms of a sample, never a denominator."""
    groups: "Tensor"
    """`[N]` int64: samples of one prompt share a number."""
    denominators: Denominators
    reference_logprobs: "Tensor | None" = None
    """`[N, T]` float, of the reference policy."""
    entropy: "Tensor | None" = None
    """`[N, T]` float in nats; with gradient where the algorithm has an entropy term."""
    values: "Tensor | None" = None
    """`[N, T]` float, with gradient: the critic's value of the state before each token."""
    old_values: "Tensor | None" = None
    """`[N, T]` float: the same from before the batch's first update; None where this is the first."""
    token_weights: "Tensor | None" = None
    """`[N, T]` float: multiplies the objective of each token, where `behavior_logprobs` are not of who sampled it."""

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        if len(shape) != 2 or str(self.mask.dtype) != "torch.bool":
            raise ValueError(f"LossBatch.mask must be a bool tensor [N, T], got {self.mask.dtype} {shape}")
        per_token = {
            "logprobs": self.logprobs,
            "behavior_logprobs": self.behavior_logprobs,
            "reference_logprobs": self.reference_logprobs,
            "entropy": self.entropy,
            "values": self.values,
            "old_values": self.old_values,
            "token_weights": self.token_weights,
        }
        for name, value in per_token.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"LossBatch.{name} has shape {tuple(value.shape)}, but mask has {shape}")
        for name, value in {"advantages": self.advantages, "weights": self.weights, "groups": self.groups}.items():
            allowed = [shape[:1], shape] if name == "advantages" else [shape[:1]]
            if tuple(value.shape) not in allowed:
                wanted = " or ".join(map(str, allowed))
                raise ValueError(f"LossBatch.{name} has shape {tuple(value.shape)}; want {wanted}")


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The loss of one micro-batch and what to log of it."""

    loss: "Tensor"
    """Scalar, divided by the whole step's denominators: add it up over micro-batches."""
    metrics: Metrics
    """Detached sums and counts over the tokens seen; see `mean_metrics`."""


def reduce_terms(
    terms: "Tensor", mask: "Tensor", weights: "Tensor", denominators: Denominators, reduction: Reduction
) -> "Tensor":
    """The step's share of a micro-batch: weighted, masked sum of per-token terms over the step's denominator.

    Args:
        terms: `[N, T]`; anything, even NaN, where masked.
        mask: `[N, T]` bool, True on tokens that count.
        weights: `[N]`.
        denominators: of the whole optimizer step.
        reduction: see the module.

    Returns:
        A scalar; over the micro-batches of a step these add up to the reduction of the whole step.
    """
    sums = terms.masked_fill(~mask, 0.0).sum(-1)
    if reduction == "sequence_mean":
        sums = sums / mask.sum(-1).clamp(min=1)
    return (weights * sums).sum() / _divisor(denominators, reduction)


def masked_metric(values: "Tensor", mask: "Tensor") -> "tuple[Tensor, Tensor]":
    """Detached sum of the values (`[N, T]`, numbers or flags) where `mask` is True, and how many these are."""
    return values.detach().masked_fill(~mask, 0).sum(), mask.sum()


def mean_metrics(parts: Iterable[Mapping[str, "tuple[Tensor | float, Tensor | float]"]]) -> dict[str, float]:
    """Divides the micro-batches' sums by their counts, at the very end. Keys that counted nothing are left out."""
    return {key: value / count for key, (value, count) in sum_metrics(parts).items() if count > 0}


def sum_metrics(
    parts: Iterable[Mapping[str, "tuple[Tensor | float, Tensor | float]"]],
) -> dict[str, tuple[float, float]]:
    """Adds up the micro-batches' sums and counts.

    Tensors are read here and only here, so that an accelerator is not waited for in between.
    """
    totals: Metrics = {}
    for part in parts:
        for key, (value, count) in part.items():
            old_value, old_count = totals.get(key, (0.0, 0.0))
            totals[key] = (old_value + value, old_count + count)
    return {key: (float(value), float(count)) for key, (value, count) in totals.items()}


def _divisor(denominators: Denominators, reduction: Reduction) -> int:
    if reduction == "token_mean":
        return denominators.tokens
    if reduction == "fixed_length":
        return denominators.samples * denominators.max_tokens
    if reduction == "group_sum":
        return denominators.groups
    if reduction == "prompt_sum":
        return denominators.prompts
    if reduction == "sequence_mean" or reduction == "sample_sum":
        return denominators.samples
    assert_never(reduction)
