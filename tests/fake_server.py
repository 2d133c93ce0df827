"""A model server by script: OpenAI's chat protocol with whatever latency, refusals, garbage and silence a test wants.

    with FakeServer([Reply(status=429, headers={"Retry-After": "1"}), Reply("yes")]) as server:
        EndpointConfig(base_url=server.base_url, model="fake")      # a real socket on 127.0.0.1

    transport(script)      # the same without a socket, for `ChatEndpoint(config, transport=...)`

A script is one reply, a list of replies (the last repeats) or a function of the request's body.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass(frozen=True)
class Reply:
    """What the server does with one request."""

    text: str | None = "ok"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_seconds: float = 0.0
    body: bytes | None = None
    """Instead of a chat completion."""
    hangs: bool = False
    """Never answers."""
    raw: Callable[[], Iterator[bytes]] | None = None
    """Written to the socket as it is, status line and all, until it ends or the client goes (`FakeServer` only)."""
    drip_seconds: float = 0.0
    """Between two pieces of `raw`."""
    drops: bool = False
    """Closes the connection instead of answering."""
    top_logprobs: Sequence[Mapping[str, float]] = ()
    """Per generated token, the generated one first."""
    usage: tuple[int, int] | None = (7, 3)
    """Prompt and completion tokens."""
    finish_reason: str | None = "stop"

    @property
    def content(self) -> bytes:
        """The response's body."""
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": f"scripted status {self.status}"}}).encode()
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish_reason}
        choice["message"] = {"role": "assistant", "content": self.text}
        if self.top_logprobs:
            choice["logprobs"] = {"content": [_position(position) for position in self.top_logprobs]}
        answer: dict[str, Any] = {"object": "chat.completion", "choices": [choice]}
        if self.usage:
            answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
        return json.dumps(answer).encode()


Script = Reply | Sequence[Reply] | Callable[[dict[str, Any]], Reply]


def _position(logprobs: Mapping[str, float]) -> dict[str, Any]:
    entries = [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]
    return {**entries[0], "top_logprobs": entries}


class ScriptReader:
    """Gives the next reply and keeps the requests. May be used from many threads."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        """Bodies, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        """Headers with names in lower case."""

    def next(self, content: bytes, headers: Mapping[str, str]) -> Reply:
        body = json.loads(content)
        with self._lock:
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            number = len(self.requests) - 1
        if isinstance(self._script, Reply):
            return self._script
        if callable(self._script):
            return self._script(body)
        return self._script[min(number, len(self._script) - 1)]


class ScriptedTransport(httpx.AsyncBaseTransport):
    """The script in this process; latency and hanging are asyncio's sleeps, which a virtual loop skips."""

    def __init__(self, script: Script) -> None:
        self.reader = ScriptReader(script)
        self.in_flight = 0
        self.max_in_flight = 0

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Bodies, in order of arrival."""
        return self.reader.requests

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = self.reader.next(await request.aread(), request.headers)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(1e9 if reply.hangs else reply.latency_seconds)
        finally:
            self.in_flight -= 1
        if reply.drops:
            raise httpx.ReadError("scripted drop", request=request)
        return httpx.Response(reply.status, headers=dict(reply.headers), content=reply.content)


def transport(script: Script) -> ScriptedTransport:
    """The script as an httpx transport."""
    return ScriptedTransport(script)


class FakeServer(ThreadingHTTPServer):
    """The script behind a socket of 127.0.0.1; a context manager."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script: Script = Reply(), path: str = "/v1/chat/completions") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path = path
        self.reader = ScriptReader(script)
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self.in_flight = 0
        self.max_in_flight = 0

    @property
    def base_url(self) -> str:
        """For `EndpointConfig`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Bodies, in order of arrival."""
        return self.reader.requests

    def count(self, step: int) -> None:
        """One request more or less in flight."""
        with self._lock:
            self.in_flight += step
            self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away at any time."""

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != self.server.path:
            return self._send(404, {}, b'{"error": {"message": "no such path"}}')
        reply = self.server.reader.next(content, dict(self.headers))
        self.server.count(1)
        try:
            self.server.closing.wait(None if reply.hangs else reply.latency_seconds)
        finally:
            self.server.count(-1)
        if reply.hangs or reply.drops:
            self.close_connection = True
            return None
        if reply.raw is not None:
            return self._send_raw(reply.raw(), reply.drip_seconds)
        return self._send(reply.status, reply.headers, reply.content)

    def _send_raw(self, pieces: Iterator[bytes], drip_seconds: float) -> None:
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                if self.server.closing.wait(drip_seconds):
                    return
                self.wfile.write(piece)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass
