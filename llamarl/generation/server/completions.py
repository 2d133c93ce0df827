"""What an answer must hold to be a completion that trains: ids, their log-probs, and the versions that drew them."""

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamarl.core.records import FinishReason, Support, Trajectory

ROUNDING = 1e-4
"""Nats by which the log-prob of a certain token may be above 0."""


def build_trajectory(
    prompt_ids: "array[int]",
    ids: Sequence[int],
    drawn: Sequence[tuple[int, float]],
    spans: Sequence[Mapping[str, Any]],
    reason: str,
    support: Support | None = None,
    experts: bytes = b"",
) -> Trajectory:
    """Checks the parts of a completion against each other, and joins them.

    Args:
        prompt_ids: of the request; one array for all completions of a prompt.
        ids: that the server drew.
        drawn: token id and log-prob of each.
        spans: `version`, `start` and `end` of each run of tokens.
        reason: why it ended.
        support: the tokens that filters left.
        experts: see `Trajectory.routed_experts`.

    Raises:
        TypeError, ValueError: something is missing or does not fit, or it was cut off.
    """
    if [token for token, _ in drawn] != list(ids) or not ids:
        raise ValueError(f"{len(drawn)} log-probs for {len(ids)} token ids, or of other tokens")
    logprobs = [float(logprob) for _, logprob in drawn]
    if not all(-math.inf < logprob <= ROUNDING for logprob in logprobs):
        raise ValueError("log-probs that are infinite, above 0 or no numbers")
    versions = [int(span["version"]) for span in spans for _ in range(span["start"], span["end"])]
    if len(versions) != len(ids):
        raise ValueError(f"versions of {len(versions)} tokens for {len(ids)} token ids")
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    if reason not in reasons:
        raise ValueError(f"finish_reason {reason!r}")
    return Trajectory.sampled(prompt_ids, ids, logprobs, versions, reasons[reason], support, experts)


def check_experts(experts: NDArray[Any]) -> bytes:
    """Packs experts `[tokens, layers, experts per token]` as `Trajectory.routed_experts` has them.

    Raises:
        ValueError: there are experts beyond the 256th.
    """
    if experts.size and not 0 <= int(experts.min()) <= int(experts.max()) < 256:
        raise ValueError(
            f"routed_experts of shape {experts.shape} go from {experts.min()} to {experts.max()}, not within 0 to 255"
        )
    return experts.astype(np.uint8).tobytes()
