"""A detector tells how probable it is that a claim is factual, without looking anything up.

    DIR/detector.json             method, threshold, the model it belongs to, prompts, settings
    DIR/adapter_model.safetensors, adapter_config.json    a trained adapter, as peft lays it out
    DIR/probe.safetensors         a trained probe

Importing this module does not import torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llamarl.factuality.claims import Claim

ClaimKey = tuple[str | int | None, ...]
"""All of a claim that a detector's score depends on: claims of one key have one score."""


@dataclass(frozen=True, slots=True)
class Score:
    """A detector's view of one claim."""

    p_factual: float | None
    """The score from 0, hallucinated, to 1, factual; None where there is none, and `problem` says why."""
    mass: float | None = None
    """Probability of all label tokens together, before `p_factual` is normalised by it; None for methods without
    labels. Below 0.5 the model mostly wants to say something else, and `p_factual` is in doubt."""
    problem: str = ""
    """The reason why the claim has no score: it is too long, or the model answered no label. What stands before its
    first colon, if it has one, is its kind; the rest differs from claim to claim."""

    @property
    def is_probability(self) -> bool:
        """True if there is a score, and it is a probability, as it should be."""
        return self.p_factual is not None and math.isfinite(self.p_factual) and 0.0 <= self.p_factual <= 1.0

    @property
    def kind_of_problem(self) -> str:
        """The kind of problem, for counting."""
        return self.problem.partition(":")[0]


class Detector(Protocol):
    """Scores claims of a model's own answers."""

    @property
    def name(self) -> str:
        """The method, such as `prompt_tf` or `rate_ft`."""

    def key(self, claim: Claim) -> ClaimKey:
        """All of a claim that its score depends on."""

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order. A claim that cannot be scored says so in its `problem`."""
