"""The shell of services: what it refuses and how, what it counts, how it ends."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, EndpointError
from llamarl.serving.batching import QueueFullError
from llamarl.serving.http import EventStream, Refusal, Route, Service
from llamarl.serving.metrics import Metrics
from llamarl.serving.settings import Serving


class Body(Config):
    text: str
    count: int = 1


async def repeat(body: Body) -> Any:
    return [body.text] * body.count


@asynccontextmanager
async def serve(
    answer: Callable[[Any], Awaitable[Any]] = repeat, environment: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    values = {"port": 0, "drain": 5.0, **settings}
    service = Service(
        Serving.parse(values),
        [Route("/v1/repeat", Body, answer)],
        Metrics(),
        describe=lambda: {"model": "x"},
        environment=environment or {},
    )
    await service.start()
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        yield service, client
        await service.drain()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))  # type: ignore[arg-type]


async def count(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_route_answers_json() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            reply = await client.post("/v1/repeat", json={"text": "Ü \x00 \u2028", "count": 2})
            assert (reply.status_code, reply.json()) == (200, ["Ü \x00 \u2028"] * 2)
            assert reply.headers["content-type"].startswith("application/json")
            # curl -d says that it is a form; half a character is a text of JSON
            reply = await client.post("/v1/repeat", content=b'{"text": "\\ud83d"}')
            assert reply.json() == ["\ud83d"]
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (200, {"status": "ok", "model": "x"})

    run(main)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "no JSON"),
        (b"{", None, "no JSON"),
        (b"\xff\xfe\x00", None, "no JSON"),
        (b'{"text": "\xff"}', None, "no JSON"),
        (b"[" * 100_000, None, "no JSON"),
        (b'["text"]', None, 'a JSON list; send an object, such as {"text": ...}'),
        (b"null", None, "JSON NoneType"),
        (b"{}", "text", "text: required"),
        (b'{"text": null}', "text", "text: must be text"),
        (b'{"text": 5}', "text", "text: must be text"),
        (b'{"text": "a", "txet": 1}', "txet", "unknown key. Did you mean 'text'"),
        (b'{"text": "a", "count": "many"}', "count", "count: must be a whole number"),
        (b'{"text": "a", "count": 1e999}', "count", "count"),
        (b'{"text": "a", "count": ' + b"9" * 5000 + b"}", None, "no JSON"),
    ],
)
def test_a_malformed_body_names_its_field(body: bytes, param: str | None, message: str) -> None:
    async def main() -> None:
        async with serve() as (_, client):
            reply = await client.post("/v1/repeat", content=body)
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
            assert message in error["message"] and len(error["message"]) < 1000
            assert (await client.post("/v1/repeat", json={"text": "a"})).status_code == 200

    run(main)


async def read_lines(client: httpx.AsyncClient, text: str) -> tuple[int, list[str]]:
    async with client.stream("POST", "/v1/repeat", json={"text": text}) as reply:
        return reply.status_code, [line async for line in reply.aiter_lines() if line]


def test_events_come_one_by_one_and_faults_in_mid_stream_are_events(caplog: pytest.LogCaptureFixture) -> None:
    is_closed = asyncio.Event()

    async def say(text: str) -> AsyncGenerator[Any, None]:
        try:
            if text == "early":
                raise Refusal(400, "text: too early", param="text")
            yield {"said": text}
            if text == "late":
                raise Refusal(503, "the model has gone")
            if text == "broken":
                raise ZeroDivisionError
            if text == "endless":
                await asyncio.sleep(3600)
            yield {"said": "more"}
        finally:
            is_closed.set()

    async def answer(body: Body) -> EventStream:
        return EventStream(say(body.text))

    async def main() -> None:
        async with serve(answer, deadline=0.5) as (service, client):
            status, lines = await read_lines(client, "a")
            assert (status, lines) == (200, ['data: {"said": "a"}', 'data: {"said": "more"}', "data: [DONE]"])
            status, lines = await read_lines(client, "early")
            assert status == 400 and "too early" in lines[0]
            ends = {"late": "the model has gone", "broken": "its log says why", "endless": "cut off after 0.5 s"}
            for text, problem in ends.items():
                is_closed.clear()
                status, lines = await read_lines(client, text)
                assert status == 200 and len(lines) == 2 and problem in json.loads(lines[1][6:])["error"]["message"]
                assert is_closed.is_set()
            is_closed.clear()
            service.settings = service.settings.model_copy(update={"deadline": 60.0})
            async with client.stream("POST", "/v1/repeat", json={"text": "endless"}) as reply:
                await anext(reply.aiter_lines())
            await is_closed.wait()  # since the client went away

    run(main)
    assert "ZeroDivisionError" in caplog.text


def test_pages_are_read_by_get() -> None:
    async def main() -> None:
        service = Service(Serving(port=0), [], Metrics(), pages={"/v1/things": lambda: ["a"]})
        await service.start()
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            assert (await client.get("/v1/things")).json() == ["a"]
            assert (await client.post("/v1/things")).status_code == 405
        await service.drain()

    run(main)


def test_unknown_routes_and_methods_are_json_errors_too() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            assert (await client.get("/v2/x")).json()["error"]["message"] == "GET /v2/x: Not Found"
            reply = await client.get("/v1/repeat")
            assert reply.status_code == 405 and reply.headers["allow"] == "POST" and "error" in reply.json()
            for number in range(20):
                await client.get(f"/{number}")
            assert await count(client, 'llamarl_http_requests_total{route="other",status="404"}') == 21

    run(main)


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_length() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1024

    async def main() -> None:
        async with serve(max_body_kib=16) as (_, client):
            assert (await client.post("/v1/repeat", content=b"x" * 17_000)).status_code == 413
            assert (await client.post("/v1/repeat", content=pieces())).status_code == 413
            text = "x" * 16_000
            assert (await client.post("/v1/repeat", json={"text": text})).json() == [text]

    run(main)


def test_a_token_is_asked_for_except_by_health() -> None:
    async def main() -> None:
        async with serve(environment={"TOKEN": "s3cret\n"}, token_env="TOKEN", host="0.0.0.0") as (service, client):
            client.base_url = httpx.URL(service.url.replace("0.0.0.0", "127.0.0.1"))
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff\xfe"}):
                reply = await client.post("/v1/repeat", json={"text": "a"}, headers=header)
                assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in reply.text
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/health")).status_code == 200
            client.headers["Authorization"] = "Bearer s3cret"
            assert (await client.post("/v1/repeat", json={"text": "a"})).json() == ["a"]

    run(main)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_let_in_without_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="--token-env VARIABLE"):
        Serving.parse({"host": host})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert Serving.parse({"host": host}).is_local


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_token_that_is_not_set_is_refused(value: str | None) -> None:
    environment = {} if value is None else {"TOKEN": value}
    with pytest.raises(ConfigError, match="--token-env TOKEN: the variable is not set"):
        Service(Serving(token_env="TOKEN"), [], Metrics(), environment=environment)


def test_what_goes_wrong_has_its_status() -> None:
    async def answer(body: Body) -> Any:
        match body.text:
            case "full":
                raise QueueFullError(2.5)
            case "very full":
                raise QueueFullError(9e9)
            case "down":
                raise EndpointError("no answer from http://helper")
            case "long":
                raise Refusal(413, "text: too long", param="text")
            case "broken":
                raise RuntimeError("secret")
            case "slow":
                await asyncio.sleep(60)

    async def main() -> None:
        async with serve(answer, deadline=0.2) as (service, client):
            found = {}
            for text in ("full", "very full", "down", "long", "broken", "slow"):
                reply = await client.post("/v1/repeat", json={"text": text})
                assert "secret" not in reply.text
                found[text] = (reply.status_code, reply.headers.get("retry-after"), reply.json()["error"]["type"])
            assert found == {
                "full": (429, "3", "invalid_request_error"),
                "very full": (429, "60", "invalid_request_error"),
                "down": (503, None, "server_error"),
                "long": (413, None, "invalid_request_error"),
                "broken": (500, None, "server_error"),
                "slow": (504, None, "server_error"),
            }
            for status in (413, 429, 500, 503, 504):
                name = f'llamarl_http_requests_total{{route="/v1/repeat",status="{status}"}}'
                assert await count(client, name) == (2 if status == 429 else 1)
            assert service.num_finished == 6 and await count(client, "process_resident_memory_bytes") > 1e6

    run(main)


def test_a_body_that_never_ends_is_given_up() -> None:
    async def main() -> None:
        async with serve(deadline=0.2) as (service, _):
            host, port = service.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /v1/repeat HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 408 " in head.splitlines()[0]
            writer.close()

    run(main)


def test_a_client_that_goes_away_is_computed_for_no_more() -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def answer(body: Body) -> Any:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        async with serve(answer) as (service, client):
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/repeat", json={"text": "a"}, timeout=0.2)
            await cancelled.wait()
            while service.num_finished == 0:
                await asyncio.sleep(0)
            assert await count(client, 'llamarl_http_requests_total{route="/v1/repeat",status="499"}') == 1

    run(main)


def test_a_port_that_is_taken_is_named() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"--port {port}: cannot listen there"):
                await Service(Serving(port=port), [], Metrics()).start()

    run(main)


# the end


class Slow:
    """Answers once it is let go."""

    def __init__(self) -> None:
        self.started, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, body: Body) -> Any:
        self.started.set()
        await self.go.wait()
        return "done"


def test_sigterm_finishes_what_is_accepted_and_refuses_what_is_new() -> None:
    async def main() -> None:
        slow, urls = Slow(), asyncio.Queue[str]()
        service = Service(Serving(port=0), [Route("/v1/slow", Body, slow)], Metrics())
        running = asyncio.create_task(service.run(urls.put_nowait))
        async with httpx.AsyncClient(base_url=await urls.get(), trust_env=False) as client:
            accepted = asyncio.create_task(client.post("/v1/slow", json={"text": "a"}))
            await slow.started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            while (reply := await client.get("/health")).status_code == 200:
                await asyncio.sleep(0)
            assert reply.status_code == 503 and reply.headers["connection"] == "close"
            reply = await client.post("/v1/slow", json={"text": "b"})
            assert reply.status_code == 503 and "about to stop" in reply.json()["error"]["message"]
            assert not running.done()
            slow.go.set()
            assert (await accepted).json() == "done"
            assert await running == 0
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")

    run(main)


def test_a_second_signal_cuts_off_and_counts() -> None:
    async def main() -> None:
        slow, urls = Slow(), asyncio.Queue[str]()
        service = Service(Serving(port=0), [Route("/v1/slow", Body, slow)], Metrics())
        running = asyncio.create_task(service.run(urls.put_nowait))
        async with httpx.AsyncClient(base_url=await urls.get(), trust_env=False) as client:
            accepted = asyncio.create_task(client.post("/v1/slow", json={"text": "a"}))
            await slow.started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            while (await client.get("/health")).status_code == 200:
                await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 1
            with pytest.raises(httpx.RemoteProtocolError):
                await accepted

    run(main)


def test_the_time_to_drain_is_bounded() -> None:
    async def main() -> None:
        slow = Slow()
        async with serve(slow, drain=0.1) as (service, client):
            accepted = asyncio.create_task(client.post("/v1/repeat", json={"text": "a"}))
            await slow.started.wait()
            assert await service.drain() == 1
            with pytest.raises(httpx.RemoteProtocolError):
                await accepted

    run(main)


def test_errors_are_json_objects() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            reply = await client.post("/v1/repeat", content=b"{}")
            assert json.loads(reply.text) == {
                "error": {
                    "message": "text: required, but not given",
                    "type": "invalid_request_error",
                    "param": "text",
                }
            }

    run(main)


def test_a_body_that_does_not_unpack_is_the_clients_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve() as (_, client):
            for encoding in ("gzip", "deflate"):
                headers = {"Content-Encoding": encoding}
                reply = await client.post("/v1/repeat", content=b"\xff\xff\xff", headers=headers)
                assert reply.status_code == 400
                assert f"Content-Encoding: {encoding}" in reply.json()["error"]["message"]

    run(main)
    assert not caplog.records


def test_bytes_that_are_no_http_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve() as (service, _):
            port = int(service.url.rpartition(":")[2])
            for line in ("Content-Length: -5", "X: a\0b", "X: " + "a" * 20_000):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"POST /v1/repeat HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
                assert (await reader.read()).split()[1] == b"400"
                writer.close()

    run(main)
    assert not caplog.records


def test_a_key_that_stands_twice_is_refused() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            reply = await client.post("/v1/repeat", content=b'{"text": "a", "text": "b"}')
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "text")
            assert "stands twice" in reply.json()["error"]["message"]

    run(main)
