"""llamarl with the real vLLM 0.32 on a CPU. Records its traffic for the tests that have no vLLM (`recorded.jsonl`)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from test_generator_executor import Shelf
from torch import Tensor, nn

from llamarl.core.errors import ExecutorLostError, WeightSyncError
from llamarl.core.records import GenerationRequest, WeightManifest, WeightProbe
from llamarl.core.sampling import Sampling
from llamarl.functional.checksum import checksum
from llamarl.generation.executor import GeneratorConfig
from llamarl.generation.server.client import About
from llamarl.generation.server.executor import ServerPlace
from llamarl.generation.server.process import LIFELINE, ServerProcess, free_port
from llamarl.generation.server.settings import ServerSettings
from llamarl.generation.vllm.executor import VllmExecutor, build_arguments, build_environment
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.decoder import Decoder, named_tensors
from llamarl.models.probe import probe_logprobs, probe_rows
from llamarl.recipes import recipe_path
from llamarl.report.files import read_jsonl
from llamarl.tasks.demo import DEMO_CHECKPOINT

pytestmark = pytest.mark.timeout(1800)
IDS = (1, 20, 33, 41, 7, 9)
START_SECONDS = 900.0
LENGTH = 256


@pytest.fixture(scope="module")
def server(environment: str) -> Iterator[ServerProcess]:
    port = free_port()
    arguments = build_arguments(
        str(DEMO_CHECKPOINT),
        port,
        precision="fp32",
        slots=32,
        tp=1,
        max_model_len=LENGTH,
        cache_bytes=64 << 20,
    )
    python = ServerSettings(environment=environment).python
    process = ServerProcess("vLLM", python, arguments, port, build_environment(1))
    try:
        process.wait_until_ready(START_SECONDS)
        yield process
    finally:
        process.stop()


def shifted(seed: int, scale: float = 0.02) -> nn.Module:
    module = load_model(DEMO_CHECKPOINT)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def publish(channel: Shelf, version: int, model: nn.Module, start: nn.Module) -> WeightManifest:
    tensors = dict(named_tensors(model))
    channel.publish(version, tensors)
    rows = probe_rows(load_model(DEMO_CHECKPOINT), [IDS])
    at_start, now = (
        tuple(x for row in rows for x in probe_logprobs(Decoder.live(each), row)) for each in (start, model)
    )
    return WeightManifest(version, checksum(tensors), WeightProbe(rows, at_start, now), num_bytes=1)


class Recorder(httpx.AsyncHTTPTransport):
    """Passes requests on, and keeps those of a test with their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        body = json.loads(request.content) if request.content else None
        said = json.loads(content) if (content := await response.aread()) else None
        await response.aclose()
        record = {"method": request.method, "path": request.url.raw_path.decode(), "body": body}
        self.traffic.append({**record, "status": response.status_code, "answer": said})
        return httpx.Response(response.status_code, content=content)


def connect(
    server: ServerProcess, channel: Shelf, kind: type[VllmExecutor] = VllmExecutor, transport: Any = None
) -> VllmExecutor:
    settings = ServerSettings.parse({"url": server.url, "transfer_seconds": 300.0})
    place = ServerPlace(str(DEMO_CHECKPOINT), LENGTH, url=server.url)
    executor = kind(settings, GeneratorConfig(slots=32), place, load_tokenizer(DEMO_CHECKPOINT), channel, transport)
    executor.setup()
    return executor


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


async def collect_all(generator: VllmExecutor, num_requests: int) -> dict[int, Any]:
    finished: list[Any] = []
    while len(finished) < num_requests:
        finished += await generator.collect(10.0)
    return dict(finished)


def check(models: Mapping[int, nn.Module], completion: Any, temperature: float = 1.0, most: float = 1e-4) -> None:
    """Compares each token's log-prob with that of the model whose version it carries."""
    ids, start = list(completion.token_ids), 0
    for version, count in completion.trajectory.versions:
        with torch.no_grad():
            logits = models[version](torch.tensor([[*IDS, *ids]])).logits[0].float() / temperature
        table = torch.log_softmax(logits, dim=-1)[len(IDS) - 1 : -1]
        for place in range(start, start + count):
            assert completion.logprobs[place] == pytest.approx(table[place, ids[place]].item(), abs=most)
        start += count
    assert start == len(ids)


def ask(key: int, num_samples: int = 4, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(key, IDS, tuple(range(100 * key, 100 * key + num_samples)), Sampling(**sampling))


# ---- what it gives --------------------------------------------------------------------------------------------------


def test_ids_log_probs_and_versions_are_those_of_the_trainer(server: ServerProcess) -> None:
    """Its traffic is the record that tests without vLLM replay."""

    async def main() -> None:
        channel, base, recorder = Shelf(), load_model(DEMO_CHECKPOINT), Recorder()
        generator = connect(server, channel, transport=recorder)
        proof = await generator.update_weights(publish(channel, 1, base, base))
        assert proof.probe_gap < 1e-4 and proof.precision_cost.largest < 1e-4  # type: ignore[union-attr]
        await generator.submit(
            [ask(1, max_tokens=40), ask(2, max_tokens=40, temperature=0.7), ask(3, max_tokens=60, stop=("ra",))]
        )
        done = await collect_all(generator, 3)
        for key, temperature in ((1, 1.0), (2, 0.7), (3, 1.0)):
            for completion in done[key]:
                check({1: base}, completion, temperature)
        assert all("ra" in c.text or c.finish_reason == "length" or c.token_ids[-1] == 2 for c in done[3])
        assert len({tuple(c.token_ids) for c in done[1]}) > 1
        await generator.submit([ask(1, max_tokens=40)])
        again = (await collect_all(generator, 1))[1]
        assert [c.token_ids for c in again] == [c.token_ids for c in done[1]]  # equal seeds
        if path := os.environ.get("LLAMARL_RECORD"):
            Path(path).write_text("".join(json.dumps(each) + "\n" for each in recorder.traffic))
        await generator.client.close()

    run(main)


def test_an_update_under_load_segments_completions(server: ServerProcess) -> None:
    async def main() -> None:
        channel, base, new = Shelf(), load_model(DEMO_CHECKPOINT), shifted(3)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 2, base, base))
        mixed = 0
        for attempt in range(5):
            await generator.submit([ask(key, 4, max_tokens=240) for key in range(1, 9)])
            await asyncio.sleep(0.3)
            model, version = (new, 3 + attempt) if attempt % 2 == 0 else (base, 3 + attempt)
            proof = await generator.update_weights(publish(channel, version, model, base))
            assert proof.probe_gap < 1e-4
            models = {2 + n: base if n % 2 == 0 else new for n in range(attempt + 2)}
            for completions in (await collect_all(generator, 8)).values():
                for completion in completions:
                    check(models, completion)
                    mixed += len(completion.trajectory.versions) > 1
            if mixed:
                break
        assert mixed
        await generator.update_weights(publish(channel, 20, base, base))

    run(main)


def test_what_is_paused_goes_on(server: ServerProcess) -> None:
    async def main() -> None:
        channel, base = Shelf(), load_model(DEMO_CHECKPOINT)
        generator = connect(server, channel)
        await generator.update_weights(publish(channel, 1, base, base))
        await generator.client.post("/pause?mode=keep")
        await generator.submit([ask(1, max_tokens=5)])
        assert await generator.collect(1.5) == []
        await generator.client.post("/resume")
        for completion in (await collect_all(generator, 1))[1]:
            check({1: base}, completion)

    run(main)


# ---- its silent faults ----------------------------------------------------------------------------------------------


class WithoutHead(VllmExecutor):
    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        return dict(tensors)


class Half(VllmExecutor):
    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        whole = super().select_tensors(version, tensors, about)
        return dict(list(whole.items())[: len(whole) // 2])


class Nothing(VllmExecutor):
    def select_tensors(self, version: int, tensors: Mapping[str, Tensor], about: About) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("kind", [WithoutHead, Half, Nothing])
def test_an_update_that_it_takes_for_whole_fails_the_probe(server: ServerProcess, kind: type[VllmExecutor]) -> None:
    async def main() -> None:
        channel, base = Shelf(), load_model(DEMO_CHECKPOINT)
        careful, careless = connect(server, channel), connect(server, channel, kind)
        await careful.update_weights(publish(channel, 1, base, base))
        with pytest.raises(WeightSyncError, match="the probe's log-probs differ"):
            await careless.update_weights(publish(channel, 2, shifted(5, 0.05), base))
        version = (await careless.client._get("/weight_info"))["weight_version"]
        assert version == "2"  # as the server says, all is well
        repaired = connect(server, channel)
        repaired._precision_cost = careful._precision_cost
        proof = await repaired.update_weights(publish(channel, 3, base, base))
        assert proof.probe_gap < 1e-4

    run(main)


class DiesOnTheWay(VllmExecutor):
    async def _send(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        first = dict(list(tensors.items())[:1])
        post = self.client.post("/update_weights", {"update_info": describe(tensors)}, seconds=60.0)
        update = asyncio.ensure_future(post)
        assert self._broadcast is not None
        await asyncio.to_thread(self._broadcast.send, first)
        self._broadcast = None  # the sender is gone, and its connections with it
        await update
        raise AssertionError("the server took an update that broke off")


def describe(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "names": list(tensors),
        "dtypes": ["float32"] * len(tensors),
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
    }


def test_a_sender_that_dies_in_mid_transfer_costs_the_server(server: ServerProcess) -> None:
    """Last of this module: the server ends."""

    async def main() -> None:
        channel, base = Shelf(), load_model(DEMO_CHECKPOINT)
        generator = connect(server, channel, DiesOnTheWay)
        with pytest.raises(ExecutorLostError):
            await generator.update_weights(publish(channel, 1, base, base))
        with pytest.raises(WeightSyncError, match="the update to version 1 failed"):
            await generator.submit([ask(1)])

    run(main)


# ---- runs -----------------------------------------------------------------------------------------------------------

TABLE = '\n[[placement.generators]]\nkind = "vllm"\nenvironment = "{environment}"\nstart_seconds = 900.0\n'


def start_run(environment: str, tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    demo = recipe_path("demo")
    text = Path(demo).read_text().replace('"../tasks/assets/', f'"{DEMO_CHECKPOINT.parent}/')
    (tmp_path / "recipe.toml").write_text(text + TABLE.format(environment=environment))
    smaller = [*("--schedule.prompts-per-step", "8", "--evaluation.num-prompts", "8", "--generator.slots", "32")]
    command = [sys.executable, "-c", "from llamarl.cli.program import run; run()", "train", "recipe.toml"]
    command += ["--run-dir", "run", "--threads", "2", "--schedule.call-seconds", "900", "--plain", *smaller, *arguments]
    return subprocess.Popen(command, cwd=tmp_path)


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (run_dir / "metrics.jsonl").exists() or f'"step": {step},' not in (run_dir / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.2)


def servers() -> list[int]:
    """Processes that run a server of llamarl's."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and str(LIFELINE).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_run_replaces_a_killed_server_and_trains_on_log_probs_of_its_own(environment: str, tmp_path: Path) -> None:
    before = set(servers())
    process = start_run(environment, tmp_path, "--schedule.steps", "20", "--schedule.max-staleness", "2")
    try:
        wait_for_step(tmp_path / "run", 5)
        (killed,) = set(servers()) - before
        os.kill(killed, signal.SIGKILL)
        assert process.wait(START_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    assert set(servers()) == before
    assert "generator-0 lost (" in (tmp_path / "run" / "messages.log").read_text()
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    steps = [record for record in records if "rollout/staleness/max" in record]
    assert steps[-1]["step"] == 20
    assert max(record["rollout/staleness/max"] for record in steps) <= 2
    assert max(record["weights/probe_gap"] for record in steps) < 1e-4
    assert (
        max(record["train/mismatch_prob_max"] or 0.0 for record in steps if "train/mismatch_prob_max" in record) < 1e-4
    )


def test_a_server_ends_with_the_run_that_is_killed(environment: str, tmp_path: Path) -> None:
    before = set(servers())
    process = start_run(environment, tmp_path, "--schedule.steps", "20")
    try:
        wait_for_step(tmp_path / "run", 1)
        assert len(set(servers()) - before) == 1
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while set(servers()) != before:
        assert time.monotonic() < deadline, "the server outlives the run"
        time.sleep(0.1)
