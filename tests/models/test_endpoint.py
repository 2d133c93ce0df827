import asyncio
import email.utils
import gzip
import itertools
import json
import pickle
import random
import subprocess
import sys
import time

import httpx
import pytest
from fake_server import FakeServer, Reply, ScriptedTransport, transport

from llamarl.core.errors import ConfigError, EndpointError
from llamarl.models import endpoint as endpoint_module
from llamarl.models.endpoint import ChatEndpoint, ChatReply, EndpointConfig
from llamarl.testing import run_virtual

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sk-canary-0123456789"


def config(**settings: object) -> EndpointConfig:
    return EndpointConfig.parse({"base_url": "http://127.0.0.1:1/v1", "model": "fake", **settings})


def chat(script: object, pauses: list[float] | None = None, messages=HELLO, **options: object) -> ChatReply:
    """One chat on a virtual clock; `pauses` collects what was slept between tries."""
    settings = options.pop("settings", {})
    scripted = script if isinstance(script, httpx.AsyncBaseTransport) else transport(script)

    async def pause(seconds: float) -> None:
        (pauses if pauses is not None else []).append(seconds)

    async def main() -> ChatReply:
        async with ChatEndpoint(config(**settings), transport=scripted, rng=random.Random(0), sleep=pause) as endpoint:
            return await endpoint.chat(messages, max_tokens=5, **options)

    return run_virtual(main())


def test_reply_holds_text_counts_and_logprobs():
    reply = chat(Reply("yes", top_logprobs=[{"yes": -0.1, "no": -2.5}, {"": -0.5}]), top_logprobs=2)
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("yes", "stop", 7, 3)
    assert reply.top_logprobs == ({"yes": -0.1, "no": -2.5}, {"": -0.5})
    assert reply.retries == 0


def test_request_has_what_was_asked_for_and_nothing_else():
    scripted = transport(Reply())
    chat(scripted, temperature=0.5, seed=3, stop=["\n"], json_schema={"type": "object"}, top_logprobs=4)
    assert scripted.requests[0] == {
        "model": "fake",
        "messages": HELLO,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 3,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 4,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object"}},
        },
    }


def test_extra_fields_win_and_none_removes_one():
    scripted = transport(Reply())
    chat(scripted, extra={"max_tokens": None, "max_completion_tokens": 9, "temperature": 1.0})
    assert scripted.requests[0] == {
        "model": "fake",
        "messages": HELLO,
        "max_completion_tokens": 9,
        "temperature": 1.0,
        "top_p": 1.0,
    }


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=429),
        Reply(status=408),
        Reply(status=500),
        Reply(status=503),
        Reply(drops=True),
        Reply(hangs=True),
        Reply(body=b""),
        Reply(body=b"<html>busy</html>"),
        Reply(body=b'{"choices": ['),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"error": {"message": "overloaded"}}'),
        Reply(body=b"[]"),
        Reply(body=b"null"),
        Reply(body=b"\xff\xfe"),
        Reply(body=b"[" * 100_000),
        Reply(body=b'{"choices": [{"message": {"content": 3}}]}'),
        Reply(body=b'{"choices": [{"message": null}]}'),
        Reply(body=b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "a"}]}}]}'),
        Reply(top_logprobs=[{"a": float("nan")}]),
        Reply(body=b'{"choices": [{"message": {"content": "x"}}], "usage": ' + b"9" * 10_000 + b"}"),
        Reply(body=b'{"choices": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"}"),
        Reply(body=b'{"choices": [{"message": {"content": ' + b"[" * 900 + b"]" * 900 + b"}}]}"),
        Reply(
            body=b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "a", "logprob": -'
            + b"9" * 400
            + b"}]}}]}"
        ),
        Reply(headers={"Content-Encoding": "gzip"}, body=gzip.compress(Reply("packed").content)),
        Reply(headers={"Content-Encoding": "identity, gzip"}, body=gzip.compress(Reply("packed").content)),
        Reply(headers={"Content-Encoding": "BR"}, body=b"packed"),
    ],
)
def test_what_may_pass_is_tried_again(fault):
    pauses: list[float] = []
    reply = chat([fault, fault, Reply("good")], pauses)
    assert (reply.text, reply.retries) == ("good", 2)
    # 0.5 s and 1 s, each times a factor in [0.5, 1.5)
    assert 0.25 <= pauses[0] < 0.75 and 0.5 <= pauses[1] < 1.5


def test_gives_up_after_the_last_retry_and_says_why():
    pauses: list[float] = []
    with pytest.raises(EndpointError, match=r"'fake' at http://127.0.0.1:1/v1 after 4 tries: status 503: scripted"):
        chat(Reply(status=503), pauses, settings={"max_retries": 3})
    assert len(pauses) == 3


def test_no_retries_when_none_are_wanted():
    with pytest.raises(EndpointError, match="after one try: ReadError"):
        chat(Reply(drops=True), settings={"max_retries": 0})


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7.0, 7.0),
        ("2.5", 2.5, 2.5),
        ("86400", 60.0, 60.0),  # capped
        pytest.param(email.utils.formatdate(time.time() + 86400, usegmt=True), 60.0, 60.0, id="tomorrow"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.25, 0.75),  # long ago: the ordinary pause
        ("-3", 0.25, 0.75),
        ("nan", 0.25, 0.75),
        ("inf", 0.25, 0.75),
        ("soon", 0.25, 0.75),
    ],
)
def test_retry_after_is_honoured(header, least, most):
    pauses: list[float] = []
    chat([Reply(status=429, headers={"Retry-After": header}), Reply()], pauses)
    assert least <= pauses[0] <= most


def test_retry_after_as_a_date():
    pauses: list[float] = []
    date = email.utils.formatdate(time.time() + 55, usegmt=True)
    chat([Reply(status=503, headers={"Retry-After": date}), Reply()], pauses)
    assert 2 < pauses[0] <= 55  # wide: this machine may be slow


def test_pauses_grow_and_are_capped():
    pauses: list[float] = []
    with pytest.raises(EndpointError):
        chat(Reply(status=500), pauses, settings={"max_retries": 12})
    assert max(pauses) == 60.0
    assert all(pause >= 0.25 * 2**i for i, pause in enumerate(pauses[:7]))


def test_equal_generators_pause_equally():
    first: list[float] = []
    second: list[float] = []
    chat([Reply(status=500)] * 3 + [Reply()], first)
    chat([Reply(status=500)] * 3 + [Reply()], second)
    assert first == second


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "prompt's length"), (401, "api_key_env=None"), (403, "api_key_env"), (404, "base_url"), (422, "model")],
)
def test_what_no_retry_mends_is_a_config_error(status, remedy):
    scripted = transport(Reply(status=status))
    with pytest.raises(ConfigError, match=rf"(?s)http://127.0.0.1:1/v1 .*model='fake' .*{status}.*{remedy}"):
        chat(scripted)
    assert len(scripted.requests) == 1


def test_redirects_are_not_followed():
    scripted = transport(Reply(status=307, headers={"Location": "http://evil.example/v1?key=1"}))
    with pytest.raises(ConfigError, match=r"redirects are not followed; .*'http://evil.example/v1'"):
        chat(scripted)
    assert len(scripted.requests) == 1


def test_too_large_a_body_is_refused(monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_REPLY_BYTES", 1 << 20)
    with pytest.raises(EndpointError, match="more than 1 MiB"):
        chat(Reply("x" * (1 << 20)))


def test_lone_surrogates_are_replaced_both_ways():
    scripted = transport(Reply(body=b'{"choices": [{"message": {"content": "a\\ud800b\\ud83d\\ude00"}}]}'))
    reply = chat(scripted, messages=[{"role": "user", "content": "x\udc80y\ud83d\ude00\ud83d"}])
    assert scripted.requests[0]["messages"][0]["content"] == "x\ufffdy\U0001f600\ufffd"
    assert reply.text == "a\ufffdb\U0001f600"
    assert reply.finish_reason == "unknown"


def test_null_content_is_empty_text():
    assert chat(Reply(text=None)).text == ""


def test_what_is_no_json_is_refused_before_sending():
    scripted = transport(Reply())
    with pytest.raises(ConfigError, match="not JSON"):
        chat(scripted, extra={"bias": float("nan")})
    assert scripted.requests == []


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    settings = {"api_key_env": "FAKE_KEY", "max_retries": 0}
    scripted = transport(Reply())
    chat(scripted, settings=settings)
    assert scripted.reader.headers[0]["authorization"] == f"Bearer {KEY}"
    texts = [repr(ChatEndpoint(config(**settings))), repr(config(**settings))]
    for status in (401, 500):
        with pytest.raises((ConfigError, EndpointError)) as caught:
            chat(Reply(status=status, body=f"wrong key {KEY}".encode()), settings=settings)
        texts.append(str(caught.value))
        assert "***" in texts[-1]
    assert not any(KEY in text for text in texts)


def test_a_key_in_place_of_its_name_is_refused_unseen():
    for build in (config, EndpointConfig):
        with pytest.raises(ValueError, match="api_key_env") as caught:
            build(base_url="http://127.0.0.1/v1", model="m", api_key_env=KEY)
        assert KEY not in str(caught.value)


def test_unset_or_unusable_keys_are_refused(monkeypatch):
    monkeypatch.delenv("FAKE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"'FAKE_KEY' .*not set"):
        ChatEndpoint(config(api_key_env="FAKE_KEY"))
    monkeypatch.setenv("FAKE_KEY", "ab\ncd")
    with pytest.raises(ConfigError, match="no header can carry") as caught:
        ChatEndpoint(config(api_key_env="FAKE_KEY"))
    assert "cd" not in str(caught.value).replace("FAKE_KEY", "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://x/v1",
        "http://",
        "http://user:pw@x/v1",
        "http://x/v1?key=2",
        "http://[/",
        "http://x:99999/v1",
        "http://x/ü",
    ],
)
def test_addresses_are_checked(url):
    with pytest.raises(ConfigError, match="base_url"):
        config(base_url=url)


@pytest.mark.parametrize("field", ["max_concurrency", "timeout_seconds"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        config(**{field: 0})


def test_requests_in_flight_are_bounded():
    scripted = transport(Reply(latency_seconds=1.0))

    async def main() -> None:
        async with ChatEndpoint(config(max_concurrency=3), transport=scripted) as endpoint:
            await asyncio.gather(*(endpoint.chat(HELLO, max_tokens=1) for _ in range(10)))

    run_virtual(main())
    assert scripted.max_in_flight == 3


def test_waiting_for_a_slot_does_not_count_as_time():
    scripted: ScriptedTransport = transport(Reply(latency_seconds=8.0))

    async def main() -> list[ChatReply]:
        settings = config(max_concurrency=1, timeout_seconds=10.0, max_retries=0)
        async with ChatEndpoint(settings, transport=scripted) as endpoint:
            return await asyncio.gather(*(endpoint.chat(HELLO, max_tokens=1) for _ in range(4)))

    assert len(run_virtual(main())) == 4


def test_cancelling_frees_the_slot():
    async def main() -> str:
        scripted = transport([Reply(hangs=True), Reply("after")])
        async with ChatEndpoint(config(max_concurrency=1), transport=scripted) as endpoint:
            hung = asyncio.ensure_future(endpoint.chat(HELLO, max_tokens=1))
            await asyncio.sleep(1)
            hung.cancel()
            return (await endpoint.chat(HELLO, max_tokens=1)).text

    assert run_virtual(main()) == "after"


def test_over_a_real_socket():
    async def main(base_url: str) -> list[ChatReply]:
        settings = config(base_url=base_url + "/", max_concurrency=4)
        async with ChatEndpoint(settings, sleep=lambda seconds: asyncio.sleep(0)) as endpoint:
            return await asyncio.gather(*(endpoint.chat(HELLO, max_tokens=1) for _ in range(20)))

    with FakeServer([Reply(status=429), Reply(drops=True), Reply(body=b"?"), Reply(latency_seconds=0.01)]) as server:
        replies = asyncio.run(main(server.base_url))
        assert [reply.text for reply in replies] == ["ok"] * 20
        assert len(server.requests) == 23 and sum(reply.retries for reply in replies) == 3
        assert 1 < server.max_in_flight <= 4


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TWICE_PACKED = gzip.compress(gzip.compress(bytes(64 << 20)))


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        pytest.param(
            lambda: iter([HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n" % len(TWICE_PACKED)]),
            "after one try: a body in Content-Encoding 'gzip, gzip', though",
            id="packed, and never unpacked",
        ),
        pytest.param(
            lambda: itertools.chain(
                [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            ),
            "a body of more than 4 MiB",
            id="chunks without end",
        ),
        pytest.param(
            lambda: iter([HEAD + b"Content-Length: 9999999999999\r\n\r\n", bytes(5 << 20)]),
            "a body of more than 4 MiB",
            id="terabytes promised",
        ),
        pytest.param(
            lambda: itertools.chain([HEAD], (b"X-%d: y\r\n" % i for i in itertools.count())),
            "RemoteProtocolError",
            id="headers without end",
        ),
        pytest.param(lambda: itertools.repeat(b"x" * 65536), "RemoteProtocolError", id="a status line without end"),
    ],
)
def test_a_reply_is_bounded_whatever_the_server_sends(pieces, problem):
    with FakeServer(Reply(raw=pieces)) as server, pytest.raises(EndpointError, match=problem) as caught:
        asyncio.run(_one_try(server.base_url))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            lambda: itertools.chain([HEAD + b"Content-Length: 1000000\r\n\r\n"], itertools.repeat(b" ")), id="body"
        ),
        pytest.param(lambda: itertools.chain([HEAD], itertools.repeat(b"X: y\r\n")), id="headers"),
        pytest.param(lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), id="not yet"),
    ],
)
def test_a_reply_that_drips_ends_at_the_deadline(pieces):
    late = pytest.raises(EndpointError, match=r"no full reply within timeout_seconds=0\.2")
    with FakeServer(Reply(raw=pieces, drip_seconds=0.01)) as server, late:
        asyncio.run(_one_try(server.base_url, timeout_seconds=0.2))


def test_a_redirect_to_another_host_gets_neither_request_nor_key(monkeypatch):
    monkeypatch.setenv("FAKE_KEY", KEY)
    with FakeServer() as other:
        there = Reply(status=307, headers={"Location": other.base_url + "/chat/completions"})
        with FakeServer(there) as server, pytest.raises(ConfigError, match="redirects are not followed"):
            asyncio.run(_one_try(server.base_url, api_key_env="FAKE_KEY"))
        assert other.requests == []


def test_cookies_are_not_kept():
    async def main(base_url: str) -> None:
        async with ChatEndpoint(config(base_url=base_url)) as endpoint:
            for _ in range(2):
                await endpoint.chat(HELLO, max_tokens=1)

    with FakeServer(Reply(headers={"Set-Cookie": "a=b; Path=/"})) as server:
        asyncio.run(main(server.base_url))
        assert not any("cookie" in headers for headers in server.reader.headers)


@pytest.mark.parametrize("reason", ["\ud800", "x" * 100_000, ["stop"]])
def test_a_finish_reason_is_short_text(reason):
    reply = chat(Reply(finish_reason=reason))
    assert len(reply.finish_reason.encode()) <= 64


def test_no_number_of_tokens_is_taken_for_a_count_that_none_can_be():
    reply = chat(Reply(usage=(10**400, -1)))
    assert (reply.prompt_tokens, reply.completion_tokens) == (None, None)


async def _one_try(base_url: str, **settings: object) -> None:
    async with ChatEndpoint(config(base_url=base_url, max_retries=0, **settings)) as endpoint:
        await endpoint.chat(HELLO, max_tokens=1)


def test_a_server_that_is_not_there():
    async def main() -> None:
        async with ChatEndpoint(config(max_retries=1), sleep=lambda seconds: asyncio.sleep(0)) as endpoint:
            await endpoint.chat(HELLO, max_tokens=1)

    with pytest.raises(EndpointError, match="after 2 tries: ConnectError"):
        asyncio.run(main())


def test_errors_pickle():
    error = EndpointError("x")
    assert str(pickle.loads(pickle.dumps(error))) == "x" and isinstance(error, ConnectionError)


def test_imports_without_torch():
    code = "import sys, json, llamarl.models.endpoint; print(json.dumps('torch' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) is False
