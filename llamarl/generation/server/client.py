"""Requests to an inference server, and what its refusals mean."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from llamarl.core.errors import ConfigError, ExecutorLostError

NAME = "policy"
"""The model's name on servers that llamarl starts."""
CALL_SECONDS = 30.0
"""Deadline of calls that compute nothing."""
MAX_SHOWN = 300


@dataclass(frozen=True, slots=True)
class About:
    """A server as it describes itself."""

    model: str
    max_model_len: int
    world_size: int
    """Workers, each with a part of the weights."""


class ServerClient(ABC):
    """One server. Belongs to the event loop on which it is first used.

    Args:
        url: `http://HOST:PORT`.
        api_key_env: name of the variable with its key.
        transport: instead of the network, for tests.

    Raises:
        ConfigError: the key's variable is not set.
    """

    def __init__(
        self, url: str, api_key_env: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        headers = {}
        if api_key_env is not None:
            if not (key := os.environ.get(api_key_env, "").strip()):
                raise ConfigError(f"api_key_env={api_key_env!r}: the variable is not set; export the server's key")
            headers["Authorization"] = f"Bearer {key}"
        # No connection outlives its request: an executor is torn down without a chance to wait for theirs to close.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            transport=transport,
            limits=limits,
            trust_env=False,
            timeout=CALL_SECONDS,
        )

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        await self._http.aclose()

    @abstractmethod
    async def describe(self) -> About:
        """What the server is. Raises `ConfigError` for one that cannot be used."""

    @abstractmethod
    async def score(self, model: str, name: str, ids: Sequence[int], seconds: float) -> list[float]:
        """Log-probs of `ids[1:]`, each given the ids before it."""

    async def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float | None = CALL_SECONDS
    ) -> Any:
        """Asks for something. Raises `ExecutorLostError` if it is not done; without `seconds` it waits."""
        return self._read(path, await self._send("POST", path, body or {}, seconds))

    async def get(self, path: str) -> Any:
        """Asks what is. Raises `ExecutorLostError` if there is no answer."""
        return self._read(path, await self._send("GET", path, None, CALL_SECONDS))

    async def _send(self, verb: str, path: str, body: Any, seconds: float | None) -> httpx.Response:
        try:
            return await self._http.request(verb, path, json=body, timeout=httpx.Timeout(seconds, connect=CALL_SECONDS))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ExecutorLostError(f"{self.url}{path}: {type(error).__name__} {error}".strip()) from None

    def _read(self, path: str, response: httpx.Response) -> Any:
        if response.status_code in (401, 403):
            raise ConfigError(f"{self.url}{path}: refused with {response.status_code}; check the key (api_key_env)")
        if response.status_code != 200:
            said = " ".join(response.text.split())[:MAX_SHOWN]
            raise ExecutorLostError(f"{self.url}{path}: status {response.status_code}: {said}")
        try:
            return response.json() if response.content else {}
        except ValueError:
            raise ExecutorLostError(f"{self.url}{path}: answered something else than JSON") from None
