"""Log-probs and entropy of logits that several ranks hold, each of some of the tokens; of lone ones they are plain.

    z = logits / temperature of all tokens v,  m = max z,  log Z = m + log sum exp(z - m)
    log p(target) = z[target] - log Z          entropy = log Z - sum p z

The maximum and the sums are taken over the ranks; z[target] comes from the rank that has the target, the others add 0.
So no rank holds a row of all logits, and per token a few numbers are exchanged. What comes out is the same on all
ranks, and so is its gradient, of which each rank gives its logits their part without another exchange.

"Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053, section 3.

Shape legend: M tokens, V vocabulary, W tokens of the vocabulary that this rank has, K kept or asked tokens.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llamarl.functional.logprobs import (
    Kept,
    check_logits,
    kept_logprobs,
    kept_scaled_logprobs,
    pick_logprobs,
    scale_logits,
    token_entropy,
    token_logprobs,
)


class Vocabulary(Protocol):
    """The tokens that logits are of."""

    @property
    def width(self) -> int:
        """The most tokens that a rank has logits of; the same on all ranks."""

    def logprobs(self, logits: Tensor, targets: Tensor, temperature: float, kept: Kept | None = None) -> Tensor:
        """Log-probability `[M]` of each target, among all tokens or the kept ones."""

    def logprobs_of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities `[M, K]` of the same few `tokens [K]` in each row."""

    def entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Entropy `[M]` in nats, over all tokens."""


@dataclass(frozen=True, slots=True)
class WholeVocabulary:
    """All tokens, on one rank."""

    width: int

    def logprobs(self, logits: Tensor, targets: Tensor, temperature: float, kept: Kept | None = None) -> Tensor:
        """Log-probability `[M]` of each target, among all tokens or the kept ones."""
        if kept is None:
            return token_logprobs(logits, targets, temperature)
        return kept_logprobs(logits, targets, kept, temperature)

    def logprobs_of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities `[M, K]` of the same few `tokens [K]` in each row."""
        return pick_logprobs(logits, tokens)

    def entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Entropy `[M]` in nats."""
        return token_entropy(logits, temperature)


class Reduce(Protocol):
    """Exchanges between the ranks that share a vocabulary. All of them call each, with tensors of one shape."""

    def largest(self, x: Tensor) -> Tensor:
        """The maximum over the ranks, without a gradient."""

    def total(self, x: Tensor) -> Tensor:
        """The sum over the ranks; each rank's gradient is that of the sum."""


@dataclass(frozen=True, slots=True)
class SplitVocabulary:
    """A stretch of the tokens; the rest is on other ranks.

    Args:
        start: first token of this rank.
        size: its tokens, `W`.
        width: the most tokens of any rank.
        reduce: the ranks together.
    """

    start: int
    size: int
    width: int
    reduce: Reduce

    def logprobs(self, logits: Tensor, targets: Tensor, temperature: float, kept: Kept | None = None) -> Tensor:
        """Log-probability `[M]` of each target, among all tokens or the kept ones, of `logits [M, W]`."""
        check_logits(logits, temperature)
        if kept is None:
            whole: Tensor = _SplitLogprobs.apply(logits, targets, temperature, self)  # type: ignore[no-untyped-call]
            return whole
        rows = torch.arange(len(targets), device=targets.device).repeat_interleave(kept.counts)
        local, is_own = self.place(kept.ids)
        own = scale_logits(logits[rows, local], temperature).masked_fill(~is_own, 0.0)
        logprobs = kept_scaled_logprobs(self.reduce.total(own), rows, targets, kept)
        is_whole = kept.counts == 0
        if not bool(is_whole.any()):
            return logprobs
        return logprobs.masked_scatter(is_whole, self.logprobs(logits[is_whole], targets[is_whole], temperature))

    def logprobs_of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities `[M, K]` of the same few `tokens [K]` in each row of `logits [M, W]`."""
        return torch.stack([self.logprobs(logits, token.expand(len(logits)), 1.0) for token in tokens], dim=-1)

    def entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Entropy `[M]` in nats, over all tokens, of `logits [M, W]`."""
        check_logits(logits, temperature)
        entropy: Tensor = _SplitEntropy.apply(logits, temperature, self)  # type: ignore[no-untyped-call]
        return entropy

    def place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens lie among this rank's, and which of them do; the others are given a place that means nothing."""
        local = ids - self.start
        return local.clamp(0, self.size - 1), (local >= 0) & (local < self.size)

    def log_normalizer(self, scaled: Tensor) -> Tensor:
        """The logarithm `[M]` of the sum of exponentials over all tokens, without a gradient."""
        peak = self.reduce.largest(scaled.amax(-1))
        return peak + self.reduce.total((scaled - peak[:, None]).exp_().sum(-1)).log()


class _SplitLogprobs(torch.autograd.Function):
    """Recomputes this rank's part of the softmax in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, split: SplitVocabulary) -> Tensor:
        scaled = scale_logits(logits, temperature)
        log_normalizer = split.log_normalizer(scaled)
        local, is_own = split.place(targets)
        ctx.save_for_backward(logits, local, is_own, log_normalizer)
        ctx.temperature = temperature
        own = scaled.gather(-1, local[:, None]).squeeze(-1).masked_fill(~is_own, 0.0)
        return split.reduce.total(own) - log_normalizer

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, local, is_own, log_normalizer = ctx.saved_tensors
        column = grad[:, None] / ctx.temperature
        table = (scale_logits(logits, ctx.temperature) - log_normalizer[:, None]).exp_().mul_(-column)
        table.scatter_add_(-1, local[:, None], column.masked_fill(~is_own[:, None], 0.0))
        return table.to(logits.dtype), None, None, None


class _SplitEntropy(torch.autograd.Function):
    """d entropy / d z[v] = -p[v] (log p[v] + entropy); a token of probability 0 adds nothing to either."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, split: SplitVocabulary) -> Tensor:
        scaled = scale_logits(logits, temperature)
        log_normalizer = split.log_normalizer(scaled)
        mean = (scaled - log_normalizer[:, None]).exp_().mul_(scaled.masked_fill(scaled.isneginf(), 0.0)).sum(-1)
        entropy = log_normalizer - split.reduce.total(mean)
        ctx.save_for_backward(logits, log_normalizer, entropy)
        ctx.temperature = temperature
        return entropy

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, log_normalizer, entropy = ctx.saved_tensors
        logprobs = scale_logits(logits, ctx.temperature) - log_normalizer[:, None]
        weight = (logprobs + entropy[:, None]).masked_fill(logprobs.isneginf(), 0.0)
        table = logprobs.exp_().mul_(weight).mul_(-grad[:, None] / ctx.temperature)
        return table.to(logits.dtype), None, None
