"""Rotary embeddings that depend on how long a sequence is (LongRoPE, the 128k kind of Phi-3).

Up to a threshold all positions of a sequence turn by one set of angles, beyond it by another. transformers chooses by
the longest row of a forward pass, padding included, so a short row beside a long one would be turned as if it were
long. Rows on one side of the threshold may share a pass; what a row's tokens were given before it crossed stays as it
was: the model's distribution of token i is that of the i tokens before it alone.

(The "dynamic" kind changes beyond `max_position_embeddings` only, where no row of ours ever is.)
"""

from collections.abc import Mapping, Sequence
from typing import Any


def rope_threshold(config: Any) -> int | None:
    """Most tokens of a sequence that is still short, or None where length makes no difference.

    Args:
        config: of a transformers model.
    """
    text: Any = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    for kind in (parameters, *parameters.values()):  # some models have one kind for each type of layer
        if isinstance(kind, Mapping) and kind.get("rope_type") == "longrope":
            return int(kind["original_max_position_embeddings"])
    return None


def split_by_side(lengths: Sequence[int], threshold: int | None) -> list[list[int]]:
    """Indices of sequences that may share a forward pass, in order: those up to the threshold, and those beyond it."""
    if threshold is None:
        return [list(range(len(lengths)))]
    sides = [[i for i, length in enumerate(lengths) if (length > threshold) == is_long] for is_long in (False, True)]
    return [side for side in sides if side]
