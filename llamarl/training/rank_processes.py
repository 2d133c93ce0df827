"""Ranks as processes of this machine, which one process starts, listens to and ends.

    run_ranks ---- work, pickled ---> each rank: joins the others, works
               <--- steps, then its result or its error

A rank that dies, or that the others wait for in vain, is named; the others are ended then. What goes through the pipes
is this program's own and nobody else's, so it may be pickled.
"""

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from llamarl.core.errors import ConfigError, ExecutorLostError, LostTouchError
from llamarl.training.config import FitConfig
from llamarl.training.ranks import LOOPBACK, Address, Meeting, Ranks, is_broken_exchange

Tell = Callable[..., None]
"""Called with whatever the first rank tells while it works."""

Work = Callable[[Ranks, Tell | None], Any]
"""What each rank does: given the ranks and, on the first, a way to tell how far it is."""

_LAST_WORDS_SECONDS = 30.0
"""Wait for what other ranks say where one lost touch: all that are well lose it at the same time, and say so."""

_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from llamarl.training.rank_processes import main
main()
"""


def run_ranks(work: Work, config: FitConfig, on_tell: Tell | None = None) -> Any:
    """Does `work` on `config.num_ranks` processes of this machine; returns what it returns on the first.

    Args:
        work: must pickle, so that it holds nothing that the main program's own file defines.
        config: how many ranks, on which device, and how long they wait for each other.
        on_tell: is called here with what the first rank tells.

    Raises:
        ConfigError: `work` does not pickle.
        ExecutorLostError: a rank died or fell silent; names it.
        Exception: what `work` raised.
    """
    message = _pickle(work)
    meeting = Meeting(LOOPBACK, config.num_ranks, config.exchange_seconds)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_Process(rank)) for rank in range(config.num_ranks)]
        for process in processes:
            process.start(message, config, meeting.address)
        return _listen(processes, on_tell)


def _listen(processes: "list[_Process]", on_tell: Tell | None) -> Any:
    """Hears the ranks until all are done; raises the first error that is no other's consequence."""
    results: dict[int, Any] = {}
    lost: dict[int, LostTouchError] = {}
    until: float | None = None
    while len(results) + len(lost) < len(processes):
        speaking = {p.pipe: p for p in processes if p.rank not in results and p.rank not in lost}
        left = None if until is None else max(until - time.monotonic(), 0.0)
        ready: Any = wait(list(speaking), left)
        if not ready:
            break
        for pipe in ready:
            process = speaking[pipe]
            try:
                kind, value = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise ExecutorLostError(f"rank {process.rank} of {len(processes)} {process.end()}") from None
            if kind == "told" and on_tell is not None:
                on_tell(*value)
            elif kind == "done":
                results[process.rank] = value
            elif kind == "failed" and isinstance(value, LostTouchError):
                lost[process.rank] = value
                until = until or time.monotonic() + _LAST_WORDS_SECONDS
            elif kind == "failed":
                raise value
    if lost:
        raise _name_the_silent(len(processes), lost, set(results))
    return results[0]


def _name_the_silent(num_ranks: int, lost: dict[int, LostTouchError], done: set[int]) -> ExecutorLostError:
    told = next(iter(lost.values()))
    silent = sorted(set(range(num_ranks)) - lost.keys() - done)
    if not silent:
        return told
    return ExecutorLostError(f"rank {', '.join(map(str, silent))} of {num_ranks} no longer answers ({told})")


def _pickle(work: Work) -> bytes:
    try:
        return pickle.dumps(work)
    except Exception as error:  # pickling runs the values' own code
        raise _not_portable(error) from error


def _not_portable(error: Exception) -> ConfigError:
    return ConfigError(
        f"ranks: what is trained cannot be sent to other processes ({error}); define it in a file that can be "
        "imported, or train on one rank"
    )


class _Layout(NamedTuple):
    fsdp: int
    tp: int
    device: str
    seconds: float
    """Longest wait for another rank."""


class _Process:
    """One rank's process, and the end of its pipe that is here."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.pipe, self._theirs = multiprocessing.Pipe()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, message: bytes, config: FitConfig, address: Address) -> None:
        """Starts it and sends it its work."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(self._theirs.fileno()), json.dumps(sys.path)],
            pass_fds=[self._theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print must not mix with the program's own output
        )
        self._theirs.close()
        with contextlib.suppress(BrokenPipeError):  # its death shows when it is listened to
            layout = _Layout(config.fsdp, config.tp, config.device, config.exchange_seconds)
            self.pipe.send((self.rank, layout, address))
            self.pipe.send_bytes(message)

    def end(self) -> str:
        """Ends the process; says how it ended."""
        self.pipe.close()
        if self._process is None:
            return "was never started"
        try:
            code = self._process.wait(0.5)  # who is done or dead has nothing more to do; the pipe's end ends others
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


def main() -> None:
    """The inside of a rank's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides what an interrupt means
    pipe = Connection(int(sys.argv[1]))
    rank, layout, address = pipe.recv()
    message = pipe.recv_bytes()
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    try:
        answer = ("done", _work(pipe, message, rank, layout, address))
    except BaseException as error:
        answer = ("failed", _portable(error))
    pipe.send(answer)


def _work(pipe: Connection, message: bytes, rank: int, layout: "_Layout", address: Address) -> Any:
    import torch

    from llamarl.models.device import resolve_device

    try:
        work: Work = pickle.loads(message)
    except (AttributeError, ImportError) as error:  # of the main program's own file, which is not run here
        raise _not_portable(error) from error
    device = torch.device(resolve_device(layout.device)).type
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:  # the ranks share the machine's cores
        torch.set_num_threads(max(1, torch.get_num_threads() // (layout.fsdp * layout.tp)))
    tell = None if rank else (lambda *values: pipe.send(("told", values)))
    try:
        ranks = Ranks.join(layout.fsdp, layout.tp, rank, address, device, layout.seconds)
        result = work(ranks, tell)
        ranks.close()
        return result if ranks.is_first else None
    except RuntimeError as error:
        if not is_broken_exchange(error):
            raise
        reason = str(error).strip().splitlines()[0].split(". ")[0]  # advice to programmers follows
        raise LostTouchError(f"rank {rank} lost touch with the others: {reason}") from error


def _end_with(pipe: Connection) -> None:
    """Ends this process with the one that started it, which says nothing more until it closes the pipe."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error itself, or its text where it does not survive pickling."""
    error.add_note(f"in process {os.getpid()}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception as reason:  # pickling runs the error's own code
        return RuntimeError(f"{type(error).__name__}: {error} (not picklable: {reason})")
