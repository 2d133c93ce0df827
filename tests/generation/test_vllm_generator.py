"""A vLLM server as a generator, on a server without vLLM: what it gives, what it proves, what it does not survive."""

import asyncio
import base64
import io
import sys
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_vllm import FakeVllm
from test_generator_executor import Letters, Shelf, collect_all, publish
from tiny_generators import build, reference_logprobs, request

from llamarl.core.errors import ConfigError, DataError, ExecutorLostError, WeightSyncError
from llamarl.generation.executor import GeneratorConfig
from llamarl.generation.server.executor import ServerPlace
from llamarl.generation.server.process import ServerProcess, free_port
from llamarl.generation.server.settings import ServerSettings
from llamarl.generation.server.weights import check_coverage, with_tied_head
from llamarl.generation.vllm.client import read_completion
from llamarl.generation.vllm.executor import PLUGIN, VllmExecutor, build_environment, check_received

URL = "http://127.0.0.1:9"


def connect(server: FakeVllm, channel: Shelf, **settings: Any) -> VllmExecutor:
    known = ServerSettings.parse({"url": URL, "transfer_seconds": 5.0, **settings})
    place = ServerPlace("unused", 256, tp=server.num_workers, url=URL)
    executor = VllmExecutor(known, GeneratorConfig(), place, Letters(), channel, server.transport)
    executor.setup()
    connected.append(executor)
    return executor


connected: list[VllmExecutor] = []


@pytest.fixture(autouse=True)
def _tear_down():
    yield
    while connected:
        connected.pop().teardown()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))  # type: ignore[arg-type]


def test_completions_have_the_servers_ids_and_the_log_probs_of_the_model() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        server = FakeVllm(model)
        generator = connect(server, channel)
        with pytest.raises(WeightSyncError, match="no weights were proven yet"):
            await generator.submit([request(0)])
        proof = await generator.update_weights(publish(channel, 7, model))
        assert (proof.version, proof.num_bytes) == (7, 123) and proof.probe_gap < 1e-5
        assert proof.precision_cost is not None and proof.precision_cost.largest < 1e-5
        await generator.submit([request(0, num_samples=3, max_tokens=20, temperature=0.7), request(1, (4, 4))])
        done = await collect_all(generator, 2)
        assert len(done[0]) == 3 and len(done[1]) == 2
        for completion in done[0]:
            assert completion.logprobs == pytest.approx(reference_logprobs(model, completion, 0.7), abs=2e-5)
            assert completion.trajectory.versions == ((7, len(completion.token_ids)),)
            assert list(completion.trajectory.prompt_ids) == [5, 9, 11]
        bodies = server.bodies[-5:]
        assert {body["sampling_params"]["seed"] for body in bodies} == {0, 1, 2, 1000, 1001}
        assert all(body["sampling_params"]["detokenize"] is False for body in bodies)
        status = await generator.status()
        assert status["version"] == 7 and status["is_serving"] == 1 and status["completions_active"] == 0
        assert status["tokens"] == sum(len(c.token_ids) for group in done.values() for c in group)

    run(main)


def test_a_greedy_choice_is_certain() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        generator = connect(FakeVllm(model), channel)
        await generator.update_weights(publish(channel, 0, model))
        await generator.submit([request(0, temperature=0.0)])
        assert {x for c in (await collect_all(generator, 1))[0] for x in c.logprobs} == {0.0}

    run(main)


def test_what_is_asked_during_an_update_is_answered_after_its_proof() -> None:
    async def main() -> None:
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        server = FakeVllm(old)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 0, old))
        update = asyncio.create_task(generator.update_weights(publish(channel, 1, new)))
        while "/start_weight_update" not in server.paths[8:]:
            await asyncio.sleep(0)
        await generator.submit([request(0)])
        assert not update.done()
        assert await generator.collect(0.0) == []
        await update
        for completion in (await collect_all(generator, 1))[0]:
            assert completion.trajectory.versions == ((1, len(completion.token_ids)),)

    run(main)


# ---- the real server's silent faults --------------------------------------------------------------------------------


async def after_update(spoil: Callable[[FakeVllm], None]) -> tuple[VllmExecutor, FakeVllm]:
    """A generator whose second update is spoilt; raises what the update raises."""
    channel, old, new = Shelf(), build(seed=0), build(seed=1)
    server = FakeVllm(old)
    generator = connect(server, channel)
    await generator.update_weights(publish(channel, 0, old))
    spoil(server)
    await generator.update_weights(publish(channel, 1, new))
    return generator, server


def without_head(server: FakeVllm) -> None:
    server.loads_head = False


def half(server: FakeVllm) -> None:
    server.loads = 0.5


def nothing(server: FakeVllm) -> None:
    server.loads = 0.0


@pytest.mark.parametrize("spoil", [without_head, half, nothing], ids=["tied head left out", "half", "empty"])
def test_an_update_that_the_server_took_for_whole_fails_the_probe(spoil: Callable[[FakeVllm], None]) -> None:
    async def main() -> None:
        with pytest.raises(WeightSyncError, match="the probe's log-probs differ"):
            await after_update(spoil)

    run(main)


def test_a_tied_head_is_sent_by_its_own_name() -> None:
    tensors, held = (
        {"model.embed_tokens.weight": torch.ones(2, 3)},
        {"model.embed_tokens.weight": [], "lm_head.weight": []},
    )
    whole = with_tied_head(tensors, held)
    assert whole["lm_head.weight"] is tensors["model.embed_tokens.weight"]
    with pytest.raises(WeightSyncError, match=r"1 held by the server but not sent \(lm_head.weight"):
        check_coverage(4, tensors, held, has_shapes=True)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": [], "b": [], "c": []}, "1 held by the server but not sent (c, ...)"),
        ({"a": []}, "1 sent but unknown to the server (b, ...)"),
        ({"a": [128, 4], "b": []}, "1 of another shape there (a, ...)"),
    ],
)
def test_names_and_shapes_are_checked_before_anything_is_sent(held: dict[str, list[int]], message: str) -> None:
    tensors = {"a": torch.ones(98, 3), "b": torch.ones(3)}
    with pytest.raises(WeightSyncError) as caught:
        check_coverage(4, tensors, held, has_shapes=True)
    assert message in str(caught.value)
    check_coverage(4, tensors, {"a": [128, 3], "b": []}, has_shapes=True)  # the vocabulary is padded there


def test_an_update_of_nothing_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="none to send"):
        check_coverage(4, {}, {}, has_shapes=True)


@pytest.mark.parametrize("got", [{}, {"a": (0, 0)}, {"a": (6, 5)}, {"a": (5, 7)}])
def test_what_arrived_otherwise_or_as_nothing_is_no_proof(got: dict[str, tuple[int, int]]) -> None:
    check_received(1, 0, {"a": (6, 7)}, {"a": [6, 7]})
    with pytest.raises(WeightSyncError, match=r"a (did not arrive|arrived otherwise).* at worker 0"):
        check_received(1, 0, {"a": (6, 7)}, got)


def test_a_tensor_that_did_not_arrive_is_named() -> None:
    async def main() -> None:
        def forget(server: FakeVllm) -> None:
            server.forgets = "model.norm.weight"

        with pytest.raises(WeightSyncError, match=r"model\.norm\.weight did not arrive at worker 0"):
            await after_update(forget)

    run(main)


@pytest.mark.parametrize("path", ["/update_weights", "/finish_weight_update", "/pause", "/resume"])
def test_a_server_that_ends_in_an_update_is_lost(path: str) -> None:
    async def main() -> None:
        def die(server: FakeVllm) -> None:
            server.dies_at = path

        with pytest.raises((ExecutorLostError, WeightSyncError)):
            await after_update(die)

    run(main)


def test_what_ended_before_the_proof_does_not_leave() -> None:
    async def main() -> None:
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        server = FakeVllm(old)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 0, old))
        await generator.submit([request(0, num_samples=1, max_tokens=3)])
        server.loads = 0.5
        with pytest.raises(WeightSyncError):
            await generator.update_weights(publish(channel, 1, new))
        while (await generator.status())["completions_active"]:
            await asyncio.sleep(0)
        assert await generator.collect(0.01) == []
        with pytest.raises(WeightSyncError, match="the update to version 1 failed"):
            await generator.submit([request(1)])
        server.loads = 1.0
        await generator.update_weights(publish(channel, 1, new))
        assert [key for key, _ in await generator.collect(1.0)] == [0]

    run(main)


# ---- servers that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": "0.11.2"}, ConfigError, "vLLM 0.11.2, but llamarl speaks to 0.32"),
        ({"version": "0.320.1"}, ConfigError, "vLLM 0.320.1"),
        ({"num_workers": 2, "tp": 1}, ConfigError, "has 2 workers, and placement.generators.tp is 1"),
        ({"dies_at": "/collective_rpc"}, ConfigError, "does not run llamarl's plugin"),
        ({"dies_at": "/get_world_size"}, ConfigError, "VLLM_SERVER_DEV_MODE=1"),
        ({"dies_at": "/version"}, ExecutorLostError, "connection reset"),
        ({"key": "s3cret"}, ConfigError, "refused with 401; check the key"),
        ({"model": build(seed=4)}, WeightSyncError, "they hold other checkpoints"),
        ({"model": build(num_hidden_layers=3)}, WeightSyncError, "before any update|held by the server but not sent"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def main() -> None:
        channel, server = Shelf(), FakeVllm(changes.pop("model", build()))
        place = ServerPlace("unused", 256, tp=changes.pop("tp", 1), url=URL)
        for name, value in changes.items():
            setattr(server, name, value)
        settings = ServerSettings.parse({"url": URL, "transfer_seconds": 5.0})
        generator = VllmExecutor(settings, GeneratorConfig(), place, Letters(), channel, server.transport)
        generator.setup()
        with pytest.raises(error, match=message):
            await generator.update_weights(publish(channel, 0, build()))

    run(main)


GOOD = {
    "token_ids": [5, 2],
    "finish_reason": "stop",
    "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}, {"token_id": 2, "logprob": -2.0}]},
    "weight_versions": [{"version": "0", "start": 0, "end": 2}],
}


@pytest.mark.parametrize(
    "change",
    [
        *({"token_ids": None}, {"logprobs": None}, {"token_ids": [5, 3]}, {"token_ids": []}),
        *({"weight_versions": []}, {"weight_versions": [{"version": "default", "start": 0, "end": 2}]}),
        *({"finish_reason": "abort"}, {"logprobs": {"content": GOOD["logprobs"]["content"][:1]}}),  # type: ignore[index]
    ],
)
def test_an_answer_without_ids_log_probs_or_versions_costs_the_server(change: dict[str, Any]) -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        server = FakeVllm(model)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 0, model))
        server.answers["/inference/v1/generate"] = {"choices": [{**GOOD, **change}]}
        await generator.submit([request(0, num_samples=1)])
        with pytest.raises(ExecutorLostError, match="is no completion"):
            await generator.collect(5.0)

    run(main)


def in_base64(experts: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, experts)
    return base64.b64encode(buffer.getvalue()).decode()


def test_experts_that_the_server_tells_are_kept_of_the_tokens_that_were_read() -> None:
    experts = np.arange(5 * 2 * 2, dtype=np.uint16).reshape(5, 2, 2)  # 3 tokens of the prompt, 1 of 2 drawn, 1 too many
    answer = {"choices": [{**GOOD, "routed_experts": in_base64(experts)}]}
    completion = read_completion(answer, array("i", (5, 9, 11)))
    assert completion.routed_experts == bytes(range(16))
    assert read_completion({"choices": [GOOD]}, array("i", (5, 9, 11))).routed_experts == b""
    for wrong in (experts[:3], experts[0], experts + 256, experts.astype(np.float32)):
        with pytest.raises(ExecutorLostError, match=r"is no completion \(ValueError: routed_experts of shape"):
            read_completion({"choices": [{**GOOD, "routed_experts": in_base64(wrong)}]}, array("i", (5, 9, 11)))


def test_experts_whose_header_promises_more_than_was_sent_are_refused_before_room_is_made() -> None:
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 2, 2), np.uint8))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {**header, "shape": (2**40, 2, 2)})
    answer = {"choices": [{**GOOD, "routed_experts": base64.b64encode(buffer.getvalue() + b"1234").decode()}]}
    with pytest.raises(ExecutorLostError, match="is no completion"):
        read_completion(answer, array("i", (5, 9, 11)))


def test_tokens_that_filters_left_are_not_to_be_had_from_it() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        generator = connect(FakeVllm(model), channel)
        await generator.update_weights(publish(channel, 0, model))
        asked = replace(request(0, top_p=0.9), keeps_support=True)
        with pytest.raises(ConfigError, match=r"'top_p': 0\.9.*does not tell which tokens its filters left"):
            await generator.submit([asked])
        await generator.submit([request(1, top_p=0.9)])
        assert len((await collect_all(generator, 1))[1]) == 2

    run(main)


def test_a_request_that_does_not_fit_is_refused_and_others_go_on() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        server = FakeVllm(model)
        server.max_model_len = 20
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 0, model))
        with pytest.raises(DataError, match="exceed the server's 20 positions"):
            await generator.submit([request(0, max_tokens=18)])
        await generator.submit([request(1, max_tokens=17)])
        assert await collect_all(generator, 1)

    run(main)


def test_a_server_that_finishes_nothing_is_lost() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        server = FakeVllm(model)
        generator = connect(server, channel, silence_seconds=0.05)
        await generator.update_weights(publish(channel, 0, model))
        await generator.client.post("/pause")
        await generator.submit([request(0)])
        with pytest.raises(ExecutorLostError, match="2 completions are under way and none ended"):
            while True:
                await generator.collect(0.02)
        generator.teardown()

    run(main)


# ---- processes ------------------------------------------------------------------------------------------------------


def start(tmp_path: Path, text: str, *arguments: str) -> tuple[ServerProcess, int]:
    program, port = tmp_path / "server.py", free_port()
    program.write_text(text)
    environment = build_environment(1)
    return ServerProcess("vLLM", Path(sys.executable), [str(port), *arguments], port, environment, program), port


def test_a_server_that_ends_before_it_serves_says_why(tmp_path: Path) -> None:
    server, _ = start(tmp_path, "print('loading'); raise OSError('[Errno 98] Address already in use')")
    with pytest.raises(ExecutorLostError, match=r"ended with status 1; last: .*Address already in use"):
        server.wait_until_ready(30.0)
    server.stop()


def test_a_server_that_never_answers_misses_its_deadline(tmp_path: Path) -> None:
    server, _ = start(tmp_path, "import time; print('thinking', flush=True); time.sleep(600)")
    with pytest.raises(ExecutorLostError, match=r"no answer within start_seconds=0\.5"):
        server.wait_until_ready(0.5)
    server.stop()
    assert server.why_ended() is not None


def test_the_environment_of_a_server_holds_no_secret_and_tells_nobody() -> None:
    given = {"PATH": "/bin", "HF_TOKEN": "s3cret", "OPENAI_API_KEY": "s3cret", "HOME": "/root"}
    environment = build_environment(2, given)
    assert "s3cret" not in str(environment) and environment["PATH"] == "/bin"
    assert environment["VLLM_NO_USAGE_STATS"] == "1" and environment["OMP_NUM_THREADS"] == "2"


def test_an_environment_without_python_is_named(tmp_path: Path) -> None:
    settings = ServerSettings.parse({"environment": str(tmp_path)})
    generator = VllmExecutor(settings, GeneratorConfig(), ServerPlace("m", 8), Letters(), Shelf())
    with pytest.raises(ConfigError, match="no interpreter at"):
        generator.setup()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one of the two"),
        ({"environment": "v", "url": URL}, "one of the two"),
        ({"url": "127.0.0.1:8000"}, "is not the address of a server"),
        ({"url": "http://127.0.0.1:8000/v1"}, "is not the address of a server"),
        ({"url": "http://10.0.0.7:8000"}, "is on another machine; give its key"),
        ({"environment": "v", "api_key_env": "KEY"}, "api_key_env: is for servers at url"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings.parse(values)


def test_the_plugin_is_shipped_and_nothing_here_imports_it() -> None:
    assert PLUGIN.is_file() and "import llamarl" not in PLUGIN.read_text().replace("import llamarl_vllm", "")
