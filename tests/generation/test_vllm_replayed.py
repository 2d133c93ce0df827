"""Recorded traffic of the real vLLM 0.32 (`make test-vllm` with LLAMARL_RECORD=FILE), read without it.

What it answered for the shipped demo checkpoint is held against that checkpoint, token by token.
"""

import asyncio
import json
from array import array
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from llamarl.core.sampling import Sampling
from llamarl.generation.server.weights import check_coverage, with_tied_head
from llamarl.generation.vllm.client import VllmClient, read_completion
from llamarl.generation.vllm.executor import check_received
from llamarl.models.checkpoint import load_model
from llamarl.models.decoder import named_tensors
from llamarl.tasks.demo import DEMO_CHECKPOINT

RECORDED = Path(__file__).with_name("vllm_0.32_traffic.jsonl")


class Replay(httpx.MockTransport):
    """Answers each request as the real server did, in order where one was sent several times."""

    def __init__(self) -> None:
        self.records = [json.loads(line) for line in RECORDED.read_text().splitlines()]
        self._answers: dict[str, deque[Any]] = defaultdict(deque)
        for record in self.records:
            self._answers[self._key(record["method"], record["path"], record["body"])].append(record)
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        record = self._answers[self._key(request.method, request.url.raw_path.decode(), body)].popleft()
        return httpx.Response(record["status"], json=record["answer"])

    @staticmethod
    def _key(method: str, path: str, body: Any) -> str:
        named = {name: value for name, value in (body or {}).items() if name != "request_id"}
        return json.dumps([method, path, named], sort_keys=True)

    def bodies(self, path: str) -> list[Any]:
        """Of the requests that were sent to a path."""
        return [record["body"] for record in self.records if record["path"] == path]


def test_recorded_completions_have_the_checkpoints_log_probs() -> None:
    async def main() -> None:
        replay, model = Replay(), load_model(DEMO_CHECKPOINT)
        client = VllmClient("http://127.0.0.1:9", transport=replay)
        about = await client.describe()
        assert (about.max_model_len, about.world_size) == (256, 1)
        num_tokens, reasons = 0, set()
        for body in replay.bodies("/inference/v1/generate"):
            asked, prompt = body["sampling_params"], body["token_ids"]
            if "prompt_logprobs" in asked:
                continue
            names = ("max_tokens", "temperature", "top_p", "top_k", "min_p")
            stops = {"stop": tuple(asked["stop"])} if "stop" in asked else {}
            sampling = Sampling(**{name: asked[name] for name in names}, **stops)
            answer = await client.generate(body["model"], "any", prompt, asked["seed"], sampling)
            completion = read_completion(answer, array("i", prompt))
            ids = list(completion.token_ids)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0].float() / asked["temperature"]
            table = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            expected = [table[place, token].item() for place, token in enumerate(ids)]
            assert list(completion.logprobs) == pytest.approx(expected, abs=1e-4)
            assert completion.versions == ((1, len(ids)),)
            num_tokens += len(ids)
            reasons.add(completion.finish_reason)
        assert num_tokens > 200 and reasons == {"stop", "length"}

    asyncio.run(main())


def test_recorded_scores_are_the_checkpoints() -> None:
    async def main() -> None:
        replay, model = Replay(), load_model(DEMO_CHECKPOINT)
        client = VllmClient("http://127.0.0.1:9", transport=replay)
        scored = [b for b in replay.bodies("/inference/v1/generate") if "prompt_logprobs" in b["sampling_params"]]
        assert scored
        for body in scored:
            ids = body["token_ids"]
            logprobs = await client.score(body["model"], "any", ids, 60.0)
            with torch.no_grad():
                table = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
            expected = [table[i, ids[i + 1]].item() for i in range(len(ids) - 1)]
            assert logprobs == pytest.approx(expected, abs=1e-4)

    asyncio.run(main())


def test_the_recorded_server_holds_what_the_checkpoint_has_and_received_what_was_sent() -> None:
    async def main() -> None:
        replay, tensors = Replay(), dict(named_tensors(load_model(DEMO_CHECKPOINT)))
        client = VllmClient("http://127.0.0.1:9", transport=replay)
        (held,) = await client.call_workers("llamarl_held")
        assert "lm_head.weight" in held and "lm_head.weight" not in tensors  # tied: the head is named by itself
        whole = with_tied_head(tensors, held)
        check_coverage(1, whole, held, has_shapes=True)
        (update,) = replay.bodies("/update_weights")
        assert update["update_info"]["names"] == list(whole)
        (received,) = await client.call_workers("llamarl_received")
        check_received(1, 0, {name: tuple(digest) for name, digest in received.items()}, received)
        assert {name: tensor.numel() for name, tensor in whole.items()} == {n: d[0] for n, d in received.items()}

    asyncio.run(main())
