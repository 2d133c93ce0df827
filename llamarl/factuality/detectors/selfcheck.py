"""SelfCheck: what a model knows it says again. P_factual = the share of further answers that support the claim.

    the claim's prompt --k times at temperature 1--> answers --does it say so?--> k' / k

The answers are drawn once a prompt for all of its claims, with seeds that depend on prompt and number only. Whether one
supports a claim is judged by the model itself, greedily, or by rules over a table of facts. An answer that cannot be
judged leaves both k' and k, and is counted in `failures`; where too many do, the claim has no score.

References: SelfCheckGPT (Manakul et al. 2023, https://arxiv.org/abs/2303.08896, the prompt variant); Qin et al.,
https://arxiv.org/abs/2505.12265, section 3.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from llamarl.core.errors import EndpointError
from llamarl.core.loops import run_async
from llamarl.core.records import Message
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed
from llamarl.factuality.asking import excerpt_of, read_word
from llamarl.factuality.claims import Claim
from llamarl.factuality.decomposition import split_sentences
from llamarl.factuality.detectors.asking_method import AskingMethod, AskingSettings
from llamarl.factuality.detectors.detector import ClaimKey, Score
from llamarl.factuality.detectors.method import MethodSettings
from llamarl.factuality.facts import FactTable, Reading
from llamarl.generation.chats import Chat
from llamarl.models.endpoint import ChatReply

VERDICT_TOKENS = 16
"""Most tokens of the model's yes or no."""
_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class SelfCheckSettings(AskingSettings):
    """Settings of SelfCheck."""

    max_new_tokens: int = 512
    """Most tokens of an answer."""
    num_samples: int = Field(default=20, ge=1)
    """Answers drawn for each prompt."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Temperature at which they are drawn."""
    system: str | None = None
    """The system message before each prompt, if the claims' answers were written with one."""
    facts: tuple[str, ...] = ()
    """Table of facts whose rules judge support instead of the model: CSV, TSV, Parquet, JSONL or a `.sql` query."""
    relations: Path | None = None
    """TOML file that says how its relations are worded."""
    max_unjudged: float = Field(default=0.5, ge=0.0, lt=1.0)
    """The largest share of answers that may go unjudged."""
    seed: int = Field(default=0, ge=0)
    """Seed of the answers."""

    @field_validator("facts", mode="before")
    @classmethod
    def _take_one(cls, value: Any) -> Any:  # as an option of the command it is a single text
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_facts(self) -> Self:
        if self.relations is not None and not self.facts:
            raise ValueError("relations: says how the relations of a table are worded; give facts")
        return self


Support = bool | str
"""True if an answer supports a claim; a text is the reason why nobody can say."""


class SelfCheck(AskingMethod):
    """The share of further answers that support a claim."""

    name: ClassVar[str] = "selfcheck"
    prompt_names: ClassVar[tuple[str, ...]] = ("support",)
    Settings: ClassVar[type[MethodSettings]] = SelfCheckSettings
    settings: SelfCheckSettings

    @cached_property
    def failures(self) -> Counter[str]:
        """The number of answers that could not be judged so far, by reason."""
        return Counter()

    @cached_property
    def _table(self) -> FactTable | None:
        return FactTable.read(self.settings.facts, self.settings.relations) if self.settings.facts else None

    def key(self, claim: Claim) -> ClaimKey:
        """What the further answers are drawn for, and the claim that is held against them."""
        ask = claim.answer.ask
        return ask.text, ask.subject, claim.text

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order. The answers to a prompt are drawn once for all of its claims."""
        with self._lock:
            return run_async(self._score(claims))

    async def _score(self, claims: Sequence[Claim]) -> list[Score]:
        problems = [self._why_unreadable(claim) for claim in claims]
        readable = [claim for claim, problem in zip(claims, problems, strict=True) if not problem]
        samples = await self._draw_all(list(dict.fromkeys(claim.answer.ask.text for claim in readable)))
        pairs = [(claim, sample) for claim in readable for sample in samples[claim.answer.ask.text]]
        judged = iter(await self._judge_all(pairs))
        return [
            Score(None, problem=problem) if problem else self._share(list(islice(judged, self.settings.num_samples)))
            for problem in problems
        ]

    def _why_unreadable(self, claim: Claim) -> str:
        """The reason why no answer whatsoever could be held against a claim."""
        if not claim.answer.ask.text.strip():
            return "no prompt: what the claim's answer was written to is not known"
        table = self._table
        if table is None:
            return self.backbone.encode(self.prompts["support"], text="", claim=claim.text).problem
        if read_facts(table, claim.text, claim):
            return ""
        return f"the table of facts does not read it: {table.explain_silence(claim.text, _subject_of(table, claim))}"

    async def _draw_all(self, prompts: Sequence[str]) -> dict[str, list[ChatReply | str]]:
        """The answers to each prompt, or reasons why there is none."""
        sampling = Sampling(max_tokens=self.settings.max_new_tokens, temperature=self.settings.temperature)
        chat, numbers = self._chat.with_sampling(sampling), range(self.settings.num_samples)
        draws = [asyncio.gather(*(self._draw(chat, prompt, number) for number in numbers)) for prompt in prompts]
        return {prompt: list(drawn) for prompt, drawn in zip(prompts, await asyncio.gather(*draws), strict=True)}

    async def _draw(self, chat: Chat, prompt: str, number: int) -> ChatReply | str:
        system: list[Message] = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        seed = derive_seed("selfcheck", self.settings.seed, prompt, number)
        try:
            return await chat.reply([*system, {"role": "user", "content": prompt}], seed)
        except EndpointError as error:
            return f"no answer: {error}"

    async def _judge_all(self, pairs: Sequence[tuple[Claim, ChatReply | str]]) -> list[Support]:
        """Judges whether each answer supports its claim. One that says nothing does not."""
        table = self._table
        texts = [(claim, reply.text) for claim, reply in pairs if isinstance(reply, ChatReply) and reply.text.strip()]
        if table is not None:
            judged: Iterator[Support] = iter([supports(table, claim, text) for claim, text in texts])
        else:
            questions = [{"text": text, "claim": claim.text} for claim, text in texts]
            judged = iter(map(_read_support, await self._ask_all("support", questions, VERDICT_TOKENS)))
        return [reply if isinstance(reply, str) else bool(reply.text.strip()) and next(judged) for _, reply in pairs]

    def _share(self, supports: Sequence[Support]) -> Score:
        reasons = [support for support in supports if isinstance(support, str)]
        self.failures.update(reason.partition(":")[0] for reason in reasons)
        if len(reasons) > self.settings.max_unjudged * len(supports):
            problem = f"not judged: {len(reasons)} of {len(supports)} answers, the first with: {reasons[0]}"
            return Score(None, problem=problem)
        return Score(sum(support is True for support in supports) / (len(supports) - len(reasons)))


def supports(table: FactTable, claim: Claim, text: str) -> bool:
    """True where a text says all that the table reads in a claim; what it does not speak of it does not support."""
    said = read_facts(table, text, claim)
    return all(any(_is_same(table, own, other) for other in said) for own in read_facts(table, claim.text, claim))


def read_facts(table: FactTable, text: str, claim: Claim) -> list[Reading]:
    """Reads what a text says of the table's relations, in the context of a claim's prompt."""
    subject = _subject_of(table, claim)
    return [reading for start, end in split_sentences(text) for reading in table.read_claim(text[start:end], subject)]


def _subject_of(table: FactTable, claim: Claim) -> str | None:
    asked = claim.answer.ask.subject
    return table.name_subject(asked) if asked else None


def _is_same(table: FactTable, one: Reading, other: Reading) -> bool:
    if (one.subject, one.relation) != (other.subject, other.relation):
        return False
    if one.value == other.value:
        return True
    try:
        gap, size = abs(float(one.value) - float(other.value)), abs(float(one.value))
    except ValueError:
        return False
    return gap <= table.relations[one.relation].tolerance * size


def _read_support(reply: ChatReply | str) -> Support:
    if isinstance(reply, str):
        return reply
    answer = reply.text.rpartition("</think>")[2]
    # The first word decides: what follows it may speak of yes and no too.
    first = _FIRST_WORD.match(answer)
    said = first[1].lower() == "yes" if first else read_word(answer, {"yes": True, "no": False})
    return f"neither yes nor no: {excerpt_of(reply.text)!r}" if said is None else bool(said)
