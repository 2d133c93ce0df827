"""The hosts of a run: which executor lives where, which hosts answer, and what becomes of a host that does not.

Each host runs `llamarl worker` (`worker`). The run holds a lease on each that it uses; a lease is lost when the worker
hangs up or gives no sign of life for `SILENCE_SECONDS`, whatever the engine has noticed by then.
"""

import asyncio
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

import llamarl
from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, ExecutorLostError
from llamarl.core.paths import FileName
from llamarl.engine.identity import Identity
from llamarl.engine.wire import BEAT_SECONDS, Wire, is_loopback, join_address, split_address

SILENCE_SECONDS = 4.5
"""Silence after which a host counts as lost: nine beats, so that a loss is named within 6 seconds."""
_CONNECT_SECONDS = 5.0
_START_SECONDS = 120.0
"""Time for a worker to start its engine server, whose imports take a while on a busy machine."""


class HostConfig(Config):
    """A host that runs `llamarl worker`."""

    address: str
    """`host:port` of the worker, as it prints it."""
    executors: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Names of executors that may live there, with wildcards: `trainer`, `judge`, `reference`, `generator-*`."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        split_address(address, "address")
        return address

    @property
    def host(self) -> str:
        """The address without the port."""
        return split_address(self.address, "address")[0]


class HostsConfig(Config):
    """The hosts of a run. Without any, all executors live on this machine."""

    hosts: tuple[HostConfig, ...] = ()
    """Hosts by address. A plain text is an address."""
    hosts_folder: FileName | None = None
    """Folder, shared by all hosts, into which each worker writes its address (`llamarl worker --hosts-folder`)."""
    local: tuple[str, ...] = ()
    """Names of executors that live on this machine all the same, with wildcards: `["trainer", "judge"]`."""
    address: str | None = None
    """Address by which the hosts reach this program; None: that of the interface that leads to the first host."""
    secret_env: str = Field(default="LLAMARL_SECRET", pattern=r"^[A-Za-z_]\w*$")
    """Environment variable that holds the secret which this program and its workers share."""
    host_seconds: float = Field(default=300.0, gt=0)
    """Longest wait for a host to come, or to come back, when none is left for an executor."""

    @model_validator(mode="before")
    @classmethod
    def _plain_addresses(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("hosts"), (list, tuple)):
            tables = [{"address": host} if isinstance(host, str) else host for host in values["hosts"]]
            return {**values, "hosts": tables}
        return values

    @model_validator(mode="after")
    def _check_hosts(self) -> Self:
        addresses = [host.address for host in self.hosts]
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"hosts: the addresses {addresses} repeat; name each host once")
        named = [host.host for host in self.hosts] + ([self.address] if self.address else [])
        near = [address for address in named if is_loopback(address)]
        if near and len(near) < len(named):
            raise ValueError(
                f"hosts: {near[0]} is a loopback address, which only its own machine reaches; state "
                "the address by which the others reach it"
            )
        return self

    @property
    def has_hosts(self) -> bool:
        """True if executors live on other machines than this one."""
        return bool(self.hosts) or self.hosts_folder is not None

    def is_local(self, executor: str) -> bool:
        """True if the executor of that name lives on this machine."""
        return not self.has_hosts or _matches(executor, self.local)

    def check_all_placed(self, executors: Sequence[str]) -> None:
        """Raises `ConfigError` if no host may hold one of the executors. What a folder will hold, nobody knows yet."""
        if self.hosts_folder is not None:
            return
        for name in executors:
            if not self.is_local(name) and not any(_matches(name, host.executors) for host in self.hosts):
                raise ConfigError(
                    f"placement.hosts: no host takes the executor {name!r}; add it to `executors` of one, or to "
                    "placement.local"
                )


@dataclass(eq=False)
class Lease:
    """A host that works for this run."""

    config: HostConfig
    engine: str
    """Address of its engine server."""
    python: str
    """Its Python interpreter."""
    cores: int
    wire: Wire
    lost: "asyncio.Future[str]"
    """Done once the host is lost; says why."""
    executors: set[str]
    """Names of those that live there, or are about to."""

    @property
    def is_lost(self) -> bool:
        """True once the host no longer works for this run."""
        return self.lost.done()

    def kill(self, pids: Sequence[int]) -> None:
        """Asks the host to end processes at once."""
        self.wire.post({"kill": list(pids)})


class HostPool:
    """Leases on the hosts of a run.

    Args:
        config: which hosts there are.
        secret: what they and this program share.
        executors: names of all that compute; those of one host share its cores.
        threads: computing threads of each of them; None: an equal share of its host's cores.
        paths: files and directories that a host must have, by name of the executor it holds, with wildcards.
        silence_seconds: without a sign of life of a host, until it counts as lost.
        tell: is told of hosts that come and go.
    """

    def __init__(
        self,
        config: HostsConfig,
        secret: str,
        *,
        executors: Sequence[str] = (),
        threads: int | None = None,
        paths: Mapping[str, Sequence[str]] = MappingProxyType({}),
        silence_seconds: float = SILENCE_SECONDS,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._config, self._secret, self._tell = config, secret, tell
        self._silence_seconds = silence_seconds
        self._executors, self._threads, self._paths = executors, threads, paths
        self._run = uuid.uuid4().hex[:12]
        self._leases: dict[str, Lease] = {}
        self._executors_on: dict[str, set[str]] = {}
        self._losses: dict[str, int] = {}
        """How often each host was lost; the steadiest is asked first."""
        self._silent: set[str] = set()
        """Hosts that did not answer when they were last asked."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._context: ssl.SSLContext | None = None

    async def own_address(self) -> str:
        """The address by which the hosts reach this program; waits for one of them to write its own, if need be.

        Raises:
            ExecutorLostError: no host has come in time.
        """
        if self._config.address is not None:
            return self._config.address
        deadline = asyncio.get_running_loop().time() + self._config.host_seconds
        while not (hosts := self._all_hosts()):
            if asyncio.get_running_loop().time() >= deadline:
                raise ExecutorLostError(f"no worker has written its address into {self._config.hosts_folder}")
            await asyncio.sleep(BEAT_SECONDS)
        return address_towards(*split_address(hosts[0].address, "hosts"))

    @property
    def secret(self) -> str:
        """What hosts and this program share."""
        return self._secret

    async def find(self, executor: str) -> Lease | None:
        """A host for the executor, the least busy one that answers; None: this machine.

        Waits for a host to come (back) if none answers.

        Raises:
            ConfigError: all hosts refuse: they know another secret, or lack the run's files.
            ExecutorLostError: no host in time; says of each what is wrong with it.
        """
        if self._config.is_local(executor):
            return None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.host_seconds
        while True:
            problems: dict[str, OSError] = {}
            for host in self._rank(executor):
                # Counted before the host answers: executors that are placed at the same time spread.
                self._residents(host).add(executor)
                try:
                    return await self._lease(host)
                except OSError as error:
                    self._residents(host).discard(executor)
                    problems[host.address] = error
                    self._complain(host, error)
            text = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
            if problems and all(isinstance(problem, _Refusal) for problem in problems.values()):
                raise ConfigError(f"executor {executor!r}: no host takes it: {text}")
            if loop.time() >= deadline:
                text = text or f"no worker has written its address into {self._config.hosts_folder}"
                raise ExecutorLostError(
                    f"executor {executor!r}: no host for it within {self._config.host_seconds:g} s: {text}"
                )
            await asyncio.sleep(BEAT_SECONDS)

    def environment(self, lease: Lease) -> dict[str, str]:
        """The variables that give each executor of a host its share of the cores."""
        elsewhere = [name for name in self._executors if not self._config.is_local(name)]
        num_sharing = -(-len(elsewhere) // max(1, len(self._all_hosts())))
        threads = self._threads or max(1, lease.cores // max(1, num_sharing))
        return {"OMP_NUM_THREADS": str(threads)}

    def close(self) -> None:
        """Gives all hosts back; their executors end. Idempotent."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.wire.end()
            if not lease.lost.done():
                lease.lost.set_result("the run is over")

    def _complain(self, host: HostConfig, error: OSError) -> None:
        """Tells of a host that does not answer: once, until it answers."""
        if host.address not in self._silent:
            self._silent.add(host.address)
            self._tell(f"host {host.address} does not work for this run yet: {error}")

    def _rank(self, executor: str) -> list[HostConfig]:
        """The hosts that may hold the executor, best first."""

        def badness(host: HostConfig) -> tuple[int, int]:
            return self._losses.get(host.address, 0), len(self._residents(host))

        able = [host for host in self._all_hosts() if _matches(executor, host.executors)]
        return sorted(able, key=badness)

    def _residents(self, host: HostConfig) -> set[str]:
        return self._executors_on.setdefault(host.address, set())

    def _all_hosts(self) -> list[HostConfig]:
        folder = self._config.hosts_folder
        found = {} if folder is None else read_hosts(Path(folder))
        return [*self._config.hosts, *found.values()]

    async def _lease(self, host: HostConfig) -> Lease:
        """The lease on a host, begun where there is none. Raises `OSError`: why the host does not answer."""
        # One at a time: a second greeting by the same run would end the lease that the first began.
        async with self._locks.setdefault(host.address, asyncio.Lock()):
            lease = self._leases.get(host.address)
            if lease is None or lease.is_lost:
                lease = self._leases[host.address] = await self._begin(host)
            return lease

    async def _begin(self, host: HostConfig) -> Lease:
        wire, answer = await asyncio.to_thread(self._greet, host)
        self._silent.discard(host.address)
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()
        residents = self._residents(host)
        lease = Lease(host, answer["engine"], answer["python"], answer["cores"], wire, lost, residents)

        def end(reason: str) -> None:
            if not lease.lost.done():
                residents.clear()
                self._losses[host.address] = self._losses.get(host.address, 0) + 1
                self._tell(f"host {host.address} is lost: {reason}")
                lease.lost.set_result(reason)

        # A thread, so that signs of life go out while the event loop is busy.
        threading.Thread(
            target=_watch, args=(lease, self._silence_seconds, loop, end), name=f"host {host.address}", daemon=True
        ).start()
        self._tell(f"host {host.address} works for this run: {lease.cores} cores")
        return lease

    def _greet(self, host: HostConfig) -> tuple[Wire, dict[str, Any]]:
        """Asks a worker for its host. Raises `OSError`: why it is not given."""
        name, port = split_address(host.address, "address")
        paths = [
            path
            for executor, needed in self._paths.items()
            if any(fnmatchcase(executor, each) or fnmatchcase(each, executor) for each in host.executors)
            for path in needed
        ]
        with ExitStack() as stack:  # hangs up, unless all goes well
            plain = stack.enter_context(socket.create_connection((name, port), timeout=_CONNECT_SECONDS))
            try:
                trusted = stack.enter_context(self._client().wrap_socket(plain, server_hostname=name))
                wire = Wire(trusted)
                wire.send({"run": self._run, "version": llamarl.__version__, "paths": paths}, _CONNECT_SECONDS)
                answer = wire.receive(_START_SECONDS)
            except ssl.SSLError as error:
                raise self._explain(error) from None
            if "error" in answer:
                raise ConnectionError(answer["error"])
            if missing := answer["missing"]:
                raise _Refusal(
                    f"it has no {missing[0]}; put that on a file system that all hosts share, or place the executor on "
                    "this machine (placement.local)"
                )
            stack.pop_all()
        return wire, answer

    def _explain(self, error: ssl.SSLError) -> OSError:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else str(error.reason)
        if "CERT" not in f"{error.reason}" and "ALERT" not in f"{error.reason}":
            return _Refusal(f"no llamarl worker listens there ({reason})")
        remedy = f"give its worker the same value of {self._config.secret_env}"
        return _Refusal(f"it does not know this run's secret ({reason}); {remedy}")

    def _client(self) -> ssl.SSLContext:
        if self._context is None:
            with Identity(self._secret, "localhost") as identity:  # nobody connects to it: any name will do
                self._context = identity.client_context()
        return self._context


class _Refusal(ConnectionError):
    """A host answers, and waiting will not make it work for this run."""


def _watch(lease: Lease, silence_seconds: float, loop: asyncio.AbstractEventLoop, end: Callable[[str], None]) -> None:
    """Exchanges signs of life with a host until it is lost or given back."""
    try:
        for _ in lease.wire.watch(silence_seconds):
            pass  # a host says nothing but that it lives; its silence is the error below
    except (OSError, ValueError) as error:
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(end, str(error))
    finally:
        lease.wire.close()


def write_host(folder: Path, name: str, host: HostConfig) -> Path:
    """Writes a worker's address where runs look for it; returns the file, which the worker removes at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    path, fresh = folder / f"{name}.json", folder / f".{name}.{uuid.uuid4().hex[:8]}"
    fresh.write_text(host.model_dump_json())
    fresh.rename(path)  # a run never reads half a file
    return path


def read_hosts(folder: Path) -> dict[str, HostConfig]:
    """The hosts whose workers have written their addresses, by name. Raises `ConfigError` for other files."""
    hosts = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(FileNotFoundError):  # a worker that ends meanwhile removes its file
            try:
                values = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(f"{path}: not written by llamarl worker ({error}); remove it") from None
            hosts[path.stem] = HostConfig.parse(values, source=str(path))
    return hosts


def address_towards(host: str, port: int) -> str:
    """This machine's address as seen by another one. Sends nothing."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def free_port(host: str) -> int:
    """A port of `host` that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _matches(executor: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(executor, pattern) for pattern in patterns)


__all__ = ["HostConfig", "HostPool", "HostsConfig", "Lease", "address_towards", "free_port", "join_address"]
