"""Prompt-TF: ask whether a claim is true or false, and read the probability of the answer. No training."""

from collections.abc import Sequence
from typing import ClassVar

from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.method import Method


class PromptTF(Method):
    """P_factual of the label at the one position behind the question, from one forward pass."""

    name: ClassVar[str] = "prompt_tf"

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order."""
        prompt = self.prompts["detect"]
        return self.backbone.score_labels(prompt, [self.backbone.encode(prompt, claim=claim.text) for claim in claims])
