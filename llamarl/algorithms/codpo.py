"""CODPO: constrained online DPO. The best sample that meets all constraints against the worst that breaks one.

    a+   = the sample of highest reward among those that meet every constraint; without one the prompt is skipped
    a-   = the sample of lowest reward among those that break one; among all, where none does
    loss = - mean over prompts, skipped ones included, of
           log sigmoid( beta log(policy/reference)(a+) - beta log(policy/reference)(a-) ) + lambda / |a+| log policy(a+)

The last term keeps the likelihood of a+ from falling along with that of a-. "The Perfect Blend: Redefining RLHF with
Mixture of Judges" (CGPO), Xu et al. 2024, arXiv 2409.20370, equations 13 to 15, its sign set to ascend.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llamarl.algorithms.constrained import constraint_metrics
from llamarl.algorithms.pairs import PairConfig, best_and_worst, mean_logprobs
from llamarl.core.records import Group, Sample
from llamarl.functional.losses import LossBatch
from llamarl.functional.pairs import PairRows

if TYPE_CHECKING:
    from torch import Tensor


class CODPOConfig(PairConfig):
    """Settings of CODPO."""

    type: Literal["codpo"] = "codpo"
    likelihood_coef: float = Field(default=1.0, ge=0.0)
    """The paper's lambda, of which it names no value: ours is the 1 of other losses of this form."""

    def pair(self, samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
        """Picks the best satisfied and the worst violated sample.

        Returns None without a satisfied one, or where both are one sample or text.
        """
        violated = [sample for sample in samples if not sample.is_satisfied]
        return best_and_worst([sample for sample in samples if sample.is_satisfied], violated or samples)

    def likelihood(self, batch: LossBatch, pairs: PairRows) -> "Tensor | float":
        """Computes `lambda / |a+| log policy(a+)`, `[P]`."""
        return self.likelihood_coef * mean_logprobs(batch)[pairs.chosen]

    def batch_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Measures the task's violation rate."""
        return constraint_metrics(groups)
