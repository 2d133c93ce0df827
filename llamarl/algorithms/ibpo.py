"""IBPO: inference-budget-constrained policy optimisation. Learn by heart what an integer program picks of the batch.

    z          = argmax of the accepted margins, at most a share q+ of the accepted responses long (`functional.budget`)
    gradient   = mean over prompts of  z grad log policy(response)

A response's margin is how much more often its group is right on the prompt than the others are. So hard prompts learn a
long answer, easy ones a short answer, and the policy learns the share. "Think Smarter not Harder: Adaptive Reasoning
with Inference Aware Optimization", Yu, Xu et al. 2025, arXiv 2501.17974.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from llamarl.algorithms.base import PolicyGradient, judged, reward_of, train_sample
from llamarl.algorithms.constrained import OnPolicyConfig
from llamarl.core.records import Assignment, Group, Sample
from llamarl.data.groups import load_group_function
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from llamarl.functional.budget import Budget, Pool, Solution


class IBPOConfig(OnPolicyConfig):
    """Settings of IBPO."""

    type: Literal["ibpo"] = "ibpo"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch, rejected ones included."""
    q_plus: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of responses of the group `long` among those that train."""
    groups: str = "llamarl.judges.voting:group"
    """The function that tells a response's group: `short`, `long`, or None where its form is invalid."""
    caps: dict[str, float] = Field(default_factory=dict)
    """Largest shares of further groups, where the function tells more than two."""
    mean_tokens: float | None = Field(default=None, gt=0.0)
    """Bound on the mean tokens of the responses that train; None: only shares are bounded."""
    correct_from: float = 1.0
    """A response of at least this reward, whose constraints are met, is correct."""
    form: Literal["accepted", "prompts"] = "accepted"
    """What shares are of (`functional.budget`): responses that train, or prompts of the batch."""
    time_limit_seconds: float = Field(default=5.0, gt=0.0)
    """Of the solver; then the cheapest choice stands in."""

    @model_validator(mode="after")
    def _budget_is_one(self) -> Self:
        for group, cap in self.caps.items():
            if group in ("short", "long") or not 0.0 <= cap <= 1.0:
                raise ValueError(f"caps.{group} = {cap}: give shares, 0 to 1, of groups other than short and long")
        return self

    @property
    def budget(self) -> "Budget":
        """Groups and bounds."""
        from llamarl.functional.budget import Budget

        return Budget({"long": self.q_plus, **self.caps}, ("short",), self.mean_tokens)

    def build(self) -> "IBPO":
        """The algorithm with these settings."""
        return IBPO(self)


class IBPO(PolicyGradient[IBPOConfig]):
    """Maximum likelihood on the responses that the budget program accepts, solved once over the whole step's pool."""

    name = "ibpo"

    def __init__(self, config: IBPOConfig) -> None:
        super().__init__(config)
        self.corrects_staleness = config.off_policy != "none"
        self._group_of = load_group_function(config.groups)

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """At most one sample of each group, with advantage 1: none of a prompt that is not accepted."""
        from llamarl.functional.budget import solve

        batch = judged(groups)
        responses = [(index, sample) for index, (_, samples) in enumerate(batch) for sample in samples]
        pool = self._pool(batch, responses)
        budget = self.config.budget
        limit = self.config.time_limit_seconds
        solution = solve(pool, budget, form=self.config.form, time_limit_seconds=limit)
        chosen = [response for response, z in zip(responses, solution.accepted, strict=True) if z]
        samples = tuple(train_sample(sample, batch[index][0], 1.0) for index, sample in chosen)
        return Assignment(samples, num_prompts=len(batch), metrics=budget_metrics(pool, solution))

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """`log policy`, or its importance-weighted form."""
        return self.config.score_objective(batch, log_ratios)

    def _pool(self, batch: Sequence[tuple[Group, Sequence[Sample]]], responses: Sequence[tuple[int, Sample]]) -> "Pool":
        from llamarl.functional.budget import Pool

        return Pool(
            prompts=[index for index, _ in responses],
            groups=[self._group_of(batch[index][0].prompt, sample.completion) for index, sample in responses],
            correct=[reward_of(s) >= self.config.correct_from and s.is_satisfied is not False for _, s in responses],
            costs=self._costs(responses),
        )

    def _costs(self, responses: Sequence[tuple[int, Sample]]) -> list[float] | None:
        """Tokens, where they are bounded. Elsewhere the earliest right response of a group trains, of any length."""
        if self.config.mean_tokens is None:
            return None
        return [float(len(sample.completion.token_ids)) for _, sample in responses]


def budget_metrics(pool: "Pool", solution: "Solution") -> dict[str, float]:
    """What the program spent, on what, and how it was solved; a value that is unknown is left out.

    `used/G` is the share of a capped group among the trained samples (or the prompts, by the form), `slack/G` what its
    cap leaves; `used/mean_cost` and `slack/mean_cost` are tokens. `sampled/G` is a group's share of all judged
    responses, `margin/G` its mean margin over prompts with every group. `rejected_frac` and `one_sided_frac` (prompts
    that lack a group) are over prompts, `malformed_frac` over responses. The solver's are `solver_seconds`,
    `solver_gap` to the optimum, and `is_fallback`.
    """
    prompts, size = max(1, solution.num_prompts), max(1, len(pool))
    values = {"rejected_frac": solution.num_rejected / prompts, "one_sided_frac": solution.num_one_sided / prompts}
    values |= {"malformed_frac": pool.groups.count(None) / size, "solver_seconds": solution.seconds}
    values |= {"solver_gap": solution.gap, "is_fallback": float(solution.is_fallback)}
    for name, spent in solution.spending.items():
        values |= {f"used/{name}": spent.used, f"slack/{name}": spent.slack}
    for group, margin in solution.mean_margins.items():
        values |= {f"sampled/{group}": pool.groups.count(group) / size, f"margin/{group}": margin}
    return {name: value for name, value in values.items() if math.isfinite(value)}
