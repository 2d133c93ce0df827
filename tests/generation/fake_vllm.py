"""A vLLM server without vLLM: the routes that llamarl uses, over a tiny model, with the real server's silent faults.

    server = FakeVllm(build())
    VllmExecutor(..., transport=server.transport)

It keeps a packed copy of the output head, as vLLM on a CPU does, so a head that is not sent by its own name stays old;
it takes half an update, or an empty one, for a whole one; and it ends after one that broke off.
"""

import asyncio
import re
import zlib
from datetime import timedelta
from typing import Any

import httpx
import torch
import torch.distributed as dist
from fake_program import FakeProgram, find_spans
from torch import nn


class FakeVllm(FakeProgram):
    """One server.

    Args:
        model: a tiny `*ForCausalLM`, copied.
        version: of vLLM, as it says.
        num_workers: as it says; one of them is there.
    """

    def __init__(self, model: nn.Module, version: str = "0.32.0", num_workers: int = 1) -> None:
        super().__init__(model, version, num_workers)
        self.loads_head, self.loads = True, 1.0
        """Whether a head that is sent is packed anew, and what share of the tensors that arrive is loaded."""
        self.forgets: str | None = None
        """A tensor that it says it did not receive."""
        self.answers: dict[str, Any] = {}
        """Answers in place of its own, by path."""
        self._received: dict[str, tuple[int, int]] = {}
        self._group: Any = None

    async def _respond(self, path: str, body: Any) -> tuple[int, Any]:
        if path in self.answers:
            return 200, self.answers[path]
        handle = getattr(self, "_" + re.sub(r"\W", "_", path.strip("/")))
        try:
            return 200, await handle(body)
        except RuntimeError as error:
            self.is_dead = True
            return 500, {"error": str(error)}

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
        choice = {"index": 0, "token_ids": ids, "logprobs": {"content": drawn}, "weight_versions": find_spans(versions)}
        choice["finish_reason"] = "stop" if ids[-1] == 2 else "length"
        scored = None
        if asked.get("prompt_logprobs") is not None:
            table = torch.log_softmax(self._logits(prompt), dim=-1)
            pairs = [(i, prompt[i + 1]) for i in range(len(prompt) - 1)]
            scored = [None, *({str(t): {"logprob": table[i, t].item(), "rank": 1}} for i, t in pairs)]
        return {"request_id": body["request_id"], "choices": [choice], "prompt_logprobs": scored}
