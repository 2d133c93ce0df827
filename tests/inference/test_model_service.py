"""A served model: the generator's own tokens, whoever asks, whole or as a stream; newer weights; what goes wrong."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

from llamarl.core.errors import CheckpointError, WeightSyncError
from llamarl.core.records import GenerationRequest, Prompt, text_completion
from llamarl.core.sampling import Sampling
from llamarl.generation.batcher import Batcher
from llamarl.generation.chats import NativeChat
from llamarl.generation.executor import GeneratorConfig, build_batcher
from llamarl.inference.decoding import DecodingThread
from llamarl.inference.service import ModelService, Served
from llamarl.inference.settings import ModelServing
from llamarl.judges.llm.judge import LLMJudge
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.decoder import named_tensors
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
from llamarl.tasks.demo import DEMO_CHECKPOINT

IDS = [1, 20, 33, 41, 7, 9]
HELLO = [{"role": "user", "content": "write 3 words with moon"}]
LONG = [{"role": "user", "content": "y" * 600}]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load() -> Served:
    return Served(load_model(DEMO_CHECKPOINT), load_tokenizer(DEMO_CHECKPOINT), "demo")


@asynccontextmanager
async def serve(source: Any = None, **settings: Any) -> AsyncIterator[tuple[ModelService, httpx.AsyncClient]]:
    service = ModelService(load(), ModelServing.parse({"port": 0, "drain": 5.0, **settings}), source)
    await service.http.start()
    service.follow()
    async with httpx.AsyncClient(base_url=service.http.url, trust_env=False, timeout=30) as client:
        yield service, client
        await service.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))  # type: ignore[arg-type]


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    reply = await client.post("/v1/completions", json={"prompt": IDS, "return_token_ids": True, **body})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def read_events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    events = []
    async with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200 and response.headers["content-type"] == "text/event-stream"
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: ")
                text = line.removeprefix("data: ")
                events.append(text if text == "[DONE]" else json.loads(text))
    return events


def generate(served: Served, seed: int, **sampling: Any) -> Any:
    batcher = build_batcher(served.module, GeneratorConfig(device="cpu"), served.tokenizer)
    ((completion,),) = batcher.generate([GenerationRequest(0, tuple(IDS), (seed,), Sampling(**sampling))])
    return completion


def reference(module: nn.Module, token_ids: list[int]) -> Tensor:
    """Log-probs of all tokens at each place of a completion, by the transformers forward."""
    with torch.no_grad():
        table = torch.log_softmax(module(torch.tensor([IDS + token_ids])).logits[0].float(), dim=-1)
    return table[len(IDS) - 1 : -1]


# ---- what is answered -----------------------------------------------------------------------------------------------


def test_a_completion_is_the_generators() -> None:
    async def main() -> None:
        expected = generate(load(), 7, max_tokens=20, temperature=0.8, top_p=0.9)
        async with serve() as (_, client):
            answer = await complete(client, max_tokens=20, temperature=0.8, top_p=0.9, seed=7, model="demo")
            (choice,) = answer["choices"]
            assert choice["token_ids"] == list(expected.token_ids) and choice["text"] == expected.text
            assert choice["finish_reason"] == expected.finish_reason and choice["prompt_token_ids"] == IDS
            num = len(expected.token_ids)
            assert choice["weight_versions"] == [{"version": "0", "start": 0, "end": num}]
            assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": num, "total_tokens": 6 + num}
            assert (answer["object"], answer["model"]) == ("text_completion", "demo")

    run(main)


def test_requests_share_one_batch_and_do_not_disturb_each_other() -> None:
    async def main() -> None:
        async with serve() as (service, client):
            alone = [await complete(client, seed=seed, max_tokens=16) for seed in range(4)]
            steps_alone = service.decoding.num_steps
            together = await asyncio.gather(*(complete(client, seed=seed, max_tokens=16) for seed in range(4)))
            assert [each["choices"] for each in together] == [each["choices"] for each in alone]
            assert service.decoding.num_steps - steps_alone < steps_alone

    run(main)


def test_several_choices_differ_and_the_first_is_that_of_the_seed() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            several = await complete(client, seed=7, max_tokens=12, n=3, prompt=[IDS, IDS[:3]])
            assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3, 4, 5]
            assert len({tuple(choice["token_ids"]) for choice in several["choices"]}) > 3
            one = await complete(client, seed=7, max_tokens=12)
            assert several["choices"][0] == one["choices"][0]
            assert several["choices"][3]["prompt_token_ids"] == IDS[:3]
            unseeded = [await complete(client, max_tokens=12) for _ in range(4)]
            assert len({tuple(answer["choices"][0]["token_ids"]) for answer in unseeded}) > 1

    run(main)


def test_a_chat_answers_as_the_checkpoint_in_this_process_does() -> None:
    async def main() -> None:
        chat = NativeChat(DEMO_CHECKPOINT, Sampling(max_tokens=30))
        expected = await chat.reply(HELLO, 11)
        await chat.close()
        async with serve() as (_, client):
            body = {"messages": HELLO, "seed": 11, "max_completion_tokens": 30}
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            (choice,) = answer["choices"]
            assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
            assert choice["finish_reason"] == expected.finish_reason
            assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens
            # without a limit there is as much room as the model has
            del body["max_completion_tokens"]
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    run(main)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_the_models_own_at_any_temperature(temperature: float) -> None:
    async def main() -> None:
        async with serve() as (_, client):
            (choice,) = (await complete(client, seed=3, max_tokens=12, logprobs=4, temperature=temperature))["choices"]
            table = reference(load().module, choice["token_ids"])
            logprobs = choice["logprobs"]
            for place, token_id in enumerate(choice["token_ids"]):
                assert logprobs["token_logprobs"][place] == pytest.approx(table[place, token_id].item(), abs=1e-4)
                top = list(logprobs["top_logprobs"][place].values())
                assert top == pytest.approx(table[place].topk(4).values.tolist(), abs=1e-4)
            assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(choice["token_ids"])
            (bare,) = (await complete(client, seed=3, max_tokens=12, logprobs=0, temperature=temperature))["choices"]
            assert bare["logprobs"]["token_logprobs"] == pytest.approx(logprobs["token_logprobs"], abs=1e-4)
            assert bare["logprobs"]["top_logprobs"] is None

    run(main)


def test_a_stop_string_ends_the_text_and_is_no_part_of_it() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            (whole,) = (await complete(client, seed=5, max_tokens=30))["choices"]
            stop = whole["text"][4:6]
            (cut,) = (await complete(client, seed=5, max_tokens=30, stop=[stop, "~~"]))["choices"]
            assert cut["text"] == whole["text"][: whole["text"].index(stop)] and cut["finish_reason"] == "stop"

    run(main)


def test_a_stream_is_the_answer_in_pieces() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            body = {"prompt": IDS, "seed": 7, "n": 3, "max_tokens": 24, "logprobs": 2, "stop": ["mo"]}
            whole = (await client.post("/v1/completions", json=body)).json()
            usage = {"stream_options": {"include_usage": True}}
            *events, last = await read_events(client, "/v1/completions", {**body, **usage})
            assert last == "[DONE]" and len(events) > 6
            assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []
            assert {event["id"] for event in events} == {events[0]["id"]}
            for expected in whole["choices"]:
                parts = [c for event in events for c in event["choices"] if c["index"] == expected["index"]]
                assert "".join(part["text"] for part in parts) == expected["text"]
                assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
                assert parts[-1]["finish_reason"] == expected["finish_reason"]
                assert parts[-1]["weight_versions"] == expected["weight_versions"]
                for name in ("tokens", "text_offset"):
                    together = [x for part in parts for x in part["logprobs"][name]]
                    assert together == expected["logprobs"][name]

    run(main)


def test_a_chat_streams_role_pieces_and_end() -> None:
    async def main() -> None:
        async with serve() as (_, client):
            body = {"messages": HELLO, "seed": 2, "max_tokens": 20, "logprobs": True, "top_logprobs": 1}
            whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
            *events, last = await read_events(client, "/v1/chat/completions", body)
            choices = [event["choices"][0] for event in events]
            assert last == "[DONE]" and choices[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["delta"].get("content", "") for c in choices) == whole["message"]["content"]
            assert [c["finish_reason"] for c in choices if c["finish_reason"]] == [whole["finish_reason"]]
            tokens = [entry["token"] for c in choices[1:] for entry in c["logprobs"]["content"]]
            assert tokens == [entry["token"] for entry in whole["logprobs"]["content"]]
            assert events[0]["object"] == "chat.completion.chunk" and "usage" not in events[0]

    run(main)


def test_health_models_and_metrics_say_what_is_served() -> None:
    async def main() -> None:
        async with serve(slots=3) as (_, client):
            answer = await complete(client, seed=1, max_tokens=5)
            health = (await client.get("/health")).json()
            assert health == {
                **{"status": "ok", "model": "demo", "generator": "native", "precision": "fp32", "slots": 3},
                **{"max_model_len": health["max_model_len"], "version": 0},
            }
            (model,) = (await client.get("/v1/models")).json()["data"]
            assert (model["id"], model["object"], model["owned_by"]) == ("demo", "model", "llamarl")
            text = (await client.get("/metrics")).text
            assert "llamarl_prompt_tokens_total 6.0" in text and "llamarl_policy_version 0.0" in text
            assert f"llamarl_completion_tokens_total {answer['usage']['completion_tokens']:.1f}" in text

    run(main)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("completions", {"prompt": IDS, "model": "gpt"}, 404, "model", "'demo' is"),
        ("completions", {"prompt": ""}, 400, "prompt", "holds no token"),
        ("completions", {"prompt": [5, 98]}, 400, "prompt", "98 is no token id"),
        ("completions", {"prompt": [5, -1]}, 400, "prompt", "-1 is no token id"),
        ("completions", {"prompt": IDS, "max_tokens": 1000}, 400, "max_tokens", "ask for at most"),
        ("completions", {"prompt": [5] * 600}, 400, "prompt", "prompt: 600 tokens leave no room"),
        ("chat/completions", {"messages": LONG}, 400, "messages", "messages: 602 tokens leave no room"),
        ("completions", {}, 400, "prompt", "required"),
        ("completions", {"prompt": IDS, "echo": True}, 400, "echo", "echo: is not done here"),
        ("completions", {"prompt": IDS, "temperature": "hot"}, 400, "temperature", "must be a number"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
        ("chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", "tools: is not done"),
        (
            "chat/completions",
            {"messages": HELLO, "chat_template_kwargs": {"thinks": 1}},
            400,
            "chat_template_kwargs",
            "no such variable",
        ),
    ],
)
def test_bad_bodies_name_their_field(
    path: str, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    async def main() -> None:
        async with serve() as (service, client):
            for stream in ({}, {"stream": True}):  # a stream is refused before it begins
                reply = await client.post(f"/v1/{path}", json={**body, **stream})
                assert reply.status_code == status, reply.text
                error = reply.json()["error"]
                assert message in error["message"] and error["param"] == param
            assert service.decoding.num_open == 0
            await complete(client, seed=1, max_tokens=2)

    run(main)


def test_too_many_waiting_completions_are_refused_and_come_later() -> None:
    async def main() -> None:
        async with serve(slots=1, max_waiting=2) as (service, client):
            reply = await client.post("/v1/completions", json={"prompt": IDS, "n": 4})
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
            assert len((await complete(client, n=3, max_tokens=3))["choices"]) == 3
            assert service.decoding.num_open == 0

    run(main)


def test_a_client_that_leaves_takes_its_request_back() -> None:
    async def main() -> None:
        async with serve() as (service, client):
            async with client.stream(
                "POST", "/v1/completions", json={"prompt": IDS, "max_tokens": 200, "n": 8, "stream": True}
            ) as response:
                await anext(response.aiter_lines())
            task = asyncio.create_task(complete(client, max_tokens=200, n=8))
            while not service.decoding.num_open:
                await asyncio.sleep(0)
            task.cancel()
            while service.decoding.num_open:
                await asyncio.sleep(0.01)
            assert await service.decoding.call(lambda batcher: batcher.has_work) is False

    run(main)


def test_a_stream_that_takes_too_long_ends_with_an_error_and_without_done() -> None:
    async def main() -> None:
        async with serve(deadline=0.3) as (_, client):
            events = await read_events(client, "/v1/completions", {"prompt": IDS, "max_tokens": 200, "n": 128})
            assert events[-1]["error"]["message"].startswith("cut off after 0.3 s")

    run(main)


class Breaks(Exception):
    pass


def test_a_step_that_fails_is_told_to_those_who_wait_and_others_are_served() -> None:
    class Faulty(Batcher):
        fails = True

        def step(self) -> Any:
            if self.fails:
                raise Breaks("out of memory")
            return super().step()

    async def main() -> None:
        served = load()
        native = build_batcher(served.module, GeneratorConfig(device="cpu"), served.tokenizer)
        batcher = Faulty(native.backend, eos_ids=(), decode=served.tokenizer.decode)
        thread = DecodingThread(batcher, max_waiting=4)
        request = GenerationRequest(0, tuple(IDS), (1,), Sampling(max_tokens=3))
        with pytest.raises(Breaks, match="out of memory"):
            [event async for event in thread.stream([request])]
        batcher.fails = False
        assert len([event async for event in thread.stream([request])]) == 4
        await thread.close()

    run(main)


# ---- newer weights --------------------------------------------------------------------------------------------------


class ScriptedSource:
    """Gives, once each, what a test puts in."""

    def __init__(self) -> None:
        self.newer: tuple[int, Mapping[str, Tensor]] | Exception | None = None
        self.num_looks = itertools.count()

    def look(self) -> tuple[int, Mapping[str, Tensor]] | None:
        newer, self.newer = self.newer, None
        next(self.num_looks)
        if isinstance(newer, Exception):
            raise newer
        return newer


def shifted(scale: float = 0.05) -> nn.Module:
    module = load().module
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def test_newer_weights_are_taken_between_two_tokens_of_a_completion() -> None:
    async def main() -> None:
        source, newer = ScriptedSource(), shifted()
        async with serve(source, look_seconds=0.01) as (service, client):
            task = asyncio.create_task(complete(client, seed=9, max_tokens=200, n=4, logprobs=0, top_k=60))
            while not service.decoding.num_steps > 20:
                await asyncio.sleep(0)
            source.newer = (40, dict(named_tensors(newer)))
            choices = (await task)["choices"]
            old = load().module
            mixed = [choice for choice in choices if len(choice["weight_versions"]) == 2]
            assert mixed
            for choice in mixed:
                before, after = choice["weight_versions"]
                assert (before["version"], after["version"]) == ("0", "40") and before["end"] == after["start"]
                for module, part in ((old, before), (newer, after)):
                    table, ids = reference(module, choice["token_ids"]), choice["token_ids"]
                    for place in range(part["start"], part["end"]):
                        logprob = choice["logprobs"]["token_logprobs"][place]
                        assert logprob == pytest.approx(table[place, ids[place]].item(), abs=1e-3)
            assert (await client.get("/health")).json()["version"] == 40

    run(main)


@pytest.mark.parametrize("newer", [CheckpointError("torn"), (5, {"x": torch.tensor([float("nan")])})])
def test_weights_that_cannot_be_used_leave_those_that_serve(newer: Any) -> None:
    async def main() -> None:
        source = ScriptedSource()
        async with serve(source, look_seconds=0.01) as (_, client):
            before = await complete(client, seed=1)
            source.newer = newer
            while source.newer is not None:
                await asyncio.sleep(0)
            seen = next(source.num_looks)
            while next(source.num_looks) < seen + 3:
                await asyncio.sleep(0.01)
            assert (await complete(client, seed=1))["choices"] == before["choices"]
            assert (await client.get("/health")).json()["version"] == 0

    run(main)


def test_nothing_is_drawn_from_weights_in_doubt() -> None:
    def break_weights(batcher: Batcher) -> None:
        raise WeightSyncError("2 tensors differ after loading")

    async def main() -> None:
        async with serve() as (service, client):
            waiting = asyncio.create_task(client.post("/v1/completions", json={"prompt": IDS, "max_tokens": 200}))
            while not service.decoding.num_steps:
                await asyncio.sleep(0)
            with pytest.raises(WeightSyncError):
                await service.decoding.update(break_weights)
            assert (await waiting).status_code == 503
            reply = await client.post("/v1/completions", json={"prompt": IDS})
            assert reply.status_code == 503 and "2 tensors differ" in reply.text
            await service.decoding.update(lambda batcher: None)
            await complete(client, seed=1)

    run(main)


# ---- other people's clients, and ours -------------------------------------------------------------------------------


def test_the_openai_client_can_use_it() -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")

    async def main() -> None:
        async with serve() as (service, _):
            url = f"{service.http.url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
                assert [model.id async for model in client.models.list()] == ["demo"]
                text = await client.completions.create(model="demo", prompt=IDS, seed=4, max_tokens=12, logprobs=2)
                assert text.choices[0].text and len(text.choices[0].logprobs.top_logprobs[0]) == 2
                pieces = await client.completions.create(model="demo", prompt=IDS, seed=4, max_tokens=12, stream=True)
                assert "".join([piece.choices[0].text async for piece in pieces]) == text.choices[0].text
                asked = {"model": "demo", "messages": HELLO, "seed": 4, "max_tokens": 12}
                chat = await client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
                assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 3
                pieces = await client.chat.completions.create(**asked, stream=True)
                together = "".join([piece.choices[0].delta.content or "" async for piece in pieces])
                assert together == chat.choices[0].message.content
                with pytest.raises(openai.NotFoundError, match="not served here"):
                    await client.completions.create(model="gpt", prompt="a")
                with pytest.raises(openai.BadRequestError, match="echo"):
                    await client.completions.create(model="demo", prompt="a", echo=True)

    run(main)


TEMPLATE = """
version = "1"
way = "probability"
positive = ["Polite"]
negative = ["Rude"]
system = "You judge."
user = "{{completion}}"
ask_token = "Polite or Rude?"
"""


def test_our_own_client_and_a_judge_can_use_it(tmp_path: Path) -> None:
    (tmp_path / "polite.toml").write_text(TEMPLATE)

    async def main() -> None:
        async with serve() as (service, _):
            base_url = f"{service.http.url}/v1"
            async with ChatEndpoint(EndpointConfig(base_url=base_url, model="demo")) as endpoint:
                reply = await endpoint.chat(HELLO, max_tokens=5, top_logprobs=20, seed=1)
                assert len(reply.top_logprobs) == reply.completion_tokens and len(reply.top_logprobs[0]) >= 20
            judge = LLMJudge(base_url=base_url, model="demo", template=str(tmp_path / "polite.toml"), max_retries=0)
            (verdict,) = await judge.judge(Prompt("p", tuple(HELLO)), [text_completion("a knife")])
            # a model whose tokens are single letters cannot say either word; the judge read what it would say
            assert verdict.reason.startswith("neither")
            judge.close()

    run(main)
