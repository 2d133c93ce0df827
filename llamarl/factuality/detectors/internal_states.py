"""How sure the model was of a claim's tokens when it wrote them: their probabilities, or the entropies beside them.

    prompt + answer --one forward pass for all claims of an answer--> log-prob and entropy of each answer token
    claim's span --the tokenizer's places--> the claim's tokens --pool--> one number --> p_factual

    token_probability    p_factual = pool(p_1 .. p_n); the geometric mean is exp(mean log p) = 1 / perplexity
    token_entropy        p_factual = exp(-pool(H_1 .. H_n)), H in nats: 1 where the model had no doubt

The answer is read from its text, after the prompt as the chat template renders it. Where it does not fit into the
model's context, the claims that end before it is full are scored all the same.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3, who find these no better than chance on long
answers: most tokens are filler, and probability is confidence in a wording.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message
from llamarl.factuality.claims import Answer, Claim, Span
from llamarl.factuality.detectors.detector import Score
from llamarl.functional.pooling import Pooling
from llamarl.models.tokenizer import Tokenizer
from llamarl.scoring.logprobs import Scorer

Quantity = Literal["probability", "entropy"]
Tokens = Literal["all", "values"]
_Key = tuple[str, str]
_VALUE = re.compile(r"\d(?:[\d.,]*\d)?|[^\W\d_][\w'’-]*")


@dataclass(frozen=True, slots=True)
class _Row:
    """An answer behind its prompt."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The answer's tokens, as many as the model can read."""
    places: Sequence[Span]
    """The characters of each token of the answer, of those beyond the context too."""


class InternalStates:
    """Scores claims by the model's own probabilities or entropies; a `Detector`.

    Args:
        score_tokens: of the model that wrote the answers.
        tokenizer: that model's, with a chat template.
        max_positions: the tokens that the model can read.
        quantity: what is read of each token.
        pool: how the claim's tokens become one number (`functional.pooling`).
        tokens: all tokens of the claim's span, or those of its values (`find_values`) only.
        system: the system message before each prompt, if the answers were written with one.
        batch_tokens: most tokens of one forward pass; a longer answer stands alone.

    Raises:
        ConfigError: no such way to pool, one that entropies don't have, or a tokenizer without chat template.
    """

    def __init__(
        self,
        score_tokens: Scorer,
        tokenizer: Tokenizer,
        max_positions: int,
        *,
        quantity: Quantity,
        pool: str = "mean",
        tokens: Tokens = "all",
        system: str | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        self._pool = Pooling.parse(pool)
        if pool == "geometric" and quantity == "entropy":
            raise ConfigError("pool: the geometric mean is one of probabilities; use mean for entropies")
        if not tokenizer.has_chat_template:
            raise ConfigError(
                "the model's tokenizer has no chat template, and answers are read behind their prompts as the model "
                "saw them; put its chat_template.jinja beside tokenizer.json"
            )
        self._score_tokens, self._tokenizer, self._max_positions = score_tokens, tokenizer, max_positions
        self._quantity, self._tokens, self._system = quantity, tokens, system
        self._batch_tokens = batch_tokens

    @property
    def name(self) -> str:
        """`token_probability` or `token_entropy`."""
        return f"token_{self._quantity}"

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order, by one forward pass an answer."""
        answers = {_key(claim.answer): claim.answer for claim in claims}
        rows = {key: self._encode(answer) for key, answer in answers.items()}
        values = self._read({key: row for key, row in rows.items() if row.token_ids})
        return [
            self._score_claim(claim, rows[_key(claim.answer)], values.get(_key(claim.answer), ())) for claim in claims
        ]

    def _encode(self, answer: Answer) -> _Row:
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        prompt = self._tokenizer.encode_chat([*system, {"role": "user", "content": answer.ask.text}])
        ids, places = self._tokenizer.encode_with_places(answer.text)
        return _Row(prompt, ids[: max(0, self._max_positions - len(prompt))], places)

    @torch.no_grad()
    def _read(self, rows: Mapping[_Key, _Row]) -> dict[_Key, list[float]]:
        """The probability or entropy of each token of each row."""
        keys, found = list(rows), dict[_Key, list[float]]()
        for part in self._score_tokens.split(list(rows.values()), self._batch_tokens):
            batch = [rows[keys[place]] for place in part]
            scores = self._score_tokens(batch, "value" if self._quantity == "entropy" else "none")
            # What is certain may come out a rounding error above 1, or below 0.
            values = scores.logprobs.exp().clamp_max(1.0) if scores.entropy is None else scores.entropy.clamp_min(0.0)
            parts = values.split([len(row.token_ids) for row in batch])
            found |= {keys[place]: part_values.tolist() for place, part_values in zip(part, parts, strict=True)}
        return found

    def _score_claim(self, claim: Claim, row: _Row, values: Sequence[float]) -> Score:
        text, (start, end) = claim.answer.text, claim.span
        if not 0 <= start < end <= len(text):
            problem = f"its span, {start} to {end}, is no part of the answer of {len(text)} characters"
            return Score(None, problem=problem)
        spans = [claim.span] if self._tokens == "all" else find_values(text, claim.span)
        chosen = [index for index, place in enumerate(row.places) if any(_overlaps(place, span) for span in spans)]
        if not chosen:
            missing = "token" if self._tokens == "all" else "number and no capitalised word behind its first"
            return Score(None, problem=f"its span has no {missing}")
        if chosen[-1] >= len(values):
            read = f"the model reads {self._max_positions} tokens, the prompt's {len(row.prompt_ids)} among them"
            return Score(None, problem=f"its span ends at token {chosen[-1] + 1} of the answer; {read}")
        pooled = self._pool([values[index] for index in chosen], lowest=self._quantity == "probability")
        return Score(pooled if self._quantity == "probability" else math.exp(-pooled))


def find_values(text: str, span: Span) -> list[Span]:
    """The stated values of a part of a text: numbers, and words that begin with a capital.

    The first word's capital says nothing, so that word does not count. Scripts without capitals have numbers only.
    """
    words = [match for match in _VALUE.finditer(text, *span)]
    return [
        match.span() for index, match in enumerate(words) if match[0][0].isdigit() or (index and match[0][0].isupper())
    ]


def _overlaps(place: Span, span: Span) -> bool:
    return place[0] < span[1] and place[1] > span[0]


def _key(answer: Answer) -> _Key:
    return answer.ask.text, answer.text
