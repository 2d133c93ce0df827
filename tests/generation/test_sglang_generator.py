"""An SGLang server as a generator, on a fake: what it gives, what it proves, what it does not survive."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_sglang import FakeSglang
from test_generator_executor import Letters, Shelf, collect_all, publish
from tiny_generators import build, reference_logprobs, request

from llamarl.core.errors import ConfigError, ExecutorLostError, WeightSyncError
from llamarl.generation.executor import GeneratorConfig
from llamarl.generation.server.executor import ServerPlace
from llamarl.generation.server.settings import ServerSettings
from llamarl.generation.sglang.client import read_experts
from llamarl.generation.sglang.executor import SglangExecutor
from llamarl.generation.sglang.weights import check_digests, list_parts

URL = "http://127.0.0.1:9"


def connect(server: FakeSglang, channel: Shelf, tp: int = 1, config: GeneratorConfig | None = None) -> SglangExecutor:
    settings = ServerSettings.parse({"url": URL, "transfer_seconds": 60.0})
    place = ServerPlace("unused", 256, tp=tp, url=URL)
    executor = SglangExecutor(settings, config or GeneratorConfig(), place, Letters(), channel, server.transport)
    executor.setup()
    return executor


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 300))  # type: ignore[arg-type]


async def serve(server: FakeSglang, model: torch.nn.Module, **settings: Any) -> SglangExecutor:
    """A generator whose server has proven weights of version 0."""
    channel = Shelf()
    generator = connect(server, channel, **settings)
    await generator.update_weights(publish(channel, 0, model))
    return generator


def test_completions_have_the_servers_ids_and_the_log_probs_of_the_model() -> None:
    async def main() -> None:
        channel, model = Shelf(), build()
        server = FakeSglang(model)
        generator = connect(server, channel)
        with pytest.raises(WeightSyncError, match="no weights were proven yet"):
            await generator.submit([request(0)])
        proof = await generator.update_weights(publish(channel, 7, model))
        assert proof.version == 7 and proof.probe_gap < 1e-5
        await generator.submit([request(0, num_samples=3, max_tokens=20, temperature=0.7), request(1, (4, 4))])
        done = await collect_all(generator, 2)
        assert len(done[0]) == 3 and len(done[1]) == 2
        for completion in done[0]:
            assert completion.logprobs == pytest.approx(reference_logprobs(model, completion, 0.7), abs=2e-5)
            assert completion.trajectory.versions == ((7, len(completion.token_ids)),)
            assert list(completion.trajectory.prompt_ids) == [5, 9, 11]
        asked = [body["sampling_params"] for body in server.bodies[-5:]]
        assert {each["sampling_seed"] for each in asked} == {0, 1, 2, 1000, 1001}
        assert all(each["stop_token_ids"] == [2] and each["top_k"] == -1 for each in asked)

    run(main)


def test_the_tokens_that_filters_left_come_with_log_probs_among_them() -> None:
    async def main() -> None:
        model = build()
        generator = await serve(FakeSglang(model), model)
        await generator.submit([replace(request(0, top_k=3), keeps_support=True)])
        for completion in (await collect_all(generator, 1))[0]:
            support, ids = completion.trajectory.support, list(completion.token_ids)
            assert support is not None and set(support.counts) == {3} and len(support.ids) == 3 * len(ids)
            with torch.no_grad():
                table = model(torch.tensor([[5, 9, 11, *ids]])).logits[0].float()
            for place, token in enumerate(ids):
                kept = list(support.ids[3 * place : 3 * place + 3])
                among = torch.log_softmax(table[2 + place, kept], dim=-1)[kept.index(token)].item()
                assert completion.logprobs[place] == pytest.approx(among, abs=2e-5)

    run(main)


def test_experts_are_kept_where_they_are_asked_for() -> None:
    async def main() -> None:
        model, server = build(), FakeSglang(build())
        server.experts = np.array([[1, 2], [3, 255]])
        generator = await serve(server, model, config=GeneratorConfig(routed_experts=True))
        await generator.submit([request(0, num_samples=1, max_tokens=4)])
        (completion,) = (await collect_all(generator, 1))[0]
        assert completion.trajectory.routed_experts == bytes([1, 2, 3, 255]) * (3 + len(completion.token_ids) - 1)

    run(main)
    with pytest.raises(ValueError, match="0 routed_experts for 3 tokens"):
        read_experts("", 3)


# ---- silent faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loads_head": False}, "the probe's log-probs differ"),
        ({"loads": 0.5}, "did not arrive at worker 0"),
        ({"loads": 0.0}, "did not arrive at worker 0"),
        ({"takes": False}, "not taken by the server: Failed to get weights iterator"),
        ({"digests": False}, "worker 0 of the server digests nothing"),
    ],
    ids=["tied head left out", "half", "empty", "no success with status 200", "digests of nothing"],
)
def test_an_update_that_is_not_whole_is_refused(changes: dict[str, Any], message: str) -> None:
    async def main() -> None:
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        server = FakeSglang(old)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 0, old))
        for name, value in changes.items():
            setattr(server, name, value)
        with pytest.raises(WeightSyncError, match=message):
            await generator.update_weights(publish(channel, 1, new))
        with pytest.raises(WeightSyncError, match="the update to version 1 failed"):
            await generator.submit([request(1)])

    run(main)


def test_a_first_update_that_was_not_loaded_fails_the_probe() -> None:
    async def main() -> None:
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        server = FakeSglang(old)
        server.loads = 0.5
        with pytest.raises(WeightSyncError, match="the probe's log-probs differ"):
            await connect(server, channel).update_weights(publish(channel, 0, new, old))

    run(main)


def test_digests_tell_what_changed_that_should_not_have() -> None:
    was, now = [{"a": "1", "b": "2"}], [{"a": "3", "b": "2"}]
    check_digests(1, ({"a": 1, "b": 2}, {"a": 5, "b": 2}), (was, now))
    with pytest.raises(WeightSyncError, match="a changed though it was not new at worker 0"):
        check_digests(1, ({"a": 1, "b": 2}, {"a": 1, "b": 2}), (was, now))


def test_what_the_server_holds_as_one_has_the_names_of_its_parts() -> None:
    parts = list_parts("model.layers.0.self_attn.qkv_proj.bias", [])
    assert parts == [f"model.layers.0.self_attn.{part}_proj.bias" for part in "qkv"]
    sent = [f"m.experts.{expert}.{part}.weight" for expert in range(2) for part in ("gate_proj", "up_proj")]
    assert list_parts("m.experts.w13_weight", sent) == sent
    assert list_parts("lm_head.weight", []) == ["lm_head.weight"]


SPOILT = {
    "ids missing": {"output_ids": []},
    "log-probs null": {"output_token_logprobs": [[None, 5, None], [None, 2, None]], "output_ids": [5, 2]},
    "no log-probs": {"output_token_logprobs": None},
    "of another token": {"output_token_logprobs": [[-1.0, 5, None]], "output_ids": [6]},
    "above 0": {"output_token_logprobs": [[0.5, 6, None]], "output_ids": [6]},
    "no versions": {"weight_versions": []},
    "aborted": {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}},
}


@pytest.mark.parametrize("faults", SPOILT.values(), ids=SPOILT.keys())
def test_an_answer_without_ids_log_probs_or_versions_costs_the_server(faults: dict[str, Any]) -> None:
    async def main() -> None:
        model, server = build(), FakeSglang(build())
        generator = await serve(server, model)
        server.spoil = faults
        await generator.submit([request(0, num_samples=1)])
        with pytest.raises(ExecutorLostError, match="is no completion"):
            await generator.collect(60.0)

    run(main)


def test_tokens_of_a_version_that_was_never_sent_cost_the_server() -> None:
    async def main() -> None:
        model, server = build(), FakeSglang(build())
        generator = await serve(server, model)
        server.weight_version = "9"
        await generator.submit([request(0, num_samples=1)])
        with pytest.raises(ExecutorLostError, match="tokens of version 9, which it was never sent"):
            await generator.collect(60.0)

    run(main)


# ---- servers that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": "0.5.22"}, ConfigError, r"SGLang 0.5.22, but llamarl speaks to 0\.5\.23"),
        ({"version": "0.6.0"}, ConfigError, "SGLang 0.6.0"),
        ({"num_workers": 2}, ConfigError, "has 2 workers, and placement.generators.tp is 1"),
        ({"dp_size": 2}, ConfigError, "start a server for each replica"),
        ({"dies_at": "/server_info"}, ExecutorLostError, "connection reset"),
        ({"dies_at": "/pause_generation"}, ExecutorLostError, "connection reset"),
        ({"dies_at": "/update_weights_from_disk"}, ExecutorLostError, "connection reset"),
        ({"key": "s3cret"}, ConfigError, "refused with 401; check the key"),
        ({"model": build(seed=4)}, WeightSyncError, "they hold other checkpoints"),
        ({"model": build(num_hidden_layers=3)}, WeightSyncError, "before any update|held by the server but not sent"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def main() -> None:
        server = FakeSglang(changes.get("model", build()))
        for name, value in changes.items():
            if name != "model":
                setattr(server, name, value)
        with pytest.raises(error, match=message):
            await serve(server, build())

    run(main)


def test_a_server_is_started_with_the_model_and_the_sizes_of_the_run() -> None:
    settings, channel = ServerSettings.parse({"environment": "v"}), Shelf()
    place, config = ServerPlace("checkpoint", 99, tp=2), GeneratorConfig(precision="bf16", routed_experts=True)
    arguments = SglangExecutor(settings, config, place, Letters(), channel).build_arguments(7)
    assert arguments[0] == "sglang.launch_server" and "--enable-return-routed-experts" in arguments
    given = dict(zip(arguments[1:-1:2], arguments[2::2], strict=True))
    assert given["--model-path"] == "checkpoint" and given["--host"] == "127.0.0.1" and given["--dtype"] == "bfloat16"
    assert given["--tp-size"] == "2" and given["--context-length"] == "99" and given["--port"] == "7"
