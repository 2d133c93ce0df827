"""One reward from the verdicts of several judges."""

import math
from collections.abc import Mapping

from llamarl.core.errors import ConfigError
from llamarl.core.records import Status, Verdict


def combine(verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> float | None:
    """The weighted mean of the scores, or None where the sample cannot be rewarded.

        reward = sum_j w_j s_j / sum_j w_j        over the judges j that scored

    With one judge it is that judge's score. A judge that abstains leaves numerator and denominator, so the reward's
    scale does not move. None if a judge of positive weight failed, or if all of them abstained. A judge of weight 0
    only watches: whatever it says, the reward is the same.

    Args:
        verdicts: by judge name; one for every judge of positive weight.
        weights: by judge name, each finite and at least 0 (`check_weights`).
    """
    total, weight_sum = 0.0, 0.0
    for name, weight in weights.items():
        if weight == 0:
            continue
        verdict = verdicts[name]
        if verdict.status is Status.FAILED:
            return None
        if verdict.score is not None:
            total += weight * verdict.score
            weight_sum += weight
    return total / weight_sum if weight_sum else None


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises `ConfigError` unless every weight is finite and at least 0, and one is positive."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"weight of judge '{name}': got {weight}; use a number of at least 0 (turn the score's sign)"
            )
    if not any(weights.values()):
        raise ConfigError(f"weights: {dict(weights)}; at least one judge needs a positive weight")
