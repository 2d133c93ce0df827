"""Right and wrong solutions through the sandbox."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sandbox import need_sandbox

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import load_judge, text_completion
from llamarl.judges.code import CodeJudge, Limits


def judged(judge: CodeJudge, tests: Any, *codes: str) -> list[Verdict]:
    texts = [text_completion(f"```python\n{code}\n```") for code in codes]
    return asyncio.run(judge.judge(Prompt("p", (), info={"unit_tests": tests}), texts))


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    need_sandbox()
    judge = CodeJudge()
    yield judge
    judge.close()


ADD = "def add(a, b): return a + b"


@pytest.mark.parametrize(
    ("tests", "right", "wrong"),
    [
        (["assert add(1, 2) == 3", "assert add(a=[1], b=[2]) == [1, 2]"], ADD, "def add(a, b): return 3"),
        ("assert add(1, 2) == 3", ADD, "def add(a): return a"),
        ({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], 7]}, ADD, "def add(a, b): return a"),
        (
            {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
            "class Solution:\n    def add(self, a, b): return a + b",
            "class Solution:\n    def sub(self, a, b): return a + b",
        ),
        (
            {"inputs": ["1 2\n", "3 4"], "outputs": ["3\n", "7"]},
            "print(sum(map(int, input().split())))",
            "print(input())",
        ),
        (
            {"inputs": ["2\n1\n2\n"], "outputs": ["3\n"]},
            "import sys\ndef main():\n    print(sum(map(int, sys.stdin.read().split()[1:])))\n"
            "if __name__ == '__main__': main()",
            "print(0)",
        ),
        ({"inputs": ["5"], "outputs": ["5"]}, "print(open(0).read())\nexit()", "exit()"),
        (
            {"inputs": ["5"], "outputs": ["5"]},
            "import atexit, io, os, sys\nout = io.StringIO()\n"
            "atexit.register(lambda: os.write(1, out.getvalue().encode()))\nout.write(input())",
            "import os; os.write(1, b'6')",
        ),
        (
            {"inputs": ["5"], "outputs": ["5"]},
            "import threading, time\ndef late():\n    time.sleep(0.05)\n    print(5)\n"
            "threading.Thread(target=late).start()",
            "import threading\nthreading.Thread(target=lambda: 1 / 0).start()",
        ),
        (
            {"inputs": ["x"] * 3, "outputs": ["1"] * 3},  # each test starts anew
            "import os\nprint(int(not os.path.exists('/tmp/state_of_mine')) )",
            "n = 0\nprint(n)",
        ),
    ],
)
def test_forms(judge: CodeJudge, tests: Any, right: str, wrong: str) -> None:
    good, bad = judged(judge, tests, right, wrong)
    assert good.score == 1.0 and good.passed and good.reason == "", good
    assert bad.score == 0.0 and bad.passed is False and bad.reason, bad


LIBRARY = """
from collections import Counter, deque
import math

def square(x): return x ** 2
def sort(items): items.sort()
def grow(table, items): table['a'] = 1; items.add(2)
def apply(function, items): return [function(item) for item in items]
def best(items, key=len): return max(items, key=key)
def count(n): yield from range(n)
def letters(text): return Counter(text)
def fail(x): raise ValueError(f'bad {x}')
def make(n): return lambda x: x + n
def use(stack, item): stack.push(item); return stack
def later(day, delta): return day + delta
def parse(text): import json; return json.loads(text)
class Own(ValueError): pass
def fail_own(x): raise Own(x, 'own')
def look(table, key): return table[key]
def retry(function):
    try: function()
    except OSError as error: return error.args
LIMIT, NAMES = 7, {'a': [1]}
def tag(n): import types; return types.SimpleNamespace(value=n, name='two')
class Held:
    left = 0
    def __enter__(self): return 4
    def __exit__(self, *error): Held.left = 1
    def __hash__(self): return 9
    def __eq__(self, other): return True
class Stack:
    limit = 3
    def __setitem__(self, index, item): self.items[index] = item
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other): return Stack(self.items + other.items)
    def __getitem__(self, index): return self.items[index]
    def __repr__(self): return f'Stack({self.items})'
"""


@pytest.mark.parametrize(
    "script",
    [
        "import math\nfor i in range(5): assert math.isclose(square(i), i * i)",
        "items = [3, 1, 2]\nassert sort(items) is None and items == [1, 2, 3]",
        "t, s = {}, {1}\ngrow(t, s)\nassert t == {'a': 1} and s == {1, 2}",
        "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]",
        "def double(x): return 2 * x\nassert apply(double, (1,)) == [2]",
        "assert best(['a', 'bb']) == 'bb' and best(['a', 'bb'], key=lambda s: -len(s)) == 'a'",
        "assert best([1, -2], key=abs) == -2",
        "assert list(count(3)) == [0, 1, 2] and next(iter(count(1))) == 0",
        "assert letters('aab') == {'a': 2, 'b': 1}",
        "try:\n    fail(1)\n    assert False\nexcept ValueError as error:\n    assert 'bad 1' in str(error)",
        "assert make(2)(3) == 5",
        "s = Stack()\ns.push(1).push(2)\nassert s.pop() == 2 and len(s) == 1 and s[0] == 1 and s.limit == 3",
        "assert Stack([1]) + Stack([2]) == Stack([1, 2]) and Stack([1]) != Stack([2]) and isinstance(Stack(), Stack)",
        "s = Stack()\ns.items = [5]\nassert s.items == [5] and str(s) == 'Stack([5])' and use(s, 6).pop() == 6",
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\ncheck(square)",
        "assert isinstance(square(2), int) and not isinstance(square(2), str) and type(square(1.5)) is float",
        "assert math.floor(square(1.5)) == 2",  # the tests' math is the real one
        "assert square(1.1) - 1.21 < 1e-9 and abs(square(-2)) in {4, 5} and {square(2)} == {4}",
        "from datetime import date, timedelta\nassert later(date(2024, 2, 28), timedelta(2)) == date(2024, 3, 1)",
        "assert LIMIT == 7 and abs(LIMIT - 7.5) < 1 and NAMES['a'] == [1] and Stack.limit == 3",
        "import json\ntry: parse('{')\nexcept json.JSONDecodeError as e: assert 'Expecting' in str(e)\nelse: assert 0",
        "try: fail_own(2)\nexcept ValueError as e: assert e.args == (2, 'own') and type(e).__name__ == 'Own'",
        "try: look({}, 'k')\nexcept KeyError as error: assert str(error) == \"'k'\" and error.args == ('k',)",
        "def flaky(): raise OSError(5, 'x')\nassert retry(flaky) == (5, 'x')",
        "with Held() as held: assert held == 4\nassert Held.left == 1",
        "s = Stack([2, 3])\ns[0] = 5\nassert list(s) == [5, 3] and 3 in s",
        "assert hash(Held()) == 9 and len({Held(), Held()}) == 1",
        "assert [tag(2).value, tag(2).name] == [2, 'two'] and tag(2) == tag(2) and tag.__name__ == 'tag'",
        "g = count(2)\nassert next(g) == 0 and list(g) == [1] and next(g, None) is None",
    ],
)
def test_scripts_reach_the_solution_across_the_border(judge: CodeJudge, script: str) -> None:
    (verdict,) = judged(judge, [script, "x = 1"], LIBRARY)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("assert sum(map(square, [1])) == 2", "raised AssertionError"),
        ("assert Stack([1]) == [1] or Stack([1]) < 5", "raised TypeError"),
        ("assert apply(object(), [1])", "raised TypeError: a object cannot be passed to the solution"),
        ("assert missing(1) == 2", "raised NameError: name 'missing' is not defined"),
        ("square()", "raised TypeError: square() missing 1 required positional argument"),
        ("import nothing_like_this", "raised ModuleNotFoundError"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
    ],
)
def test_scripts_that_fail_say_why(judge: CodeJudge, script: str, reason: str) -> None:
    (verdict,) = judged(judge, ["x = 1", script], LIBRARY)
    assert verdict.score == 0.0 and verdict.reason.startswith(f"test 2 of 2: {reason}"), verdict


def test_assertions_of_one_row_share_the_state_of_the_module(judge: CodeJudge) -> None:
    code = "n = 0\ndef count():\n    global n\n    n += 1\n    return n"
    (verdict,) = judged(judge, ["assert count() == 1", "assert count() == 2"], code)
    assert verdict.passed, verdict
    (verdict,) = judged(judge, {"fn_name": "count", "inputs": [[], []], "outputs": [1, 1]}, code)
    assert verdict.passed, verdict


def test_the_fraction_counts_each_test_for_itself(judge: CodeJudge) -> None:
    partial = CodeJudge(score="fraction", test_seconds=1.0)
    tests = {"inputs": ["1", "2", "3", "4"], "outputs": ["1", "2", "3", "4"]}
    code = "import os\nn = input()\nif n == '2': os._exit(1)\nif n == '3':\n    while True: pass\nprint(n)"
    (verdict,) = judged(partial, tests, code)
    assert (verdict.score, verdict.passed, verdict.reason) == (0.5, False, "test 2 of 4: exited with status 1")
    calls = {"fn_name": "f", "inputs": [[1], [2], [3], [4]], "outputs": [1, 2, 3, 4]}
    (verdict,) = judged(
        partial, calls, "import os\ndef f(n):\n    if n == 2: os._exit(0)\n    while n == 3: pass\n    return n"
    )
    assert (verdict.score, verdict.reason) == (0.5, "test 2 of 4: exited with status 0"), verdict
    (verdict,) = judged(partial, ["assert f(1) == 1", "assert f(2) == 3", "assert f(3) == 3"], "def f(n): return n")
    assert (verdict.score, verdict.reason) == (2 / 3, "test 2 of 3: wrong value")
    (verdict,) = judged(partial, ["x = f(1)\nassert x == 1", "assert x == 2"], "def f(n): return n")
    assert (verdict.score, verdict.reason) == (0.5, "test 2 of 2: raised AssertionError")
    partial.close()


def test_a_value_or_output_that_is_too_large_is_wrong(judge: CodeJudge) -> None:
    small = CodeJudge(limits=Limits(output_bytes=1000))
    many = "def f(): return list(range(1000))"
    for tests in (["assert f() == 1"], {"fn_name": "f", "inputs": [[]], "outputs": [1]}, ["x = f()\nassert x"]):
        (verdict,) = judged(small, tests, many)
        assert verdict.score == 0.0, verdict
    with pytest.raises(ConfigError, match=r"prompt 'p': test 1 wants 2000 bytes of output; .*output_bytes is 1000"):
        small.check(Prompt("p", (), info={"unit_tests": {"inputs": [""], "outputs": ["x" * 2000]}}))
    small.close()


FORGE = """
import sys
for name, module in list(sys.modules.items()):
    if name.endswith("inside.solution"):
        module.encode = lambda *a: {forged}
def f(*a): return 1
"""


@pytest.mark.parametrize(
    "forged",
    [
        *(
            "{'t': 'Fraction', 'v': ['1e9999999999']}",
            "{'t': 'bytearray', 'v': 2000000000}",
            "{'t': 'Decimal', 'v': '1e9999999'}",
        ),
        *("{'t': 'dict', 'v': [[[1 + k * ((1 << 61) - 1), 0] for k in range(3000)]]}", "{'t': ['tuple'], 'v': 1}"),
        *(
            "{'t': 'tuple', 'v': 10 ** 9}",
            "{'t': 'complex', 'v': ['1', '2']}",
            "{'t': 'theirs', 'v': 10 ** 4400}",
            "{'t': 1}",
        ),
        *("10 ** 60000", "'\\ud800'", "float('nan')", "{'t': 'Decimal', 'v': 'sNaN'}", "{'t': 'object', 'v': 10 ** 9}"),
    ],
)
def test_a_forged_answer_is_wrong_and_costs_nobody_else(judge: CodeJudge, forged: str) -> None:
    for tests in (["assert f(1) == 1"], {"fn_name": "f", "inputs": [[1]], "outputs": [1]}, ["r = f(1)\nassert r == 1"]):
        good, bad, other = judged(judge, tests, "def f(n): return 1", FORGE.format(forged=forged), "def f(n): return 1")
        assert good.passed and other.passed, (good, other)
        assert bad.status is Status.SCORED and bad.score == 0.0, bad
        assert bad.reason.isprintable()


@pytest.mark.parametrize(
    "said", ["10 ** 5000", "[10 ** 5000] * 4", "[[], [], [], []]", "'\\ud800' * 9000", "{}", "True"]
)
def test_a_forged_reason_is_wrong_too(judge: CodeJudge, said: str) -> None:
    code = f"""
import sys
for name, module in list(sys.modules.items()):
    if name.endswith("inside.solution"):
        module.describe = lambda error: {said}
        module.in_child = lambda *a: (b"", b"", 1, {said})
def f(*a): raise ValueError
print(input())
"""
    forms = ({"inputs": ["1"], "outputs": ["1"]}, {"inputs": ["1", "1"], "outputs": ["1", "1"]})
    for tests in (["assert f(1) == 1"], ["r = f(1)"], *forms):
        (verdict,) = judged(judge, tests, code)
        assert verdict.status is Status.SCORED and verdict.score in (0.0, 1.0), verdict
        assert verdict.reason.isprintable() and len(verdict.reason) < 2500
    (verdict,) = judged(judge, ["assert f(1) == 1"], code)
    assert verdict.score == 0.0


def test_a_value_whose_comparison_raises_costs_itself_only(judge: CodeJudge) -> None:
    right = "def f(x): return 1"
    signalling = "def f(x):\n    import decimal\n    return decimal.Decimal('sNaN')"
    keyed = "def f(x): return {10 ** 5000: 1}"
    for tests in (["assert f(1) == 1"], ["r = f(1)\nassert r == 1"], {"fn_name": "f", "inputs": [[1]], "outputs": [1]}):
        verdicts = judged(judge, tests, right, signalling, right, keyed)
        assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0], verdicts


def test_a_fault_of_the_judge_costs_one_completion_and_is_no_score(judge: CodeJudge) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    tests = {"fn_name": "f", "inputs": [[deep]], "outputs": [1]}
    (verdict,) = judged(judge, tests, "def f(x): return 1")
    assert verdict.status is Status.FAILED and "deep in each other" in verdict.reason
    with pytest.raises(ConfigError, match=r"prompt 'p': test 1: .* deep in each other"):
        judge.check(Prompt("p", (), info={"unit_tests": tests}))


def test_only_the_truth_of_an_object_counts_where_a_test_asks_no_more(judge: CodeJudge) -> None:
    code = "import re\ndef f(text): return re.fullmatch('a+', text)\ndef g(text): return [f(text)]"
    (verdict,) = judged(judge, ["assert f('aa')", "assert not f('ab')", "assert g('b')"], code)
    assert verdict.passed, verdict
    for wrong in ("assert not f('aa')", "assert f('aa') is True", "assert f('aa') == True", "assert g('aa') == [True]"):
        (verdict,) = judged(judge, [wrong], code)
        assert (verdict.score == 0.0 and "no plain data" in verdict.reason) or "wrong value" in verdict.reason, verdict


def test_completions_without_code_are_wrong_and_counted_apart(judge: CodeJudge) -> None:
    prompt = Prompt("p", (), info={"unit_tests": ["assert f() == 1"]})
    texts = ["I cannot.", "```python\ndef f(): return 1", "", "def f(): return 1"]
    for verdict in asyncio.run(judge.judge(prompt, [text_completion(text) for text in texts])):
        assert (verdict.score, verdict.passed, verdict.reason) == (0.0, False, "no code found")


@pytest.mark.parametrize("code", ["def f(:", "x = '\ud800'", "\0", "import nothing", "#" * 90_000])
def test_programs_that_do_not_load_are_wrong(judge: CodeJudge, code: str) -> None:
    for tests in (["assert f() == 1"], ["x = 1\nassert f() == x"], {"inputs": [""], "outputs": ["1"]}):
        (verdict,) = judged(judge, tests, code)
        assert verdict.score == 0.0 and verdict.status is Status.SCORED, verdict


def test_rows_without_tests_abstain_and_wrong_ones_fail() -> None:
    judge = CodeJudge(num_slots=1)
    (verdict,) = asyncio.run(judge.judge(Prompt("p", ()), [text_completion("x")]))
    assert verdict.status is Status.ABSTAINED and verdict.reason == "the row has no unit tests"
    (verdict,) = judged(judge, {"inputs": [1]}, "x = 1")
    assert verdict.status is Status.FAILED and "two lists of one length" in verdict.reason


def test_rows_are_checked_before_a_run(judge: CodeJudge) -> None:
    judge.check(Prompt("p", (), info={"input_output": json.dumps({"inputs": ["1"], "outputs": ["1"]})}))
    with pytest.raises(ConfigError, match=r"prompt 'p': info.unit_tests is missing; judge 'code' runs them"):
        judge.check(Prompt("p", ()))
    with pytest.raises(ConfigError, match="prompt 'p': there are no unit tests"):
        judge.check(Prompt("p", (), info={"unit_tests": []}))


def test_more_work_than_slots_keeps_its_order(judge: CodeJudge) -> None:
    narrow = CodeJudge(num_slots=2)
    verdicts = judged(narrow, ["assert f() == 1"], *[f"def f(): return {n % 2}" for n in range(10)])
    assert [verdict.score for verdict in verdicts] == [0, 1] * 5
    assert all(verdict.seconds > 0 for verdict in verdicts)
    narrow.close()


def test_the_default_judge_is_found_by_its_place() -> None:
    assert load_judge("llamarl.judges.code:code_judge").name == "code"
