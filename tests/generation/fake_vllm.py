"""A vLLM server without vLLM: the routes that llamarl uses, over a tiny model, with the real server's silent faults.

    server = FakeVllm(build())
    VllmExecutor(..., transport=server.transport)

It keeps a packed copy of the output head, as vLLM on a CPU does, so a head that is not sent by its own name stays old;
it takes half an update, or an empty one, for a whole one; and it ends after one that broke off.
"""

import asyncio
import copy
import json
import re
import zlib
from datetime import timedelta
from typing import Any

import httpx
import torch
import torch.distributed as dist
from torch import nn


class FakeVllm:
    """One server.

    Args:
        model: a tiny `*ForCausalLM`, copied.
        version: of vLLM, as it says.
        num_workers: as it says; one of them is there.
    """

    def __init__(self, model: nn.Module, version: str = "0.32.0", num_workers: int = 1) -> None:
        self.model, self.version, self.num_workers = copy.deepcopy(model).requires_grad_(False), version, num_workers
        self.head = self.model.lm_head.weight.detach().clone()
        self.weight_version, self.max_model_len, self.key = "default", 256, ""
        self.loads_head, self.loads = True, 1.0
        """Whether a head that is sent is packed anew, and what share of the tensors that arrive is loaded."""
        self.forgets: str | None = None
        """A tensor that it says it did not receive."""
        self.dies_at: str | None = None
        """A path at which it ends."""
        self.answers: dict[str, Any] = {}
        """Answers in place of its own, by path."""
        self.is_dead = False
        self.paths: list[str] = []
        self.bodies: list[Any] = []
        self.num_tokens = 0
        self._received: dict[str, tuple[int, int]] = {}
        self._runs = asyncio.Event()
        self._runs.set()
        self._group: Any = None
        self.transport = httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content) if request.content else {}
        self.paths.append(path)
        if self.is_dead or path == self.dies_at:
            self.is_dead = True
            raise httpx.ReadError("connection reset by peer")
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return httpx.Response(401, json={"error": "Unauthorized"})
        if path in self.answers:
            return httpx.Response(200, json=self.answers[path])
        handle = getattr(self, "_" + re.sub(r"\W", "_", path.strip("/")))
        try:
            return httpx.Response(200, json=await handle(body))
        except RuntimeError as error:
            self.is_dead = True
            return httpx.Response(500, json={"error": str(error)})

    async def _version(self, body: Any) -> Any:
        return {"version": self.version}

    async def _v1_models(self, body: Any) -> Any:
        return {"data": [{"id": "policy", "max_model_len": self.max_model_len}]}

    async def _get_world_size(self, body: Any) -> Any:
        return {"world_size": self.num_workers}

    async def _health(self, body: Any) -> Any:
        return {}

    async def _pause(self, body: Any) -> Any:
        self._runs.clear()
        return {"status": "paused"}

    async def _resume(self, body: Any) -> Any:
        self._runs.set()
        return {"status": "resumed"}

    async def _collective_rpc(self, body: Any) -> Any:
        if body["method"] == "llamarl_held":
            return {"results": [{name: [] for name, _ in self.model.named_parameters(remove_duplicate=False)}]}
        return {"results": [{name: got for name, got in self._received.items() if name != self.forgets}]}

    # weights

    async def _init_weight_transfer_engine(self, body: Any) -> Any:
        where = body["init_info"]
        timeout = timedelta(seconds=where["timeout_seconds"])

        def join() -> Any:
            store = dist.TCPStore(where["host"], where["port"], where["world_size"], False, timeout)
            return dist.ProcessGroupGloo(dist.PrefixStore("llamarl", store), 1, where["world_size"], timeout)

        self._group = await asyncio.to_thread(join)
        return {}

    async def _shutdown_weight_transfer_engine(self, body: Any) -> Any:
        self._group = None
        return {}

    async def _start_weight_update(self, body: Any) -> Any:
        self._received = {}
        return {}

    async def _update_weights(self, body: Any) -> Any:
        held = dict(self.model.named_parameters())
        names = body["update_info"]["names"]
        for index, name in enumerate(names):
            tensor = torch.empty(body["update_info"]["shapes"][index], dtype=torch.float32)
            await asyncio.to_thread(lambda t=tensor: self._group.broadcast(t, 0).wait())
            self._received[name] = (tensor.numel(), zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()))
            if index >= self.loads * len(names):
                continue
            if name in held:
                held[name].copy_(tensor)
            if name == "lm_head.weight" and self.loads_head:
                self.head = tensor.clone()
        return {}

    async def _finish_weight_update(self, body: Any) -> Any:
        self.weight_version = body["weight_version"]
        return {}

    # tokens

    def _logits(self, ids: list[int]) -> torch.Tensor:
        hidden = self.model.model(torch.tensor([ids])).last_hidden_state[0]
        return (hidden @ self.head.T).float()

    async def _inference_v1_generate(self, body: Any) -> Any:
        asked, prompt = body["sampling_params"], body["token_ids"]
        self.bodies.append(body)
        generator = torch.Generator().manual_seed(asked.get("seed", 0) % 2**63)
        ids: list[int] = []
        drawn, versions = [], []
        while len(ids) < asked["max_tokens"] and (not ids or ids[-1] != 2):
            await self._runs.wait()
            if self.is_dead:
                raise httpx.ReadError("connection reset by peer")
            logprobs = torch.log_softmax(self._logits(prompt + ids)[-1] / (asked["temperature"] or 1e-6), dim=-1)
            ids.append(int(torch.multinomial(logprobs.exp(), 1, generator=generator)))
            drawn.append({"token_id": ids[-1], "logprob": logprobs[ids[-1]].item(), "rank": 1, "top_logprobs": []})
            versions.append(self.weight_version)
            self.num_tokens += 1
            await asyncio.sleep(0)
        starts = [i for i, version in enumerate(versions) if not i or version != versions[i - 1]]
        parts = [
            {"version": versions[start], "start": start, "end": end}
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]
        choice = {"index": 0, "token_ids": ids, "logprobs": {"content": drawn}, "weight_versions": parts}
        choice["finish_reason"] = "stop" if ids[-1] == 2 else "length"
        scored = None
        if asked.get("prompt_logprobs") is not None:
            table = torch.log_softmax(self._logits(prompt), dim=-1)
            pairs = [(i, prompt[i + 1]) for i in range(len(prompt) - 1)]
            scored = [None, *({str(t): {"logprob": table[i, t].item(), "rank": 1}} for i, t in pairs)]
        return {"request_id": body["request_id"], "choices": [choice], "prompt_logprobs": scored}
