"""What every kind of generator promises, asked of each: native, transformers, vLLM and SGLang (both on fakes)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from fake_sglang import FakeSglang
from fake_vllm import FakeVllm
from test_generator_executor import Letters, Shelf, collect_all
from test_generator_executor import executor as build_own
from tiny_generators import build, reference_logprobs, request
from torch import nn

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import WeightManifest, WeightProbe
from llamarl.functional.checksum import checksum
from llamarl.generation.capabilities import KINDS
from llamarl.generation.executor import GeneratorConfig
from llamarl.generation.server.executor import ServerPlace
from llamarl.generation.server.settings import ServerSettings
from llamarl.generation.sglang.executor import SglangExecutor
from llamarl.generation.vllm.executor import VllmExecutor
from llamarl.models.decoder import named_tensors

SERVERS: dict[str, Any] = {"vllm": (VllmExecutor, FakeVllm), "sglang": (SglangExecutor, FakeSglang)}
URL = "http://127.0.0.1:9"
ROWS = ((5, 9, 11, 4, 7), (8, 3, 20, 4, 6))


class Case(NamedTuple):
    """A generator of one kind, the channel that it reads, and models that it can hold."""

    generator: Any
    channel: Shelf
    build: Callable[[int], nn.Module]
    server: Any
    """The fake that it asks, if it is a server's."""

    async def update(self, version: int, seed: int) -> nn.Module:
        """Gives it the weights of `build(seed)`."""
        await self.generator.update_weights(self.publish(version, seed))
        return self.build(seed)

    def publish(self, version: int, seed: int) -> WeightManifest:
        """What the trainer does. The probe is by the forward of transformers, for each kind alike."""
        model, tensors = self.build(seed), dict(named_tensors(self.build(seed)))
        self.channel.publish(version, tensors)
        probe = WeightProbe(ROWS, score(self.build(0)), score(model))
        return WeightManifest(version, checksum(tensors), probe, num_bytes=1)


def score(model: nn.Module) -> tuple[float, ...]:
    with torch.no_grad():
        tables = [torch.log_softmax(model(torch.tensor([row])).logits[0].float(), dim=-1) for row in ROWS]
    pairs = zip(tables, ROWS, strict=True)
    return tuple(table[i, token].item() for table, row in pairs for i, token in enumerate(row[1:]))


@pytest.fixture(params=[kind.kind for kind in KINDS])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    channel, family = Shelf(), "gemma" if request.param == "transformers" else "llama"

    def model(seed: int) -> nn.Module:
        return build(family, seed, **({"head_dim": 8} if family == "gemma" else {}))

    server = None
    if request.param in SERVERS:
        kind, fake = SERVERS[request.param]
        server = fake(model(0))
        settings = ServerSettings.parse({"url": URL, "transfer_seconds": 60.0})
        place = ServerPlace("unused", 256, url=URL)
        generator = kind(settings, GeneratorConfig(), place, Letters(), channel, server.transport)
        generator.setup()
    else:
        generator = build_own(channel, GeneratorConfig(slots=8), lambda: model(0))
    yield Case(generator, channel, model, server)
    generator.teardown()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 300))  # type: ignore[arg-type]


def test_nothing_is_drawn_before_weights_are_proven(case: Case) -> None:
    async def main() -> None:
        with pytest.raises(WeightSyncError):
            await case.generator.submit([request(0)])

    run(main)


def test_ids_log_probs_versions_and_seeds_are_those_of_what_was_drawn(case: Case) -> None:
    async def main() -> None:
        model = await case.update(5, 0)
        await case.generator.submit([request(0, num_samples=2, max_tokens=15, temperature=0.7), request(1, (4, 4))])
        done = await collect_all(case.generator, 2)
        for key, temperature, prompt in ((0, 0.7, [5, 9, 11]), (1, 1.0, [4, 4])):
            assert len(done[key]) == 2
            for completion in done[key]:
                assert completion.logprobs == pytest.approx(
                    reference_logprobs(model, completion, temperature), abs=5e-5
                )
                assert completion.trajectory.versions == ((5, len(completion.token_ids)),)
                assert list(completion.trajectory.prompt_ids) == prompt
                assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 2 else "length")
        await case.generator.submit([request(0, num_samples=2, max_tokens=15, temperature=0.7)])
        again = (await collect_all(case.generator, 1))[0]
        assert [list(each.token_ids) for each in again] == [list(each.token_ids) for each in done[0]]

    run(main)


def test_a_greedy_choice_is_certain(case: Case) -> None:
    async def main() -> None:
        await case.update(0, 0)
        await case.generator.submit([request(0, temperature=0.0)])
        assert {x for each in (await collect_all(case.generator, 1))[0] for x in each.logprobs} == {0.0}

    run(main)


def test_newer_weights_are_proven_and_draw_what_follows(case: Case) -> None:
    async def main() -> None:
        await case.update(0, 0)
        model = await case.update(1, 1)
        await case.generator.submit([request(0)])
        for completion in (await collect_all(case.generator, 1))[0]:
            assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=5e-5)
            assert completion.trajectory.versions == ((1, len(completion.token_ids)),)

    run(main)


def test_weights_that_are_not_the_trainers_serve_nothing(case: Case) -> None:
    async def main() -> None:
        await case.update(0, 0)
        manifest = case.publish(1, 1)
        case.channel.publish(1, {name: 1.1 * tensor for name, tensor in case.channel.held[1].items()})
        with pytest.raises(WeightSyncError):
            await case.generator.update_weights(manifest)
        with pytest.raises(WeightSyncError):
            await case.generator.submit([request(0)])

    run(main)


@pytest.mark.parametrize("case", SERVERS, indirect=True)
def test_completions_under_way_on_servers_go_on_under_newer_weights_and_say_so(case: Case) -> None:
    async def main() -> None:
        old = await case.update(3, 0)
        await case.generator.submit([request(0, num_samples=6, max_tokens=100)])
        while case.server.num_tokens < 60:
            await asyncio.sleep(0)
        new = await case.update(4, 1)
        mixed = 0
        for completion in (await collect_all(case.generator, 1))[0]:
            split = dict(completion.trajectory.versions).get(3, 0)
            mixed += 0 < split < len(completion.token_ids)
            assert completion.logprobs[:split] == pytest.approx(reference_logprobs(old, completion)[:split], abs=2e-5)
            assert completion.logprobs[split:] == pytest.approx(reference_logprobs(new, completion)[split:], abs=2e-5)
        assert mixed

    run(main)
