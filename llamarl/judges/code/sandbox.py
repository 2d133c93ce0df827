"""Processes that can do nothing but compute: bubblewrap, a user of their own, and limits.

    setpriv (as root: another user) > bwrap (namespaces) > python -c (the text of `inside/`) > its own resource limits

    files       /usr read-only, /tmp of bounded size, nothing else: no /proc, no /etc, no home, no file of the run
    network     none, and none of the host's processes, shared memory or semaphores
    secrets     an empty environment; one socket, to the process that asks
    kernel      calls that no namespace divides, or that only attacks need, are refused (`refusals`)
    limits      memory, processor time, file size, open files, processes; the wall clock is the caller's
    end         killing the first process inside ends all others, whatever they are

Where that cannot be had, `find_python` raises: nothing runs unprotected unless `is_unsafe` was asked for.
"""

import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, JudgeError
from llamarl.judges.code.inside.wire import Frames, decode, encode
from llamarl.judges.code.refusals import open_refusals

FIRST_UID = 60_706
"""Users 60706 to 61183 belong to nobody on systems that follow systemd's division."""
MAX_SLOTS = 128
START_SECONDS = 20.0
"""A sandbox must be ready within this time; later it counts as not started."""
KILL_SECONDS = 10.0

PYTHON_FLAGS = ("-S", "-s", "-B", "-X", "utf8")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
_NAMESPACES = ("--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts")
_INSIDE = Path(__file__).with_name("inside")
_PACKAGE = "llamarl.judges.code.inside"
Role = Literal["solution", "grader"]
_NEEDED = {"solution": ("wire", "solution"), "grader": ("wire", "solution", "grader")}


class SandboxError(JudgeError):
    """A sandbox did not start. The solution has not run: its verdict is failed, never wrong."""


class SolutionEndedError(Exception):
    """The solution's process ended, was late, or answered too much: the solution's fault."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of each process inside."""

    memory_bytes: int = 1 << 30
    """Address space."""
    processes: int = 16
    """Processes and threads of one sandbox."""
    file_bytes: int = 16 << 20
    """One file, and all of /tmp."""
    output_bytes: int = 64 << 10
    """Standard output, or one call's value as JSON."""
    cpu_seconds: int = 60
    files: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"limits.{name}={getattr(self, name)!r}; give a positive whole number")

    @classmethod
    def parse(cls, fields: Mapping[str, int]) -> "Limits":
        """The limits with these fields. Raises `ConfigError` for one that there is not."""
        for name in fields:
            if name not in cls.__slots__:
                raise ConfigError(f"no limits.{name}.{suggest(str(name), list(cls.__slots__))}")
        return cls(**fields)

    def as_message(self) -> dict[str, int]:
        """Returns the limits as the processes inside take them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python for solutions."""

    path: str
    compiled: Mapping[str, str] = field(default_factory=dict)
    """The modules of `inside/` as this interpreter compiles them: marshalled, compressed, in base64; those that are not
    here travel as text, and every run pays for their compilation."""

    def program(self, role: Role, *arguments: int) -> str:
        """Source of what runs inside: the modules of `inside/`, then `main` of one of them."""
        codes = {f"{_PACKAGE}.{name}": self.compiled.get(name, "") or _source(name) for name in _NEEDED[role]}
        call = f"sys.modules[{_PACKAGE + '.' + role!r}].main({', '.join(map(str, arguments))})"
        return f"codes = {codes!r}\n{_LOADER}{call}\n"


_LOADER = """\
import binascii, marshal, sys, types, zlib
for name, code in codes.items():
    module = sys.modules[name] = types.ModuleType(name)
    code = compile(code, name, 'exec') if ' ' in code else marshal.loads(zlib.decompress(binascii.a2b_base64(code)))
    exec(code, module.__dict__)
"""


@functools.cache
def _source(name: str) -> str:
    return (_INSIDE / f"{name}.py").read_text()


def command(
    python: str, code: str, *, uid: int | None, limits: Limits, is_unsafe: bool, filter_descriptor: int | None = None
) -> list[str]:
    """Returns the command by which `python` runs `code` in a sandbox, as user `uid` where given.

    From `filter_descriptor` bubblewrap reads which system calls to refuse.
    """
    inner = [python, *PYTHON_FLAGS, "-c", code]
    if is_unsafe:
        return inner
    identity = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"] if uid else []
    refusals = ["--seccomp", str(filter_descriptor)] if filter_descriptor is not None else []
    return [
        *identity,
        *("bwrap", *_NAMESPACES, "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *_system(python),
        *("--dev", "/dev", "--remount-ro", "/dev", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"),
        *("--remount-ro", "/", "--chdir", "/tmp", *refusals, "--", *inner),
    ]


def _system(python: str) -> list[str]:
    """Mounts of the system's programs and of an interpreter that lives elsewhere."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for path in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            mounts += ["--ro-bind", path, path]
    prefix = str(Path(python).parent.parent)
    return mounts if prefix.startswith("/usr") else [*mounts, "--ro-bind", prefix, prefix]


def slot_uid(slot: int) -> int | None:
    """The user of a slot, where this process is root and may change it."""
    return FIRST_UID + slot if os.geteuid() == 0 else None


class Session:
    """One running process inside a sandbox, and the socket to it. A context manager: leaving it kills everything."""

    def __init__(
        self,
        python: Interpreter,
        role: Role,
        *arguments: int,
        uid: int | None,
        limits: Limits,
        is_unsafe: bool,
        ours: socket.socket,
        theirs: Sequence[socket.socket],
    ) -> None:
        """Starts a process whose standard input and output are the first of `theirs`; it inherits the others.

        Args:
            python: runs it.
            role: which process of `inside/`; `arguments` are those of its `main`.
            arguments: see above.
            uid: its user, where this process may choose it.
            limits: of its sandbox.
            is_unsafe: without a sandbox.
            ours: this side's end of the socket, which the session closes.
            theirs: ends that the process gets; the caller closes its copies.
        """
        code = python.program(role, *arguments)
        with open_refusals() as descriptor:
            words = command(
                python.path, code, uid=uid, limits=limits, is_unsafe=is_unsafe, filter_descriptor=descriptor
            )
            inherited = [end.fileno() for end in theirs[1:]] + ([] if descriptor is None else [descriptor])
            self._start(words, ours, theirs[0], inherited)

    def _start(
        self, arguments: Sequence[str], ours: socket.socket, theirs: socket.socket, inherited: Sequence[int]
    ) -> None:
        self._connection, self._deadline = ours, 0.0
        self._frames = Frames(self._read, self._write, 0)
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                arguments,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"{arguments[0]} cannot be started: {error}") from None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, message: Mapping[str, Any], deadline: float) -> None:
        """Sends one message. Raises `SolutionEndedError` past the deadline or where nobody reads."""
        self._deadline = deadline
        try:
            self._frames.send(dict(message))
        except OSError as error:
            raise _ending(error) from None

    def receive(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        """The next message. Raises `SolutionEndedError` at the deadline, at the end, and for what is no message."""
        self._deadline, self._frames.max_bytes = deadline, max_bytes
        try:
            return self._frames.receive()
        except EOFError:
            raise SolutionEndedError("ended its process early") from None
        except OSError as error:
            raise _ending(error) from None
        except ValueError as error:
            raise SolutionEndedError(f"answered nonsense or too much ({error})") from None

    def _read(self, size: int) -> bytes:
        self._wait()
        return self._connection.recv(size)

    def _write(self, data: bytes) -> int:
        self._wait()
        return self._connection.send(data)

    def _wait(self) -> None:
        """Sets the next call's time. Raises TimeoutError past the deadline, also where there is more to read."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)

    def wait_ready(self, start: Mapping[str, Any], deadline: float) -> None:
        """Sends the first message and waits for its nonce. Raises `SandboxError`: nothing of the solution ran yet."""
        try:
            self.send(start, deadline)
            is_ready = self.receive(deadline, 4096) == {"ready": start["nonce"]}
        except SolutionEndedError as error:
            raise SandboxError(f"a sandbox did not start ({error}): {self.complaint()}") from None
        if not is_ready:
            raise SandboxError("a sandbox did not start: its first message has another nonce")

    def complaint(self) -> str:
        """Ends the process and returns what it said of itself on standard error."""
        self._stop()
        assert self._process.stderr is not None
        return (
            self._process.stderr.read(2000).decode("utf-8", "replace").strip() or f"status {self._process.returncode}"
        )

    def kill(self) -> None:
        """Ends the process and everything inside. Idempotent."""
        self._connection.close()
        self._stop()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _stop(self) -> None:
        """Kills the first process inside, with which all others end; bwrap then ends by itself and leaves no zombie."""
        outer = self._process.pid
        for victim in (*_children(outer), None):
            if self._process.poll() is not None:
                return
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL) if victim else os.killpg(outer, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # then the outer process itself is killed, the next in line
                self._process.wait(KILL_SECONDS)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # gone, or a kernel that does not list them
        return []


def _ending(error: OSError) -> SolutionEndedError:
    return SolutionEndedError(
        "ran past the time limit" if isinstance(error, TimeoutError) else "ended its process early"
    )


def new_nonce() -> str:
    """Names one run; a message that must be of it repeats it."""
    return secrets.token_hex(16)


@functools.cache
def find_python(python: str | None, is_unsafe: bool) -> Interpreter:
    """The interpreter for solutions, after a trial run in a sandbox.

    Args:
        python: an interpreter; None: this one's base installation, else the system's.
        is_unsafe: without a sandbox.

    Raises:
        ConfigError: no sandbox can be had here, or no interpreter runs in one.
    """
    if is_unsafe:
        return Interpreter(python or sys.executable)
    needed = ["bwrap", "setpriv"] if os.geteuid() == 0 else ["bwrap"]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise ConfigError(f"code judge: {' and '.join(missing)} not found, so there is no sandbox; {_REMEDY}")
    complaints = []
    for candidate in [python] if python else _interpreters():
        try:
            return _try(candidate)
        except SandboxError as error:
            complaints.append(f"{candidate}: {error}")
    raise ConfigError(f"code judge: no sandbox runs here ({'; '.join(complaints)}); {_REMEDY}")


_REMEDY = (
    "install bubblewrap and util-linux, allow user namespaces, name a Python that every user can read ('python'), "
    "or set 'unsafe_no_sandbox' and let solutions do whatever you may do"
)


def _interpreters() -> list[str]:
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    system = [path for path in ("/usr/local/bin/python3", "/usr/bin/python3") if os.path.exists(path)]
    return list(dict.fromkeys([base, *map(os.path.realpath, system)]))


_TRIAL = """
import binascii, marshal, os, sys, zlib
def compiled(name, text):
    code = compile(text, name, 'exec', optimize=2)
    return binascii.b2a_base64(zlib.compress(marshal.dumps(code)), newline=False).decode()
def look(sources):
    codes = {name: compiled(name, text) for name, text in sources.items()}
    return os.getuid(), os.listdir('/'), list(sys.version_info[:2]), codes
"""
_MAX_TRIAL_BYTES = 1 << 20


def _try(python: str) -> Interpreter:
    """The interpreter after a first run. Raises `SandboxError` where it fails, or where it sees what it should not."""
    limits, uid, deadline = Limits(), slot_uid(0), time.monotonic() + START_SECONDS
    ours, theirs = socket.socketpair()
    with theirs:
        session = Session(
            Interpreter(python), "solution", 0, uid=uid, limits=limits, is_unsafe=False, ours=ours, theirs=[theirs]
        )
    with session:
        start = {"source": _TRIAL, "limits": limits.as_message(), "nonce": new_nonce()}
        session.wait_ready(start, deadline)
        sources = {name: _source(name) for name in _NEEDED["grader"]}
        request = {"ask": "call", "args": [{"t": "name", "v": "look"}, encode(sources, no_reference)]}
        try:
            session.send({"ask": "load"}, deadline)
            session.receive(deadline, _MAX_TRIAL_BYTES)
            session.send(request, deadline)
            answer = session.receive(deadline, _MAX_TRIAL_BYTES)
            user, files, version, compiled = decode(answer["value"], no_reference)
        except (SolutionEndedError, KeyError, ValueError) as error:
            raise SandboxError(f"the trial run failed: {error}") from None
    if user == 0 or {"etc", "home", "root", "proc"} & set(files) or version < [3, 10]:
        raise SandboxError(f"the trial run saw user {user}, files {files}, Python {version}")
    return Interpreter(python, compiled)


def no_reference(*value: Any) -> Any:
    """Raises ValueError: only plain data may stand here."""
    raise ValueError(f"{value!r} is no plain data")
