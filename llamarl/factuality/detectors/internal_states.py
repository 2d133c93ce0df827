"""Token states tell how sure the model was of a claim when it wrote it: its tokens' probabilities, or the entropies.

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
from typing import ClassVar, Literal

import torch
from pydantic import field_validator

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message, OneTurn
from llamarl.factuality.asking import PromptFile
from llamarl.factuality.claims import Answer, Claim, Span
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.detector import ClaimKey, Score
from llamarl.factuality.detectors.method import Method, MethodSettings
from llamarl.functional.pooling import Pooling
from llamarl.scoring.logprobs import autocast, build_scorer

_Key = tuple[str, str]
_VALUE = re.compile(r"\d(?:[\d.,]*\d)?|[^\W\d_][\w'’-]*")


@dataclass(frozen=True, slots=True)
class _Row(OneTurn):
    """An answer behind its prompt."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The answer's tokens, as many as the model can read."""
    places: Sequence[Span]
    """The characters of each token of the answer, of those beyond the context too."""


class InternalStatesSettings(MethodSettings):
    """Settings of the methods that read probabilities or entropies."""

    pool: str = "mean"
    """One number of the claim's tokens: `mean`, `geometric` (of probabilities), `worst-K` or `worst-P%`."""
    tokens: Literal["all", "values"] = "all"
    """All tokens of the claim's span, or those of its values only (`find_values`)."""
    system: str | None = None
    """The system message before each prompt, if the answers were written with one."""

    @field_validator("pool")
    @classmethod
    def _check_pool(cls, name: str) -> str:
        return Pooling.parse(name).name


class InternalStates(Method):
    """Scores claims by the model's own probabilities or entropies.

    Raises:
        ConfigError: a way to pool that entropies don't have, or a tokenizer without chat template.
    """

    prompt_names: ClassVar[tuple[str, ...]] = ()
    Settings: ClassVar[type[MethodSettings]] = InternalStatesSettings
    reads_entropy: ClassVar[bool]
    settings: InternalStatesSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings | None = None,
        prompts: Mapping[str, PromptFile] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(backbone, settings, prompts, threshold)
        if self.settings.pool == "geometric" and self.reads_entropy:
            raise ConfigError("pool: the geometric mean is one of probabilities; use mean for entropies")
        if not backbone.tokenizer.has_chat_template:
            raise ConfigError(
                f"{backbone.path}: its tokenizer has no chat template, and answers are read behind their prompts as "
                "the model saw them; put its chat_template.jinja beside tokenizer.json"
            )
        self._pool = Pooling.parse(self.settings.pool)
        self._score_tokens = build_scorer(backbone.model)

    def key(self, claim: Claim) -> ClaimKey:
        """The answer behind its prompt, and the part of it that is read."""
        return *_key(claim.answer), *claim.span

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order, by one forward pass an answer."""
        answers = {_key(claim.answer): claim.answer for claim in claims}
        with self.backbone.lock:
            rows = {key: self._encode(answer) for key, answer in answers.items()}
            values = self._read({key: row for key, row in rows.items() if row.token_ids})
        return [
            self._score_claim(claim, rows[_key(claim.answer)], values.get(_key(claim.answer), ())) for claim in claims
        ]

    def _encode(self, answer: Answer) -> _Row:
        tokenizer, limit = self.backbone.tokenizer, self.backbone.max_tokens
        system: list[Message] = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        prompt = tokenizer.encode_chat([*system, {"role": "user", "content": answer.ask.text}])
        ids, places = tokenizer.encode_with_places(answer.text)
        return _Row(prompt, ids if limit is None else ids[: max(0, limit - len(prompt))], places)

    @torch.no_grad()
    def _read(self, rows: Mapping[_Key, _Row]) -> dict[_Key, list[float]]:
        """The probability or entropy of each token of each row."""
        keys, found = list(rows), dict[_Key, list[float]]()
        for part in self._score_tokens.split(list(rows.values()), self.backbone.batch_tokens):
            batch = [rows[keys[place]] for place in part]
            with autocast(self.backbone.model, self.backbone.precision):
                scores = self._score_tokens(batch, "value" if self.reads_entropy else "none")
            # What is certain may come out a rounding error above 1, or below 0.
            values = scores.logprobs.exp().clamp_max(1.0) if scores.entropy is None else scores.entropy.clamp_min(0.0)
            parts = values.split_with_sizes([len(row.token_ids) for row in batch])
            found |= {keys[place]: part_values.tolist() for place, part_values in zip(part, parts, strict=True)}
        return found

    def _score_claim(self, claim: Claim, row: _Row, values: Sequence[float]) -> Score:
        text, (start, end) = claim.answer.text, claim.span
        if not claim.answer.ask.text.strip():
            return Score(None, problem="no prompt: what the claim's answer was written to is not known")
        if not 0 <= start < end <= len(text):
            problem = f"outside of the answer: its span, {start} to {end}, of {len(text)} characters"
            return Score(None, problem=problem)
        spans = [claim.span] if self.settings.tokens == "all" else find_values(text, claim.span)
        chosen = [index for index, place in enumerate(row.places) if any(_overlaps(place, span) for span in spans)]
        if not chosen:
            missing = "token" if self.settings.tokens == "all" else "number and no capitalised word behind its first"
            return Score(None, problem=f"nothing to read: its span has no {missing}")
        if chosen[-1] >= len(values):
            read = f"the model reads {self.backbone.max_tokens} tokens, the prompt's {len(row.prompt_ids)} among them"
            return Score(None, problem=f"too long: its span ends at token {chosen[-1] + 1} of the answer; {read}")
        pooled = self._pool([values[index] for index in chosen], lowest=not self.reads_entropy)
        return Score(math.exp(-pooled) if self.reads_entropy else pooled)


class TokenProbability(InternalStates):
    """P_factual from the probabilities of the claim's tokens."""

    name: ClassVar[str] = "token_probability"
    reads_entropy: ClassVar[bool] = False


class TokenEntropy(InternalStates):
    """P_factual from the entropies where the claim's tokens were chosen."""

    name: ClassVar[str] = "token_entropy"
    reads_entropy: ClassVar[bool] = True


def find_values(text: str, span: Span) -> list[Span]:
    """The stated values of a part of a text: numbers, and words that begin with a capital.

    The first word's capital says nothing, so that word does not count. Scripts without capitals have numbers only.
    """
    words = list(_VALUE.finditer(text, *span))
    return [
        match.span() for index, match in enumerate(words) if match[0][0].isdigit() or (index and match[0][0].isupper())
    ]


def _overlaps(place: Span, span: Span) -> bool:
    return place[0] < span[1] and place[1] > span[0]


def _key(answer: Answer) -> _Key:
    return answer.ask.text, answer.text
