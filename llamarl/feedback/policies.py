"""The offline evaluator: how often users would love what each policy answers, on one set of prompts.

    scores = score_policies({"control": "control.json", "new": "new.json"}, reward_model="love")
    scores.summarize()                              # mean corrected P[Love] of each, with an interval
    scores.compare("control")                       # each policy's change against one of them, prompt by prompt
    correlate_online(scores, {"control": 0.018, ...})        # Pearson's r with the love rates that were seen online

A file of responses is what `llamarl generate --json` prints, or rows of {prompt, completion} as `llamarl judge run`
reads them. Several responses to a prompt count as their mean. Intervals are 95%, from a bootstrap over prompts: the
same prompts are drawn for all policies.

Han et al., "Reinforcement Learning from User Feedback" (arXiv 2505.14946), section 3: ten policies on one fixed set of
prompts, r = 0.95 with the change of their love rates online. With as few policies r is known badly: see its interval.

Shape legend: P policies, Q prompts.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Message
from llamarl.data.rows import RowError, check_text, excerpt, read_turns
from llamarl.functional.preference import calibrated_reward
from llamarl.functional.statistics import fisher_interval, pearson, percentile_interval, resample_sums
from llamarl.models.checkpoint import load_config
from llamarl.monitors.responses import response_rows
from llamarl.report.files import read_json, read_jsonl, write_json
from llamarl.report.summary import SUMMARY_FILE
from llamarl.training.love_report import Prior
from llamarl.training.objectives.love import PRIOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamarl.feedback.settings import Evaluate

Interval = tuple[float, float]
Responses = Mapping[str, Sequence[str]]
"""The responses of a policy by prompt, which is written as JSON of its messages."""
Source = str | Path | Iterable[Mapping[str, Any]]
OnProgress = Callable[[int, int], None]
Row = tuple[str, str, str]
"""A policy, a prompt as JSON of its messages, and a response."""
AT_ONCE = 1024
"""Responses that are encoded and scored together: more of similar length, fewer padding tokens."""
LEAST_POLICIES = 3
"""Two points lie on a line always."""
SHOWN_PROMPTS = 3
"""The number of missing prompts that are named; the rest is counted."""


@dataclass(frozen=True)
class PolicyScores:
    """The corrected probability of love of each policy's response to each prompt."""

    policies: tuple[str, ...]
    prompts: tuple[str, ...]
    """JSON of each prompt's messages."""
    probabilities: "NDArray[Any]"
    """[P, Q] mean over a policy's responses to the prompt."""
    lengths: "NDArray[Any]"
    """[P, Q] characters, mean likewise."""
    responses: tuple[int, ...]
    """[P] responses of each policy."""
    prior: Prior
    """The prior by which raw logits were corrected."""

    def summarize(self, seed: int = 0) -> dict[str, dict[str, Any]]:
        """The mean corrected probability `score` of each policy with its interval, counts, and mean length."""
        means = self._resample(self.probabilities, seed)
        return {
            name: {
                "score": float(self.probabilities[place].mean()),
                "interval": percentile_interval(means[:, place]),
                "prompts": len(self.prompts),
                "responses": self.responses[place],
                "mean_characters": float(self.lengths[place].mean()),
            }
            for place, name in enumerate(self.policies)
        }

    def compare(self, control: str, seed: int = 0) -> dict[str, dict[str, Any]]:
        """The relative change of each other policy's mean score against the control's, with its interval.

        Raises:
            ConfigError: the control is none of the policies.
        """
        if control not in self.policies:
            raise ConfigError(f"control={control!r}: the policies are {', '.join(self.policies)}")
        base = self.policies.index(control)
        means, whole = self._resample(self.probabilities, seed), self.probabilities.mean(axis=1)
        return {
            name: {
                "difference": float(whole[place] - whole[base]),
                "difference_interval": percentile_interval(means[:, place] - means[:, base]),
                "relative_change": float(whole[place] / whole[base] - 1.0),
                "relative_interval": percentile_interval(means[:, place] / means[:, base] - 1.0),
            }
            for place, name in enumerate(self.policies)
            if place != base
        }

    def _resample(self, values: "NDArray[Any]", seed: int) -> "NDArray[Any]":
        """[resamples, P] means over prompts drawn with replacement."""
        return resample_sums(values.T, seed) / len(self.prompts)


def evaluate(settings: "Evaluate", *, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Scores the policies' responses; writes `evaluation.json`, `evaluation.png` and `report.html` to `out`.

    Args:
        settings: the policies, their P[Love], and what else is known.
        on_progress: called with the responses scored so far, and all.

    Raises:
        DataError: a bad file; policies that answered different prompts.
        ConfigError: no P[Love], or love rates of fewer than three policies.
    """
    online = None if settings.online is None else read_online(settings.online)
    if online is not None:
        check_online(online, list(settings.policies))
    scores = score_policies(settings.policies, settings.reward_model, device=settings.device, on_progress=on_progress)
    result: dict[str, Any] = {
        "reward_model": settings.reward_model,
        "base_rate": scores.prior.base_rate,
        "prompts": len(scores.prompts),
        "policies": scores.summarize(settings.seed),
        "changes": {"against": scores.policies[0], "policies": scores.compare(scores.policies[0], settings.seed)},
        "notes": find_doubts(settings.reward_model),
    }
    if online is not None:
        result["online"] = correlate_online(scores, online)
    if settings.out is not None:
        from llamarl.feedback.evaluation_report import build_evaluation_page
        from llamarl.report.page import write_page
        from llamarl.report.policy_plots import plot_policies

        settings.out.mkdir(parents=True, exist_ok=True)
        plot_policies(settings.out / "evaluation.png", result)
        write_json(settings.out / "evaluation.json", result)
        write_page(settings.out / "report.html", build_evaluation_page(result))
    return result


def score_policies(
    policies: Mapping[str, Source],
    reward_model: str | Path,
    *,
    device: str = "auto",
    batch_tokens: int = 16384,
    on_progress: OnProgress | None = None,
) -> PolicyScores:
    """Scores every response of every policy with a P[Love] that `fit` trained.

    Args:
        policies: a file or rows of responses of each, by the policy's name.
        reward_model: directory of a `fit`, or of a checkpoint.
        device: as torch names it, or `auto`.
        batch_tokens: most tokens of one forward pass.
        on_progress: called with the responses scored so far, and all.

    Raises:
        DataError: a bad file, or policies that did not answer the same prompts; names what is missing.
        ConfigError: no policy, or a checkpoint that is no P[Love].
    """
    import numpy as np

    if not policies:
        raise ConfigError("policies: none; give the responses of at least one, as NAME=FILE")
    answers = {name: read_responses(source) for name, source in policies.items()}
    prompts = _shared_prompts(answers)
    scorer = _Scorer(reward_model, device, batch_tokens)
    rows = [(name, prompt, text) for name, of in answers.items() for prompt in prompts for text in of[prompt]]
    chances = iter(scorer.score(rows, on_progress))
    probabilities = [[fmean(islice(chances, len(of[each]))) for each in prompts] for of in answers.values()]
    lengths = [[sum(map(len, of[each])) / len(of[each]) for each in prompts] for of in answers.values()]
    return PolicyScores(
        policies=tuple(answers),
        prompts=prompts,
        probabilities=np.array(probabilities),
        lengths=np.array(lengths),
        responses=tuple(sum(map(len, of.values())) for of in answers.values()),
        prior=scorer.prior,
    )


def read_responses(source: Source) -> Responses:
    """Reads the responses of one policy.

    Args:
        source: the output of `llamarl generate --json`; or JSON lines, Parquet, CSV or rows of {prompt, completion}.

    Raises:
        DataError: no such file, or a bad row, with its place.
    """
    found: dict[str, list[str]] = {}
    for name, line, row in response_rows(source):
        try:
            if isinstance(row, RowError):
                raise row
            prompt, texts = _read_response(row)
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
        found.setdefault(json.dumps(prompt, ensure_ascii=False, sort_keys=True), []).extend(texts)
    if not found:
        raise DataError(f"{source if isinstance(source, str | Path) else 'rows'}: no responses")
    return found


def read_prior(reward_model: str | Path) -> tuple[str, Prior]:
    """The checkpoint of a `fit`, or a checkpoint itself, and the prior that its logits were trained with.

    Raises:
        ConfigError: it was not made by `llamarl feedback fit`.
        CheckpointError: no checkpoint.
    """
    path = Path(reward_model)
    path = path / "model" if (path / "model" / "config.json").exists() else path
    prior = load_config(path).to_dict().get(PRIOR)
    if prior is None:
        raise ConfigError(
            f"{path}: no P[Love]: its config.json has no {PRIOR!r}, which says how often messages are loved; make one "
            "with llamarl feedback fit"
        )
    return str(path), Prior(**prior)


def find_doubts(reward_model: str | Path) -> list[str]:
    """Sentences on why a P[Love] may tell nothing, by what its `fit` measured on later messages.

    Args:
        reward_model: the directory of a `fit`, or the checkpoint in it. Of a checkpoint alone nothing is known.
    """
    path = Path(reward_model)
    summary = next((place / SUMMARY_FILE for place in (path, path.parent) if (place / SUMMARY_FILE).is_file()), None)
    held_out = read_json(summary).get("held_out") if summary is not None else None
    if not isinstance(held_out, Mapping) or "auroc" not in held_out:
        return []
    interval = held_out.get("auroc_interval")
    if interval is not None and interval[0] > 0.5:
        return []
    found = "its AUROC could not be measured" if interval is None else f"AUROC {interval[0]:.3f} to {interval[1]:.3f}"
    return [f"{reward_model} was not shown to tell loved replies from others ({found}); its scores may mean nothing"]


def read_online(source: str | Path) -> dict[str, float]:
    """Love rates by policy, from JSON lines or CSV of {policy, rate}.

    Raises:
        DataError: a bad row, with its place.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: no such file; give JSON lines or CSV of policy and rate")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: Sequence[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        rows = read_jsonl(path)
    rates: dict[str, float] = {}
    for number, row in enumerate(rows, start=1):
        name, rate = row.get("policy"), _rate(row.get("rate"))
        if not isinstance(name, str) or not name or rate is None:
            raise DataError(f"{path}, row {number}: {excerpt(dict(row))}; give policy, a name, and rate, from 0 to 1")
        if name in rates:
            raise DataError(f"{path}, row {number}: a second rate of policy {name!r}; keep one")
        rates[name] = rate
    return rates


def check_online(online: Mapping[str, float], policies: Sequence[str]) -> None:
    """Raises `ConfigError` unless every policy has a rate, and there are at least three."""
    if len(policies) < LEAST_POLICIES:
        raise ConfigError(
            f"online: {len(policies)} policies, and a correlation takes at least {LEAST_POLICIES}, better ten; give "
            "more, or leave --online out"
        )
    if missing := [name for name in policies if name not in online]:
        has = ", ".join(sorted(online))
        raise ConfigError(f"online: no love rate of {', '.join(map(repr, missing))}, only of {has}; add it")


def correlate_online(scores: PolicyScores, online: Mapping[str, float]) -> dict[str, Any]:
    """Pearson's r of the policies' mean scores and their love rates online, with Fisher's interval.

    Raises:
        ConfigError: fewer than three policies, or one without a rate.
    """
    check_online(online, scores.policies)
    means, rates = [float(row.mean()) for row in scores.probabilities], [online[name] for name in scores.policies]
    r = pearson(means, rates)
    return {
        "pearson": r,
        "pearson_interval": None if r is None else fisher_interval(r, len(rates)),
        "policies": len(rates),
        "rates": dict(zip(scores.policies, rates, strict=True)),
        "unused": sorted(set(online) - set(scores.policies)),
    }


class _Scorer:
    """Corrected probabilities of responses."""

    def __init__(self, reward_model: str | Path, device: str, batch_tokens: int) -> None:
        from llamarl.models.device import resolve_device
        from llamarl.scoring.classifier import LazyClassifier

        path, self.prior = read_prior(reward_model)
        self._classifier = LazyClassifier(path, device=resolve_device(device), batch_tokens=batch_tokens)

    def score(self, rows: Sequence[Row], on_progress: OnProgress | None) -> Iterator[float]:
        """The corrected probability of each response, in order."""
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            if on_progress is not None:
                on_progress(start, len(rows))
            logits = self._classifier([self._encode(*row) for row in part])
            if on_progress is not None:
                on_progress(start + len(part), len(rows))
            yield from (calibrated_reward(logit + self.prior.offset) for (logit,) in logits)

    def _encode(self, policy: str, prompt: str, text: str) -> tuple[int, ...]:
        """Token ids of a response with its prompt. Raises `DataError` where the model cannot take them."""
        messages: list[Message] = json.loads(prompt)
        try:
            ids = self._classifier.encode(messages, text)
        except ConfigError as error:
            raise DataError(f"policy {policy!r}, prompt {prompt:.80}: {error}") from None
        if problem := self._classifier.why_too_long(ids):
            raise DataError(f"policy {policy!r}, prompt {prompt:.80}: {problem}; shorten the responses")
        return ids


def _read_response(row: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """Prompt and responses of a row. Raises `RowError`."""
    if "prompt" not in row:
        raise RowError("missing_field", "prompt", f"fields are {sorted(row)}", "give prompt and completion")
    given = row.get("completions", row.get("completion", row.get("response")))
    items = given if isinstance(given, list) else [given]
    found = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise RowError("bad_completion", "completion", f"got {excerpt(given)}", "give the response, or a list of them")
    for text in texts:
        check_text(text, "completion")
    return read_turns(row["prompt"], "prompt", "user"), texts


def _shared_prompts(answers: Mapping[str, Responses]) -> tuple[str, ...]:
    """The prompts of all policies. Raises `DataError` where one lacks some."""
    union = list(dict.fromkeys(prompt for responses in answers.values() for prompt in responses))
    for name, responses in answers.items():
        missing = [prompt for prompt in union if prompt not in responses]
        if missing:
            shown = "; ".join(excerpt(json.loads(prompt)[-1].get("content", "")) for prompt in missing[:SHOWN_PROMPTS])
            more = f"; and {len(missing) - SHOWN_PROMPTS} more" if len(missing) > SHOWN_PROMPTS else ""
            raise DataError(
                f"policy {name!r} did not answer {len(missing)} of {len(union)} prompts that another did: {shown}{more}"
                "; policies are compared on the same prompts"
            )
    return tuple(union)


def _rate(value: Any) -> float | None:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if 0.0 <= rate <= 1.0 else None
