"""Records that cross the borders between executors. All are frozen, picklable and free of torch.

    Prompt --generator--> Completion --judges--> Sample, Group --algorithm--> Assignment --trainer--> StepResult

Tokens and their numbers lie in arrays of 4 bytes each: a run holds thousands of groups and sends each several times.
Arrays are not copied where records are, so nobody may write into them.

Example:
    >>> prompt = Prompt(id="p1", messages=({"role": "user", "content": "2 + 2 ="},), answer="4")
    >>> Verdict.scored(1.0, passed=True).score
    1.0
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain, groupby
from typing import Any, Literal

from llamarl.core.errors import DataError
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
    keeps_support: bool = False
    """True asks for the tokens that filters left at each drawn one (`Trajectory.support`), as training needs them."""


@dataclass(frozen=True, slots=True)
class Support:
    """The tokens that sampling filters left at each response token, among which it was drawn."""

    ids: "array[int]"
    """Int32 ids, those of one response token after those of another; each has its own among them."""
    counts: "array[int]"
    """Int32 number of ids at each response token; 0 where no filter applied, so that all tokens could be drawn."""

    def __post_init__(self) -> None:
        if sum(self.counts) != len(self.ids):
            raise ValueError(f"Support: counts add up to {sum(self.counts)}, but there are {len(self.ids)} ids")


class Origin(StrEnum):
    """Author of a trajectory's turns."""

    POLICY = "policy"
    """Some version of the policy sampled them, given all tokens before."""
    GIVEN = "given"
    """No policy sampled them under this prompt: they were written, or sampled under another prompt."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The tokens of an episode, in the order in which a model reads them, and what is known of those that it sampled.

        prompt_ids | turn | given | turn | ...          one turn, and nothing given after the prompt, as a rule
                   | token_ids                          only the turns train

    The tokens of the turns are the response; whatever has one number per response token skips what lies between.
    """

    prompt_ids: "array[int]"
    """Int32 ids of the tokens before the first turn; one array for all completions of a prompt."""
    token_ids: "array[int]"
    """Int32 ids of all that follows, end tokens included; never re-tokenised from text."""
    logprobs: "array[float]"
    """Float32 log-prob of each response token under the distribution it was drawn from; empty without a policy."""
    versions: tuple[tuple[int, int], ...]
    """Runs of (policy version, number of response tokens in a row that its weights produced)."""
    turns: tuple[tuple[int, int], ...]
    """Stretches `(start, stop)` of `token_ids`: the first starts at 0, the last stops at the end."""
    finish_reason: FinishReason = "stop"
    """End of the last turn."""
    origin: Origin = Origin.POLICY
    routed_experts: bytes = b""
    """Uint8 experts of each token read, `[tokens, layers with experts, experts per token]`: of all tokens but the last,
    which nobody has read. Empty where nobody recorded them."""
    support: Support | None = None
    """The tokens that filters left, where the policy was sampled with some: `logprobs` are relative to these."""

    def __post_init__(self) -> None:
        bounds = [0, *chain.from_iterable(self.turns), len(self.token_ids)]
        if bounds != sorted(bounds) or (self.turns and (bounds[1], bounds[-2]) != (0, len(self.token_ids))):
            raise ValueError(
                f"Trajectory.turns={self.turns} must ascend from 0 to the {len(self.token_ids)} token_ids; leave what "
                "is given before the first turn to prompt_ids, and drop what follows the last"
            )
        wanted = self.response_length if self.origin is Origin.POLICY else 0
        num_labelled = sum(count for _, count in self.versions)
        if not wanted == len(self.logprobs) == num_labelled:
            raise ValueError(
                f"Trajectory: {self.response_length} response tokens of origin {self.origin}, {len(self.logprobs)} "
                f"logprobs and {num_labelled} versions; sampled tokens need one of each, given ones have none"
            )
        if self.routed_experts and len(self.routed_experts) % max(1, len(self.prompt_ids) + len(self.token_ids) - 1):
            raise ValueError(
                f"Trajectory.routed_experts: {len(self.routed_experts)} bytes for {len(self.prompt_ids)} prompt tokens "
                f"and {len(self.token_ids)} more; give the same number for each of them but the last"
            )
        if self.support is not None and len(self.support.counts) != wanted:
            raise ValueError(
                f"Trajectory.support: of {len(self.support.counts)} tokens, but {wanted} were sampled; give one each"
            )

    @classmethod
    def sampled(
        cls,
        prompt_ids: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        versions: Sequence[int],
        finish_reason: FinishReason = "stop",
        support: Support | None = None,
        routed_experts: bytes = b"",
    ) -> "Trajectory":
        """Packs one turn that a policy sampled; `logprobs` and `versions` have one entry per token."""
        runs = tuple((version, len(list(run))) for version, run in groupby(versions))
        turns = ((0, len(token_ids)),)
        packed = pack_ids(prompt_ids), pack_ids(token_ids), pack_numbers(logprobs)
        return cls(*packed, runs, turns, finish_reason, support=support, routed_experts=routed_experts)

    @classmethod
    def given(
        cls, prompt_ids: Sequence[int], token_ids: Sequence[int], finish_reason: FinishReason = "stop"
    ) -> "Trajectory":
        """Packs one turn that no policy sampled."""
        turns = ((0, len(token_ids)),)
        prompt, tokens = pack_ids(prompt_ids), pack_ids(token_ids)
        return cls(prompt, tokens, array("f"), (), turns, finish_reason, Origin.GIVEN)

    def as_given(self) -> "Trajectory":
        """Drops who sampled it, where that was another policy or under another prompt than it shall train under."""
        return replace(self, logprobs=array("f"), versions=(), origin=Origin.GIVEN, support=None, routed_experts=b"")

    @property
    def response_length(self) -> int:
        """Number of tokens in all turns."""
        return sum(stop - start for start, stop in self.turns)

    @property
    def response_ids(self) -> "array[int]":
        """Ids of the response tokens."""
        if len(self.turns) == 1:
            return self.token_ids
        return array("i", [*chain.from_iterable(self.token_ids[start:stop] for start, stop in self.turns)])

    @property
    def key(self) -> bytes:
        """Names it among the trajectories of one prompt: its tokens."""
        return self.token_ids.tobytes()

    @property
    def oldest_version(self) -> int:
        """The policy version of its oldest token. Raises `ValueError` where no policy sampled it."""
        return min(version for version, _ in self.versions)


class OneTurn:
    """A base for rows that a model scores as one turn: all that follows the prompt."""

    __slots__ = ()
    token_ids: Sequence[int]

    @property
    def turns(self) -> tuple[tuple[int, int]]:
        """The whole of `token_ids`."""
        return ((0, len(self.token_ids)),)

    @property
    def support(self) -> None:
        """Nothing: no filter cut what was drawn here."""

    @property
    def routed_experts(self) -> bytes:
        """Nothing: each token goes to the experts that the model chooses."""
        return b""


def pack_ids(ids: Sequence[int]) -> "array[int]":
    """Packs token ids as int32; an array of int32 is returned as it is."""
    return ids if isinstance(ids, array) and ids.typecode == "i" else array("i", ids)


def pack_numbers(numbers: Sequence[float]) -> "array[float]":
    """Packs numbers as float32, which is exact for what a model computed; an array of float32 stays."""
    return numbers if isinstance(numbers, array) and numbers.typecode == "f" else array("f", numbers)


def join_turns(turns: Sequence[Trajectory]) -> Trajectory:
    """Joins the turns of a dialogue, each generated under a prompt that holds all before it, into one trajectory.

    Raises:
        DataError: a turn's prompt does not go on from the tokens before it, as after a re-tokenisation.
    """
    prompt_ids, read = turns[0].prompt_ids, turns[0].prompt_ids
    stretches: list[tuple[int, int]] = []
    for number, turn in enumerate(turns):
        if turn.prompt_ids[: len(read)] != read:
            raise DataError(
                f"turn {number}: its prompt of {len(turn.prompt_ids)} tokens does not begin with the {len(read)} "
                "tokens before it; build it from the ids themselves, not from their text"
            )
        read = turn.prompt_ids + turn.token_ids
        shift = len(turn.prompt_ids) - len(prompt_ids)
        stretches += [(shift + start, shift + stop) for start, stop in turn.turns]
    versions = [version for turn in turns for version, count in turn.versions for _ in range(count)]
    return replace(
        turns[-1],
        prompt_ids=prompt_ids,
        token_ids=read[len(prompt_ids) :],
        logprobs=array("f", [*chain.from_iterable(turn.logprobs for turn in turns)]),
        versions=tuple((version, len(list(run))) for version, run in groupby(versions)),
        turns=tuple(stretches),
        support=_join_supports(turns),
    )


def _join_supports(turns: Sequence[Trajectory]) -> Support | None:
    """The supports of turns, one after the other; a turn without one was drawn from all tokens."""
    if all(turn.support is None for turn in turns):
        return None
    every = [turn.support or Support(array("i"), array("i", bytes(4 * turn.response_length))) for turn in turns]
    ids, counts = chain.from_iterable(s.ids for s in every), chain.from_iterable(s.counts for s in every)
    return Support(array("i", [*ids]), array("i", [*counts]))


@dataclass(frozen=True, slots=True)
class Completion:
    """A response to a prompt, as judges read it."""

    trajectory: Trajectory
    text: str
    """The decoded response without special tokens."""

    @property
    def token_ids(self) -> "array[int]":
        """Int32 ids of the response, the end token included."""
        return self.trajectory.response_ids

    @property
    def logprobs(self) -> "array[float]":
        """Float32 log-prob of each token under the distribution it was drawn from."""
        return self.trajectory.logprobs

    @property
    def finish_reason(self) -> FinishReason:
        """End of the response."""
        return self.trajectory.finish_reason


def text_completion(text: str, finish_reason: FinishReason = "stop") -> Completion:
    """Makes a completion that has only its text: no policy sampled it, and it has no tokens."""
    return Completion(Trajectory.given((), (), finish_reason), text)


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
    reference_logprobs: "array[float] | None" = None
    """Log-prob of each response token under the frozen reference policy; None where the algorithm needs none."""
    is_satisfied: bool | None = True
    """True if it meets every constraint; None where that could not be judged, and then it has no reward either."""


class Purpose(StrEnum):
    """Use of a group."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    """The group is measured in an evaluation, and trains nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt."""

    prompt: Prompt
    samples: tuple[Sample, ...]
    index: int = 0
    """Issue order within the run, or within an evaluation."""
    epoch: int = 0
    """Pass over the training prompts; 0 for held-out ones."""
    baseline: Sample | None = None
    """A judged response that was not sampled, such as the reward model's baseline; some algorithms fall back on it."""
    purpose: Purpose = Purpose.TRAIN

    @property
    def rewards(self) -> list[float]:
        """Rewards of the samples that have one."""
        return [sample.reward for sample in self.samples if sample.reward is not None]

    @property
    def oldest_version(self) -> int:
        """The policy version of its oldest token."""
        return min(sample.completion.trajectory.oldest_version for sample in self.samples)


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One completion as the trainer sees it: numbers only, no judge, reward or task names."""

    trajectory: Trajectory
    advantages: "float | array[float]"
    """One advantage for all response tokens, or a float32 for each; the samples of a task's batch are alike in this.
    PPO estimates its own: it takes one number for the reward at the end, and several for the reward of each token."""
    group: int = 0
    """Samples of one group share their prompt; the trainer computes that prompt once."""
    weight: float = 1.0
    """Multiplies the sample's loss."""
    loss_mask: "array[int] | None" = None
    """Int8 for each response token: 1 where it trains, 0 where it leaves loss and denominators; None: all train."""
    reference_logprobs: "array[float] | None" = None
    """Log-prob of each response token under the frozen reference policy; None where the algorithm needs none."""
    old_logprobs: "array[float] | None" = None
    """The trainer's own log-prob of each response token from before the batch's first update, which it notes where it
    takes several updates on a batch; otherwise None."""
    old_values: "array[float] | None" = None
    """The critic's value at each response token before that update; None where there is one update or no critic."""

    def __post_init__(self) -> None:
        wanted = self.trajectory.response_length
        for name, values in {"advantages": self.advantages, "loss_mask": self.loss_mask}.items():
            if isinstance(values, array) and len(values) != wanted:
                raise ValueError(
                    f"TrainSample.{name}: {len(values)} values for {wanted} response tokens; give one each"
                )

    @property
    def num_trained(self) -> int:
        """Number of response tokens that the loss mask leaves."""
        return self.trajectory.response_length if self.loss_mask is None else sum(self.loss_mask)


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
    base: Mapping[str, int] = field(default_factory=dict)
    """Checksums of the frozen weights that published adapters belong to; empty where whole weights are published."""
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
    logprobs: Mapping[tuple[int, bytes], "array[float]"] = field(default_factory=dict)
    """(group, `Trajectory.key`) -> the trainer's log-prob of each response token, for the groups it was asked to
    watch."""
    task_metrics: tuple[Mapping[str, float], ...] = ()
    """Each task's own metrics, by the task's index."""
