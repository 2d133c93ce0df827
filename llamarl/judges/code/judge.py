"""The code judge: does the program that the completion gives pass the row's unit tests?

    [[judges]]
    function = "code"

The row's tests: `unit_tests` or `input_output` of `info`, else `answer` (forms: `unit_tests.py`).

    all tests pass                       scored 1, passed
    some fail                            scored 0 (or the share that passed); the reason names the first
    no complete code block               scored 0; "no code found"
    the row has no tests                 abstained
    a sandbox did not start              failed
    no sandbox can be had here           `ConfigError`, at the first call or `check`
"""

import asyncio
import functools
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.adapters.base import with_seconds
from llamarl.judges.code.extract import Which, extract_code
from llamarl.judges.code.grading import Setup, grade
from llamarl.judges.code.inside.wire import encode
from llamarl.judges.code.sandbox import MAX_SLOTS, Limits, SandboxError, find_python, no_reference
from llamarl.judges.code.slots import Slots
from llamarl.judges.code.unit_tests import Call, Program, Test, find_tests, parse_tests

CodeScore = Literal["all", "fraction"]


class CodeJudge(Judge):
    """Scores a program by the unit tests that it passes, in a sandbox. May be called from any event loop."""

    info = JudgeInfo(version="2", has_deadline=True)
    """The version changes with every change of a verdict. Each call ends by itself, whatever the solution does; waiting
    for a free slot is not its fault."""

    def __init__(
        self,
        *,
        score: CodeScore = "all",
        block: Which = "last",
        test_seconds: float = 5.0,
        total_seconds: float = 30.0,
        tolerance: float = 1e-6,
        limits: Limits | Mapping[str, int] | None = None,
        num_slots: int | None = None,
        python: str | None = None,
        unsafe_no_sandbox: bool = False,
        name: str = "code",
    ) -> None:
        """Describes the judge; the sandbox is tried by `check` or the first call.

        Args:
            score: 1 only if `all` tests pass (the paper's), or the `fraction` that passes.
            block: which code block of the completion counts, the `last` or the `first`.
            test_seconds: wall clock of one test.
            total_seconds: of all tests of a completion.
            tolerance: for numbers with a decimal point on standard output.
            limits: of each process inside (`Limits`), or some of its fields.
            num_slots: sandboxes at the same time; default: one per processor.
            python: interpreter for solutions, without packages; default: this one's base or the system's.
            unsafe_no_sandbox: run solutions with your own rights, unprotected. Every verdict says so.
            name: in verdicts and metrics.

        Raises:
            ConfigError: an unknown choice, or numbers out of range.
        """
        if score not in get_args(CodeScore) or block not in get_args(Which):
            raise ConfigError(f"CodeJudge: {score=}, {block=}; score is 'all' or 'fraction', block 'last' or 'first'")
        num_slots = num_slots or min(os.cpu_count() or 1, MAX_SLOTS)
        if not 1 <= num_slots <= MAX_SLOTS or not 0 < test_seconds <= total_seconds or tolerance < 0:
            raise ConfigError(
                f"CodeJudge: {num_slots=}, {test_seconds=}, {total_seconds=}, {tolerance=}; need 1 to {MAX_SLOTS} "
                "slots, 0 < test_seconds <= total_seconds and tolerance >= 0"
            )
        self.name = name
        self._score, self._block, self._python, self._is_unsafe = score, block, python, unsafe_no_sandbox
        self._seconds = (test_seconds, total_seconds)
        self._tolerance, self._num_slots = tolerance, num_slots
        self._limits = limits if isinstance(limits, Limits) else Limits.parse(limits or {})

    def check(self, prompt: Prompt) -> None:
        """Checks the sandbox and a row's tests before a run. Raises `ConfigError` naming what is wrong."""
        self._setup  # noqa: B018  # the trial run
        value = find_tests(prompt)
        if value is None:
            raise ConfigError(f"prompt {prompt.id!r}: info.unit_tests is missing; judge '{self.name}' runs them")
        try:
            tests = parse_tests(value)
        except DataError as error:
            raise ConfigError(f"prompt {prompt.id!r}: {error}") from None
        for number, test in enumerate(tests, 1):
            if isinstance(test, Program) and len(test.stdout.encode()) > self._limits.output_bytes:
                raise ConfigError(
                    f"prompt {prompt.id!r}: test {number} wants {len(test.stdout.encode())} bytes of output; "
                    f"limits.output_bytes is {self._limits.output_bytes}"
                )
            if isinstance(test, Call):
                try:
                    encode([*test.args, *test.kwargs.values()], no_reference)
                except ValueError as error:
                    raise ConfigError(f"prompt {prompt.id!r}: test {number}: {error}") from None

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion (table in the module's docstring)."""
        value = find_tests(prompt)
        if value is None:
            return [Verdict.abstained("the row has no unit tests")] * len(completions)
        try:
            tests = parse_tests(value)
        except DataError as error:
            return [Verdict.failed(str(error))] * len(completions)
        futures = [
            self._slots.submit(functools.partial(self._judge_one, completion.text, tests)) for completion in completions
        ]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    def close(self) -> None:
        """Ends the threads. The next call starts others."""
        slots = self.__dict__.pop("_slots", None)
        if slots is not None:
            slots.close()

    @functools.cached_property
    def _slots(self) -> Slots[Verdict]:
        return Slots(self._num_slots, f"judge-{self.name}")

    @functools.cached_property
    def _setup(self) -> Setup:
        if self._is_unsafe:
            warnings.warn(f"judge '{self.name}' runs solutions without a sandbox", RuntimeWarning, stacklevel=2)
        return Setup(
            find_python(self._python, self._is_unsafe),
            self._limits,
            *self._seconds,
            self._tolerance,
            self._is_unsafe,
            should_stop=self._score == "all",
        )

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_slots", "_setup")}

    def _judge_one(self, text: str, tests: Sequence[Test], slot: int) -> Verdict:
        started = time.perf_counter()
        code = extract_code(text, self._block)
        if code is None:
            return Verdict.scored(0.0, passed=False, reason="no code found")
        setup = self._setup
        try:
            results = grade(setup, code, tests, slot)
        except SandboxError as error:
            return Verdict.failed(str(error))
        except Exception as error:  # a fault of ours, in one completion: the others of its group keep their verdicts
            return Verdict.failed(f"the code judge failed: {type(error).__name__}: {error}")
        return with_seconds(self._verdict(results, tests), time.perf_counter() - started)

    def _verdict(self, results: Sequence[str], tests: Sequence[Test]) -> Verdict:
        num_passed = results.count("")
        is_passed = num_passed == len(tests)
        failures = [f"test {number} of {len(tests)}: {why}" for number, why in enumerate(results, 1) if why]
        reasons = ["no sandbox"] * self._is_unsafe + failures[:1]
        score = num_passed / len(tests) if self._score == "fraction" else float(is_passed)
        return Verdict.scored(score, passed=is_passed, reason="; ".join(reasons))


code_judge = CodeJudge()
"""The judge of default settings, for recipes: `function = "code"`."""
