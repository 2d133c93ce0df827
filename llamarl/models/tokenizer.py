"""A tokenizer with its chat template: messages in, token ids out, and back."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message
from llamarl.models.template_args import with_defaults

MAX_RENDERED_CHARACTERS = 1 << 24
"""A chat template that makes a longer text of one conversation is refused."""
ERROR_CHARACTERS = 500


class Tokenizer:
    """A Hugging Face tokenizer as the package uses it. Picklable; equal fingerprints encode equally.

    Load one with `checkpoint.load_tokenizer`.

    Args:
        backend: a fast Hugging Face tokenizer.
        end_ids: further ids that end a completion, from the model's generation config.
        chat_template_args: variables of the chat template for every text it renders, such as
            `{"enable_thinking": False}`.
    """

    def __init__(
        self, backend: Any, end_ids: Sequence[int] = (), chat_template_args: Mapping[str, Any] | None = None
    ) -> None:
        self.backend = backend
        self.chat_template_args = dict(chat_template_args or {})
        self.end_ids: tuple[int, ...] = tuple(end_ids)
        own = () if backend.eos_token_id is None else (backend.eos_token_id,)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*own, *self.end_ids)))
        """Every id that ends a completion; the tokenizer's own end token first. Empty if it has none."""
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        """The largest id plus one: a model's embedding must have at least this many rows."""

    def why_unfit(self, num_embeddings: int) -> str | None:
        """Says why a model with so many embedding rows cannot take this tokenizer's ids; None if it can."""
        largest = max(self.vocab_size - 1, *self.eos_ids, 0)
        if largest < num_embeddings:
            return None
        return (
            f"the tokenizer's ids go up to {largest}, but the model's vocabulary has {num_embeddings} entries; "
            "tokenizer and weights are not of the same model"
        )

    @property
    def has_chat_template(self) -> bool:
        """True where `encode_chat` can take several messages."""
        return bool(self.backend.chat_template)

    @property
    def bos_id(self) -> int | None:
        """The id texts start with, or None."""
        return self.backend.bos_token_id  # type: ignore[no-any-return]

    @property
    def pad_id(self) -> int:
        """The id to fill rows with. Where the tokenizer has none, its end token: always mask by length, never by id."""
        if self.backend.pad_token_id is not None:
            return int(self.backend.pad_token_id)
        return self.eos_ids[0] if self.eos_ids else 0

    @property
    def fingerprint(self) -> str:
        """A hash of vocabulary, rules, chat template with its arguments, and end ids, the same in every process."""
        parts = [self.backend.backend_tokenizer.to_str(), self.backend.chat_template, self.bos_id, self.eos_ids]
        if self.chat_template_args:
            parts.append(self.chat_template_args)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def with_default_args(self) -> "Tokenizer":
        """One whose chat template needs no arguments to render as this one does."""
        if not self.chat_template_args:
            return self
        backend = copy.deepcopy(self.backend)
        backend.chat_template = with_defaults(backend.chat_template, self.chat_template_args)
        return Tokenizer(backend, self.end_ids)

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Ids of a conversation, ending where the assistant's answer begins.

        A base model without a chat template continues plain text: it takes exactly one user message and encodes its
        content, with the special tokens the tokenizer itself adds (a BOS where it has one).

        Raises:
            ConfigError: the template refuses these messages, or there is none and this is more than one user message.
        """
        if self.has_chat_template:
            return self.encode(self.render(messages, tools))
        if tools or [message["role"] for message in messages] != ["user"]:
            raise ConfigError(
                "this tokenizer has no chat template, so a prompt must be one user message without tools (it is "
                "continued as plain text); for conversations put a chat_template.jinja beside its tokenizer.json"
            )
        return tuple(self.backend.encode(messages[0]["content"], add_special_tokens=True))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text the chat template makes of `messages`.

        Raises:
            ConfigError: the template refuses them, fails on them, leaves out what they call, or is missing.
        """
        if not self.has_chat_template:
            raise ConfigError(
                "this tokenizer has no chat template; put a chat_template.jinja beside its tokenizer.json"
            )
        text = self._render(messages, tools, add_generation_prompt)
        if any(message.get("tool_calls") for message in messages):
            self._refuse_lost_calls(messages, tools, add_generation_prompt, text)
        return text

    def _refuse_lost_calls(
        self, messages: Sequence[Message], tools: Any, add_generation_prompt: bool, text: str
    ) -> None:
        """Raises `ConfigError` where `text` shows nothing of the messages' tool calls, or arguments quoted twice."""
        silent = [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
        try:
            without = self._render(silent, tools, add_generation_prompt)
        except ConfigError:  # a message that needs its calls shows them
            without = ""
        if text == without:
            raise ConfigError(
                "the chat template leaves out the messages' tool_calls; use a template that shows them, or write the "
                "calls into the content"
            )
        for arguments in _argument_texts(messages):
            if json.dumps(arguments, ensure_ascii=False) in text:
                raise ConfigError(
                    f"the chat template quotes the arguments of a tool call again, since they are text: "
                    f"{arguments[:60]!r}; give them as an object"
                )

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        try:
            text: str = self.backend.apply_chat_template(
                [dict(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self.chat_template_args,
            )
        except Exception as error:  # a template is a program of the checkpoint's: its expressions may raise anything
            roles = [message.get("role") for message in messages]
            problem = str(error)[:ERROR_CHARACTERS] or type(error).__name__
            raise ConfigError(f"the chat template refuses messages of roles {roles}: {problem}") from error
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ConfigError(
                f"the chat template makes {len(text)} characters of {len(messages)} messages, over the limit of "
                f"{MAX_RENDERED_CHARACTERS}; use the template that belongs to the model"
            )
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text, without any token the tokenizer would add. Never call it on decoded completions."""
        return tuple(self.backend.encode(text, add_special_tokens=False))

    def encode_with_places(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """`encode`, and the characters of the text that each token covers: from, and up to but not including.

        A character that several tokens share, as the bytes of one in another script do, is covered by each of them.
        """
        encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True)
        return tuple(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; special tokens left out unless asked for."""
        # the fast backend itself: transformers' wrapper around it takes many times as long
        return self.backend.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special)  # type: ignore[no-any-return]


def _argument_texts(messages: Sequence[Message]) -> Iterator[str]:
    """Arguments of tool calls that are JSON text instead of an object."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, Mapping) else {}
            arguments = function.get("arguments") if isinstance(function, Mapping) else None
            if isinstance(arguments, str):
                yield arguments
