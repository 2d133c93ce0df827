"""Executors as processes, started and supervised by Monarch. The only module that imports it.

    controller's process                               one process per rank
    handle.call --(Monarch message)------------------> _Host.invoke: async methods on its event loop,
            <--(result or exception, in a reply)------               sync methods on one thread of their own

Monarch tells us of deaths; deadlines are ours (a stopped process is not dead). A child dies with its controller.

A child gets the environment variables that computing needs, and those that the
engine is told of: no secret of this process is in its memory unless somebody named it (`environment`).

Over several hosts, each host's `llamarl worker` runs `serve`, and Monarch's messages go over TCP with mutual TLS
(`identity`); executors talk to the server of their own host over Unix sockets. That a host is lost, the lease says
(`hosts`), before Monarch would.
"""

import asyncio
import atexit
import logging
import multiprocessing
import os
import sys
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.engine.environment import passed_environment
from llamarl.engine.handle import RankedEngine
from llamarl.engine.hosts import HostPool, Lease, free_port
from llamarl.engine.identity import Identity
from llamarl.engine.processes import GoneError, ProcessHandle, kill_here
from llamarl.engine.resident import Reply, Resident
from llamarl.engine.wire import join_address
from llamarl.engine.worker import READY

_KNOBS = {  # Monarch reads them when it is imported; its defaults notice a death after 9 to 60 s
    "HYPERACTOR_MESH_SUPERVISION_POLL_FREQUENCY": "200ms",
    "HYPERACTOR_MESH_GET_ACTOR_STATE_MAX_IDLE": "5s",
    "HYPERACTOR_MESH_GET_PROC_STATE_MAX_IDLE": "5s",
}
os.environ.update({name: value for name, value in _KNOBS.items() if name not in os.environ})

try:
    import monarch.actor
    from monarch._rust_bindings.monarch_hyperactor.config import reload_config_from_env
    from monarch._rust_bindings.monarch_hyperactor.host_mesh import BootstrapCommand
    from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError
except ImportError:
    raise MissingDependencyError.for_extra("torchmonarch", "monarch") from None

BOOTSTRAP_MODULE = "monarch._src.actor.bootstrap_main"
"""Program of a process that Monarch starts, as `default_bootstrap_cmd` names it."""

_log = logging.getLogger(__name__)


class MonarchEngine(RankedEngine["MonarchHandle"]):
    """Executors as processes, of this machine or of several.

    Args:
        environment: variables set in the children.
        passed: names of further variables that children get from this process, where it has them.
        start_timeout_seconds: for processes to come up and executors to set up.
        stop_timeout_seconds: for `teardown`, and again for processes to end; then they are killed.
        hosts: the other machines; None: all executors live on this one.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        passed: Collection[str] = (),
        start_timeout_seconds: float = 600.0,
        stop_timeout_seconds: float = 10.0,
        hosts: HostPool | None = None,
    ) -> None:
        super().__init__()
        self._timeouts = start_timeout_seconds, stop_timeout_seconds
        monarch.actor.unhandled_fault_hook = _note_fault  # the default one ends the controller
        monarch.actor.config.prefix_python_logs_with_actor = False  # it would mark every log record of this process
        self._hosts = hosts
        self._own_address: str | None = None
        """The address by which the hosts reach this process; None before the first use of Monarch."""
        self._opening = asyncio.Lock()
        self._here = {**passed_environment(passed), **(environment or {})}
        named = {name: os.environ[name] for name in passed if name in os.environ}
        self._elsewhere = {**named, **(environment or {})}
        """Variables of children on other hosts, beside those that their own host gives them."""

    async def _build_handle(self, name: str, num_ranks: int) -> "MonarchHandle":
        """Raises `ConfigError`: this Python process has used Monarch before, without hosts or with another secret."""
        await self._open_frontend()
        lease = await self._hosts.find(name) if self._hosts else None
        return MonarchHandle(name, num_ranks, self._place(lease), *self._timeouts)

    def _release(self) -> None:
        if self._hosts:
            self._hosts.close()

    async def _open_frontend(self) -> None:
        """Makes this process reachable for its hosts, before its first use of Monarch."""
        async with self._opening:
            if self._hosts is not None and self._own_address is None:
                address = await self._hosts.own_address()
                Frontend(self._hosts.secret, address).open()
                self._own_address = address

    def _place(self, lease: Lease | None) -> "_Place":
        if lease is None or self._hosts is None:
            command = monarch.actor.default_bootstrap_cmd().with_env(self._here)
            command.inherit_env = False
            return _Place(self._own_address, None, monarch.actor.this_host(), command)
        mesh = monarch.actor.attach_to_workers(ca="trust_all_connections", workers=[lease.engine])  # see `Frontend`
        default = monarch.actor.default_bootstrap_cmd()
        variables = {**self._elsewhere, **self._hosts.environment(lease)}
        command = BootstrapCommand(lease.python, None, ["-m", BOOTSTRAP_MODULE], default.env).with_env(variables)
        return _Place(lease.config.host, lease, mesh, command)


class Frontend:
    """This process as other hosts reach it: an address of its own, with mutual TLS. One a process, as Monarch allows.

    Monarch's calls demand `ca="trust_all_connections"`; what its `tls://` addresses trust is nevertheless the authority
    in `HYPERACTOR_TLS_CA` and nobody else, at both ends, which a test holds it to.

    Args:
        secret: shared with the hosts.
        host: the address by which they reach this process.
    """

    _opened: "Frontend | None" = None
    """The frontend that this process has opened; there is one at most."""

    def __init__(self, secret: str, host: str) -> None:
        self._secret, self._host = secret, host

    def open(self) -> None:
        """Listens, from Monarch's first use on. Idempotent for the same secret and host."""
        opened = Frontend._opened
        if opened is not None and (opened._secret, opened._host) == (self._secret, self._host):
            return
        if opened is None:
            _use_tls(Identity(self._secret, self._host))
            with suppress(RuntimeError):
                monarch.actor.enable_transport(f"tls://{join_address(self._host, free_port(self._host))}")
                Frontend._opened = self
                return
        raise ConfigError(
            "engine='monarch': this Python process has used Monarch before, without hosts or with another secret; "
            "start another process for this run"
        )


def serve(host: str, port: int) -> None:
    """Starts executors for a run on another host, until standard input ends. The program of `worker.MonarchServer`.

    Args:
        host: this host's address, for which the TLS certificate in the environment stands.
        port: 0 takes a free one.
    """
    address = f"tls://{join_address(host, port or free_port(host))}"
    monarch.actor.start_worker_loop_forever(address=address, ca="trust_all_connections")  # see `Frontend`
    print(READY, address, flush=True)
    sys.stdin.read()  # ends with the worker that started this process, even if that was killed
    os._exit(0)


def _use_tls(identity: Identity) -> None:
    """Makes a certificate that of Monarch's connections; its files stay until this process ends."""
    atexit.register(identity.close)
    files = {"CA": identity.authority, "CERT": identity.certificate, "KEY": identity.key}
    os.environ.update({f"HYPERACTOR_TLS_{name}": str(path) for name, path in files.items()})
    reload_config_from_env()


class _Place(NamedTuple):
    """A place for an executor's processes."""

    address: str | None
    """Address of the machine, where other machines matter."""
    lease: Lease | None
    """The host's; None: this machine."""
    mesh: Any
    command: Any
    """How Monarch starts a process there."""


class MonarchHandle(ProcessHandle):
    """The controller's end of executor processes. One dead rank is the death of the executor."""

    def __init__(
        self, name: str, num_ranks: int, place: _Place, start_timeout_seconds: float, stop_timeout_seconds: float
    ) -> None:
        super().__init__(name, num_ranks, start_timeout_seconds, stop_timeout_seconds)
        self._lease, self._address = place.lease, place.address
        self._processes = place.mesh.spawn_procs({"rank": num_ranks}, name=name, bootstrap_command=place.command)
        actors = self._processes.spawn(name, _Host)
        self._actors = [actors.slice(rank=rank) for rank in range(num_ranks)]

    @property
    def is_alive(self) -> bool:
        """True if no rank is known to be dead; a death shows when the rank is called."""
        return super().is_alive and not (self._lease and self._lease.is_lost)

    @property
    def host(self) -> str | None:
        """Address of the machine it lives on, as other machines reach it; None: this one, and there are no others."""
        return self._address

    @property
    def _event(self) -> str | None:
        return f"{self._lease.config.address} {id(self._lease)}" if self._lease and self._lease.is_lost else None

    def _kill_processes(self) -> None:
        if self._lease is not None:
            self._lease.kill(self._pids)  # these numbers name other processes here
        else:
            kill_here(self._pids)

    async def _locate(self, timeout_seconds: float) -> list[int]:
        pids: list[int] = await self._ask_all(timeout_seconds, "start", "locate")
        return pids

    async def _send(self, rank: int, endpoint: str, args: tuple[Any, ...]) -> Reply:
        try:
            reply: Reply = await self._unless_lost(getattr(self._actors[rank], endpoint).call_one(*args))
        except SupervisionError as error:
            raise GoneError(str(error).strip().splitlines()[-1].strip()) from None
        except RuntimeError as error:  # Monarch's own: a method's comes as a reply
            raise GoneError(str(error).strip().splitlines()[0].strip()) from None
        return reply

    def _cancel(self, rank: int, number: int) -> None:
        self._actors[rank].cancel.broadcast(number)

    async def _unless_lost(self, answer: Awaitable[Any]) -> Any:
        """The answer of a rank; `GoneError` as soon as its host is lost."""
        if self._lease is None:
            return await answer
        call = asyncio.ensure_future(_await(answer))
        try:
            await asyncio.wait({call, self._lease.lost}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
        finally:
            call.cancel()
        raise GoneError(f"host {self._lease.config.address} is lost: {self._lease.lost.result()}")

    async def _end_processes(self) -> None:
        if self._lease is not None:
            self._lease.executors.discard(self.name)
            if self._lease.is_lost:  # nobody there to ask; the host ends them by itself (`worker.ORPHAN_SECONDS`)
                return
        try:
            async with asyncio.timeout(self._stop_timeout_seconds):
                await self._processes.stop()
        except (TimeoutError, RuntimeError) as error:
            level = logging.INFO if self._is_torn_down else logging.WARNING
            _log.log(level, "stop of %s: Monarch could not (%r); killing %s", self.name, error, self._pids)
            self._kill_processes()


async def _await(answer: Awaitable[Any]) -> Any:
    return await answer


class _Host(monarch.actor.Actor):  # type: ignore[misc] # Monarch is untyped
    """Monarch's door to a resident. A plain endpoint would run one message at a time."""

    def __init__(self) -> None:
        self._resident = Resident(monarch.actor.current_rank().rank)
        self._is_torn_down = False
        atexit.register(self._leave)  # before any handler of an executor's, and so called after them

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def locate(self) -> Reply:
        return True, os.getpid()

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def build(self, blob: bytes, world_size: int) -> Reply:
        return await self._resident.build(blob, world_size)

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def invoke(self, number: int, method: str, args: tuple[Any, ...]) -> Reply:
        return await self._resident.invoke(number, method, args)

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def cancel(self, number: int) -> None:
        await self._resident.cancel(number)

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def tear_down(self) -> Reply:
        reply = await self._resident.tear_down()
        self._is_torn_down = True
        return reply

    def _leave(self) -> None:
        """Ends a process whose executor is torn down without taking the interpreter apart.

        With torch in it that takes five seconds and more of waiting, for nothing, and on a busy machine more than
        `stop_timeout_seconds`. Of the handlers that are older than this one, it does what matters: children of an
        executor end with it.
        """
        if self._is_torn_down:
            for child in multiprocessing.active_children():
                child.terminate()
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)


def _note_fault(failure: Any) -> None:
    """Called on every death; the calls under way raise `SupervisionError` by themselves."""
    _log.info("%s", failure)
