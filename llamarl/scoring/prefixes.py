"""Prompts that differ but begin alike, as with one system message or one question for all: their beginning costs once.

    [system, question | claim 1, answer 1]                  [system, question | claim 1, answer 1]
    [system, question | claim 2, answer 2]     becomes                        [claim 2, answer 2]

The packed layout computes a prompt once for all rows that continue it. So what prompts begin with alike becomes the
prompt, and the rest of each stands before its completion, read and not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llamarl.core.records import Support
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.scoring.adapters import prepare_projections
from llamarl.scoring.logprobs import PaddedScorer, Scores, autocast, join_supports, score_tokens
from llamarl.scoring.next_tokens import common_length
from llamarl.scoring.packing import Packed, TokenRow

MIN_SHARED = 16
"""Beginnings with fewer tokens are not worth it: the rest of a prompt attends by a mask, which costs more than causal
attention."""


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """A row whose prompt is the beginning that it shares with others; `token_ids` begins with the prompt's rest."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    turns: Sequence[tuple[int, int]]
    support: Support | None
    routed_experts: bytes


@dataclass(slots=True)
class Cluster:
    """Rows whose prompts begin alike."""

    num_shared: int
    """Tokens that all their prompts begin with; at least 1."""
    members: list[int]
    """Indices of the rows."""


def cluster_rows(rows: Sequence[TokenRow]) -> list[Cluster]:
    """Clusters of rows, such that few tokens are computed: each cluster's beginning once, and the rest of each row.

    Rows are taken in the order of their prompts' ids, so that those that begin alike are neighbours; a row joins the
    cluster before it where that costs no more than to stand alone.
    """
    clusters: list[Cluster] = []
    for index in sorted(range(len(rows)), key=lambda i: (rows[i].prompt_ids, len(rows[i].token_ids))):
        prompt = rows[index].prompt_ids
        if clusters:
            last = clusters[-1]
            shared = min(last.num_shared, common_length(prompt, rows[last.members[0]].prompt_ids))
            # The members each compute what is no longer shared by all; alone, the row computes what it could share.
            is_worth_it = shared >= min(MIN_SHARED, len(prompt))
            if is_worth_it and (last.num_shared - shared) * (len(last.members) - 1) <= shared:
                last.num_shared = shared
                last.members.append(index)
                continue
        clusters.append(Cluster(len(prompt), [index]))
    return clusters


def share_prefixes(rows: Sequence[TokenRow]) -> list[PrefixRow]:
    """The rows in their order, each with the beginning that its cluster shares as its prompt."""
    found: dict[int, PrefixRow] = {}
    for cluster in cluster_rows(rows):
        for index in cluster.members:
            prompt, rest = rows[index].prompt_ids, rows[index].prompt_ids[cluster.num_shared :]
            turns = [(len(rest) + start, len(rest) + stop) for start, stop in rows[index].turns]
            support, experts = rows[index].support, rows[index].routed_experts
            token_ids = (*rest, *rows[index].token_ids)
            found[index] = PrefixRow(prompt[: cluster.num_shared], token_ids, turns, support, experts)
    return [found[index] for index in range(len(rows))]


class LogprobScorer:
    """Log-probs of completions and nothing else, `[S]`, in the precision of a training.

    Args:
        model: any Hugging Face causal language model, with or without adapters; or a decoder over one.
        precision: `fp32` or `bf16`, of the forward pass.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32") -> None:
        self._model, self._precision = model, precision
        config: Any = model.config
        self._score = PaddedScorer(model) if why_unsupported(config) else PrefixScorer(model)

    def __call__(self, rows: Sequence[TokenRow]) -> Tensor:
        """`[S]` float32: the scored tokens of the rows, row after row."""
        with autocast(self._model, self._precision):
            return self._score(rows).logprobs

    def split(self, rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices that cost at most `max_tokens` each; every index once."""
        return self._score.split(rows, max_tokens)


class PrefixScorer:
    """Log-probs of completions, what their prompts begin with alike computed once, the output head on targets only.

    Args:
        model: of a family that `models.decoder.why_unsupported` accepts, with or without adapters; or a decoder over
            such a model.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, Decoder):
            model = prepare_projections(Decoder.live(model.eval()), model)
        self._decoder = model

    def __call__(self, rows: Sequence[TokenRow]) -> Scores:
        """Scores the rows' completions, in order."""
        scores: Scores = self._decoder(lambda: self._score(rows))
        return scores

    def _score(self, rows: Sequence[TokenRow]) -> Scores:
        packed = Packed(share_prefixes(rows), self._decoder.device)
        experts = packed.experts(self._decoder)
        hidden = self._decoder.hidden_states(packed.ids, packed.positions, packed.attend, experts=experts)
        states = packed.predicting(hidden).index_select(0, packed.order)
        targets, support = packed.targets[packed.order], join_supports(rows, self._decoder.device)
        return score_tokens(states, targets, self._decoder.head, self._decoder.vocabulary, 1.0, "none", support)

    def split(self, rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices, at most `max_tokens` packed tokens each; every index once."""
        batches: list[list[int]] = []
        used = 0
        for cluster in cluster_rows(rows):
            is_open = False  # whether the current micro-batch holds this beginning
            for index in cluster.members:
                rest = len(rows[index].prompt_ids) - cluster.num_shared + len(rows[index].token_ids) - 1
                cost = rest + (0 if is_open else cluster.num_shared)
                if not batches or used + cost > max_tokens:
                    batches.append([])
                    used, cost = 0, rest + cluster.num_shared
                batches[-1].append(index)
                used, is_open = used + cost, True
        return batches
