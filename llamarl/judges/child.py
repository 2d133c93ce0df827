"""What runs inside a worker process of `ProcessJudge`: load one judge, answer calls until the parent is gone.

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

from llamarl.core.errors import LlamaRLError, describe
from llamarl.core.protocols import Judge
from llamarl.judges.channel import Channel
from llamarl.judges.function import FunctionJudge
from llamarl.judges.resolve import as_judge, load_judge
from llamarl.judges.trl import TRLJudge
from llamarl.judges.verifiers import VerifiersJudge

PARENT_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serves the socket `descriptor` until it closes or process `parent` ends."""
    die_with_parent(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        judge = _build(ForkingPickler.loads(channel.receive()))
    except EOFError:
        return
    except (Exception, SystemExit) as error:  # reported to the parent, which raises it
        channel.send(_encoded(error=describe(error) if not isinstance(error, LlamaRLError) else str(error)))
        return
    channel.send(_encoded(name=judge.name))
    with asyncio.Runner() as runner:
        while True:
            try:
                prompt, completions = ForkingPickler.loads(channel.receive())
            except EOFError:
                return
            channel.send(_answer(runner, judge, prompt, completions))
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left behind would end the next call


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
    if isinstance(judge, FunctionJudge | TRLJudge | VerifiersJudge):
        judge.is_inline = True
    if hasattr(judge, "load"):
        judge.load()
    return judge


def _answer(runner: asyncio.Runner, judge: Judge, prompt: Any, completions: Any) -> bytes:
    try:
        verdicts = runner.run(judge.judge(prompt, completions))
        metrics = judge.metrics() if isinstance(judge, TRLJudge | VerifiersJudge) else {}
        return _encoded(verdicts=[dataclasses.asdict(verdict) for verdict in verdicts], metrics=metrics)
    except (Exception, SystemExit) as error:  # the border to the judge's code
        return _encoded(error=describe(error))


def _encoded(**answer: Any) -> bytes:
    return json.dumps(answer).encode()
