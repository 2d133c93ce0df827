"""Log-probs of completions under a model: packed where the decoder knows the model, padded rows elsewhere.

Both give the same numbers; the padded one runs any Hugging Face causal language model and is the reference in tests.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llamarl.core.errors import DataError
from llamarl.functional.logprobs import Kept
from llamarl.functional.vocabulary import Vocabulary, WholeVocabulary
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.rope import rope_threshold, split_by_side
from llamarl.scoring.adapters import prepare_projections
from llamarl.scoring.packing import Packed, TokenRow, num_scored, split_packed, split_padded

MAX_LOGITS = 2**26
"""Most logits held at once (256 MB in float32); beyond that the output head runs in pieces and is recomputed."""


EntropyMode = Literal["none", "value", "gradient"]
"""Use of the entropy of each token's distribution: none, its value, or its value with gradients through it."""


class Scores(NamedTuple):
    """Scores of the `S` scored tokens of some rows, row after row."""

    logprobs: Tensor
    """`[S]` float32."""
    entropy: Tensor | None
    """`[S]` float32, nats; None unless asked for."""
    hidden: Tensor | None = None
    """`[S, d]` the final hidden state that predicts each token; None unless asked for."""


class Scorer(Protocol):
    """Scores completions under one model's current weights; gradients flow to its parameters."""

    def __call__(self, rows: Sequence[TokenRow], entropy: EntropyMode = "none", *, hidden: bool = False) -> Scores:
        """Scores the rows' completions, in order."""

    def split(self, rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices that cost at most `max_tokens` each; every index once."""


class PackedScorer:
    """Each prompt once, no padding in the linear layers, the output head on predicting tokens only.

    Args:
        model: of a family that `models.decoder.why_unsupported` accepts; or a decoder over such a model.
        temperature: what the completions were sampled with; divides the logits.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        if not isinstance(model, Decoder):
            model = prepare_projections(Decoder.live(model.eval()), model)
        self._decoder, self._temperature = model, temperature

    def __call__(self, rows: Sequence[TokenRow], entropy: EntropyMode = "none", *, hidden: bool = False) -> Scores:
        """Scores the rows' completions, in order."""
        scores: Scores = self._decoder(lambda: self._score(rows, entropy, hidden))
        return scores

    def _score(self, rows: Sequence[TokenRow], entropy: EntropyMode, hidden: bool) -> Scores:
        packed = Packed(rows, self._decoder.device)
        experts = packed.experts(self._decoder)
        hidden_states = self._decoder.hidden_states(packed.ids, packed.positions, packed.attend, experts=experts)
        states = packed.predicting(hidden_states)
        kept = join_supports(rows, self._decoder.device)
        if kept is not None:
            states, targets = states[packed.order], packed.targets[packed.order]
            scores = score_tokens(
                states, targets, self._decoder.head, self._decoder.vocabulary, self._temperature, entropy, kept
            )
            return scores._replace(hidden=states if hidden else None)
        scores = score_tokens(
            states, packed.targets, self._decoder.head, self._decoder.vocabulary, self._temperature, entropy
        )
        return Scores(
            scores.logprobs[packed.order],
            None if scores.entropy is None else scores.entropy[packed.order],
            states[packed.order] if hidden else None,
        )

    def _score_tokens(self, states: Tensor, targets: Tensor, entropy: EntropyMode, kept: Kept | None = None) -> Scores:
        head, vocabulary = self._decoder.head, self._decoder.vocabulary
        return score_tokens(states, targets, head, vocabulary, self._temperature, entropy, kept)

    def split(self, rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices, rows of one prompt together, at most `max_tokens` packed tokens each."""
        return split_packed(rows, max_tokens)


class _Span(NamedTuple):
    """Tokens of a row that one forward pass scores."""

    read: list[int]
    """All tokens before the last target."""
    predicting: list[int]
    """Places in `read` of the tokens that predict the targets."""
    targets: list[int]
    place: int
    """Place of the first target among those of all rows."""


class PaddedScorer:
    """One right-padded row per completion through the module's ordinary forward pass.

    Where the module's embeddings depend on a sequence's length (see `models.rope`), each token is scored as it was
    drawn: on the side of the threshold where the tokens before it were. Rows that cross it are read twice.

    Args:
        model: any Hugging Face causal language model.
        temperature: what the completions were sampled with; divides the logits.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        self._model, self._temperature = model.eval(), temperature
        self._threshold = rope_threshold(model.config)

    def __call__(self, rows: Sequence[TokenRow], entropy: EntropyMode = "none", *, hidden: bool = False) -> Scores:
        """Scores the rows' completions, in order.

        Raises:
            DataError: a row says to which experts its tokens go; the module's own forward pass takes no such orders.
        """
        if any(row.routed_experts for row in rows):
            raise DataError(
                "routed_experts: this model runs on the forward pass of transformers, which chooses experts itself; "
                "turn generator.routed_experts off, or leave them out of the samples"
            )
        kept = join_supports(rows, next(self._model.parameters()).device)
        parts = [self._score(spans, entropy, hidden, kept) for spans in self._sides(rows)]
        if len(parts) == 1:
            return parts[0][0]
        order = torch.cat([places for _, places in parts]).argsort()
        logprobs, entropies, states = (
            torch.cat(found)[order] if (found := [x for x in column if x is not None]) else None
            for column in zip(*(scores for scores, _ in parts), strict=True)
        )
        assert logprobs is not None
        return Scores(logprobs, entropies, states)

    def _sides(self, rows: Sequence[TokenRow]) -> Iterator[list["_Span"]]:
        """Yields the spans to score in each forward pass."""
        spans, num_tokens = [], 0
        # The last of so many tokens still follows a short prefix.
        border = math.inf if self._threshold is None else self._threshold + 1
        for row in rows:
            ids, first = [*row.prompt_ids, *row.token_ids], len(row.prompt_ids)
            scored = [first + place for start, stop in row.turns for place in range(start, stop)]
            for part in ([i for i in scored if i < border], [i for i in scored if i >= border]):
                if part:
                    spans.append(_Span(ids[: part[-1]], [i - 1 for i in part], [ids[i] for i in part], num_tokens))
                    num_tokens += len(part)
        for side in split_by_side([len(span.read) for span in spans], self._threshold):
            yield [spans[index] for index in side]

    def _score(
        self, spans: Sequence["_Span"], entropy: EntropyMode, hidden: bool, kept: Kept | None
    ) -> tuple[Scores, Tensor]:
        """Scores of one forward pass, and their places among the scores of all rows."""
        device = next(self._model.parameters()).device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(span.read) for span in spans], batch_first=True).to(device)
        ends = torch.tensor([len(span.read) for span in spans], device=device)
        is_real = torch.arange(ids.shape[1], device=device) < ends[:, None]
        output = self._model(input_ids=ids, attention_mask=is_real.long(), use_cache=False, output_hidden_states=hidden)
        rows = [row for row, span in enumerate(spans) for _ in span.targets]
        places = [place for span in spans for place in span.predicting]
        predicts = torch.tensor(rows, device=device), torch.tensor(places, device=device)
        targets = torch.tensor([token for span in spans for token in span.targets], device=device)
        index = torch.cat([torch.arange(s.place, s.place + len(s.targets), device=device) for s in spans])
        own = None if kept is None else kept.of(index)
        whole = WholeVocabulary(output.logits.shape[-1])
        scores = score_tokens(output.logits[predicts], targets, lambda x: x, whole, self._temperature, entropy, own)
        if hidden:
            scores = scores._replace(hidden=output.hidden_states[-1][predicts])
        return scores, index

    def split(self, rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices, rows of similar length together, at most `max_tokens` padded tokens each."""
        return split_padded(rows, max_tokens)


def build_scorer(model: nn.Module, temperature: float = 1.0) -> Scorer:
    """The packed scorer, or the padded one for models the packed decoder does not know."""
    config: Any = model.config
    return PaddedScorer(model, temperature) if why_unsupported(config) else PackedScorer(model, temperature)


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[object]:
    """Computes in half precision where `precision` is `bf16`, on the device that `model` is on."""
    device = next(model.parameters()).device.type
    # Without torch's cache: a pass casts each weight once, and the cache would keep the copies of all to its end.
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def join_supports(rows: Sequence[TokenRow], device: torch.device | str) -> Kept | None:
    """The rows' supports for all of their `S` scored tokens, row after row; None where no row has one."""
    if all(row.support is None for row in rows):
        return None
    ids, counts = array("i"), array("i")
    for row in rows:
        ids.extend(() if row.support is None else row.support.ids)
        counts.extend(array("i", bytes(4 * num_scored(row))) if row.support is None else row.support.counts)
    return Kept(*(torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (ids, counts)))


def score_tokens(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    vocabulary: Vocabulary,
    temperature: float,
    entropy: EntropyMode,
    kept: Kept | None = None,
    max_logits: int = MAX_LOGITS,
) -> Scores:
    """Log-prob of each target and entropy of its distribution: `[S, d], [S] -> [S]`.

    In pieces of at most `max_logits` logits, where there are more: as many pieces on all ranks that share a vocabulary.

    `head` gives logits of the tokens of `vocabulary`. Log-probs are relative to the `kept` tokens; the entropy is that
    of all tokens.
    """

    def piece(hidden: Tensor, targets: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        logprobs = vocabulary.logprobs(logits, targets, temperature, kept)
        # A graph of the entropy would hold a second `[S, V]` until the backward pass, for a number that is only logged.
        with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
            return logprobs, logprobs.detach() if entropy == "none" else vocabulary.entropy(logits, temperature)

    size = max(1, max_logits // vocabulary.width)
    if len(hidden) <= size:
        logprobs, entropies = piece(hidden, targets, kept)
    else:
        places = torch.split(torch.arange(len(targets), device=targets.device), size)
        parts_kept = [None if kept is None else kept.of(own) for own in places]
        pieces = zip(torch.split(hidden, size), torch.split(targets, size), parts_kept, strict=True)
        # Logits are computed again in the backward pass, so that those of one piece at a time are in memory.
        parts = [checkpoint(piece, *part, use_reentrant=False) for part in pieces]
        logprobs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(logprobs, None if entropy == "none" else entropies)
