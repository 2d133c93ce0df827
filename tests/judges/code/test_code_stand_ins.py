"""Solutions whose objects stand in for the values that a script wants (`stand_ins.txt`). None may pass."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sandbox import need_sandbox

from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge, Script, parse_tests


class Case(NamedTuple):
    script: str
    honest: str
    cheat: str


_, *SECTIONS = re.split(r"^=== ", Path(__file__).with_name("stand_ins.txt").read_text(), flags=re.MULTILINE)
NAMED = {title: body for title, _, body in (section.partition("\n") for section in SECTIONS)}
ANYWHERE = {name: body for name, body in NAMED.items() if name.isupper()}
CASES = {
    name: Case(*re.split(r"^--- (.*)\n", body, flags=re.MULTILINE))
    for name, body in NAMED.items()
    if name not in ANYWHERE
}


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    need_sandbox()
    judge = CodeJudge(test_seconds=5.0, total_seconds=5.0, num_slots=4)
    yield judge
    judge.close()


def judged(judge: CodeJudge, *pairs: tuple[str, str]) -> list[Verdict]:
    """One verdict per script and program."""

    async def verdict(script: str, code: str) -> Verdict:
        prompt = Prompt("p", (), info={"unit_tests": ["ready = None", script]})  # the first makes a script of it
        (found,) = await judge.judge(prompt, [text_completion(f"```python\n{code}\n```")])
        return found

    async def gather() -> list[Verdict]:
        return await asyncio.gather(*(verdict(*pair) for pair in pairs))

    return asyncio.run(gather())


def honest(body: str) -> str:
    """A program whose `f`, also as a method of Solution, has this body."""
    if body.startswith("class"):
        return body.replace(":", ":\n    __init__ = lambda *a: None\n   ", 1)
    indented = f"def f(*a): {body}\n"
    method = "class Solution:\n    f = staticmethod(f)\n"
    return indented + method + ("f(1)\n" if "global" in body else "")


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) + len(ANYWHERE) == len(SECTIONS)
    assert len(CASES) >= 100 and len({case.cheat for case in CASES.values()}) >= 90


@pytest.mark.parametrize("name", CASES)
def test_a_script_passes_the_honest_solution_and_not_the_stand_in(judge: CodeJudge, name: str) -> None:
    case = CASES[name]
    assert all(isinstance(test, Script) for test in parse_tests(["ready = None", case.script]))
    fair = [] if case.honest == "none" else [honest(case.honest)]
    cheat, *rest = judged(judge, *((case.script, code) for code in (case.cheat, *fair)))
    assert cheat.status is Status.SCORED and not cheat.passed, cheat
    assert all(verdict.passed for verdict in rest), rest


@pytest.mark.slow
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_stand_in_for_anything_passes_no_script(judge: CodeJudge, name: str) -> None:
    verdicts = dict(zip(CASES, judged(judge, *((case.script, ANYWHERE[name]) for case in CASES.values())), strict=True))
    assert {case: verdict for case, verdict in verdicts.items() if verdict.status is not Status.SCORED} == {}
    assert [case for case, verdict in verdicts.items() if verdict.passed] == []
