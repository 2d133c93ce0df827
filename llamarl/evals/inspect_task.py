"""Multi-IF as a task of Inspect, the UK AI Security Institute's evaluation harness. The only module that imports it.

    inspect eval llamarl/multi_if --model openai/gpt-4o -T data=multiIF_20241018.csv -T languages=en,fr

The conversations, checkers and rates are those of `llamarl eval multi-if`; Inspect asks the model and keeps the log.
A metric's name is its place in `results.json`: `pooled/turns/1/strict/conversation`, `languages/fr/turns/3/overall`.
A sample that Inspect gives up is in no denominator, none of its turns.
"""

# mypy: disable-error-code="untyped-decorator"

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from llamarl.core.errors import ConfigError
from llamarl.evals import scores
from llamarl.evals.conversations import BUILTIN, MAX_TURNS, Conversation, read_conversations
from llamarl.evals.groups import MACRO, POOLED, Bootstrap, group_rates
from llamarl.evals.thinking import thinking_rule
from llamarl.evals.verdicts import MODES, GraderSettings, TurnVerdict, grade_replies
from llamarl.judges.rules import Mode
from llamarl.judges.rules.tools import SentenceSplitter

SAMPLING = GenerateConfig(max_tokens=1024, temperature=0.6, top_p=0.9, seed=42)
"""The sampling of the released Multi-IF script; Inspect's own options replace it."""
REPLIES = "replies"
"""Name in a sample's store."""


@task
def multi_if(
    data: str = BUILTIN,
    languages: str | list[str] | None = None,
    turns: int = MAX_TURNS,
    limit: int | None = None,
    mode: Literal["official", "fixed", "both"] = "both",
    sentence_splitter: SentenceSplitter | None = None,
    strip_thinking: str = "none",
) -> Task:
    """Instruction following over up to three turns in eight languages.

    Args:
        data: the released CSV, Parquet, JSON lines, a Hub id, or `builtin`.
        languages: codes such as `en,fr`; all by default.
        turns: the first so many turns, 1 to 3.
        limit: the first so many conversations.
        mode: the released grader's verdicts, the repaired ones, or both, each a scorer.
        sentence_splitter: of official mode, `punkt` or `rules`.
        strip_thinking: what is taken out of replies before grading and from the history: `none`, `think` or
            `OPEN,CLOSE`.

    Raises:
        ConfigError: a wrong argument, or NLTK's data is missing.
        DataError: see `read_conversations`.
    """
    if mode not in (*MODES, "both"):
        raise ConfigError(f"mode={mode!r}; choose official, fixed or both")
    chosen = languages.split(",") if isinstance(languages, str) else languages
    conversations = read_conversations(data, languages=chosen, turns=turns, limit=limit)
    settings = GraderSettings(MODES if mode == "both" else (mode,), sentence_splitter)
    return Task(
        dataset=MemoryDataset([_sample(each) for each in conversations], name=conversations.source),
        solver=hold_conversation(strip_thinking),
        scorer=[SCORERS[each](sentence_splitter) for each in settings.modes],
        config=SAMPLING,
        metadata={
            "data": {"source": conversations.source, "revision": conversations.revision},
            "graders": {each: settings.grader(each).record() for each in settings.modes},
        },
    )


def _sample(conversation: Conversation) -> Sample:
    """A sample whose metadata is the conversation as a row of ours."""
    turns = [{"prompt": turn.prompt, "instructions": list(turn.instructions)} for turn in conversation.turns]
    return Sample(
        id=conversation.key,
        input=[ChatMessageUser(content=conversation.turns[0].prompt)],
        metadata={"key": conversation.key, "language": conversation.language, "turns": turns},
    )


@solver
def hold_conversation(strip_thinking: str = "none") -> Solver:
    """Asks turn by turn; the history holds the model's own answers, without their thinking.

    Args:
        strip_thinking: as in `multi_if`.
    """
    rule = thinking_rule(strip_thinking)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        replies: list[str] = []
        for number, turn in enumerate(state.metadata["turns"]):
            if number:
                state.messages.append(ChatMessageUser(content=turn["prompt"]))
            state = await generate(state)
            answer, _ = rule.split(state.output.completion)
            state.messages[-1] = ChatMessageAssistant(content=answer, source="generate", model=state.output.model)
            replies.append(answer)
        state.store.set(REPLIES, replies)
        return state

    return solve


# ---- scores ---------------------------------------------------------------------------------------------------------


@metric(scores="unreduced")
def rates() -> Metric:
    """The four accuracies of each turn and their mean: over everything, as the mean of languages, and by language.

    Instruction-level accuracy is pooled over instructions, as in the released code: no mean over conversations. Over
    everything and as the mean of languages there are also forgetting, recovery, and conversations that pass throughout.
    """

    def compute(graded: list[SampleScore]) -> dict[str, float]:
        return dict(_rates([each.score.metadata or {} for each in graded])) if graded else {}

    return compute


def _rates(graded: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Names and values; first the means, which Inspect shows first. A rate without a denominator is left out."""
    lengths = {str(row): len(each["strict"]) for row, each in enumerate(graded)}
    num_turns = max(lengths.values())
    verdicts = [verdict for row, each in zip(lengths, graded, strict=True) for verdict in _verdicts(row, each)]
    counts = {"": scores.count(verdicts, lengths, num_turns)}
    no_intervals = Bootstrap(num_resamples=1)
    groups = group_rates(counts, [each["language"] for each in graded], num_turns, no_intervals)
    for group in (POOLED, MACRO, *(name for name in groups if name not in (POOLED, MACRO))):
        where = group if group in (POOLED, MACRO) else f"languages/{group}"
        for path, value in sorted(groups[group][""].point.items(), key=_rank):
            if scores.or_none(value) is not None and (where == group or path[0] in ("mean_over_turns", "turns")):
                yield "/".join((where, *path)), float(value)


def _rank(rate: tuple[scores.RatePath, Any]) -> tuple[bool, int, str, bool]:
    """Means before their parts; turns in order."""
    first, *rest = rate[0]
    return bool(rest), 0 if first == "turns" else 1, "".join(rest[:1]), rest[-1:] != ["overall"]


def _verdicts(key: str, graded: dict[str, Any]) -> Iterator[TurnVerdict]:
    pairs = zip(graded["strict"], graded["loose"], strict=True)
    for turn, (strict, loose) in enumerate(pairs, start=1):
        yield TurnVerdict(key, turn, "fixed", tuple(strict), tuple(loose))


@scorer(metrics=[rates()])
def official(sentence_splitter: SentenceSplitter | None = None) -> Scorer:
    """The released grader's verdicts.

    Args:
        sentence_splitter: `punkt` (default) or `rules`.
    """
    return _scorer("official", sentence_splitter)


@scorer(metrics=[rates()])
def fixed(sentence_splitter: SentenceSplitter | None = None) -> Scorer:
    """The repaired verdicts.

    Args:
        sentence_splitter: of no influence here.
    """
    return _scorer("fixed", sentence_splitter)


SCORERS: dict[Mode, Callable[[SentenceSplitter | None], Scorer]] = {"official": official, "fixed": fixed}


def _scorer(mode: Mode, sentence_splitter: SentenceSplitter | None) -> Scorer:
    settings = GraderSettings((mode,), sentence_splitter)

    async def score(state: TaskState, target: Target) -> Score:
        (conversation,) = read_conversations([state.metadata])
        replies = {(conversation.key, turn): text for turn, text in enumerate(state.store.get(REPLIES), start=1)}
        verdicts = grade_replies([conversation], replies, settings)
        return _score(conversation, verdicts)

    return score


def _score(conversation: Conversation, verdicts: Sequence[TurnVerdict]) -> Score:
    """The value is the conversation's own mean over turns; NaN, which Inspect leaves out, where nothing is gradable."""
    num_turns = len(conversation.turns)
    found = scores.rates(scores.count(verdicts, {conversation.key: num_turns}, num_turns)[0], num_turns)
    overalls = [scores.or_none(value) for path, value in found.items() if path[-1] == "overall"]
    graded = [value for value in overalls if value is not None]
    return Score(
        value=sum(graded) / len(graded) if graded else math.nan,
        explanation="\n".join(_describe_misses(conversation, verdicts)) or "everything is followed",
        metadata={
            "language": conversation.language,
            "strict": [list(verdict.strict) for verdict in verdicts],
            "loose": [list(verdict.loose) for verdict in verdicts],
        },
    )


def _describe_misses(conversation: Conversation, verdicts: Sequence[TurnVerdict]) -> Iterator[str]:
    """Yields a line for each turn that misses something."""
    for verdict in verdicts:
        instructions = conversation.turns[verdict.turn - 1].instructions
        missed = [each["id"] for each, is_met in zip(instructions, verdict.strict, strict=True) if is_met is False]
        if missed:
            yield f"turn {verdict.turn} does not follow {', '.join(missed)}"
        yield from (f"turn {verdict.turn} cannot be graded: {reason}" for reason in verdict.ungradable.values())
