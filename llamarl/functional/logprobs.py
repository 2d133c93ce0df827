"""Log-probabilities and entropy of next-token distributions, accumulated in float32.

Shape legend: M tokens (packed, without padding), V vocabulary, N samples, T tokens of the longest sample.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target: `logits[target] / temperature - logsumexp(logits / temperature)`.

    Differentiable once. Keeps only the logits for the backward pass, never a second `[M, V]` table.

    Args:
        logits: `[M, V]`, any floating type; half precision is summed in float32.
        targets: `[M]` int64 token ids in [0, V).
        temperature: the one the tokens were sampled with, > 0. Leaving it out makes the ratio to the behaviour
            log-probs wrong at every token.

    Returns:
        `[M]`, float32 (float64 for float64 logits).

    Raises:
        ValueError: the shapes disagree or the temperature is not positive.
    """
    check_logits(logits, temperature)
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"token_logprobs: targets {tuple(targets.shape)} do not match logits {tuple(logits.shape)}")
    logprobs: Tensor = _TokenLogprobs.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]
    return logprobs


class Kept(NamedTuple):
    """The tokens that sampling filters left at each of M drawn ones, as one flat list of K."""

    ids: Tensor
    """`[K]` int64 token ids, those of one drawn token after those of another."""
    counts: Tensor
    """`[M]` int64 number of ids of each; 0: all tokens were left."""

    def of(self, places: Tensor) -> "Kept":
        """What was left at some of the drawn tokens, `places [P]`, in their order."""
        counts = self.counts[places]
        starts = (self.counts.cumsum(0) - self.counts)[places] - (counts.cumsum(0) - counts)
        shifts = starts.repeat_interleave(counts)
        return Kept(self.ids[torch.arange(len(shifts), device=shifts.device) + shifts], counts)


def kept_logprobs(logits: Tensor, targets: Tensor, kept: Kept, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target among the tokens that filters left when it was drawn.

        log pi(target | K) = z[target] - logsumexp over k in K of z[k],    z = logits / temperature

    K is a constant: the sampling policy's choice, not this policy's. So the gradient is that of the distribution that
    was really sampled, and the ratio to the behaviour log-probs is 1 at equal weights. Where K holds all tokens it is
    `token_logprobs`. "Keep Sampling Mask" of DeepSeek-V3.2, arXiv 2512.02556.

    Args:
        logits: `[M, V]`, any floating type; half precision is summed in float32.
        targets: `[M]` int64 token ids in [0, V).
        kept: the tokens left at each target.
        temperature: the one the tokens were sampled with, > 0.

    Returns:
        `[M]`, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes disagree, the temperature is not positive, or a target is not among its kept tokens.
    """
    check_logits(logits, temperature)
    if not targets.shape == kept.counts.shape == logits.shape[:1]:
        raise ValueError(
            f"kept_logprobs: targets {tuple(targets.shape)} and kept.counts {tuple(kept.counts.shape)} do not match "
            f"logits {tuple(logits.shape)}"
        )
    is_cut = kept.counts > 0
    rows = torch.arange(len(targets), device=targets.device).repeat_interleave(kept.counts)
    scaled = scale_logits(logits[rows, kept.ids], temperature)  # [K]
    logprobs = kept_scaled_logprobs(scaled, rows, targets, kept)
    if bool(is_cut.all()):
        return logprobs
    return logprobs.masked_scatter(~is_cut, token_logprobs(logits[~is_cut], targets[~is_cut], temperature))


def kept_scaled_logprobs(scaled: Tensor, rows: Tensor, targets: Tensor, kept: Kept) -> Tensor:
    """`kept_logprobs` of the kept tokens' logits alone, already divided by the temperature.

    Args:
        scaled: `[K]`, one of each kept token.
        rows: `[K]`, the number of its target.
        targets: `[M]` int64 token ids.
        kept: the tokens left at each target.

    Returns:
        `[M]`; where all tokens were left, numbers that mean nothing.

    Raises:
        ValueError: a target is not among its kept tokens.
    """
    is_cut = kept.counts > 0
    is_target = kept.ids == targets[rows]
    if int(is_target.sum()) != int(is_cut.sum()):
        raise ValueError("kept_logprobs: a target is not, or more than once, among the tokens kept for it")
    peak = scaled.new_zeros(len(targets)).scatter_reduce(0, rows, scaled.detach(), "amax", include_self=False)
    total = scaled.new_zeros(len(targets)).index_add(0, rows, (scaled - peak[rows]).exp())
    own = scaled[is_target] - peak[is_cut] - total[is_cut].log()
    return own.new_zeros(len(targets)).masked_scatter(is_cut, own)


def pick_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probs `[M, K]`, float32, of the same few `tokens [K]` in each row of `logits [M, V]`."""
    logits = logits.float()
    return logits.index_select(-1, tokens) - logits.logsumexp(-1, keepdim=True)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of each row's distribution, `logsumexp(z) - sum(softmax(z) z)` with `z = logits / temperature`.

    Differentiable; call it under `torch.no_grad()` where it only feeds a metric.

    Args:
        logits: `[M, V]`. An entry may be -inf: it has probability 0 and adds nothing.
        temperature: the sampling temperature, > 0.

    Returns:
        `[M]` in [0, log V], float32 (float64 for float64 logits).

    Raises:
        ValueError: the temperature is not positive.
    """
    check_logits(logits, temperature)
    scaled = scale_logits(logits, temperature)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        # a vocabulary's table is far larger than any cache: the fewer passes over it, the better
        log_normalizer = scaled.logsumexp(-1)
        probabilities = (scaled - log_normalizer[:, None]).exp_()
        mean: Tensor = torch.linalg.vecdot(probabilities, scaled)
        if not bool(mean.isnan().any()):  # 0 * -inf
            return log_normalizer - mean
    finite = scaled.masked_fill(scaled.isneginf(), 0.0)
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * finite).sum(-1)


def pad_rows(values: Tensor, lengths: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Lays packed per-token values out as one row per sample, padded right with zeros.

    `values == rows[mask]`, and gradients flow back the same way.

    Args:
        values: `[M]`, the samples' tokens one after the other.
        lengths: `[N]` tokens of each sample; they add up to M.

    Returns:
        `rows [N, T]` and `mask [N, T]` bool, True on real tokens; T is the largest length.

    Raises:
        ValueError: the lengths do not add up to M.
    """
    lengths = torch.as_tensor(lengths, device=values.device, dtype=torch.int64)
    total, longest = (int(lengths.sum()), int(lengths.max())) if len(lengths) else (0, 0)
    if total != len(values):
        raise ValueError(f"pad_rows: lengths add up to {total}, but there are {len(values)} values")
    mask = torch.arange(longest, device=values.device) < lengths[:, None]
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


class _TokenLogprobs(torch.autograd.Function):
    """Recomputes the softmax in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = scale_logits(logits, temperature)
        log_normalizer = scaled.logsumexp(-1)
        ctx.save_for_backward(logits, targets, log_normalizer)
        ctx.temperature = temperature
        return scaled.gather(-1, targets[:, None]).squeeze(-1) - log_normalizer

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, log_normalizer = ctx.saved_tensors
        column = grad[:, None] / ctx.temperature
        table = (scale_logits(logits, ctx.temperature) - log_normalizer[:, None]).exp_().mul_(-column)
        return table.scatter_add_(-1, targets[:, None], column).to(logits.dtype), None, None


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """`logits / temperature`, in float32 at least."""
    # A sum over a vocabulary loses its many small terms in half precision.
    full = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return full if temperature == 1.0 else full / temperature


def check_logits(logits: Tensor, temperature: float) -> None:
    """Raises `ValueError` unless logits are `[M, V]` and the temperature is positive."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be [M, V], got shape {tuple(logits.shape)}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be > 0, got {temperature}; greedy samples have no gradient")
