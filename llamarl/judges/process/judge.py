"""Judges in worker processes that are killed when they overrun.

    judge = ProcessJudge("rewards.py:accuracy", num_workers=4, timeout_seconds=5)

For functions that may hang, crash or use signals: Python cannot end a thread, but it can end a process. Each
completion is one call; at its deadline the worker and everything it started get SIGKILL, the verdict is failed, and a
new worker takes the place. A crash fails the one call that it happened in. This is no sandbox: the function has the
user's rights. `info` and `check` are those of a copy of the judge in this process; `load`, `metrics` and `close` reach
the judges in the workers.

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
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from llamarl.core.errors import ConfigError, JudgeError, boundary
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges.calls import check_declaration
from llamarl.judges.process.channel import Channel
from llamarl.judges.resolve import as_judge, is_given, load_judge

START_SECONDS = 60.0
"""A worker must have imported its judge within this time."""
CLOSE_SECONDS = 5.0
"""A worker that is told to end may take so long to close its judge; then it gets SIGKILL."""
KILL_SECONDS = 10.0
"""A process that got SIGKILL must be gone within this time."""

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from llamarl.judges.process.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class _Job:
    """A task of a slot: to judge one completion; or, without a message, to have its worker ready."""

    future: "Future[dict[str, Any]]"
    message: bytes | None = None
    barrier: threading.Barrier | None = None
    """Barrier at which a slot waits afterwards, so that of several equal jobs each slot takes one."""


class ProcessJudge(Judge):
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
        check_declaration(loaded)
        self.name = loaded.name
        self.info = replace(loaded.info, has_deadline=True)  # whatever the judge does, each call ends in time
        self._copy, self._is_copy_borrowed = loaded, is_given(judge, loaded)
        self.timeout_seconds, self._num_workers = timeout_seconds, num_workers
        start = {"spec": judge, "settings": settings} if isinstance(judge, str) else {"pickled": _pickle(judge)}
        message = bytes(ForkingPickler.dumps({**start, "name": name, "max_memory_bytes": max_memory_bytes}))
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._load_lock = threading.Lock()
        self._measured: list[dict[str, float]] = []
        self._unmeasured = ""
        """Problem with the metrics in a worker since the last call of `metrics`."""
        for number in range(num_workers):
            slot = _Slot(self._jobs, message, timeout_seconds)
            threading.Thread(target=slot.run, name=f"judge-{self.name}-{number}", daemon=True).start()
        # A judge that is forgotten ends its threads, too: they hold the queue and not the judge.
        self._finalizer = weakref.finalize(self, _stop, self._jobs, num_workers)

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion, judged one by one.

        Raises:
            JudgeError: the worker's judge cannot start or raised it, or this judge is closed.
        """
        self._refuse_if_closed()
        jobs = [_Job(Future(), bytes(ForkingPickler.dumps((prompt, [completion])))) for completion in completions]
        for job in jobs:
            self._jobs.put(job)
        answers = await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        return [self._read(answer) for answer in answers]

    def check(self, prompt: Prompt) -> None:
        """Asks the copy of the judge in this process."""
        self._copy.check(prompt)

    def load(self) -> None:
        """Starts all workers and loads the judge in each. Raises `JudgeError` where that fails."""
        self._refuse_if_closed()
        barrier = threading.Barrier(self._num_workers)
        jobs = [_Job(Future(), barrier=barrier) for _ in range(self._num_workers)]
        with self._load_lock:  # two calls at once, mixed in the queue, would leave slots at two barriers for ever
            for job in jobs:
                self._jobs.put(job)
        for job in jobs:  # without a deadline of its own: a slot gives up a worker after `START_SECONDS`
            job.future.result()

    def metrics(self) -> dict[str, float]:
        """Returns what the judges in the workers measured since the last call: sums of `info.counts`, else means.

        Raises:
            JudgeError: they could not be measured.
        """
        problem, self._unmeasured = self._unmeasured, ""
        if problem:
            raise JudgeError(problem)
        measured, self._measured = self._measured, []
        names = {name for record in measured for name in record}
        by_name = {name: [record[name] for record in measured if name in record] for name in names}
        return {
            name: sum(values) / (1 if name in self.info.counts else len(values)) for name, values in by_name.items()
        }

    def close(self) -> None:
        """Ends the workers, each after the call it is in and after closing its judge. Idempotent."""
        self._finalizer()
        if not self._is_copy_borrowed:
            self._copy.close()

    def _refuse_if_closed(self) -> None:
        if not self._finalizer.alive:
            raise JudgeError(f"judge '{self.name}' is closed")

    def _read(self, answer: dict[str, Any]) -> Verdict:
        if "error" in answer:
            raise JudgeError(f"judge '{self.name}': {answer['error']}")
        if "failed" in answer:
            return Verdict.failed(answer["failed"])
        self._unmeasured = answer.get("unmeasured", self._unmeasured)
        if answer["metrics"]:
            self._measured.append(answer["metrics"])
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
            if not job.future.set_running_or_notify_cancel():  # its caller has given up
                continue
            try:
                job.future.set_result(self._answer(job.message))
            except Exception as error:  # goes to the caller; this thread must live on
                job.future.set_exception(error)
            if job.barrier is not None:
                job.barrier.wait()  # until the others have theirs, each of which ends by itself
            if self._is_replacing:
                self._replace()
        if self._worker is not None:
            self._worker.end()

    def _answer(self, message: bytes | None) -> dict[str, Any]:
        # Here, on the slot's own thread: Linux kills a worker with the thread that started it (`PR_SET_PDEATHSIG`).
        self._worker = self._worker or _Worker(self._start_message)
        if message is None:
            return {}
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

    def end(self) -> None:
        """Lets the worker close its judge, then ends it and all it started."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a judge that hangs while it closes is killed
            self._process.wait(CLOSE_SECONDS)
        self.kill()

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
            start_new_session=True,  # its own process group, so that what it starts can be killed with it
        )
    except OSError as error:
        raise JudgeError(f"a worker process cannot be started: {error}") from None


def _stop(jobs: "queue.SimpleQueue[_Job | None]", num_workers: int) -> None:
    for _ in range(num_workers):
        jobs.put(None)


def _pickle(target: Any) -> bytes:
    if "__main__" in (getattr(target, "__module__", None), type(target).__module__):
        raise ConfigError(
            f"{target!r} is defined in the main program, which workers do not run; name it 'file.py:function'"
        )
    with boundary(
        lambda problem: ConfigError(f"{target!r} cannot be sent to a worker ({problem}); name it 'file.py:function'")
    ):
        return bytes(ForkingPickler.dumps(target))
