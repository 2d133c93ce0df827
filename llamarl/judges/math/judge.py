r"""The mathematics judge: is the answer that the completion gives the reference answer?

    [[judges]]
    function = "math"

The row's `answer` is the reference: a number, a text such as "\frac{1}{2}", or a whole solution that ends in
"#### 42" or holds a box.

    the answer is right                        scored 1, passed
    wrong                                      scored 0; the reason begins "wrong answer"
    equal, but 6 * 7 where a number is asked   scored 0; "not worked out"
    right or wrong in another format           scored 0; "wrong format" (where `format` asks for one)
    none given                                 scored 0; "no answer found"
    too large to compare                       scored 0; "not comparable"
    the row has no answer                      abstained
    the comparison hung and was killed         failed
"""

import asyncio
import functools
import logging
import math
import numbers
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Status, Verdict, text_completion
from llamarl.judges.adapters.base import with_seconds
from llamarl.judges.math.clean import clean
from llamarl.judges.math.equality import compare_answers
from llamarl.judges.math.extract import Found, extract_answer, find_answer, last_final_answer
from llamarl.judges.math.read import is_numeral, is_readable, says_something, without_label
from llamarl.judges.math.symbolic import SymbolicJudge, algebra_pair, check_installed, is_algebra
from llamarl.judges.process.judge import ProcessJudge
from llamarl.judges.threads import run_in_thread

AnswerFormat = Literal["any", "boxed", "final_answer"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Undecided:
    """An answer that needs algebra, and the two texts to compare."""

    answer: str
    left: str
    right: str


class MathJudge(Judge):
    """Scores 1 for the reference answer, else 0."""

    info = JudgeInfo(version="3", has_deadline=True)
    """The version changes with every change of a verdict. Each call ends by itself, whatever the answer is."""

    def __init__(
        self,
        *,
        format: AnswerFormat = "any",
        use_last_number: bool = False,
        is_symbolic: bool = True,
        num_workers: int = 2,
        timeout_seconds: float = 5.0,
        name: str = "math",
    ) -> None:
        """Describes the judge; worker processes start when an answer first needs algebra.

        Args:
            format: `any` form that `extract_answer` knows, or only `boxed`, or only the sentence "The final answer is
                x." (`final_answer`, the paper's; x may stand in brackets). A right answer in another form then violates
                the constraint.
            use_last_number: take the last number of a text that gives its answer in no form.
            is_symbolic: ask math-verify where reading does not decide; else such answers count as wrong.
            num_workers: processes for math-verify.
            timeout_seconds: for one comparison by math-verify.
            name: in verdicts and metrics.

        Raises:
            ConfigError: an unknown format, or numbers that are not positive.
        """
        if format not in get_args(AnswerFormat):
            raise ConfigError(f"format={format!r}; choose one of {', '.join(get_args(AnswerFormat))}")
        if num_workers < 1 or not timeout_seconds > 0:
            raise ConfigError(f"MathJudge: {num_workers=}, {timeout_seconds=}; both must be positive")
        self.name = name
        self._format, self._use_last_number, self._is_symbolic = format, use_last_number, is_symbolic
        self._num_workers, self._timeout_seconds = num_workers, timeout_seconds

    def check(self, prompt: Prompt) -> None:
        """Checks a row before a run. An answer that only its own spelling equals is named in a warning.

        Raises:
            ConfigError: its answer is missing, empty or of a wrong type, or no completion could give it in the format.
            MissingDependencyError: its answer needs math-verify, which is not installed.
        """
        try:
            reference = read_reference(prompt.answer)
        except ConfigError as error:
            raise ConfigError(f"prompt {prompt.id!r}: {error}") from None
        if reference is None:
            raise ConfigError(f"prompt {prompt.id!r}: answer is missing; judge '{self.name}' compares with it")
        form = "The final answer is {}." if self._format == "final_answer" else "\\boxed{{{}}}"
        own = self._read(reference, form.format(reference))
        if not (isinstance(own, Verdict) and own.passed):
            reason = own.reason if isinstance(own, Verdict) else f"wrong answer: {own.answer}"
            raise ConfigError(
                f"prompt {prompt.id!r}: answer={_short(reference)!r} can never be given: a completion that gives it as "
                f"it stands is judged {reason!r}; shorten or mend it"
            )
        if is_readable(reference):
            return
        if self._is_symbolic and is_algebra(clean(reference)):
            check_installed()
        else:
            _log.warning(
                "prompt %r: answer=%r is beyond reading and algebra, so only the same spelling equals it",
                prompt.id,
                _short(reference),
            )

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion (table in the module's docstring)."""
        try:
            reference = read_reference(prompt.answer)
        except ConfigError as error:
            return [Verdict.failed(str(error))] * len(completions)
        if reference is None:
            return [Verdict.abstained("the row has no answer")] * len(completions)
        first = await run_in_thread(lambda: [self._look(reference, completion.text) for completion in completions])
        looks = [self._calculate(look) if isinstance(look, _Undecided) else asyncio.sleep(0, look) for look in first]
        return list(await asyncio.gather(*looks))

    def close(self) -> None:
        """Ends the worker processes, if there are any. The next call that needs them starts others."""
        workers = self.__dict__.pop("_workers", None)
        if workers is not None:
            workers.close()

    @functools.cached_property
    def _workers(self) -> ProcessJudge:
        check_installed()
        return ProcessJudge(
            SymbolicJudge(),
            num_workers=self._num_workers,
            timeout_seconds=self._timeout_seconds,
            max_memory_bytes=1 << 30,
        )

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_workers"}

    def _look(self, reference: str, text: str) -> Verdict | _Undecided:
        started = time.perf_counter()
        look = self._read(reference, text)
        return with_seconds(look, time.perf_counter() - started) if isinstance(look, Verdict) else look

    def _read(self, reference: str, text: str) -> Verdict | _Undecided:
        """Returns the verdict as far as reading decides it."""
        found = find_answer(text, use_last_number=self._use_last_number)
        if found is None:
            return _wrong("no answer found")
        answer = self._in_format(found, text)
        if answer is None:
            return _wrong(f"wrong format: the answer is given as {found.form}, not {self._format}")
        is_equal = compare_answers(reference, answer)
        if is_equal and is_numeral(reference) and not is_numeral(without_label(answer)):
            return _wrong(f"not worked out: {_short(answer)}")
        if is_equal:
            return Verdict.scored(1.0, passed=True)
        if is_equal is False or not self._is_symbolic or is_numeral(reference):
            return _wrong(f"wrong answer: {_short(answer)}")
        pair = algebra_pair(clean(reference), clean(answer))
        return _Undecided(answer, *pair) if pair else _wrong(f"not comparable: {_short(answer)}")

    def _in_format(self, found: Found, text: str) -> str | None:
        if self._format == "any" or found.form == self._format:
            return found.answer
        return last_final_answer(text) if self._format == "final_answer" else None

    async def _calculate(self, pair: _Undecided) -> Verdict:
        """Asks math-verify."""
        try:
            workers = self._workers
        except MissingDependencyError as error:
            return Verdict.failed(f"the answer needs algebra; {error}")
        (verdict,) = await workers.judge(Prompt("", (), answer=pair.left), [text_completion(pair.right)])
        is_wrong = verdict.status is Status.SCORED and not verdict.passed
        return _wrong(f"wrong answer: {_short(pair.answer)}") if is_wrong else verdict


def read_reference(answer: object) -> str | None:
    """The reference answer of a row as text: a number, a text, or what a solution gives as its answer.

    Raises:
        ConfigError: it is something else, or says nothing.
    """
    if answer is None:
        return None
    if isinstance(answer, numbers.Real) and not isinstance(answer, bool) and math.isfinite(answer):
        return str(answer)
    if not isinstance(answer, str):
        raise ConfigError(f"answer={_short(repr(answer))} is of type {type(answer).__name__}; give a number or text")
    reference = answer.rpartition("####")[2]
    if "\\boxed" in reference:
        reference = extract_answer(reference) or reference
    if not says_something(clean(reference)):
        raise ConfigError(f"answer={_short(answer)!r} says nothing; give a number or text")
    return reference


def _wrong(reason: str) -> Verdict:
    return Verdict.scored(0.0, passed=False, reason=reason)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"


math_judge = MathJudge()
"""The judge of default settings, for recipes: `function = "math"`."""
