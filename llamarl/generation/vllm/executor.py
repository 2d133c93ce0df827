"""vLLM's part of a server as a generator: how it is started, paused, and given its weights."""

import asyncio
import json
import os
from array import array
from collections.abc import Awaitable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import GenerationRequest, Trajectory
from llamarl.generation.server.client import NAME, About
from llamarl.generation.server.executor import ServerExecutor
from llamarl.generation.server.process import free_port, keep_environment
from llamarl.generation.vllm.client import VllmClient, read_completion
from llamarl.generation.vllm.transfer import Broadcast

PLUGIN = Path(str(files("llamarl.generation.vllm"))) / "plugin" / "llamarl_vllm.py"
"""The file that runs inside the server. A server that others start needs its folder in PYTHONPATH."""
T = TypeVar("T")


class VllmExecutor(ServerExecutor[VllmClient]):
    """Completes prompts by a vLLM server; weights come by gloo, through the plugin."""

    program, gives_support = "vLLM", False
    _broadcast: Broadcast | None = None

    def teardown(self) -> None:
        """Ends the server, if it was started here, and leaves the group in which it got its weights."""
        self._broadcast = None  # its port and sockets go with it: a lost server's executor may be kept by a traceback
        super().teardown()

    def build_arguments(self, port: int) -> list[str]:
        """The module that serves, and its arguments."""
        return build_arguments(
            self.place.model,
            port,
            precision=self.config.precision,
            slots=self.config.slots,
            tp=self.place.tp,
            max_model_len=self.place.max_model_len,
            cache_bytes=self.place.cache_bytes,
        )

    def build_environment(self) -> dict[str, str]:
        """The environment of its process."""
        return build_environment(self.place.threads)

    def connect(self, url: str) -> VllmClient:
        """The client of a server. Raises `ConfigError` if its key is not to be had."""
        return VllmClient(url, self.settings.api_key_env, self._transport)

    async def read_held(self) -> dict[str, list[int]]:
        """Names and shapes of what the workers hold, as the plugin tells them."""
        workers = await self.client.call_workers("llamarl_held")
        return {name: shape for held in workers for name, shape in held.items()}

    async def draw(
        self, about: About, name: str, prompt: "array[int]", seed: int, request: GenerationRequest
    ) -> Trajectory:
        """One completion: ids, log-probs and versions as the server drew them."""
        answer = await self.client.generate(about.model, name, prompt, seed, request.sampling)
        return read_completion(answer, prompt)

    async def pause(self) -> None:
        """Stops drawing. What is under way waits, and what is asked meanwhile."""
        await self.client.post("/pause?mode=keep")

    async def resume(self) -> None:
        """Goes on drawing; vLLM computes its caches anew."""
        await self.client.post("/resume")

    async def send_weights(self, version: int, tensors: Mapping[str, Tensor], about: About) -> None:
        """Broadcasts tensors, and checks what each worker received. Raises `WeightSyncError`."""
        if self._broadcast is None:
            self._broadcast = await self._join(about.world_size)
        await self.client.post("/start_weight_update")
        sent = await self._send(tensors)
        for worker, received in enumerate(await self.client.call_workers("llamarl_received")):
            check_received(version, worker, sent, received)
        await self.client.post("/finish_weight_update", {"weight_version": str(version)}, seconds=self._seconds)

    async def _join(self, num_workers: int) -> Broadcast:
        port = free_port()
        place = {"host": "127.0.0.1", "port": port, "rank_offset": 1, "world_size": num_workers + 1}
        body = {"init_info": {**place, "timeout_seconds": self._seconds}}
        await self.client.post("/shutdown_weight_transfer_engine")  # that of a generator that was here before
        join = asyncio.to_thread(Broadcast, "127.0.0.1", port, num_workers, self._seconds)
        return await _both(join, self.client.post("/init_weight_transfer_engine", body, seconds=self._seconds))

    async def _send(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        assert self._broadcast is not None
        info = {
            "names": list(tensors),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
        }
        send = asyncio.to_thread(self._broadcast.send, tensors)
        return await _both(send, self.client.post("/update_weights", {"update_info": info}, seconds=self._seconds))


def build_arguments(
    model: str, port: int, *, precision: str, slots: int, tp: int, max_model_len: int, cache_bytes: int | None
) -> list[str]:
    """The module and the arguments of a server that serves `model` as a generator.

    Args:
        model: the checkpoint.
        port: on this machine's own address.
        precision: `fp32` or `bf16`.
        slots: most completions under way.
        tp: workers that share each layer.
        max_model_len: most tokens of prompt and completion.
        cache_bytes: for keys and values, where it computes on the CPU; None: on a GPU, of which it takes its share.
    """
    on_cpu = [] if cache_bytes is None else ["--enforce-eager", "--kv-cache-memory-bytes", str(cache_bytes)]
    return [
        "vllm.entrypoints.openai.api_server",
        *("--model", model, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", {"fp32": "float32", "bf16": "bfloat16"}[precision], "--tensor-parallel-size", str(tp)),
        *("--max-model-len", str(max_model_len), "--max-num-seqs", str(slots)),
        # Log-probs of the distribution that was sampled, and the route that takes and gives token ids.
        *("--logprobs-mode", "processed_logprobs", "--enable-scale-out"),
        *("--weight-transfer-config", json.dumps({"backend": "llamarl"})),
        *("--worker-extension-cls", "llamarl_vllm.Extension"),
        *on_cpu,
    ]


def build_environment(threads: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a server: the plugin in its path, its routes for training open."""
    return {
        **keep_environment(threads, given),
        "PYTHONPATH": str(PLUGIN.parent),
        # Opens the routes by which weights change. They take no key, so the server listens on this machine alone.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        # On a CPU: threads are not bound to cores, which others need too, and few cores are enough.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
    }


def check_received(
    version: int, worker: int, sent: Mapping[str, tuple[int, int]], received: Mapping[str, Sequence[int]]
) -> None:
    """Checks that a worker received every tensor as it was sent.

    Raises:
        WeightSyncError: names the first that it did not, or whose digest is one of nothing.
    """
    for name, digest in sent.items():
        got = tuple(received.get(name, ()))
        if got != digest or not digest[0]:
            fault = "did not arrive" if not got or not got[0] else "arrived otherwise than it was sent"
            raise WeightSyncError(f"weights of version {version}: {name} {fault} at worker {worker} of the server")


async def _both(ours: Awaitable[T], theirs: Awaitable[object]) -> T:
    """What our half gives, once both are done. Fails as soon as either does: a thread is then left to its deadline."""
    mine, other = asyncio.ensure_future(ours), asyncio.ensure_future(theirs)
    try:
        done, _ = await asyncio.wait([mine, other], return_when=asyncio.FIRST_EXCEPTION)
        for half in done:
            half.result()
        return mine.result()
    finally:
        mine.cancel()
        other.cancel()
