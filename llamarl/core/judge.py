"""The declaration of a judge: one class to derive from, and the record of what it says of itself.

    class Concise(Judge):
        name = "concise"

        async def judge(self, prompt, completions):
            return [Verdict.scored(float(len(completion.text) < 80)) for completion in completions]

A plain function needs no class: `judges.as_judge` wraps it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llamarl.core.records import Completion, Prompt, Verdict

CostClass = Literal["free", "local", "paid"]
"""Judges that are `free` compute on a processor, `local` ones run a model of yours, `paid` ones spend money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInfo:
    """The facts that a judge states of itself, the same wherever it runs: a worker process passes them on."""

    version: str = ""
    """The version changes with every change of a verdict; it is empty where the judge has none."""
    cost_class: CostClass = "free"
    has_deadline: bool = False
    """True for a judge whose calls end by themselves, so that nobody else need watch the time."""
    can_pass: bool = True
    """True for a judge that may say pass or fail, as a constraint must; False for one that only scores."""
    is_calibrated: bool = True
    """False for a judge that knows that its scores are no margins over a baseline response."""
    pass_score: float = 0.5
    """Score from which on a verdict that only scores passes, where a yes or no is asked for."""
    counts: frozenset[str] = frozenset()
    """Names of those `metrics` that add up over the workers of a judge; the others are means."""

    def passes(self, verdict: Verdict) -> bool | None:
        """Says whether a verdict lets the completion pass; None where the completion was not judged."""
        if verdict.score is None:
            return None
        return verdict.score >= self.pass_score if verdict.passed is None else verdict.passed


class Judge(ABC):
    """Says what it thinks of completions of one prompt.

    Subclasses have a `name` and implement `judge`. The other methods do nothing unless they are overridden; whoever
    runs a judge calls all of them, here or in a worker process.
    """

    name: str = ""
    """The judge's name in verdicts and metrics, unlike that of any other judge of the task."""
    info: JudgeInfo = JudgeInfo()

    @abstractmethod
    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion, in order.

        Raises:
            JudgeError: the judge broke and should be asked again. A bad completion is no reason to raise.
        """

    def check(self, prompt: Prompt) -> None:
        """Checks, before a run, that the prompt holds what the judge needs.

        Raises:
            ConfigError, DataError: naming what the prompt or the judge lacks.
        """
        return

    def load(self) -> None:
        """Loads models now, so that the first group's deadline has no share in it."""
        return

    def metrics(self) -> Mapping[str, float]:
        """Returns what the judge measured since the last call, by short names such as `requests`."""
        return {}

    def close(self) -> None:
        """Releases processes, threads and files. Idempotent.

        Whoever built the judge closes it. This package closes those that it builds from a class or a function, and
        leaves open an object that it is given, or that a name leads to.
        """
        return

    async def aclose(self) -> None:
        """Closes, and waits for connections to end; for callers whose event loop ends next."""
        self.close()
