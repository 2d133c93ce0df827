"""Training samples and their scores as the tensors that a loss reads.

Shape legend: N samples, T tokens of the longest completion, S tokens of all completions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llamarl.core.algorithm import Needs
from llamarl.core.errors import DataError
from llamarl.core.records import TrainSample
from llamarl.functional.logprobs import pad_rows
from llamarl.functional.losses import Denominators, LossBatch
from llamarl.scoring.logprobs import Scores


def loss_batch(
    samples: Sequence[TrainSample],
    scores: Scores,
    denominators: Denominators,
    *,
    needs_reference: bool,
    values: Tensor | None = None,
    behavior_cap: float | None = None,
) -> LossBatch:
    """Builds one micro-batch; `values` is `[S]`, the critic's.

    Tokens that no policy sampled (version below 0) have no behaviour policy; they count as the current policy's own, at
    ratio 1. Where samples hold old log-probs, ratios are taken to these, and tokens are weighted by old / behaviour, at
    most `behavior_cap`.

    Raises:
        DataError: a sample without reference log-probs where they are needed.
    """
    device = scores.logprobs.device
    lengths = torch.tensor([len(sample.token_ids) for sample in samples], device=device)

    def per_sample(name: str) -> Tensor:
        return torch.tensor([getattr(sample, name) for sample in samples], device=device)

    def pad(values: Tensor) -> Tensor:
        return pad_rows(values, lengths)[0]

    logprobs, mask = pad_rows(scores.logprobs, lengths)
    reference = pad(_reference(samples, scores.logprobs)) if needs_reference else None
    behavior, weights = _behavior(samples, scores.logprobs), None
    if samples[0].old_logprobs:
        old = _old_logprobs(samples, scores.logprobs)
        weights = None if behavior_cap is None else pad(_behavior_weights(old, behavior, behavior_cap))
        behavior = old
    return LossBatch(
        logprobs=logprobs,
        behavior_logprobs=pad(behavior),
        mask=mask,
        advantages=per_sample("advantage"),
        weights=per_sample("weight"),
        groups=per_sample("group"),
        denominators=denominators,
        reference_logprobs=reference,
        entropy=None if scores.entropy is None else pad(scores.entropy),
        values=None if values is None else pad(values),
        old_values=pad(_old_values(samples, device)) if samples[0].old_values else None,
        token_weights=weights,
    )


def is_current(samples: Sequence[TrainSample], mask: Tensor, version: int) -> Tensor:
    """`[N, T]` bool: tokens that the weights of `version` sampled."""
    versions = torch.tensor([value for sample in samples for value in sample.versions], device=mask.device)
    return torch.zeros_like(mask).masked_scatter(mask, versions == version)


def check_references(samples: Sequence[TrainSample], needs: Needs) -> None:
    """Raises `DataError` if the algorithm needs reference log-probs and a sampled completion has none."""
    for sample in samples if needs.reference else ():
        is_given = max(sample.versions) < 0 and not sample.reference_logprobs
        if len(sample.reference_logprobs) != len(sample.token_ids) and not is_given:
            raise DataError(
                f"group {sample.group}: a sample has {len(sample.reference_logprobs)} reference log-probs for "
                f"{len(sample.token_ids)} tokens, but its algorithm needs one per token; fill "
                "Sample.reference_logprobs (training.reference.ReferenceExecutor scores them) before `assign`"
            )


def _behavior(samples: Sequence[TrainSample], logprobs: Tensor) -> Tensor:
    known = torch.tensor([value for sample in samples for value in sample.logprobs], device=logprobs.device)
    # Nobody sampled a given token: the policy itself stands in, detached, for a ratio of 1 that still has a gradient.
    given = [version < 0 for sample in samples for version in sample.versions]
    return torch.where(torch.tensor(given, device=known.device), logprobs.detach(), known) if any(given) else known


def _old_logprobs(samples: Sequence[TrainSample], logprobs: Tensor) -> Tensor:
    """`[S]`; tokens that no policy sampled stay at ratio 1, in every update."""
    old = torch.tensor([value for sample in samples for value in sample.old_logprobs], device=logprobs.device)
    given = torch.tensor([version < 0 for s in samples for version in s.versions], device=logprobs.device)
    return torch.where(given, logprobs.detach(), old)


def _behavior_weights(old: Tensor, behavior: Tensor, cap: float) -> Tensor:
    """`[S]` probability before the first update / probability at sampling, cut at `cap`."""
    return (old - behavior).clamp(max=math.log(cap)).exp()


def _old_values(samples: Sequence[TrainSample], device: torch.device) -> Tensor:
    return torch.tensor([value for sample in samples for value in sample.old_values], device=device)


def _reference(samples: Sequence[TrainSample], logprobs: Tensor) -> Tensor:
    """`[S]`; a given response whose reference log-probs are unknown counts as no divergence."""
    values = [v for s in samples for v in s.reference_logprobs or (math.nan,) * len(s.token_ids)]
    known = torch.tensor(values, device=logprobs.device)
    return torch.where(known.isnan(), logprobs.detach(), known)
