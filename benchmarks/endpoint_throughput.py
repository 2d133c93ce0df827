"""Whether an evaluation keeps a model server busy: replies per second against what the server can give.

    python -m benchmarks.endpoint_throughput [--conversations 320]

The server (`chat_server`, another process) answers P requests at a time after a known mean latency L, so P / L replies
a second at most. Both clients keep N requests in flight:

    evaluation   conversations of three turns through `run_conversations`: histories, retries, JSON, every turn on disk
    bare         the same number of ready-made requests over open connections, nothing parsed: the server's own
                 throughput at N in flight

`N = P` leaves a place idle from each reply to the next request of the same client; `N = 2 P` keeps a queue. An
evaluation has a tail, when fewer than N conversations are left; the bare client has one, too.
"""

import asyncio
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chat_server import ChatServer, read_message
from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.core.sampling import Sampling
from llamarl.evals.chats import EndpointChat
from llamarl.evals.conversations import Conversation, Turn
from llamarl.evals.runner import run_conversations
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig

QUESTION = "Write a short story about a lighthouse. Use at least 200 words and no commas. "
NUM_TURNS = 3
SERVERS = ((16, 0.2), (32, 0.1))
"""(places P, mean latency L in seconds): 80 and 320 replies a second."""


def conversations(count: int) -> list[Conversation]:
    """As many conversations."""
    return [
        Conversation(f"c{i}", "en", tuple(Turn(f"{QUESTION} {i}.{n}", ()) for n in range(NUM_TURNS)))
        for i in range(count)
    ]


def evaluation_rate(base_url: str, num_in_flight: int, talks: list[Conversation]) -> float:
    """Replies a second of a whole evaluation, from its first request to its last line on disk."""
    config = EndpointConfig(base_url=base_url, model="m", max_concurrency=num_in_flight)
    with tempfile.TemporaryDirectory() as directory:
        chat = EndpointChat(ChatEndpoint(config), Sampling(max_tokens=512))
        started = time.perf_counter()
        replies = run_conversations(talks, chat, Path(directory), max_in_flight=num_in_flight)
        seconds = time.perf_counter() - started
    assert all(reply.response for reply in replies)
    return len(replies) / seconds


def bare_rate(port: int, num_in_flight: int, num_requests: int) -> float:
    """Replies a second without anything around them."""
    started = time.perf_counter()
    asyncio.run(_ask_all(port, num_in_flight, num_requests))
    return num_requests / (time.perf_counter() - started)


async def _ask_all(port: int, num_in_flight: int, num_requests: int) -> None:
    numbers = iter(range(num_requests))

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        for number in numbers:
            body = json.dumps({"messages": [{"role": "user", "content": f"{QUESTION} {number}"}]}).encode()
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert await read_message(reader) is not None, "the server closed a connection"
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask() for _ in range(num_in_flight)))


def measure(benchmark: Benchmark, parallelism: int, latency_seconds: float, num_conversations: int) -> dict[int, Any]:
    """Rates of both clients with P and 2 P requests in flight."""
    talks = conversations(num_conversations)
    rates = {}
    with ChatServer(parallelism, latency_seconds) as server:
        for num_in_flight in (parallelism, 2 * parallelism):
            contenders = {
                "evaluation": partial(evaluation_rate, server.base_url, num_in_flight, talks),
                "bare": partial(bare_rate, server.port, num_in_flight, NUM_TURNS * num_conversations),
            }
            rates[num_in_flight] = take_turns(contenders, benchmark.options.repeats)
            benchmark.note(f"{parallelism} places of {latency_seconds:g} s, {num_in_flight} in flight")
    return rates


def main() -> None:
    benchmark = Benchmark("endpoint_throughput", __doc__, repeats=5, quick_repeats=1)
    benchmark.parser.add_argument("--conversations", type=int, help="of three turns each (default 320; quick: 96)")
    options = benchmark.start()
    num_conversations = options.conversations or (96 if options.quick else 320)
    rows, headlines = [], {}
    for parallelism, latency in SERVERS:
        capacity = parallelism / latency
        for num_in_flight, rates in measure(benchmark, parallelism, latency, num_conversations).items():
            share = paired_ratio(rates["evaluation"], rates["bare"])
            rows.append(
                {
                    "places": parallelism,
                    "latency, s": latency,
                    "limit, replies/s": capacity,
                    "in flight": num_in_flight,
                    "evaluation, replies/s": spread(rates["evaluation"]),
                    "bare, replies/s": spread(rates["bare"]),
                    "evaluation/bare": share,
                    "evaluation/limit": spread([rate / capacity for rate in rates["evaluation"]], 3),
                }
            )
            headlines[f"{num_in_flight} in flight of {parallelism} at {capacity:g}/s"] = share["median"]
    headlines["least share of the server's own throughput"] = min(headlines.values())
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
