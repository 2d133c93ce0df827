"""IBPO: inference-budget-constrained policy optimisation. Learn by heart what an integer program picks of the batch.

    z          = argmax of the accepted margins, at most a share q+ of the accepted responses long (`functional.budget`)
    gradient   = mean over prompts of  z grad log policy(response)

A response's margin is how much more often its group is right on the prompt than the others are. So hard prompts learn a
long answer, easy ones a short answer, and the policy learns the share. "Think Smarter not Harder: Adaptive Reasoning
with Inference Aware Optimization", Yu, Xu et al. 2025, arXiv 2501.17974.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from llamarl.algorithms.base import judged_groups, reward_of, train_sample
from llamarl.algorithms.constrained import OnPolicyConfig
from llamarl.algorithms.running_values import RunningValues
from llamarl.core.algorithm import Credit, Needs
from llamarl.core.errors import DataError
from llamarl.core.paths import ObjectName
from llamarl.core.records import Assignment, Group, Prompt, Sample
from llamarl.data.groups import load_group_function
from llamarl.functional.losses import Reduction

if TYPE_CHECKING:
    from llamarl.functional.budget import Budget, Pool, Solution

_log = logging.getLogger(__name__)

Judged = Sequence[tuple[Group, Sequence[Sample]]]
"""Groups and their judged samples."""


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
    """What a right response is worth: the margin of its group; or, for ablations only, 1 like any other."""
    running_values: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Where a prompt lacks a group, its value comes from the earlier epochs' mean, in which an epoch fades by this
    factor; 0: it is the batch's mean."""
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

    def budget(self, q_plus: float) -> "Budget":
        """Names the groups and their bounds."""
        from llamarl.functional.budget import Budget

        return Budget({"long": q_plus, **self.caps}, ("short",), self.mean_tokens)

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
        return IBPOCredit(self)


class Part(NamedTuple):
    """The prompts under one budget, and what their program made of them."""

    q_plus: float
    pool: "Pool"
    solution: "Solution"
    accepted: Sequence[tuple[Group, Sample]]


class IBPOCredit(Credit):
    """Picks the responses that the budget program accepts, solved once over the whole step's pool."""

    def __init__(self, config: IBPOConfig) -> None:
        self._config = config
        self._group_of = load_group_function(config.groups)
        self._running = RunningValues(config.running_values)
        self._warned: set[str] = set()

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raises `DataError`, naming the prompt, where one lacks its own budget or has none between 0 and 1."""
        for prompt in prompts:
            self._q_plus(prompt)

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """Picks at most one sample of each group, with advantage 1: none of a prompt that is not accepted."""
        from llamarl.functional.budget import budget_metrics

        batch = judged_groups(groups)
        parts = [self._solve(q_plus, members) for q_plus, members in self._by_budget(batch)]
        samples = tuple(train_sample(sample, group, 1.0) for part in parts for group, sample in part.accepted)
        solved = [(part.pool, part.solution) for part in parts]
        metrics = budget_metrics(solved, self._config.form)
        for part, one in zip(parts, solved, strict=True) if self._config.q_plus_field else ():
            own = budget_metrics([one], self._config.form)
            metrics |= {f"budget/{part.q_plus:g}/{name}": value for name, value in own.items()}
        self._warn(solved)
        return Assignment(samples, num_prompts=len(batch), metrics=metrics)

    def held_out_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Measures what the policy spends unasked, also by stated budget: `sampled/G`, `malformed_frac`."""
        kinds = [(group.prompt, self._group_of(group.prompt, s.completion)) for group in groups for s in group.samples]
        metrics = self._shares([kind for _, kind in kinds])
        field = self._config.q_plus_field
        parts: dict[float, list[str | None]] = {}
        for prompt, kind in kinds:
            if field is not None and field in prompt.info:
                parts.setdefault(self._q_plus(prompt), []).append(kind)
        for q_plus, part in sorted(parts.items()):
            metrics |= {f"budget/{q_plus:g}/{name}": value for name, value in self._shares(part).items()}
        return metrics

    def state(self) -> dict[str, Any]:
        """Returns the running values."""
        return {"running_values": self._running.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._running.restore(state.get("running_values", {}))

    def _q_plus(self, prompt: Prompt) -> float:
        field = self._config.q_plus_field
        if field is None:
            return self._config.q_plus
        value = prompt.info.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            found = f"is {value!r}" if field in prompt.info else "is missing"
            raise DataError(
                f"prompt {prompt.id!r}: the field {field!r} {found}, but algorithm.q_plus_field takes each prompt's "
                "budget from it; give the row a number from 0 to 1, or set algorithm.q_plus for all"
            )
        return float(value)

    def _shares(self, kinds: Sequence[str | None]) -> dict[str, float]:
        names = self._config.budget(self._config.q_plus).groups
        return {f"sampled/{name}": kinds.count(name) / len(kinds) for name in names} | {
            "malformed_frac": kinds.count(None) / len(kinds)
        }

    def _by_budget(self, batch: Judged) -> list[tuple[float, Judged]]:
        """The prompts of each budget, the smallest budget first."""
        if self._config.q_plus_field is None:
            return [(self._config.q_plus, batch)]
        parts: dict[float, list[tuple[Group, Sequence[Sample]]]] = {}
        for group, samples in batch:
            parts.setdefault(self._q_plus(group.prompt), []).append((group, samples))
        return sorted(parts.items())

    def _solve(self, q_plus: float, batch: Judged) -> Part:
        from llamarl.functional.budget import solve

        pool, budget, config = self._pool(batch), self._config.budget(q_plus), self._config
        known: dict[Hashable, Mapping[str, float]] = {}
        if config.running_values:
            known = {index: self._running.of(group.prompt.id) for index, (group, _) in enumerate(batch)}
            self._remember(batch, pool, budget.groups)
        solution = solve(
            pool,
            budget,
            form=config.form,
            time_limit_seconds=config.time_limit_seconds,
            worth=config.worth,
            known=known,
        )
        responses = ((group, sample) for group, samples in batch for sample in samples)
        accepted = [response for response, z in zip(responses, solution.accepted, strict=True) if z]
        return Part(q_plus, pool, solution, accepted)

    def _remember(self, batch: Judged, pool: "Pool", groups: Sequence[str]) -> None:
        from llamarl.functional.budget import group_values

        found = group_values(pool, groups)
        for (group, _), counts, values in zip(batch, found.counts, found.values, strict=True):
            seen = {name: float(v) for name, n, v in zip(groups, counts, values, strict=True) if n}
            self._running.update(group.prompt.id, group.epoch, seen)

    def _pool(self, batch: Judged) -> "Pool":
        """The responses; costs only where tokens are bounded, or else the shortest right ones would train."""
        from llamarl.functional.budget import Pool

        responses = [(index, sample) for index, (_, samples) in enumerate(batch) for sample in samples]
        costs = [float(len(sample.completion.token_ids)) for _, sample in responses]
        return Pool(
            prompts=[index for index, _ in responses],
            groups=[self._group(batch[index][0].prompt, sample) for index, sample in responses],
            correct=[reward_of(s) >= self._config.correct_from and s.is_satisfied is not False for _, s in responses],
            costs=None if self._config.mean_tokens is None else costs,
        )

    def _group(self, prompt: Prompt, sample: Sample) -> str | None:
        """Raises `DataError`, naming the prompt, for a group without a cap."""
        group, known = self._group_of(prompt, sample.completion), ["short", "long", *self._config.caps]
        if group is not None and group not in known:
            raise DataError(
                f"group function {self._config.groups!r} gave a completion of prompt {prompt.id!r} the group "
                f"{group!r}, which is not in the budget; return one of {', '.join(known)} or None, or set "
                f"algorithm.caps.{group}"
            )
        return group

    def _warn(self, solved: Sequence[tuple["Pool", "Solution"]]) -> None:
        """Says what keeps a step from training as the budget means it: once, until a step is free of it."""
        from llamarl.functional.budget import find_problems

        config, found = self._config, find_problems(solved)
        remedies = {
            "infeasible": f"raise algorithm.mean_tokens = {config.mean_tokens}",
            "cheapest": f"raise algorithm.time_limit_seconds = {config.time_limit_seconds:g}",
            "rejected": f"look at rewards and at the forms that algorithm.groups = {config.groups!r} tells",
        }
        for kind, text in found.items():
            if kind not in self._warned:
                _log.warning(f"the budget program {text}; {remedies[kind]}")
        self._warned = set(found)
