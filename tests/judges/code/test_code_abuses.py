"""Solutions that try to reach out of the sandbox (`abuses.txt`): none sees a secret, none changes anything outside."""

import ctypes
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sandbox import need_sandbox

from llamarl.judges.code import Limits
from llamarl.judges.code.grading import Setup
from llamarl.judges.code.refusals import MACHINES
from llamarl.judges.code.sandbox import FIRST_UID, MAX_SLOTS, SolutionEndedError, find_python

T = TypeVar("T")
SECRET = "secret-7d20fb93"
KEY = "abuse-secret"
SECONDS = 2.0
USER = 2 * MAX_SLOTS - 1
"""That no other test's sandboxes have."""
_, *SECTIONS = re.split(r"^=== ", Path(__file__).with_name("abuses.txt").read_text(), flags=re.MULTILINE)
ABUSES = {title: code for title, _, code in (section.partition("\n") for section in SECTIONS)}
VICTIM = f"""
import ctypes, time
data = ctypes.create_string_buffer({SECRET!r}.encode())
print(ctypes.addressof(data), flush=True)
time.sleep(600)
"""
CALLS = MACHINES[platform.machine()].refused if platform.machine() in MACHINES else {}
add_key, keyctl = CALLS.get("add_key", -1), CALLS.get("keyctl", -1)
libc = ctypes.CDLL(None)


def session_keys() -> bytes:
    """Numbers of the keys of this thread's session."""
    keys = ctypes.create_string_buffer(400)
    return keys.raw[: max(libc.syscall(keyctl, 11, ctypes.c_int(-3), keys, 400), 0)]


def begin_session() -> None:
    """Gives this thread a session of its own with a key in it, as a login would."""
    libc.syscall(keyctl, 1, None)
    libc.syscall(add_key, b"user", KEY.encode(), SECRET.encode(), len(SECRET), ctypes.c_int(-3))


class Outside:
    """What a solution could reach if nothing held it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        folder.chmod(0o777)
        (folder / "secret").write_text(SECRET)
        (folder / "secret").chmod(0o666)
        self.victim = stack.enter_context(subprocess.Popen([sys.executable, "-c", VICTIM], stdout=subprocess.PIPE))
        stack.callback(self.victim.kill)
        assert self.victim.stdout is not None
        self.address = int(self.victim.stdout.readline())
        self.thread = stack.enter_context(ThreadPoolExecutor(1, initializer=begin_session))
        abstract = f"abuse-{os.getpid()}"
        self.listeners: list[socket.socket] = []
        for family, kind, where in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
        ):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(where)
            listener.setblocking(False)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            self.listeners.append(listener)
        (folder / "socket").chmod(0o777)
        self.words = {
            **{"file": folder / "secret", "folder": folder, "secret": SECRET, "key": KEY, "abstract": abstract},
            **{"victim": self.victim.pid, "parent": os.getpid(), "address": self.address},
            **{"tcp": self.listeners[0].getsockname()[1], "udp": self.listeners[1].getsockname()[1]},
            **CALLS,
            "clone_call": MACHINES[platform.machine()].clone if CALLS else -1,
        }

    def program(self, name: str) -> str:
        """An abuse that knows where to go."""
        return re.sub(r"<([a-z_]+)>", lambda match: str(self.words[match[1]]), ABUSES[name])

    def within(self, work: Callable[..., T], *arguments: Any) -> T:
        """Calls it in the session that holds the key."""
        return self.thread.submit(work, *arguments).result()

    def look(self) -> dict[str, Any]:
        """All of it."""
        stats = {path: path.stat() for path in (self.folder, *self.folder.iterdir())}
        return {
            "files": {str(path): (s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns) for path, s in stats.items()},
            "text": (self.folder / "secret").read_text(),
            "system": {path: os.stat(path).st_mode for path in ("/", "/usr/bin", "/tmp", "/dev", "/dev/null", "/etc")},
            "programs": os.access("/usr/bin/env", os.X_OK) and os.path.exists("/etc/passwd"),
            "traces": [
                name for place in PLACES if os.path.isdir(place) for name in os.listdir(place) if "abuse" in name
            ],
            "victim": (self.victim.poll(), *state(self.victim.pid)),
            "arrivals": [arrived(listener) for listener in self.listeners],
            "host": socket.gethostname(),
            "clock": abs(time.time() - Path("/proc/self").stat().st_mtime) < 3600,
            "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
            "memory": [line for kind in ("shm", "msg", "sem") for line in system_v(kind)],
            "keys": self.within(session_keys),
            "nice": os.nice(0),
            "strangers": strangers(),
        }


PLACES = ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/dev/mqueue", "/etc", "/usr/bin", "/usr/lib")


def state(pid: int) -> tuple[Any, ...]:
    """Whether a process runs, how nicely, where, and with how many files."""
    stopped = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    files = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return stopped, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), files


def arrived(listener: socket.socket) -> str:
    with suppress(BlockingIOError):
        return str(listener.recv(100) if listener.type == socket.SOCK_DGRAM else listener.accept())
    return ""


def system_v(kind: str) -> list[str]:
    path = Path(f"/proc/sysvipc/{kind}")
    return (
        [line for line in path.read_text().splitlines() if line.split()[0] == str(0x61627573)] if path.exists() else []
    )


def strangers() -> list[str]:
    """Processes of the sandbox's user, but for zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*") if os.geteuid() == 0 else ():
        with suppress(OSError):
            if path.stat().st_uid == FIRST_UID + USER and (path / "cmdline").read_bytes():
                found.append(path.name)
    return found


@pytest.fixture(scope="module")
def setup() -> Setup:
    need_sandbox()
    python = find_python(None, is_unsafe=False)
    return Setup(python, Limits(), SECONDS, SECONDS, 0.0, is_unsafe=False, should_stop=True)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    os.environ["ABUSE_SECRET"] = SECRET
    with ExitStack() as stack:
        yield Outside(tmp_path_factory.mktemp("outside"), stack)
    del os.environ["ABUSE_SECRET"]


def output_of(setup: Setup, source: str) -> str:
    """What the program writes, and how it ended."""
    ours, theirs = socket.socketpair()
    with theirs:
        session = setup.session("solution", 0, user=USER, ours=ours, theirs=[theirs])
    with session:
        session.wait_ready(setup.start(source), time.monotonic() + 60.0)
        end = time.monotonic() + SECONDS + 20.0
        session.send({"ask": "program", "stdin": "", "seconds": SECONDS}, end)
        try:
            answer = session.receive(end, 1 << 20)
        except SolutionEndedError as error:
            return str(error)
    return answer["output"].decode("latin1") + answer["end"]


def test_the_corpus_is_large_enough() -> None:
    assert len(ABUSES) == len(SECTIONS) >= 50


@pytest.mark.parametrize("name", ABUSES)
def test_an_abuse_sees_nothing_and_changes_nothing(setup: Setup, outside: Outside, name: str) -> None:
    before = outside.look()
    shown = outside.within(output_of, setup, outside.program(name))
    assert SECRET not in shown
    assert outside.look() == before


def test_without_a_sandbox_the_same_programs_would_succeed(outside: Outside) -> None:
    """So that it is the sandbox which stops them, and not a mistake in them. Only those that merely look."""
    for name in (
        "read a file",
        "read the environment",
        "read the environment from the stack",
        "read keys and leave one",
    ):
        if "keys" in name and not outside.within(session_keys):
            continue  # a kernel without keys
        run = [sys.executable, "-c", outside.program(name)]
        result = outside.within(lambda run=run: subprocess.run(run, stdout=subprocess.PIPE, check=True))
        assert SECRET in result.stdout.decode("latin1"), name


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have users of its own")
def test_started_as_root_they_run_as_nobody(setup: Setup) -> None:
    shown = output_of(setup, "import os; print(os.getuid(), os.getgid(), os.getgroups())")
    assert shown == f"{FIRST_UID + USER} {FIRST_UID + USER} []\n"
