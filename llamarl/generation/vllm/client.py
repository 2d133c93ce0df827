"""The routes of a vLLM server that a generator uses, and checks of what they answer.

POST /inference/v1/generate                       token ids in, token ids with log-probs and versions out
POST /pause, /resume                              between which weights change; what is under way waits
POST /init_weight_transfer_engine, /start_weight_update, /update_weights, /finish_weight_update
POST /collective_rpc                              methods of `plugin/llamarl_vllm.py` in each worker
GET  /health, /version, /v1/models, /get_world_size
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from llamarl.core.errors import ConfigError, ExecutorLostError
from llamarl.core.records import Completion, Trajectory
from llamarl.core.sampling import Sampling

SUPPORTED = "0.32"
"""The versions of vLLM whose routes these are, up to the second number."""
NAME = "policy"
"""The model's name on servers that llamarl starts."""
CALL_SECONDS = 30.0
"""Deadline of calls that compute nothing."""
MAX_SHOWN = 300


@dataclass(frozen=True, slots=True)
class About:
    """A server as it describes itself."""

    model: str
    max_model_len: int
    world_size: int
    """Workers, each with a part of the weights."""


class VllmClient:
    """One server. Belongs to the event loop on which it is first used.

    Args:
        url: `http://HOST:PORT`.
        api_key_env: name of the variable with its key.
        transport: instead of the network, for tests.

    Raises:
        ConfigError: the key's variable is not set.
    """

    def __init__(
        self, url: str, api_key_env: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        headers = {}
        if api_key_env is not None:
            if not (key := os.environ.get(api_key_env, "").strip()):
                raise ConfigError(f"api_key_env={api_key_env!r}: the variable is not set; export the server's key")
            headers["Authorization"] = f"Bearer {key}"
        # No connection outlives its request: an executor is torn down without a chance to wait for theirs to close.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            transport=transport,
            limits=limits,
            trust_env=False,
            timeout=CALL_SECONDS,
        )

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        await self._http.aclose()

    async def describe(self) -> About:
        """What the server is. Raises `ConfigError` for one that cannot be used."""
        version = str((await self._get("/version")).get("version"))
        if not f"{version}.".startswith(f"{SUPPORTED}."):
            raise ConfigError(f"{self.url}: vLLM {version}, but llamarl speaks to {SUPPORTED}; install that version")
        models = (await self._get("/v1/models")).get("data") or [{}]
        try:
            size = int((await self._get("/get_world_size"))["world_size"])
        except (ExecutorLostError, KeyError) as error:
            raise ConfigError(
                f"{self.url}: does not offer its routes for training ({error}); start it with VLLM_SERVER_DEV_MODE=1"
            ) from None
        return About(str(models[0].get("id")), int(models[0].get("max_model_len") or 0), size)

    async def is_healthy(self) -> bool:
        """True if the server answers and its engine lives."""
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    async def generate(self, model: str, name: str, prompt_ids: Sequence[int], seed: int, sampling: Sampling) -> Any:
        """One completion of a prompt, as the server gives it; `read_completion` reads it."""
        asked: dict[str, Any] = {
            **{"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p},
            **{"top_k": sampling.top_k, "min_p": sampling.min_p, "seed": seed, "n": 1, "logprobs": 0},
            **({"stop": list(sampling.stop), "detokenize": True} if sampling.stop else {"detokenize": False}),
        }
        body = {"request_id": name, "model": model, "token_ids": list(prompt_ids), "sampling_params": asked}
        return await self._post("/inference/v1/generate", body, seconds=None)

    async def score(self, model: str, name: str, ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        asked = {"max_tokens": 1, "temperature": 1.0, "n": 1, "detokenize": False, "prompt_logprobs": 0}
        body = {"request_id": name, "model": model, "token_ids": list(ids), "sampling_params": asked}
        answer = await self._post("/inference/v1/generate", body, seconds=CALL_SECONDS)
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
            results: list[Any] = (await self._post("/collective_rpc", body, seconds=2 * CALL_SECONDS))["results"]
        except ExecutorLostError as error:
            raise ConfigError(
                f"{self.url}: does not run llamarl's plugin ({error}); start it with --worker-extension-cls "
                "llamarl_vllm.Extension, the plugin's folder in PYTHONPATH"
            ) from None
        return results

    async def post(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = CALL_SECONDS) -> Any:
        """Asks for something to be done. Raises `ExecutorLostError` if it is not."""
        return await self._post(path, body or {}, seconds=seconds)

    async def _get(self, path: str) -> Any:
        return self._read(path, await self._send("GET", path, None, CALL_SECONDS))

    async def _post(self, path: str, body: Mapping[str, Any], *, seconds: float | None) -> Any:
        return self._read(path, await self._send("POST", path, body, seconds))

    async def _send(self, verb: str, path: str, body: Any, seconds: float | None) -> httpx.Response:
        try:
            return await self._http.request(verb, path, json=body, timeout=httpx.Timeout(seconds, connect=CALL_SECONDS))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ExecutorLostError(f"{self.url}{path}: {type(error).__name__} {error}".strip()) from None

    def _read(self, path: str, response: httpx.Response) -> Any:
        if response.status_code in (401, 403):
            raise ConfigError(f"{self.url}{path}: refused with {response.status_code}; check the key (api_key_env)")
        if response.status_code != 200:
            said = " ".join(response.text.split())[:MAX_SHOWN]
            raise ExecutorLostError(f"{self.url}{path}: status {response.status_code}: {said}")
        try:
            return response.json() if response.content else {}
        except ValueError:
            raise ExecutorLostError(f"{self.url}{path}: answered something else than JSON") from None


def read_completion(answer: Any, prompt_ids: Sequence[int], text_of: Any) -> Completion:
    """The completion in an answer of `generate`: ids, log-probs and versions as the server drew them.

    Args:
        answer: of the server.
        prompt_ids: of the request; one array for all completions of a prompt.
        text_of: token ids -> text.

    Raises:
        ExecutorLostError: ids, log-probs or versions are missing or do not fit together, or it was cut off.
    """
    try:
        (choice,) = answer["choices"]
        ids = [int(token) for token in choice["token_ids"]]
        drawn = choice["logprobs"]["content"]
        if [place["token_id"] for place in drawn] != ids or not ids:
            raise ValueError(f"{len(drawn)} log-probs for {len(ids)} token ids, or of other tokens")
        versions = [
            int(part["version"]) for part in choice["weight_versions"] for _ in range(part["start"], part["end"])
        ]
        if len(versions) != len(ids):
            raise ValueError(f"versions of {len(versions)} tokens for {len(ids)} token ids")
        if (reason := choice["finish_reason"]) not in ("stop", "length"):
            raise ValueError(f"finish_reason {reason!r}")
        logprobs = [float(place["logprob"]) for place in drawn]
        experts = read_experts(choice.get("routed_experts"), len(prompt_ids) + len(ids) - 1)
        trajectory = Trajectory.sampled(prompt_ids, ids, logprobs, versions, reason, routed_experts=experts)
        return Completion(trajectory, text_of(ids))
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
    experts = np.frombuffer(data.read(), dtype).reshape(shape)[:num_tokens]
    if experts.size and not 0 <= int(experts.min()) <= int(experts.max()) < 256:
        raise ValueError(
            f"routed_experts of shape {shape} go from {experts.min()} to {experts.max()}, not within 0 to 255"
        )
    return experts.astype(np.uint8).tobytes()
