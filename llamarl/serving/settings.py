"""Settings of a service, without what serves: help is quick."""

import ipaddress
from typing import Annotated, Self

from pydantic import Field, model_validator

from llamarl.core.config import Config, Metavar


class Serving(Config):
    """HTTP."""

    host: Annotated[str, Metavar("HOST")] = "127.0.0.1"
    """The address to listen on; any but this machine's own needs --token-env."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen on; 0: a free one."""
    token_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds the token which requests must bring (Authorization: Bearer TOKEN)."""
    max_body_kib: int = Field(default=256, ge=1, le=1 << 20)
    """Largest body of a request, in KiB; larger ones are refused with 413."""
    deadline: Annotated[float, Metavar("SECONDS")] = Field(default=30.0, gt=0.0)
    """Seconds that a request may take from its first byte to its answer; then it is given up with 504."""
    drain: Annotated[float, Metavar("SECONDS")] = Field(default=30.0, ge=0.0)
    """Seconds that accepted requests have to finish once the service is told to stop."""

    @property
    def is_local(self) -> bool:
        """True if nobody but this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        if not self.is_local and self.token_env is None:
            raise ValueError(
                f"--host {self.host}: others can reach it; put a token into an environment variable and give the "
                "variable's name: --token-env VARIABLE"
            )
        return self
