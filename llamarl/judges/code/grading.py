"""Runs a solution's tests in sandboxes and compares what comes out.

programs, calls     this process <--socket--> solution         expected values stay here
scripts             this process <--socket--> grader <--socket--> solution        they stay in the grader's sandbox
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llamarl.judges.code.compare import same_output, same_value
from llamarl.judges.code.inside.wire import MAX_ERROR_CHARACTERS, decode, encode, unpack
from llamarl.judges.code.sandbox import (
    START_SECONDS,
    Interpreter,
    Limits,
    Role,
    Session,
    SolutionEndedError,
    new_nonce,
    no_reference,
    slot_uid,
)
from llamarl.judges.code.unit_tests import Call, Program, Script, Test

_OVERHEAD_BYTES = 4096
"""Bytes of a message beside what the solution wrote or returned."""
_RESULT_BYTES = 8 * MAX_ERROR_CHARACTERS
"""Bytes of what the grader says of one test."""
_GRACE_SECONDS = 1.0
"""Seconds after a test's time, for the process inside to say that it was late."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of every run of a solution."""

    python: Interpreter
    limits: Limits
    test_seconds: float
    total_seconds: float
    tolerance: float
    is_unsafe: bool
    should_stop: bool
    """True if grading stops at the first test that fails."""

    def session(
        self, role: Role, *arguments: int, user: int, ours: socket.socket, theirs: Sequence[socket.socket]
    ) -> Session:
        """Starts a process, as the `user`-th of those that belong to nobody (`Session`)."""
        return Session(
            self.python,
            role,
            *arguments,
            uid=slot_uid(user),
            limits=self.limits,
            is_unsafe=self.is_unsafe,
            ours=ours,
            theirs=theirs,
        )

    def start(self, source: str) -> dict[str, Any]:
        """The first message to a solution's process."""
        return {"source": source, "limits": self.limits.as_message(), "nonce": new_nonce()}


def grade(setup: Setup, source: str, tests: Sequence[Test], slot: int) -> list[str]:
    """Returns for each test why it failed, or "" for a pass; tests that were not reached are left out.

    Raises:
        SandboxError: a sandbox did not start.
    """
    if isinstance(tests[0], Script):
        return _grade_script(setup, source, [test.source for test in tests if isinstance(test, Script)], slot)
    ours, theirs = socket.socketpair()
    with theirs:
        session = setup.session("solution", 0, user=2 * slot, ours=ours, theirs=[theirs])
    with session:
        session.wait_ready(setup.start(source), time.monotonic() + START_SECONDS)
        deadline = time.monotonic() + setup.total_seconds
        return _run(setup, session, tests, deadline)


def _run(setup: Setup, session: Session, tests: Sequence[Test], deadline: float) -> list[str]:
    """One request per test."""

    def exchange(request: dict[str, Any], seconds: float) -> dict[str, Any]:
        end = min(deadline, time.monotonic() + seconds)
        session.send(request, end)
        return session.receive(end, setup.limits.output_bytes + _OVERHEAD_BYTES)

    results: list[str] = []
    try:
        if isinstance(tests[0], Call) and (failure := _failure(exchange({"ask": "load"}, setup.test_seconds))):
            return [failure]
        for test in tests:
            results.append(_run_one(setup, test, exchange))
            if results[-1] and setup.should_stop:
                break
    except SolutionEndedError as error:
        results.append(str(error))
    return results


def _run_one(setup: Setup, test: Test, exchange: Callable[[dict[str, Any], float], dict[str, Any]]) -> str:
    seconds = setup.test_seconds
    if isinstance(test, Program):
        answer = exchange({"ask": "program", "stdin": test.stdin, "seconds": seconds}, seconds + _GRACE_SECONDS)
        if answer.get("end"):
            return _text(answer["end"])
        output = answer.get("output")
        text = output.decode("utf-8", "replace") if isinstance(output, bytes) else ""
        return "" if same_output(text, test.stdout, setup.tolerance) else "wrong output"
    assert isinstance(test, Call)
    request = {
        "ask": "call",
        "args": [{"t": "name", "v": test.name}, *(encode(arg, no_reference) for arg in test.args)],
        "kwargs": {key: encode(value, no_reference) for key, value in test.kwargs.items()},
    }
    if test.comparison != "json":  # assertions share the module's state, as they would in one script
        return _judge_call(exchange(request, seconds), test)
    answer = exchange({**request, "seconds": seconds}, seconds + _GRACE_SECONDS)
    packed = answer.get("packed")
    return _judge_call(_unpack(packed) if isinstance(packed, bytes) else answer, test)


def _unpack(answer: bytes) -> dict[str, Any]:
    try:
        return unpack(answer)
    except ValueError as error:
        raise SolutionEndedError(f"answered nonsense ({error})") from None


def _judge_call(answer: dict[str, Any], call: Call) -> str:
    if failure := _failure(answer):
        return failure
    is_truth = call.comparison in ("true", "false")

    def find(tag: str, content: Any) -> bool:
        """An object that is no plain data: it equals none, and only its truth counts."""
        if is_truth and tag == "object" and isinstance(content, bool):
            return content
        raise ValueError(f"a value tagged {tag!r} is no plain data")

    try:
        value = decode(answer["value"], find)
    except (KeyError, ValueError):
        return "returned no plain data"
    return "" if same_value(value, call.expected, call.comparison) else "wrong value"


def _failure(answer: dict[str, Any]) -> str:
    """Returns what an answer says went wrong; "" for nothing."""
    if "error" not in answer:
        return ""
    match answer["error"]:
        case [kind, _, text, *_]:
            return f"raised {_text(kind)}: {_text(text)}"
        case other:
            return _text(other)


def _text(value: Any) -> str:
    """A text of the solution's, bounded and such that every file can hold it; "answered nonsense" for none."""
    if not isinstance(value, str) or not value:
        return "answered nonsense"
    return value[:MAX_ERROR_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _grade_script(setup: Setup, source: str, tests: list[str], slot: int) -> list[str]:
    ours, theirs = socket.socketpair()
    grader_end, solution_end = socket.socketpair()
    with contextlib.ExitStack() as stack:
        for end in (theirs, grader_end, solution_end):
            stack.enter_context(end)
        connection = grader_end.fileno()
        grader = setup.session("grader", 0, connection, user=2 * slot + 1, ours=ours, theirs=[theirs, grader_end])
        stack.enter_context(grader)
        unconnected = socket.socket(socket.AF_UNIX)  # the solution's only socket leads to the grader
        stack.enter_context(setup.session("solution", 0, user=2 * slot, ours=unconnected, theirs=[solution_end]))
        for end in (theirs, grader_end, solution_end):
            end.close()  # so that the end of a process is seen on the other side
        start = {**setup.start(source), "tests": tests, "should_stop": setup.should_stop}
        grader.wait_ready(start, time.monotonic() + START_SECONDS)
        try:
            max_bytes = _OVERHEAD_BYTES + _RESULT_BYTES * len(tests)
            answer = grader.receive(time.monotonic() + setup.total_seconds, max_bytes)
        except SolutionEndedError as error:
            return [str(error)]
    results = answer.get("results")
    if answer.get("nonce") != start["nonce"] or not isinstance(results, list) or len(results) > len(tests):
        return ["broke the grader"]
    return ["" if result == "" else _text(result) for result in results]
