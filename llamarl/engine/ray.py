"""Executors as Ray actors, each a process. The only module that imports Ray.

`RAY_ADDRESS` names a cluster that runs already. Without it Ray is started for this program, listens on the loopback
interface only, and lets in who shows a token that is drawn at random each time.
"""

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.engine.environment import PASSED, PASSED_PREFIXES, passed_environment
from llamarl.engine.handle import RankedEngine
from llamarl.engine.processes import GoneError, ProcessHandle, kill_here
from llamarl.engine.resident import Reply, Resident

if "RAY_ADDRESS" not in os.environ:
    # Read when Ray is imported. The first, by its name for other systems, keeps Ray off all interfaces but the loopback
    # one; the token is our own because Ray's lies in the home directory, where others may be able to read it.
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise MissingDependencyError.for_extra("ray", "ray") from None

_log = logging.getLogger(__name__)

_STORE_BYTES = 80_000_000
"""Ray's object store, which llamarl does not use: weights and records go past it. The least that Ray accepts."""


class RayEngine(RankedEngine["RayHandle"]):
    """Executors as actors of a Ray cluster, which decides where they live. The ranks of one executor share a machine.

    Args:
        environment: variables set in the actors.
        passed: names of further variables that actors keep or, in a cluster, get from this process.
        start_timeout_seconds: for processes to come up and executors to set up.
        stop_timeout_seconds: for `teardown`, and again for processes to end; then they are killed.
    """

    _num_open: ClassVar[int] = 0
    """Engines of this process that use the Ray which one of them started."""

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        passed: Collection[str] = (),
        start_timeout_seconds: float = 600.0,
        stop_timeout_seconds: float = 10.0,
    ) -> None:
        super().__init__()
        self._timeouts = start_timeout_seconds, stop_timeout_seconds
        self._environment = {**passed_environment(passed), **(environment or {})}
        self._is_open = RayEngine._num_open > 0 or not ray.is_initialized()  # else it is the program's own Ray
        if not ray.is_initialized():
            _start_ray()
        RayEngine._num_open += self._is_open

    async def _build_handle(self, name: str, num_ranks: int) -> "RayHandle":
        return RayHandle(name, num_ranks, self._environment, *self._timeouts)

    def _release(self) -> None:
        """Ends Ray where an engine started it and none needs it any more."""
        if self._is_open:
            self._is_open = False
            RayEngine._num_open -= 1
            if RayEngine._num_open == 0:
                ray.shutdown()


class RayHandle(ProcessHandle):
    """The controller's end of actors. One dead rank is the death of the executor."""

    def __init__(
        self,
        name: str,
        num_ranks: int,
        environment: Mapping[str, str],
        start_timeout_seconds: float,
        stop_timeout_seconds: float,
    ) -> None:
        super().__init__(name, num_ranks, start_timeout_seconds, stop_timeout_seconds)
        self._environment = dict(environment)
        self._node, self._address = "", ""
        self._actors: list[Any] = []

    @property
    def host(self) -> str | None:
        """Address of the machine it lives on, as other machines reach it; None: this one."""
        return self._address if "RAY_ADDRESS" in os.environ else None

    @property
    def _is_here(self) -> bool:
        return bool(self._node == ray.get_runtime_context().get_node_id())

    async def _locate(self, timeout_seconds: float) -> list[int]:
        """Starts the first rank where Ray has room, and the others beside it."""
        pids = []
        for rank in range(self.num_ranks):
            beside = {"scheduling_strategy": NodeAffinitySchedulingStrategy(self._node, soft=False)} if rank else {}
            actor = _Host.options(**beside)  # type: ignore[attr-defined] # Ray's decorator adds it
            self._actors.append(actor.remote(rank, self._environment, sys.path))
            async with asyncio.timeout(timeout_seconds):
                pid, self._node, self._address = await self._ask(rank, "locate")
            pids.append(pid)
        return pids

    async def _send(self, rank: int, endpoint: str, args: tuple[Any, ...]) -> Reply:
        try:
            reply: Reply = await getattr(self._actors[rank], endpoint).remote(*args)
        except RayError as error:
            # ActorDiedError; ActorUnavailableError too, as one that may come back may come back anew.
            raise GoneError(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from None
        return reply

    def _cancel(self, rank: int, number: int) -> None:
        self._actors[rank].cancel.remote(number)

    def _kill_processes(self) -> None:
        for actor in self._actors:
            with suppress(RayError, ValueError):
                ray.kill(actor, no_restart=True)
        if self._is_here:
            kill_here(self._pids)  # Ray asks the process to end itself, which one that is stopped does not

    async def _end_processes(self) -> None:
        self._kill_processes()


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)  # cores are shared by OMP_NUM_THREADS
class _Host:
    """Ray's door to a resident."""

    def __init__(self, rank: int, environment: Mapping[str, str], path: list[str]) -> None:
        """Leaves of the environment what executors may see, before anything of theirs is imported."""
        own = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED or name.startswith((*PASSED_PREFIXES, "RAY_"))
        }
        os.environ.clear()
        os.environ.update({**own, **environment})
        sys.path[:] = [*path, *(each for each in sys.path if each not in path)]
        self._resident = Resident(rank)

    async def locate(self) -> Reply:
        context = ray.get_runtime_context()
        return True, (os.getpid(), context.get_node_id(), ray.util.get_node_ip_address())

    async def build(self, blob: bytes, world_size: int) -> Reply:
        return await self._resident.build(blob, world_size)

    async def invoke(self, number: int, method: str, args: tuple[Any, ...]) -> Reply:
        return await self._resident.invoke(number, method, args)

    async def cancel(self, number: int) -> None:
        await self._resident.cancel(number)

    async def tear_down(self) -> Reply:
        return await self._resident.tear_down()


def _start_ray() -> None:
    """Joins the cluster of `RAY_ADDRESS`, or starts Ray on this machine, for this machine only.

    Raises:
        ConfigError: there is no cluster at that address.
    """
    quiet = {"log_to_driver": False, "configure_logging": False}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise ConfigError(f"RAY_ADDRESS={address!r}: no Ray cluster answers there ({error})") from None
        return
    ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
