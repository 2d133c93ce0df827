"""The process that holds the solution. It knows inputs, never what should come out: others compare.

Whatever the solution does here (leave early, patch builtins, write to the descriptor of the answers), it can only
change what it answers, and it does not know which answer is wanted.

    ready    <- {"source", "limits", "nonce"}                     -> {"ready": nonce}
    load     runs the source as a module                         -> {"value": names} or {"error": ...}
    names    what some of them stand for                         -> {"value": ...}
    program  runs the source as a program on a standard input    -> {"output", "end"}
    call and the other operations                                -> {"value": ...} or {"error": ...}

An error is a list: the type's name and module, the text, the builtin type it descends from, and its arguments where
they are plain data.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import atexit
import builtins
import operator
import os
import resource
import select
import sys
import time
from types import ModuleType

from llamarl.judges.code.inside.wire import (
    MAX_ERROR_CHARACTERS,
    Frames,
    Kept,
    decode,
    descriptor_frames,
    encode,
    pack,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_REQUEST_BYTES = 64 << 20
MAX_ARGUMENTS_BYTES = 4096
"""Largest size of an exception's arguments on the wire; larger ones are left out."""
SIGKILL = 9


def main(descriptor: int) -> None:
    """Serves requests from `descriptor` until it closes."""
    descriptor = os.dup(descriptor)
    lines = descriptor_frames(descriptor, MAX_REQUEST_BYTES)
    start = lines.receive()
    silence()
    limit(start["limits"])
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # without `site` nobody defined them
    lines.send({"ready": start["nonce"]})
    server = Server(lines, start["source"], start["limits"]["output_bytes"])
    while True:
        try:
            request = lines.receive()
        except EOFError:
            os._exit(0)
        lines.send(server.answer(request))


def silence() -> None:
    """Standard input is empty; what is printed goes nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def limit(limits: dict[str, int]) -> None:
    """Hard limits for this process and all it starts, each."""
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", limits["files"]),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ):
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


class Server:
    """Answers requests about one solution."""

    def __init__(self, lines: Frames, source: str, max_output_bytes: int) -> None:
        self._lines, self._source, self._max_output_bytes = lines, source, max_output_bytes
        self._kept = Kept()
        self._module = ModuleType("solution")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; faults of the solution are part of it."""
        what = request["ask"]
        if what == "program":
            return self._program(request)
        if request.get("seconds"):
            return self._apart(request)
        return self._now(request)

    def _now(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            what = request["ask"]
            value = self._load() if what == "load" else self._operate(request)
            answer = {"value": encode(value, self._kept.add if request.get("keep") else _truth)}
            if request.get("back") and value is None:
                answer["args"] = [encode(arg, self._kept.add) for arg in self._args]
            return answer
        except BaseException as error:  # the solution may raise anything
            return {"error": describe(error)}

    def _load(self) -> list[str]:
        sys.modules["solution"] = self._module
        exec(compile(self._source, "solution.py", "exec"), self._module.__dict__)
        return [name for name in list(self._module.__dict__) if not name.startswith("__")]

    def _operate(self, request: dict[str, Any]) -> Any:
        self._args = args = [decode(arg, self._find) for arg in request["args"]]
        kwargs = {key: decode(value, self._find) for key, value in request.get("kwargs", {}).items()}
        if request["ask"] == "names":
            return {name: self._module.__dict__.get(name) for name in args}
        return OPERATIONS[request["ask"]](*args, **kwargs)

    def _find(self, tag: str, content: Any) -> Any:
        if tag == "name":
            return self._look_up(content)
        if tag == "builtin":
            return getattr(builtins, content)
        if tag == "yours":
            return self._kept.objects[content]
        return Callback(content, self)

    def _look_up(self, name: str) -> Any:
        """Finds a name of the module, or the method of its class `Solution`, as some data sets want it."""
        if name in self._module.__dict__ or "Solution" not in self._module.__dict__:
            return self._module.__dict__[name] if name in self._module.__dict__ else _missing(name)
        return getattr(self._module.__dict__["Solution"](), name)

    def callback(self, number: int, args: tuple[Any, ...]) -> Any:
        """Calls a function that the tests passed in."""
        self._lines.send({"ask": "call", "on": number, "args": [encode(arg, self._kept.add) for arg in args]})
        while "ask" in (reply := self._lines.receive()):
            self._lines.send(self.answer(reply))
        if "error" in reply:
            raise exception(reply["error"], self._find)
        return decode(reply["value"], self._find)

    def _apart(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers in a child process, so that nothing of one test reaches the next."""
        request = dict(request)
        seconds = request.pop("seconds")

        def work(output: int) -> int:
            silence()
            with open(output, "wb", closefd=False) as file:
                file.write(pack(self._now(request)))
            return 0

        output, _, status, end = in_child(work, seconds, self._max_output_bytes)
        return {"error": end or describe_end(status)} if end or status or not output else {"packed": output}

    def _program(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin = _nameless_file()
        with open(stdin, "wb", closefd=False) as file:
            file.write(request["stdin"].encode("utf-8", "surrogatepass"))

        def work(output: int) -> int:
            os.lseek(stdin, 0, os.SEEK_SET)
            os.dup2(stdin, 0)
            os.dup2(output, 1)
            return run_as_program(self._source)

        output, error, status, end = in_child(work, request["seconds"], self._max_output_bytes)
        os.close(stdin)
        last_line = error.decode("utf-8", "replace").strip().rpartition("\n")[2][:MAX_ERROR_CHARACTERS]
        if not end and status:
            end = f"raised {last_line}" if last_line else describe_end(status)
        return {"output": output, "end": end}


class Callback:
    """A function of the tests, as the solution sees it."""

    def __init__(self, number: int, server: Server) -> None:
        self._number, self._server = number, server

    def __call__(self, *args: Any) -> Any:
        """Calls it where it lives."""
        return self._server.callback(self._number, args)


def run_as_program(source: str) -> int:
    """Runs the source as `python solution.py` would; the exit status."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    status = 0
    try:
        exec(compile(source, "solution.py", "exec"), module.__dict__)
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # type: ignore[attr-defined]  # a program waits for its threads
    except SystemExit as error:
        code = error.code
        status = code & 255 if isinstance(code, int) else int(code is not None)
    except BaseException as error:
        os.write(2, f"{words(error)}\n".encode("utf-8", "replace"))
        status = 1
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # a closed or broken standard output, or what the solution registered
        status = status or 1
    return status


def in_child(work: Callable[[int], int], seconds: float, max_bytes: int) -> tuple[bytes, bytes, int, str]:
    """Runs `work(output descriptor)` in a forked process: (output, errors, wait status, why it was ended or "")."""
    out_read, out_write = os.pipe()
    error_read, error_write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            os.dup2(error_write, 2)
            status = work(out_write)
        finally:
            os._exit(status)
    os.close(out_write)
    os.close(error_write)
    output, errors, end = collect(child, out_read, error_read, seconds, max_bytes)
    for kill in (os.killpg, os.kill):
        try:
            kill(child, SIGKILL)
        except OSError:
            continue
    _, status = os.waitpid(child, 0)
    reap()
    os.close(out_read)
    os.close(error_read)
    return output, errors, status, end


def reap() -> None:
    """Buries processes that lost their parent: the first process of a sandbox inherits them, and they count."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def collect(child: int, out_read: int, error_read: int, seconds: float, max_bytes: int) -> tuple[bytes, bytes, str]:
    """Reads what the child writes until it ends, is late, or writes too much.

    Returns:
        The last `max_bytes` of its output and of its errors, and why it must be ended; "" where it ended by itself.
    """
    deadline = time.monotonic() + seconds
    ending = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (ending, out_read, error_read):
        poll.register(descriptor, select.POLLIN)
    pieces: dict[int, bytearray] = {out_read: bytearray(), error_read: bytearray()}
    end = ""
    while not end:
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if not ready:
            end = "ran past the time limit"
        for descriptor in (out_read, error_read):
            if descriptor not in ready:
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                poll.unregister(descriptor)
            elif descriptor == out_read and len(pieces[out_read]) + len(piece) > max_bytes:
                end = f"wrote more than {max_bytes} bytes"
            pieces[descriptor] += piece
            del pieces[descriptor][:-max_bytes]
        if ready == [ending]:
            break
    os.close(ending)
    return bytes(pieces[out_read]), bytes(pieces[error_read]), end


def describe_end(status: int) -> str:
    """Says in words how a process ended."""
    if os.WIFSIGNALED(status):
        import signal

        return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def words(error: BaseException) -> str:
    """The type and text of an exception in one line."""
    name, _, text, *_ = describe(error)
    return f"{name}: {text}" if text else name


def describe(error: BaseException) -> list[Any]:
    """Writes an exception for the wire; all of it may be the solution's own code."""
    kind = type(error)
    base = next(ancestor.__name__ for ancestor in kind.__mro__ if ancestor.__module__ == "builtins")
    try:
        text = str(error)[:MAX_ERROR_CHARACTERS]
    except BaseException:  # its __str__ raised
        text = ""
    try:
        arguments = encode(list(error.args), _refuse)
        arguments = arguments if len(pack(arguments)) <= MAX_ARGUMENTS_BYTES else None
    except BaseException:  # they are no plain data, or no tuple
        arguments = None
    return [kind.__name__, str(kind.__module__), text, base, arguments]


def exception(described: Any, find: Callable[[str, Any], Any]) -> Exception:
    """Makes the exception that `describe` wrote.

    It is of the same type where that is a builtin or of a module of the standard library that is loaded here, else of
    one derived from the builtin by its name. What ends a process there (SystemExit and the like) is a RuntimeError.
    """
    name, module, text, base, arguments = described
    if any(type(part) is not str for part in (name, module, text, base)):
        raise ValueError("an error whose parts are no texts")
    kind: Any = getattr(builtins, base, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return RuntimeError(f"{name}: {text}")
    if name != base:
        is_standard = module.partition(".")[0] in sys.stdlib_module_names
        named: Any = getattr(sys.modules.get(module), name, None) if is_standard else None
        is_same = isinstance(named, type) and issubclass(named, kind)
        kind = named if is_same else type(name, (kind,), {"__module__": "solution"})
    values = [decode(part, find) for part in arguments] if type(arguments) is list else [text]
    for make in (kind, lambda *args: kind.__new__(kind, *args)):  # some take other arguments than they keep
        try:
            made: Exception = make(*values)
            return made
        except Exception:
            continue
    return RuntimeError(f"{name}: {text}")


def _refuse(value: Any) -> Any:
    raise TypeError(f"an object of type {type(value).__name__} is no plain data")


def _truth(value: Any) -> dict[str, Any]:
    """Writes an object's truth: all that counts of one where only plain data is compared."""
    return {"t": "object", "v": bool(value)}


def _nameless_file() -> int:
    """A descriptor of a file in /tmp, which counts there: memory without a name (memfd) would count nowhere."""
    path = f"/tmp/stdin-{os.getpid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return descriptor


def _missing(name: str) -> Any:
    raise NameError(f"name '{name}' is not defined")


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _enter(manager: Any) -> Any:
    return type(manager).__enter__(manager)


def _exit(manager: Any) -> None:
    type(manager).__exit__(manager, None, None, None)


UNARY = ("__neg__", "__pos__", "__abs__", "__invert__")
BINARY = (
    *("__add__", "__sub__", "__mul__", "__truediv__", "__floordiv__", "__mod__", "__pow__", "__matmul__"),
    *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"),
)
ITEMS = ("__getitem__", "__setitem__", "__delitem__")
COMPARISONS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (*UNARY, *BINARY, *COMPARISONS, *ITEMS)},
    **{"call": _call, "getattr": getattr, "setattr": setattr, "isinstance": isinstance, "issubclass": issubclass},
    **{"len": len, "iter": iter, "next": next, "str": str, "repr": repr, "bool": bool, "hash": hash},
    **{"enter": _enter, "exit": _exit},
}
