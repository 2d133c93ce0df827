"""The metric names this package writes, what each means and what it is divided by."""

import re
from dataclasses import dataclass
from typing import Literal

REWARD = "rollout/reward/mean"
REWARD_COUNT = "rollout/reward/count"
REWARD_STD = "rollout/reward/std"
FRAC_ZERO_STD = "rollout/frac_zero_std"
RESPONSE_LENGTH = "rollout/response_len/mean"
RESPONSE_LENGTH_MAX = "rollout/response_len/max"
TRUNCATED = "rollout/truncated_frac"
STALENESS_MEAN = "rollout/staleness/mean"
STALENESS_MAX = "rollout/staleness/max"
MIXED_VERSIONS = "rollout/mixed_version_frac"
TOKENS = "rollout/tokens"
TOKENS_PER_SECOND = "perf/tokens_per_second"
LOSS = "train/loss"
ENTROPY = "train/entropy"
KL_REFERENCE = "train/kl_ref"
RATIO_MEAN = "train/ratio/mean"
CLIP_LOW = "train/clip_frac/low"
CLIP_HIGH = "train/clip_frac/high"
PPO_KL = "train/ppo_kl"
MISMATCH_KL = "train/mismatch_kl"
MISMATCH_PROB_MAX = "train/mismatch_prob_max"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/lr"
GRAD_SPIKE = "train/grad_spike"
SKIPPED_NONFINITE = "train/skipped_nonfinite"
VALUE_LOSS = "train/value_loss"
VALUE_MEAN = "train/value/mean"
RETURN_MEAN = "train/return/mean"
PAIR_MARGIN = "train/pair/margin"
PAIR_ACCURACY = "train/pair/accuracy"
PAIR_CHOSEN = "train/pair/chosen_logprob"
MARGIN = "train/margin"
ACCURACY = "train/accuracy"
REWARD_CHOSEN = "train/rewards/chosen"
REWARD_REJECTED = "train/rewards/rejected"
KEPT = "algorithm/kept_frac"
SKIPPED_PROMPTS = "algorithm/skipped_prompts"
FALLBACK = "algorithm/fallback_frac"
VIOLATIONS = "algorithm/violation_rate"
UNJUDGED = "algorithm/unjudged_frac"
CALIBRATED_REWARD = "algorithm/calibrated_reward/mean"
REGULARIZED_REWARD = "algorithm/regularized_reward/mean"
BEST_REWARD = "algorithm/best_reward/mean"
REWARD_GAP = "algorithm/reward_gap/mean"
SEQUENCE_KL = "algorithm/kl/mean"
KL_FACTOR_ZERO = "algorithm/kl_factor/zero_frac"
KL_FACTOR_ABOVE_ONE = "algorithm/kl_factor/above_one_frac"
TRAIN_TOKENS = "train/tokens"
TRAIN_SAMPLES = "train/samples"
SAMPLES_WITHOUT_SIGNAL = "train/samples_without_signal"
TIME_STEP = "time/step"
TIME_GENERATE = "time/generate"
TIME_JUDGE = "time/judge"
TIME_TRAIN = "time/train"
TIME_SYNC = "time/sync"
TIME_WAIT_BATCH = "time/wait_batch"
DATA_ISSUED = "data/issued"
DATA_FINISHED = "data/finished"
DATA_TRAINED = "data/trained"
DATA_DROPPED = "data/dropped"
DATA_FAILED = "data/failed"
HELD_OUT_REWARD = "eval/reward/mean"
HELD_OUT_COUNT = "eval/reward/count"
HELD_OUT_LENGTH = "eval/response_len/mean"
HELD_OUT_SATISFIED = "eval/satisfied_frac"
HELD_OUT_LOSS = "eval/loss"
HELD_OUT_ACCURACY = "eval/accuracy"
HELD_OUT_MARGIN = "eval/margin/mean"
HELD_OUT_LENGTH_CORRELATION = "eval/length_correlation"
HELD_OUT_CALIBRATION = "eval/calibration_error"
HELD_OUT_TOKENS = "eval/tokens"
UNSCORED = "judge/unscored_frac"
SATISFIED = "judge/satisfied_frac"
DEGRADED = "judge/is_degraded"
WATCH_REPETITION = "watch/repetition"
WATCH_ALARMS = "watch/alarms"
PROBE_GAP = "weights/probe_gap"
NONFINITE = "nonfinite"
POLICY_VERSION = "policy_version"


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric means."""

    title: str
    """Short, for a table or an axis."""
    meaning: str
    """One sentence, with the denominator of a mean or a share."""
    unit: str = ""
    better: Literal["up", "down", ""] = ""
    """Which direction is good; empty where neither is."""


METRICS: dict[str, Metric] = {
    REWARD: Metric("reward", "Mean combined reward over the scored samples of the step.", better="up"),
    REWARD_COUNT: Metric("scored samples", "Samples behind the reward's mean.", "samples"),
    REWARD_STD: Metric("reward spread", "Standard deviation of the reward over the scored samples of the step."),
    FRAC_ZERO_STD: Metric("groups without signal", "Share of the step's groups whose rewards are all equal."),
    RESPONSE_LENGTH: Metric("completion length", "Mean sampled tokens over the step's completions.", "tokens"),
    RESPONSE_LENGTH_MAX: Metric("longest completion", "Most sampled tokens of a completion in the step.", "tokens"),
    TRUNCATED: Metric("truncated", "Share of the step's completions that the token limit cut.", better="down"),
    STALENESS_MEAN: Metric(
        "staleness, mean", "Trainer version minus token version, mean over the step's sampled tokens.", "versions"
    ),
    STALENESS_MAX: Metric("staleness, max", "The same of the step's oldest token.", "versions"),
    MIXED_VERSIONS: Metric("mixed versions", "Share of the step's completions sampled across a weight update."),
    TOKENS: Metric("tokens", "Sampled tokens of the step's completions.", "tokens"),
    TOKENS_PER_SECOND: Metric(
        "tokens/s", "Sampled tokens of the step's batch over the step's wall time.", "tokens/s", "up"
    ),
    LOSS: Metric("loss", "The algorithm's loss over its own denominator."),
    ENTROPY: Metric("entropy", "Mean policy entropy over trained tokens.", "nats"),
    KL_REFERENCE: Metric("KL to reference", "Mean KL to the reference policy over trained tokens.", "nats"),
    RATIO_MEAN: Metric("ratio", "Mean of policy / behaviour over trained tokens; near 1 where both agree."),
    CLIP_LOW: Metric("clipped low", "Share of trained tokens whose ratio fell below the lower bound."),
    CLIP_HIGH: Metric("clipped high", "Share of trained tokens whose ratio passed the upper bound."),
    PPO_KL: Metric("old-new KL", "Mean KL from the behaviour policy over trained tokens.", "nats"),
    MISMATCH_KL: Metric("mismatch KL", "KL between generator and trainer at equal weights, per token.", "nats", "down"),
    MISMATCH_PROB_MAX: Metric("mismatch, max", "Largest probability gap, generator to trainer.", "", "down"),
    GRAD_NORM: Metric("gradient norm", "Norm of the whole gradient before clipping."),
    GRAD_SPIKE: Metric("gradient spike", "1 where the norm was far over the median of the steps before.", "", "down"),
    LEARNING_RATE: Metric("learning rate", "Learning rate of the step."),
    TRAIN_TOKENS: Metric("tokens of the loss", "Tokens that the step's loss is counted over.", "tokens"),
    TRAIN_SAMPLES: Metric("samples of the loss", "Scored samples given to the trainer in the step.", "samples"),
    SAMPLES_WITHOUT_SIGNAL: Metric(
        "samples without signal", "Those of them that were skipped: their advantage is 0 and so is their gradient."
    ),
    SKIPPED_NONFINITE: Metric("skipped updates", "Updates refused for a non-finite loss or gradient.", "", "down"),
    VALUE_LOSS: Metric("critic's error", "Mean squared error of the critic over trained tokens.", "", "down"),
    VALUE_MEAN: Metric("value", "Mean of the critic's values over trained tokens."),
    RETURN_MEAN: Metric("return", "Mean return, which the critic is to predict, over trained tokens."),
    PAIR_MARGIN: Metric(
        "pair margin", "Mean over pairs of beta x (log-ratio of the better - of the worse).", "nats", "up"
    ),
    PAIR_ACCURACY: Metric("pair accuracy", "Share of pairs whose margin is above 0.", "", "up"),
    PAIR_CHOSEN: Metric(
        "log-prob of the better", "Mean over pairs of the better sample's log-prob per token.", "nats", "up"
    ),
    MARGIN: Metric(
        "margin", "Mean over preference pairs of the chosen answer's reward minus the rejected one's.", better="up"
    ),
    ACCURACY: Metric("accuracy", "Share of the step's pairs or labelled rows that are told rightly.", "", "up"),
    REWARD_CHOSEN: Metric(
        "reward of the chosen",
        "Mean over pairs of beta log(policy / reference) of the chosen answer (dpo).",
        "nats",
        "up",
    ),
    REWARD_REJECTED: Metric(
        "reward of the rejected",
        "Mean over pairs of beta log(policy / reference) of the rejected answer (dpo).",
        "nats",
    ),
    KEPT: Metric("kept", "Share that trains upwards: of judged samples with crpg, else of judged prompts.", "", "up"),
    SKIPPED_PROMPTS: Metric("prompts skipped", "Judged prompts of the step from which nothing trains.", "prompts"),
    FALLBACK: Metric("fallbacks", "Share of judged prompts that train on their baseline response.", "", "down"),
    VIOLATIONS: Metric("violations", "Share of judged samples that break a constraint.", "", "down"),
    UNJUDGED: Metric("unjudged", "Share of all samples that could not be judged, and so left the loss.", "", "down"),
    CALIBRATED_REWARD: Metric(
        "calibrated reward", "Mean over judged samples, whether they keep to the constraints or not.", "", "up"
    ),
    REGULARIZED_REWARD: Metric(
        "regularised reward", "Mean over judged samples; the baseline that crpg subtracts.", "", "up"
    ),
    BEST_REWARD: Metric("best reward", "Mean over judged prompts of their best sample's reward.", "", "up"),
    REWARD_GAP: Metric("reward gap", "Mean over pairs of the better sample's reward minus the worse one's."),
    SEQUENCE_KL: Metric(
        "KL of completions",
        "Mean over judged samples of a completion's KL to the reference, as `kl` counts it.",
        "nats",
    ),
    KL_FACTOR_ZERO: Metric("beyond the KL bound", "Share of judged samples whose KL is at least `kl_max`.", "", "down"),
    KL_FACTOR_ABOVE_ONE: Metric("KL factor above 1", "Share of judged samples with a clearly negative KL estimate."),
    TIME_STEP: Metric("step", "Wall time from one optimizer step to the next.", "s", "down"),
    TIME_GENERATE: Metric("generate", "Time of the step in which the busiest generator had work.", "s"),
    TIME_JUDGE: Metric("judge", "Time of the step in which judging was under way.", "s"),
    TIME_TRAIN: Metric("train", "Time of loss, gradient and optimizer step.", "s"),
    TIME_SYNC: Metric(
        "weight sync", "Longest time a generator took to fetch, load and prove the newest weights.", "s", "down"
    ),
    TIME_WAIT_BATCH: Metric("wait for batch", "Time the trainer waited for samples.", "s", "down"),
    DATA_ISSUED: Metric("prompts issued", "Prompts given to generators since the start.", "prompts"),
    DATA_FINISHED: Metric("prompts finished", "Prompts judged and waiting to train now.", "prompts"),
    DATA_TRAINED: Metric("prompts trained", "Prompts whose group was trained since the start.", "prompts"),
    DATA_DROPPED: Metric("prompts dropped", "Prompts dropped, with a reason, since the start.", "prompts", "down"),
    DATA_FAILED: Metric(
        "prompts failed", "Prompts dropped as `unscored`: fewer than two samples had a reward.", "prompts", "down"
    ),
    HELD_OUT_REWARD: Metric("held-out reward", "Mean reward over held-out prompts.", better="up"),
    HELD_OUT_COUNT: Metric("held-out samples", "Scored samples behind the held-out reward.", "samples"),
    HELD_OUT_LENGTH: Metric("held-out length", "Mean sampled tokens over the held-out completions.", "tokens"),
    HELD_OUT_SATISFIED: Metric(
        "held-out satisfied", "Share of the held-out samples that meet every constraint judge.", "", "up"
    ),
    HELD_OUT_LOSS: Metric("held-out loss", "Mean loss of a supervised training on the held-out rows.", "nats", "down"),
    HELD_OUT_ACCURACY: Metric("held-out accuracy", "Share of the held-out rows that are told rightly.", "", "up"),
    HELD_OUT_MARGIN: Metric("held-out margin", "Mean margin over the held-out pairs.", better="up"),
    HELD_OUT_LENGTH_CORRELATION: Metric(
        "length correlation", "Pearson correlation of reward and answer tokens over the held-out answers."
    ),
    HELD_OUT_CALIBRATION: Metric(
        "calibration error", "Expected gap between predicted and observed probability on held-out rows.", "", "down"
    ),
    HELD_OUT_TOKENS: Metric("held-out tokens", "Completion tokens behind the held-out loss of `sft`.", "tokens"),
    WATCH_REPETITION: Metric(
        "repeated phrases",
        "Share of four-word phrases that a completion had already said, mean over the step.",
        "",
        "down",
    ),
    WATCH_ALARMS: Metric(
        "alarms", "Signs of reward hacking that hold now (docs/guides/reward-hacking.md).", "", "down"
    ),
    UNSCORED: Metric("unscored", "Share of the last 256 samples that have no reward.", "", "down"),
    SATISFIED: Metric(
        "satisfied",
        "Share of samples that meet every constraint judge, over those whose constraints were judged.",
        better="up",
    ),
    DEGRADED: Metric("judges degraded", "1 while so many samples go unscored that the run stops.", "", "down"),
    PROBE_GAP: Metric("probe gap", "Largest log-prob gap on the probe, over generators.", "nats", "down"),
    NONFINITE: Metric("non-finite values", "Metrics of the record that were NaN or infinite.", "", "down"),
    POLICY_VERSION: Metric("policy version", "Optimizer steps behind the weights."),
}
"""Every fixed metric name. Judges, the watch and tasks make further ones, see `describe`."""

_JUDGE_METRICS = {
    "count": Metric("verdicts", "Scored verdicts of the judge since the step before, evaluation included.", "verdicts"),
    "mean": Metric("mean", "Mean score over the judge's scored verdicts.", better="up"),
    "pass_rate": Metric("pass rate", "Share of verdicts with a pass or fail that pass.", better="up"),
    "violation_rate": Metric("violations", "Share of verdicts with a pass or fail that fail.", better="down"),
    "abstain_rate": Metric("abstained", "Share of all verdicts that abstained."),
    "error_rate": Metric("failed", "Share of all verdicts that failed.", better="down"),
    "latency_p95": Metric("latency p95", "95th percentile of the judge's calls, each on one group.", "s", "down"),
    "canary_error_rate": Metric(
        "canaries misjudged",
        "Share of the judge's canaries that it judged wrongly when last tried, of those it judged.",
        better="down",
    ),
    "requests": Metric("requests", "Questions that an LLM judge put to its server.", "requests"),
    "retries": Metric("retries", "Further tries of those that were answered in the end.", "requests", "down"),
    "cost": Metric("cost", "What an LLM judge's answers cost, at the prices of its settings.", "dollars", "down"),
    "blocked": Metric("blocked", "Questions not put: the server was down, or the money was spent.", "requests", "down"),
    "cache_hit_rate": Metric("cache hits", "Share of an LLM judge's questions that its cache answered."),
}
_JUDGE = re.compile(rf"(?P<eval>eval/)?judge/(?P<name>.+)/(?P<what>{'|'.join(_JUDGE_METRICS)})$")
_BUDGET = re.compile(r"algorithm/(?P<what>used|slack|sampled|margin)/(?P<group>.+)$")
_BUDGET_METRICS = {
    "used": Metric("trained share", "Share of the group among the responses that train (or its mean cost)."),
    "slack": Metric("slack", "What the group's cap leaves unused."),
    "sampled": Metric("sampled share", "Share of the group among all judged responses."),
    "margin": Metric("margin", "Mean margin of the group over prompts that also have another group."),
}
_SOLVER_METRICS = {
    "algorithm/rejected_frac": Metric("rejected", "Share of prompts that train nothing under the budget."),
    "algorithm/one_sided_frac": Metric("one-sided", "Share of prompts whose responses are of one group or none."),
    "algorithm/malformed_frac": Metric("malformed", "Share of responses that belong to no group.", better="down"),
    "algorithm/solver_seconds": Metric("solver", "Time of the budget program.", "s", "down"),
    "algorithm/solver_gap": Metric("solver gap", "Relative distance to the optimum that is not ruled out.", "", "down"),
    "algorithm/is_fallback": Metric(
        "fallback",
        "1 where the cheapest choice stood in for a solution.",
        better="down",
    ),
}
"""Of runs under an inference budget."""
_OF_BUDGET = re.compile(r"algorithm/budget/(?P<budget>[^/]+)/(?P<rest>.+)$")
_HELD_OUT = re.compile(r"eval/(?P<rest>algorithm/.+)$")
_TASK = re.compile(r"task/(?P<name>[^/]+)/(?P<rest>.+)$")
_DRIFT = re.compile(r"watch/(?P<signal>.+)/drift$")


def describe(name: str) -> Metric:
    """What a metric name means; unknown names get their own name as the title."""
    if match := _TASK.match(name):
        inner = describe(match["rest"])
        return Metric(f"{match['name']}: {inner.title}", inner.meaning, inner.unit, inner.better)
    if match := _OF_BUDGET.match(name):
        inner = describe(f"algorithm/{match['rest']}")
        return Metric(f"q+ {match['budget']}: {inner.title}", inner.meaning, inner.unit, inner.better)
    if match := _HELD_OUT.match(name):
        inner = describe(match["rest"])
        return Metric(f"held-out, {inner.title}", inner.meaning, inner.unit, inner.better)
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
