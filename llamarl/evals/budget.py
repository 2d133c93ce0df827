"""Accuracy against inference budget: models, self-consistency and best-of-k on the same problems, as `results.json`.

    models.NAME.accuracy                    right samples; the mean over problems of the mean over a problem's samples
    models.NAME.budget.AXIS                 spent on a problem: `answers`, `completion_tokens`, `prompt_tokens`,
                                            `total_tokens` (both)
    models.NAME.groups, .levels             samples by response group, and everything by difficulty level
    baselines.NAME.self_consistency.K       accuracy and budget of the most frequent answer among K samples
    baselines.NAME.best_of.K                the same if the right one of K samples could be told
    baselines.NAME.gain.MODEL.AXIS          accuracy of the model minus self-consistency at the model's mean budget
    baselines.NAME.area.AXIS                mean accuracy of both frontiers over the budgets of self-consistency

K samples of a problem are one request: its prompt is paid once, K completions are. Every rate is `{"value", "low",
"high"}`; the ends bound the 95% percentile interval of a bootstrap over problems that draws the same problems for all,
so differences are paired. A value is null where it is unknown, such as tokens that a server does not report.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llamarl
from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt
from llamarl.evals.budget_curves import best_of_chance, frontier, frontier_area, interpolate, majority_chances
from llamarl.evals.budget_samples import Attempt, check_attempts
from llamarl.evals.groups import Bootstrap
from llamarl.evals.scores import or_none
from llamarl.functional.statistics import CONFIDENCE, percentile_interval, resample_sums
from llamarl.judges.voting import spelled_alike

AXES = ("answers", "completion_tokens", "total_tokens")
"""The units in which a budget is counted where models are compared."""
SPENDING = ("answers", "completion_tokens", "prompt_tokens", "total_tokens")

Attempts = Mapping[str, Sequence[Attempt]]
"""The attempts of one model, by problem id."""
Column = tuple[str, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The settings of a comparison.

    Raises:
        ConfigError: numbers that are not positive, or no baseline.
    """

    baselines: tuple[str, ...]
    """Models that self-consistency and best-of-k are computed for."""
    votes: tuple[int, ...] = (1, 2, 4, 8)
    """Rising; a curve starts with one vote, given or not."""
    best_of: tuple[int, ...] = (1, 2, 4, 8)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    should_merge_spellings: bool = True
    """True counts 1/2 and 0.5 as one answer of a vote, as in `judges.voting`; False counts equal texts only."""

    def __post_init__(self) -> None:
        for name in ("votes", "best_of"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes):
                raise ConfigError(f"{name}: got {sizes}; give numbers of samples, 1 or more")
        if not self.baselines:
            raise ConfigError("baselines: none; name at least one model")
        object.__setattr__(self, "votes", tuple(sorted({1, *self.votes})))
        object.__setattr__(self, "best_of", tuple(sorted({1, *self.best_of})))

    @property
    def num_needed(self) -> int:
        """Samples that each problem needs of a baseline."""
        return max(*self.votes, *self.best_of)


def budget_results(problems: Sequence[Prompt], attempts: Mapping[str, Attempts], plan: BudgetPlan) -> dict[str, Any]:
    """Everything but where the samples came from.

    Only problems count that every model answered: a baseline `plan.num_needed` times, any other at least once.

    Args:
        problems: all of them.
        attempts: by model.
        plan: what is compared.

    Raises:
        ConfigError: a baseline is no model.
        DataError: no problem is left.
    """
    for name in plan.baselines:
        if name not in attempts:
            raise ConfigError(f"baseline {name!r} is no model; choose from {', '.join(attempts)}")
    needed = {name: plan.num_needed if name in plan.baselines else 1 for name in attempts}
    used = check_attempts(attempts, needed)
    levels = {problem.id: level_of(problem) for problem in problems}
    table = _Table(used, attempts, plan)
    return {
        "benchmark": "budget",
        "llamarl": llamarl.__version__,
        "problems": {"all": len(problems), "used": len(used)},
        "votes": list(plan.votes),
        "best_of": list(plan.best_of),
        "bootstrap": {
            "seed": plan.bootstrap.seed,
            "num_resamples": plan.bootstrap.num_resamples,
            "confidence": CONFIDENCE,
            "unit": "problem",
        },
        "models": {
            name: {
                "accuracy": table.rate(name, "accuracy"),
                "budget": {axis: table.rate(name, axis) for axis in SPENDING},
                "groups": _by_group([a for id in used for a in by_id[id]]),
                "levels": _by_level(used, by_id, levels),
                "samples": _counts(by_id),
            }
            for name, by_id in attempts.items()
        },
        "baselines": {name: _baseline(table, name, plan) for name in plan.baselines},
    }


def level_of(problem: Prompt) -> str | None:
    """The difficulty in `info.level`, as text."""
    level = problem.info.get("level")
    return None if level is None else str(level)


class _Table:
    """One row per problem, one column per quantity; means over problems, and over the same resampled problems."""

    def __init__(self, ids: Sequence[str], attempts: Mapping[str, Attempts], plan: BudgetPlan) -> None:
        columns: dict[Column, list[float]] = {}
        for id in ids:
            for name, by_id in attempts.items():
                judged = [attempt for attempt in by_id[id] if attempt.is_right is not None]
                for column, value in _row(judged, plan if name in plan.baselines else None).items():
                    columns.setdefault((name, *column), []).append(value)
        table = np.array(list(columns.values())).T
        drawn = resample_sums(table, plan.bootstrap.seed, plan.bootstrap.num_resamples) / len(ids)
        self.models = list(attempts)
        self._index = {column: number for number, column in enumerate(columns)}
        self._values = np.vstack([table.mean(axis=0), drawn])
        self._has_interval = len(ids) > 1

    def values(self, *column: str) -> Floats:
        """[1 + resamples]: the mean, then that of each resample."""
        return np.asarray(self._values[:, self._index[column]])

    def curve(self, name: str, kind: str, quantity: str, sizes: Sequence[int]) -> Floats:
        """[1 + resamples, sizes]."""
        return np.stack([self.values(name, kind, str(size), quantity) for size in sizes], axis=-1)

    def rate(self, *column: str) -> dict[str, float | None]:
        """A mean with its interval."""
        return self.rate_of(self.values(*column))

    def rate_of(self, values: Floats) -> dict[str, float | None]:
        """A quantity with its interval, from its value and those of the resamples."""
        low, high = (percentile_interval(values[1:]) if self._has_interval else None) or (None, None)
        return {"value": or_none(values[0]), "low": low, "high": high}


def _row(judged: Sequence[Attempt], plan: BudgetPlan | None) -> dict[Column, float]:
    """One problem's quantities of one model."""
    spent = {axis: _mean_spending(judged, axis) for axis in SPENDING}
    num_right = sum(bool(attempt.is_right) for attempt in judged)
    row: dict[Column, float] = {("accuracy",): num_right / len(judged), **{(a,): value for a, value in spent.items()}}
    if plan is None:
        return row
    chances = majority_chances(*_tally(judged, plan.should_merge_spellings), len(judged), plan.votes[-1])
    found = [("self_consistency", k, chances[k - 1]) for k in plan.votes]
    found += [("best_of", k, best_of_chance(len(judged), num_right, k)) for k in plan.best_of]
    for kind, k, accuracy in found:
        row[kind, str(k), "accuracy"] = accuracy
        for axis in SPENDING:
            completion = spent["answers" if axis == "answers" else "completion_tokens"]
            prompt = spent["prompt_tokens"] if axis in ("prompt_tokens", "total_tokens") else 0.0
            row[kind, str(k), axis] = prompt if axis == "prompt_tokens" else prompt + k * completion
    return row


def _tally(judged: Sequence[Attempt], should_merge_spellings: bool = True) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Samples of each right and of each wrong answer. Equal answers with unequal verdicts count as two answers."""
    stated = [attempt.answer for attempt in judged]
    answers = spelled_alike(stated) if should_merge_spellings else stated
    pairs = zip(answers, (attempt.is_right for attempt in judged), strict=True)
    counts = Counter(pair for pair in pairs if pair[0] is not None)
    right, wrong = (sorted(count for (_, r), count in counts.items() if r is is_right) for is_right in (True, False))
    return tuple(right), tuple(wrong)


def _mean_spending(attempts: Sequence[Attempt], axis: str) -> float:
    """NaN where no sample knows it."""
    known = [value for attempt in attempts if (value := _spending(attempt, axis)) is not None]
    return fmean(known) if known else float("nan")


def _spending(attempt: Attempt, axis: str) -> float | None:
    if axis == "answers":
        return attempt.num_answers
    if axis != "total_tokens":
        return attempt.prompt_tokens if axis == "prompt_tokens" else attempt.completion_tokens
    if attempt.prompt_tokens is None or attempt.completion_tokens is None:
        return None
    return attempt.prompt_tokens + attempt.completion_tokens


def _by_group(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Share, accuracy and spending of each response group; `none` is malformed or cut."""
    judged = [attempt for attempt in attempts if attempt.is_right is not None]
    names = sorted({attempt.group or "none" for attempt in judged}, key=lambda name: (name == "none", name))
    found = {}
    for name in names:
        mine = [attempt for attempt in judged if (attempt.group or "none") == name]
        found[name] = {"share": len(mine) / len(judged), **_summary(mine)}
    return found


def _by_level(ids: Sequence[str], by_id: Attempts, levels: Mapping[str, str | None]) -> dict[str, Any]:
    """Allocation by difficulty: of the samples of a level's problems. Empty where the data has no levels."""
    found: dict[str, Any] = {}
    for level in sorted({level for id in ids if (level := levels[id]) is not None}, key=_natural):
        mine = [id for id in ids if levels[id] == level]
        attempts = [attempt for id in mine for attempt in by_id[id] if attempt.is_right is not None]
        shares = {name: group["share"] for name, group in _by_group(attempts).items()}
        found[level] = {"problems": len(mine), "shares": shares, **_summary(attempts)}
    return found


def _natural(text: str) -> tuple[int, str]:
    """`Level 2` before `Level 10`."""
    digits = "".join(character for character in text if character.isdigit())
    return (int(digits) if digits else -1, text)


def _summary(attempts: Sequence[Attempt]) -> dict[str, Any]:
    accuracy = fmean(bool(attempt.is_right) for attempt in attempts)
    return {"accuracy": accuracy, **{axis: or_none(_mean_spending(attempts, axis)) for axis in SPENDING}}


def _counts(by_id: Attempts) -> dict[str, Any]:
    """The number of samples, and of those that are in no rate by the reason."""
    attempts = [attempt for each in by_id.values() for attempt in each]
    judged = [attempt for attempt in attempts if attempt.is_right is not None]
    return {
        "asked": len(attempts),
        "judged": len(judged),
        "cut": sum(attempt.is_cut for attempt in judged),
        "without_answer": sum(attempt.answer is None for attempt in judged),
        "without_group": sum(attempt.group is None for attempt in judged),
        "left_out": dict(Counter(attempt.problem for attempt in attempts if attempt.problem).most_common()),
    }


def _baseline(table: _Table, name: str, plan: BudgetPlan) -> dict[str, Any]:
    """Curves of one model, and how the others compare with its self-consistency."""
    others = table.models
    return {
        **{
            kind: {
                str(k): {
                    "accuracy": table.rate(name, kind, str(k), "accuracy"),
                    "budget": {axis: table.rate(name, kind, str(k), axis) for axis in SPENDING},
                }
                for k in sizes
            }
            for kind, sizes in (("self_consistency", plan.votes), ("best_of", plan.best_of))
        },
        "gain": {
            other: {axis: _gain(table, other, name, axis, plan.votes) for axis in AXES}
            for other in others
            if other != name
        },
        "area": {axis: _area(table, others, name, axis, plan.votes) for axis in AXES},
    }


def _gain(table: _Table, model: str, baseline: str, axis: str, votes: Sequence[int]) -> dict[str, Any]:
    """Accuracy minus that of the baseline's votes at the same mean budget; `where` the budget lies on their curve."""
    budget = table.values(model, axis)
    budgets, accuracies = (table.curve(baseline, "self_consistency", q, votes) for q in (axis, "accuracy"))
    unknown = {"value": None, "low": None, "high": None, "opponent": None}
    if np.isnan(budget[0]) or np.isnan(budgets[0]).any():
        return {**unknown, "where": "unknown"}
    # Equal budgets are means of the same numbers in another order, and differ by rounding: 1e-9 lets them pass.
    if budget[0] > budgets[0, -1] * (1 + 1e-9):
        return {**unknown, "where": "above"}
    opponent = interpolate(budget, budgets, accuracies)
    where = "below" if budget[0] < budgets[0, 0] * (1 - 1e-9) else "inside"
    rate = table.rate_of(table.values(model, "accuracy") - opponent)
    return {**rate, "opponent": float(opponent[0]), "where": where}


def _area(table: _Table, models: Sequence[str], baseline: str, axis: str, votes: Sequence[int]) -> dict[str, Any]:
    """Areas under the frontiers of all models and of the baseline's votes, over the budgets of those votes."""
    budgets, accuracies = (table.curve(baseline, "self_consistency", q, votes) for q in (axis, "accuracy"))
    points_x = np.stack([table.values(model, axis) for model in models], axis=-1)
    points_y = np.stack([table.values(model, "accuracy") for model in models], axis=-1)
    if len(votes) < 2 or np.isnan(budgets).any() or np.isnan(points_x).any():
        return dict.fromkeys(("low", "high", "models", "self_consistency", "difference", "frontier"))
    ends = list(zip(budgets[:, 0].tolist(), budgets[:, -1].tolist(), strict=True))
    areas = [
        np.array([frontier_area(x, y, *end) for x, y, end in zip(xs.tolist(), ys.tolist(), ends, strict=True)])
        for xs, ys in ((points_x, points_y), (budgets, accuracies))
    ]
    return {
        "low": ends[0][0],
        "high": ends[0][1],
        "models": table.rate_of(areas[0]),
        "self_consistency": table.rate_of(areas[1]),
        "difference": table.rate_of(areas[0] - areas[1]),
        "frontier": frontier(points_x[0].tolist(), points_y[0].tolist()),
    }
