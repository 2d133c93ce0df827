"""Meaning and denominator of each metric."""

import re
from dataclasses import dataclass
from typing import Literal

from llamarl.core import metric_names as names


@dataclass(frozen=True, slots=True)
class Metric:
    """The meaning of one metric."""

    title: str
    """Short, for a table or an axis."""
    meaning: str
    """One sentence, with the denominator of a mean or a share."""
    unit: str = ""
    better: Literal["up", "down", ""] = ""
    """The good direction; empty where neither is."""


METRICS: dict[str, Metric] = {
    names.REWARD: Metric("reward", "Mean combined reward over the scored samples of the step.", better="up"),
    names.REWARD_COUNT: Metric("scored samples", "Samples behind the reward's mean.", "samples"),
    names.REWARD_STD: Metric("reward spread", "Standard deviation of the reward over the scored samples of the step."),
    names.FRAC_ZERO_STD: Metric(
        "groups without signal", "Share of the step's groups whose rewards are all equal.", "share"
    ),
    names.RESPONSE_LENGTH: Metric("completion length", "Mean sampled tokens over the step's completions.", "tokens"),
    names.RESPONSE_LENGTH_MAX: Metric(
        "longest completion", "Most sampled tokens of a completion in the step.", "tokens"
    ),
    names.TRUNCATED: Metric("truncated", "Share of the step's completions that the token limit cut.", "share", "down"),
    names.STALENESS_MEAN: Metric(
        "staleness, mean", "Trainer version minus token version, mean over the step's sampled tokens.", "versions"
    ),
    names.STALENESS_MAX: Metric("staleness, max", "The same of the step's oldest token.", "versions"),
    names.MIXED_VERSIONS: Metric(
        "mixed versions", "Share of the step's completions sampled across a weight update.", "share"
    ),
    names.TOKENS: Metric("tokens", "Sampled tokens of the step's completions.", "tokens"),
    names.TOKENS_PER_SECOND: Metric(
        "tokens/s", "Sampled tokens of the step's batch over the step's wall time.", "tokens/s", "up"
    ),
    names.LOSS: Metric("loss", "The algorithm's loss over its own denominator."),
    names.ENTROPY: Metric("entropy", "Mean policy entropy over trained tokens.", "nats"),
    names.KL_REFERENCE: Metric("KL to reference", "Mean KL to the reference policy over trained tokens.", "nats"),
    names.RATIO_MEAN: Metric("ratio", "Mean of policy / behaviour over trained tokens; near 1 where both agree."),
    names.CLIP_LOW: Metric("clipped low", "Share of trained tokens whose ratio fell below the lower bound.", "share"),
    names.CLIP_HIGH: Metric("clipped high", "Share of trained tokens whose ratio passed the upper bound.", "share"),
    names.CLIP_DELTA: Metric(
        "dual-clipped", "Share of trained tokens that a negative advantage no longer pushes: `delta`.", "share"
    ),
    names.PPO_KL: Metric("old-new KL", "Mean KL from the behaviour policy over trained tokens.", "nats"),
    names.BEHAVIOR_WEIGHT: Metric(
        "behaviour weight",
        "Mean over trained tokens of what makes up for their age; with several updates a batch.",
    ),
    names.MISMATCH_KL: Metric(
        "mismatch KL", "KL between generator and trainer at equal weights, per token.", "nats", "down"
    ),
    names.MISMATCH_PROB_MAX: Metric("mismatch, max", "Largest probability gap, generator to trainer.", "", "down"),
    names.UPDATES: Metric("updates", "Optimizer updates applied in the step; 0 where none was.", "updates"),
    names.GRAD_NORM: Metric(
        "gradient norm", "Norm of the whole gradient before clipping, mean over the step's updates."
    ),
    names.GRAD_SPIKE: Metric(
        "gradient spikes", "Updates whose norm was far over the median of those before.", "", "down"
    ),
    names.LEARNING_RATE: Metric("learning rate", "Learning rate of the step."),
    names.TRAIN_TOKENS: Metric("tokens of the loss", "Tokens that the step's loss is counted over.", "tokens"),
    names.TRAIN_SAMPLES: Metric("samples of the loss", "Scored samples given to the trainer in the step.", "samples"),
    names.SAMPLES_WITHOUT_SIGNAL: Metric(
        "samples without signal", "Those of them that were skipped: their advantage is 0 and so is their gradient."
    ),
    names.SKIPPED_NONFINITE: Metric(
        "skipped updates", "Updates refused for a non-finite loss or gradient.", "", "down"
    ),
    names.VALUE_LOSS: Metric("critic's error", "Mean squared error of the critic over trained tokens.", "", "down"),
    names.VALUE_MEAN: Metric("value", "Mean of the critic's values over trained tokens."),
    names.RETURN_MEAN: Metric("return", "Mean return, which the critic is to predict, over trained tokens."),
    names.PAIR_MARGIN: Metric(
        "pair margin", "Mean over pairs of beta x (log-ratio of the better - of the worse).", "nats", "up"
    ),
    names.PAIR_ACCURACY: Metric("pair accuracy", "Share of pairs whose margin is above 0.", "share", "up"),
    names.PAIR_CHOSEN: Metric(
        "log-prob of the better", "Mean over pairs of the better sample's log-prob per token.", "nats", "up"
    ),
    names.MARGIN: Metric(
        "margin", "Mean over preference pairs of the chosen answer's reward minus the rejected one's.", better="up"
    ),
    names.POSITIVES: Metric("loved", "Share of the step's draws that are loved messages (love).", "share"),
    names.ACCURACY: Metric(
        "accuracy", "Share of the step's pairs or labelled rows that are told rightly.", "share", "up"
    ),
    names.REWARD_CHOSEN: Metric(
        "reward of the chosen",
        "Mean of beta log(policy / reference) over the chosen answers (dpo).",
        "nats",
        "up",
    ),
    names.REWARD_REJECTED: Metric(
        "reward of the rejected",
        "Mean of beta log(policy / reference) over the rejected answers (dpo).",
        "nats",
    ),
    names.KEPT: Metric(
        "kept", "Share that trains upwards: of judged samples with crpg, else of judged prompts.", "share", "up"
    ),
    names.SKIPPED_PROMPTS: Metric(
        "prompts skipped", "Judged prompts of the step from which nothing trains.", "prompts"
    ),
    names.FALLBACK: Metric(
        "fallbacks", "Share of judged prompts that train on their baseline response.", "share", "down"
    ),
    names.VIOLATIONS: Metric("violations", "Share of judged samples that break a constraint.", "share", "down"),
    names.UNJUDGED: Metric(
        "unjudged", "Share of all samples that could not be judged, and so left the loss.", "share", "down"
    ),
    names.MASKED: Metric(
        "masked", "Share of judged samples that were truncated and so left the loss.", "share", "down"
    ),
    names.CALIBRATED_REWARD: Metric(
        "calibrated reward", "Mean over judged samples, whether they keep to the constraints or not.", "", "up"
    ),
    names.REGULARIZED_REWARD: Metric(
        "regularised reward", "Mean over judged samples; the baseline that crpg subtracts.", "", "up"
    ),
    names.BEST_REWARD: Metric("best reward", "Mean over judged prompts of their best sample's reward.", "", "up"),
    names.REWARD_GAP: Metric("reward gap", "Mean over pairs of the better sample's reward minus the worse one's."),
    names.SEQUENCE_KL: Metric(
        "KL of completions",
        "Mean over judged samples of a completion's KL to the reference, as `kl` counts it.",
        "nats",
    ),
    names.KL_FACTOR_ZERO: Metric(
        "beyond the KL bound", "Share of judged samples whose KL is at least `kl_max`.", "share", "down"
    ),
    names.KL_FACTOR_ABOVE_ONE: Metric(
        "KL factor above 1", "Share of judged samples with a clearly negative KL estimate.", "share"
    ),
    names.TIME_STEP: Metric("step", "Wall time from one optimizer step to the next.", "s", "down"),
    names.TIME_GENERATE: Metric("generate", "Time of the step in which the busiest generator had work.", "s"),
    names.TIME_JUDGE: Metric("judge", "Time of the step in which judging was under way.", "s"),
    names.TIME_TRAIN: Metric("train", "Time of loss, gradient and optimizer step.", "s"),
    names.TIME_SYNC: Metric(
        "weight sync", "Longest time a generator took to fetch, load and prove the newest weights.", "s", "down"
    ),
    names.TIME_WAIT_BATCH: Metric("wait for batch", "Time the trainer waited for samples.", "s", "down"),
    names.DATA_ISSUED: Metric("prompts issued", "Prompts given to generators since the start.", "prompts"),
    names.DATA_FINISHED: Metric("prompts finished", "Prompts judged and waiting to train now.", "prompts"),
    names.DATA_TRAINED: Metric("prompts trained", "Prompts whose group was trained since the start.", "prompts"),
    names.DATA_DROPPED: Metric(
        "prompts dropped", "Prompts dropped, with a reason, since the start.", "prompts", "down"
    ),
    names.DATA_FAILED: Metric(
        "prompts failed", "Prompts dropped as `unscored`: fewer than two samples had a reward.", "prompts", "down"
    ),
    names.HELD_OUT_REWARD: Metric("held-out reward", "Mean reward over held-out prompts.", better="up"),
    names.HELD_OUT_COUNT: Metric("held-out samples", "Scored samples behind the held-out reward.", "samples"),
    names.HELD_OUT_LENGTH: Metric("held-out length", "Mean sampled tokens over the held-out completions.", "tokens"),
    names.HELD_OUT_SATISFIED: Metric(
        "held-out satisfied", "Share of the held-out samples that meet every constraint judge.", "share", "up"
    ),
    names.HELD_OUT_LOSS: Metric(
        "held-out loss", "Mean loss of a supervised training on the held-out rows.", "nats", "down"
    ),
    names.HELD_OUT_ACCURACY: Metric(
        "held-out accuracy", "Share of the held-out rows that are told rightly.", "share", "up"
    ),
    names.HELD_OUT_ACCURACY_LOW: Metric("accuracy, low", "Lower end of its 95% Wilson interval.", "", "up"),
    names.HELD_OUT_ACCURACY_HIGH: Metric("accuracy, high", "Upper end of its 95% Wilson interval.", "", "up"),
    names.HELD_OUT_ROWS: Metric("held-out rows", "Pairs or labelled rows behind the held-out accuracy.", "rows"),
    names.HELD_OUT_AUROC: Metric(
        "held-out AUROC",
        "Probability that a loved message, or a factual claim, scores above another, ties counted half.",
        "",
        "up",
    ),
    names.HELD_OUT_BACC: Metric(
        "held-out BAcc", "Mean of the two recalls of held-out claims, at the threshold best on them.", "", "up"
    ),
    names.HELD_OUT_MASS: Metric("label mass", "Mean probability of all label tokens behind the question.", "", "up"),
    names.HELD_OUT_AUROC_LOW: Metric("AUROC, low", "Lower end of its 95% interval, for users drawn at random."),
    names.HELD_OUT_AUROC_HIGH: Metric("AUROC, high", "Upper end of its 95% interval."),
    names.HELD_OUT_MARGIN: Metric("held-out margin", "Mean margin over the held-out pairs.", better="up"),
    names.HELD_OUT_LENGTH_CORRELATION: Metric(
        "length correlation", "Pearson correlation of reward and answer tokens over the held-out answers."
    ),
    names.HELD_OUT_CALIBRATION: Metric(
        "calibration error", "Expected gap between predicted and observed probability on held-out rows.", "", "down"
    ),
    names.HELD_OUT_TOKENS: Metric("held-out tokens", "Completion tokens behind the held-out loss of `sft`.", "tokens"),
    names.WATCH_REPETITION: Metric(
        "repeated phrases",
        "Share of four-word phrases that a completion had already said, mean over the step.",
        "share",
        "down",
    ),
    names.WATCH_ALARMS: Metric(
        "alarms", "Signs of reward hacking that hold now (docs/guides/reward-hacking.md).", "", "down"
    ),
    names.UNSCORED: Metric("unscored", "Share of the last 256 samples that have no reward.", "share", "down"),
    names.SATISFIED: Metric(
        "satisfied",
        "Share of samples that meet every constraint judge, over those whose constraints were judged.",
        "share",
        "up",
    ),
    names.DEGRADED: Metric("judges degraded", "1 while so many samples go unscored that the run stops.", "", "down"),
    names.PROBE_GAP: Metric("probe gap", "Largest log-prob gap on the probe, over generators.", "nats", "down"),
    names.PUBLISHED_BYTES: Metric(
        "published weights",
        "Size of the weights that one update brings a generator: the model's or its adapters'.",
        "B",
    ),
    names.NONFINITE: Metric("non-finite values", "Metrics of the record that were NaN or infinite.", "", "down"),
    names.POLICY_VERSION: Metric("policy version", "Steps behind the weights."),
}
"""Every fixed metric name. Judges, the watch and tasks make further ones, see `describe`."""

_JUDGE_METRICS = {
    "count": Metric("verdicts", "Scored verdicts of the judge since the step before, evaluation included.", "verdicts"),
    "mean": Metric("mean", "Mean score over the judge's scored verdicts.", better="up"),
    "pass_rate": Metric("pass rate", "Share of verdicts with a pass or fail that pass.", "share", "up"),
    "violation_rate": Metric("violations", "Share of verdicts with a pass or fail that fail.", "share", "down"),
    "abstain_rate": Metric("abstained", "Share of all verdicts that abstained.", "share"),
    "error_rate": Metric("failed", "Share of all verdicts that failed.", "share", "down"),
    "latency_p95": Metric("latency p95", "95th percentile of the judge's calls, each on one group.", "s", "down"),
    "canary_error_rate": Metric(
        "canaries misjudged",
        "Share of the judge's canaries that it judged wrongly when last tried, of those it judged.",
        "share",
        "down",
    ),
    "requests": Metric("requests", "Questions that an LLM judge put to its server.", "requests"),
    "retries": Metric("retries", "Further tries of those that were answered in the end.", "requests", "down"),
    "cost": Metric("cost", "What an LLM judge's answers cost, at the prices of its settings.", "dollars", "down"),
    "blocked": Metric("blocked", "Questions not put: the server was down, or the money was spent.", "requests", "down"),
    "cache_hit_rate": Metric(
        "cache hits", "Share of an LLM judge's questions, or a detector's claims, known already.", "share"
    ),
    "claims": Metric("claims", "Claims of a completion, on average, that a detector judged.", "claims"),
}
_JUDGE = re.compile(rf"(?P<eval>eval/)?judge/(?P<name>.+)/(?P<what>{'|'.join(_JUDGE_METRICS)})$")
_BUDGET = re.compile(r"algorithm/(?P<what>used|slack|sampled|margin)/(?P<group>.+)$")
_BUDGET_METRICS = {
    "used": Metric("trained share", "Share of the group among the responses that train (or its mean cost)."),
    "slack": Metric("slack", "What the group's cap leaves unused."),
    "sampled": Metric("sampled share", "Share of the group among all judged responses.", "share"),
    "margin": Metric("margin", "Mean margin of the group over prompts that also have another group."),
}
_SOLVER_METRICS = {
    "algorithm/rejected_frac": Metric("rejected", "Share of prompts that train nothing under the budget.", "share"),
    "algorithm/one_sided_frac": Metric(
        "one-sided", "Share of prompts whose responses are of one group or none.", "share"
    ),
    "algorithm/malformed_frac": Metric("malformed", "Share of responses that belong to no group.", "share", "down"),
    "algorithm/solver_seconds": Metric("solver", "Time of the budget program.", "s", "down"),
    "algorithm/solver_gap": Metric("solver gap", "Relative distance to the optimum that is not ruled out.", "", "down"),
    "algorithm/is_fallback": Metric(
        "fallback",
        "1 where the cheapest choice stood in for a solution.",
        better="down",
    ),
}
"""The metrics of runs under an inference budget."""
_OF_BUDGET = re.compile(r"algorithm/budget/(?P<budget>[^/]+)/(?P<rest>.+)$")
_HELD_OUT = re.compile(r"eval/(?P<rest>algorithm/.+)$")
_TASK = re.compile(r"task/(?P<name>[^/]+)/(?P<rest>.+)$")
_MONITOR_METRICS = {
    "value": Metric("now", "What the monitor counts, over the last `watch.window` steps."),
    "control": Metric("control", "The same in the control's responses."),
    "ratio": Metric("change", "How many times the control's it is, or `watch.floor`'s where that is more.", "times"),
    "ratio/low": Metric("change, low", "Lower end of the change's interval; the monitor warns only above 1.", "times"),
    "ratio/high": Metric("change, high", "Upper end of the change's interval; left out if unbounded.", "times"),
    "level": Metric("alarm", "0 quiet, 1 warns, 2 stops the run.", "", "down"),
}
_MONITOR = re.compile(rf"watch/monitor/(?P<name>[^/]+)/(?P<what>{'|'.join(_MONITOR_METRICS)})$")
_MEMORY = re.compile(rf"{names.PROCESS_MEMORY}/(?P<name>.+)$")
_DRIFT = re.compile(r"watch/(?P<signal>.+)/drift$")


def describe(name: str) -> Metric:
    """The meaning of a metric name; unknown names get their own name as the title."""
    if match := _TASK.match(name):
        inner = describe(match["rest"])
        return Metric(f"{match['name']}: {inner.title}", inner.meaning, inner.unit, inner.better)
    if match := _OF_BUDGET.match(name):
        inner = describe(f"algorithm/{match['rest']}")
        return Metric(f"q+ {match['budget']}: {inner.title}", inner.meaning, inner.unit, inner.better)
    if match := _HELD_OUT.match(name):
        inner = describe(match["rest"])
        return Metric(f"held-out, {inner.title}", inner.meaning, inner.unit, inner.better)
    if match := _MONITOR.match(name):
        what = _MONITOR_METRICS[match["what"]]
        return Metric(f"{match['name']}: {what.title}", what.meaning, what.unit, what.better)
    if match := _MEMORY.match(name):
        meaning = "Resident memory at the end of the step; pages that processes share count in each."
        return Metric(f"{match['name']}: memory", meaning, "bytes", "down")
    if match := _DRIFT.match(name):
        meaning = "Move since the first steps, in standard deviations of single samples then."
        return Metric(f"{match['signal']}: drift", meaning, "standard deviations")
    if match := _JUDGE.match(name):
        what = _JUDGE_METRICS[match["what"]]
        title = f"{'held-out, ' if match['eval'] else ''}{match['name']}: {what.title}"
        return Metric(title, what.meaning, what.unit, what.better)
    if match := _BUDGET.match(name):
        what = _BUDGET_METRICS[match["what"]]
        return Metric(f"{match['group']}: {what.title}", what.meaning, what.unit, what.better)
    return METRICS.get(name) or _SOLVER_METRICS.get(name) or Metric(name, "")
