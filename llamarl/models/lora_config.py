"""Settings of low-rank adapters; read without torch."""

from typing import Any

from pydantic import Field, field_validator

from llamarl.core.config import Config


class LoraConfig(Config):
    """Low-rank adapters: linear layers compute `W x + (alpha / rank) B A x`, and only A and B are trained."""

    rank: int = Field(ge=1)
    """Rows of A and columns of B; 8 to 64 are usual."""
    alpha: float = Field(default=32.0, gt=0.0)
    """Scale of what the adapters add: `alpha / rank`."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as `q_proj`; empty: all but the output head."""

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Names from the command line, between commas."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value
