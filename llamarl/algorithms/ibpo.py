"""IBPO: inference-budget-constrained policy optimisation. Learn by heart what an integer program picks of the batch.

    z          = argmax of the accepted margins, at most a share q+ of the accepted responses long (`functional.budget`)
    gradient   = mean over prompts of  z grad log policy(response)

A response's margin is how much more often its group is right on the prompt than the others are. So hard prompts learn a
long answer, easy ones a short answer, and the policy learns the share. "Think Smarter not Harder: Adaptive Reasoning
with Inference Aware Optimization", Yu, Xu et al. 2025, arXiv 2501.17974.
"""

import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from llamarl.algorithms.base import PolicyGradient, judged, reward_of, train_sample
from llamarl.algorithms.constrained import OnPolicyConfig
from llamarl.algorithms.running_values import RunningValues
from llamarl.core.errors import DataError
from llamarl.core.paths import ObjectName
from llamarl.core.records import Assignment, Group, Prompt, Sample
from llamarl.data.groups import load_group_function
from llamarl.functional.losses import LossBatch, Reduction
from llamarl.functional.ratios import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from llamarl.functional.budget import Budget, Form, Pool, Solution

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
        """Groups and bounds."""
        from llamarl.functional.budget import Budget

        return Budget({"long": q_plus, **self.caps}, ("short",), self.mean_tokens)

    def build(self) -> "IBPO":
        """The algorithm with these settings."""
        return IBPO(self)


class Part(NamedTuple):
    """The prompts under one budget, and what their program made of them."""

    q_plus: float
    pool: "Pool"
    solution: "Solution"
    accepted: Sequence[tuple[Group, Sample]]


class IBPO(PolicyGradient[IBPOConfig]):
    """Maximum likelihood on the responses that the budget program accepts, solved once over the whole step's pool."""

    name = "ibpo"
    compares_within = None
    assigns_in_thread = True

    def __init__(self, config: IBPOConfig) -> None:
        super().__init__(config)
        self.corrects_staleness = config.off_policy != "none"
        self.learns_by_heart = config.off_policy == "none"
        self._group_of = load_group_function(config.groups)
        self._running = RunningValues(config.running_values)
        self._warned: set[str] = set()

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raises `DataError`, naming the prompt, where one lacks its own budget or has none between 0 and 1."""
        for prompt in prompts:
            self._q_plus(prompt)

    def assign(self, groups: Sequence[Group]) -> Assignment:
        """At most one sample of each group, with advantage 1: none of a prompt that is not accepted."""
        batch = judged(groups)
        parts = [self._solved(q_plus, members) for q_plus, members in self._by_budget(batch)]
        samples = tuple(train_sample(sample, group, 1.0) for part in parts for group, sample in part.accepted)
        metrics = budget_metrics(parts, self.config.form)
        for part in parts if self.config.q_plus_field else ():
            own = budget_metrics([part], self.config.form)
            metrics |= {f"budget/{part.q_plus:g}/{name}": value for name, value in own.items()}
        self._warn(parts)
        return Assignment(samples, num_prompts=len(batch), metrics=metrics)

    def held_out_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """What the policy spends where nobody asks for a form: `sampled/G`, `malformed_frac`; also by stated budget."""
        kinds = [(group.prompt, self._group_of(group.prompt, s.completion)) for group in groups for s in group.samples]
        metrics = self._shares([kind for _, kind in kinds])
        field = self.config.q_plus_field
        parts: dict[float, list[str | None]] = {}
        for prompt, kind in kinds:
            if field is not None and field in prompt.info:
                parts.setdefault(self._q_plus(prompt), []).append(kind)
        for q_plus, part in sorted(parts.items()):
            metrics |= {f"budget/{q_plus:g}/{name}": value for name, value in self._shares(part).items()}
        return metrics

    def objective(self, batch: LossBatch, log_ratios: "Tensor") -> Objective:
        """`log policy`, or its importance-weighted form."""
        return self.config.score_objective(batch, log_ratios)

    def state(self) -> dict[str, Any]:
        """What it remembers of earlier steps, for a checkpoint."""
        return {"running_values": self._running.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._running.restore(state.get("running_values", {}))

    def _q_plus(self, prompt: Prompt) -> float:
        field = self.config.q_plus_field
        if field is None:
            return self.config.q_plus
        value = prompt.info.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            found = f"is {value!r}" if field in prompt.info else "is missing"
            raise DataError(
                f"prompt {prompt.id!r}: the field {field!r} {found}, but algorithm.q_plus_field takes each prompt's "
                "budget from it; give the row a number from 0 to 1, or set algorithm.q_plus for all"
            )
        return float(value)

    def _shares(self, kinds: Sequence[str | None]) -> dict[str, float]:
        names = self.config.budget(self.config.q_plus).groups
        return {f"sampled/{name}": kinds.count(name) / len(kinds) for name in names} | {
            "malformed_frac": kinds.count(None) / len(kinds)
        }

    def _by_budget(self, batch: Judged) -> list[tuple[float, Judged]]:
        """The prompts of each budget, the smallest budget first."""
        if self.config.q_plus_field is None:
            return [(self.config.q_plus, batch)]
        parts: dict[float, list[tuple[Group, Sequence[Sample]]]] = {}
        for group, samples in batch:
            parts.setdefault(self._q_plus(group.prompt), []).append((group, samples))
        return sorted(parts.items())

    def _solved(self, q_plus: float, batch: Judged) -> Part:
        from llamarl.functional.budget import solve

        pool, budget, config = self._pool(batch), self.config.budget(q_plus), self.config
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
            correct=[reward_of(s) >= self.config.correct_from and s.is_satisfied is not False for _, s in responses],
            costs=None if self.config.mean_tokens is None else costs,
        )

    def _group(self, prompt: Prompt, sample: Sample) -> str | None:
        """Raises `DataError`, naming the prompt, for a group without a cap."""
        group, known = self._group_of(prompt, sample.completion), ["short", "long", *self.config.caps]
        if group is not None and group not in known:
            raise DataError(
                f"group function {self.config.groups!r} gave a completion of prompt {prompt.id!r} the group {group!r}, "
                f"which is not in the budget; return one of {', '.join(known)} or None, or set "
                f"algorithm.caps.{group}"
            )
        return group

    def _warn(self, parts: Sequence[Part]) -> None:
        """Says what keeps a step from training as the budget means it: once, until a step is free of it."""
        found = problems(parts, self.config)
        for kind, text in found.items():
            if kind not in self._warned:
                _log.warning(text)
        self._warned = set(found)


def problems(parts: Sequence[Part], config: IBPOConfig) -> dict[str, str]:
    """What is wrong with a step's programs, by kind: a sentence with what to do about it."""
    pools, solutions = [part.pool for part in parts], [part.solution for part in parts]
    prompts, rejected = sum(s.num_prompts for s in solutions), sum(s.num_rejected for s in solutions)
    statuses, found = {s.status for s in solutions}, {}
    if "infeasible" in statuses:
        found["infeasible"] = (
            f"algorithm.mean_tokens = {config.mean_tokens:g} is too low for a right short answer to every prompt that "
            f"has one; {prompts - rejected} of {prompts} prompts train, on their cheapest. Raise it"
        )
    if "cheapest" in statuses:
        found["cheapest"] = (
            f"the budget program found nothing within algorithm.time_limit_seconds = {config.time_limit_seconds:g}; "
            "only short answers train. Raise it"
        )
    if prompts and rejected == prompts:
        malformed, right = sum(pool.groups.count(None) for pool in pools), sum(sum(pool.correct) for pool in pools)
        found["rejected"] = (
            f"the budget program rejects all {prompts} prompts, so that nothing trains: of {sum(map(len, pools))} "
            f"responses {right} are right and {malformed} have no group (algorithm.groups = {config.groups!r})"
        )
    return found


def budget_metrics(parts: Sequence[Part], form: "Form") -> dict[str, float]:
    """What the programs spent, on what, and how they were solved; a value that is unknown is left out.

    `used/G` is the share of a capped group among the trained samples (or the prompts, by the form), `slack/G` what its
    cap leaves; `used/mean_cost` and `slack/mean_cost` are tokens. `sampled/G` is a group's share of all judged
    responses, `margin/G` its mean margin over prompts with responses of it and of another group. `rejected_frac` and
    `one_sided_frac` (prompts with fewer than two groups) are over prompts, `malformed_frac` over responses. The
    solver's are `solver_seconds`, `solver_gap` to the optimum, relative to it, and `is_fallback`, 1 where the cheapest
    choice stood in. All are over the prompts of all parts together.
    """
    pools, solutions = [part.pool for part in parts], [part.solution for part in parts]
    prompts, size = max(1, sum(s.num_prompts for s in solutions)), max(1, sum(map(len, pools)))
    bound = sum(abs(s.bound) for s in solutions)
    values = {
        "rejected_frac": sum(s.num_rejected for s in solutions) / prompts,
        "one_sided_frac": sum(s.num_one_sided for s in solutions) / prompts,
        "malformed_frac": sum(pool.groups.count(None) for pool in pools) / size,
        "solver_seconds": sum(s.seconds for s in solutions),
        "solver_gap": sum(s.gap for s in solutions) / max(1.0, bound),
        "is_fallback": float(any(s.is_fallback for s in solutions)),
    }
    counted = [s.num_prompts if form == "prompts" else sum(s.num_accepted.values()) for s in solutions]
    for name in solutions[0].spending if solutions else ():
        values[f"used/{name}"] = _mean([s.spending[name].used for s in solutions], counted)
        values[f"slack/{name}"] = _mean([s.spending[name].slack for s in solutions], counted)
    for group in solutions[0].mean_margins if solutions else ():
        values[f"sampled/{group}"] = sum(pool.groups.count(group) for pool in pools) / size
        values[f"margin/{group}"] = _mean(
            [s.mean_margins[group] for s in solutions], [s.num_compared[group] for s in solutions]
        )
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted mean; the plain one where nothing weighs."""
    if not any(weights):
        return fmean(values)
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    return fmean([value for value, _ in pairs], [weight for _, weight in pairs])
