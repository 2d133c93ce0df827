"""What code in the sandbox cannot do, and what happens where there is no sandbox."""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import need_sandbox

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, Verdict
from llamarl.judges import text_completion
from llamarl.judges.code import CodeJudge, Limits, SandboxError
from llamarl.judges.code.grading import Setup, grade
from llamarl.judges.code.sandbox import Interpreter, command, find_python
from llamarl.judges.code.unit_tests import parse_tests


def prompt_of(tests: object) -> Prompt:
    return Prompt("p", (), info={"unit_tests": tests})


def judged(judge: CodeJudge, tests: object, *codes: str) -> list[Verdict]:
    texts = [text_completion(f"```python\n{textwrap.dedent(code)}\n```") for code in codes]
    return asyncio.run(judge.judge(prompt_of(tests), texts))


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    need_sandbox()
    judge = CodeJudge(test_seconds=3.0, total_seconds=4.0)
    yield judge
    judge.close()


def seen_by(judge: CodeJudge, code: str) -> str:
    """What the program shows: it raises it, so that it is in the verdict's reason."""
    code = "def show(value):\n    raise SystemError('shown ' + str(value))\n" + textwrap.dedent(code)
    (verdict,) = judged(judge, {"inputs": [""], "outputs": ["never"]}, code)
    assert verdict.score == 0.0
    return verdict.reason.partition("shown ")[2] or verdict.reason


ATTEMPTS = """
    import os
    done = []
    for path in {paths!r}:
        for attempt in (lambda: open(path, 'a').write('x'), lambda: os.remove(path), lambda: open(path).read(1),
                        lambda: os.mkdir(path + '_'), lambda: os.symlink('/etc', path + '_l'),
                        lambda: os.chmod(path, 0o777)):
            try:
                attempt()
                done.append(path)
            except OSError:
                pass
    show(done)
"""


def test_files_of_the_host_are_neither_seen_nor_changed(judge: CodeJudge, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    paths = [
        str(secret),
        "/etc/passwd",
        "/root/x",
        "/home/x",
        "/var/x",
        "/proc/self/environ",
        "/sys/kernel",
        "/x",
        "/dev/x",
    ]
    assert seen_by(judge, ATTEMPTS.format(paths=paths)) == "[]"
    assert seen_by(judge, ATTEMPTS.format(paths=["/usr/x", "/bin/x", "/dev/shm/x"])) == "[]"
    assert secret.read_text() == "key" and [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert seen_by(judge, "import os; show(sorted(os.listdir('/')))") in (
        "['bin', 'dev', 'lib', 'lib64', 'tmp', 'usr']",
        "['bin', 'dev', 'lib', 'tmp', 'usr']",
        "['bin', 'dev', 'lib', 'lib32', 'lib64', 'tmp', 'usr']",
    )


def test_removing_everything_removes_nothing(judge: CodeJudge) -> None:
    before = sorted(os.listdir("/usr/bin"))
    judged(
        judge,
        {"inputs": [""], "outputs": [""]},
        "import shutil\nfor path in ('/usr/bin', '/tmp', '/dev'): shutil.rmtree(path, ignore_errors=True)",
    )
    assert sorted(os.listdir("/usr/bin")) == before


def test_a_link_out_of_tmp_leads_nowhere(judge: CodeJudge, tmp_path: Path) -> None:
    code = f"""
        import os
        os.symlink({str(tmp_path)!r}, '/tmp/out')
        try:
            show(os.listdir('/tmp/out'))
        except OSError as error:
            show(type(error).__name__)
    """
    assert seen_by(judge, code) == "FileNotFoundError"


def test_tmp_is_private_and_small(judge: CodeJudge) -> None:
    code = """
        import os
        size = 0
        try:
            for i in range(40):
                with open(f'/tmp/{i}', 'wb') as file:
                    size += file.write(b'x' * (1 << 20))
        except OSError:
            pass
        show(size <= 16 << 20)
    """
    before = set(os.listdir("/tmp"))
    assert seen_by(judge, code) == "True"
    assert not {str(number) for number in range(40)} & (set(os.listdir("/tmp")) - before)
    assert seen_by(judge, "import os; show(os.listdir('/tmp'))") == "[]"
    too_large = (
        "try:\n    open('/tmp/x', 'wb').write(b'x' * (17 << 20))\nexcept OSError as error:\n    show(error.errno)"
    )
    assert seen_by(judge, too_large) in ("27", "28")  # file too large, no space left


def test_the_environment_is_empty(judge: CodeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen = seen_by(judge, "import os; show(sorted(os.environ))")
    assert "SECRET_TOKEN" not in seen and "PATH" in seen


def test_there_is_no_network(judge: CodeJudge) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        local.bind("\0llamarl-test")
        local.listen()
        local.settimeout(0.2)
        code = f"""
            import socket
            reached = []
            for family, address in ((socket.AF_INET, ('127.0.0.1', {server.getsockname()[1]})),
                                    (socket.AF_INET, ('8.8.8.8', 53)), (socket.AF_UNIX, '\\0llamarl-test')):
                try:
                    with socket.socket(family) as s:
                        s.settimeout(0.5)
                        s.connect(address)
                        reached.append(address)
                except OSError:
                    pass
            try:
                reached.append(socket.gethostbyname('example.com'))
            except OSError:
                pass
            show(reached)
        """
        assert seen_by(judge, code) == "[]"
        for listener in (server, local):
            with pytest.raises(TimeoutError):
                listener.accept()


def test_processes_of_the_host_are_out_of_reach(judge: CodeJudge) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        code = f"""
            import os, ctypes
            hit = []
            for pid in [{victim.pid}, {os.getpid()}, *range(2, 400)]:
                if pid != os.getpid():
                    try:
                        os.kill(pid, 0)
                        hit.append(pid)
                    except OSError:
                        pass
            libc = ctypes.CDLL(None)
            hit += [pid for pid in ({victim.pid}, {os.getpid()}) if libc.ptrace(16, pid, 0, 0) == 0]
            show(hit)
        """
        assert seen_by(judge, code) == "[]"
        assert victim.poll() is None
        victim.kill()


def test_it_is_nobody_and_cannot_become_root(judge: CodeJudge) -> None:
    code = """
        import os, ctypes
        libc = ctypes.CDLL(None)
        got = []
        for attempt in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.chroot('/tmp'),
                        lambda: os.setresuid(0, 0, 0), lambda: os.nice(-5)):
            try:
                attempt()
                got.append(1)
            except OSError:
                pass
        mounted = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)
        show((os.getuid() != 0, got, mounted))
    """
    assert seen_by(judge, code) == "(True, [], -1)"


def test_a_fork_bomb_stops_at_the_limit(judge: CodeJudge) -> None:
    code = """
        import os, time
        count = 0
        try:
            while count < 500:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                count += 1
        except OSError:
            pass
        show(count < 16)
    """
    assert seen_by(judge, code) == "True"
    (verdict,) = judged(judge, {"inputs": [""], "outputs": ["x"]}, "import os\nwhile True: os.fork()")
    assert verdict.score == 0.0


def test_memory_is_limited(judge: CodeJudge) -> None:
    assert (
        seen_by(judge, "try:\n    x = bytearray(10 << 30)\nexcept MemoryError:\n    show('MemoryError')")
        == "MemoryError"
    )
    assert seen_by(judge, "x = [bytes(400 << 20) for _ in range(4)]").startswith("test 1 of 1: raised MemoryError")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "ran past the time limit"),
        ("import time; time.sleep(60)", "ran past the time limit"),
        (
            "import signal\nfor n in (1, 2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
            "ran past the time limit",
        ),
        ("import os, time\nif os.fork(): os._exit(0)\nos.setsid()\ntime.sleep(60)", "wrong output"),
        ("print('x' * (1 << 30))", "MemoryError"),
        ("while True: print('x' * 1000)", "wrote more than 65536 bytes"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "ran past the time limit"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV"),
        ("import os; os.kill(-1, 9)", "No such process"),
        ("import sys; sys.exit(3)", "exited with status 3"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def f(): return f()\nf()", "RecursionError"),
    ],
)
def test_programs_that_end_badly_are_wrong_and_say_how(code: str, reason: str) -> None:
    need_sandbox()
    judge = CodeJudge(test_seconds=0.7, total_seconds=5.0, num_slots=1)
    (verdict,) = judged(judge, {"inputs": [""], "outputs": ["x"]}, code)
    judge.close()
    assert verdict.score == 0.0 and verdict.passed is False and reason in verdict.reason, verdict


def processes_named(name: str) -> list[str]:
    """Living processes of this machine that call themselves so: other test runs have sandboxes of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_dead = "Z" in (path / "stat").read_text().rpartition(")")[2].split()[0]
            if (path / "comm").read_text().strip() == name and not is_dead:
                found.append(path.name)
        except OSError:
            continue
    return found


def own_children() -> set[str]:
    return set((Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have users of its own")
def test_nothing_is_left_behind(judge: CodeJudge) -> None:
    name = f"left{os.getpid()}"
    naming = f"import os, time, ctypes\nctypes.CDLL(None).prctl(15, b'{name}')\n"  # PR_SET_NAME; children inherit it
    asking = "found = ctypes.create_string_buffer(16)\nctypes.CDLL(None).prctl(16, found)\nshow(found.value.decode())"
    assert seen_by(judge, naming + asking) == name
    daemon = f"{naming}if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\n"
    before, children = len(os.listdir("/proc/self/fd")), own_children()
    judged(judge, {"inputs": [""], "outputs": [""]}, *[daemon] * 6)
    judged(judge, ["x = f()\nassert x is None"], *[daemon + "def f(): pass"] * 4)
    assert processes_named(name) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert own_children() <= children


def test_the_sandbox_ends_with_its_parent(judge: CodeJudge) -> None:
    code = """
        import asyncio
        from llamarl.core.records import Prompt
        from llamarl.judges import text_completion
        from llamarl.judges.code import CodeJudge
        sleeper = text_completion("```python\\nimport time; time.sleep(60)\\n```")
        judge = CodeJudge(test_seconds=50, total_seconds=60, num_slots=1)
        asyncio.run(judge.judge(Prompt("p", (), info={"unit_tests": {"inputs": [""], "outputs": [""]}}), [sleeper]))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as parent:
        deadline = time.monotonic() + 60
        while len(inside := descendants(parent.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    assert len(inside) >= 3
    while any(is_alive(pid) for pid in inside) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in inside)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return sorted({*children, *(grandchild for child in children for grandchild in descendants(child))})


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_sandbox_that_does_not_start_is_a_failed_verdict(judge: CodeJudge) -> None:
    starved = CodeJudge(limits=Limits(file_bytes=1 << 70), num_slots=1)
    for tests in (["assert f() == 1"], ["x = 1\nassert f() == x"], {"inputs": [""], "outputs": [""]}):
        (verdict,) = judged(starved, tests, "def f(): return 1")
        assert verdict.status is Status.FAILED and "a sandbox did not start" in verdict.reason, verdict
    starved.close()


def test_an_interpreter_that_is_gone_is_a_failed_verdict() -> None:
    need_sandbox()
    setup = Setup(Interpreter("/nonexistent/bin/python3"), Limits(), 1.0, 2.0, 0.0, False, True)
    with pytest.raises(SandboxError, match="a sandbox did not start"):
        grade(setup, "x = 1", parse_tests(["assert f() == 1"]), slot=0)


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    judge = CodeJudge(python="/some/other/python3", num_slots=1)
    remedy = r"bwrap.* not found, so there is no sandbox; install bubblewrap .* or set 'unsafe_no_sandbox'"
    with pytest.raises(ConfigError, match=remedy):
        judge.check(prompt_of(["assert f() == 1"]))
    with pytest.raises(ConfigError, match=remedy):
        judged(judge, ["assert f() == 1"], "def f(): return 1")
    judge.close()


def test_an_interpreter_that_does_not_run_in_the_sandbox_is_refused() -> None:
    need_sandbox()
    with pytest.raises(ConfigError, match=r"no sandbox runs here \(/usr/bin/false: a sandbox did not start"):
        CodeJudge(python="/usr/bin/false").check(prompt_of(["assert f() == 1"]))


def test_unsafe_runs_are_marked() -> None:
    judge = CodeJudge(unsafe_no_sandbox=True, num_slots=1)
    with pytest.warns(RuntimeWarning, match="judge 'code' runs solutions without a sandbox"):
        judge.check(prompt_of(["assert f() == 1"]))
    for tests in (["assert f() == 1"], ["x = 1\nassert f() == x"], {"inputs": [""], "outputs": [""]}):
        (verdict,) = judged(judge, tests, "def f(): return 1")
        assert verdict.passed and verdict.reason == "no sandbox"
    judge.close()


def test_the_command_drops_the_user_first_and_shows_nothing_of_the_run() -> None:
    words = command("/usr/bin/python3", "CODE", uid=60_706, limits=Limits(), is_unsafe=False)
    assert words[:4] == ["setpriv", "--reuid=60706", "--regid=60706", "--clear-groups"]
    assert words.index("bwrap") == 5 and {"--unshare-net", "--unshare-pid", "--unshare-user"} <= set(words)
    assert "/proc" not in words and words[-2:] == ["-c", "CODE"]
    elsewhere = command("/opt/py/bin/python3", "CODE", uid=None, limits=Limits(), is_unsafe=False)
    assert elsewhere[0] == "bwrap" and "/opt/py" in elsewhere


def test_what_runs_inside_is_compiled_once_and_fits_an_argument(judge: CodeJudge) -> None:
    text = Interpreter("/usr/bin/python3").program("grader", 0, 7)
    assert "def main" in text and text.endswith(".grader'].main(0, 7)\n")
    compiled = find_python(None, False).program("grader", 0, 7)
    assert "def main" not in compiled
    assert max(len(text.encode()), len(compiled)) < 100_000  # Linux refuses an argument of 131,072 bytes


def test_the_judge_travels_and_is_used_from_many_loops(judge: CodeJudge) -> None:
    copy = pickle.loads(pickle.dumps(judge))
    results: list[Verdict] = []

    def work() -> None:
        results.extend(judged(copy, ["assert f() == 1"], "def f(): return 1"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy.close()
    assert [verdict.passed for verdict in results] == [True] * 4
