"""The inside of a worker process of `ProcessJudge`: loads one judge, answers calls until the parent is gone.

The judge's functions run on the main thread, so code that uses SIGALRM works. The parent's messages are pickled
(records and, where the judge is no name, the judge); answers are JSON, so a worker cannot run anything in its parent.
"""

import asyncio
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

from llamarl.core.errors import JudgeError, LlamaRLError, boundary
from llamarl.core.judge import Judge
from llamarl.judges import calls
from llamarl.judges.adapters.base import FunctionAdapter
from llamarl.judges.process.channel import Channel
from llamarl.judges.resolve import as_judge, load_judge

PARENT_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serves the socket `descriptor` until it closes or process `parent` ends."""
    die_with_parent(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    start = _receive(channel)
    if start is None:
        return
    try:
        with boundary(JudgeError, passing=LlamaRLError):
            judge = _build(ForkingPickler.loads(start))
            judge.load()
    except LlamaRLError as error:  # the parent raises it
        channel.send(_encode(error=str(error)))
        return
    channel.send(_encode(name=judge.name))
    with asyncio.Runner() as runner:
        while (call := _receive(channel)) is not None:
            channel.send(_answer(runner, judge, call))
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left behind would end the next call
        runner.run(calls.aclose(judge))


def _receive(channel: Channel) -> bytes | None:
    """Returns the parent's next message, or None once it has closed its side."""
    try:
        return channel.receive()
    except EOFError:
        return None


def die_with_parent(parent: int) -> None:
    """Ends this process when `parent` ends, even inside code that never returns to Python (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def _build(start: dict[str, Any]) -> Judge:
    import resource  # POSIX only

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (start["max_memory_bytes"], start["max_memory_bytes"]))
    if "spec" in start:
        judge = load_judge(start["spec"], start["name"], settings=start["settings"], is_inline=True)
    else:
        judge = as_judge(ForkingPickler.loads(start["pickled"]), start["name"], is_inline=True)
    if isinstance(judge, FunctionAdapter):  # one that was pickled may have been made for a helper thread
        judge.is_inline = True
    return judge


def _answer(runner: asyncio.Runner, judge: Judge, call: bytes) -> bytes:
    prompt, completions = ForkingPickler.loads(call)
    try:
        with boundary(JudgeError, passing=JudgeError):
            verdicts = runner.run(judge.judge(prompt, completions))
            answer = {"verdicts": [dataclasses.asdict(each) for each in verdicts]}
    except JudgeError as error:
        return _encode(error=str(error))
    try:
        return _encode(**answer, metrics=calls.measure(judge))
    except JudgeError as error:  # costs the metrics only
        return _encode(**answer, metrics={}, unmeasured=str(error))


def _encode(**answer: Any) -> bytes:
    return json.dumps(answer).encode()
