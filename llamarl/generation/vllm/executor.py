"""A vLLM server as a generator (`core.protocols.Generator`).

    submit ---------> a request a completion, all at once: the server queues, and batches as it can
    collect <-------- groups whose completions are all there
    update_weights    pause (what is under way waits) / transfer / resume / probe

vLLM cannot score a probe while it is paused. So tokens are drawn between `resume` and the proof; whatever ends in that
time is held back, and leaves only if the proof holds. A failed update costs the server: vLLM accepts half an update, or
an empty one, and ends at the first request after one that broke off. It is then stopped and started anew, and its
prompts start over.
"""

import asyncio
import contextlib
import math
import time
from array import array
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import torch
from torch import Tensor

from llamarl.core.errors import ConfigError, DataError, ExecutorLostError, WeightSyncError
from llamarl.core.protocols import Executor, WeightChannel
from llamarl.core.records import (
    Completion,
    GenerationRequest,
    LogprobGap,
    WeightManifest,
    WeightProbe,
    WeightProof,
    pack_ids,
)
from llamarl.functional.checksum import checksum, verify
from llamarl.generation.batcher import Finished
from llamarl.generation.executor import GeneratorConfig, TextDecoder
from llamarl.generation.proof import check_probe, measure_precision
from llamarl.generation.vllm.client import About, VllmClient, read_completion
from llamarl.generation.vllm.server import ServerProcess, build_arguments, build_environment, free_port
from llamarl.generation.vllm.settings import VllmSettings
from llamarl.generation.vllm.transfer import Broadcast

TIED_HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
END_SECONDS = 2.0
"""Seconds that a server whose connection broke has to end, so that it can be said why."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VllmPlace:
    """What a server needs to know of the run."""

    model: str
    """The checkpoint directory that trainer and generators start from."""
    max_model_len: int
    tp: int = 1
    url: str | None = None
    """Where the server is already; None: it is started."""
    cache_bytes: int | None = None
    """See `build_arguments`."""
    threads: int | None = None
    """Threads that the server computes with on a CPU; None: as many as it takes."""


class VllmExecutor(Executor):
    """Completes prompts by a vLLM server, with proven weights only.

    Args:
        settings: which server.
        config: precision, slots, and how far its log-probs may be off.
        place: the model, and where the server is.
        tokenizer: end ids and decoding.
        channel: where `update_weights` fetches from.
        transport: instead of the network, for tests.
    """

    def __init__(
        self,
        settings: VllmSettings,
        config: GeneratorConfig,
        place: VllmPlace,
        tokenizer: TextDecoder,
        channel: WeightChannel,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings, self.config, self.place, self._transport = settings, config, place, transport
        self._tokenizer, self._channel = tokenizer, channel
        self._refusal: str | None = "no weights were proven yet"
        self._is_updating = False
        """True during an update: what is asked then is answered, but held back until the proof."""
        self._precision_cost: LogprobGap | None = None
        self._server: ServerProcess | None = None
        self._about: About | None = None
        self._broadcast: Broadcast | None = None
        self._held: dict[str, list[int]] = {}
        self._failure: Exception | None = None
        self._finished: list[Finished] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._version, self._num_tokens, self._num_open, self._num_bytes = -1, 0, 0, 0
        self._last_news = self._busy_since = time.monotonic()
        self._busy_seconds = 0.0

    def setup(self) -> None:
        """Starts the server and waits for it, or looks for the one that is there.

        Raises:
            ExecutorLostError: it ended, or did not answer in time.
            ConfigError: there is no vLLM in the environment.
        """
        self._has_news = asyncio.Event()
        url = self.place.url or self._start()
        self.client = VllmClient(url, self.settings.api_key_env, self._transport)

    def teardown(self) -> None:
        """Ends the server, if it was started here, and leaves the group in which it got its weights."""
        for task in self._tasks:
            task.cancel()
        self._broadcast = None  # its port and sockets go with it: a lost server's executor may be kept by a traceback
        if self._server is not None:
            self._server.stop()

    # Verbs

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Asks for completions; returns at once.

        Raises:
            WeightSyncError: no proven weights.
            DataError: a request that does not fit into the server's context.
            ConfigError: a request for the tokens that filters left, which vLLM 0.32 does not give over HTTP.
        """
        if self._about is None or (self._refusal is not None and not self._is_updating):
            raise WeightSyncError(f"generator: {self._refusal}; send update_weights first")
        for request in requests:
            if request.keeps_support:
                raise ConfigError(
                    f"sampling: {request.sampling.filters} with keeps_support, but a vLLM server does not tell which "
                    "tokens its filters left; leave the filters out, or use a native generator"
                )
            most, wanted = self._about.max_model_len, len(request.prompt_ids) + request.sampling.max_tokens
            if wanted > most:
                raise DataError(
                    f"request {request.key}: {len(request.prompt_ids)} prompt tokens + max_tokens "
                    f"{request.sampling.max_tokens} exceed the server's {most} positions; start it with a larger "
                    "--max-model-len"
                )
        for request in requests:
            task = asyncio.get_running_loop().create_task(self._complete(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def collect(self, timeout_seconds: float) -> list[Finished]:
        """Finished requests in the order they finished; waits for the first, `[]` after the time-out.

        Raises:
            ExecutorLostError: the server is lost, or finished nothing for `silence_seconds`.
        """
        if self._failure is None and (not self._finished or self._refusal is not None):
            self._has_news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), timeout_seconds)
        if self._failure is not None and self._server is not None:
            await self._server.wait_why_ended(END_SECONDS)
        self._check_alive()
        if self._refusal is not None:  # held back until the proof
            return []
        finished, self._finished = self._finished, []
        return finished

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Takes the published weights, with completions under way, and proves them.

        Raises:
            WeightSyncError: something of it failed or disagrees; the server is given up then.
            ExecutorLostError: the server is lost.
        """
        # Refused from here to the proof: whatever fails in between, nothing that was drawn meanwhile leaves.
        self._refusal, self._is_updating = f"the update to version {manifest.version} failed", True
        try:
            return await self._update(manifest)
        except (ExecutorLostError, WeightSyncError) as error:
            if self._server is not None and (problem := await self._server.wait_why_ended(END_SECONDS)) is not None:
                raise ExecutorLostError(f"vLLM: {problem}") from error  # which a broken connection does not tell
            raise
        finally:
            self._is_updating = False

    async def status(self) -> Mapping[str, float]:
        """Counters since setup and what is under way."""
        return {
            "tokens": self._num_tokens,
            "requests_active": len(self._tasks),
            "completions_active": self._num_open,
            "version": self._version,
            "busy_seconds": self._busy_seconds,
            "is_serving": float(self._refusal is None),
            "weight_bytes": self._num_bytes,
            "cache_bytes": self.place.cache_bytes or 0,
        }

    async def _update(self, manifest: WeightManifest) -> WeightProof:
        start, about = time.monotonic(), await self._meet()
        if self._precision_cost is None and manifest.probe is not None:
            logprobs = await self._score(about, manifest.probe)
            self._precision_cost = measure_precision(manifest.probe, logprobs, self.config.precision)
        await self._channel.prepare(manifest.version)  # over a network that takes time, in which nothing need pause
        await self.client.post("/pause?mode=keep")
        await self._transfer(manifest, about)
        await self.client.post("/resume")
        gap = math.nan
        if manifest.probe is not None and self._precision_cost is not None:
            logprobs = await self._score(about, manifest.probe)
            precision, factor = self.config.precision, self.config.probe_factor
            gap = check_probe(manifest, logprobs, self._precision_cost, precision, factor)
        self._refusal, self._version, self._num_bytes = None, manifest.version, manifest.num_bytes
        self._has_news.set()  # what was held back may go
        return WeightProof(manifest.version, gap, manifest.num_bytes, time.monotonic() - start, self._precision_cost)

    # The server

    def _start(self) -> str:
        port, place = free_port(), self.place
        arguments = build_arguments(
            place.model,
            port,
            precision=self.config.precision,
            slots=self.config.slots,
            tp=place.tp,
            max_model_len=place.max_model_len,
            cache_bytes=place.cache_bytes,
        )
        arguments += self.settings.arguments
        environment = build_environment(place.threads)
        self._server = ServerProcess(self.settings.python, arguments, port, environment)
        try:
            self._server.wait_until_ready(self.settings.start_seconds)
        except ExecutorLostError:
            self._server.stop()
            raise
        return self._server.url

    async def _meet(self) -> About:
        """What the server is, asked once."""
        if self._about is None:
            about = await self.client.describe()
            if about.world_size != self.place.tp:
                raise ConfigError(
                    f"{self.client.url}: has {about.world_size} workers, and placement.generators.tp is "
                    f"{self.place.tp}; make them equal"
                )
            for held in await self.client.call_workers("llamarl_held"):
                self._held |= held
            self._about = about
        return self._about

    def _check_alive(self) -> None:
        if self._server is not None and (problem := self._server.why_ended()) is not None:
            raise ExecutorLostError(f"vLLM: {problem}")
        if self._failure is not None:
            raise self._failure
        silent = time.monotonic() - self._last_news
        if self._num_open and silent > self.settings.silence_seconds:
            raise ExecutorLostError(
                f"{self.client.url}: {self._num_open} completions are under way and none ended for {silent:.0f} s "
                "(silence_seconds)"
            )

    # Completions

    async def _complete(self, request: GenerationRequest) -> None:
        prompt = pack_ids(request.prompt_ids)
        try:
            with self._counting(len(request.seeds)):
                completions = await asyncio.gather(
                    *(self._draw(request, prompt, sample) for sample in range(len(request.seeds)))
                )
        except Exception as error:
            self._failure = self._failure or error
        else:
            self._finished.append((request.key, tuple(completions)))
        self._has_news.set()

    async def _draw(self, request: GenerationRequest, prompt: Any, sample: int) -> Completion:
        about = self._about
        assert about is not None, "known since the first update"
        seed, name = request.seeds[sample], f"{request.key}-{sample}-{self._version}"
        answer = await self.client.generate(about.model, name, request.prompt_ids, seed, request.sampling)
        completion = read_completion(answer, prompt, self._tokenizer.decode)
        if not request.sampling.temperature:  # a greedy choice is certain
            zeros = array("f", bytes(4 * len(completion.logprobs)))
            completion = replace(completion, trajectory=replace(completion.trajectory, logprobs=zeros))
        self._num_tokens += len(completion.token_ids)
        self._last_news = time.monotonic()
        return completion

    @contextmanager
    def _counting(self, num_completions: int) -> Iterator[None]:
        now = time.monotonic()
        if not self._num_open:
            self._busy_since = self._last_news = now
        self._num_open += num_completions
        try:
            yield
        finally:
            self._num_open -= num_completions
            if not self._num_open:
                self._busy_seconds += time.monotonic() - self._busy_since

    async def _score(self, about: About, probe: WeightProbe) -> list[float]:
        rows = [await self.client.score(about.model, f"probe-{i}", row) for i, row in enumerate(probe.rows)]
        return [logprob for row in rows for logprob in row]

    # Weights

    async def _transfer(self, manifest: WeightManifest, about: About) -> None:
        """Sends what lies on the channel, and checks that all of it arrived and that nothing held is left out."""
        version = manifest.version
        if self._broadcast is None:
            self._broadcast = await self._join(about.world_size)
        with self._channel.reading(version) as tensors:
            verify(manifest, version, checksum(tensors))
            whole = self.select_tensors(version, tensors, about)
            dtype = DTYPES[self.config.precision]
            cast = {name: tensor.to(dtype) for name, tensor in whole.items()}
            await self.client.post("/start_weight_update")
            sent = await self._send(cast)
        for worker, received in enumerate(await self.client.call_workers("llamarl_received")):
            check_received(version, worker, sent, received)
        await self.client.post("/finish_weight_update", {"weight_version": str(version)}, seconds=self._seconds)

    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        """What is sent of the published tensors: everything that the server holds, under every name it has there."""
        whole = with_tied_head(tensors, self._held)
        check_coverage(version, whole, self._held, has_shapes=about.world_size == 1)
        return whole

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

    @property
    def _seconds(self) -> float:
        return self.settings.transfer_seconds


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


def with_tied_head(tensors: Mapping[str, Tensor], held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with the output head under its own name, where it is tied to the embeddings.

    vLLM on a CPU packs a copy of the head when it loads: without this it would compute with the old one, and say that
    it has the new weights.
    """
    is_tied = TIED_HEAD in held and TIED_HEAD not in tensors and EMBEDDINGS in tensors
    return {**tensors, **({TIED_HEAD: tensors[EMBEDDINGS]} if is_tied else {})}


def check_coverage(
    version: int, tensors: Mapping[str, Tensor], held: Mapping[str, Sequence[int]], *, has_shapes: bool
) -> None:
    """Checks that names and shapes are those which the server holds, all of them, before anything is sent.

    Args:
        version: for messages.
        tensors: to be sent.
        held: names, and shapes where they are known.
        has_shapes: False where workers hold parts.

    Raises:
        WeightSyncError: names what is missing, unknown or of another shape.
    """
    faults = {
        "held by the server but not sent": sorted(held.keys() - tensors.keys()),
        "sent but unknown to the server": sorted(tensors.keys() - held.keys()),
        # The vocabulary's size is padded there.
        "of another shape there": sorted(
            name
            for name in held.keys() & tensors.keys()
            if has_shapes and held[name] and tuple(held[name][1:]) != tuple(tensors[name].shape[1:])
        ),
    }
    found = [f"{len(names)} {fault} ({names[0]}, ...)" for fault, names in faults.items() if names]
    if found or not tensors:
        raise WeightSyncError(f"weights of version {version}: {'; '.join(found) or 'none to send'}")


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
