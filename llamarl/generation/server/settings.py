"""Settings of inference servers, read without torch."""

import os
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from llamarl.core.config import Config

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ServerFields(Config):
    """Settings of inference servers, whatever they are worth together."""

    environment: str | None = None
    """Folder of the virtual environment that holds the server (vLLM, SGLang), where llamarl starts the servers."""
    url: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    """Addresses of servers that are there already, one for each replica, such as `http://127.0.0.1:8000`."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key of the servers at `url`."""
    arguments: tuple[str, ...] = ()
    """Further arguments of a server that llamarl starts, such as `["--gpu-memory-utilization", "0.8"]`."""
    start_seconds: float = Field(default=600.0, gt=0.0)
    """Deadline for a server to answer after its start."""
    transfer_seconds: float = Field(default=120.0, gt=0.0)
    """Deadline of each step of a weight update."""
    silence_seconds: float = Field(default=600.0, gt=0.0)
    """A server that has completions under way and finishes none for so long counts as lost."""
    weights_folder: str | None = None
    """Folder through which SGLang servers get weights, under the same path on both sides; None: one in this machine's
    memory. vLLM's get them over gloo."""


class ServerSettings(ServerFields):
    """Servers: started in an environment of their own, or already there."""

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if bool(self.environment) == bool(self.url):
            raise ValueError(
                "environment: give the folder of the virtual environment that holds the server, or the url of servers "
                "that are there already; one of the two"
            )
        for url in self.url:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError(f"url: {url!r} is not the address of a server; give http://HOST:PORT")
            if parts.hostname not in LOOPBACK and self.api_key_env is None:
                raise ValueError(
                    f"url: {url} is on another machine; give its key by the name of an environment variable "
                    "(api_key_env), and keep its port in a network of your own: the key does not cover all its routes"
                )
        if self.api_key_env is not None and not self.url:
            raise ValueError("api_key_env: is for servers at url; one that llamarl starts is this machine's own")
        return self

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return Path(os.path.expanduser(self.environment or "")) / "bin" / "python"
