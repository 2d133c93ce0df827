"""Judges in worker processes that are killed when they overrun.

    judge = ProcessJudge("rewards.py:accuracy", num_workers=4, timeout_seconds=5)

For functions that may hang, crash or use signals: Python cannot end a thread, but it can end a process. Each
completion is one call; at its deadline the worker and everything it started get SIGKILL, the verdict is failed, and a
new worker takes the place. A crash fails the one call that it happened in. This is no sandbox: the function has the
user's rights.

    judge() --queue--> one thread per worker --socket--> worker process (`child.py`)

Workers are started by exec, never by fork, so threads, locks and accelerators of the parent are safe.
"""

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.protocols import CheckingJudge, Judge, info_of
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges.channel import Channel
from llamarl.judges.resolve import as_judge, load_judge

START_SECONDS = 60.0
"""A worker must have imported its judge within this time."""
KILL_SECONDS = 10.0
"""A process that got SIGKILL must be gone within this time."""

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from llamarl.judges.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_Job = tuple[bytes, "Future[dict[str, Any]]"]


class ProcessJudge:
    """Runs a judge in `num_workers` processes. May be called from any thread and any event loop."""

    def __init__(
        self,
        judge: str | Judge | Callable[..., Any],
        *,
        num_workers: int = 2,
        timeout_seconds: float = 10.0,
        max_memory_bytes: int = 4 << 30,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the judge; processes start with the first call.

        Args:
            judge: `module:function`, `file.py:function`, or something picklable that a worker can import.
            num_workers: processes.
            timeout_seconds: for one completion; time in the queue and a worker's start do not count.
            max_memory_bytes: of one worker (data segment, Linux); beyond it the judge's code gets a `MemoryError`.
            name: of the judge.
            settings: what to build it with, if `judge` names a class or a function that builds judges.

        Raises:
            ConfigError: the judge cannot be loaded, or cannot be sent to a worker.
        """
        if num_workers < 1 or not timeout_seconds > 0:
            raise ConfigError(f"ProcessJudge: {num_workers=}, {timeout_seconds=}; both must be positive")
        loaded = load_judge(judge, name, settings=settings) if isinstance(judge, str) else as_judge(judge, name)
        self.name = loaded.name
        self.info = replace(info_of(loaded), has_deadline=True)
        """The judge's own; whatever it does, each call ends in time."""
        self._checks = loaded.check if isinstance(loaded, CheckingJudge) else None
        self.timeout_seconds = timeout_seconds
        start = {"spec": judge, "settings": settings} if isinstance(judge, str) else {"pickled": _pickled(judge)}
        message = bytes(ForkingPickler.dumps({**start, "name": name, "max_memory_bytes": max_memory_bytes}))
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._logged: list[dict[str, float]] = []
        for number in range(num_workers):
            slot = _Slot(self._jobs, message, timeout_seconds)
            threading.Thread(target=slot.run, name=f"judge-{self.name}-{number}", daemon=True).start()
        self._finalizer = weakref.finalize(self, _stop, self._jobs, num_workers)

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion, judged one by one. Raises `JudgeError` where the worker's judge cannot start."""
        if not self._finalizer.alive:
            raise JudgeError(f"judge '{self.name}' is closed")
        futures: list[Future[dict[str, Any]]] = []
        for completion in completions:
            futures.append(Future())
            self._jobs.put((bytes(ForkingPickler.dumps((prompt, [completion]))), futures[-1]))
        answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return [self._verdict(answer) for answer in answers]

    def check(self, prompt: Prompt) -> None:
        """What the judge itself says of the prompt, asked in this process."""
        if self._checks is not None:
            self._checks(prompt)

    def metrics(self) -> dict[str, float]:
        """Means of what a TRL function or a rubric logged in the workers since the last call."""
        logged, self._logged = self._logged, []
        names = {name for record in logged for name in record}
        by_name = {name: [record[name] for record in logged if name in record] for name in names}
        return {name: sum(values) / len(values) for name, values in by_name.items()}

    def close(self) -> None:
        """Ends the workers, each after the call it is in. Idempotent."""
        self._finalizer()

    def _verdict(self, answer: dict[str, Any]) -> Verdict:
        if "error" in answer:
            raise JudgeError(f"judge '{self.name}': {answer['error']}")
        if "failed" in answer:
            return Verdict.failed(answer["failed"])
        if answer["metrics"]:
            self._logged.append(answer["metrics"])
        if len(answer["verdicts"]) != 1:
            return Verdict.failed(f"returned {len(answer['verdicts'])} verdicts for 1 completion")
        fields = answer["verdicts"][0]
        return Verdict(**{**fields, "status": Status(fields["status"])})


class _Slot:
    """One place in the pool: takes jobs, keeps one worker alive, replaces it when it must be killed."""

    def __init__(self, jobs: "queue.SimpleQueue[_Job | None]", start_message: bytes, timeout_seconds: float) -> None:
        self._jobs, self._start_message, self._timeout_seconds = jobs, start_message, timeout_seconds
        self._worker: _Worker | None = None
        self._is_replacing = False

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            message, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._answer(message))
            except Exception as error:  # goes to the caller; this thread must live on
                future.set_exception(error)
            if self._is_replacing:
                self._replace()
        if self._worker is not None:
            self._worker.kill()

    def _answer(self, message: bytes) -> dict[str, Any]:
        self._worker = self._worker or _Worker(self._start_message)
        try:
            return self._worker.call(message, self._timeout_seconds)
        except (TimeoutError, EOFError) as error:
            ending = self._worker.kill()
            self._worker, self._is_replacing = None, True
            is_late = isinstance(error, TimeoutError)
            return {"failed": f"timed out after {self._timeout_seconds:g} s" if is_late else f"the worker {ending}"}

    def _replace(self) -> None:
        """Starts the next worker before it is needed; if that fails, the next call tries again and reports."""
        self._is_replacing = False
        with contextlib.suppress(JudgeError):
            self._worker = _Worker(self._start_message)


class _Worker:
    """One process. Ready to judge once constructed."""

    def __init__(self, start_message: bytes) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._process = _spawn(theirs.fileno())
        self._start(start_message)

    def _start(self, message: bytes) -> None:
        try:
            self._channel.send(message, START_SECONDS)
            answer = json.loads(self._channel.receive(START_SECONDS))
        except (TimeoutError, EOFError) as error:
            raise JudgeError(f"a worker did not start: {error or 'time-out'}; it {self.kill()}") from None
        if "error" in answer:
            self.kill()
            raise JudgeError(f"the judge does not load in a worker: {answer['error']}")

    def call(self, message: bytes, timeout_seconds: float) -> dict[str, Any]:
        self._channel.send(message, timeout_seconds)
        answer: dict[str, Any] = json.loads(self._channel.receive(timeout_seconds))
        return answer

    def kill(self) -> str:
        """Kills the process and all it started; says how it ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._channel.close()
        code = self._process.wait(KILL_SECONDS)
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


def _spawn(descriptor: int) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(descriptor), str(os.getpid()), json.dumps(sys.path)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a judge prints must not mix with the program's own output
            start_new_session=True,
        )
    except OSError as error:
        raise JudgeError(f"a worker process cannot be started: {error}") from None


def _stop(jobs: "queue.SimpleQueue[_Job | None]", num_workers: int) -> None:
    for _ in range(num_workers):
        jobs.put(None)


def _pickled(judge: Any) -> bytes:
    if getattr(judge, "__module__", None) == "__main__" or type(judge).__module__ == "__main__":
        raise ConfigError(
            f"{judge!r} is defined in the main program, which workers do not run; name it 'file.py:function'"
        )
    try:
        return bytes(ForkingPickler.dumps(judge))
    except Exception as error:  # pickling runs the object's own code
        raise ConfigError(f"{judge!r} cannot be sent to a worker ({error}); name it 'file.py:function'") from None
