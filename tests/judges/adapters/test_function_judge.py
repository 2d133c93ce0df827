import asyncio
import functools
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges import FunctionJudge, text_completion, to_verdict
from llamarl.judges.threads import run_in_thread

PROMPT = Prompt("p", ({"role": "user", "content": "2 + 2 ="},), answer="4")


def judged(function: Any, *texts: str, **options: Any) -> list[Verdict]:
    judge = FunctionJudge(function, **options)
    return asyncio.run(judge.judge(PROMPT, [text_completion(text) for text in texts or ("4",)]))


# ---- what a function may return


@pytest.mark.parametrize(
    ("value", "score", "passed"),
    [
        (0.25, 0.25, None),
        (3, 3.0, None),
        (True, 1.0, True),
        (False, 0.0, False),
        (np.float32(0.5), 0.5, None),
        (np.array(0.5), 0.5, None),
        (np.bool_(True), 1.0, True),
        (Fraction(1, 4), 0.25, None),
    ],
)
def test_numbers_and_booleans_are_scored(value: Any, score: float, passed: bool | None) -> None:
    verdict = to_verdict(value)
    assert (verdict.status, verdict.score, verdict.passed) == (Status.SCORED, score, passed)


def test_none_abstains_and_a_verdict_stays_as_it_is() -> None:
    assert to_verdict(None) == Verdict.abstained()
    verdict = Verdict.scored(0.5, passed=False, reason="half")
    assert to_verdict(verdict) is verdict


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "returned nan"),
        (float("-inf"), "returned -inf"),
        (1e308, "returned 1e+308; return a number from -1e+30 to 1e+30"),
        (-2e30, "returned -2e+30"),
        (10**400, "returned a whole number that is too large for a float"),
        (np.float64("nan"), "returned nan"),
        ("1.0", "returned str '1.0'; return a Verdict, float, bool or None"),
        ([1.0], "returned list [1.0]"),
        ({"score": 1}, "returned dict"),
        (1j, "returned complex 1j"),
        (np.array([1.0]), "returned ndarray"),
        (object, "returned type"),
    ],
)
def test_anything_else_fails_and_carries_no_number(value: Any, reason: str) -> None:
    verdict = to_verdict(value)
    assert verdict.status is Status.FAILED
    assert verdict.score is None
    assert verdict.reason.startswith(reason)


def test_long_values_are_cut_in_the_reason() -> None:
    assert len(to_verdict("x" * 10_000).reason) < 200


# ---- how it is called


def test_the_function_gets_the_records_and_each_completion_its_verdict() -> None:
    def exact(prompt: Prompt, completion: Completion) -> bool:
        return completion.text == prompt.answer

    verdicts = judged(exact, "4", "5")
    assert [(verdict.score, verdict.passed) for verdict in verdicts] == [(1.0, True), (0.0, False)]
    assert FunctionJudge(exact).name == "exact"


def test_an_exception_fails_its_own_completion_and_names_the_place() -> None:
    def fragile(prompt: Prompt, completion: Completion) -> float:
        return 1 / int(completion.text)

    good, zero, word = judged(fragile, "2", "0", "x")
    assert good.score == 0.5
    assert zero.status is word.status is Status.FAILED
    assert zero.reason.startswith("ZeroDivisionError: division by zero (") and __file__ in zero.reason
    assert word.reason.startswith("ValueError: invalid literal")


@pytest.mark.parametrize(
    "error", [SystemExit(3), RecursionError("deep"), MemoryError(), StopIteration(), OverflowError()]
)
@pytest.mark.parametrize("is_inline", [False, True])
def test_no_exception_of_a_function_ends_the_program(error: BaseException, is_inline: bool) -> None:
    def broken(prompt: Prompt, completion: Completion) -> float:
        raise error

    (verdict,) = judged(broken, is_inline=is_inline)
    assert verdict.reason.startswith(type(error).__name__)


def test_judge_errors_are_passed_on_for_a_retry() -> None:
    def unreachable(prompt: Prompt, completion: Completion) -> float:
        raise JudgeError("endpoint down")

    with pytest.raises(JudgeError, match="endpoint down"):
        judged(unreachable)


def test_each_verdict_carries_its_own_seconds() -> None:
    ticks, started = iter([0.0, 0.05]), time.perf_counter()
    first, second = judged(lambda prompt, completion: time.sleep(next(ticks)), "a", "b")
    assert first.seconds > 0 and second.seconds >= 0.05
    assert first.seconds + second.seconds <= time.perf_counter() - started  # neither counts the other's


def test_seconds_a_function_measured_itself_are_kept() -> None:
    (verdict,) = judged(lambda prompt, completion: Verdict(Status.SCORED, 1.0, seconds=9.0))
    assert verdict.seconds == 9.0


def test_async_functions_judge_a_group_concurrently() -> None:
    async def main() -> list[Verdict]:
        arrived, all_here = [], asyncio.Event()

        async def meet(prompt: Prompt, completion: Completion) -> float:
            arrived.append(completion)
            if len(arrived) == 3:
                all_here.set()
            await asyncio.wait_for(all_here.wait(), 10)
            return 1.0

        return await FunctionJudge(meet).judge(PROMPT, [text_completion("x")] * 3)

    assert [verdict.score for verdict in asyncio.run(main())] == [1.0] * 3


def test_async_objects_and_partials_are_known() -> None:
    class Slow:
        async def __call__(self, prompt: Prompt, completion: Completion) -> float:
            raise KeyError("x")

    (verdict,) = judged(Slow())
    assert verdict.reason.startswith("KeyError")

    def scaled(prompt: Prompt, completion: Completion, scale: float) -> float:
        return scale

    assert FunctionJudge(functools.partial(scaled, scale=2.0)).name == "scaled"
    assert judged(functools.partial(scaled, scale=2.0))[0].score == 2.0


def test_a_coroutine_from_a_plain_function_is_named_as_the_mistake_it_is() -> None:
    async def inner() -> float:
        return 1.0

    (verdict,) = judged(lambda prompt, completion: inner())
    assert verdict.reason == "returned a coroutine; declare the function itself with 'async def'"


def test_a_blocking_function_leaves_the_event_loop_free() -> None:
    async def main() -> list[Verdict]:
        release = threading.Event()
        judge = FunctionJudge(lambda prompt, completion: release.wait(10))
        task = asyncio.create_task(judge.judge(PROMPT, [text_completion("x")]))
        await asyncio.sleep(0)
        release.set()  # reached only because the loop goes on while the function waits
        return await task

    (verdict,) = asyncio.run(main())
    assert verdict.score == 1.0


def test_inline_functions_run_on_the_callers_thread() -> None:
    threads = []
    judged(lambda prompt, completion: threads.append(threading.current_thread()), is_inline=True)
    judged(lambda prompt, completion: threads.append(threading.current_thread()))
    assert threads[0] is threading.main_thread() and threads[1] is not threading.main_thread()


def test_an_abandoned_call_does_not_starve_later_ones() -> None:
    async def main() -> list[float]:
        hung = threading.Event()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run_in_thread(hung.wait), 0.01)
        results = [await run_in_thread(lambda: 1.0) for _ in range(3)]
        hung.set()
        return results

    assert asyncio.run(main()) == [1.0] * 3


def test_something_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 cannot be called; give a function of \(prompt, completion\)"):
        FunctionJudge(3)  # type: ignore[arg-type]
