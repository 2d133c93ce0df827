"""Solutions that try to pass without being right (`cheats.txt`). None may, in any form of tests."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import need_sandbox

from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge

TOKEN = "token-4f1c9a"
"""What f() must return; no cheat holds it."""
FORMS = {
    "program": {"inputs": ["1\n", "2\n"], "outputs": [TOKEN, TOKEN]},
    "call": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [TOKEN, TOKEN]},
    "assertions": [f"assert f(1) == {TOKEN!r}", f"assert f(2) == {TOKEN!r}"],
    "script": [f"wanted = {TOKEN!r}\nfor i in range(3):\n    assert f(i) == wanted, (f(i), wanted)"],
    "truth": [f"assert not f(1) != {TOKEN!r}"],
    "built-ins": [
        f"assert all(f(i) == {TOKEN!r} for i in range(3)) and isinstance(f(0), str) and len(f(0)) == {len(TOKEN)}"
    ],
    "numbers": ["import math\nassert math.isclose(f(2), 1.5) and abs(f(2) - 1.5) < 1e-6 and sorted([f(2)]) == [1.5]"],
    "member": ["assert 'a' in f(1) and f(1) in ('a', 'ab') and {f(1)} <= {'a', 'ab'}"],
}
HONEST = {"numbers": 1.5, "member": "a"}
DISGUISES = [
    *("equal to everything", "text that equals everything", "number that equals everything", "mock.ANY"),
    *("liar about its class", "list of evil", "redefined names", "patched assertion", "everything is contained"),
    *("patched builtins", "server patched", "references instead of data", "not a number", "every answer at once"),
]
"""What could work where the test is more than a comparison for equality."""


def read_cheats() -> dict[str, str]:
    """Name -> program."""
    _, *sections = re.split(r"^=== ", (Path(__file__).with_name("cheats.txt")).read_text(), flags=re.MULTILINE)
    cheats: dict[str, str] = {}
    for section in sections:
        title, _, code = section.partition("\n")
        name, _, included = title.partition(" + ")
        cheats[name] = (cheats[included].rstrip() + "\n" if included else "") + code
    return {name: code for name, code in cheats.items() if not name.isupper()}


CHEATS = read_cheats()


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    need_sandbox()
    judge = CodeJudge(test_seconds=2.0, total_seconds=2.0, num_slots=4)
    yield judge
    judge.close()


def judged(judge: CodeJudge, tests: object, *codes: str) -> list[Verdict]:
    prompt = Prompt("p", (), info={"unit_tests": tests})
    return asyncio.run(judge.judge(prompt, [text_completion(f"```python\n{code}\n```") for code in codes]))


@pytest.mark.parametrize("form", FORMS)
def test_no_cheat_passes(judge: CodeJudge, form: str) -> None:
    names = list(CHEATS) if form in ("program", "call", "assertions", "script") else DISGUISES
    verdicts = dict(zip(names, judged(judge, FORMS[form], *map(CHEATS.__getitem__, names)), strict=True))
    assert {name: verdict for name, verdict in verdicts.items() if verdict.status is not Status.SCORED} == {}
    assert {name: verdict for name, verdict in verdicts.items() if verdict.score != 0.0 or verdict.passed} == {}
    assert len(CHEATS) >= 40


@pytest.mark.parametrize("form", FORMS)
def test_an_honest_solution_passes_beside_them(judge: CodeJudge, form: str) -> None:
    result = HONEST.get(form, TOKEN)
    (verdict,) = judged(judge, FORMS[form], f"def f(*a): return {result!r}\nif __name__ == '__main__': print(f())")
    assert verdict.passed, verdict


def test_the_searching_cheats_would_find_what_is_there(judge: CodeJudge) -> None:
    tests = {"fn_name": "f", "inputs": [[]], "outputs": ["token-000000"]}
    (verdict,) = judged(judge, tests, CHEATS["planted"])
    assert verdict.passed, verdict
