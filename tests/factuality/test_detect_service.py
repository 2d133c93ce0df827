"""The service of a detector: the same list as the command, common batches, limits, a short soak."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from scripted_detector import ScriptedDetector
from scripted_models import ScriptedModel

from llamarl.core.errors import ConfigError
from llamarl.factuality.asking import Helper
from llamarl.factuality.claims import Claim
from llamarl.factuality.decomposition import Decomposer, ModelDecomposer, SentenceDecomposer
from llamarl.factuality.detectors.cache import ENTRY_BYTES
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.service import DetectService
from llamarl.factuality.settings import DetectServing
from llamarl.factuality.texts import Instruments, Text, score_texts

PLACES = ("Spain", "France", "Mars", "the Moon", "Peru")


def write_text(rng: random.Random) -> str:
    return " ".join(f"City {rng.randrange(99)} lies in {rng.choice(PLACES)}." for _ in range(rng.randrange(1, 6)))


@asynccontextmanager
async def serve(
    detector: ScriptedDetector, decomposer: Decomposer | None = None, **settings: Any
) -> AsyncIterator[tuple[DetectService, httpx.AsyncClient]]:
    config = DetectServing.parse({"detector": "d", "port": 0, "drain": 5.0, **settings})
    service = DetectService(detector, decomposer or SentenceDecomposer(), config, 0.5)
    await service.http.start()
    async with httpx.AsyncClient(base_url=service.http.url, trust_env=False, timeout=20) as client:
        yield service, client
        await service.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))  # type: ignore[arg-type]


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/detect", json=body)


@pytest.mark.parametrize(
    "text", ["Lyon is in Spain. It is on Mars.\n\n- Nice is nice.", "", "Well.", "\ud83d in Spain."]
)
def test_the_answer_is_the_list_of_the_command(text: str) -> None:
    async def main() -> None:
        (scored,) = await score_texts(
            [Text("a", text)], ScriptedDetector(), Instruments(SentenceDecomposer()), subject="Lyon"
        )
        async with serve(ScriptedDetector()) as (_, client):
            reply = await client.post("/v1/detect", content=json.dumps({"text": text, "subject": "Lyon"}))
            assert (reply.status_code, reply.json()) == (200, scored.records())

    run(main)


def test_a_detector_sees_the_prompt() -> None:
    seen: list[Claim] = []

    def look(claim: Claim) -> Score:
        seen.append(claim)
        return Score(0.5)

    async def main() -> None:
        async with serve(ScriptedDetector(look)) as (_, client):
            await ask(client, text="It is in Spain.", prompt="Where is Lyon?", subject="Lyon")
            assert (await client.get("/health")).json() == {"status": "ok", "detector": "scripted", "threshold": 0.5}

    run(main)
    assert seen[0].answer.ask.text == "Where is Lyon?" and seen[0].text == "Lyon is in Spain."


class Gate:
    """Lets a detector's thread go on."""

    def __init__(self) -> None:
        self.is_reached, self._is_open = threading.Event(), threading.Event()

    def wait(self, claim: Claim) -> Score:
        self.is_reached.set()
        assert self._is_open.wait(20)
        return Score(0.5)

    async def reached(self) -> None:
        while not self.is_reached.is_set():
            await asyncio.sleep(0)

    def open(self) -> None:
        self._is_open.set()


def test_requests_share_batches_on_one_thread_and_the_loop_goes_on() -> None:
    async def main() -> None:
        gate = Gate()
        detector = ScriptedDetector(gate.wait)
        async with serve(detector, batch_claims=8) as (_, client):
            tasks = [asyncio.create_task(ask(client, text="Lima is in Peru. It is old there."))]
            await gate.reached()
            tasks += [asyncio.create_task(ask(client, text=f"City {n} is in Peru. It is old.")) for n in range(8)]
            while (await waiting(client)) < 16:
                await asyncio.sleep(0)
            gate.open()
            assert {len((await task).json()) for task in tasks} == {2}
        assert list(map(len, detector.batches)) == [2, 8, 8] and len(detector.threads) == 1

    run(main)


async def waiting(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("llamarl_queue_items "))


def test_a_full_queue_and_a_text_of_too_many_claims_are_refused() -> None:
    async def main() -> None:
        gate = Gate()
        async with serve(ScriptedDetector(gate.wait), max_claims=2, max_waiting=2) as (_, client):
            first = asyncio.create_task(ask(client, text="Lima is in Peru."))
            await gate.reached()
            second = asyncio.create_task(ask(client, text="Lima is in Peru. Lyon is in France."))
            while (await waiting(client)) < 2:
                await asyncio.sleep(0)
            reply = await ask(client, text="Lima is in Peru.")
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
            reply = await ask(client, text="Lima is in Peru. " * 3)
            assert (reply.status_code, reply.json()["error"]["param"]) == (413, "text")
            gate.open()
            assert (await first).status_code == (await second).status_code == 200

    run(main)


def test_a_text_is_computed_once_and_answered_alike() -> None:
    async def main() -> None:
        detector = ScriptedDetector()
        async with serve(detector) as (_, client):
            replies = [await ask(client, text="Lima is in Peru. Lyon is in Spain.") for _ in range(3)]
            assert replies[0].json() == replies[1].json() == replies[2].json() and len(replies[0].json()) == 2
            assert list(map(len, detector.batches)) == [2]
            numbers = (await client.get("/metrics")).text
            for name, value in (("claims_total", 6), ("claims_computed_total", 2), ("cache_claims", 2)):
                assert f"llamarl_detect_{name} {value}.0" in numbers
            assert f"llamarl_detect_cache_bytes {2 * ENTRY_BYTES}.0" in numbers

    run(main)


@pytest.mark.parametrize(("room", "computed"), [(0, [2, 2, 2]), (1, [2, 1, 2]), (4, [2])])
def test_the_memory_for_scores_is_bounded(room: int, computed: list[int]) -> None:
    async def main() -> None:
        detector = ScriptedDetector()
        async with serve(detector, cache_claims=room) as (_, client):
            for text in ("Lima is in Peru. Lyon is in Spain.", "Lima is in Peru. Lyon is in Spain."):
                await ask(client, text=text)
            if room < 4:
                await ask(client, text="Lima is in Chile. Lyon is in Spain.")
            assert f"llamarl_detect_cache_claims {min(room, 2)}.0" in (await client.get("/metrics")).text
        assert list(map(len, detector.batches)) == computed

    run(main)


def test_known_claims_do_not_wait_for_others() -> None:
    async def main() -> None:
        gate, text = Gate(), "Lima is in Peru."
        detector = ScriptedDetector(lambda claim: gate.wait(claim) if "City" in claim.text else Score(0.5))
        async with serve(detector, max_claims=1, max_waiting=1) as (_, client):
            await ask(client, text=text)
            tasks = [asyncio.create_task(ask(client, text="City 1 is in Peru."))]
            await gate.reached()
            tasks.append(asyncio.create_task(ask(client, text="City 2 is in Peru.")))
            while (await waiting(client)) < 1:
                await asyncio.sleep(0)
            assert (await ask(client, text="City 3 is in Peru.")).status_code == 429
            assert (await ask(client, text=text)).json()[0]["p_factual"] == 0.5
            gate.open()
            assert [(await task).status_code for task in tasks] == [200, 200]

    run(main)


def test_a_detector_that_breaks_fails_its_request_only() -> None:
    def judge(claim: Claim) -> Score:
        if "broken" in claim.text:
            raise RuntimeError("out of memory")
        return Score(0.5)

    async def main() -> None:
        async with serve(ScriptedDetector(judge)) as (_, client):
            replies = await asyncio.gather(
                *(ask(client, text=f"City {n} is {'broken' if n == 3 else 'fine'}.") for n in range(8))
            )
            assert [reply.status_code for reply in replies] == [200, 200, 200, 500, 200, 200, 200, 200]

    run(main)


def test_a_helper_that_lists_nonsense_is_told() -> None:
    async def main() -> None:
        decomposer = ModelDecomposer(Helper(ScriptedModel(lambda asked: "I like cheese")))
        async with serve(ScriptedDetector(), decomposer) as (_, client):
            reply = await ask(client, text="Lyon is in Spain.")
            assert reply.status_code == 502 and "I like cheese" in reply.json()["error"]["message"]

    run(main)


def test_a_queue_smaller_than_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-waiting: must be at least --max-claims"):
        DetectServing.parse({"detector": "d", "max_claims": 10, "max_waiting": 9})


def test_a_soak_with_malformed_bodies_has_no_server_error_and_the_scores_of_the_command() -> None:
    rng = random.Random(0)
    texts = [write_text(rng) for _ in range(400)]

    async def main() -> None:
        named = [Text(str(number), text) for number, text in enumerate(texts)]
        expected = await score_texts(named, ScriptedDetector(), Instruments(SentenceDecomposer()))
        detector, waiting = ScriptedDetector(), list(range(len(texts)))
        bad = {number for number in waiting if number % 20 == 7}
        statuses = dict[int, int]()

        async def work(client: httpx.AsyncClient) -> None:
            while waiting:
                number = waiting.pop()
                whole = json.dumps({"text": texts[number]}).encode()
                reply = await client.post(
                    "/v1/detect", content=whole[: number % len(whole)] if number in bad else whole
                )
                statuses[number] = reply.status_code
                if number not in bad:
                    assert reply.json() == expected[number].records()

        async with serve(detector) as (service, client):
            await asyncio.gather(*(work(client) for _ in range(16)))
            numbers = (await client.get("/metrics")).text
        assert {number for number, status in statuses.items() if status == 400} == bad
        assert {statuses[number] for number in statuses if number not in bad} == {200}
        assert service.http.num_finished == 400 and 'status="5' not in numbers
        claims = sum(len(each.claims) for number, each in enumerate(expected) if number not in bad)
        unscored = sum(
            each.score.p_factual is None for n, text in enumerate(expected) if n not in bad for each in text.claims
        )
        assert f"llamarl_detect_claims_total {claims}.0" in numbers
        assert f"llamarl_detect_claims_without_score_total {unscored}.0" in numbers
        computed = sum(map(len, detector.batches))
        assert computed < claims and f"llamarl_detect_claims_computed_total {computed}.0" in numbers

    run(main)
