"""The routes of a vLLM server that a generator uses, and checks of what they answer.

POST /inference/v1/generate                       token ids in, token ids with log-probs and versions out
POST /pause, /resume                              between which weights change; what is under way waits
POST /init_weight_transfer_engine, /start_weight_update, /update_weights, /finish_weight_update
POST /collective_rpc                              methods of `plugin/llamarl_vllm.py` in each worker
GET  /health, /version, /v1/models, /get_world_size
"""

import base64
import io
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamarl.core.errors import ConfigError, ExecutorLostError
from llamarl.core.records import Trajectory
from llamarl.core.sampling import Sampling
from llamarl.generation.server.client import CALL_SECONDS, About, ServerClient
from llamarl.generation.server.completions import build_trajectory, check_experts

SUPPORTED = "0.32"
"""The versions of vLLM whose routes these are, up to the second number."""


class VllmClient(ServerClient):
    """A vLLM server."""

    async def describe(self) -> About:
        """What the server is. Raises `ConfigError` for one that cannot be used."""
        version = str((await self.get("/version")).get("version"))
        if not f"{version}.".startswith(f"{SUPPORTED}."):
            raise ConfigError(f"{self.url}: vLLM {version}, but llamarl speaks to {SUPPORTED}; install that version")
        models = (await self.get("/v1/models")).get("data") or [{}]
        try:
            size = int((await self.get("/get_world_size"))["world_size"])
        except (ExecutorLostError, KeyError) as error:
            raise ConfigError(
                f"{self.url}: does not offer its routes for training ({error}); start it with VLLM_SERVER_DEV_MODE=1"
            ) from None
        return About(str(models[0].get("id")), int(models[0].get("max_model_len") or 0), size)

    async def generate(self, model: str, name: str, prompt_ids: Sequence[int], seed: int, sampling: Sampling) -> Any:
        """One completion of a prompt, as the server gives it; `read_completion` reads it."""
        asked: dict[str, Any] = {
            **{"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p},
            **{"top_k": sampling.top_k, "min_p": sampling.min_p, "seed": seed, "n": 1, "logprobs": 0},
            **({"stop": list(sampling.stop), "detokenize": True} if sampling.stop else {"detokenize": False}),
        }
        body = {"request_id": name, "model": model, "token_ids": list(prompt_ids), "sampling_params": asked}
        return await self.post("/inference/v1/generate", body, seconds=None)

    async def score(self, model: str, name: str, ids: Sequence[int], seconds: float) -> list[float]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        asked = {"max_tokens": 1, "temperature": 1.0, "n": 1, "detokenize": False, "prompt_logprobs": 0}
        body = {"request_id": name, "model": model, "token_ids": list(ids), "sampling_params": asked}
        answer = await self.post("/inference/v1/generate", body, seconds=seconds)
        try:
            places = answer["prompt_logprobs"][1:]
            return [float(place[str(token)]["logprob"]) for place, token in zip(places, ids[1:], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise ExecutorLostError(f"{self.url}: an answer without log-probs of the prompt ({error!r})") from None

    async def call_workers(self, method: str) -> list[Any]:
        """What a method of the plugin gives in each worker.

        Raises:
            ConfigError: the server does not run the plugin.
        """
        body = {"method": method, "args": [], "timeout": CALL_SECONDS}
        try:
            results: list[Any] = (await self.post("/collective_rpc", body, seconds=2 * CALL_SECONDS))["results"]
        except ExecutorLostError as error:
            raise ConfigError(
                f"{self.url}: does not run llamarl's plugin ({error}); start it with --worker-extension-cls "
                "llamarl_vllm.Extension, the plugin's folder in PYTHONPATH"
            ) from None
        return results


def read_completion(answer: Any, prompt_ids: "array[int]") -> Trajectory:
    """The completion in an answer of `generate`: ids, log-probs and versions as the server drew them.

    Raises:
        ExecutorLostError: ids, log-probs or versions are missing or do not fit together, or it was cut off.
    """
    try:
        (choice,) = answer["choices"]
        ids, drawn = choice["token_ids"], choice["logprobs"]["content"]
        return build_trajectory(
            prompt_ids,
            ids,
            [(place["token_id"], place["logprob"]) for place in drawn],
            choice["weight_versions"],
            choice["finish_reason"],
            experts=read_experts(choice.get("routed_experts"), len(prompt_ids) + len(ids) - 1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExecutorLostError(f"the server's answer is no completion ({type(error).__name__}: {error})") from None


def read_experts(encoded: str | None, num_tokens: int) -> bytes:
    """The experts in an answer of `generate`, as `Trajectory.routed_experts` has them; empty where it has none.

    A server that was started with `--enable-return-routed-experts` gives them as an array in NumPy's file format,
    `[tokens, layers, experts per token]`, in base64.

    Raises:
        ValueError: this is no such array of at least `num_tokens` tokens, or of experts beyond the 256th.
    """
    if encoded is None:
        return b""
    data = io.BytesIO(base64.b64decode(encoded))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError("routed_experts are not in version 1.0 of NumPy's file format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(data)
    if len(shape) != 3 or shape[0] < num_tokens or is_fortran or dtype.kind not in "iu":
        raise ValueError(f"routed_experts of shape {shape} and type {dtype} for {num_tokens} tokens read")
    # What was sent bounds what is made of it: `np.load` would first make room for whatever the header says.
    return check_experts(np.frombuffer(data.read(), dtype).reshape(shape)[:num_tokens])
