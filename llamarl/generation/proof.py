"""The probe: log-probs that a generator must compute as the trainer does, before it may serve new weights."""

from collections.abc import Mapping, Sequence

from llamarl.core.errors import WeightSyncError
from llamarl.core.records import LogprobGap, WeightManifest, WeightProbe

_ROUNDING = 1e-4
"""Nats that the probe may differ by whatever the precision: fp32 sums in another order."""
_BROKEN: Mapping[str, float] = {"fp32": 0.01, "bf16": 0.5, "int8": 1.0}
"""Mean nats beyond which a difference under equal weights is not rounding, by precision."""


def measure_precision(probe: WeightProbe, logprobs: Sequence[float], precision: str) -> LogprobGap:
    """Measures what a generator's precision costs, while it holds the weights that the trainer started from.

    Args:
        probe: of the trainer.
        logprobs: the generator's, of the probe's tokens.
        precision: the generator's.

    Raises:
        WeightSyncError: more than rounding: the two sides loaded other checkpoints, or compute another model.
    """
    cost = LogprobGap.between(logprobs, probe.at_start)
    if not cost.mean <= _BROKEN[precision]:
        raise WeightSyncError(
            f"before any update, the generator's log-probs differ from the trainer's by {cost.mean:.3g} nats on "
            f"average, which {precision} cannot explain: they hold other checkpoints, or this model is "
            "not computed alike on both sides (please report it, with its config.json)"
        )
    return cost


def check_probe(
    manifest: WeightManifest, logprobs: Sequence[float], cost: LogprobGap, precision: str, probe_factor: float
) -> float:
    """Compares the probe's log-probs with the trainer's under the weights just taken; returns the largest gap.

    Args:
        manifest: with the probe.
        logprobs: the generator's, of the probe's tokens.
        cost: of the generator's precision.
        precision: the generator's.
        probe_factor: largest mean gap, as a multiple of the cost.

    Raises:
        WeightSyncError: more than the precision explains.
    """
    assert manifest.probe is not None
    gap = LogprobGap.between(logprobs, manifest.probe.now)
    most = probe_factor * cost.mean + _ROUNDING
    # Only the mean is held to a bound: the largest gap is that of one token, and on a token that training has made
    # improbable a low precision is off by any amount, under weights that are all as they were sent.
    if not gap.mean <= most:
        raise WeightSyncError(
            f"weights of version {manifest.version}: the probe's log-probs differ from the trainer's by "
            f"{gap.mean:.3g} nats on average ({gap.largest:.3g} at most); {precision} alone cost "
            f"{cost.mean:.3g}, and probe_factor={probe_factor:g} allows {most:.3g}"
        )
    return gap.largest
