"""Online DPO: the best against the worst sample of each group, by reward.

    loss = - mean over prompts of  log sigmoid( beta log(policy/reference)(best) - beta log(policy/reference)(worst) )

"Direct Language Model Alignment from Online AI Feedback", Guo et al. 2024, arXiv 2402.04792, with rewards in place of
an annotator; the loss is that of DPO, arXiv 2305.18290.
"""

from collections.abc import Sequence
from typing import Literal

from llamarl.algorithms.pairs import PairConfig, best_and_worst
from llamarl.core.records import Sample


class OnlineDPOConfig(PairConfig):
    """Settings of online DPO. Constraints are not looked at: see CODPO."""

    type: Literal["online_dpo"] = "online_dpo"

    def pair(self, samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
        """Picks the samples of highest and lowest reward; None where all rewards are equal."""
        return best_and_worst(samples, samples)
