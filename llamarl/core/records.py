"""Records that cross the borders between executors. All are frozen, picklable and free of torch.

    Prompt --generator--> Completion --judges--> Sample, Group --algorithm--> Assignment --trainer--> StepResult

Example:
    >>> prompt = Prompt(id="p1", messages=({"role": "user", "content": "2 + 2 ="},), answer="4")
    >>> Verdict.scored(1.0, passed=True).score
    1.0
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from llamarl.core.sampling import Sampling

Message = Mapping[str, Any]
"""One chat turn: `{"role": ..., "content": ...}`, as chat templates take it."""

FinishReason = Literal["stop", "length"]
"""`stop`: the end token or a stop string came; `length`: the token limit cut it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of data."""

    id: str
    """Unique in its data set; a stable hash of the row when the row has none."""
    messages: tuple[Message, ...]
    answer: Any = None
    """The reference answer, for judges that need one."""
    task: str = "default"
    info: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the row holds; judges read it."""
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to complete `len(seeds)` times."""

    key: int
    """Names the request in the answer; unique among a generator's unfinished requests."""
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    """One seed per completion (`core.seeds.sample_seed`)."""
    sampling: Sampling
    priority: int = 0
    """Lower starts earlier."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled tokens with what the generator knew when it drew each of them."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Sampled ids, the end token included; never re-tokenised from text."""
    logprobs: tuple[float, ...]
    """Log-prob of each token under the distribution it was drawn from."""
    versions: tuple[int, ...]
    """Policy version of the weights that produced each token."""
    text: str
    """The decoded completion without special tokens."""
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"Completion: {len(self.token_ids)} token_ids, {len(self.logprobs)} logprobs and "
                f"{len(self.versions)} versions; each token needs one of each"
            )

    @property
    def oldest_version(self) -> int:
        """The policy version of its oldest token."""
        return min(self.versions)


def text_completion(text: str) -> Completion:
    """Makes a completion that no policy sampled: it has only its text."""
    return Completion((), (), (), (), text, "stop")


MAX_SCORE = 1e30
"""Largest magnitude of a score: beyond it means, squares and float32 advantages are no longer finite."""


class Status(StrEnum):
    """Outcome of a judge's look at a sample."""

    SCORED = "scored"
    ABSTAINED = "abstained"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of one judge on one completion. Only a scored verdict carries a number."""

    status: Status
    score: float | None = None
    passed: bool | None = None
    """True if the completion meets the judge's constraint; None where the judge only scores."""
    reason: str = ""
    cost: float = 0.0
    """Cost in the judge's own unit (dollars for a paid endpoint)."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        is_scored = self.status is Status.SCORED
        if is_scored and (self.score is None or not abs(self.score) <= MAX_SCORE):
            raise ValueError(
                f"Verdict.score must be a number from -{MAX_SCORE:g} to {MAX_SCORE:g}, got {self.score!r}; rescale it, "
                "or use Verdict.failed(reason)"
            )
        if not is_scored and (self.score is not None or self.passed is not None):
            raise ValueError(f"a verdict that is {self.status} carries no score and no pass")

    @classmethod
    def scored(cls, score: float, passed: bool | None = None, reason: str = "") -> "Verdict":
        """A judgement."""
        return cls(Status.SCORED, float(score), passed, reason)

    @classmethod
    def abstained(cls, reason: str = "") -> "Verdict":
        """The judge does not apply to this completion."""
        return cls(Status.ABSTAINED, reason=reason)

    @classmethod
    def failed(cls, reason: str) -> "Verdict":
        """The judge broke (time-out, crash, nonsense). Never counted as a score."""
        return cls(Status.FAILED, reason=reason)


@dataclass(frozen=True, slots=True)
class Sample:
    """A judged completion."""

    completion: Completion
    verdicts: Mapping[str, Verdict]
    """Verdicts by judge name."""
    reward: float | None
    """Combined reward; None where it could not be judged, and then it leaves every mean, loss and denominator."""
    reference_logprobs: tuple[float, ...] | None = None
    """Log-prob of each token under the frozen reference policy; None where the algorithm needs none."""
    is_satisfied: bool | None = True
    """True if it meets every constraint; None where that could not be judged, and then it has no reward either."""


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt."""

    prompt: Prompt
    samples: tuple[Sample, ...]
    index: int = 0
    """Issue order within the run."""
    epoch: int = 0
    baseline: Sample | None = None
    """A judged response that was not sampled, such as the reward model's baseline; some algorithms fall back on it."""

    @property
    def rewards(self) -> list[float]:
        """Rewards of the samples that have one."""
        return [sample.reward for sample in self.samples if sample.reward is not None]

    @property
    def oldest_version(self) -> int:
        """The policy version of its oldest token."""
        return min(sample.completion.oldest_version for sample in self.samples)


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One completion as the trainer sees it: numbers only, no judge, reward or task names."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    advantage: float
    group: int = 0
    """Samples of one group share their prompt; the trainer computes that prompt once."""
    weight: float = 1.0
    """Multiplies the sample's loss."""
    reference_logprobs: tuple[float, ...] = ()
    """Log-prob of each token under the frozen reference policy; empty where the algorithm needs none."""
    old_logprobs: tuple[float, ...] = ()
    """The trainer's own log-prob of each token from before the batch's first update, which it notes where it takes
    several updates on a batch; otherwise empty."""
    old_values: tuple[float, ...] = ()
    """The critic's value at each token before that update; empty where there is one update or no critic."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The training samples that an algorithm makes of one task's batch."""

    samples: tuple[TrainSample, ...]
    num_prompts: int
    """Judged groups of the batch, those without a training sample included."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the algorithm, under short names such as `violation_rate`."""


@dataclass(frozen=True, slots=True)
class WeightProbe:
    """Log-probs of likely tokens, computed by the trainer so that receivers of its weights can compare their own."""

    rows: tuple[tuple[int, ...], ...]
    """Token ids: prompts of the run, each with its greedy continuation under the run's checkpoint."""
    at_start: tuple[float, ...]
    """Log-probs under the run's checkpoint, before any step: of each row's tokens but the first, row after row."""
    now: tuple[float, ...]
    """The same tokens under the published weights."""


@dataclass(frozen=True, slots=True)
class LogprobGap:
    """Absolute differences between two sides' log-probs of the same tokens, in nats."""

    mean: float
    largest: float

    @classmethod
    def between(cls, ours: Sequence[float], theirs: Sequence[float]) -> "LogprobGap":
        """The gap of two equally long sequences; NaN where one holds NaN."""
        gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        return cls(sum(gaps) / len(gaps), math.nan if any(map(math.isnan, gaps)) else max(gaps))


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """The trainer's record of a published version. Small: it travels through the controller; the weights do not."""

    version: int
    checksums: Mapping[str, int]
    """Tensor name -> its checksum (`functional.checksum`)."""
    probe: WeightProbe | None = None
    """Tokens and log-probs that a receiver must reproduce; None where nobody trains, as in some tests."""
    num_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WeightProof:
    """A receiver's evidence that it now serves `version`."""

    version: int
    probe_gap: float
    """Largest absolute log-prob difference on the probe tokens; NaN without a probe."""
    num_bytes: int
    seconds: float
    precision_cost: LogprobGap | None = None
    """Gap on the probe tokens that the receiver's precision alone causes, measured before its first update."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step: one optimizer update of the policy, or several on the same batch."""

    version: int
    """Policy version after the step."""
    metrics: Mapping[str, float]
    is_skipped: bool = False
    """No update was applied (refused by a guard, or without signal); the weights are bit-identical to before."""
    logprobs: Mapping[tuple[int, tuple[int, ...]], tuple[float, ...]] = field(default_factory=dict)
    """(group, token ids) -> the trainer's log-prob of each token, for the groups it was asked to watch."""
    task_metrics: tuple[Mapping[str, float], ...] = ()
    """Each task's own metrics, by the task's index."""
