"""The routes of an SGLang server that a generator uses, and checks of what they answer.

POST /generate                                    token ids in, token ids with log-probs and versions out
POST /pause_generation, /continue_generation      between which weights change; what is under way waits
POST /update_weights_from_disk                    a folder of safetensors
POST /weights_checker                             a digest of each tensor that it holds
POST /abort_request
GET  /server_info, /model_info

Written after the source of SGLang 0.5.23, and tried against a fake of it only.
"""

import base64
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from llamarl.core.errors import ConfigError, ExecutorLostError, WeightSyncError
from llamarl.core.records import Support, Trajectory
from llamarl.core.sampling import Sampling
from llamarl.generation.server.client import CALL_SECONDS, About, ServerClient
from llamarl.generation.server.completions import build_trajectory, check_experts

SERIES, OLDEST = "0.5", 23
"""The versions of SGLang whose routes these are, and the oldest of them: those before could not empty their cache while
requests wait, and gave no version for each token."""


class SglangClient(ServerClient):
    """An SGLang server."""

    async def describe(self) -> About:
        """What the server is. Raises `ConfigError` for one that cannot be used."""
        info = await self.get("/server_info")
        version, copies = str(info.get("version")), int(info.get("dp_size") or 1) * int(info.get("pp_size") or 1)
        series, _, number = version.rpartition(".")
        if series != SERIES or not number.isdecimal() or int(number) < OLDEST:
            raise ConfigError(
                f"{self.url}: SGLang {version}, but llamarl speaks to {SERIES}.{OLDEST} and later ones of {SERIES}; "
                "install one of these"
            )
        if copies != 1:
            raise ConfigError(f"{self.url}: has dp_size x pp_size = {copies}; start a server for each replica")
        length = info.get("context_length") or info.get("max_req_input_len")
        name = (await self.get("/model_info")).get("served_model_name")
        return About(str(name), int(length or 0), int(info.get("tp_size") or 1))

    async def generate(
        self,
        name: str,
        prompt_ids: Sequence[int],
        seed: int,
        sampling: Sampling,
        end_ids: Sequence[int],
        gives_experts: bool,
    ) -> Any:
        """One completion of a prompt, as the server gives it; `read_completion` reads it."""
        asked: dict[str, Any] = {
            **{"max_new_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p},
            **{"top_k": sampling.top_k or -1, "min_p": sampling.min_p, "sampling_seed": seed % 2**63, "n": 1},
            **{"stop_token_ids": list(end_ids), "skip_special_tokens": False},
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
        }
        body = {
            **{"rid": name, "input_ids": list(prompt_ids), "sampling_params": asked},
            **{"return_logprob": True, "logprob_start_len": -1, "return_routed_experts": gives_experts},
            "return_sampling_mask": bool(sampling.filters),
        }
        return await self.post("/generate", body, seconds=None)

    async def score(self, model: str, name: str, ids: Sequence[int], seconds: float) -> list[float]:
        """Log-probs of `ids[1:]`, each given the ids before it."""
        asked = {"max_new_tokens": 1, "temperature": 1.0}
        body = {"rid": name, "input_ids": list(ids), "sampling_params": asked}
        answer = await self.post("/generate", {**body, "return_logprob": True, "logprob_start_len": 0}, seconds=seconds)
        try:
            places = answer["meta_info"]["input_token_logprobs"]
            if [place[1] for place in places] != list(ids):
                raise ValueError(f"log-probs of {len(places)} tokens for {len(ids)}, or of others")
            return [float(place[0]) for place in places[1:]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ExecutorLostError(f"{self.url}: an answer without log-probs of the prompt ({error!r})") from None

    async def read_digests(self, seconds: float = CALL_SECONDS) -> list[dict[str, str]]:
        """A digest of each tensor that each worker holds, by the server's own names.

        Raises:
            ConfigError: the server gives none.
        """
        answer = await self.post("/weights_checker", {"action": "checksum"}, seconds=seconds)
        ranks = answer.get("ranks") or []
        if not answer.get("success") or not ranks or not all(rank.get("checksums") for rank in ranks):
            raise ConfigError(f"{self.url}/weights_checker: gives no digests ({answer.get('message')})")
        return [
            {name: digest for name, digest in rank["checksums"].items() if name.endswith(("weight", "bias"))}
            for rank in ranks  # buffers of its own are no weights
        ]

    async def load(self, folder: str, version: int, seconds: float) -> None:
        """Lets a paused server load a folder of safetensors and empty its cache.

        Raises:
            WeightSyncError: it did not, or does not have the version that it was told.
        """
        body: Mapping[str, Any] = {
            **{"model_path": folder, "load_format": "safetensors", "weight_version": str(version)},
            **{"flush_cache": True, "abort_all_requests": False},
        }
        answer = await self.post("/update_weights_from_disk", body, seconds=seconds)
        if answer.get("success") is not True:
            raise WeightSyncError(f"weights of version {version}: not taken by the server: {answer.get('message')}")
        if (held := (await self.get("/model_info")).get("weight_version")) != str(version):
            raise WeightSyncError(f"weights of version {version}: the server says that it has version {held}")


def read_completion(answer: Any, prompt_ids: "array[int]", is_filtered: bool, gives_experts: bool) -> Trajectory:
    """The completion in an answer of `generate`: ids, log-probs and versions as the server drew them.

    Args:
        answer: of the server.
        prompt_ids: of the request.
        is_filtered: whether filters cut tokens. Its log-probs are then those among the tokens left; the others that it
            gives are of all tokens.
        gives_experts: whether experts were asked for.

    Raises:
        ExecutorLostError: ids, log-probs or versions are missing or do not fit together, or it was cut off.
    """
    try:
        ids, meta = answer["output_ids"], answer["meta_info"]
        drawn = [(place[1], place[0]) for place in meta["output_token_logprobs"]]
        support = None
        if is_filtered:
            masks, logprobs = meta["output_token_sampling_mask"], meta["output_token_sampling_logprobs"]
            if not all(token in mask for token, mask in zip(ids, masks, strict=True)):
                raise ValueError("a token that is not among those that the filters left")
            drawn = [(token, logprob) for (token, _), logprob in zip(drawn, logprobs, strict=True)]
            support = Support(array("i", chain.from_iterable(masks)), array("i", [len(mask) for mask in masks]))
        experts = read_experts(meta["routed_experts"], len(prompt_ids) + len(ids) - 1) if gives_experts else b""
        spans, reason = meta["weight_versions"], meta["finish_reason"]["type"]
        return build_trajectory(prompt_ids, ids, drawn, spans, reason, support, experts)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ExecutorLostError(f"the server's answer is no completion ({type(error).__name__}: {error})") from None


def read_experts(encoded: str, num_tokens: int) -> bytes:
    """The experts in an answer, as `Trajectory.routed_experts` has them: int32 in base64, without a shape.

    Raises:
        ValueError: they are not of `num_tokens` tokens, or of experts beyond the 256th.
    """
    experts = np.frombuffer(base64.b64decode(encoded), "<i4")
    if not experts.size or experts.size % num_tokens:
        raise ValueError(f"{experts.size} routed_experts for {num_tokens} tokens read")
    return check_experts(experts)
