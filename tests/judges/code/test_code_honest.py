"""Right solutions of many kinds pass, and wrong ones fail (`honest_checks.txt`, `honest_lists.txt`)."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sandbox import need_sandbox

from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge


class Problem(NamedTuple):
    tests: list[str]
    right: str
    wrong: str


def read_problem(body: str, has_check: bool) -> Problem:
    """One section of a file."""
    lines = body.rstrip().splitlines()
    right = "\n".join(line for line in lines if line[:2] not in ("> ", ": ", "! "))
    (old, new) = next(line[2:] for line in lines if line.startswith("! ")).split(" =>", 1)
    assert old in right
    tests, statements = [], []
    for mark, text in ((line[0], line[2:]) for line in lines if line[:2] in ("> ", ": ")):
        statements.append("assert " + text if mark == ">" else text)
        if mark == ">" and not has_check:
            tests.append("\n".join(statements))
            statements = []
    if has_check:
        match = re.search(r"^def (\w+)", right, re.MULTILINE)
        assert match is not None
        body = "".join(f"    {statement}\n" for statement in statements)
        return Problem([f"def check(c):\n{body}\ncheck({match[1]})"], right, right.replace(old, new[1:]))
    return Problem([*tests, *["\n".join(statements)] * bool(statements)], right, right.replace(old, new[1:]))


def read_problems(name: str) -> dict[str, Problem]:
    """Title -> problem."""
    _, *sections = re.split(r"^=== ", Path(__file__).with_name(name).read_text(), flags=re.MULTILINE)
    return {
        title: read_problem(body, "checks" in name)
        for title, _, body in (section.partition("\n") for section in sections)
    }


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    need_sandbox()
    judge = CodeJudge(test_seconds=20.0, total_seconds=20.0, num_slots=4)
    yield judge
    judge.close()


@pytest.mark.parametrize(("name", "count"), [("honest_checks.txt", 164), ("honest_lists.txt", 50)])
def test_right_solutions_pass_and_wrong_ones_fail(judge: CodeJudge, name: str, count: int) -> None:
    problems = read_problems(name)
    assert len(problems) >= count

    async def judged(problem: Problem) -> list[Verdict]:
        prompt = Prompt("p", (), info={"unit_tests": problem.tests})
        codes = (problem.right, problem.wrong)
        return await judge.judge(prompt, [text_completion(f"```python\n{code}\n```") for code in codes])

    async def all_judged() -> list[list[Verdict]]:
        return await asyncio.gather(*map(judged, problems.values()))

    verdicts = dict(zip(problems, asyncio.run(all_judged()), strict=True))
    assert {title: right.reason for title, (right, _) in verdicts.items() if not right.passed} == {}
    assert [title for title, (_, wrong) in verdicts.items() if wrong.passed or wrong.status is not Status.SCORED] == []
