"""A soak of `llamarl detect serve`: many requests, some of them malformed, against the same texts scored offline.

    python -m benchmarks.detect_service              # 13 rounds of 1,000 requests on a tiny model
    python -m benchmarks.detect_service --quick      # 4 rounds of 100

In every round the texts are first scored offline, all in one call, by the detector in this process; then each goes to
the service as a request, 128 in flight, one in twenty cut off or otherwise no request. Every good one must be answered
with the offline scores, every bad one with 400. The service may put 256 claims into a batch: with so small a model the
cost of a batch itself counts, and offline batches are as large as the tokens of a pass allow.

No claim is made twice, as in answers about different things. Where texts repeat each other the comparison is of another
thing: a detector computes equal claims of one call once, and offline all claims are one call, so that it has less to
do. Three rounds of such texts come last and have a headline of their own.

Seconds are processor seconds: of this process for the offline scores, of the service for its answers, with one thread
of torch each. So a ratio holds whoever else works on the machine, and the client's own work is on neither side.
"""

import asyncio
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark, paired_ratio
from llamarl.factuality.decomposition import SentenceDecomposer
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.detectors.files import load_detector, save_detector
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.texts import Instruments, ScoredText, Text, score_texts
from llamarl.models.tiny import build_tiny

IN_FLIGHT = 128
BATCH_CLAIMS = 256
WARM_UP_REQUESTS = 200
REPEATED_ROUNDS = 3
REPEATED = 0.5
"""The sentences that repeated texts are made of, as a share of those of others."""
SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "max_position_embeddings": 512}
CITIES = ("Lyon", "Osaka", "Turin", "Nairobi", "Lima", "Quito", "Porto", "Graz", "Perth", "Basel", "Leeds", "Ghent")
COUNTRIES = ("France", "Japan", "Italy", "Kenya", "Peru", "Ecuador", "Portugal", "Austria", "Australia", "Spain")
SENTENCES = (
    "{city} has been in {country} since {number}.",
    "{number},{digits} people live in {city}.",
    "The old town of {city} was built in {number} by {country}.",
    "A road of {number} km runs from {city} to {country}.",
)


def write_texts(rng: random.Random, count: int, said: set[str]) -> list[str]:
    """Answers of two to six sentences, none of them in `said`, to which they are added."""

    def write_sentence() -> str:
        fields = {"city": rng.choice(CITIES), "country": rng.choice(COUNTRIES), "number": rng.randrange(1000, 2000)}
        sentence = rng.choice(SENTENCES).format(digits=rng.randrange(100, 1000), **fields)
        if sentence in said:
            return write_sentence()
        said.add(sentence)
        return sentence

    return [" ".join(write_sentence() for _ in range(rng.randint(2, 6))) for _ in range(count)]


def repeat_claims(rng: random.Random, texts: Sequence[str]) -> list[str]:
    """Texts of the same lengths, of a `REPEATED` of their sentences: each stands in several."""
    sentences = [f"{part}." for text in texts for part in text.rstrip(".").split(". ")]
    few = rng.sample(sentences, int(len(sentences) * REPEATED))
    return [" ".join(rng.choices(few, k=text.count(". ") + 1)) for text in texts]


def spoil(rng: random.Random, body: bytes) -> bytes:
    """A body that is no request."""
    bad = (body[: rng.randrange(len(body))], b"\xff\xfe", b"[]", b"{}", b'{"text": 5}', body[:-1] + b', "txt": 1}')
    return rng.choice(bad)


class Client:
    """One connection that is kept alive. Written by hand: a client library would cost more than the service."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the answer to a POST, or to a GET without a body."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        method, data = ("GET", b"") if body is None else ("POST", body)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        assert length is not None
        return int(answer.split(b" ", 2)[1]), await self._reader.readexactly(int(length[1]))

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()


@dataclass
class Round:
    """The outcome of one round."""

    claims: int = 0
    """Claims of good requests."""
    offline_seconds: float = 0.0
    service_seconds: float = 0.0
    wall_seconds: float = 0.0
    rss_mib: float = 0.0
    """Memory of the service afterwards."""
    statuses: Counter[int] = field(default_factory=Counter)
    largest_gap: float = 0.0
    """Largest difference of a probability or mass to the offline one."""
    is_repeated: bool = False
    """True where texts make each other's claims."""
    num_wrong: int = 0
    """Answers that are not the offline list up to rounding, and bad requests that were not refused with 400."""


async def soak(port: int, offline: Sequence[ScoredText], texts: Sequence[str], rng: random.Random, bad: float) -> Round:
    """Sends every text once."""
    result, waiting = Round(), list(range(len(texts)))
    is_bad = [rng.random() < bad for _ in texts]
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    bodies = [spoil(rng, body) if wrong else body for body, wrong in zip(bodies, is_bad, strict=True)]
    watch = Client(port)
    before, started = await read_metrics(watch), time.perf_counter()

    async def work() -> None:
        client = Client(port)
        while waiting:
            number = waiting.pop()
            status, body = await client.send("/v1/detect", bodies[number])
            result.statuses[status] += 1
            if is_bad[number] or status != 200:
                result.num_wrong += status != 400
                continue
            expected = offline[number].records()
            result.claims += len(expected)
            gap = largest_gap(expected, json.loads(body))
            result.num_wrong += gap is None
            result.largest_gap = max(result.largest_gap, gap or 0.0)
        client.close()

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    result.wall_seconds = time.perf_counter() - started
    after = await read_metrics(watch)
    watch.close()
    result.service_seconds = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    result.rss_mib = after["process_resident_memory_bytes"] / 2**20
    good = [text for text, wrong in zip(offline, is_bad, strict=True) if not wrong]
    assert result.claims == sum(len(text.claims) for text in good)
    return result


def largest_gap(expected: Sequence[dict[str, Any]], found: Any) -> float | None:
    """The largest difference of two lists' numbers; None where they differ in more than numbers."""
    if [(each["claim"], each["span"]) for each in expected] != [(each["claim"], each["span"]) for each in found]:
        return None
    pairs = zip(expected, found, strict=True)
    return max((abs(a[key] - b[key]) for a, b in pairs for key in ("p_factual", "mass")), default=0.0)


async def read_metrics(client: Client) -> dict[str, float]:
    """The numbers of `/metrics` that have no labels."""
    _, body = await client.send("/metrics")
    lines = [line.split(" ") for line in body.decode().splitlines() if line[:1] != "#" and "{" not in line]
    return {name: float(value) for name, value in lines}


class Server:
    """`llamarl detect serve` in a process of its own. A context manager."""

    def __init__(self, detector: Path) -> None:
        program = "from llamarl.cli.program import run; run()"
        command = [sys.executable, "-c", program, "detect", "serve", "--detector", str(detector), "--port", "0"]
        command += ["--batch-claims", str(BATCH_CLAIMS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        found = re.search(r":(\d+)/v1/detect", self._process.stdout.readline())
        assert found is not None
        self.port = int(found[1])

    def stop(self) -> int:
        """Ends it as an operator does; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()
        return self._process.returncode

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def run_rounds(directory: Path, repeats: int, requests: int, bad: float, note: Any) -> tuple[list[Round], int]:
    """All rounds, after one that warms both sides up, those of repeated claims last, and the service's exit status."""
    detector = load_detector(directory, device="cpu")
    rng, said, rounds = random.Random(0), set[str](), []
    with Server(directory) as server:
        for number in range(1 + repeats + min(repeats, REPEATED_ROUNDS)):
            texts = write_texts(rng, requests if number else min(requests, WARM_UP_REQUESTS), said)
            is_repeated = number > repeats
            if is_repeated:
                texts = repeat_claims(rng, texts)
            offline, seconds = score_offline(detector, texts)
            result = asyncio.run(soak(server.port, offline, texts, rng, bad))
            # The bad requests are not scored, so the offline seconds of their texts don't count either.
            result.offline_seconds = seconds * result.claims / sum(len(text.claims) for text in offline)
            result.is_repeated = is_repeated
            rounds.append(result)
            note(f"round {number}: {dict(result.statuses)}, {result.rss_mib:.0f} MiB")
        return rounds[1:], server.stop()


def score_offline(detector: Detector, texts: Sequence[str]) -> tuple[list[ScoredText], float]:
    """The texts scored in one call, and its processor seconds."""
    named = [Text(str(number), text) for number, text in enumerate(texts)]
    started = time.process_time()
    scored = asyncio.run(score_texts(named, detector, Instruments(SentenceDecomposer())))
    return scored, time.process_time() - started


def measure_throughput(rounds: Sequence[Round]) -> dict[str, float]:
    """Claims per processor second of the service, over those of the offline scores."""
    return paired_ratio(
        [each.claims / each.service_seconds for each in rounds], [each.claims / each.offline_seconds for each in rounds]
    )


def list_rows(rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Yields the table."""
    for number, each in enumerate(rounds, start=1):
        yield {
            "round": number,
            "requests": each.statuses.total(),
            "status 400": each.statuses[400],
            "claims": f"{each.claims}{' (repeated)' if each.is_repeated else ''}",
            "offline claims/cpu s": round(each.claims / each.offline_seconds),
            "service claims/cpu s": round(each.claims / each.service_seconds),
            "requests/s": round(each.statuses.total() / each.wall_seconds, 1),
            "RSS MiB": round(each.rss_mib, 1),
            "largest gap": each.largest_gap,
        }


def main() -> None:
    # Counts, memory and a ratio of processor seconds are the same on a busy machine.
    benchmark = Benchmark("detect_service", __doc__, repeats=10, max_load=math.inf)
    benchmark.parser.add_argument("--requests", type=int, help="requests of a round (default 1000; --quick 100)")
    benchmark.parser.add_argument("--bad", type=float, default=0.05, help="share of malformed ones (default 0.05)")
    options = benchmark.start()
    torch.set_num_threads(1)
    requests = options.requests or (100 if options.quick else 1000)
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny("llama", Path(folder) / "model", **SIZES)
        save_detector(PromptTF(Backbone.load(model, device="cpu"), threshold=0.5), Path(folder) / "detector")
        rounds, status = run_rounds(Path(folder) / "detector", options.repeats, requests, options.bad, benchmark.note)
    statuses = sum((each.statuses for each in rounds), Counter[int]())
    distinct, repeated = (
        measure_throughput([each for each in rounds if each.is_repeated is kind]) for kind in (False, True)
    )
    headlines = {
        "requests": statuses.total(),
        "malformed": statuses[400],
        "server errors": sum(count for code, count in statuses.items() if code >= 500),
        "wrong answers": sum(each.num_wrong for each in rounds),
        "throughput of offline": distinct["median"],
        "throughput of offline, repeated claims": repeated["median"],
        "largest gap to offline": max(each.largest_gap for each in rounds),
        "MiB at first": rounds[0].rss_mib,
        "MiB at last": rounds[-1].rss_mib,
        "MiB gained": rounds[-1].rss_mib - rounds[0].rss_mib,
        "exit status after SIGTERM": status,
    }
    notes = [
        f"throughput of offline, {name} claims: median {ratio['median']}, from {ratio['min']} to {ratio['max']}"
        for name, ratio in (("distinct", distinct), ("repeated", repeated))
    ]
    benchmark.finish(list(list_rows(rounds)), headlines, notes)


if __name__ == "__main__":
    main()
