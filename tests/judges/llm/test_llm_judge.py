"""Questions, answers and settings; on virtual time and a scripted server."""

import asyncio
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, transport
from llm_judges import BAD, GOOD, NO, PROMPT, YES, ask, judge

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import JudgeConfig, JudgePanel, Seat, build_panel, load_judge, text_completion
from llamarl.judges.llm.judge import LLMJudge
from llamarl.testing import run_virtual


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
    assert made.name == template and made.info.version == f"{template}@1"


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
        JudgePanel([Seat(made)]).check([bare])
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
    assert made.info.cost_class == "paid" and made.metrics()["blocked"] == 1


def test_both_answers_of_a_repeated_question_are_paid() -> None:
    (verdict,) = ask(judge([BAD, GOOD], "rubric", criteria="c", completion_price=1.0), "x")
    assert verdict.cost == pytest.approx(6e-6)


def test_uncounted_tokens_are_estimated() -> None:
    (verdict,) = ask(judge(Reply(top_logprobs=YES.top_logprobs, usage=None), prompt_price=3e6), "x" * 3000)
    assert verdict.cost > 3000  # at least 1,000 tokens at 3 dollars


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
        ({"way": "guess"}, "way: 'guess' is unknown. Choose one of: json, probability"),
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
    code = "import sys, json, llamarl.judges.llm.judge; print(json.dumps('torch' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) is False
