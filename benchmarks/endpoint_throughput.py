"""Whether an evaluation keeps a model server busy: replies per second against what the server can give.

    python -m benchmarks.endpoint_throughput [--conversations-per-request 20]

The server (`chat_server`, another process) answers P requests at a time after a known mean latency L, so P / L replies
a second at most. Both clients keep N requests in flight:

    evaluation   conversations of three turns through `run_conversations`: histories, retries, JSON, every turn on disk
    bare         the same number of ready-made requests over open connections, nothing parsed: the server's own
                 throughput at N in flight

A client's CPU time per reply bounds what one process can ask: 1 ms is 1,000 replies a second at most.

`N = P` leaves a place idle from each reply to the next request of the same client; `N = 2 P` keeps a queue. When fewer
than N conversations are left, places stay empty: of C conversations that costs a share of about N / 2C, here 1/40 (of
the 4,501 of Multi-IF with 64 in flight: 1/140).
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.chat_server import ChatServer, read_message
from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.core.sampling import Sampling
from llamarl.evals.conversations import Conversation, Turn
from llamarl.evals.runner import run_conversations
from llamarl.generation.chats import EndpointChat
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig

QUESTION = "Write a short story about a lighthouse. Use at least 200 words and no commas. "
NUM_TURNS = 3
CASES = ((16, 0.2, 16), (16, 0.2, 32), (64, 0.4, 64))
"""(places P, mean latency L in seconds, requests in flight N): limits of 80, 80 and 160 replies a second."""


def conversations(count: int) -> list[Conversation]:
    """As many conversations."""
    return [
        Conversation(f"c{i}", "en", tuple(Turn(f"{QUESTION} {i}.{n}", ()) for n in range(NUM_TURNS)))
        for i in range(count)
    ]


class Pace(NamedTuple):
    """How fast a client was."""

    replies_per_second: float
    cpu_milliseconds: float
    """Of this process, per reply."""


def timed(ask: Callable[[], int]) -> Pace:
    """The pace of `ask`, which returns its number of replies."""
    started, cpu = time.perf_counter(), time.process_time()
    count = ask()
    return Pace(count / (time.perf_counter() - started), 1e3 * (time.process_time() - cpu) / count)


def evaluation(base_url: str, num_in_flight: int, talks: list[Conversation]) -> Pace:
    """A whole evaluation, from its first request to its last line on disk."""
    endpoint = ChatEndpoint(EndpointConfig(base_url=base_url, model="m", max_concurrency=num_in_flight))
    chat = EndpointChat(endpoint, Sampling(max_tokens=512))

    def ask() -> int:
        with tempfile.TemporaryDirectory() as directory:
            replies = run_conversations(talks, chat, Path(directory), max_in_flight=num_in_flight)
        assert all(reply.response for reply in replies)
        return len(replies)

    return timed(ask)


def bare(port: int, num_in_flight: int, num_requests: int) -> Pace:
    """Requests and replies without anything around them."""

    def ask() -> int:
        asyncio.run(_ask_all(port, num_in_flight, num_requests))
        return num_requests

    return timed(ask)


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


def measure(
    benchmark: Benchmark, places: int, latency_seconds: float, num_in_flight: int, per_request: int
) -> dict[str, list[Pace]]:
    """Paces of both clients, which take turns."""
    talks = conversations(per_request * num_in_flight)
    with ChatServer(places, latency_seconds) as server:
        contenders = {
            "evaluation": partial(evaluation, server.base_url, num_in_flight, talks),
            "bare": partial(bare, server.port, num_in_flight, NUM_TURNS * len(talks)),
        }
        paces = take_turns(contenders, benchmark.options.repeats, warm_up=0 if benchmark.options.quick else 1)
    benchmark.note(f"{places} places of {latency_seconds:g} s, {num_in_flight} in flight")
    return paces


def main() -> None:
    benchmark = Benchmark("endpoint_throughput", __doc__, repeats=3, quick_repeats=1)
    benchmark.parser.add_argument(
        "--conversations-per-request", type=int, help="conversations per request in flight (default 20; quick: 8)"
    )
    options = benchmark.start()
    per_request = options.conversations_per_request or (8 if options.quick else 20)
    rows, headlines = [], {}
    for places, latency, num_in_flight in CASES:
        paces = measure(benchmark, places, latency, num_in_flight, per_request)
        rates = {name: [pace.replies_per_second for pace in column] for name, column in paces.items()}
        limit = places / latency
        share = paired_ratio(rates["evaluation"], rates["bare"])
        rows.append(
            {
                "places": places,
                "latency, s": latency,
                "in flight": num_in_flight,
                "limit, replies/s": limit,
                "evaluation, replies/s": spread(rates["evaluation"]),
                "bare, replies/s": spread(rates["bare"]),
                "evaluation/bare": share,
                "evaluation/limit": spread([rate / limit for rate in rates["evaluation"]], 3),
                "CPU, ms/reply": spread([pace.cpu_milliseconds for pace in paces["evaluation"]]),
            }
        )
        headlines[f"evaluation/bare, {num_in_flight} in flight, {limit:g}/s"] = share["median"]
    headlines["least evaluation/bare"] = min(headlines.values())
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
