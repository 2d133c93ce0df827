"""The checkers as a judge of training: follow the instructions of the prompt.

    [[tasks.judges]]
    function = "llamarl.judges.rules:follows_instructions"

Each row names its instructions in `info`: `{"instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]}`.
"""

import functools
import time
from collections.abc import Sequence
from typing import Literal

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import with_seconds
from llamarl.judges.rules.base import Mode, Rule
from llamarl.judges.rules.grading import Checklist, Grade, Grader
from llamarl.judges.rules.tools import SentenceSplitter
from llamarl.judges.threads import run_in_thread

Score = Literal["fraction", "all"]


class InstructionJudge(Judge):
    """Scores a completion by the instructions that it follows strictly; it passes if it follows all."""

    info = JudgeInfo(version="2")
    """The version changes with every change of a verdict."""

    def __init__(
        self,
        mode: Mode = "fixed",
        *,
        score: Score = "fraction",
        sentence_splitter: SentenceSplitter | None = None,
        name: str = "instructions",
    ) -> None:
        """Prepares the judge; packages and models load with `check` or the first call.

        Args:
            mode: `official` and `google` give the verdicts of the released graders, `fixed` repairs their defects.
            score: `fraction` of the instructions followed, or 1 only for `all` of them.
            sentence_splitter: `rules` (ours) or `punkt` (NLTK's); default: `rules` in fixed mode, else `punkt`.
            name: in verdicts and metrics.
        """
        if score not in ("fraction", "all"):
            raise ConfigError(f"score={score!r}; choose 'fraction' or 'all'")
        self.name = name
        self._mode, self._score, self._sentence_splitter = mode, score, sentence_splitter

    @functools.cached_property
    def grader(self) -> Grader:
        """Built once, when first needed."""
        return Grader(self._mode, sentence_splitter=self._sentence_splitter)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "grader"}

    def check(self, prompt: Prompt) -> None:
        """Checks a prompt's instructions before a run. Raises `ConfigError` naming the prompt and what is wrong."""
        try:
            self._checklist(prompt)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"prompt {prompt.id!r}: {error}") from None

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion: abstained where the prompt has no instructions, failed where they are wrong."""
        return await run_in_thread(functools.partial(self._judge_all, prompt, completions))

    def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        try:
            checklist = self._checklist(prompt)
        except (ConfigError, DataError) as error:
            return [Verdict.failed(str(error))] * len(completions)
        if not checklist.rules:
            return [Verdict.abstained("the prompt has no instructions")] * len(completions)
        return [self._judge_one(checklist, completion) for completion in completions]

    def _judge_one(self, checklist: Checklist, completion: Completion) -> Verdict:
        started = time.perf_counter()
        grade = checklist.grade(completion.text)
        if grade.ungradable:
            verdict = Verdict.failed("; ".join(grade.ungradable.values()))
        else:
            followed = sum(verdict is True for verdict in grade.strict)
            score = followed / len(grade.strict) if self._score == "fraction" else float(grade.passes_strict)
            verdict = Verdict.scored(score, passed=grade.passes_strict, reason=_reason(checklist, grade))
        return with_seconds(verdict, time.perf_counter() - started)

    def _checklist(self, prompt: Prompt) -> Checklist:
        instructions = prompt.info.get("instructions") or ()
        if not isinstance(instructions, list | tuple):
            raise DataError(f"info.instructions={instructions!r}; give a list of {{'id': ..., 'kwargs': {{...}}}}")
        return self.grader.checklist(instructions, is_strict=True)


def _reason(checklist: Checklist, grade: Grade) -> str:
    """Names the violated instructions."""
    pairs = zip(checklist.rules, grade.strict, strict=True)
    violated = [f"{rule.id} ({rule.describe()})" for rule, verdict in pairs if isinstance(rule, Rule) and not verdict]
    return "violated: " + "; ".join(violated) if violated else ""


follows_instructions = InstructionJudge()
"""The judge of default settings, for recipes: fixed mode, score = fraction followed."""
