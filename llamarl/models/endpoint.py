"""Chat completions from a model server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, or a paid service.

    async with ChatEndpoint(EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="my-model")) as endpoint:
        reply = await endpoint.chat([{"role": "user", "content": "2 + 2 ="}], max_tokens=8)

What a busy or failing server does is met here, once: requests in flight are bounded; a 408, 409, 425, 429 or 5xx, a
broken or silent connection and a body that is no reply are tried again after a pause that grows and is random, or the
pause that `Retry-After` asks for. What no retry can mend (a wrong address, name or key) is a `ConfigError`. One
endpoint serves one event loop.

A server is not trusted with this process: a reply's bytes and seconds are bounded, compressed replies are refused
unread (a few kilobytes may unpack to gigabytes), redirects are not followed, so a key never travels to another host,
and cookies are not kept.
"""

import asyncio
import contextlib
import email.utils
import functools
import http.cookiejar
import json
import math
import os
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
from pydantic import ConfigDict, Field, model_validator

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, EndpointError
from llamarl.core.records import Message

MAX_REPLY_BYTES = 4 << 20
"""A longer body is refused, whatever the server says its length is. As JSON it may take 30 times this in memory."""
MAX_COUNT = 1 << 40
"""Larger numbers of tokens are no counts."""
MAX_REASON_CHARACTERS = 64
"""The most characters that are kept of a finish reason."""
MAX_PAUSE_SECONDS = 60.0
"""Cap of every pause before a retry, `Retry-After` included."""
FIRST_PAUSE_SECONDS = 0.5
"""The pause before the first retry; it doubles, times a random factor in [0.5, 1.5)."""
RETRIED = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may pass."""
EXCERPT_CHARACTERS = 300
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class EndpointConfig(Config):
    """The address of a served model, and how it is asked."""

    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str
    """Address up to the version, such as `http://127.0.0.1:8000/v1`; `/chat/completions` is appended."""
    model: str = Field(min_length=1)
    """The name that the server has for the model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; never the key itself."""
    max_concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once."""
    timeout_seconds: float = Field(default=120.0, gt=0.0)
    """The deadline of one try, from connecting to the last byte."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries after a failure that may pass."""

    @model_validator(mode="after")
    def _check(self) -> Self:  # one validator of the whole: pydantic's report of a field would show its value
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                "api_key_env: not the name of an environment variable (capitals, digits and _); put the key into a "
                "variable and give its name, such as OPENAI_API_KEY"
            )
        try:
            url = urllib.parse.urlsplit(self.base_url)
            is_http = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_http = False
        if not is_http or not self.base_url.isascii() or not self.base_url.isprintable():
            raise ValueError("base_url: not an http address; give one such as http://127.0.0.1:8000/v1")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError("base_url: holds a user, a query or a fragment; a key belongs into api_key_env's variable")
        return self


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The reply of a model."""

    text: str
    finish_reason: str
    """The reason as the server names it: `stop`, `length`, ...; `unknown` where it names none."""
    prompt_tokens: int | None
    completion_tokens: int | None
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    """The log-probs by token text at each generated token, where asked for, the generated token included."""
    seconds: float = 0.0
    """The time from the first try to the reply, pauses included."""
    retries: int = 0


class ChatEndpoint:
    """One model on one server. An async context manager; closing it closes its connections."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Connects with the first request.

        Args:
            config: where and how.
            transport: instead of the network, for tests.
            rng: randomness of the pauses.
            sleep: waits that many seconds.

        Raises:
            ConfigError: the key's environment variable is not set, or holds what no header can carry.
        """
        self.config = config
        self._key = api_key(config)
        self._rng, self._sleep = rng or random.Random(), sleep
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._idle: list[httpx.AsyncClient] = []
        self._url = httpx.URL(config.base_url.rstrip("/") + "/chat/completions")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._connect = functools.partial(_client, self._url, headers, transport)

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.config.base_url!r}, model={self.config.model!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        while self._idle:
            await self._idle.pop().aclose()

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        json_schema: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        """The model's answer to a conversation.

        Args:
            messages: chat turns. Lone surrogates, which no JSON can carry, become U+FFFD.
            max_tokens: limit of the answer.
            temperature: 0 is greedy.
            top_p: keep tokens up to this probability.
            seed: equal seeds give equal answers where the server can.
            stop: strings that end the answer.
            top_logprobs: how many of the likeliest tokens to report at each position; 0: none.
            json_schema: the answer must be JSON of this schema, where the server can enforce it.
            extra: further fields of the request; they win over the others, and None removes one.

        Raises:
            EndpointError: no usable reply after the last retry.
            ConfigError: the server refuses the request as such; names the settings to mend.
        """
        body: dict[str, Any] = {"model": self.config.model, "messages": list(messages), "max_tokens": max_tokens}
        body |= {"temperature": temperature, "top_p": top_p, "seed": seed, "stop": list(stop) or None}
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if json_schema is not None:
            schema = {"name": "reply", "strict": True, "schema": dict(json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body |= extra or {}
        return await self._with_retries(_encode({key: value for key, value in body.items() if value is not None}))

    async def _with_retries(self, content: bytes) -> ChatReply:
        started = time.perf_counter()
        attempt = 0
        while True:
            try:
                text = await self._post(content)
                return _reply(text, time.perf_counter() - started, attempt)
            except _RetryableError as error:
                if attempt == self.config.max_retries:
                    raise EndpointError(self._report(error.problem, attempt + 1)) from None
                pause = FIRST_PAUSE_SECONDS * 2**attempt * self._rng.uniform(0.5, 1.5)
                await self._sleep(min(max(pause, error.pause_seconds), MAX_PAUSE_SECONDS))
            attempt += 1

    async def _post(self, content: bytes) -> bytes:
        """The body of one good answer."""
        limit = self.config.timeout_seconds
        try:
            async with self._slots, asyncio.timeout(limit):
                with self._borrow_client() as client:
                    async with client.stream("POST", self._url, content=content) as response:
                        body = await self._read(response)
        except TimeoutError:
            raise _RetryableError(f"no full reply within timeout_seconds={limit:g}") from None
        except httpx.TransportError as error:
            raise _RetryableError(f"{type(error).__name__}: {_shorten(str(error))}") from None
        if response.status_code in RETRIED or response.status_code >= 500:
            problem = f"status {response.status_code}{_excerpt(body)}"
            raise _RetryableError(problem, _asked_pause(response.headers.get("Retry-After", "")))
        if response.status_code != 200:
            raise ConfigError(self._refusal(response, body))
        return body

    @contextlib.contextmanager
    def _borrow_client(self) -> Iterator[httpx.AsyncClient]:
        """Lends a client for a request. Each has one connection: a pool's work for a request grows with its size."""
        client = self._idle.pop() if self._idle else self._connect()
        try:
            yield client
        finally:
            self._idle.append(client)

    async def _read(self, response: httpx.Response) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise _RetryableError(
                f"a body in Content-Encoding {_shorten(encoding)!r}, though the request accepts only identity; turn "
                "compression off at the server or the proxy before it"
            )
        body = bytearray()
        async for piece in response.aiter_bytes():  # which decodes nothing, as no encoding is left
            body += piece
            if len(body) > MAX_REPLY_BYTES:
                raise EndpointError(self._report(f"a body of more than {MAX_REPLY_BYTES >> 20} MiB", 1))
        return bytes(body)

    def _report(self, problem: str, tries: int) -> str:
        tried = "one try" if tries == 1 else f"{tries} tries"
        return self._safe(
            f"no usable reply from model {self.config.model!r} at {self.config.base_url} after {tried}: {problem}"
        )

    def _refusal(self, response: httpx.Response, body: bytes) -> str:
        config, status = self.config, response.status_code
        remedies = {
            401: f"check the key: api_key_env={config.api_key_env!r}",
            403: f"check what the key may use: api_key_env={config.api_key_env!r}",
            404: "check base_url (it ends before /chat/completions, often in /v1) and model",
        }
        remedy = remedies.get(status, "check model, the request's options, and the prompt's length")
        if 300 <= status < 400:
            target = response.headers.get("Location", "").partition("?")[0][:EXCERPT_CHARACTERS]
            remedy = f"redirects are not followed; give the base_url that leads to {target!r}"
        return self._safe(
            f"{config.base_url} refused the request for model={config.model!r} with status {status}"
            f"{_excerpt(body)}; {remedy}"
        )

    def _safe(self, message: str) -> str:
        """The message without the key, which servers may echo."""
        return message.replace(self._key, "***") if self._key else message


class _RetryableError(Exception):
    """One try failed, and the next may not."""

    def __init__(self, problem: str, pause_seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.pause_seconds = problem, pause_seconds


def well_formed(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD, so that it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _client(
    url: httpx.URL, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    is_local = url.host in _LOOPBACK  # where a proxy would look for the server on itself
    verify = _ssl_context() if url.scheme == "https" or not is_local else False
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        headers=headers,
        transport=transport,
        timeout=None,  # each try as a whole has one
        verify=verify,
        trust_env=not is_local,
        follow_redirects=False,
        cookies=no_cookies,
    )


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Shared, since reading the certificates takes 20 ms."""
    return httpx.create_ssl_context()


def api_key(config: EndpointConfig) -> str:
    """The key in the variable that `api_key_env` names; empty without one.

    Raises:
        ConfigError: the variable is not set, or holds what no header can carry.
    """
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"api_key_env={config.api_key_env!r} (model {config.model!r} at {config.base_url}): the variable is not "
            "set; export the key under this name, or leave api_key_env out for a server without keys"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"api_key_env={config.api_key_env!r}: the variable holds characters that no header can carry")
    return key


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return well_formed(json.dumps(body, ensure_ascii=False, allow_nan=False)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the request is not JSON: {error}; check messages, json_schema and extra") from None


def _asked_pause(header: str) -> float:
    """Seconds that `Retry-After` asks for, as a number or a date; 0 where it does not say."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header.strip()):
        return float(header)
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _excerpt(body: bytes) -> str:
    """The server's own words about what is wrong, shortened: `: message`."""
    text = body[: 1 << 16].decode(errors="replace")
    try:
        answer = json.loads(text)
        error = answer.get("error", answer)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        pass  # no JSON object: the text itself
    text = _shorten(text)
    return f": {text}" if text else ""


def _shorten(text: str) -> str:
    """Cuts the server's words to one line without control characters."""
    head = text[: 10 * EXCERPT_CHARACTERS]
    return " ".join("".join(c if c.isprintable() else " " for c in head).split())[:EXCERPT_CHARACTERS]


def _reply(body: bytes, seconds: float, retries: int) -> ChatReply:
    """Reads a body of status 200. Raises `_RetryableError` where it is no reply."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""
        usage = answer.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError(f"content is a {type(text).__name__}")
        return ChatReply(
            well_formed(text),
            well_formed(str(choice.get("finish_reason") or "unknown"))[:MAX_REASON_CHARACTERS],
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            _top_logprobs(choice.get("logprobs")),
            seconds,
            retries,
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        problem = _shorten(f"{type(error).__name__}: {error}")
        raise _RetryableError(f"the body is no chat completion ({problem}){_excerpt(body)}") from None


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
    return value if is_count else None


def _top_logprobs(logprobs: Any) -> tuple[Mapping[str, float], ...]:
    return tuple(_position(item) for item in (logprobs or {}).get("content") or ())


def _position(item: Mapping[str, Any]) -> dict[str, float]:
    """Log-probs at one position by token text; of several tokens with the same text, the likeliest."""
    by_text: dict[str, float] = {}
    for entry in (item, *(item.get("top_logprobs") or ())):
        text, logprob = well_formed(entry["token"]), float(entry["logprob"])
        if math.isnan(logprob) or logprob > 1e-3:
            raise ValueError(f"logprob {logprob}")
        by_text[text] = max(logprob, by_text.get(text, -math.inf))
    return by_text
