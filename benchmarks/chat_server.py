"""A model server of known speed, for `endpoint_throughput` and `llm_judge`: a process of its own, computing nothing.

    with ChatServer(parallelism=32, latency_seconds=0.1) as server:
        server.base_url          # no more than 32 / 0.1 = 320 replies a second leave it

A request waits for one of `parallelism` places and keeps it for its latency, drawn from 0.5 to 1.5 times the mean by a
hash of the request. The reply is a judge's where the request asks as one, a token among 20 with their log-probs or a
JSON verdict, and else always the same 1,500 characters.
"""

import asyncio
import json
import math
import random
import subprocess
import sys
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TEXT = "A reply of known length. " * 60
VERDICT = json.dumps({"reason": "It is brief, and says what was asked for. " * 3, "score": 8, "passed": True})
WORD = "Yes"
TOKENS = [{"token": WORD, "logprob": math.log(0.9)}, *({"token": f"t{i}", "logprob": -6.0 - i} for i in range(19))]


def response(text: str, num_tokens: int, **choice: Any) -> bytes:
    """Header and body of an answer."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **choice}
    usage = {"prompt_tokens": 100, "completion_tokens": num_tokens}
    body = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


REPLY = response(TEXT, 300)
TOKEN_REPLY = response(WORD, 1, logprobs={"content": [{**TOKENS[0], "top_logprobs": TOKENS}]})
JSON_REPLY = response(VERDICT, 40)


def reply_to(body: bytes) -> bytes:
    """The answer to a request."""
    if b'"top_logprobs"' in body:
        return TOKEN_REPLY
    return JSON_REPLY if b'"response_format"' in body else REPLY


async def read_message(reader: asyncio.StreamReader) -> bytes | None:
    """Body of the next HTTP message with a Content-Length; None where the other side has gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return await reader.readexactly(int(length.split(b":")[1]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def serve(parallelism: int, latency_seconds: float) -> None:
    """Prints the port, and answers until it is killed."""
    places = asyncio.Semaphore(parallelism)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (body := await read_message(reader)) is not None:
            async with places:
                await asyncio.sleep(latency_seconds * random.Random(zlib.crc32(body)).uniform(0.5, 1.5))
            writer.write(reply_to(body))

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class ChatServer:
    """The process. A context manager."""

    def __init__(self, parallelism: int, latency_seconds: float) -> None:
        self.capacity = parallelism / latency_seconds
        """Replies a second that it can give at most."""
        command = [sys.executable, "-m", "benchmarks.chat_server", str(parallelism), str(latency_seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def base_url(self) -> str:
        """For an `EndpointConfig`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
