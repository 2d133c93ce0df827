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
from llamarl.core.records import (
    Completion,
    GenerationRequest,
    LogprobGap,
    WeightManifest,
    WeightProbe,
    WeightProof,
)
from llamarl.functional.checksum import checksum, verify, verify_base
from llamarl.generation.batcher import Batcher, Finished
from llamarl.generation.fallback import TransformersGenerator
from llamarl.generation.native import NativeGenerator, Precision
from llamarl.generation.proof import check_probe, measure_precision
from llamarl.models.decoder import named_tensors, why_unsupported
from llamarl.models.device import resolve_device
from llamarl.models.lora_config import LoraConfig

_log = logging.getLogger(__name__)


class GeneratorConfig(Config):
    """Settings of a generator."""

    precision: Precision = "fp32"
    """Number format of weights and activations. `int8` (CPU) quantises the layers at each weight update."""
    slots: int = Field(default=64, ge=1)
    """Most completions decoded together."""
    on_update: Literal["recompute", "keep"] = "recompute"
    """Fate of open completions at a weight update: `recompute` rebuilds their cache, `keep` goes on with the old."""
    routed_experts: bool = False
    """True records the experts that each token went to, and the trainer sends it to the same (router replay)."""
    device: str = "auto"
    """Device of the model, as torch names it, or `auto`: CUDA, else MPS, else the CPU (for `int8` always the CPU)."""
    probe_factor: float = Field(default=4.0, ge=1.0)
    """Largest mean gap of the probe's log-probs after a weight sync, as a multiple of the precision's cost."""

    @property
    def resolved_device(self) -> str:
        """The device that is used."""
        is_int8 = self.device == "auto" and self.precision == "int8"  # which only the CPU has
        return "cpu" if is_int8 else resolve_device(self.device, "generator.device")


class TextDecoder(Protocol):
    """The part of a tokenizer that a generator uses; `models.tokenizer.Tokenizer` is one."""

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
        lora: settings of the trainer's adapters, which are all that it sends then; None: it sends whole weights.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        load_model: Callable[[], nn.Module],
        tokenizer: TextDecoder,
        channel: WeightChannel,
        cores: Cores | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        self.config, self._load_model, self._tokenizer, self._channel = config, load_model, tokenizer, channel
        self._cores: Cores = cores or AllCores()
        self._lora = lora
        self._base: Mapping[str, int] = {}
        """Checksums of the frozen weights below adapters, as they were loaded."""
        self._refusal: str | None = "no weights were proven yet"
        self._precision_cost: LogprobGap | None = None
        self._finished: list[Finished] = []
        self._task: asyncio.Task[None] | None = None
        self._busy_seconds = 0.0

    def setup(self) -> None:
        """Builds the model; it serves after the first good `update_weights`."""
        model = self._load_model()
        if self._lora is not None:  # once, and before any rounding: no update reaches them
            self._base = checksum(dict(named_tensors(model)))
        self.batcher = build_batcher(model, self.config, self._tokenizer, self._lora)
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
            # Raises what ended the decode task.
            self._task.result()
        finished, self._finished = self._finished, []
        return finished

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Takes the published weights between two decode steps and proves them.

        Where they come over a network, completions under way go on with the old weights until they are here.

        Raises:
            WeightSyncError: version, checksum, probe or the base of adapters disagree, or they did not arrive; nothing
                is drawn until a good update.
        """
        start = time.monotonic()
        failure = f"the update to version {manifest.version} failed"
        try:
            await self._channel.prepare(manifest.version)
        finally:
            # Refused from here to the proof: whatever fails, nothing is drawn from doubtful weights.
            self._refusal = failure
        with self._cores.using("generator"):
            if self._precision_cost is None and manifest.probe is not None:
                self._precision_cost = measure_precision(
                    manifest.probe, self._score(manifest.probe), self.config.precision
                )
            gap = self._take(manifest)
            self.batcher.adopt(manifest.version)
        self._refusal = None
        self._run()
        seconds = time.monotonic() - start
        return WeightProof(manifest.version, gap, manifest.num_bytes, seconds, self._precision_cost)

    async def status(self) -> Mapping[str, float]:
        """Counters since setup and what is under way."""
        weight_bytes, cache_bytes = self.batcher.backend.memory()
        return {
            "tokens": self.batcher.num_tokens,
            "requests_active": self.batcher.num_requests,
            "completions_active": self.batcher.num_active,
            "version": self.batcher.version,
            "busy_seconds": self._busy_seconds,
            "is_serving": float(self._refusal is None),
            "weight_bytes": weight_bytes,
            "cache_bytes": cache_bytes,
        }

    # Inside

    def _take(self, manifest: WeightManifest) -> float:
        """Verifies what lies on the channel, loads it, verifies what is held, probes. Returns the probe gap."""
        backend = self.batcher.backend
        verify_base(manifest, self._base)
        with self._channel.reading(manifest.version) as tensors:
            verify(manifest, manifest.version, checksum(tensors))
            backend.load(tensors)
            wrong = backend.mismatches(tensors)
        if wrong:
            raise WeightSyncError(
                f"weights of version {manifest.version}: {len(wrong)} tensors differ after loading ({wrong[0]}, ...)"
            )
        if self.config.precision == "fp32":
            # Other precisions hold rounded weights, of which no checksum can be that of the sender.
            verify(manifest, manifest.version, checksum(backend.named_views()))
        return self._check_probe(manifest)

    def _check_probe(self, manifest: WeightManifest) -> float:
        if manifest.probe is None:
            return math.nan
        assert self._precision_cost is not None, "measured before the first update"
        config = self.config
        logprobs = self._score(manifest.probe)
        return check_probe(manifest, logprobs, self._precision_cost, config.precision, config.probe_factor)

    def _score(self, probe: WeightProbe) -> list[float]:
        return [logprob for row in probe.rows for logprob in self.batcher.backend.probe_logprobs(row)]

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


def build_batcher(
    model: nn.Module, config: GeneratorConfig, tokenizer: TextDecoder, lora: LoraConfig | None = None
) -> Batcher:
    """The native generator where it can run `model`, else the fallback over the module's own forward.

    Args:
        model: read here and not changed.
        config: how to run.
        tokenizer: end ids and decoding.
        lora: settings of adapters beside its weights; None: none.

    Raises:
        ConfigError: the model needs the fallback, which has neither int8 nor `on_update = "keep"`.
    """
    reason = why_unsupported(model.config)
    device = config.resolved_device
    if reason is None:
        return NativeGenerator(
            model,
            eos_ids=tokenizer.eos_ids,
            decode=tokenizer.decode,
            precision=config.precision,
            slots=config.slots,
            on_update=config.on_update,
            device=device,
            lora=lora,
            routed_experts=config.routed_experts,
        )
    if config.routed_experts:
        raise ConfigError(
            f"generator.routed_experts: this model runs on the transformers fallback ({reason}), which does not tell "
            "its experts; leave it out"
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
        device=device,
        lora=lora,
    )
