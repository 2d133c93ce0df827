"""The generator as an executor: asyncio around the synchronous batcher.

    submit ---------> batcher.add
    decode task       while there is work and the weights are proven: batcher.step(); sleep(0)
    collect <-------- finished requests, as soon as there are any
    update_weights    between two steps, since the task yields after each: fetch, verify, load, verify again, probe

Everything runs on the executor's event loop, so no locks: a verb sees the batcher between two decode steps.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, WeightSyncError
from llamarl.core.protocols import AllCores, Cores, Executor, WeightChannel
from llamarl.core.records import Completion, GenerationRequest, WeightManifest, WeightProof
from llamarl.functional.checksum import checksum, verify
from llamarl.generation.batcher import Batcher, Finished
from llamarl.generation.fallback import TransformersGenerator
from llamarl.generation.native import NativeGenerator, Precision
from llamarl.models.decoder import probe_ids, why_unsupported

_log = logging.getLogger(__name__)

_PROBE_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.25, "int8": 0.5}


class GeneratorConfig(Config):
    """How a generator runs."""

    precision: Precision = "fp32"
    """Number format of weights and activations. `int8` (CPU) quantises the layers at each weight update."""
    slots: int = Field(default=64, ge=1)
    """Most completions decoded together."""
    on_update: Literal["recompute", "keep"] = "recompute"
    """What new weights do to completions under way: `recompute` rebuilds their cache, `keep` goes on with the old."""
    device: str = "cpu"
    """Where the model runs."""
    probe_tolerance: float | None = Field(default=None, gt=0.0)
    """Largest accepted log-prob gap to the trainer on the probe tokens; None takes the precision's own bound."""

    @property
    def max_probe_gap(self) -> float:
        """The bound in force."""
        return _PROBE_TOLERANCE[self.precision] if self.probe_tolerance is None else self.probe_tolerance


class TextDecoder(Protocol):
    """What a generator needs of a tokenizer; `models.tokenizer.Tokenizer` is one."""

    eos_ids: tuple[int, ...]

    def decode(self, ids: Sequence[int], /) -> str:
        """Text without special tokens."""


class GeneratorExecutor(Executor):
    """Completes prompts with proven weights only: nothing is drawn before the first good `update_weights`.

    Args:
        config: how to run.
        load_model: builds the `*ForCausalLM`, where the executor lives. All arguments must pickle for process engines.
        tokenizer: end ids and decoding.
        channel: where `update_weights` fetches from.
        cores: shares cores with other executors; by default torch's setting is left alone.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        load_model: Callable[[], nn.Module],
        tokenizer: TextDecoder,
        channel: WeightChannel,
        cores: Cores | None = None,
    ) -> None:
        self.config, self._load_model, self._tokenizer, self._channel = config, load_model, tokenizer, channel
        self._cores: Cores = cores or AllCores()
        self._refusal: str | None = "no weights were proven yet"
        self._finished: list[Finished] = []
        self._task: asyncio.Task[None] | None = None
        self._busy_seconds = 0.0

    def setup(self) -> None:
        """Builds the model; it serves after the first good `update_weights`."""
        self.batcher = build_batcher(self._load_model(), self.config, self._tokenizer)
        self._has_news = asyncio.Event()

    def teardown(self) -> None:
        """Stops decoding."""
        if self._task is not None:
            self._task.cancel()

    # Verbs

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queues requests; returns at once.

        Raises:
            WeightSyncError: no proven weights.
            DataError: a request that this model cannot take; then none of `requests` is queued.
        """
        if self._refusal is not None:
            raise WeightSyncError(f"generator: {self._refusal}; send update_weights first")
        self.batcher.add(requests)
        self._run()

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Completion, ...]]]:
        """Finished requests in the order they finished; waits for the first, `[]` after the time-out."""
        if not self._finished and not self._has_failed():
            self._has_news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), timeout_seconds)
        if self._has_failed() and self._task is not None:
            self._task.result()
        finished, self._finished = self._finished, []
        return finished

    async def cancel(self, keys: Sequence[int]) -> None:
        """Forgets these requests, finished or not."""
        self.batcher.cancel(keys)
        self._finished = [entry for entry in self._finished if entry[0] not in set(keys)]

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Takes the published weights between two decode steps and proves them.

        Raises:
            WeightSyncError: version, checksum or probe disagree; nothing is drawn until a good update.
        """
        start = time.monotonic()
        self._refusal = f"the update to version {manifest.version} failed"
        with self._cores.using("generator"):
            gap = self._take(manifest)
            self.batcher.adopt(manifest.version)
        self._refusal = None
        self._run()
        return WeightProof(manifest.version, gap, manifest.num_bytes, time.monotonic() - start)

    async def status(self) -> Mapping[str, float]:
        """Counters since setup and what is under way."""
        return {
            "tokens": self.batcher.num_tokens,
            "requests_active": self.batcher.num_requests,
            "completions_active": self.batcher.num_active,
            "version": self.batcher.version,
            "busy_seconds": self._busy_seconds,
            "is_serving": float(self._refusal is None),
        }

    # Inside

    def _take(self, manifest: WeightManifest) -> float:
        """Fetches, verifies, loads, verifies what is held, probes. Returns the probe gap."""
        tensors = self._channel.fetch(manifest.version)
        verify(manifest, manifest.version, checksum(tensors))
        backend = self.batcher.backend
        backend.load(tensors)
        wrong = backend.mismatches(tensors)
        if wrong:
            raise WeightSyncError(
                f"weights of version {manifest.version}: {len(wrong)} tensors differ after loading ({wrong[0]}, ...)"
            )
        if self.config.precision == "fp32":
            verify(manifest, manifest.version, checksum(backend.named_views()))
        return self._probe(manifest)

    def _probe(self, manifest: WeightManifest) -> float:
        if not manifest.probe_logprobs:
            return math.nan
        backend = self.batcher.backend
        ours = backend.probe_logprobs(probe_ids(backend.vocab_size))
        pairs = list(zip(ours, manifest.probe_logprobs, strict=True))
        gap = max(abs(a - b) for a, b in pairs)
        if not gap <= self.config.max_probe_gap:
            raise WeightSyncError(
                f"weights of version {manifest.version}: the probe's log-probs differ by {gap:.3g} from the trainer's, "
                f"more than probe_tolerance {self.config.max_probe_gap:g} ({self.config.precision})"
            )
        return gap

    def _run(self) -> None:
        if self.batcher.has_work and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._decode())

    async def _decode(self) -> None:
        """Steps while there is work; yields after each step, so that the verbs get their turn."""
        try:
            with self._cores.using("generator") as take_share:
                while self.batcher.has_work and self._refusal is None:
                    start = time.monotonic()
                    take_share()
                    finished = self.batcher.step()
                    self._busy_seconds += time.monotonic() - start
                    if finished:
                        self._finished += finished
                        self._has_news.set()
                    await asyncio.sleep(0)
        finally:
            self._has_news.set()  # a collector must not sleep through a failure

    def _has_failed(self) -> bool:
        task = self._task
        return task is not None and task.done() and not task.cancelled() and task.exception() is not None


def build_batcher(model: nn.Module, config: GeneratorConfig, tokenizer: TextDecoder) -> Batcher:
    """The native generator where it can run `model`, else the fallback over the module's own forward.

    Raises:
        ConfigError: the model needs the fallback, which has neither int8 nor `on_update = "keep"`.
    """
    reason = why_unsupported(model.config)
    if reason is None:
        return NativeGenerator(
            model,
            eos_ids=tokenizer.eos_ids,
            decode=tokenizer.decode,
            precision=config.precision,
            slots=config.slots,
            on_update=config.on_update,
            device=config.device,
        )
    if config.precision == "int8" or config.on_update == "keep":
        raise ConfigError(
            f"this model runs on the transformers fallback ({reason}), which has neither precision 'int8' nor "
            f"on_update 'keep'; set precision to fp32 or bf16 and on_update to recompute"
        )
    _log.warning("generation falls back to the slow transformers forward: %s", reason)
    return TransformersGenerator(
        model,
        eos_ids=tokenizer.eos_ids,
        decode=tokenizer.decode,
        slots=config.slots,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        device=config.device,
    )
