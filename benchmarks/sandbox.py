"""What the code judge's sandbox costs, how many runs it gives, and what it leaves behind.

    python -m benchmarks.sandbox [--runs 1000]

One completion with one unit test, of each form there is; the contenders take turns, run by run:

    program, call, script   `CodeJudge.judge`, from the completion's text to the verdict: bubblewrap, another user (as
                            root), resource limits, the test, the end of every process. A script takes two sandboxes
    bare                    the same interpreter with the same flags on the same program: no sandbox, limits or judge

The overhead is a round's own difference from `bare`. `runs/s` is many completions at once through one judge with a
sandbox per processor. Then as many programs try to stay (a daemon in a session of its own, files, shared memory, a
thread), and what is left of them is counted: processes of this one and of the sandboxes' users, its open files and
threads, files, System V objects, mounts and namespaces.
"""

import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, spread, take_turns
from llamarl.core.records import Prompt
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge
from llamarl.judges.code.sandbox import FIRST_UID, MAX_SLOTS, PYTHON_FLAGS, find_python

PROGRAM = "def add(a, b):\n    return a + b\n\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))\n"
TESTS: dict[str, Any] = {
    "program": {"inputs": ["1 2\n"], "outputs": ["3\n"]},
    "call": ["assert add(1, 2) == 3"],
    "script": ["total = 3\nassert add(1, 2) == total"],
}
LITTER = "llamarl-left-behind"
LITTERER = f"""
import os, socket, threading, time
for place in ('/tmp', '/dev/shm', '/var/tmp', '.'):
    try:
        open(place + '/{LITTER}', 'w').write('x')
    except OSError:
        pass
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        socket.socket(socket.AF_UNIX).bind('/tmp/{LITTER}-socket')
        time.sleep(60)
    os._exit(0)
print(3)
"""
RUNS_AT_ONCE = 200
"""Completions of one group for `runs/s`."""


def judged(judge: CodeJudge, program: str, form: str, count: int = 1) -> float:
    """Seconds until `count` completions are judged; every one must pass."""
    prompt = Prompt("p", (), info={"unit_tests": TESTS[form]})
    completions = [text_completion(f"```python\n{program}```")] * count
    started = time.perf_counter()
    verdicts = asyncio.run(judge.judge(prompt, completions))
    seconds = time.perf_counter() - started
    assert all(verdict.passed for verdict in verdicts), verdicts
    return seconds


def bare(python: str) -> float:
    """Seconds of the program without a sandbox."""
    started = time.perf_counter()
    command = [python, *PYTHON_FLAGS, "-c", PROGRAM]
    result = subprocess.run(command, input=b"1 2\n", stdout=subprocess.PIPE, env={}, check=True)
    seconds = time.perf_counter() - started
    assert result.stdout == b"3\n"
    return seconds


def world() -> dict[str, set[str]]:
    """What a run could leave behind, by kind."""
    kinds: dict[str, set[str]] = {
        "processes": _processes(),
        "open files": set(os.listdir("/proc/self/fd")),
        "threads": set(os.listdir("/proc/self/task")),
        "files": {path for place in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd()) for path in _litter(place)},
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "namespaces": {str(os.readlink(path)) for path in Path("/proc").glob("[0-9]*/ns/*") if _is_readable(path)},
        "System V objects": set(),
    }
    for kind in ("shm", "msg", "sem"):
        with suppress(OSError):
            kinds["System V objects"] |= set(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:])
    return kinds


def _processes() -> set[str]:
    """Ours and those of the sandboxes' users, zombies too."""
    ours, users = str(os.getpid()), range(FIRST_UID, FIRST_UID + 2 * MAX_SLOTS)
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == ours or path.stat().st_uid in users:
                found.add(path.name)
    return found


def _litter(place: str) -> list[str]:
    names = os.listdir(place) if os.path.isdir(place) else []
    return [f"{place}/{name}" for name in names if name.startswith(LITTER)]


def _is_readable(path: Path) -> bool:
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def left_behind(work: Callable[[], object]) -> dict[str, int]:
    """What there is more of after `work` than before, by kind."""
    before = world()
    work()
    time.sleep(1.0)  # the kernel tears namespaces down by itself
    after = world()
    return {kind: len(after[kind] - before[kind]) for kind in before}


def main() -> None:
    benchmark = Benchmark("sandbox", __doc__, repeats=200, quick_repeats=10)
    benchmark.parser.add_argument("--runs", type=int, help="programs that try to stay (default 1000; quick: 40)")
    options = benchmark.start()
    num_litterers = options.runs or (40 if options.quick else 1000)
    python = find_python(None, False).path
    judge = CodeJudge()
    contenders = {"bare": partial(bare, python)} | {form: partial(judged, judge, PROGRAM, form) for form in TESTS}
    seconds = take_turns(contenders, options.repeats, warm_up=3)
    benchmark.note("one at a time")
    at_once = 20 if options.quick else RUNS_AT_ONCE
    paces = [at_once / judged(judge, PROGRAM, "program", at_once) for _ in range(1 if options.quick else 5)]
    benchmark.note(f"{at_once} at once")
    left = left_behind(partial(judged, judge, LITTERER, "program", num_litterers))
    judge.close()
    rows = [
        {
            "run": name,
            "ms": spread([1e3 * value for value in values]),
            "over bare, ms": spread([1e3 * (a - b) for a, b in zip(values, seconds["bare"], strict=True)]),
        }
        for name, values in seconds.items()
    ]
    over = {row["run"]: row["over bare, ms"]["median"] for row in rows if row["run"] != "bare"}
    headlines = {f"{form} over bare, p50 ms": value for form, value in over.items()}
    headlines |= {"runs/s": round(statistics.median(paces), 2), "left behind": float(sum(left.values()))}
    benchmark.finish(
        rows,
        headlines,
        [
            f"{python}; {os.cpu_count()} processors; runs/s in groups of {at_once}: {spread(paces)}",
            f"left by {num_litterers} programs that try to stay: {left}",
        ],
    )


if __name__ == "__main__":
    main()
