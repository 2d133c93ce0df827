"""Settings that all evaluations of a model share: the model, and how it answers. Importing them loads no torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.core.sampling import Sampling
from llamarl.models.template_args import ChatTemplateArgs

if TYPE_CHECKING:
    from llamarl.generation.chats import Chat

SAMPLING_SEED = 42
"""Seed of sampling where none is given, as in the released Multi-IF script."""


class ReplySettings(Config):
    """Settings by which replies are sampled; the defaults are those of the released Multi-IF script."""

    max_tokens: int = Field(default=1024, ge=1)
    """Token limit of a reply."""
    temperature: float = Field(default=0.6, ge=0.0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Keep the likeliest tokens up to this probability."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Drop tokens less likely than this share of the likeliest."""
    stop: tuple[str, ...] = ()
    """A string that ends a reply and is cut off it."""
    system: str | None = None
    """A system message before each conversation."""
    strip_thinking: Annotated[str, Metavar("RULE")] = "none"
    """Part that is taken out of replies, before grading and in the history: none, think for <think>...</think>, or a
    pair of marks OPEN,CLOSE."""
    max_in_flight: int = Field(default=16, ge=1)
    """Conversations held at a time."""

    @property
    def sampling(self) -> Sampling:
        """The settings that the generator reads."""
        return Sampling.parse({name: getattr(self, name) for name in Sampling.model_fields})


class CheckpointSettings(Config):
    """Settings of a checkpoint that runs on this machine."""

    chat_template: Annotated[str | None, Metavar("NAME")] = None
    """A .jinja file or the name of a style, instead of the model's own template."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, such as '{"enable_thinking": false}'."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format."""
    device: str = "auto"
    """Device of the model, such as cuda."""


class ServerSettings(Config):
    """Settings of requests to a server."""

    api_key_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds the key."""
    timeout: Annotated[float, Metavar("SECONDS")] = Field(default=120.0, gt=0.0)
    """Seconds that one try may take."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries after a failure that may pass."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request."""


class AnswerSettings(ReplySettings, CheckpointSettings, ServerSettings):
    """Settings of whichever model is asked: a checkpoint or a server."""

    seed: int | None = None
    """Seed of sampling (default 42); with --grade of language detection and intervals (default 0)."""

    def build_chat(self, model: str, endpoint: str | None = None) -> "Chat":
        """The model that answers: a checkpoint, or the one that a server at `endpoint` calls by this name.

        Raises:
            CheckpointError, ConfigError: there is no such model, or it cannot be asked like this.
        """
        from llamarl.generation.chats import EndpointChat, NativeChat
        from llamarl.models.endpoint import ChatEndpoint, EndpointConfig

        if endpoint is None:
            return NativeChat(
                model,
                self.sampling,
                chat_template=self.chat_template,
                chat_template_args=self.chat_template_args,
                precision=self.precision,
                slots=self.max_in_flight,
                device=self.device,
            )
        server = {
            "base_url": endpoint,
            "model": model,
            "api_key_env": self.api_key_env,
            "max_concurrency": self.max_in_flight,
            "timeout_seconds": self.timeout,
            "max_retries": self.max_retries,
        }
        config = EndpointConfig.parse(server, source="--endpoint")
        return EndpointChat(ChatEndpoint(config), self.sampling, extra=self.extra)

    def refuse_unused(self, who: str, *kinds: type[Config]) -> None:
        """Raises `ConfigError` for a setting of one of these kinds that was given, since `who` answers without it."""
        for name in self.model_fields_set:
            if any(name in kind.model_fields for kind in kinds):
                raise ConfigError(f"--{name.replace('_', '-')} does nothing with {who}; leave it out")
