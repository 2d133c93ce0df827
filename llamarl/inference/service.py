"""The routes: `/v1/completions`, `/v1/chat/completions`, `/v1/models`.

service = ModelService(Served(module, tokenizer, "my-model"), settings)
await service.run(on_start=print)
"""

import asyncio
import copy
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from llamarl.core.errors import CheckpointError, ConfigError, WeightSyncError
from llamarl.core.records import Completion, GenerationRequest
from llamarl.core.seeds import derive_seed
from llamarl.generation.batcher import Batcher
from llamarl.generation.executor import GeneratorConfig, build_batcher
from llamarl.generation.stops import before_stop
from llamarl.inference.answers import ChatFormat, CompletionFormat, Format, count_usage, label, list_versions
from llamarl.inference.decoding import DecodingThread, Draw
from llamarl.inference.protocol import Asked, ChatBody, CompletionBody
from llamarl.inference.settings import Generating, ModelServing
from llamarl.inference.texts import TextPieces, TokenTexts
from llamarl.models.decoder import why_unsupported
from llamarl.models.endpoint import well_formed
from llamarl.models.template_args import check_template_args
from llamarl.models.tokenizer import Tokenizer
from llamarl.serving.http import EventStream, Refusal, Route, Service
from llamarl.serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A model in memory."""

    module: nn.Module
    """Without adapters; the generator copies its weights."""
    tokenizer: Tokenizer
    name: str
    """The name that requests call it by."""
    version: int = 0
    """The policy version of its weights."""


class NewerWeights(Protocol):
    """Where a policy in training leaves its weights."""

    def look(self) -> tuple[int, Mapping[str, Tensor]] | None:
        """Version and verified weights if there are newer ones than at the last look. Called on a thread.

        Raises:
            CheckpointError: the newest cannot be used; another look may find a better one.
        """


class ModelService:
    """A model behind OpenAI's protocol. Belongs to the event loop on which it is built.

    Args:
        served: the model.
        settings: address, limits, generator.
        source: newer weights, which it takes as they come; None: it keeps those it has.
    """

    def __init__(self, served: Served, settings: ModelServing, source: NewerWeights | None = None) -> None:
        self.settings, self.name, self._tokenizer, self._source = settings, served.name, served.tokenizer, source
        batcher = build_generator(served, settings)
        self._max_positions, self._vocab_size = batcher.backend.max_positions, batcher.backend.vocab_size
        anchor = next(iter(self._tokenizer.encode("a")), 0)
        self._texts = TokenTexts(lambda ids: self._tokenizer.decode(ids, skip_special=False), anchor)
        self.version, self._created = served.version, int(time.time())
        reason = why_unsupported(served.module.config)
        self._about = {
            "model": self.name,
            "generator": "native" if reason is None else f"transformers ({reason})",
            "precision": settings.precision,
            "slots": settings.slots,
            "max_model_len": self._max_positions,
        }
        self.decoding = DecodingThread(batcher, max_waiting=settings.max_waiting)
        self.metrics = self._build_metrics(batcher)
        self._following: asyncio.Task[None] | None = None
        routes = [
            Route("/v1/completions", CompletionBody, self.complete),
            Route("/v1/chat/completions", ChatBody, self.chat),
        ]
        self.http = Service(
            settings, routes, self.metrics, describe=self._describe, pages={"/v1/models": self._list_models}
        )

    def _build_metrics(self, batcher: Batcher) -> Metrics:
        metrics = Metrics()
        self._prompt_tokens = metrics.counter("prompt_tokens", "Tokens of prompts.")
        self._new_tokens = metrics.counter("completion_tokens", "Tokens of finished completions.")
        self._updates = metrics.counter("weight_updates", "Newer weights that were taken.")
        metrics.gauge("completions_active", "Completions being decoded.").set_function(lambda: batcher.num_active)
        metrics.gauge("policy_version", "Version of the weights.").set_function(lambda: self.version)
        metrics.waiting.set_function(lambda: max(0, self.decoding.num_open - batcher.num_active))
        return metrics

    async def run(self, on_start: Callable[[str], object]) -> int:
        """Serves until it is told to stop; returns the number of requests that were cut off."""
        self.follow()
        try:
            return await self.http.run(on_start)
        finally:
            await self._end()

    async def close(self) -> None:
        """Lets accepted requests finish, and ends."""
        await self.http.drain()
        await self._end()

    def follow(self) -> None:
        """Begins to look for newer weights, where there is a source of them."""
        if self._source is not None and self._following is None:
            self._following = asyncio.create_task(self._follow(self._source))

    async def _end(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.decoding.close()

    # ---- routes ------------------------------------------------------------------------------------------------------

    async def complete(self, body: CompletionBody) -> Any:
        """Continues one or several prompts."""
        self._check_name(body)
        prompts = [self._encode(prompt) for prompt in body.prompts]
        return await self._answer(body, prompts, body.max_tokens or 16, CompletionFormat(self._tokenizer, self._texts))

    async def chat(self, body: ChatBody) -> Any:
        """Answers a conversation."""
        self._check_name(body)
        tokenizer = self._tokenizer
        if body.chat_template_kwargs:
            with _blaming("chat_template_kwargs"):
                check_template_args(tokenizer.backend.chat_template, body.chat_template_kwargs)
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template_args = {**tokenizer.chat_template_args, **body.chat_template_kwargs}
        with _blaming("messages"):
            prompt = tokenizer.encode_chat([message.turn() for message in body.messages])
        limit = body.limit or self._max_positions - len(prompt)
        return await self._answer(body, [prompt], limit, ChatFormat(self._texts))

    def _list_models(self) -> dict[str, Any]:
        model = {"id": self.name, "object": "model", "created": self._created, "owned_by": "llamarl"}
        return {"object": "list", "data": [{**model, "max_model_len": self._max_positions}]}

    def _describe(self) -> dict[str, Any]:
        return {**self._about, "version": self.version}

    # ---- one request -------------------------------------------------------------------------------------------------

    async def _answer(self, body: Asked, prompts: Sequence[Sequence[int]], limit: int, form: Format) -> Any:
        requests = self._build_requests(body, prompts, limit)
        self._prompt_tokens.inc(sum(map(len, prompts)))
        num_prompt = sum(map(len, prompts))
        if body.stream:
            return EventStream(self._stream(body, requests, form, num_prompt))
        draws: list[list[Draw]] = [[] for _ in requests]
        choices: list[dict[str, Any]] = [{}] * len(requests)
        num_tokens = 0
        has_logprobs = body.num_top is not None
        async with aclosing(self._listen(requests, num_top=body.num_top, hears_draws=has_logprobs)) as events:
            async for index, event in events:
                if isinstance(event, Draw):
                    draws[index].append(event)
                    continue
                text = before_stop(event.text, body.stop)
                choice = form.choice(index, text, event.finish_reason, draws[index] if has_logprobs else None)
                choices[index] = choice | self._describe_tokens(body, event)
                num_tokens += len(event.token_ids)
        head = label(form.kind, form.prefix, self.name, self._fingerprint)
        return {**head, "choices": choices, "usage": self._count(num_prompt, num_tokens)}

    async def _stream(
        self, body: Asked, requests: Sequence[GenerationRequest], form: Format, num_prompt: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the events of all choices as they come."""
        head = label(form.event_kind, form.prefix, self.name, self._fingerprint)
        head |= {"usage": None} if body.includes_usage else {}
        pieces = [TextPieces(self._tokenizer.decode, body.stop) for _ in requests]
        held: list[list[Draw]] = [[] for _ in requests]  # whose text is not certain yet
        num_tokens = 0
        for index in range(len(requests)):
            for first in form.first_events(index):
                yield {**head, "choices": [first]}
        async with aclosing(self._listen(requests, num_top=body.num_top, hears_draws=True)) as events:
            async for index, event in events:
                reason: str | None = None
                beyond: dict[str, Any] = {}
                if isinstance(event, Draw):
                    held[index].append(event)
                    text = pieces[index].add(event.token_id)
                else:
                    text, reason = pieces[index].finish(before_stop(event.text, body.stop)), event.finish_reason
                    beyond = self._describe_tokens(body, event)
                    num_tokens += len(event.token_ids)
                if text or reason:
                    draws, held[index] = (held[index] if body.num_top is not None else None), []
                    yield {**head, "choices": [form.event(index, text, reason, draws) | beyond]}
        usage = self._count(num_prompt, num_tokens)
        if body.includes_usage:
            yield {**head, "choices": [], "usage": usage}

    async def _listen(
        self, requests: Sequence[GenerationRequest], *, num_top: int | None, hears_draws: bool
    ) -> AsyncGenerator[tuple[int, Draw | Completion], None]:
        """Yields what the decoding thread gives. Raises `Refusal` where its weights are in doubt."""
        try:
            async with aclosing(self.decoding.stream(requests, num_top=num_top, hears_draws=hears_draws)) as events:
                async for event in events:
                    yield event
        except WeightSyncError as error:
            raise Refusal(503, f"the weights are in doubt: {error}", headers={"Retry-After": "1"}) from None

    def _describe_tokens(self, body: Asked, completion: Completion) -> dict[str, Any]:
        """What a finished choice says beyond OpenAI's fields."""
        ids = {"token_ids": list(completion.token_ids), "prompt_token_ids": list(completion.trajectory.prompt_ids)}
        return {"weight_versions": list_versions(completion), **(ids if body.return_token_ids else {})}

    def _count(self, num_prompt: int, num_tokens: int) -> dict[str, int]:
        self._new_tokens.inc(num_tokens)
        return count_usage(num_prompt, num_tokens)

    @property
    def _fingerprint(self) -> str:
        return f"{self.name}@{self.version}"

    def _check_name(self, body: Asked) -> None:
        if body.model not in (None, self.name):
            raise Refusal(404, f"model: {body.model!r} is not served here, {self.name!r} is", param="model")

    def _encode(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return tuple(self._tokenizer.backend.encode(well_formed(prompt), add_special_tokens=True))

    def _build_requests(self, body: Asked, prompts: Sequence[Sequence[int]], limit: int) -> list[GenerationRequest]:
        """Raises `Refusal` for what does not fit into the model."""
        for prompt in prompts:
            room = self._max_positions - len(prompt)
            if not prompt:
                raise Refusal(400, "prompt: holds no token; give at least one", param="prompt")
            if (wrong := next((token for token in prompt if not 0 <= token < self._vocab_size), None)) is not None:
                message = f"prompt: {wrong} is no token id of this model, whose vocabulary has {self._vocab_size}"
                raise Refusal(400, message, param="prompt")
            if room < 1:
                raise Refusal(
                    400,
                    f"{body.asks_in}: {len(prompt)} tokens leave no room for an answer in the model's "
                    f"{self._max_positions}; shorten it",
                    param=body.asks_in,
                )
            if limit > room:
                raise Refusal(
                    400,
                    f"max_tokens: {len(prompt)} tokens of the prompt and {limit} new ones are more than the model's "
                    f"{self._max_positions}; ask for at most {room}, or shorten the prompt",
                    param="max_tokens",
                )
        seed = secrets.randbits(62) if body.seed is None else body.seed
        seeds = (seed, *(derive_seed(seed, sample) for sample in range(1, body.n)))
        sampling = body.sampling(limit)
        return [GenerationRequest(0, tuple(prompt), (each,), sampling) for prompt in prompts for each in seeds]

    # ---- newer weights -----------------------------------------------------------------------------------------------

    async def _follow(self, source: NewerWeights) -> None:
        """Takes newer weights as they come. One that cannot be used is told of, and the next is awaited."""
        while True:
            try:
                if (newer := await asyncio.to_thread(source.look)) is not None:
                    await self._take(*newer)
            except CheckpointError as error:
                log.warning("version %d is served on: %s", self.version, error)
            except WeightSyncError as error:
                log.error("nothing is served until there are better weights: %s", error)
            await asyncio.sleep(self.settings.look_seconds)

    async def _take(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        if wrong := await asyncio.to_thread(list_nonfinite, tensors):
            raise CheckpointError(f"weights of version {version}: {wrong[0]} holds values that are no numbers")
        await self.decoding.update(lambda batcher: take_weights(batcher, version, tensors))
        self.version = version
        self._updates.inc()


def build_generator(served: Served, settings: Generating) -> Batcher:
    """The generator of a model: the native one, or the slow one of transformers where that cannot run it."""
    values = {"precision": settings.precision, "slots": settings.slots, "device": settings.device}
    batcher = build_batcher(served.module, GeneratorConfig.parse(values), served.tokenizer)
    batcher.version = served.version
    batcher.reuses_cache = settings.slots > 1 and batcher.backend.can_reuse
    return batcher


def list_nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that hold infinities or NaN."""
    return sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))


def take_weights(batcher: Batcher, version: int, tensors: Mapping[str, Tensor]) -> None:
    """Loads newer weights and proves, before the next token, that what is held is what was sent.

    Completions under way go on; their tokens from here on carry `version`.

    Raises:
        WeightSyncError: a tensor differs after loading.
    """
    batcher.backend.load(tensors)
    if wrong := batcher.backend.mismatches(tensors):
        raise WeightSyncError(f"weights of version {version}: {len(wrong)} tensors differ after loading ({wrong[0]})")
    batcher.adopt(version)


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Refuses a request whose field a template refuses."""
    try:
        yield
    except ConfigError as error:
        raise Refusal(400, f"{field}: {error}", param=field) from None
