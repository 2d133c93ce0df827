"""The process of an inference server: started, watched, ended with whoever started it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import IO

from llamarl.core.errors import ConfigError, ExecutorLostError

LIFELINE = Path(str(files("llamarl.generation.server"))) / "lifeline.py"
"""The file that a server's python runs: it serves, and ends with its standard input."""
PASSED = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "HF_HOME")
"""Environment variables that a server gets of ours, which hold no secret."""
POLL_SECONDS = 0.25
STOP_SECONDS = 10.0
LOG_LINES = 4
"""Last lines of a server's output that tell why it ended."""


def keep_environment(threads: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a server gets of our environment: no secret of ours, no word to anybody outside.

    Args:
        threads: that it computes with on a CPU; None: as many as it takes.
        given: our environment.
    """
    kept = {name: given[name] for name in PASSED if name in given}
    count = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**kept, **count, "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


class ServerProcess:
    """A server that this process started. It ends with this process, however that ends.

    Args:
        program: its name, for messages.
        python: of the environment that holds it.
        arguments: its module, and what that is given.
        port: that these name.
        environment: of its process.
        file: what python runs.

    Raises:
        ConfigError: there is no such interpreter.
    """

    def __init__(
        self,
        program: str,
        python: Path,
        arguments: Sequence[str],
        port: int,
        environment: Mapping[str, str],
        file: Path = LIFELINE,
    ) -> None:
        if not os.access(python, os.X_OK):
            raise ConfigError(
                f"environment: no interpreter at {python}; give the folder of the virtual environment that holds "
                f"{program}"
            )
        self.program = program
        self.url = f"http://127.0.0.1:{port}"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process writes
        self._process = subprocess.Popen(
            [str(python), str(file), *arguments],
            # Nothing is ever written to it. The server ends when it does: see lifeline.py.
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # a group of its own, which ends as a whole; and Ctrl-C is ours to handle
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_until_ready(self, seconds: float) -> None:
        """Waits for its first answer.

        Raises:
            ExecutorLostError: it ended before, or did not come in time; says what it wrote last.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            if (problem := self.why_ended()) is not None:
                raise ExecutorLostError(f"{self.program}: {problem}")
            if time.monotonic() > deadline:
                raise ExecutorLostError(
                    f"{self.program}: no answer within start_seconds={seconds:g}; last: {self._last_lines()}"
                )
            time.sleep(POLL_SECONDS)

    def why_ended(self) -> str | None:
        """Says with which status it ended, and its last words; None while it runs."""
        if self._log.closed:
            return "it was stopped"
        status = self._process.poll()
        return None if status is None else f"ended with status {status}; last: {self._last_lines()}"

    async def wait_why_ended(self, seconds: float) -> str | None:
        """Says why it ended, after giving it so many seconds to end; None if it still runs then."""
        deadline = time.monotonic() + seconds
        while (problem := self.why_ended()) is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return problem

    def stop(self) -> None:
        """Ends it and all its processes. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # whatever of the group is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _answers(self) -> bool:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{self.url}/health", timeout=5
            ) as r:
                return bool(r.status == 200)
        except OSError:
            return False

    def _last_lines(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        blamed = [line for line in lines if "Error" in line]
        return " | ".join((blamed or lines)[-LOG_LINES:])[-1000:]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
