"""A detector by script: what it says depends on the words of a claim."""

import threading
from collections.abc import Callable, Sequence

from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.detector import ClaimKey, Score


def judge_by_words(claim: Claim) -> Score:
    """Spain is never true, Mars has no score, the Moon is said without conviction; all else is factual."""
    if "Mars" in claim.text:
        return Score(None, problem="the claim is too long")
    return Score(0.125 if "Spain" in claim.text else 0.875, 0.25 if "Moon" in claim.text else 0.99)


class ScriptedDetector:
    """Scores by a function. `claims` has every batch that it was given."""

    name = "scripted"
    threshold: float | None = 0.5

    def __init__(self, judge: Callable[[Claim], Score] = judge_by_words) -> None:
        self._judge = judge
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()

    def key(self, claim: Claim) -> ClaimKey:
        return claim.answer.ask.text, claim.answer.text, claim.text

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        self.batches.append([claim.text for claim in claims])
        self.threads.add(threading.current_thread().name)
        return [self._judge(claim) for claim in claims]
