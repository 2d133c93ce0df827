"""Settings of a served model, read without torch: help is quick."""

from typing import Annotated, Literal

from pydantic import Field

from llamarl.core.config import Config, Metavar
from llamarl.models.template_args import ChatTemplateArgs
from llamarl.serving.settings import Serving


class Generating(Config):
    """The generator."""

    name: str | None = Field(default=None, min_length=1)
    """The name that requests call the model by (default: that of its directory or file)."""
    chat_template: Annotated[str | None, Metavar("NAME")] = None
    """A .jinja file or the name of a style, instead of the model's own template."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, such as '{"enable_thinking": false}'."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format."""
    slots: int = Field(default=32, ge=1)
    """Most completions decoded together."""
    max_waiting: int = Field(default=256, ge=0)
    """Most completions that wait for a slot; requests beyond are refused with 429."""
    device: str = "auto"
    """Device of the model, such as cuda."""
    look_seconds: Annotated[float, Metavar("SECONDS")] = Field(default=1.0, gt=0.0)
    """Seconds between two looks for newer weights, where there is a run to follow."""


class ModelServing(Generating, Serving):
    """A model behind OpenAI's protocol."""

    max_body_kib: int = Field(default=4096, ge=1, le=1 << 20)
    """Largest body of a request, in KiB; larger ones are refused with 413."""
    deadline: Annotated[float, Metavar("SECONDS")] = Field(default=600.0, gt=0.0)
    """Seconds that a request may take from its first byte to its last token; then it is given up with 504."""
    drain: Annotated[float, Metavar("SECONDS")] = Field(default=30.0, ge=0.0)
    """Seconds that accepted requests have to finish once the service is told to stop."""
