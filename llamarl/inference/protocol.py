"""Bodies of OpenAI's requests. A field that would change the answer and is not done here is refused by its name.

Fields are of three kinds: those that are done; those that must have the value that changes nothing (`logit_bias: {}`);
and those that change nothing anyway (`user`), which are ignored. Any other name is a mistake, and refused as one.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from llamarl.core.config import Config
from llamarl.core.sampling import Sampling

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "parallel_tool_calls", "request_id", "priority"),
    }
)
"""Fields that do not change what is answered."""
Stops = Annotated[tuple[Annotated[StrictStr, Field(min_length=1)], ...], Field(max_length=MAX_STOPS)]


class StreamOptions(Config):
    """What a stream holds besides."""

    include_usage: bool = False
    """A last event with the counts of tokens."""


class Asked(Config):
    """Fields that both routes have."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "logit_bias": ({},),
        "min_tokens": (0,),
        "ignore_eos": (False,),
        "skip_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "stop_token_ids": ([],),
        "bad_words": ([],),
    }
    """Fields that are not done, and the values of them that change nothing."""
    asks_in: ClassVar[str]
    """The field that holds what is to be continued."""

    model: StrictStr | None = None
    """The served name; None: whatever is served."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=-1)
    """Not OpenAI's, but vLLM's; 0 and -1 keep all."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Not OpenAI's, but vLLM's."""
    stop: Stops = ()
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    """Not OpenAI's, but vLLM's: ids of prompt and completion stand in the answer."""

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, values: Any) -> Any:
        """Drops what changes nothing, and refuses what is not done."""
        if not isinstance(values, Mapping):
            return values
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if name in cls.neutral:
                if value is not None and value not in cls.neutral[name]:
                    raise ValueError(f"{name}: is not done here, and would change the answer; leave it out")
            elif name not in IGNORED and (value is not None or name not in cls.model_fields):
                kept[name] = [value] if name == "stop" and isinstance(value, str) else value
        return kept

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream: true")
        return self

    @property
    @abstractmethod
    def num_top(self) -> int | None:
        """How many of the likeliest tokens are asked for; None: no log-probs."""

    @property
    def includes_usage(self) -> bool:
        """True where a stream ends with counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int) -> Sampling:
        """The settings that the generator reads."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            stop=self.stop,
        )


Ids = Annotated[tuple[StrictInt, ...], Field(min_length=1)]


def _say_once(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One message, where each of the forms that a prompt may have would have its own."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"must be text, token ids, or 1 to {MAX_CHOICES} of either") from None


OneOrSeveral = Annotated[
    StrictStr | Ids | Annotated[tuple[StrictStr | Ids, ...], Field(min_length=1, max_length=MAX_CHOICES)],
    WrapValidator(_say_once),
]


class CompletionBody(Asked):
    """Body of `/v1/completions`."""

    asks_in = "prompt"
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Asked.neutral,
        "echo": (False,),
        "suffix": ("",),
        "best_of": (1,),
        "add_special_tokens": (True,),
        "prompt_logprobs": (),
    }

    prompt: OneOrSeveral
    """Text, token ids, or several of either."""
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        return (self.prompt,) if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[return-value]

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens are asked for; None: no log-probs."""
        return self.logprobs


class TextPart(Config):
    """A piece of a message's content."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(Config):
    """A turn. What a chat template may read of it beyond role and content is handed on."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | tuple[TextPart, ...] | None = None
    name: StrictStr | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    tool_call_id: StrictStr | None = None
    reasoning_content: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_refusal(cls, values: Any) -> Any:
        """Answers of other services, sent back as history, bring fields that hold nothing."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content: required, but not given")
        return self

    def turn(self) -> dict[str, Any]:
        """As chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        beyond = {name: getattr(self, name) for name in ("name", "tool_call_id", "reasoning_content")}
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": self.role, "content": text, **{k: v for k, v in beyond.items() if v is not None}, **calls}


class ChatBody(Asked):
    """Body of `/v1/chat/completions`."""

    asks_in = "messages"
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Asked.neutral,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "reasoning_effort": (),
        "verbosity": (),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "echo": (False,),
    }

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Not OpenAI's, but vLLM's: arguments of the chat template."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_completion_tokens: differs from max_tokens; give one of them")
        return self

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens are asked for; None: no log-probs."""
        return self.top_logprobs if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None: as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
