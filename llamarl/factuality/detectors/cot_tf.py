"""CoT-TF: the model reasons, greedily, and ends with True or False. No training.

    question -> reasoning ... "Verdict: True"
                                       ^ the last verdict; everything before it is read again, and P_factual is that of
                                         the label at this position, as Prompt-TF reads it behind the question

The verdict is the last `Verdict: ...`; without one, the last label in brackets or bold; without that, the last word
that is a label. Where the labels' probabilities cannot be read (the answers come from a server, or the tokenizer cannot
tell the labels apart by one token), P_factual is 1 or 0 by the word itself. Reasoning without a verdict is a problem;
or, with `asks_again`, `Verdict:` is put behind it, the label is read there, and its mass says whether the model wants
one.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from llamarl.core.errors import ConfigError
from llamarl.core.loops import run_async
from llamarl.factuality.asking import excerpt_of
from llamarl.factuality.claims import Claim, Span
from llamarl.factuality.detectors.asking_method import AskingMethod, AskingSettings
from llamarl.factuality.detectors.backbone import Encoded
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.method import MethodSettings
from llamarl.models.endpoint import ChatReply

_VERDICTS = (
    re.compile(r"verdict\W{0,8}(true|false)\b", re.IGNORECASE),
    re.compile(r"(?:\[|\*\*)\s*(true|false)\s*(?:\]|\*\*)", re.IGNORECASE),
    re.compile(r"\b(true|false)\b", re.IGNORECASE),
)


class CotTFSettings(AskingSettings):
    """Settings of CoT-TF."""

    asks_again: bool = False
    """Read the label behind reasoning that has no verdict, too; else such claims have no score."""


class CotTF(AskingMethod):
    """The label behind the model's own reasoning."""

    name: ClassVar[str] = "cot_tf"
    prompt_names: ClassVar[tuple[str, ...]] = ("cot-detect",)
    Settings: ClassVar[type[MethodSettings]] = CotTFSettings
    settings: CotTFSettings

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order."""
        questions = [{"claim": claim.text} for claim in claims]
        with self._lock:
            replies = run_async(self._ask_all("cot-detect", questions, self.settings.max_new_tokens))
        if not self._reads_labels():
            return [self._read_word(reply) for reply in replies]
        encoded = [self._encode(claim, reply) for claim, reply in zip(claims, replies, strict=True)]
        return self.backbone.score_labels(self.prompts["cot-detect"], encoded)

    def _reads_labels(self) -> bool:
        if self._given_chat is not None:
            return False
        try:
            return bool(self.backbone.labels)
        except ConfigError:
            return False

    def _encode(self, claim: Claim, reply: ChatReply | str) -> Encoded:
        """The ids of question and reasoning, up to where the verdict begins."""
        if isinstance(reply, str):
            return Encoded((), reply)
        place = find_verdict(reply.text)
        if place is not None:
            before = reply.text[: place[0]].rstrip(" ")  # a blank before a word is part of the word's own token
        elif self.settings.asks_again:
            before = f"{reply.text.rstrip()}\n\nVerdict:"
        else:
            return Encoded((), _explain(reply))
        question = self.backbone.encode(self.prompts["cot-detect"], claim=claim.text)
        ids = question.ids + self.backbone.tokenizer.encode(before)
        if self.backbone.max_tokens is not None and len(ids) > self.backbone.max_tokens:
            return Encoded(
                (), f"too long: {len(ids)} tokens with its reasoning; the most is {self.backbone.max_tokens}"
            )
        return Encoded(ids)

    def _read_word(self, reply: ChatReply | str) -> Score:
        if isinstance(reply, str):
            return Score(None, problem=reply)
        place = find_verdict(reply.text)
        if place is None:
            return Score(None, problem=_explain(reply))
        return Score(float(reply.text[slice(*place)].lower() == "true"))


def find_verdict(text: str) -> Span | None:
    """The place of the verdict's word in a reply; None where it has none. Thinking before `</think>` does not count."""
    start = text.rfind("</think>") + 1
    for pattern in _VERDICTS:
        if found := list(pattern.finditer(text, start)):
            return found[-1].span(1)
    return None


def _explain(reply: ChatReply) -> str:
    cut = f" within {reply.completion_tokens} tokens" if reply.finish_reason == "length" else ""
    return f"no verdict: neither True nor False{cut}: {excerpt_of(reply.text)!r}"
