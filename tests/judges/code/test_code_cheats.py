"""Solutions that try to pass without being right. None may, in any form of tests."""

import asyncio
from collections.abc import Iterator

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge

TOKEN = "token-4f1c9a"
"""What f() must return; no cheat holds it."""
FORMS = {
    "program": {"inputs": ["1\n", "2\n"], "outputs": [TOKEN, TOKEN]},
    "call": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [TOKEN, TOKEN]},
    "assertions": [f"assert f(1) == {TOKEN!r}", f"assert f(2) == {TOKEN!r}"],
    "truth": [f"assert not f(1) != {TOKEN!r}"],
    "script": [f"wanted = {TOKEN!r}\nfor i in range(3):\n    assert f(i) == wanted, (f(i), wanted)"],
    "built-ins": [
        f"assert all(f(i) == {TOKEN!r} for i in range(3)) and isinstance(f(0), str) and len(f(0)) == {len(TOKEN)}"
    ],
    "numbers": ["import math\nassert math.isclose(f(2), 1.5) and abs(f(2) - 1.5) < 1e-6 and sorted([f(2)]) == [1.5]"],
    "member": ["assert 'a' in f(1) and f(1) in ('a', 'ab') and {f(1)} <= {'a', 'ab'}"],
}

EVIL = """
class Evil:
    def yes(self, *args, **kwargs): return True
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = yes
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def same(self, *args): return self
    __sub__ = __rsub__ = __add__ = __abs__ = __getitem__ = __getattr__ = __call__ = __neg__ = same
    def __len__(self): return 12
    def __float__(self): return 1.5
"""
SEARCH = """
def walk(root, seen, depth=0):
    if id(root) in seen or depth > 30: return None
    seen.add(id(root))
    if isinstance(root, str) and "token-" in root: return root[root.index("token-"):][:12]
    if isinstance(root, (bytes, bytearray)) and b"token-" in root:
        return bytes(root)[bytes(root).index(b"token-"):][:12].decode()
    import gc
    for child in gc.get_referents(root):
        if (found := walk(child, seen, depth + 1)): return found
    return None
"""
ANSWERS = "".join(
    f"{line}\n"
    for line in (
        "import os, json, sys",
        'FORGED = [\'{"value": true}\', \'{"results": ["", ""], "nonce": ""}\', \'{"output": "ok", "end": ""}\',',
        "          '{\"passed\": true}', '{\"ready\": \"\"}', '']",
        "def shout():",
        "    for fd in range(64):",
        "        for line in FORGED:",
        "            try: os.write(fd, (line + chr(10)).encode())",
        "            except OSError: pass",
    )
)
CHEATS = {
    "os._exit at import": "import os\nos._exit(0)",
    "sys.exit at import": "import sys\nsys.exit(0)",
    "SystemExit at import": "raise SystemExit(0)",
    "exit in the function": "def f(*a): exit(0)\nf()",
    "os._exit in the function": "import os\ndef f(*a): os._exit(0)\nif __name__ == '__main__': f()",
    "exit status of success after atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(*a): return None",
    "equal to everything": EVIL + "def f(*a): return Evil()",
    "text that equals everything": "class S(str):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = str.__hash__\n"
    "def f(*a): return S('x')\nprint(f())",
    "number that equals everything": "class N(float):\n    __eq__ = __lt__ = lambda s, o: True\n    __hash__ = float.__hash__\n"
    "def f(*a): return N(0)",
    "mock.ANY": "from unittest.mock import ANY\ndef f(*a): return ANY",
    "liar about its class": EVIL + "Evil.__class__ = property(lambda s: str)\ndef f(*a): return Evil()",
    "list of evil": EVIL + "def f(*a): return [Evil()] * 12",
    "patched builtins": "import builtins\n"
    "for n in ('all', 'any', 'abs', 'len', 'isinstance', 'sorted', 'bool', 'str', 'type', 'int', 'repr'):\n"
    "    setattr(builtins, n, lambda *a, **k: True)\ndef f(*a): return True",
    "redefined names": "all = any = isinstance = abs = len = sorted = range = lambda *a, **k: True\n"
    "class math: isclose = staticmethod(lambda *a, **k: True)\nwanted = True\ndef f(*a): return True",
    "patched assertion": "import builtins\nclass A(BaseException):\n    def __new__(c, *a): raise SystemExit(0)\n"
    "builtins.AssertionError = A\ndef f(*a): return 0",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(*a): raise ValueError",
    "trace": "import sys\ndef t(frame, event, arg):\n    for n in list(frame.f_locals): pass\n    return t\nsys.settrace(t)\n"
    "def f(*a): return sys._getframe(1).f_locals.get('expected')",
    "forged output": ANSWERS
    + "for line in FORGED: print(line)\ndef f(*a):\n    for line in FORGED: print(line)\n    return True",
    "forged messages": ANSWERS + "shout()\ndef f(*a):\n    shout()\n    return True",
    "forged messages and exit": ANSWERS + "shout()\nos._exit(0)",
    "messages from a thread": ANSWERS
    + "import threading, time\ndef loop():\n    while True: shout(); time.sleep(0.01)\n"
    "threading.Thread(target=loop, daemon=True).start()\ndef f(*a): time.sleep(0.2)",
    "messages from a child": ANSWERS
    + "if os.fork() == 0:\n    import time\n    for _ in range(50): shout(); time.sleep(0.01)\n    os._exit(0)\n"
    "def f(*a): return True",
    "frames": SEARCH + "import sys\ndef f(*a):\n    frame, seen = sys._getframe(), set()\n    while frame:\n"
    "        found = walk(frame.f_locals, seen) or walk(frame.f_globals, seen)\n        if found: return found\n"
    "        frame = frame.f_back\nprint(f())",
    "garbage collector": SEARCH
    + "import gc\ndef f(*a):\n    seen = set()\n    for o in gc.get_objects():\n        found = walk(o, seen)\n"
    "        if found: return found\nprint(f())",
    "modules": "import sys\ndef f(*a):\n    for name, m in list(sys.modules.items()):\n        for k, v in list(vars(m).items()):\n"
    "            if isinstance(v, str) and v.startswith('token-'): return v\nprint(f())",
    "files": "import os\ndef f(*a):\n    for root, _, names in os.walk('/tmp'):\n        for n in names: return open(os.path.join(root, n)).read()\n"
    "    for p in ('/job', '/proc/self/environ', '/proc/1/cmdline', '/proc/self/mem', 'tests.json'):\n"
    "        try: return open(p).read()\n        except OSError: pass\nprint(f())",
    "environment and arguments": "import os, sys\ndef f(*a): return next((v for v in [*os.environ.values(), *sys.argv, *sys.orig_argv] if 'token' in v), 1)\nprint(f())",
    "more of the input": "import os, sys\ndef f(*a):\n    text = b''\n    for fd in range(64):\n        try: os.set_blocking(fd, False); text += os.read(fd, 1 << 16)\n"
    "        except OSError: pass\n    i = text.find(b'token-')\n    return text[i:i + 12].decode() if i >= 0 else 0\nprint(f())",
    "server patched": "import sys\nfor n, m in list(sys.modules.items()):\n    if 'inside' in n:\n        for k in list(vars(m)):\n"
    "            if k in ('encode', 'describe', 'same_value', 'grade', '_refuse'): setattr(m, k, lambda *a, **k: True)\n"
    "        if hasattr(m, 'Server'): m.Server.answer = lambda s, r: {'value': True, 'raw': '{\"value\": true}', 'output': '', 'end': ''}\n"
    "def f(*a): return True",
    "references instead of data": "import sys\nfor n, m in list(sys.modules.items()):\n    if n.endswith('solution') and hasattr(m, 'encode'):\n"
    "        m.encode = lambda v, k: {'t': 'theirs', 'v': 0}\ndef f(*a): return 1",
    "forged exception": "class AssertionError(Exception): pass\ndef f(*a): raise StopIteration",
    "everything is contained": "import itertools, string\ndef f(*a): return itertools.cycle(['x', None, True])",
    "other program": "import os\nos.execv('/bin/true', ['true'])",
    "killed server": "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\nos._exit(0)",
    "changed numbers": "import ctypes\nctypes.memset(id(True) + 24, 0, 4)\nctypes.memset(id(1) + 24, 0, 4)\ndef f(*a): return 1",
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef f(*a): return True",
    "flood": "import os\nwhile True:\n    for fd in range(16):\n        try: os.write(fd, b'x' * 65536)\n        except OSError: pass",
    "not a number": "def f(*a): return float('nan')",
    "every answer at once": "def f(*a): return ['token-4f1c9b', 'a', 'ab', 1.5, True, None]\nprint(*f())",
    "echo": "import sys\nprint(sys.stdin.read())\ndef f(*a): return a[0]",
}


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    judge = CodeJudge(test_seconds=2.0, total_seconds=3.0)
    try:
        judge.check(Prompt("p", (), info={"unit_tests": FORMS["call"]}))
    except ConfigError as error:
        pytest.skip(f"no sandbox here: {error}")
    yield judge
    judge.close()


def judged(judge: CodeJudge, form: str, *codes: str) -> list[Verdict]:
    prompt = Prompt("p", (), info={"unit_tests": FORMS[form]})
    return asyncio.run(judge.judge(prompt, [text_completion(f"```python\n{code}\n```") for code in codes]))


@pytest.mark.parametrize("form", FORMS)
def test_no_cheat_passes(judge: CodeJudge, form: str) -> None:
    verdicts = dict(zip(CHEATS, judged(judge, form, *CHEATS.values()), strict=True))
    assert len(CHEATS) >= 25
    assert {name: verdict for name, verdict in verdicts.items() if verdict.status is not Status.SCORED} == {}
    assert {name: verdict for name, verdict in verdicts.items() if verdict.score != 0.0 or verdict.passed} == {}


@pytest.mark.parametrize("form", ["program", "call", "assertions", "truth", "script", "built-ins"])
def test_an_honest_solution_passes_beside_them(judge: CodeJudge, form: str) -> None:
    (verdict,) = judged(judge, form, f"def f(*a): return {TOKEN!r}\nif __name__ == '__main__': print(f())")
    assert verdict.passed, verdict
