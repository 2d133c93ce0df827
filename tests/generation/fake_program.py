"""What fakes of inference servers have in common: a tiny model, a switch that pauses it, and how it dies."""

import asyncio
import copy
import json
import re
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from torch import nn


class FakeProgram:
    """One server; `_` and the path of a route, with `_` for all that is no letter, names the method that answers it.

    Args:
        model: a tiny `*ForCausalLM`, copied.
        version: of the program, as it says.
        num_workers: as it says; one of them is there.
    """

    def __init__(self, model: nn.Module, version: str, num_workers: int = 1) -> None:
        self.model, self.version, self.num_workers = copy.deepcopy(model).requires_grad_(False), version, num_workers
        self.head = self.model.lm_head.weight.detach().clone()
        """What logits are made with: a copy, as of servers that pack it."""
        self.weight_version, self.max_model_len, self.key = "default", 256, ""
        self.dies_at: str | None = None
        """A path at which it ends."""
        self.is_dead = False
        self.paths: list[str] = []
        self.bodies: list[Any] = []
        self.num_tokens = 0
        self._runs = asyncio.Event()
        self._runs.set()
        self.transport = httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content) if request.content else {}
        self.paths.append(path)
        if self.is_dead or path == self.dies_at:
            self.is_dead = True
            raise httpx.ReadError("connection reset by peer")
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return httpx.Response(401, json={"error": "Unauthorized"})
        status, answer = await self._respond(path, body)
        return httpx.Response(status, json=answer)

    async def _respond(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer of a request."""
        found: tuple[int, Any] = await getattr(self, "_" + re.sub(r"\W", "_", path.strip("/")))(body)
        return found

    def _logits(self, ids: list[int]) -> torch.Tensor:
        hidden = self.model.model(torch.tensor([ids])).last_hidden_state[0]
        return (hidden @ self.head.T).float()


def find_spans(versions: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of equal versions, as both programs tell them."""
    starts = [i for i, version in enumerate(versions) if not i or version != versions[i - 1]]
    return [
        {"version": versions[start], "start": start, "end": end}
        for start, end in zip(starts, [*starts[1:], len(versions)], strict=True)
    ]
