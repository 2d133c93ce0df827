"""An SGLang server without SGLang: the routes that llamarl uses, after the source of SGLang 0.5.23, over a tiny model.

    server = FakeSglang(build())
    SglangExecutor(..., transport=server.transport)

It is no recording: nothing here was ever compared with a real server. It holds q, k, v and gate, up as one tensor each,
names a tied head nowhere, holds back what is asked while it is paused, and refuses to empty a cache that is in use.
"""

import asyncio
import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from fake_program import FakeProgram, find_spans
from safetensors.torch import load_file
from torch import nn

FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
FUSED |= {"up_proj": "gate_up_proj"}


class FakeSglang(FakeProgram):
    """One server.

    Args:
        model: a tiny `*ForCausalLM`, copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, "0.5.23")
        self.dp_size = 1
        self.loads_head, self.loads, self.takes, self.digests = True, 1.0, True, True
        """Whether the head follows the embeddings, what share of the tensors is loaded, whether updates succeed, and
        whether digests are of what is held."""
        self.experts: np.ndarray | None = None
        """Experts of each token, `[layers, experts per token]`, where they are asked for."""
        self.spoil: dict[str, Any] = {}
        """What its completions have instead of their own, by name; None takes it away."""
        self._is_drawing = 0

    async def _server_info(self, body: Any) -> Any:
        sizes = {"tp_size": self.num_workers, "dp_size": self.dp_size, "pp_size": 1}
        return 200, {**sizes, "context_length": self.max_model_len, "version": self.version, "internal_states": [{}]}

    async def _model_info(self, body: Any) -> Any:
        return 200, {"served_model_name": "policy", "is_generation": True, "weight_version": self.weight_version}

    async def _pause_generation(self, body: Any) -> Any:
        assert body["mode"] == "retract"
        self._runs.clear()
        return 200, {"message": "Generation paused successfully.", "status": "ok"}

    async def _continue_generation(self, body: Any) -> Any:
        self._runs.set()
        return 200, {"message": "Generation continued successfully.", "status": "ok"}

    async def _abort_request(self, body: Any) -> Any:
        return 200, {}

    # weights

    def _fuse(self) -> dict[str, list[torch.Tensor]]:
        held: dict[str, list[torch.Tensor]] = {}
        for name, parameter in self.model.named_parameters():  # a tied head is named once, as the embeddings
            path = [FUSED.get(part, part) for part in name.split(".")]
            held.setdefault(".".join(path), []).append(parameter)
        return held

    async def _weights_checker(self, body: Any) -> Any:
        assert body == {"action": "checksum"}
        digests = {}
        for name, parts in self._fuse().items():
            data = b"".join(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)
            digests[name] = f"{zlib.crc32(data if self.digests else b''):016x}"
        digests["model.rotary_emb.cos_sin_cache"] = "0" * 16
        ranks = [{"checksums": digests, "per_gpu_checksum": "0"}] * self.num_workers
        return 200, {"success": True, "message": "Success.", "ranks": ranks, "per_engine_checksum": "0"}

    async def _update_weights_from_disk(self, body: Any) -> Any:
        assert body["flush_cache"] and not body["abort_all_requests"]
        if self._runs.is_set() and self._is_drawing:
            return 400, {"success": False, "message": "Weights were updated, but the cache was not flushed"}
        if not self.takes:
            return 200, {"success": False, "message": "Failed to get weights iterator", "num_paused_requests": 0}
        sent, held = load_file(Path(body["model_path"]) / "model.safetensors"), dict(self.model.named_parameters())
        for index, (name, tensor) in enumerate(sent.items()):
            if name in held and index < self.loads * len(sent):
                held[name].copy_(tensor)
        if self.loads_head:
            self.head = self.model.lm_head.weight.detach().clone()
        self.weight_version = body["weight_version"]
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    # tokens

    async def _generate(self, body: Any) -> Any:
        asked, prompt = body["sampling_params"], body["input_ids"]
        self.bodies.append(body)
        generator = torch.Generator().manual_seed(asked.get("sampling_seed", 0))
        ids: list[int] = []
        drawn, versions, masks, filtered = [], [], [], []
        await self._runs.wait()
        self._is_drawing += 1
        while len(ids) < asked["max_new_tokens"] and (not ids or ids[-1] != 2):
            await self._runs.wait()
            if self.is_dead:
                raise httpx.ReadError("connection reset by peer")
            logprobs = torch.log_softmax(self._logits(prompt + ids)[-1] / (asked["temperature"] or 1e-6), dim=-1)
            kept = logprobs.topk(asked["top_k"]).indices if asked.get("top_k", -1) > 0 else torch.arange(len(logprobs))
            among = torch.log_softmax(logprobs[kept], dim=-1)
            place = int(torch.multinomial(among.exp(), 1, generator=generator))
            ids.append(int(kept[place]))
            drawn.append([logprobs[ids[-1]].item(), ids[-1], None])
            masks.append(kept.tolist())
            filtered.append(among[place].item())
            versions.append(self.weight_version)
            self.num_tokens += 1
            await asyncio.sleep(0)
        self._is_drawing -= 1
        meta: dict[str, Any] = {"id": body["rid"], "completion_tokens": len(ids), "weight_version": versions[-1]}
        meta["finish_reason"] = (
            {"type": "stop", "matched": 2} if ids[-1] == 2 else {"type": "length", "length": len(ids)}
        )
        meta["output_token_logprobs"] = drawn
        meta["weight_versions"] = find_spans(versions)
        if body["logprob_start_len"] == 0:
            table = torch.log_softmax(self._logits(prompt), dim=-1)
            given = [table[i, token].item() for i, token in enumerate(prompt[1:])]
            meta["input_token_logprobs"] = [[x, token, None] for x, token in zip([None, *given], prompt, strict=True)]
        elif body["return_sampling_mask"]:
            meta |= {"output_token_sampling_mask": masks, "output_token_sampling_logprobs": filtered}
        if body.get("return_routed_experts") and self.experts is not None:
            each = np.stack([self.experts] * (len(prompt) + len(ids) - 1)).astype(np.int32)
            meta["routed_experts"] = base64.b64encode(each.tobytes()).decode()
        answer = {"text": "", "output_ids": ids, "meta_info": meta}
        return 200, answer if body["logprob_start_len"] == 0 else spoil(answer, self.spoil)


def spoil(answer: dict[str, Any], faults: Mapping[str, Any]) -> dict[str, Any]:
    """The answer with other values, of its own or of its `meta_info`, under the names given."""
    for name, value in faults.items():
        (answer if name in answer else answer["meta_info"])[name] = value
    return answer
