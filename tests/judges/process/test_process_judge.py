import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import FunctionJudge, JudgeInfo, JudgePanel, ProcessJudge, Seat, text_completion

PROMPT = Prompt("p", ({"role": "user", "content": "x"},), answer="4")
LIMIT = 1.0

REWARDS = """
import os, re, signal, subprocess, sys, time

def nasty(prompt, completion):
    match completion.text:
        case "loop":
            with open(__file__ + ".loops", "a") as file:
                file.write("x")
            while True:
                pass
        case "regex":  # holds the interpreter's lock inside C code
            return float(bool(re.match("(a+)+$", "a" * 60 + "b")))
        case "stubborn":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            while True:
                try:
                    time.sleep(10)
                except BaseException:
                    pass
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(3)
        case "segfault":
            import ctypes
            ctypes.string_at(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "recursion":
            def down(n):
                return down(n + 1) + 1
            return down(0)
        case "memory":
            return len(bytearray(8 << 30))
        case "power":
            return float(9 ** 9 ** 9)
        case "quit":
            sys.exit(2)
        case "descriptors":
            os.closerange(3, 65536)  # all: the channel may have a high number, where pytest holds many files
        case "alarm":  # works on the main thread only
            def ring(*_):
                raise TimeoutError("rang")
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            time.sleep(10)
        case "late alarm":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        case "nap":
            time.sleep(0.4)
        case "print":
            print("noise on standard output")
        case "child":
            subprocess.Popen(["sleep", "60"]).pid
            while True:
                pass
        case "pid":
            return os.getpid()
    return 1.0

def trl(completions, answer, log_metric, **kwargs):
    log_metric("seen", len(completions))
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer)]

async def later(prompt, completion):
    return None
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return str(path)


@pytest.fixture(scope="module")
def nasty(rewards: str) -> Iterator[ProcessJudge]:
    judge = ProcessJudge(f"{rewards}:nasty", num_workers=1, timeout_seconds=LIMIT)
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def patient(rewards: str) -> Iterator[ProcessJudge]:
    """For what ends by itself, however slow this machine is."""
    judge = ProcessJudge(f"{rewards}:nasty", num_workers=1, timeout_seconds=600.0)
    yield judge
    judge.close()


def judged(judge: ProcessJudge, *texts: str) -> list[Verdict]:
    return asyncio.run(judge.judge(PROMPT, [text_completion(text) for text in texts]))


def pid_of(judge: ProcessJudge) -> int:
    while (verdict := judged(judge, "pid")[0]).score is None:  # the machine was too busy for the judge's deadline
        assert verdict.reason.startswith("timed out")
    return int(verdict.score)


def wait_until_gone(pid: int, seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("text", ["loop", "regex", "stubborn", "stopped", "power"])
def test_code_that_never_ends_is_killed_at_the_deadline_and_the_pool_restored(nasty: ProcessJudge, text: str) -> None:
    before = pid_of(nasty)
    started = time.monotonic()
    (verdict,) = judged(nasty, text)
    assert verdict == Verdict.failed(f"timed out after {LIMIT:g} s")
    assert time.monotonic() - started >= LIMIT - 0.05
    assert wait_until_gone(before)
    assert pid_of(nasty) != before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit", "the worker exited with status 3"),
        ("segfault", "the worker was ended by SIGSEGV"),
        ("killed", "the worker was ended by SIGKILL"),
        ("descriptors", "the worker "),
    ],
)
def test_a_crash_fails_its_own_call_only(patient: ProcessJudge, text: str, reason: str) -> None:
    good, bad, also_good = judged(patient, "fine", text, "fine")
    assert bad.status is Status.FAILED and bad.reason.startswith(reason)
    assert good.score == also_good.score == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("quit", "SystemExit: 2"),
        ("alarm", "TimeoutError: rang"),
        ("recursion", "RecursionError"),
        ("memory", "MemoryError"),
    ],
)
def test_what_the_code_raises_is_a_failed_verdict_of_a_living_worker(
    patient: ProcessJudge, text: str, reason: str
) -> None:
    before = pid_of(patient)
    (verdict,) = judged(patient, text)
    assert verdict.status is Status.FAILED and verdict.reason.startswith(reason)
    assert pid_of(patient) == before


def test_an_alarm_left_behind_does_not_hit_the_next_call(patient: ProcessJudge) -> None:
    assert [verdict.score for verdict in judged(patient, "late alarm", "nap")] == [1.0, 1.0]


def test_what_the_code_prints_stays_off_standard_output(rewards: str) -> None:
    code = f"""
        import asyncio
        from llamarl.core.records import Prompt
        from llamarl.judges import ProcessJudge, text_completion
        judge = ProcessJudge({rewards!r} + ":nasty", num_workers=1)
        verdicts = asyncio.run(judge.judge(Prompt("p", ()), [text_completion("print")]))
        print(verdicts[0].score)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr
    assert "noise" in done.stderr


def test_grandchildren_are_killed_with_their_worker(nasty: ProcessJudge) -> None:
    worker = pid_of(nasty)
    task = threading.Thread(target=judged, args=(nasty, "child"))
    task.start()
    children = Path(f"/proc/{worker}/task/{worker}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.01)
    task.join()
    assert wait_until_gone(int(found[0]))


def test_workers_judge_at_the_same_time_and_keep_the_order(rewards: str) -> None:
    judge = ProcessJudge(f"{rewards}:trl", num_workers=2, name="exact")
    verdicts = judged(judge, "4", "5", "4", "5", "4")
    assert [verdict.score for verdict in verdicts] == [1, 0, 1, 0, 1]
    assert all(verdict.seconds > 0 for verdict in verdicts)
    assert judge.name == "exact"
    assert judge.metrics() == {"seen": 1.0} and judge.metrics() == {}
    judge.close()


def test_two_event_loops_may_share_one_pool(patient: ProcessJudge) -> None:
    results: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: results.append(judged(patient, "a", "b"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[verdict.score for verdict in verdicts] for verdicts in results] == [[1.0, 1.0]] * 3


def test_a_cancelled_call_leaves_the_queue(nasty: ProcessJudge, rewards: str) -> None:
    def loops() -> int:
        file = Path(f"{rewards}.loops")
        return len(file.read_text()) if file.exists() else 0

    async def main() -> None:
        before = loops()
        call = asyncio.ensure_future(nasty.judge(PROMPT, [text_completion("loop")] * 20))
        while loops() == before:
            await asyncio.sleep(0.01)
        call.cancel()
        await nasty.judge(PROMPT, [text_completion("fine")])
        assert loops() == before + 1  # nineteen were not run

    asyncio.run(main())


def test_async_functions_abstain_from_a_worker(rewards: str) -> None:
    judge = ProcessJudge(f"{rewards}:later", num_workers=1)
    assert judged(judge, "x")[0].status is Status.ABSTAINED
    judge.close()


def test_something_importable_travels_by_reference() -> None:
    judge = ProcessJudge(text_equals_answer, num_workers=1)
    assert [verdict.passed for verdict in judged(judge, "4", "5")] == [True, False]
    judge.close()


def text_equals_answer(prompt, completion):
    return completion.text == prompt.answer


def test_closing_ends_the_workers_and_refuses_calls(rewards: str) -> None:
    judge = ProcessJudge(f"{rewards}:nasty", num_workers=2)
    judge.close()
    judge.close()
    with pytest.raises(JudgeError, match="judge 'nasty' is closed"):
        judged(judge, "x")

    judge = ProcessJudge(f"{rewards}:nasty", num_workers=1)
    pid = pid_of(judge)
    judge.close()
    assert wait_until_gone(pid)


def test_a_forgotten_judge_ends_its_workers(rewards: str) -> None:
    judge = ProcessJudge(f"{rewards}:nasty", num_workers=1)
    pid = pid_of(judge)
    del judge
    assert wait_until_gone(pid)


@pytest.mark.parametrize("text", ["pid", "regex"])
def test_no_worker_outlives_a_killed_parent(rewards: str, text: str) -> None:
    """Idle, or deep inside C code that holds the interpreter's lock."""
    code = f"""
        import asyncio
        from llamarl.core.records import Prompt
        from llamarl.judges import ProcessJudge, text_completion
        async def main():
            judge = ProcessJudge({rewards!r} + ":nasty", num_workers=1, timeout_seconds=60)
            (verdict,) = await judge.judge(Prompt("p", ()), [text_completion("pid")])
            print(int(verdict.score), flush=True)
            await judge.judge(Prompt("p", ()), [text_completion({text!r})])
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_until_gone(pid)


def test_a_judge_that_only_breaks_in_the_worker_raises(tmp_path: Path) -> None:
    path = tmp_path / "picky.py"
    path.write_text(f"import os\nif os.getpid() != {os.getpid()}:\n    raise RuntimeError('not here')\njudge = max\n")
    judge = ProcessJudge(f"{path}:judge", num_workers=1)
    with pytest.raises(JudgeError, match=r"the judge does not load in a worker: .*picky.py.*RuntimeError: not here"):
        judged(judge, "x")
    judge.close()


LEDGER = """
import os
from llamarl.core.errors import ConfigError
from llamarl.core.records import Verdict
from llamarl.judges import Judge, JudgeInfo

class Ledger(Judge):
    name = "ledger"
    info = JudgeInfo(version="7", cost_class="local", can_pass=False, pass_score=0.2, counts=frozenset({"calls"}))

    def __init__(self, folder):
        self.folder, self.is_loaded = folder, False

    def note(self, what):
        with open(f"{self.folder}/{os.getpid()}", "a") as file:
            file.write(what + " ")

    def check(self, prompt):
        if prompt.answer is None:
            raise ConfigError("answer: needed")

    def load(self):
        self.is_loaded = True
        self.note("load")

    async def judge(self, prompt, completions):
        assert self.is_loaded
        self.value = float(completions[0].text)
        return [Verdict.scored(self.value)]

    def metrics(self):
        return {"calls": 1.0, "value": self.value}

    def close(self):
        self.note("close")
"""


def test_a_judge_in_workers_is_asked_for_all_that_it_declares(tmp_path: Path) -> None:
    (tmp_path / "ledger.py").write_text(LEDGER)
    notes = tmp_path / "notes"
    notes.mkdir()
    judge = ProcessJudge(f"{tmp_path}/ledger.py:Ledger", num_workers=2, settings={"folder": str(notes)})
    assert judge.info == JudgeInfo(
        version="7", cost_class="local", can_pass=False, pass_score=0.2, counts=frozenset({"calls"}), has_deadline=True
    )
    judge.check(PROMPT)
    with pytest.raises(ConfigError, match="answer: needed"):
        judge.check(Prompt("q", ()))
    judge.load()
    workers = [path for path in notes.iterdir() if path.name != str(os.getpid())]
    assert [path.read_text() for path in workers] == ["load "] * 2, "every worker is ready before the first call"
    assert [verdict.score for verdict in judged(judge, "1", "2", "6")] == [1.0, 2.0, 6.0]
    assert judge.metrics() == {"calls": 3.0, "value": 3.0}, "counts add up, the others are means"
    judge.close()
    assert all(wait_until_gone(int(path.name)) for path in workers)
    assert [path.read_text() for path in workers] == ["load close "] * 2


def test_a_judge_that_does_not_load_is_known_before_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(LEDGER.replace('self.note("load")', "1 / 0"))
    judge = ProcessJudge(f"{tmp_path}/broken.py:Ledger", num_workers=2, settings={"folder": str(tmp_path)})
    with pytest.raises(JudgeError, match="the judge does not load in a worker: ZeroDivisionError"):
        judge.load()
    judge.close()
    with pytest.raises(JudgeError, match="judge 'ledger' is closed"):
        judge.load()


def test_rejects_what_cannot_run_in_a_worker(rewards: str) -> None:
    with pytest.raises(ConfigError, match="both must be positive"):
        ProcessJudge(f"{rewards}:nasty", num_workers=0)
    with pytest.raises(ConfigError, match="both must be positive"):
        ProcessJudge(f"{rewards}:nasty", timeout_seconds=0.0)
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker .*; name it 'file.py:function'"):
        ProcessJudge(lambda prompt, completion: 1.0)
    with pytest.raises(ConfigError, match="has no 'nosuch'"):
        ProcessJudge(f"{rewards}:nosuch")


def test_functions_of_the_main_program_are_refused_with_the_way_out() -> None:
    code = """
        from llamarl.judges import ProcessJudge
        def mine(prompt, completion):
            return 1.0
        try:
            ProcessJudge(mine)
        except ValueError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert "is defined in the main program, which workers do not run; name it 'file.py:function'" in done.stdout


@pytest.mark.parametrize("body", ["1 / 0", "return None", 'return {"value": "high"}', "raise SystemExit(1)"])
def test_metrics_that_fail_in_a_worker_cost_no_verdict(
    tmp_path: Path, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = LEDGER.replace('return {"calls": 1.0, "value": self.value}', body)
    (tmp_path / "unmeasured.py").write_text(wrong)
    judge = ProcessJudge(f"{tmp_path}/unmeasured.py:Ledger", num_workers=1, settings={"folder": str(tmp_path)})
    panel = JudgePanel([Seat(judge, role="watch"), Seat(FunctionJudge(lambda prompt, completion: True, "fine"))])
    try:
        for _ in range(2):
            samples = asyncio.run(panel.judge_group(PROMPT, [text_completion("2"), text_completion("6")]))
            assert [sample.verdicts["ledger"].score for sample in samples] == [2.0, 6.0]
            assert panel.metrics()["judge/ledger/count"] == 2.0
    finally:
        panel.close()
    (message,) = caplog.messages
    assert message.startswith("judge 'ledger': metrics ")
