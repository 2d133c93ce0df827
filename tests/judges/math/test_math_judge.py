import asyncio
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import check_canaries, load_judge, text_completion
from llamarl.judges.math import MathJudge, math_judge
from llamarl.judges.math.clean import clean
from llamarl.judges.math.symbolic import algebra_pair, is_bounded

needs_algebra = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


def judged(judge: MathJudge, answer: Any, *texts: str) -> list[Verdict]:
    prompt = Prompt("p", (), answer=answer)
    return asyncio.run(judge.judge(prompt, [text_completion(text) for text in texts]))


def boxed(*answers: str) -> list[str]:
    return [f"So \\boxed{{{answer}}}." for answer in answers]


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    judge = MathJudge(num_workers=1)
    yield judge
    judge.close()


# golden


def test_verdicts() -> None:
    verdicts = judged(MathJudge(), "42", *boxed("42", "43", "6 \\cdot 7", "10^{10^{10}}"), "It is 42", "")
    assert [verdict.score for verdict in verdicts] == [1, 0, 0, 0, 0, 0]
    assert [verdict.passed for verdict in verdicts] == [True] + [False] * 5
    assert [verdict.reason for verdict in verdicts] == [
        "",
        "wrong answer: 43",
        "not worked out: 6 \\cdot 7",
        "wrong answer: 10^{10^{10}}",
        "no answer found",
        "no answer found",
    ]
    assert all(verdict.seconds > 0 for verdict in verdicts)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("She sells 16 - 3 = 13 eggs.\n#### 1,234", "1234"),
        ("... so the value is $\\boxed{\\frac{1}{2}}$.", "0.5"),
        (42, "42"),
        (0.5, "\\frac12"),
        (-3, "-3"),
        ("\\text{(C)}", "C"),
        ("$\\sqrt{8}$", "2\\sqrt{2}"),
        ("#### 5", "5"),
    ],
)
def test_references(answer: Any, right: str) -> None:
    good, bad = judged(MathJudge(is_symbolic=False), answer, *boxed(right, "17"))
    assert good.passed and bad.passed is False


def test_the_last_number_on_request() -> None:
    assert [verdict.score for verdict in judged(MathJudge(use_last_number=True), 42, "It is 42.", "42, no 41")] == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("format", "right", "reason"),
    [
        ("any", [True, True, True, True], ""),
        ("boxed", [True, False, False, False], "wrong format: the answer is given as final_answer, not boxed"),
        ("final_answer", [False, True, False, False], "wrong format: the answer is given as boxed, not final_answer"),
    ],
)
def test_a_right_answer_in_the_wrong_format_is_a_violation(format: Any, right: list[bool], reason: str) -> None:
    texts = ["\\boxed{42}", "The final answer is 42.", "#### 42", "Answer: 42"]
    verdicts = judged(MathJudge(format=format), "42", *texts)
    assert [verdict.passed for verdict in verdicts] == right
    assert reason in [verdict.reason for verdict in verdicts]


def test_the_brackets_of_the_papers_sentence_may_be_copied() -> None:
    texts = ["[42].", "$[42]$.", "[41].", "[42] or [43].", "[42, 43]."]
    verdicts = judged(MathJudge(format="final_answer"), "42", *(f"The final answer is {text}" for text in texts))
    assert [verdict.passed for verdict in verdicts] == [True, True, False, False, False]


def test_a_box_before_the_final_sentence_does_not_hide_it() -> None:
    judge = MathJudge(format="final_answer")
    first, second = judged(
        judge, "42", "First \\boxed{7}. The final answer is 42.", "\\boxed{42} The final answer is 7."
    )
    assert first.passed and second.passed is False


# algebra


@needs_algebra
@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("x^2+2x", "x(x+2)", "x(x+3)"),
        ("\\frac{1}{1+\\sqrt2}", "\\sqrt2-1", "\\sqrt2+1"),
        ("y = 2x+3", "3+2x", "2x+4"),
        ("x \\leq 5", "5 \\geq x", "x < 5"),
        ("ab", "ba", "ac"),
        ("3\\sin x", "3 \\sin(x)", "\\sin 3x"),
        (
            "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
            "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
            "\\begin{pmatrix}1\\\\3\\end{pmatrix}",
        ),
        ("x^2+y^2=1", "y^2+x^2=1", "x^2+y^2=2"),
        ("y = 2x-7", "2x - y = 7", "2x - y = -7"),
        ("\\frac{x}{2}+\\frac{y}{3}=1", "3x+2y=6", "2x+3y=6"),
        ("y = 2x", "y = x+x", "z = 2x"),
        ("\\rho^2+\\sigma\\tau", "\\tau\\sigma+\\rho^2", "\\rho+\\sigma\\tau"),
        ("\\tan 20^\\circ", "\\tan(20^\\circ)", "\\tan 20"),
    ],
)
def test_algebra(judge: MathJudge, reference: str, right: str, wrong: str) -> None:
    good, bad = judged(judge, reference, *boxed(right, wrong))
    assert good.passed and good.score == 1.0, good
    assert bad.passed is False and bad.reason == f"wrong answer: {wrong}", bad


@needs_algebra
@pytest.mark.parametrize("reference", ["42", "2x+3", "\\sqrt{2}", "(1, 2)", "x = 5"])
def test_hedges_and_tricks_never_pass(judge: MathJudge, reference: str) -> None:
    forms = (
        *("{} or 17", "17, {}", "\\{{{}, 17\\}}", "17 = {}", "{} = {}", "{} \\cup 17", "[{}, 17]", "{} 17", "{} | 17"),
        *("\\text{{{} or 17}}", "17 \\neq {}", "{} \\leq {}", "1 = {} = 17", "{}\\ldots", "{}_2", "{} : 17", "{}; 17"),
        *("{} \\text{{ is right}}", "\\pm {}", "17 \\mid {}", "{} \\equiv 17", "\\boxed{{17}} {}", "{} \\pmod{{17}}"),
        *("{} \\to 17", ":", "", "."),
    )
    tricks = [form.format(reference, reference) for form in forms]
    for trick, verdict in zip(tricks, judged(judge, reference, *boxed(*tricks)), strict=True):
        assert verdict.score == 0.0 and verdict.passed is False, (trick, verdict)


@needs_algebra
def test_a_comparison_that_hangs_is_killed_and_failed() -> None:
    judge = MathJudge(timeout_seconds=3.0, num_workers=1)
    hang, fine = judged(judge, "x^2", *boxed("(x+1)^{99}(y+2)^{99}(z+3)^{99}(x+z)^{99}", "x \\cdot x"))
    assert hang.status is Status.FAILED and hang.reason == "timed out after 3 s"
    assert fine.passed
    judge.close()


@pytest.mark.parametrize(
    "text",
    [
        *("10^{10^{10}}", "10^10^10", "9**9**9", "2^{1000}", "2^{-1234}", "x^{(x^{9})}", "99999!", "(5!)!", "5!!"),
        *("\\binom{9999}{555}", "(" * 11 + "1" + ")" * 11, "x" * 301, "\\text{or}", "the answer", "1" * 21, "x_1"),
        *("1:2", "é", "\ud800", "x^{", "x^{3!}"),
    ],
)
def test_what_is_too_large_or_no_mathematics_is_not_calculated(text: str) -> None:
    assert not is_bounded(text)


@pytest.mark.parametrize(
    "text", ["x^2+y^2", "e^{\\frac{x}{2}}", "\\log_2 8", "5!", "x^{99}", "\\binom{5}{2}", "2^{x+1}"]
)
def test_what_is_calculated(text: str) -> None:
    assert is_bounded(clean(text))


def test_equations_are_compared_with_equations() -> None:
    assert algebra_pair("y=2x", "2x") == ("2x", "2x")
    assert algebra_pair("2x", "5=2x") is None
    assert algebra_pair("x^2=y", "y=x^2") == ("x^2=y", "y=x^2")  # the name is taken off both or none
    assert algebra_pair("y=2x", "z=2x") == ("y=2x", "z=2x")


def test_without_algebra_what_reading_cannot_decide_is_wrong() -> None:
    (verdict,) = judged(MathJudge(is_symbolic=False), "x^2+2x", *boxed("x(x+2)"))
    assert verdict.score == 0.0 and verdict.reason == "wrong answer: x(x+2)"


# invariance


def test_the_judge_travels_and_costs_nothing_to_build(judge: MathJudge) -> None:
    copy = pickle.loads(pickle.dumps(judge))
    assert judged(copy, 42, "\\boxed{42}")[0].passed
    code = (
        "import sys, pickle; from llamarl.judges.math import math_judge; pickle.dumps(math_judge); "
        "print([m for m in ('torch', 'sympy', 'math_verify') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert load_judge("llamarl.judges.math:math_judge") is math_judge


def test_canaries_pass(judge: MathJudge) -> None:
    cases = [(Prompt("p", (), answer="... #### 42"), "#### 42"), (Prompt("q", (), answer="x+1"), "\\boxed{x+1}")]
    asyncio.run(check_canaries(judge, cases))


# rejects


def test_rows_without_an_answer_abstain_and_wrong_ones_fail() -> None:
    (verdict,) = judged(MathJudge(), None, "\\boxed{1}")
    assert verdict.status is Status.ABSTAINED and verdict.reason == "the row has no answer"
    for answer, reason in (
        ("", "says nothing"),
        ("$$", "says nothing"),
        ([1], "type list"),
        (True, "type bool"),
        (float("nan"), "type float"),
    ):
        (verdict,) = judged(MathJudge(), answer, "\\boxed{1}")
        assert verdict.status is Status.FAILED and reason in verdict.reason


def test_rows_are_checked_before_a_run() -> None:
    MathJudge().check(Prompt("p", (), answer="#### 5"))
    with pytest.raises(ConfigError, match="prompt 'p': answer is missing; judge 'math' compares with it"):
        MathJudge().check(Prompt("p", ()))
    with pytest.raises(ConfigError, match=r"prompt 'p': answer=.* is of type list; give a number or text"):
        MathJudge().check(Prompt("p", (), answer=[1]))


@pytest.mark.parametrize(
    ("format", "answer"),
    [("any", "\\frac{1}{2"), ("boxed", "1" * 1200), ("final_answer", "one. Then two"), ("any", "x}{y")],
)
def test_an_answer_that_no_completion_can_give_is_refused(format: Any, answer: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt 'p': answer=.* can never be given: .* is judged"):
        MathJudge(format=format).check(Prompt("p", (), answer=answer))


def test_an_answer_beyond_reading_is_named(caplog: pytest.LogCaptureFixture) -> None:
    judge = MathJudge(is_symbolic=False)
    for answer in (
        42,
        "\\frac12",
        "(1, 2]",
        "x < 3",
        "Tuesday",
        "\\textbf{(C)}\\ 12",
        "1011_2",
        "\\emptyset",
        "3:45 PM",
    ):
        judge.check(Prompt("p", (), answer=answer))
    assert not caplog.messages
    judge.check(Prompt("q", (), answer="x^2+2x"))
    assert caplog.messages == [
        "prompt 'q': answer='x^2+2x' is beyond reading and algebra, so only the same spelling equals it"
    ]


@needs_algebra
def test_algebra_reaches_what_reading_does_not(caplog: pytest.LogCaptureFixture) -> None:
    MathJudge().check(Prompt("p", (), answer="x^2+2x"))
    assert not caplog.messages
    MathJudge().check(Prompt("q", (), answer="10^{10^{10}}"))
    assert "prompt 'q'" in caplog.text


def test_rejects_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="format='latex'; choose one of any, boxed, final_answer"):
        MathJudge(format="latex")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_workers=0"):
        MathJudge(num_workers=0)


@pytest.mark.parametrize(
    "text",
    [
        *("\\boxed{" * 100_000, "(" * 1_000_000, "\\boxed{" + "(" * 900 + "}", "The final answer is " * 50_000),
        *("\ud800" * 1000, "\\boxed{\ud800}", "\\boxed{\0}", "#### " + "9" * 900, "\\boxed{" + "\\frac" * 100 + "}"),
        "Answer: " + "½" * 300,
    ],
)
def test_hostile_texts_score_zero(text: str) -> None:
    (verdict,) = judged(MathJudge(), "42", text)
    assert verdict.score == 0.0 and verdict.passed is False
