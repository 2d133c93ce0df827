"""The controller's half of IBPO: from judged groups to the programs of their budgets, and to what trains."""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llamarl.algorithms.base import judged_groups, reward_of, train_sample
from llamarl.algorithms.running_values import RunningValues
from llamarl.core.algorithm import Credit
from llamarl.core.errors import DataError
from llamarl.core.records import Assignment, Group, Prompt, Sample
from llamarl.data.groups import load_group_function
from llamarl.functional.budget import (
    Budget,
    Pool,
    Solution,
    budget_metrics,
    find_problems,
    group_values,
    solve,
)

if TYPE_CHECKING:
    from llamarl.algorithms.ibpo import IBPOConfig

_log = logging.getLogger(__name__)

Judged = Sequence[tuple[Group, Sequence[Sample]]]
"""Groups and their judged samples."""


class Part(NamedTuple):
    """The prompts under one budget, and what their program made of them."""

    q_plus: float
    pool: Pool
    solution: Solution
    accepted: Sequence[tuple[Group, Sample]]


class IBPOCredit(Credit):
    """Picks the responses that the budget program accepts, solved once over the whole step's pool."""

    def __init__(self, config: "IBPOConfig") -> None:
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
        batch = judged_groups(groups)
        parts = [self._solve(q_plus, members) for q_plus, members in self._by_budget(batch)]
        samples = tuple(train_sample(sample, group, 1.0) for part in parts for group, sample in part.accepted)
        solved = [(part.pool, part.solution) for part in parts]
        metrics = budget_metrics(solved, self._config.form) | self._config.mask_metrics(groups)
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

    def _budget(self, q_plus: float) -> Budget:
        return Budget({"long": q_plus, **self._config.caps}, ("short",), self._config.mean_tokens)

    def _shares(self, kinds: Sequence[str | None]) -> dict[str, float]:
        names = self._budget(self._config.q_plus).groups
        return {f"sampled/{name}": kinds.count(name) / len(kinds) for name in names} | {
            "malformed_frac": kinds.count(None) / len(kinds)
        }

    def _by_budget(self, batch: Judged) -> list[tuple[float, Judged]]:
        """Splits the prompts by their budget, the smallest first."""
        if self._config.q_plus_field is None:
            return [(self._config.q_plus, batch)]
        parts: dict[float, list[tuple[Group, Sequence[Sample]]]] = {}
        for group, samples in batch:
            parts.setdefault(self._q_plus(group.prompt), []).append((group, samples))
        return sorted(parts.items())

    def _solve(self, q_plus: float, batch: Judged) -> Part:
        pool, budget, config = self._pool(batch), self._budget(q_plus), self._config
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

    def _remember(self, batch: Judged, pool: Pool, groups: Sequence[str]) -> None:
        found = group_values(pool, groups)
        for (group, _), counts, values in zip(batch, found.counts, found.values, strict=True):
            seen = {name: float(v) for name, n, v in zip(groups, counts, values, strict=True) if n}
            self._running.update(group.prompt.id, group.epoch, seen)

    def _pool(self, batch: Judged) -> Pool:
        """Lists the responses, with costs only where tokens are bounded: else the shortest right ones would train."""
        responses = [(index, sample) for index, (_, samples) in enumerate(batch) for sample in samples]
        costs = [float(sample.completion.trajectory.response_length) for _, sample in responses]
        return Pool(
            prompts=[index for index, _ in responses],
            groups=[self._group(batch[index][0].prompt, sample) for index, sample in responses],
            correct=[self._is_correct(sample) for _, sample in responses],
            costs=None if self._config.mean_tokens is None else costs,
        )

    def _is_correct(self, sample: Sample) -> bool:
        is_good = reward_of(sample) >= self._config.correct_from and sample.is_satisfied is not False
        return is_good and self._config.may_train(sample)

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

    def _warn(self, solved: Sequence[tuple[Pool, Solution]]) -> None:
        """Says what keeps a step from training as the budget means it: once, until a step is free of it."""
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
