"""A server that is down, refuses or fails now and then; on virtual time."""

import asyncio
import math
import random
import re
from typing import Any

import pytest
from fake_server import Reply, ScriptedTransport, transport
from llm_judges import BAD, NO, PROMPT, YES, ask, judge

from llamarl.core.errors import JudgeError
from llamarl.core.records import Status, Verdict
from llamarl.judges import JudgePanel, Seat, text_completion
from llamarl.judges.lab.runner import judge_rows
from llamarl.judges.llm.judge import LLMJudge
from llamarl.judges.rows import CompletionRow
from llamarl.testing import run_virtual


def outage(seconds: float, **settings: Any) -> tuple[LLMJudge, ScriptedTransport]:
    """A judge, by the running loop's clock, whose server answers 503 for that long from now."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    scripted = transport(lambda body: Reply(status=503) if loop.time() < end else YES)
    return judge(scripted, clock=loop.time, rng=random.Random(0), **settings), scripted


def panel_rows(panel: JudgePanel, num_rows: int) -> Any:
    """Rows of one completion, 16 at a time, as `judge run` does it."""
    rows = [CompletionRow("rows.jsonl", number, PROMPT, (f"text {number}",)) for number in range(num_rows)]
    return judge_rows(panel, rows)


def test_an_outage_costs_time_and_few_verdicts() -> None:
    async def main() -> tuple[list[Verdict], float, int]:
        made, scripted = outage(25.0)
        panel = JudgePanel([Seat(made)])
        samples = await panel_rows(panel, 400)
        verdicts = [sample.verdicts["factuality"] for (sample,) in samples]
        return verdicts, asyncio.get_running_loop().time(), scripted.max_in_flight

    verdicts, seconds, max_in_flight = run_virtual(main())
    failed = [verdict for verdict in verdicts if verdict.status is Status.FAILED]
    assert len(failed) < 8 and all("status 503" in verdict.reason for verdict in failed)  # before it opened
    assert 25 < seconds < 60 and max_in_flight <= 16


def test_many_questions_at_once_wait_for_the_server() -> None:
    """A group of 128 fails together; what fails once the breaker is open is asked again."""

    async def main() -> list[Verdict]:
        made, _ = outage(60.0, max_retries=0)
        return await made.judge(PROMPT, [text_completion(str(number)) for number in range(128)])

    assert sum(verdict.status is Status.FAILED for verdict in run_virtual(main())) == 7


def test_a_server_that_stays_away_fails_the_run_with_its_reason() -> None:
    async def main() -> tuple[str, float]:
        made, scripted = outage(math.inf, deadline_seconds=100.0)
        with pytest.raises(JudgeError) as error:
            await panel_rows(JudgePanel([Seat(made)]), 400)
        assert len(scripted.requests) < 400
        return str(error.value), asyncio.get_running_loop().time()

    message, seconds = run_virtual(main())
    assert re.search(r"within deadline_seconds=100: the server has been away for 1\d\d s; last: .*status 503", message)
    assert seconds < 150


def test_a_question_waits_no_longer_than_its_deadline() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made, _ = outage(math.inf, max_retries=0, breaker_failures=1, deadline_seconds=20.0)
        (verdict,) = await made.judge(PROMPT, [text_completion("a")])
        assert verdict.status is Status.FAILED and "away for 20 s" in verdict.reason and loop.time() == 20.0
        (verdict,) = await made.judge(PROMPT, [text_completion("b")])  # its one try fails: the server is taken for gone
        assert "away for 20 s" in verdict.reason and loop.time() == 20.0
        assert made.metrics()["blocked"] == 2

    run_virtual(main())


def test_a_question_that_waits_can_be_given_up() -> None:
    async def main() -> None:
        made, _ = outage(30.0, max_retries=0, breaker_failures=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await made.judge(PROMPT, [text_completion("a")])
        (verdict,) = await made.judge(PROMPT, [text_completion("a")])
        assert verdict.passed is True

    run_virtual(main())


def test_a_refusal_shows_that_the_server_is_back() -> None:
    async def main() -> None:
        replies = [Reply(status=503), Reply(status=400), YES]
        made = judge(replies, max_retries=0, breaker_failures=1, clock=asyncio.get_running_loop().time)
        (refused,) = await made.judge(PROMPT, [text_completion("a")])
        assert "status 400" in refused.reason
        before = asyncio.get_running_loop().time()
        (verdict,) = await made.judge(PROMPT, [text_completion("b")])
        assert verdict.passed is True and asyncio.get_running_loop().time() == before

    run_virtual(main())


def test_what_the_first_answer_cost_outlives_the_deadline_of_the_second() -> None:
    made = judge([BAD, Reply(hangs=True)], "rubric", criteria="c", completion_price=1.0)
    (verdict,) = ask(made, "x")
    assert verdict.reason == "no answer within deadline_seconds=300" and verdict.cost == pytest.approx(3e-6)


def test_refused_requests_do_not_open_the_breaker() -> None:
    scripted = transport(Reply(status=400))
    made = judge(scripted, breaker_failures=2)
    verdicts = ask(made, *"abcd")
    assert len(scripted.requests) == 4 and all("status 400" in verdict.reason for verdict in verdicts)


def test_thirty_percent_faults_do_not_move_the_mean() -> None:
    """Of 200 texts half are right; each request is refused, dropped, garbled or never answered with odds of 30 %."""
    rng = random.Random(1)
    faults = [Reply(status=429), Reply(status=503), Reply(drops=True), Reply(body=b"{"), Reply(hangs=True)]

    def script(body: dict[str, Any]) -> Reply:
        if rng.random() < 0.3:
            return rng.choice(faults)
        return YES if "\nright " in body["messages"][1]["content"] else NO

    made = judge(script, max_retries=1, rng=random.Random(2))
    verdicts = ask(made, *(f"{'right' if number % 2 else 'wrong'} {number}" for number in range(200)))
    scored = [verdict for verdict in verdicts if verdict.status is Status.SCORED]
    assert 160 < len(scored) < 200
    assert all(verdict.passed is bool(number % 2) for number, verdict in enumerate(verdicts) if verdict in scored)
