"""A host lends itself: `llamarl worker` lets one run at a time start executors here, and cleans up after it.

    run's program                          this host
    connects, mutual TLS ────────────────▶ refuses who does not know the secret, before it reads a byte
    {"run": ..., "version": ...} ────────▶ starts a fresh engine server, a process of its own
           ◀──────────────────────────────{"engine": address, "cores": ..., ...}
    signs of life ◀──────────────────────▶ signs of life
    hangs up, dies, or falls silent        kills the engine server, and with it every executor of the run

Nothing of a run is left when it is over, whatever ended it, and the next one finds the host as it was.
"""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import llamarl
from llamarl.core.errors import ConfigError
from llamarl.core.machine import usable_cores
from llamarl.engine.environment import passed_environment
from llamarl.engine.identity import Identity
from llamarl.engine.wire import Wire, is_loopback, join_address

GREETING_SECONDS = 10.0
"""Time for a client to show its certificate and say what it wants."""
ORPHAN_SECONDS = 30.0
"""Silence of a run's program after which its executors are killed. Longer than a run waits for a silent host
(`hosts.SILENCE_SECONDS`): a program that hangs for a moment must not cost all its executors."""


class EngineServer(Protocol):
    """A process of this host that starts executors for a run."""

    address: str
    """The address by which the run's engine reaches it."""

    def kill(self, pids: Sequence[int]) -> None:
        """Ends executors at once, and no other process."""

    def wait(self) -> None:
        """Returns when it has ended, for whatever reason."""

    def stop(self) -> None:
        """Ends it with all its executors. Idempotent."""


class Worker:
    """The listener. It is bound when this is built, and serves in `serve`.

    Args:
        host: the address or name by which the run's program reaches this host, and the only one that is listened on.
        port: 0 takes a free one.
        secret: the run's.
        start: starts an engine server, given this host's address, the port that it is to take and the identity.
        engine_port: for the engine server; 0 takes a free one for each run.
        tell: is told who comes and goes.
        is_across_hosts: refuses a loopback address, which no other host could reach.

    Raises:
        ConfigError: not an address of this machine, one that stands for all addresses, or the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        secret: str,
        *,
        start: "Callable[[str, int, Identity], EngineServer] | None" = None,
        engine_port: int = 0,
        tell: Callable[[str], None] = print,
        is_across_hosts: bool = False,
    ) -> None:
        if host in ("", "0.0.0.0", "::", "*"):
            raise ConfigError(f"host={host!r}: state one address of this machine, by which others reach it")
        if is_across_hosts and is_loopback(host):
            raise ConfigError(f"host={host!r}: only this machine reaches it; state an address that other hosts reach")
        self._host, self._engine_port, self._tell = host, engine_port, tell
        self._start = start or MonarchServer
        self._identity = Identity(secret, host)
        self._context = self._identity.server_context()
        self._lease: _Lease | None = None
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
        except OSError as error:
            self._identity.close()
            raise ConfigError(f"cannot listen on {join_address(host, port)} ({error.strerror or error})") from None
        self.address = join_address(host, self._listener.getsockname()[1])
        """`host:port` for the recipe's placement."""

    def serve(self) -> None:
        """Lends the host to one run after the other, until `close`."""
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:  # `close` was called
                return
            # A thread each: a stranger who says nothing must not keep others waiting.
            threading.Thread(target=self._greet, args=(connection, join_address(*peer[:2])), daemon=True).start()

    def close(self) -> None:
        """Stops listening and ends what runs here. Idempotent."""
        with suppress(OSError):  # wakes `accept`; not connected, which is an error that does not matter
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._lease is not None:
            self._lease.end()
        self._identity.close()

    def _greet(self, connection: socket.socket, peer: str) -> None:
        try:
            with connection:
                connection.settimeout(GREETING_SECONDS)
                with self._context.wrap_socket(connection, server_side=True) as trusted:
                    wire = Wire(trusted)
                    self._lend(trusted, wire, wire.receive(GREETING_SECONDS), peer)
        except (OSError, ValueError) as error:  # a stranger, a broken line, or not our protocol
            self._tell(f"refused {peer}: {error}")

    def _lend(self, connection: ssl.SSLSocket, wire: Wire, request: Mapping[str, Any], peer: str) -> None:
        """Serves one run for as long as it lives."""
        run = str(request.get("run"))
        if (version := request.get("version")) != llamarl.__version__:
            problem = f"it has llamarl {llamarl.__version__} and the run {version}; install the same on both"
            return wire.send({"error": problem}, GREETING_SECONDS)
        lease = _Lease(run, connection)
        if not self._take(lease):
            return wire.send({"error": "it works for another run"}, GREETING_SECONDS)
        try:
            lease.server = server = self._start(self._host, self._engine_port, self._identity)
            # Without its engine server a host is of no use to a run, which learns it by the end of the lease.
            threading.Thread(target=lease.end_with, args=(server,), daemon=True).start()
            self._tell(f"{peer} works here for run {run}")
            answer = {
                "engine": server.address,
                "python": sys.executable,
                "cores": usable_cores(),
                "missing": [path for path in request.get("paths", ()) if not Path(path).exists()],
            }
            wire.send(answer, GREETING_SECONDS)
            for message in wire.watch(ORPHAN_SECONDS):
                server.kill([int(pid) for pid in message.get("kill", ())])
        except OSError as error:
            self._tell(f"run {run} is over here: {error}")
        finally:
            lease.end()

    def _take(self, lease: "_Lease") -> bool:
        """Makes it the lease of this host, if no other run has the host.

        A run that lost the connection and comes again gets the host anew, its earlier executors gone.
        """
        with self._lock:
            earlier = self._lease
            if earlier is not None and not earlier.is_over and earlier.run != lease.run:
                return False
            self._lease = lease
        if earlier is not None:
            earlier.end()
        return True


class _Lease:
    """The time for which a run has this host."""

    def __init__(self, run: str, connection: socket.socket) -> None:
        self.run = run
        self.server: EngineServer | None = None
        self.is_over = False
        self._connection = connection

    def end_with(self, server: EngineServer) -> None:
        """Waits for the engine server to end, and ends too."""
        server.wait()
        self.end()

    def end(self) -> None:
        """Kills what runs and hangs up. Idempotent; any thread may call it."""
        if self.server is not None:
            self.server.stop()
        with suppress(OSError):  # it may be closed; the thread that reads from it wakes and ends
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        self.is_over = True


class MonarchServer:
    """Monarch's agent of this host, as a process. Its executors die with it.

    Raises:
        ConnectionError: it did not come up.
    """

    def __init__(self, host: str, port: int, identity: Identity) -> None:
        environment = {
            **passed_environment(),
            "HYPERACTOR_TLS_CA": str(identity.authority),
            "HYPERACTOR_TLS_CERT": str(identity.certificate),
            "HYPERACTOR_TLS_KEY": str(identity.key),
        }
        program = "import sys; from llamarl.engine.monarch import serve; serve(sys.argv[1], int(sys.argv[2]))"
        # Its standard input is a pipe from here: that ends when this process does, however it ends.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._process.stdout is not None
        lines = iter(self._process.stdout.readline, "")
        self.address = next((line.split()[1] for line in lines if line.startswith(READY)), "")
        if not self.address:
            raise ConnectionError(f"the engine did not start: exit status {self._process.wait()}")
        # Whatever it prints goes where this process prints: an unread pipe would fill, and stop it.
        threading.Thread(target=sys.stdout.writelines, args=(lines,), daemon=True).start()

    def kill(self, pids: Sequence[int]) -> None:
        """SIGKILL to those that are descendants of this server."""
        for pid in pids:
            if self._process.pid in _ancestors(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def wait(self) -> None:
        """Returns when the process has ended."""
        self._process.wait()

    def stop(self) -> None:
        """SIGKILL: the run is over, and there is nobody left to be orderly for."""
        self._process.kill()
        self._process.wait()


READY = "llamarl-engine-ready"
"""First word of the line by which an engine server says that it serves, and where."""


def _ancestors(pid: int) -> Iterator[int]:
    """Process ids of parent, grandparent and so on."""
    while pid > 1:
        try:
            # The second field, a program's name in brackets, may hold anything.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return
        yield pid
