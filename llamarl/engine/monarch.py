"""Executors as processes, started and supervised by Monarch. The only module that imports it.

    controller's process                               one process per rank
    handle.call --(Monarch message)------------------> _Host.invoke: async methods on its event loop,
            <--(result or exception, in a reply)------               sync methods on one thread of their own

Monarch tells us of deaths; deadlines are ours (a stopped process is not dead). A child dies with its controller.

A child gets the environment variables of `PASSED`, those that begin with one of `PASSED_PREFIXES`, and those that the
engine is told of: no secret of this process is in its memory unless somebody named it.
"""

import asyncio
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any

from llamarl.core.errors import ExecutorLostError, MissingDependencyError, StallError
from llamarl.core.protocols import Executor
from llamarl.engine.handle import RankedHandle, claim_name, gather_within

_KNOBS = {  # Monarch reads them when it is imported; its defaults notice a death after 9 to 60 s
    "HYPERACTOR_MESH_SUPERVISION_POLL_FREQUENCY": "200ms",
    "HYPERACTOR_MESH_GET_ACTOR_STATE_MAX_IDLE": "5s",
    "HYPERACTOR_MESH_GET_PROC_STATE_MAX_IDLE": "5s",
}
os.environ.update({name: value for name, value in _KNOBS.items() if name not in os.environ})

PASSED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"),
    }
)
"""Names of variables that children get."""
PASSED_PREFIXES = (
    *("LC_", "XDG_", "PYTHON", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_"),
    *("KMP_", "GOMP_", "OPENBLAS_", "HYPERACTOR_", "MONARCH_"),
)
"""Beginnings of such names."""

try:
    import cloudpickle  # type: ignore[import-untyped]
    import monarch.actor
    from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError
except ImportError:
    raise MissingDependencyError.for_extra("torchmonarch", "monarch") from None

_log = logging.getLogger(__name__)


class MonarchEngine:
    """Executors as processes of this host.

    Args:
        environment: variables set in the children.
        passed: names of further variables that children get from this process, where it has them.
        start_timeout_seconds: for processes to come up and executors to set up.
        stop_timeout_seconds: for `teardown`, and again for processes to end; then they are killed.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        passed: Collection[str] = (),
        start_timeout_seconds: float = 600.0,
        stop_timeout_seconds: float = 10.0,
    ) -> None:
        monarch.actor.unhandled_fault_hook = _note_fault  # the default one ends the controller
        monarch.actor.config.prefix_python_logs_with_actor = False  # it would mark every log record of this process
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED or name in passed or name.startswith(PASSED_PREFIXES)
        }
        self._environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **(environment or {}),
        }
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._handles: dict[str, MonarchHandle] = {}

    async def spawn(self, factory: Callable[[], Executor], *, name: str, num_ranks: int = 1) -> "MonarchHandle":
        """Starts `num_ranks` processes, builds an executor in each and runs its `setup`; errors of either propagate."""
        claim_name(self._handles, name)
        handle = MonarchHandle(name, num_ranks, self._environment, self._stop_timeout_seconds)
        self._handles[name] = handle
        try:
            await handle.start(factory, self._start_timeout_seconds)
        except BaseException:
            await handle.stop()
            raise
        return handle

    async def close(self) -> None:
        """Stops every executor that is left."""
        handles, self._handles = self._handles, {}
        await asyncio.gather(*(handle.stop() for handle in handles.values()))


class MonarchHandle(RankedHandle):
    """The controller's end of executor processes. One dead rank is the death of the executor."""

    def __init__(self, name: str, num_ranks: int, environment: Mapping[str, str], stop_timeout_seconds: float) -> None:
        super().__init__(name, num_ranks)
        self._stop_timeout_seconds = stop_timeout_seconds
        self._pids: list[int] = []
        self._is_built = False
        self._death: str | None = None
        self._numbers = itertools.count()
        command = monarch.actor.default_bootstrap_cmd().with_env(dict(environment))
        command.inherit_env = False
        host = monarch.actor.this_host()
        self._processes = host.spawn_procs({"rank": num_ranks}, name=name, bootstrap_command=command)
        actors = self._processes.spawn(name, _Host)
        self._actors = [actors.slice(rank=rank) for rank in range(num_ranks)]

    async def start(self, factory: Callable[[], Executor], timeout_seconds: float) -> None:
        """Ships the factory and sets all ranks up at once."""
        self._pids = await self._ask_all(timeout_seconds, "start", "get_pid")
        await self._ask_all(timeout_seconds, "setup", "build", cloudpickle.dumps(factory), self.num_ranks)
        self._is_built = True

    @property
    def pids(self) -> list[int]:
        """The process of each rank."""
        return list(self._pids)

    @property
    def is_alive(self) -> bool:
        """True if no rank is known to be dead; a death shows when the rank is called."""
        return self._death is None

    async def stop(self) -> None:
        """Tears down and ends the processes; those that don't answer in time are killed."""
        death, self._death = self._death, self._death or "stopped"
        if death == "stopped":
            return
        try:
            if death is None and self._is_built:
                await self._ask_all(self._stop_timeout_seconds, "teardown", "tear_down")
        except (StallError, ExecutorLostError) as error:
            _log.warning("stop of %s: %s", self.name, error)
        finally:
            await self._end_processes()

    def kill(self) -> None:
        """SIGKILL."""
        self._death = self._death or "killed"
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _invoke(self, rank: int, method: str, args: tuple[Any, ...]) -> Any:
        if self._death is not None:
            raise self._lost_error(rank, self._death)
        number = next(self._numbers)
        try:
            return await self._ask(rank, "invoke", number, method, args)
        except asyncio.CancelledError:
            if self._death is None:
                # Sent without waiting for an answer: this coroutine is being cancelled itself.
                self._actors[rank].cancel.broadcast(number)
            raise

    async def _ask_all(self, timeout_seconds: float, what: str, endpoint: str, *args: Any) -> list[Any]:
        calls = (self._ask(rank, endpoint, *args) for rank in range(self.num_ranks))
        return await gather_within(timeout_seconds, f"{self.name}.{what}", calls)

    async def _ask(self, rank: int, endpoint: str, *args: Any) -> Any:
        """Sends one message to one rank and unwraps the reply."""
        try:
            is_good, value = await getattr(self._actors[rank], endpoint).call_one(*args)
        except SupervisionError as error:
            self._death = self._death or str(error).strip().splitlines()[-1].strip()
            raise self._lost_error(rank, self._death) from None
        if not is_good:
            raise value
        return value

    async def _end_processes(self) -> None:
        try:
            async with asyncio.timeout(self._stop_timeout_seconds):
                await self._processes.stop()
        except (TimeoutError, RuntimeError) as error:
            _log.warning("stop of %s: Monarch could not (%r); killing %s", self.name, error, self._pids)
            self.kill()


class _Host(monarch.actor.Actor):  # type: ignore[misc] # Monarch is untyped
    """Holds one executor in its process."""

    def __init__(self) -> None:
        self._rank = monarch.actor.current_rank().rank
        # One thread, so that an executor's plain methods never run side by side.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="executor")
        self._executor: Executor | None = None
        self._calls: dict[int, asyncio.Future[Reply]] = {}

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator] # a plain endpoint runs one at a time
    async def get_pid(self) -> "Reply":
        return True, os.getpid()

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def build(self, blob: bytes, world_size: int) -> "Reply":
        return await _reply(self._on_thread(self._build, blob, world_size))

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def invoke(self, number: int, method: str, args: tuple[Any, ...]) -> "Reply":
        self._calls[number] = asyncio.ensure_future(_reply(self._invoke(method, args)))
        try:
            return await self._calls[number]
        except asyncio.CancelledError:
            if number in self._calls:  # not by `cancel`: Monarch is stopping this actor
                raise
            return False, None
        finally:
            self._calls.pop(number, None)

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def cancel(self, number: int) -> None:
        if call := self._calls.pop(number, None):
            call.cancel()

    @monarch.actor.concurrent_endpoint  # type: ignore[untyped-decorator]
    async def tear_down(self) -> "Reply":
        return await _reply(self._invoke("teardown", ()))

    async def _invoke(self, method: str, args: tuple[Any, ...]) -> Any:
        function = getattr(self._executor, method)
        return await (function(*args) if iscoroutinefunction(function) else self._on_thread(function, *args))

    async def _on_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _build(self, blob: bytes, world_size: int) -> None:
        executor = cloudpickle.loads(blob)()
        executor.rank, executor.world_size = self._rank, world_size
        executor.setup()
        self._executor = executor


Reply = tuple[bool, Any]
"""(True, result) or (False, exception). Sent as a value: Monarch logs and wraps what an endpoint raises."""


async def _reply(call: Awaitable[Any]) -> Reply:
    try:
        return True, await call
    except SystemExit:  # the executor is lost; raised on, it would only break Monarch's event loop
        os._exit(1)
    except Exception as error:
        error.add_note(f"in process {os.getpid()}:\n{traceback.format_exc()}")
        return False, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error itself, or its text where it cannot be pickled and unpickled."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
        return error
    except Exception as reason:  # pickling runs the error's own code
        return RuntimeError(f"{type(error).__name__}: {error} (not picklable: {reason})")


def _note_fault(failure: Any) -> None:
    """Called on every death; the calls under way raise `SupervisionError` by themselves."""
    _log.info("%s", failure)
