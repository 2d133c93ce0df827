"""The shell of a service over HTTP. What it answers is a function of a checked JSON body: JSON, or events one by one.

    service = Service(Serving(port=8000), [Route("/v1/detect", DetectRequest, detect)], Metrics())
    await service.run(on_start=print)           # until SIGTERM or SIGINT, then drains

    400 the body is wrong, and names its field    401 no or a wrong token     404, 405 no such route
    408 the body did not arrive in time           413 too large               429 the queue is full (Retry-After)
    500 a fault of the service                    503 it is about to stop     504 not answered in time

Errors are `{"error": {"message", "type", "param"}}`, as OpenAI's. aiohttp serves: one package with server, parser in C,
body limits and an orderly end, where an ASGI framework needs a second one to serve it.
"""

import asyncio
import hmac
import json
import logging
import math
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from llamarl.core.config import Config, describe_errors
from llamarl.core.errors import ConfigError, EndpointError, MissingDependencyError
from llamarl.serving.batching import QueueFullError
from llamarl.serving.metrics import CONTENT_TYPE, Metrics
from llamarl.serving.settings import Serving

try:
    from aiohttp import http_exceptions, web
except ImportError:
    raise MissingDependencyError.for_extra("aiohttp", "serve") from None

MAX_RETRY_SECONDS = 60
"""Longest pause that a refused client is asked for."""
CLOSED_BY_CLIENT = 499
"""The status under which requests are counted whose client has gone; nobody sees it."""
MAX_REASON = 200
"""Characters of a JSON parser's complaint."""
CLIENT_FAULTS = (http_exceptions.HttpProcessingError, web.RequestPayloadError)
"""Errors of aiohttp for bytes that are no HTTP, which it answers with 400, and for bodies that do not unpack."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
BACKLOG = 512
"""Connections that the kernel holds until they are accepted."""
log = logging.getLogger(__name__)


class _SkipClientFaults(logging.Filter):
    """Keeps what clients send wrong out of the log: aiohttp writes a traceback for each, so anybody could fill it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], CLIENT_FAULTS))


protocol_log = logging.getLogger(f"{__name__}.protocol")
protocol_log.addFilter(_SkipClientFaults())


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field of the body that is wrong.
        headers: further ones.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})


@dataclass(frozen=True, slots=True)
class Route:
    """A path that takes a JSON object by POST."""

    path: str
    body: type[Config]
    """The fields that the object may have."""
    answer: Callable[[Any], Awaitable[Any]]
    """Makes JSON values, or an `EventStream`, of a checked body. May raise `Refusal`, `QueueFullError` and
    `EndpointError`."""


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer in pieces: server-sent events with a JSON value each, and `[DONE]` at the end.

    What goes wrong before the first event is answered as for any other route. Later it is an event `{"error": ...}`,
    and no `[DONE]` follows: a client can tell an answer that was cut off from one that ended.
    """

    events: AsyncGenerator[Any, None]


class Service:
    """Some routes beside `GET /health` and `GET /metrics`, on one event loop.

    Args:
        settings: address, token, limits, deadlines.
        routes: what is served.
        metrics: what is counted.
        describe: what `/health` says beside its status, as JSON values.
        pages: further paths that are read by GET, and what makes their JSON values.
        environment: where the token's variable stands.

    Raises:
        ConfigError: the token's variable is not set.
    """

    def __init__(
        self,
        settings: Serving,
        routes: Sequence[Route],
        metrics: Metrics,
        *,
        describe: Callable[[], Mapping[str, Any]] = dict,
        pages: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.settings, self._metrics, self._describe = settings, metrics, describe
        self._token = _read_token(settings.token_env, environment)
        self._paths = {"/health", "/metrics", *pages, *(route.path for route in routes)}
        self._is_draining = False
        self._num_open = 0
        self._idle, self._hurry = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self.num_finished = 0
        """Answered requests of the routes, errors included."""

        async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=settings.max_body_kib << 10, middlewares=[web.middleware(guard)])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._render_metrics)
        for path, read in pages.items():
            app.router.add_get(path, self._page_handler(read))
        for route in routes:
            app.router.add_post(route.path, self._handler(route))
        # A client that goes away cancels its handler, so that nothing is computed for nobody.
        self._runner = web.AppRunner(
            app, logger=protocol_log, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        self.url = ""
        """The address, once it listens."""

    async def start(self) -> None:
        """Listens. Raises `ConfigError` where the address cannot be had."""
        settings = self.settings
        await self._runner.setup()
        site = web.TCPSite(self._runner, settings.host, settings.port, backlog=BACKLOG)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror}); give another "
                "--port, or 0 for a free one"
            ) from None
        self.url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{site.port}"

    async def drain(self) -> int:
        """Refuses new requests, waits for the accepted ones, closes; returns how many had to be cut off."""
        self._is_draining = True
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(waits, timeout=self.settings.drain, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        num_cut = self._num_open
        await self._runner.cleanup()
        return num_cut

    async def run(self, on_start: Callable[[str], object]) -> int:
        """Serves until SIGTERM or SIGINT, then drains; a second signal ends that at once.

        Args:
            on_start: told the address once it listens.

        Returns:
            The number of accepted requests that were cut off.
        """
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def on_signal() -> None:
            (self._hurry if stop.is_set() else stop).set()

        await self.start()
        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal)
        try:
            on_start(self.url)
            await stop.wait()
            return await self.drain()
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    # ---- one request ------------------------------------------------------------------------------------------------

    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]
    ) -> web.StreamResponse:
        """Counts a request and its time, and makes a JSON error of whatever goes wrong."""
        started, status = time.perf_counter(), CLOSED_BY_CLIENT
        route = request.path if request.path in self._paths else "other"
        is_work = request.method == "POST"
        self._count_open(is_work)
        try:
            response = await self._answer(request, handler)
            status = response.status
        finally:
            self._count_open(-is_work)
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
            self.num_finished += is_work
        if self._is_draining or status in (413, 408):  # the rest of such a body is not worth reading
            response.force_close()
        return response

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._check(request)
            return await handler(request)
        except Refusal as error:
            return _error(error)
        except web.HTTPException as error:  # aiohttp's own: no such route, too large a body
            message = f"{request.method} {request.path}: {error.reason}"
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _error(Refusal(error.status, message, headers=allowed))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return _error(Refusal(500, "the service failed on this request; its log says why"))

    def _check(self, request: web.Request) -> None:
        if self._is_draining and request.path != "/metrics":
            raise Refusal(503, "the service is about to stop", headers={"Retry-After": "1"})
        if self._token is not None and request.path != "/health":
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, self._token):  # takes as long however much of it is right
                message = "no or a wrong token; send the header 'Authorization: Bearer TOKEN'"
                raise Refusal(401, message, headers={"WWW-Authenticate": "Bearer"})

    def _count_open(self, change: int) -> None:
        self._num_open += change
        self._metrics.in_flight.set(self._num_open)
        if self._num_open:
            self._idle.clear()
        else:
            self._idle.set()

    def _page_handler(self, read: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            return _json(read())

        return handle

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body, until = None, asyncio.get_running_loop().time() + self.settings.deadline
            try:
                async with asyncio.timeout_at(until):
                    body = _parse(await self._read(request), route.body)
                    answer = await route.answer(body)
                    if not isinstance(answer, EventStream):
                        return _json(answer)
                    first = await anext(answer.events)
                return await self._stream(request, answer.events, first, until)
            except TimeoutError:
                seconds = f"{self.settings.deadline:g} s"
                if body is None:
                    raise Refusal(408, f"the request's body did not arrive within {seconds}") from None
                raise Refusal(504, f"not answered within {seconds}; send less, or ask when less is going on") from None
            except QueueFullError as error:
                pause = min(MAX_RETRY_SECONDS, max(1, math.ceil(error.seconds)))
                message = f"too many requests wait; try again in {pause} s"
                raise Refusal(429, message, headers={"Retry-After": str(pause)}) from None
            except EndpointError as error:
                raise Refusal(503, f"a server that this service asks is down: {error}") from None

        return handle

    async def _stream(
        self, request: web.Request, events: AsyncGenerator[Any, None], first: Any, until: float
    ) -> web.StreamResponse:
        """Sends events as they come, until the loop's clock shows `until`. Too late for a status: faults are events."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "Server": "llamarl"}
        response = web.StreamResponse(headers=headers)
        async with aclosing(events):  # what makes them stops with the request
            await response.prepare(request)
            try:
                async with asyncio.timeout_at(until):
                    await response.write(_event(first))
                    async for event in events:
                        await response.write(_event(event))
                last = b"data: [DONE]\n\n"
            except TimeoutError:
                last = _event(_error_record(Refusal(504, f"cut off after {self.settings.deadline:g} s; ask for less")))
            except Refusal as error:
                last = _event(_error_record(error))
            except EndpointError as error:
                last = _event(_error_record(Refusal(503, f"a server that this service asks is down: {error}")))
            except ConnectionError:  # the client has gone, and nobody is left to tell
                return response
            except Exception:
                log.exception("%s %s failed in mid-answer", request.method, request.path)
                last = _event(_error_record(Refusal(500, "the service failed on this request; its log says why")))
            await response.write(last)
            await response.write_eof()
        return response

    async def _read(self, request: web.Request) -> bytes:
        limit = self.settings.max_body_kib << 10
        if (request.content_length or 0) > limit:  # before it is sent
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
        try:
            return bytes(await request.read())
        except web.RequestPayloadError:
            encoding = request.headers.get("Content-Encoding")
            packed = "" if encoding is None else f" as Content-Encoding: {encoding} says"
            raise Refusal(400, f"the body cannot be read{packed}; send it whole, packed as its headers say") from None

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok", **self._describe()})

    async def _render_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})


def _read_token(name: str | None, environment: Mapping[str, str]) -> bytes | None:
    if name is None:
        return None
    token = environment.get(name, "").strip()
    if not token:
        raise ConfigError(f"--token-env {name}: the variable is not set; export the token under this name")
    return token.encode(errors="surrogateescape")


def _parse(data: bytes, kind: type[Config]) -> Config:
    """The checked body. Raises `Refusal` that names the field."""
    try:
        values = json.loads(data, object_pairs_hook=_refuse_repeated)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise Refusal(400, f"the body is no JSON: {str(error)[:MAX_REASON]}") from None
    if not isinstance(values, dict):
        first = next((name for name, field in kind.model_fields.items() if field.is_required()), "")
        raise Refusal(400, f'the body is a JSON {type(values).__name__}; send an object, such as {{"{first}": ...}}')
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        message = describe_errors(error, kind)
        begin = message.partition(":")[0]  # where the object as a whole was checked, the message alone knows the field
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or (begin if begin in values else None)
        raise Refusal(400, message, param=field) from None


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys stand once: of two texts nobody knows which one is meant."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise Refusal(400, f"{key}: stands twice in one object; send it once", param=key)
        seen.add(key)
    return dict(pairs)


def _json(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(values, allow_nan=False)
    return web.Response(
        text=text, status=status, headers={"Server": "llamarl", **(headers or {})}, content_type="application/json"
    )


def _event(values: Any) -> bytes:
    return f"data: {json.dumps(values, allow_nan=False)}\n\n".encode()


def _error(error: Refusal) -> web.Response:
    return _json(_error_record(error), error.status, error.headers)


def _error_record(error: Refusal) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param}}
