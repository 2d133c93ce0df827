"""Prompt-Prob: the model writes how probable it is that a claim is true, greedily, and that is P_factual. No training.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3.
"""

from collections.abc import Sequence
from typing import ClassVar

from llamarl.core.loops import run_async
from llamarl.factuality.asking import excerpt_of
from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.asking_method import AskingMethod, AskingSettings
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.method import MethodSettings
from llamarl.factuality.detectors.stated_probability import read_probability
from llamarl.models.endpoint import ChatReply


class PromptProbSettings(AskingSettings):
    """Settings of Prompt-Prob."""

    max_new_tokens: int = 32
    """Most tokens of the answer."""


class PromptProb(AskingMethod):
    """The probability that the model states (`stated_probability`)."""

    name: ClassVar[str] = "prompt_prob"
    prompt_names: ClassVar[tuple[str, ...]] = ("prob",)
    Settings: ClassVar[type[MethodSettings]] = PromptProbSettings

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order. An answer that states no probability is a problem, never a number."""
        questions = [{"claim": claim.text} for claim in claims]
        with self._lock:
            replies = run_async(self._ask_all("prob", questions, self.settings.max_new_tokens))
        return [_read(reply) for reply in replies]


def _read(reply: ChatReply | str) -> Score:
    if isinstance(reply, str):
        return Score(None, problem=reply)
    value = read_probability(reply.text)
    return Score(value, problem="" if value is not None else f"states no probability: {excerpt_of(reply.text)!r}")
