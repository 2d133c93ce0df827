"""Canaries: completions whose verdict is known. A judge that gets them wrong is broken, before a run or during it.

    [[judges]]
    function = "llm"
    canaries = "canaries.jsonl"

    {"prompt": "2 + 2 =", "answer": "4", "completion": ["4", "5", ""], "label": [true, false, false]}

Rows are those of `llamarl judge calibrate`. The panel shows them to the judge before the run, which a wrong verdict
ends, and again every so many groups, when a wrong verdict rings.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.protocols import Judge
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges.agreement import passes
from llamarl.judges.rows import labels_of, read_completions

Ask = Callable[[Prompt, Sequence[Completion]], Awaitable[list[Verdict]]]
MAX_IN_FLIGHT = 8
_SHOWN_CHARACTERS = 60


def text_completion(text: str) -> Completion:
    """A completion that no policy sampled: only its text."""
    return Completion((), (), (), (), text, "stop")


async def check_canaries(judge: Judge, cases: Sequence[tuple[Prompt, str]]) -> None:
    """Judges answers known to be right.

    Args:
        judge: any judge.
        cases: prompts with the text of a right answer each.

    Raises:
        JudgeError: an answer fails, scores 0 or less, or does not pass; or the judge abstains from all of them.
    """
    num_scored = 0
    for prompt, answer in cases:
        verdicts = await judge.judge(prompt, [text_completion(answer)])
        for verdict in verdicts:
            is_wrong = verdict.score is not None and (verdict.score <= 0 or verdict.passed is False)
            if verdict.status is Status.FAILED or is_wrong:
                raise JudgeError(
                    f"judge '{judge.name}' on the right answer {answer!r} to prompt {prompt.id!r}: {verdict}"
                )
            num_scored += verdict.score is not None
    if cases and not num_scored:
        raise JudgeError(f"judge '{judge.name}' abstained from all {len(cases)} right answers; does it fit this data?")


@dataclass(frozen=True, slots=True)
class Canary:
    """One completion of known worth."""

    prompt: Prompt
    text: str
    should_pass: bool
    place: str
    """File and line."""

    def complaint(self, judge: str, verdict: Verdict) -> str:
        """What the judge made of it, in a sentence."""
        text = self.text if len(self.text) <= _SHOWN_CHARACTERS else self.text[:_SHOWN_CHARACTERS] + "…"
        did = verdict.status.value if verdict.score is None else "passed" if passes(verdict) else "did not pass"
        must = "pass" if self.should_pass else "not pass"
        why = f": {verdict.reason}" if verdict.reason else ""
        return f"judge '{judge}' {did} on {text!r}, which must {must} ({self.place}){why}"


def read_canaries(path: str | Path) -> list[Canary]:
    """The canaries of a file: rows with `completion` and `label` (true: must pass), one or a list of each.

    Raises:
        ConfigError: there is no such file.
        DataError: a bad row, naming file, line and field.
    """
    if not Path(path).is_file():
        raise ConfigError(f"canaries={str(path)!r}: no such file; give rows with 'completion' and 'label'")
    canaries = []
    for row in read_completions(path, aside=("label",)):
        if "label" not in row.extras:
            raise row.error("label", "missing", "give true where the completion must pass, or else false")
        pairs = zip(row.completions, labels_of(row), strict=True)
        canaries += [Canary(row.prompt, text, label == 1, f"{row.source}, line {row.line}") for text, label in pairs]
    return canaries


class CanaryWatch:
    """The canaries of one judge, and what it made of them last.

    Args:
        canaries: of `read_canaries`.
        every: judged groups from one look to the next.
    """

    def __init__(self, canaries: Sequence[Canary], every: int) -> None:
        self.canaries, self.every = canaries, every
        self.num_groups = 0
        """Judged since the last look."""
        self.error_rate: float | None = None
        """Share of the canaries judged wrongly at the last look, of those judged."""
        self._wrong: frozenset[int] = frozenset()

    @property
    def is_due(self) -> bool:
        """Whether so many groups were judged that it is time to look again."""
        return self.num_groups >= self.every

    async def look(self, judge: str, ask: Ask) -> tuple[list[str], list[str]]:
        """Lets the judge judge them all, a few at a time.

        Args:
            judge: its name, for the sentences.
            ask: gives its verdicts.

        Returns:
            A sentence on each canary that it gets wrong and did not at the look before; one on each that it leaves
            without a score.
        """
        self.num_groups = 0
        limit = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def judged(canary: Canary) -> Verdict:
            async with limit:
                return (await ask(canary.prompt, [text_completion(canary.text)]))[0]

        verdicts = await asyncio.gather(*map(judged, self.canaries))
        pairs = list(zip(self.canaries, verdicts, strict=True))
        unjudged = [canary.complaint(judge, verdict) for canary, verdict in pairs if verdict.score is None]
        wrong = {i for i, (canary, verdict) in enumerate(pairs) if passes(verdict) is (not canary.should_pass)}
        new = [pairs[i][0].complaint(judge, pairs[i][1]) for i in sorted(wrong - self._wrong)]
        num_judged = len(pairs) - len(unjudged)
        self.error_rate = len(wrong) / num_judged if num_judged else None
        self._wrong = frozenset(wrong)
        return new, unjudged
