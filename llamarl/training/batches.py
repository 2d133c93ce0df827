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
) -> LossBatch:
    """One micro-batch; `values` is `[S]`, the critic's.

    Tokens that no policy sampled (version below 0) have no behaviour policy; they count as the current policy's own, at
    ratio 1.

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
    return LossBatch(
        logprobs=logprobs,
        behavior_logprobs=pad(_behavior(samples, scores.logprobs)),
        mask=mask,
        advantages=per_sample("advantage"),
        weights=per_sample("weight"),
        groups=per_sample("group"),
        denominators=denominators,
        reference_logprobs=reference,
        entropy=None if scores.entropy is None else pad(scores.entropy),
        values=None if values is None else pad(values),
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
    given = [version < 0 for sample in samples for version in sample.versions]
    return torch.where(torch.tensor(given, device=known.device), logprobs.detach(), known) if any(given) else known


def _reference(samples: Sequence[TrainSample], logprobs: Tensor) -> Tensor:
    """`[S]`; a given response whose reference log-probs are unknown counts as no divergence."""
    values = [v for s in samples for v in s.reference_logprobs or (math.nan,) * len(s.token_ids)]
    known = torch.tensor(values, device=logprobs.device)
    return torch.where(known.isnan(), logprobs.detach(), known)
