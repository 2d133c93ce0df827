"""IBPO: inference-budget-constrained policy optimisation. Learn by heart what an integer program picks of the batch.

    z          = argmax of the accepted margins, at most a share q+ of the accepted responses long (`functional.budget`)
    gradient   = mean over prompts of  z grad log policy(response)

A response's margin is how much more often its group is right on the prompt than the others are. So hard prompts learn a
long answer, easy ones a short answer, and the policy learns the share. "Think Smarter not Harder: Adaptive Reasoning
with Inference Aware Optimization", Yu, Xu et al. 2025, arXiv 2501.17974.
"""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from llamarl.algorithms.constrained import OnPolicyConfig
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.paths import ObjectName
from llamarl.functional.losses import Reduction


class IBPOConfig(OnPolicyConfig):
    """Settings of IBPO."""

    type: Literal["ibpo"] = "ibpo"
    reduction: Reduction = "prompt_sum"
    """The log-prob of the whole completion, over the prompts of the batch, rejected ones included."""
    q_plus: float = Field(default=0.5, ge=0.0, le=1.0)
    """Largest share of responses of the group `long` among those that train."""
    q_plus_field: str | None = None
    """The prompts' field that holds their own q_plus; prompts of one budget share a program. None: one for all."""
    groups: ObjectName = "llamarl.judges.voting:group"
    """The function that tells a response's group: `short`, `long`, or None where its form is invalid."""
    caps: dict[str, float] = Field(default_factory=dict)
    """Largest shares of further groups, where the function tells more than two."""
    mean_tokens: float | None = Field(default=None, gt=0.0)
    """Bound on the mean tokens of the responses that train; None: only shares are bounded."""
    correct_from: float = 1.0
    """A response of at least this reward, whose constraints are met, is correct."""
    worth: Literal["margin", "correctness"] = "margin"
    """Worth of a right response: the margin of its group; or, for ablations only, 1 like any other."""
    running_values: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Factor by which an epoch fades in the mean of the earlier ones, the value of a group that a prompt lacks; 0: that
    value is the batch's mean."""
    form: Literal["accepted", "prompts"] = "accepted"
    """Whole that shares are taken of (`functional.budget`): the responses that train, or the prompts of the batch."""
    time_limit_seconds: float = Field(default=5.0, gt=0.0)
    """Time limit of the solver, in seconds; past it, the cheapest choice stands in."""

    @model_validator(mode="after")
    def _budget_is_one(self) -> Self:
        for group, cap in self.caps.items():
            if group in ("short", "long") or not 0.0 <= cap <= 1.0:
                raise ValueError(f"caps.{group} = {cap}: give shares, 0 to 1, of groups other than short and long")
        return self

    @property
    def needs(self) -> Needs:
        """A thread for the integer program; one sample teaches by itself, and as published it is pure imitation."""
        return replace(
            super().needs,
            comparison=None,
            ignores_behavior_logprobs=self.off_policy == "none",
            assigns_in_thread=True,
        )

    def credit(self) -> Credit:
        """Builds the half that solves the budget program. Raises `ConfigError` where `groups` names no function."""
        from llamarl.algorithms.ibpo_credit import IBPOCredit  # NumPy and the budget program: never in the trainer

        return IBPOCredit(self)
