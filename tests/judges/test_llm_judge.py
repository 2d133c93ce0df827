"""On virtual time and a scripted server."""

import asyncio
import json
import math
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, ScriptedTransport, transport

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import JudgeConfig, JudgePanel, build_panel, load_judge, text_completion
from llamarl.judges.llm import LLMJudge
from llamarl.judges.rows import CompletionRow
from llamarl.judges.runner import judge_rows
from llamarl.testing import run_virtual

PROMPT = Prompt("p", ({"role": "user", "content": "Capital of France?"},), answer="Paris")
YES = Reply("True", top_logprobs=[{"True": math.log(0.75), "False": math.log(0.25)}])
NO = Reply("False", top_logprobs=[{"False": math.log(0.75), "True": math.log(0.25)}])
GOOD = Reply('{"reason": "fine", "score": 8, "passed": true}')
BAD = Reply("I would rather not say.")


def judge(script: Any, template: str = "factuality", **settings: Any) -> LLMJudge:
    scripted = script if isinstance(script, ScriptedTransport) else transport(script)
    values = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": template, **settings}
    return LLMJudge(**{"transport": scripted, **values})


def ask(judge: LLMJudge, *texts: str, prompt: Prompt = PROMPT) -> list[Verdict]:
    run = run_virtual if judge.config.cache is None else asyncio.run  # virtual time does not wait for threads
    return run(judge.judge(prompt, [text_completion(text) for text in texts]))


def test_golden_probability() -> None:
    right, wrong = ask(judge(lambda body: YES if "Rome" not in str(body["messages"]) else NO), "Paris", "Rome")
    # 0.75 / (0.75 + 0.25)
    assert right.score == pytest.approx(0.75) and right.passed is True
    assert wrong.score == pytest.approx(0.25) and wrong.passed is False  # cgpo 3.8: violated iff P(neg) > P(pos)
    assert right.reason == "P(True)=0.75, P(False)=0.25"


def test_probability_asks_for_one_token() -> None:
    scripted = transport(YES)
    ask(judge(scripted, top_logprobs=5, extra={"chat_template_kwargs": {"enable_thinking": False}}), "Paris")
    body = scripted.requests[0]
    assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0.0, 5)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    system, user = body["messages"]
    assert "reference" in system["content"]
    assert all(text in user["content"] for text in ("Capital of France?", "\nParis\n", "one word, True or False"))


@pytest.mark.parametrize("template", ["false_refusal", "factuality", "safety", "rubric"])
@pytest.mark.parametrize("way", ["probability", "json"])
def test_every_shipped_template_works_both_ways(template: str, way: str) -> None:
    def script(body: dict[str, Any]) -> Reply:
        if body["max_tokens"] > 1:
            return Reply('{"reason": "", "score": 1, "passed": true}')
        words = made.template.positive + made.template.negative
        return Reply(top_logprobs=[dict.fromkeys(words, math.log(0.5))])

    made = judge(script, template, way=way, criteria="Be brief.")
    (verdict,) = ask(made, "text")
    assert verdict.passed is True, verdict
    assert made.name == template and made.version == f"{template}@1"


def test_false_refusal_shows_the_reply_alone() -> None:
    scripted = transport(YES)
    ask(judge(scripted, "false_refusal"), "I cannot help.")
    assert "France" not in str(scripted.requests)


def test_golden_json() -> None:
    scripted = transport(GOOD)
    (verdict,) = ask(judge(scripted, "rubric", criteria="Be brief."), "x")
    assert (verdict.score, verdict.passed, verdict.reason) == (0.8, True, "fine")  # 8 of 10
    assert scripted.requests[0]["response_format"]["type"] == "json_schema"
    assert "Be brief." in scripted.requests[0]["messages"][0]["content"]


def test_criteria_of_the_row_win() -> None:
    scripted = transport(GOOD)
    row = Prompt("p", PROMPT.messages, info={"criteria": "Of the row."})
    ask(judge(scripted, "rubric", criteria="Of the settings."), "x", prompt=row)
    assert "Of the row." in str(scripted.requests) and "Of the settings." not in str(scripted.requests)


def test_an_unreadable_answer_is_asked_for_once_more() -> None:
    scripted = transport([BAD, GOOD])
    (verdict,) = ask(judge(scripted, "rubric", criteria="c"), "x")
    assert verdict.score == 0.8
    assert [message["role"] for message in scripted.requests[1]["messages"]] == ["system", "user", "assistant", "user"]
    scripted = transport(BAD)
    (verdict,) = ask(judge(scripted, "rubric", criteria="c"), "x")
    assert verdict.status is Status.FAILED and "no JSON object" in verdict.reason
    assert len(scripted.requests) == 2


def test_a_cut_answer_says_so() -> None:
    cut = Reply('{"reason": "The', finish_reason="length")
    (verdict,) = ask(judge(cut, "rubric", criteria="c", max_tokens=4), "x")
    assert verdict.reason == "the answer was cut at max_tokens=4; raise it"


def test_equal_texts_are_asked_about_once() -> None:
    scripted = transport(YES)
    verdicts = ask(judge(scripted, prompt_price=1e6), "Paris", "Rome", "Paris")
    assert len(scripted.requests) == 2
    assert [verdict.cost for verdict in verdicts] == [7.0, 7.0, 0.0]  # 7 prompt tokens of a dollar each


@pytest.mark.parametrize(
    "fault", [Reply(status=500), Reply(drops=True), Reply(body=b"?"), Reply(hangs=True), Reply(status=400), Reply("x")]
)
def test_a_fault_is_a_failed_verdict(fault: Reply) -> None:
    (verdict,) = ask(judge(fault, max_retries=2), "Paris")
    assert verdict.status is Status.FAILED and verdict.score is None and verdict.reason


def test_a_request_that_hangs_fails_alone() -> None:
    """In a panel as recipes build it, whose own deadline of 60 s would fail the group."""
    scripted = transport(lambda body: Reply(hangs=True) if "Rome" in str(body["messages"]) else YES)
    settings = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": "factuality", "transport": scripted}
    panel = build_panel([JudgeConfig(function="llm", settings={**settings, "deadline_seconds": 200.0})])
    completions = [text_completion(text) for text in ("Paris", "Rome", "Paris!")]
    samples = run_virtual(panel.judge_group(PROMPT, completions))
    assert [sample.reward for sample in samples] == pytest.approx([0.75, None, 0.75])
    assert samples[1].verdicts["factuality"].reason == "no answer within deadline_seconds=200"
    assert len(scripted.requests) == 4  # the second try on Rome, at 120 s, ends with the deadline


def test_many_hanging_requests_leave_the_others_their_verdicts() -> None:
    """A quarter of 128 completions hangs; they fail together and last, and the server is not taken for dead."""

    async def main() -> list[list[Verdict]]:
        script = transport(lambda body: Reply(hangs=True) if "slow" in str(body["messages"]) else YES)
        made = judge(script, clock=asyncio.get_running_loop().time, max_concurrency=64)
        texts = [f"{'slow' if number % 4 == 0 else 'quick'} {number}" for number in range(128)]
        rounds = []
        for _ in range(2):
            rounds.append(await made.judge(PROMPT, [text_completion(text) for text in texts]))
        return rounds

    for verdicts in run_virtual(main()):
        statuses = [verdict.status for verdict in verdicts]
        assert statuses == [Status.FAILED if number % 4 == 0 else Status.SCORED for number in range(128)]


def test_faults_that_pass_leave_no_trace() -> None:
    made = judge([Reply(status=429, headers={"Retry-After": "9"}), Reply(hangs=True), YES])
    (verdict,) = ask(made, "Paris")
    assert verdict.passed is True
    assert made.metrics()["retries"] == 2


# ---- what the row lacks


@pytest.mark.parametrize(("template", "field"), [("factuality", "answer"), ("rubric", "criteria")])
def test_a_row_without_what_the_template_needs(template: str, field: str) -> None:
    made, bare = judge(YES, template), Prompt("bare", PROMPT.messages)
    with pytest.raises(ConfigError, match=rf"prompt 'bare' .*judge '{template}': {field}: this judge"):
        JudgePanel([made]).check([bare])
    (verdict,) = ask(made, "x", prompt=bare)
    assert verdict.status is Status.FAILED and verdict.reason.startswith(field)


def test_the_reference_may_stand_in_info() -> None:
    scripted = transport(YES)
    ask(judge(scripted), "x", prompt=Prompt("p", PROMPT.messages, info={"reference": ["Paris", "Lutetia"]}))
    assert '["Paris", "Lutetia"]' in scripted.requests[0]["messages"][1]["content"]


# ---- money


def test_cost_is_counted_and_capped() -> None:
    # 7 prompt and 3 answered tokens at 1 and 2 dollars per million: (7 + 6) / 1e6 = 1.3e-5
    scripted = transport(YES)
    made = judge(scripted, prompt_price=1.0, completion_price=2.0, max_cost=2e-5, max_concurrency=1)
    first = ask(made, "a") + ask(made, "b")
    assert [verdict.cost for verdict in first] == pytest.approx([1.3e-5, 1.3e-5])
    (third,) = ask(made, "c")
    assert (
        third == Verdict.failed("max_cost=2e-05 dollars are spent")
        or third.reason == "max_cost=2e-05 dollars are spent"
    )
    assert len(scripted.requests) == 2
    assert made.cost_class == "paid" and made.metrics()["blocked"] == 1


def test_both_answers_of_a_repeated_question_are_paid() -> None:
    (verdict,) = ask(judge([BAD, GOOD], "rubric", criteria="c", completion_price=1.0), "x")
    assert verdict.cost == pytest.approx(6e-6)


def test_uncounted_tokens_are_estimated() -> None:
    (verdict,) = ask(judge(Reply(top_logprobs=YES.top_logprobs, usage=None), prompt_price=3e6), "x" * 3000)
    assert verdict.cost > 3000  # at least 1,000 tokens at 3 dollars


# ---- a server that is down


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
        panel = JudgePanel([made], timeout_seconds=None)
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
            await panel_rows(JudgePanel([made], timeout_seconds=None), 400)
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


# ---- cache


def test_the_cache_answers_the_second_time(tmp_path: Path) -> None:
    scripted, path = transport(YES), str(tmp_path / "new" / "judge.sqlite")
    first = ask(judge(scripted, cache=path, prompt_price=1.0), "Paris")[0]
    made = judge(scripted, cache=path, prompt_price=1.0)
    second = ask(made, "Paris")[0]
    assert len(scripted.requests) == 1
    assert (second.score, second.passed, second.reason) == (first.score, first.passed, first.reason)
    assert first.cost > 0 and second.cost == 0.0
    assert made.metrics()["cache_hit_rate"] == 1.0


def test_what_would_change_the_answer_changes_the_key(tmp_path: Path) -> None:
    scripted, path = transport(Reply('{"passed": true}', top_logprobs=YES.top_logprobs)), str(tmp_path / "judge.sqlite")
    template = tmp_path / "mine.toml"
    text = 'way = "probability"\nuser = "{{completion}}"\nask_token = "?"\npositive = ["True"]\nnegative = ["False"]\n'
    for version in "12":
        template.write_text(f'version = "{version}"\n' + text)
        ask(judge(scripted, str(template), cache=path), "a")
    ask(judge(scripted, str(template), cache=path), "b")
    ask(judge(scripted, str(template), cache=path, model="other"), "a")
    template.write_text('version = "2"\n' + text.replace('["False"]', '["False", "No"]'))
    ask(judge(scripted, str(template), cache=path), "a")
    ask(judge(scripted, cache=path), "a")
    ask(judge(scripted, cache=path, way="json"), "a")
    ask(judge(scripted, cache=path, way="json", constrain_json=False), "a")
    ask(judge(scripted, cache=path, base_url="http://127.0.0.1:2/v1"), "a")
    assert len(scripted.requests) == 9
    ask(judge(scripted, cache=path, base_url="http://127.0.0.1:2/v1/"), "a")  # the same place
    assert len(scripted.requests) == 9


@pytest.mark.parametrize("setting", [{"top_logprobs": 5}, {"min_mass": 0.6}, {"extra": {"seed": 1}}, {"max_tokens": 9}])
def test_settings_of_the_question_change_the_key(tmp_path: Path, setting: dict[str, Any]) -> None:
    scripted, path = transport(YES), str(tmp_path / "judge.sqlite")
    ask(judge(scripted, cache=path), "a")
    ask(judge(scripted, cache=path, **setting), "a")
    assert len(scripted.requests) == 2


def test_an_edited_text_changes_the_key_though_its_version_does_not(tmp_path: Path) -> None:
    scripted, path, template = transport(YES), str(tmp_path / "judge.sqlite"), tmp_path / "mine.toml"
    for question in ("Is it right?", "Is it true?"):
        template.write_text(
            f'version = "1"\nway = "probability"\nuser = "{{{{completion}}}}"\nask_token = "{question}"\n'
            'positive = ["True"]\nnegative = ["False"]\n'
        )
        ask(judge(scripted, str(template), cache=path), "a")
    assert len(scripted.requests) == 2


def test_failed_verdicts_are_not_cached(tmp_path: Path) -> None:
    made = judge([Reply(status=500), YES], cache=str(tmp_path / "judge.sqlite"), max_retries=0)
    assert ask(made, "Paris")[0].status is Status.FAILED
    assert ask(made, "Paris")[0].passed is True


def test_processes_share_a_cache(tmp_path: Path) -> None:
    script = (
        "import sys; from llamarl.judges.cache import VerdictCache; from llamarl.core.records import Verdict\n"
        "cache = VerdictCache(sys.argv[1])\n"
        "for n in range(100):\n"
        "    cache.put(f'{n}', Verdict.scored(n, passed=True, reason='r'))\n"
        "    assert cache.get(f'{n}').score == n\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "judge.sqlite")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a data base\n" * 100)
    with pytest.raises(ConfigError, match=r"cache='.*notes.txt': .*not a database"):
        judge(YES, cache=str(path))
    assert path.read_text().startswith("these are my notes")


# ---- settings and templates


def test_recipes_build_it_by_name() -> None:
    settings = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": "safety"}
    assert load_judge("llm", settings=settings).name == "safety"
    assert load_judge("llm", "harmless", settings=settings).name == "harmless"
    made = pickle.loads(pickle.dumps(load_judge("llm", "harmless", settings=settings)))
    assert (made.name, made.config.template) == ("harmless", "safety")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "safty"}, r"template 'safty': not shipped. Did you mean 'safety'\?"),
        ({"template": "no/such.toml"}, "no/such.toml: no such file"),
        ({"templat": "safety"}, r"settings: .*templat: unknown key. Did you mean 'template'\?"),
        ({"way": "guess"}, "way: .*'probability' or 'json'"),
        ({"max_cost": 1.0}, "max_cost: needs prompt_price"),
        ({"deadline_seconds": 10.0}, "breaker_seconds=10: lower it below deadline_seconds=10"),
        ({"api_key_env": "LLAMARL_NO_SUCH_KEY"}, "'LLAMARL_NO_SUCH_KEY'.*not set"),
    ],
)
def test_rejects_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        judge(YES, **{"template": "safety", **settings})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('user = "x"', r"has no \{\{completion\}\}"),
        ('user = "{{completion}} {{anser}}"', r"\{\{anser\}\}: unknown field"),
        ('user = "{{completion}}"\nmax_score = 0', "max_score=0.0: must be above"),
        ('user = "{{completion}}"\nask_json = ""\nask_token = "?"', "'positive' and 'negative'"),
        ('user = "{{completion}}"\npositive = ["Yes"]\nnegative = ["yes"]\nask_json = "?"', "hold the same word"),
        ('user = "{{completion}}"\npositive = ["Yes"]\nnegative = ["Yes "]\nask_json = "?"', "hold the same word"),
        ('user = "{{completion}}"\npositive = [" "]\nnegative = ["No"]\nask_json = "?"', "hold an empty word"),
        ('user = "{{completion}}"', "way='json': needs ask_json"),
    ],
)
def test_rejects_templates(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'version = "1"\nway = "json"\n{text}\n')
    with pytest.raises(ConfigError, match=message):
        judge(YES, str(path))


def test_fields_inside_of_data_stay_text() -> None:
    scripted = transport(YES)
    ask(judge(scripted), "the answer is {{reference}}")
    assert "the answer is {{reference}}" in scripted.requests[0]["messages"][1]["content"]


def test_a_completion_cannot_close_its_own_markers() -> None:
    scripted = transport(YES)
    ask(judge(scripted, "false_refusal"), "a\n</reply>\n", "b")
    codes = [body["messages"][1]["content"].split(">")[0] for body in scripted.requests]
    assert len(set(codes)) == 2 and all(len(code) == len("<reply ") + 12 for code in codes)


def test_conversations_keep_their_roles() -> None:
    scripted = transport(YES)
    turns = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Capital?"},
    )
    ask(judge(scripted), "Paris", prompt=Prompt("p", turns, answer="Paris"))
    assert "[user]\nHi\n\n[assistant]\nYes?\n\n[user]\nCapital?" in scripted.requests[0]["messages"][1]["content"]


# ---- over a real socket


def test_over_a_real_socket() -> None:
    async def main(base_url: str) -> list[Verdict]:
        made = LLMJudge(base_url=base_url, model="m", template="factuality", max_concurrency=8)
        try:
            return await made.judge(PROMPT, [text_completion(str(number)) for number in range(40)])
        finally:
            await made.aclose()

    with FakeServer(Reply("True", latency_seconds=0.002, top_logprobs=YES.top_logprobs)) as server:
        verdicts = asyncio.run(main(server.base_url))
        assert [verdict.passed for verdict in verdicts] == [True] * 40
        assert server.max_in_flight <= 8


def test_imports_without_torch() -> None:
    code = "import sys, json, llamarl.judges.llm; print(json.dumps('torch' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) is False
