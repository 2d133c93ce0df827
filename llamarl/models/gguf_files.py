"""Mends what transformers leaves out of a GGUF file, or invents. The only module that imports gguf.

transformers unpacks the weights, and rebuilds config and tokenizer from the file's metadata. But it takes every rotary
embedding for an unscaled one: Llama 3.1 and later divide its frequencies by factors that the file holds as a tensor;
these become the config's `rope_type = "llama3"` again, and any other scaling is refused rather than forgotten. And it
gives byte-level vocabularies GPT-2's end token where they have none, such as Llama 3's.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llamarl.core.errors import CheckpointError, MissingDependencyError

_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_POSITIONS = 8192
"""Positions that Llama 3 was pretrained with, before its frequencies were stretched."""


def require_gguf() -> None:
    """Raises `MissingDependencyError` without the packages of the extra `gguf`."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.for_extra(str(error.name), "gguf") from None


def rope_parameters(file: Path, parameters: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The rotary parameters of a GGUF file's model, its scaling included.

    Args:
        file: the GGUF file.
        parameters: what transformers makes of it: `rope_theta` and an unscaled `rope_type`.
        head_dim: rotated numbers of a head.

    Raises:
        CheckpointError: a scaling that cannot be told from the file.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    architecture = reader.get_field("general.architecture")
    scaling = reader.get_field(f"{architecture.contents() if architecture else ''}.rope.scaling.type")
    kind = scaling.contents() if scaling else "none"
    factors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")}
    if kind == "none" and not factors:
        return dict(parameters)
    if kind == "none" and set(factors) == {"rope_freqs.weight"}:
        found = [float(factor) for factor in factors["rope_freqs.weight"].reshape(-1)]
        scaled = {**parameters, **_LLAMA3, "original_max_position_embeddings": _LLAMA3_POSITIONS, "factor": max(found)}
        wanted = _llama3_factors(scaled["rope_theta"], head_dim, max(found))
        if np.shape(found) == np.shape(wanted) and np.allclose(found, wanted, rtol=1e-3):
            return scaled
    raise CheckpointError(
        f"{file}: scales its rotary embedding ({kind if kind != 'none' else min(factors)}) in a way that is lost when "
        "a GGUF file is read; take the model's safetensors checkpoint"
    )


def without_invented(backend: Any, file: Path) -> str | None:
    """The rules of a tokenizer (JSON of the `tokenizers` library) without tokens that the file lacks; None: it has all.

    Args:
        backend: the Hugging Face tokenizer that transformers made.
        file: the GGUF file.
    """
    from gguf import GGUFReader

    tokens = GGUFReader(file).get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    count = len(tokens.data)
    if all(index < count for index in backend.added_tokens_decoder):
        return None
    rules = json.loads(backend.backend_tokenizer.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["id"] < count]
    return json.dumps(rules)


def _llama3_factors(theta: float, head_dim: int, factor: float) -> list[float]:
    """The divisors of Llama 3.1's frequencies: 1 for short waves, `factor` for long ones, smooth in between."""
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    assert isinstance(low, float) and isinstance(high, float)
    found = []
    for index in range(0, head_dim, 2):
        turns = _LLAMA3_POSITIONS / (2 * math.pi * theta ** (index / head_dim))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return found
