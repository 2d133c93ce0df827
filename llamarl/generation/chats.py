"""Chats that answer conversations: a model server, or a checkpoint in this process.

    EndpointChat(ChatEndpoint(EndpointConfig(base_url=..., model=...)), Sampling(temperature=0.0))
    NativeChat("model/", Sampling(temperature=0.0))

A `Chat` gets the whole conversation and a seed; equal conversations and seeds get equal answers, whatever else is in
flight: with an endpoint as far as the server keeps to that, natively up to rounding (see `NativeChat`).
"""

import asyncio
import copy
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, EndpointError
from llamarl.core.records import Completion, GenerationRequest, Message
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed
from llamarl.generation.stops import before_stop
from llamarl.models.endpoint import ChatEndpoint, ChatReply, well_formed

if TYPE_CHECKING:
    from torch import nn

    from llamarl.generation.batcher import Batcher
    from llamarl.models.tokenizer import Tokenizer

MAX_ENDPOINT_SEED = 1 << 31
"""Some servers hold a seed in 32 bits."""


class Chat(Protocol):
    """Answers conversations."""

    async def reply(self, messages: Sequence[Message], seed: int) -> ChatReply:
        """The next turn.

        Raises:
            EndpointError: no answer this time; the turn counts as failed.
            ConfigError: a setting is wrong, or these messages are refused.
        """

    def record(self) -> Mapping[str, Any]:
        """The settings on which the answers depend: model, sampling, template, precision."""

    async def close(self) -> None:
        """Lets go of connections and work. Idempotent."""


class ResamplingChat(Chat, Protocol):
    """A chat that others can share."""

    def with_sampling(self, sampling: Sampling) -> Chat:
        """The same model, drawing tokens otherwise."""


class EndpointChat:
    """Answers from an OpenAI-compatible server.

    Args:
        endpoint: where; bounds the requests in flight. Closed with this chat.
        sampling: `top_k` and `min_p`, which OpenAI's protocol doesn't know, are sent only where they are set.
        extra: further fields of each request, such as `{"chat_template_kwargs": {"enable_thinking": False}}`; None
            as a value removes a field.
    """

    def __init__(
        self, endpoint: ChatEndpoint, sampling: Sampling | None = None, *, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.endpoint, self.sampling, self.extra = endpoint, sampling or Sampling(), dict(extra or {})

    async def reply(self, messages: Sequence[Message], seed: int) -> ChatReply:
        """The server's answer."""
        sampling = self.sampling
        beyond = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        return await self.endpoint.chat(
            messages,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed % MAX_ENDPOINT_SEED,
            stop=sampling.stop,
            extra={name: value for name, value in beyond.items() if value} | self.extra,
        )

    def with_sampling(self, sampling: Sampling) -> "EndpointChat":
        """The same server, asked for other sampling. Closing either closes both."""
        return EndpointChat(self.endpoint, sampling, extra=self.extra)

    def record(self) -> Mapping[str, Any]:
        """Address, model, sampling, further fields."""
        config = self.endpoint.config
        return {
            "kind": "endpoint",
            "model": config.model,
            "base_url": config.base_url,
            "sampling": self.sampling.model_dump(mode="json"),
            "extra": self.extra,
        }

    async def close(self) -> None:
        """Closes the connections."""
        await self.endpoint.close()


class NativeChat:
    """Answers from a checkpoint, all conversations in flight decoded together. A later turn reads only what is new.

    A token depends on its seed, its position and the logits. Who shares the batch changes logits by the rounding of
    matrix products only, but that may tip a choice: in fp32 about one sampled token in some hundred thousand (a greedy
    one, only in a tie), in int8 a few more; in bf16 so many that long sampled answers often differ between a resumed
    run and one at a stretch; so does what was read in an earlier turn and is taken over from there. With `slots=1`
    nobody shares, every turn reads its whole history, and answers are equal to the last bit.

    An architecture that the native generator cannot run goes through the slow transformers forward; `record` says so.

    Args:
        model: checkpoint directory in Hugging Face format, or a Hub id.
        sampling: how tokens are drawn. A prompt that leaves less room than `max_tokens` gets the room there is.
        chat_template: a `.jinja` file or the name of one of `models.templates.STYLES`, instead of the model's own.
        chat_template_args: arguments of the chat template, such as `{"enable_thinking": False}`.
        precision: number format of weights and activations.
        slots: most answers decoded together; give at least the number of requests in flight.
        device: where the model runs, as torch names it, or `auto`: CUDA, else MPS, else the CPU.

    Raises:
        CheckpointError: no such checkpoint, or it is broken.
        ConfigError: no chat template, an unknown one, or a precision that this model cannot have.
    """

    def __init__(
        self,
        model: str | Path,
        sampling: Sampling | None = None,
        *,
        chat_template: str | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        precision: Literal["fp32", "bf16", "int8"] = "fp32",
        slots: int = 64,
        device: str = "auto",
    ) -> None:
        from llamarl.models.checkpoint import load_model, load_tokenizer
        from llamarl.models.template_args import check_template_args

        tokenizer = load_tokenizer(model)
        set_template(tokenizer, chat_template, str(model))
        check_template_args(tokenizer.backend.chat_template, chat_template_args or {})
        tokenizer.chat_template_args = dict(chat_template_args or {})
        module = load_model(model, dtype="bfloat16" if precision == "bf16" else "float32")
        self._set_up(str(model), module, tokenizer, sampling, precision, slots, device)

    @classmethod
    def over(
        cls,
        module: "nn.Module",
        tokenizer: "Tokenizer",
        sampling: Sampling | None = None,
        *,
        name: str,
        precision: Literal["fp32", "bf16", "int8"] = "fp32",
        slots: int = 64,
        device: str = "auto",
    ) -> "NativeChat":
        """Answers from a model that is in memory already, as `load_model` gives it; the generator copies its weights.

        Args:
            module: without adapters.
            tokenizer: of the model; its chat template and that template's arguments are used as they are.
            sampling: how tokens are drawn.
            name: for records and messages.
            precision: number format of the generator's weights and activations.
            slots: most answers decoded together.
            device: where the generator runs.

        Raises:
            ConfigError: no chat template, or a precision that this model cannot have.
        """
        set_template(tokenizer, None, name)
        chat = cls.__new__(cls)
        chat._set_up(name, module, tokenizer, sampling, precision, slots, device)
        return chat

    def _set_up(
        self,
        name: str,
        module: "nn.Module",
        tokenizer: "Tokenizer",
        sampling: Sampling | None,
        precision: str,
        slots: int,
        device: str,
    ) -> None:
        from llamarl.generation.executor import GeneratorConfig, build_batcher
        from llamarl.models.decoder import why_unsupported

        self.model, self.sampling, self.precision = name, sampling or Sampling(), precision
        self._tokenizer = tokenizer
        self.fallback: str | None = why_unsupported(module.config)
        """The reason for which the forward pass of transformers is used, or None."""
        self._weights = _digest(module)
        config = GeneratorConfig.parse({"precision": precision, "slots": slots, "device": device})
        self.device = config.resolved_device
        """The device on which the model runs."""
        self._batcher = build_batcher(module, config, self._tokenizer)
        self._batcher.reuses_cache = slots > 1 and self._batcher.backend.can_reuse
        self._decoding = _Decoding(self._batcher)

    async def reply(self, messages: Sequence[Message], seed: int) -> ChatReply:
        """The model's answer; a stop string is not part of it.

        Raises:
            EndpointError: the conversation fills the model's context.
            ConfigError: the chat template refuses it.
        """
        started = time.perf_counter()
        prompt = self._tokenizer.encode_chat([{**m, "content": well_formed(m["content"])} for m in messages])
        completion = await self._decoding.complete(prompt, seed, self._fit_sampling(len(prompt)))
        return ChatReply(
            before_stop(completion.text, self.sampling.stop),
            completion.finish_reason,
            len(prompt),
            len(completion.token_ids),
            seconds=time.perf_counter() - started,
        )

    def with_sampling(self, sampling: Sampling) -> "NativeChat":
        """The same weights, and the same batch, drawing tokens otherwise. Closing either stops both."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def record(self) -> Mapping[str, Any]:
        """Model, digests of weights and tokenizer, sampling, precision, device, and which generator it is."""
        return {
            "kind": "native",
            "model": self.model,
            "weights": self._weights,
            "tokenizer": self._tokenizer.fingerprint,
            **({"chat_template_args": args} if (args := self._tokenizer.chat_template_args) else {}),
            "sampling": self.sampling.model_dump(mode="json"),
            "precision": self.precision,
            "device": self.device,
            "generator": "native" if self.fallback is None else f"transformers forward ({self.fallback})",
        }

    async def close(self) -> None:
        """Stops decoding."""
        await self._decoding.close()

    def _fit_sampling(self, num_prompt: int) -> Sampling:
        """Caps the tokens of a sampling at those that still fit behind the prompt."""
        room = self._batcher.backend.max_positions - num_prompt
        if room < 1:
            raise EndpointError(
                f"the conversation has {num_prompt} tokens, which fill the model's context of "
                f"{self._batcher.backend.max_positions}"
            )
        if room >= self.sampling.max_tokens:
            return self.sampling
        return self.sampling.model_copy(update={"max_tokens": room})


class _Decoding:
    """The loop that decodes the requests of all chats that share a batcher."""

    def __init__(self, batcher: "Batcher") -> None:
        self._batcher = batcher
        self._keys = itertools.count()
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._task: asyncio.Task[None] | None = None

    async def complete(self, prompt: tuple[int, ...], seed: int, sampling: Sampling) -> Completion:
        """The completion of one prompt."""
        request = GenerationRequest(next(self._keys), prompt, (seed,), sampling)
        self._batcher.add([request])
        self._waiting[request.key] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            return await self._waiting[request.key]
        finally:
            del self._waiting[request.key]
            self._batcher.cancel([request.key])

    async def close(self) -> None:
        """Stops decoding."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Steps while there is work; who got an answer asks the next question before the next step."""
        try:
            while self._batcher.has_work:
                for key, (completion,) in self._batcher.step():
                    if not self._waiting[key].done():
                        self._waiting[key].set_result(completion)
                await asyncio.sleep(0)  # those who were answered run now, and their next questions join this batch
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)


def set_template(tokenizer: "Tokenizer", name: str | None, model: str) -> None:
    """Gives a tokenizer the chat template of a file or style; without a name it must have one of its own.

    Raises:
        ConfigError: it has none, or there is no such file or style.
    """
    from llamarl.models.templates import STYLES

    if name is None:
        if not tokenizer.has_chat_template:
            raise ConfigError(
                f"{model}: its tokenizer has no chat template, which conversations need; name one with chat_template: "
                f"a .jinja file, or one of {', '.join(STYLES)}"
            )
    elif name in STYLES:
        tokenizer.backend.chat_template = STYLES[name].template
    elif Path(name).is_file():
        tokenizer.backend.chat_template = Path(name).read_text(encoding="utf-8")
    else:
        raise ConfigError(f"chat_template {name!r}: no such file or style.{suggest(name, list(STYLES))}")


def _digest(module: "nn.Module") -> str:
    """One number for all weights."""
    from llamarl.functional.checksum import checksum
    from llamarl.models.decoder import named_tensors

    sums = checksum(dict(named_tensors(module)))
    return f"{derive_seed(*sorted(sums), *(sums[name] for name in sorted(sums))):016x}"
