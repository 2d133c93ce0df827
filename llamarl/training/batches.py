"""Training samples and their scores as the tensors that a loss reads.

Shape legend: N samples, T tokens of the longest response, S tokens of all responses.
"""

import math
from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamarl.core.algorithm import Needs
from llamarl.core.errors import DataError
from llamarl.core.records import Origin, TrainSample
from llamarl.core.sampling import Sampling
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

    Responses that no policy sampled have no behaviour policy; their tokens count as the current policy's own, at ratio
    1. Where samples hold old log-probs, ratios are taken to these, and tokens are weighted by old / behaviour, at
    most `behavior_cap`.

    Raises:
        DataError: a sample without reference log-probs where they are needed.
    """
    own, device = scores.logprobs.detach(), scores.logprobs.device
    lengths = torch.tensor([sample.trajectory.response_length for sample in samples], device=device)

    def pad(values: Tensor) -> Tensor:
        return pad_rows(values, lengths)[0]

    def lay_out(numbers: Callable[[TrainSample], "array[float] | None"]) -> Tensor:
        return pad(_join([numbers(sample) for sample in samples], lengths.tolist(), own))

    logprobs, mask = pad_rows(scores.logprobs, lengths)
    if any(sample.loss_mask is not None for sample in samples):
        mask = mask & pad(_join_masks(samples, device))
    if isinstance(samples[0].advantages, array):
        # Zeros under the mask: a sequence's ratio would carry a NaN from there into the gradient of other tokens.
        by_token = lay_out(lambda sample: sample.advantages if isinstance(sample.advantages, array) else None)
        advantages = by_token.masked_fill(~mask, 0.0)
    else:
        advantages = torch.tensor([sample.advantages for sample in samples], device=device)
    behavior, weights = lay_out(lambda sample: sample.trajectory.logprobs if _is_sampled(sample) else None), None
    if samples[0].old_logprobs is not None:
        old = lay_out(lambda sample: sample.old_logprobs if _is_sampled(sample) else None)
        weights = None if behavior_cap is None else (old - behavior).clamp(max=math.log(behavior_cap)).exp()
        behavior = old
    return LossBatch(
        logprobs=logprobs,
        behavior_logprobs=behavior,
        mask=mask,
        advantages=advantages,
        weights=torch.tensor([sample.weight for sample in samples], device=device),
        groups=torch.tensor([sample.group for sample in samples], device=device),
        denominators=denominators,
        # Unknown of given responses: they count as no divergence.
        reference_logprobs=lay_out(lambda sample: sample.reference_logprobs) if needs_reference else None,
        entropy=None if scores.entropy is None else pad(scores.entropy),
        values=None if values is None else pad(values),
        old_values=None if samples[0].old_values is None else lay_out(lambda sample: sample.old_values),
        token_weights=weights,
    )


def is_current(samples: Sequence[TrainSample], version: int, device: torch.device) -> Tensor:
    """`[N, T]` bool: tokens that the weights of `version` sampled."""
    lengths, flags = [sample.trajectory.response_length for sample in samples], bytearray()
    for sample, length in zip(samples, lengths, strict=True):
        runs = sample.trajectory.versions or ((version + 1, length),)  # of a given response: never current
        for sampled_at, count in runs:
            flags += bytes([sampled_at == version]) * count
    return pad_rows(torch.frombuffer(flags, dtype=torch.bool).to(device), lengths)[0]


def check_samples(samples: Sequence[TrainSample], needs: Needs, sampling: Sampling) -> None:
    """Looks at a task's batch.

    Raises:
        DataError: some samples have one advantage and others one per token, the algorithm needs reference log-probs
            and a sampled completion has none, or it reads log-probs that are relative to unknown tokens.
    """
    for sample in () if needs.ignores_behavior_logprobs or not sampling.filters else samples:
        if _is_sampled(sample) and sample.trajectory.support is None:
            raise DataError(
                f"group {sample.group}: sampled with {sampling.filters}, but without the tokens that these left "
                "(Trajectory.support); ask the generator for them (GenerationRequest.keeps_support)"
            )
    kinds = {isinstance(sample.advantages, array): sample.group for sample in samples}
    if len(kinds) > 1:
        raise DataError(
            f"group {kinds[True]} has advantages per token and group {kinds[False]} one per sample; `assign` must give "
            "all samples of a batch the one or the other"
        )
    for sample in samples if needs.reference else ():
        known, wanted = sample.reference_logprobs, sample.trajectory.response_length
        if known is None and sample.trajectory.origin is Origin.GIVEN:
            continue
        if known is None or len(known) != wanted:
            raise DataError(
                f"group {sample.group}: a sample has {len(known or ())} reference log-probs for {wanted} tokens, but "
                "its algorithm needs one per token; fill Sample.reference_logprobs "
                "(training.reference.ReferenceExecutor scores them) before `assign`"
            )


def _is_sampled(sample: TrainSample) -> bool:
    return sample.trajectory.origin is Origin.POLICY


def _join(numbers: Sequence["array[float] | None"], lengths: Sequence[int], own: Tensor) -> Tensor:
    """`[S]`; where a sample's are unknown, the policy's own log-probs `own [S]` stand in: then nothing has changed."""
    known = array("f")
    for values, length in zip(numbers, lengths, strict=True):
        known.extend(array("f", bytes(4 * length)) if values is None else values)
    joined, place = torch.frombuffer(known, dtype=torch.float32).to(own.device), 0
    for values, length in zip(numbers, lengths, strict=True):
        if values is None:
            joined[place : place + length] = own[place : place + length]
        place += length
    return joined


def _join_masks(samples: Sequence[TrainSample], device: torch.device) -> Tensor:
    """`[S]` bool: tokens that the samples' loss masks leave."""
    masks = (s.loss_mask or array("b", bytes([1]) * s.trajectory.response_length) for s in samples)
    return torch.frombuffer(bytearray().join(masks), dtype=torch.bool).to(device)
