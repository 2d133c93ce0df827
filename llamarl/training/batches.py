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
    device = scores.logprobs.device
    lengths = torch.tensor([sample.trajectory.response_length for sample in samples], device=device)

    def per_sample(name: str) -> Tensor:
        return torch.tensor([getattr(sample, name) for sample in samples], device=device)

    def pad(values: Tensor) -> Tensor:
        return pad_rows(values, lengths)[0]

    logprobs, mask = pad_rows(scores.logprobs, lengths)
    reference = pad(_join(samples, _reference, scores.logprobs)) if needs_reference else None
    behavior, weights = _join(samples, _behavior, scores.logprobs), None
    if samples[0].old_logprobs is not None:
        old = _join(samples, _old_logprobs, scores.logprobs)
        weights = None if behavior_cap is None else pad(_behavior_weights(old, behavior, behavior_cap))
        behavior = old
    return LossBatch(
        logprobs=logprobs,
        behavior_logprobs=pad(behavior),
        mask=mask,
        advantages=per_sample("advantages"),
        weights=per_sample("weight"),
        groups=per_sample("group"),
        denominators=denominators,
        reference_logprobs=reference,
        entropy=None if scores.entropy is None else pad(scores.entropy),
        values=None if values is None else pad(values),
        old_values=pad(_join(samples, _old_values, scores.logprobs)) if samples[0].old_values is not None else None,
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


def check_references(samples: Sequence[TrainSample], needs: Needs) -> None:
    """Raises `DataError` if the algorithm needs reference log-probs and a sampled completion has none."""
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


Numbers = Callable[[TrainSample], "array[float] | None"]
"""The numbers of a sample's response tokens; None where nobody knows them."""


def _join(samples: Sequence[TrainSample], numbers: Numbers, logprobs: Tensor) -> Tensor:
    """`[S]` of all samples. What nobody knows is the policy's own log-prob, as a constant: then nothing has changed."""
    found, unknown, place = array("f"), [], 0
    for sample in samples:
        length = sample.trajectory.response_length
        known = numbers(sample)
        if known is None:
            unknown.append(slice(place, place + length))
        found.extend(known or array("f", bytes(4 * length)))
        place += length
    joined = torch.frombuffer(found, dtype=torch.float32).to(logprobs.device)
    for part in unknown:
        joined[part] = logprobs[part].detach()
    return joined


def _behavior(sample: TrainSample) -> "array[float] | None":
    return sample.trajectory.logprobs if sample.trajectory.origin is Origin.POLICY else None


def _old_logprobs(sample: TrainSample) -> "array[float] | None":
    # A given response stays at ratio 1 in every update.
    return sample.old_logprobs if sample.trajectory.origin is Origin.POLICY else None


def _old_values(sample: TrainSample) -> "array[float] | None":
    return sample.old_values


def _reference(sample: TrainSample) -> "array[float] | None":
    return sample.reference_logprobs  # unknown of a given response: it counts as no divergence


def _behavior_weights(old: Tensor, behavior: Tensor, cap: float) -> Tensor:
    """`[S]` probability before the first update / probability at sampling, cut at `cap`."""
    return (old - behavior).clamp(max=math.log(cap)).exp()
