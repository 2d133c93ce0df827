"""An inference server as a generator (`core.protocols.Generator`); `generation.vllm` and `.sglang` add protocols.

    submit ---------> a request a completion, all at once: the server queues, and batches as it can
    collect <-------- groups whose completions are all there
    update_weights    pause (what is under way waits) / transfer / resume / probe

Servers cannot score a probe while they are paused. So tokens are drawn between `resume` and the proof; whatever ends in
that time is held back, and leaves only if the proof holds. A failed update costs the server: servers accept half an
update, or an empty one, and may end at the first request after one that broke off. It is then stopped and started anew,
and its prompts start over.
"""

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import httpx
import torch
from torch import Tensor

from llamarl.core.errors import ConfigError, DataError, ExecutorLostError, WeightSyncError
from llamarl.core.protocols import Executor, WeightChannel
from llamarl.core.records import (
    Completion,
    GenerationRequest,
    LogprobGap,
    Trajectory,
    WeightManifest,
    WeightProbe,
    WeightProof,
    pack_ids,
)
from llamarl.functional.checksum import checksum, verify
from llamarl.generation.batcher import Finished
from llamarl.generation.executor import GeneratorConfig, TextDecoder
from llamarl.generation.proof import check_probe, measure_precision
from llamarl.generation.server.client import About, ServerClient
from llamarl.generation.server.process import ServerProcess, free_port
from llamarl.generation.server.settings import ServerSettings
from llamarl.generation.server.weights import check_coverage, with_tied_head

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
END_SECONDS = 2.0
"""Seconds that a server whose connection broke has to end, so that it can be said why."""
ClientT = TypeVar("ClientT", bound=ServerClient)


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """What a server needs to know of the run."""

    model: str
    """The checkpoint directory that trainer and generators start from."""
    max_model_len: int
    tp: int = 1
    url: str | None = None
    """Where the server is already; None: it is started."""
    cache_bytes: int | None = None
    """Memory for keys and values of a server that computes on the CPU; None: it takes its share of a GPU."""
    threads: int | None = None
    """Threads that the server computes with on a CPU; None: as many as it takes."""


class ServerExecutor(Executor, ABC, Generic[ClientT]):
    """Completes prompts by an inference server, with proven weights only.

    Args:
        settings: which server.
        config: precision, slots, and how far its log-probs may be off.
        place: the model, and where the server is.
        tokenizer: end ids and decoding.
        channel: where `update_weights` fetches from.
        transport: instead of the network, for tests.
    """

    program: ClassVar[str]
    """The server's name, for messages."""
    gives_support: ClassVar[bool]
    """Whether it tells the tokens that filters left."""
    client: ClientT

    def __init__(
        self,
        settings: ServerSettings,
        config: GeneratorConfig,
        place: ServerPlace,
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
        self._labels: set[int] = set()
        """Versions that were sent; a token of another was drawn with weights that nobody knows."""
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
            ConfigError: there is no such server in the environment.
        """
        self._has_news = asyncio.Event()
        self.client = self.connect(self.place.url or self._start())

    def teardown(self) -> None:
        """Ends the server, if it was started here."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.stop()

    # Verbs

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Asks for completions; returns at once.

        Raises:
            WeightSyncError: no proven weights.
            DataError: a request that does not fit into the server's context.
            ConfigError: a request for the tokens that filters left, to a server that does not tell them.
        """
        if self._about is None or (self._refusal is not None and not self._is_updating):
            raise WeightSyncError(f"generator: {self._refusal}; send update_weights first")
        for request in requests:
            if request.keeps_support and not self.gives_support:
                raise ConfigError(
                    f"sampling: {request.sampling.filters} with keeps_support, but a {self.program} server does not "
                    "tell which tokens its filters left; leave the filters out, or use a native generator"
                )
            most, wanted = self._about.max_model_len, len(request.prompt_ids) + request.sampling.max_tokens
            if wanted > most:
                raise DataError(
                    f"request {request.key}: {len(request.prompt_ids)} prompt tokens + max_tokens "
                    f"{request.sampling.max_tokens} exceed the server's {most} positions; start it with more"
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
                raise ExecutorLostError(
                    f"{self.program}: {problem}"
                ) from error  # which a broken connection does not tell
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
        await self.pause()
        await self._transfer(manifest, about)
        await self.resume()
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
        port = free_port()
        arguments = [*self.build_arguments(port), *self.settings.arguments]
        self._server = ServerProcess(self.program, self.settings.python, arguments, port, self.build_environment())
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
            self._held = await self.read_held()
            self._about = about
        return self._about

    def _check_alive(self) -> None:
        if self._server is not None and (problem := self._server.why_ended()) is not None:
            raise ExecutorLostError(f"{self.program}: {problem}")
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
        trajectory = await self.draw(about, name, prompt, seed, request)
        if unknown := {version for version, _ in trajectory.versions} - self._labels:
            raise ExecutorLostError(
                f"{self.client.url}: gave tokens of version {min(unknown)}, which it was never sent; somebody else "
                "changes its weights"
            )
        completion = Completion(trajectory, self._tokenizer.decode(trajectory.token_ids))
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
        # As long as a transfer may take: the first of a fresh server computes, and may compile, on a busy machine.
        seconds = self._seconds
        rows = [await self.client.score(about.model, f"probe-{i}", row, seconds) for i, row in enumerate(probe.rows)]
        return [logprob for row in rows for logprob in row]

    # Weights

    async def _transfer(self, manifest: WeightManifest, about: About) -> None:
        """Sends what lies on the channel, and checks that all of it arrived and that nothing held is left out."""
        version = manifest.version
        with self._channel.reading(version) as tensors:
            verify(manifest, version, checksum(tensors))
            whole = self.select_tensors(version, tensors, about)
            dtype = DTYPES[self.config.precision]
            cast = {name: tensor.to(dtype) for name, tensor in whole.items()}
            self._labels.add(version)
            await self.send_weights(version, cast, about)

    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        """What is sent of the published tensors: everything that the server holds, under every name it has there."""
        whole = with_tied_head(tensors, self._held)
        check_coverage(version, whole, self._held, has_shapes=about.world_size == 1)
        return whole

    @property
    def _seconds(self) -> float:
        return self.settings.transfer_seconds

    # A kind's protocol

    @abstractmethod
    def build_arguments(self, port: int) -> list[str]:
        """The module that serves, and its arguments."""

    @abstractmethod
    def build_environment(self) -> dict[str, str]:
        """The environment of its process."""

    @abstractmethod
    def connect(self, url: str) -> ClientT:
        """The client of a server. Raises `ConfigError` if its key is not to be had."""

    @abstractmethod
    async def read_held(self) -> dict[str, list[int]]:
        """Names of the tensors that the server holds, as checkpoints have them, with shapes where they are known."""

    @abstractmethod
    async def draw(
        self, about: About, name: str, prompt: "array[int]", seed: int, request: GenerationRequest
    ) -> Trajectory:
        """One completion: ids, log-probs and versions as the server drew them."""

    @abstractmethod
    async def pause(self) -> None:
        """Stops drawing. What is under way waits, and what is asked meanwhile."""

    @abstractmethod
    async def resume(self) -> None:
        """Goes on drawing, with caches of the weights that are held now."""

    @abstractmethod
    async def send_weights(self, version: int, tensors: Mapping[str, Tensor], about: About) -> None:
        """Gives a paused server its weights, and their version.

        Raises:
            WeightSyncError: it did not take all of them.
        """
