"""Whether the LLM judge keeps a model server busy: judgements per second against what the server can give.

    python -m benchmarks.llm_judge [--latency 0.2]

The server (`chat_server`, another process) answers N requests at a time after a known mean latency L: N / L judgements
a second at most. Both clients keep N requests in flight:

    probability, json   `LLMJudge.judge` on groups of 8 different completions, both ways of asking: the template filled
                        in, requests, retries, answers read, verdicts with their cost
    bare                as many ready-made requests over open connections, nothing parsed: what N in flight can get

The CPU time of this process per judgement is what one process can ask at most: 2 ms are 500 judgements a second,
however fast the server is. The last requests leave places empty: of C judgements that costs both about N / 2C, here
1/50.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from benchmarks.chat_server import ChatServer
from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from benchmarks.endpoint_throughput import Pace, bare, timed
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges import text_completion
from llamarl.judges.llm.judge import LLMJudge

PROMPT = Prompt("p", ({"role": "user", "content": "Tell me about the lighthouse, in at most 200 words. " * 4},))
REPLY = "The lighthouse stands on a rock before the coast, and its light is seen for twenty miles. " * 12
CRITERIA = "It answers the request, is no longer than was asked for, and claims nothing that is not so."
GROUP_SIZE = 8
IN_FLIGHT = (16, 32, 64)
WAYS = ("probability", "json")


def groups(count: int) -> list[list[Completion]]:
    """`count` different completions in groups."""
    texts = [text_completion(f"{REPLY} {number}") for number in range(count)]
    return [texts[start : start + GROUP_SIZE] for start in range(0, count, GROUP_SIZE)]


def judged(way: str, base_url: str, num_in_flight: int, work: list[list[Completion]]) -> Pace:
    """All of them through one judge, which asks for as many at once as it may."""

    async def judge_all() -> list[list[Verdict]]:
        judge = LLMJudge(
            base_url=base_url, model="m", template="rubric", criteria=CRITERIA, way=way, max_concurrency=num_in_flight
        )
        try:
            return await asyncio.gather(*(judge.judge(PROMPT, group) for group in work))
        finally:
            await judge.aclose()

    def ask() -> int:
        verdicts = [verdict for group in asyncio.run(judge_all()) for verdict in group]
        assert all(verdict.passed for verdict in verdicts), next(v for v in verdicts if not v.passed)
        return len(verdicts)

    return timed(ask)


def measure(benchmark: Benchmark, num_in_flight: int, latency: float, per_place: int) -> dict[str, list[Pace]]:
    """Paces of all clients, which take turns."""
    count = per_place * num_in_flight
    with ChatServer(num_in_flight, latency) as server:
        clients: dict[str, Callable[[], Pace]] = {"bare": partial(bare, server.port, num_in_flight, count)}
        for way in WAYS:
            clients[way] = partial(judged, way, server.base_url, num_in_flight, groups(count))
        paces = take_turns(clients, benchmark.options.repeats, warm_up=0)
    benchmark.note(f"{num_in_flight} in flight")
    return paces


def main() -> None:
    benchmark = Benchmark("llm_judge", __doc__, repeats=3, quick_repeats=1)
    benchmark.parser.add_argument("--latency", type=float, default=0.2, help="mean seconds of an answer (default 0.2)")
    options = benchmark.start()
    rows, headlines = [], {}
    for num_in_flight in IN_FLIGHT:
        paces = measure(benchmark, num_in_flight, options.latency, 10 if options.quick else 25)
        limit = num_in_flight / options.latency
        rates = {name: [pace.replies_per_second for pace in column] for name, column in paces.items()}
        for name, column in rates.items():
            rows.append(
                {
                    "in flight": num_in_flight,
                    "limit, 1/s": limit,
                    "client": name,
                    "judgements, 1/s": spread(column),
                    "of the limit": spread([rate / limit for rate in column], 3),
                    "of bare": paired_ratio(column, rates["bare"]),
                    "CPU, ms": spread([pace.cpu_milliseconds for pace in paces[name]]),
                }
            )
        for way in WAYS:
            headlines[f"{way} of bare, {num_in_flight} in flight"] = paired_ratio(rates[way], rates["bare"])["median"]
        headlines[f"least, {num_in_flight} in flight"] = min(
            headlines[f"{way} of bare, {num_in_flight} in flight"] for way in WAYS
        )
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
