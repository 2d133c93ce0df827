"""Samples for `eval budget`: problems read, several answers of a model to each, every answer judged and measured.

    OUT/samples/NAME/responses.jsonl    replies of a model, one line as each arrives (`replies`): a killed run goes on
    OUT/samples.jsonl                   all samples of the last evaluation, judged

A sample is a conversation of one turn, so the runner, its seeds and its store are those of all evaluations. The seed of
a sample depends on the run's seed, the problem's id and the sample's number; more samples can be added later.
"""

import asyncio
import glob
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError, boundary
from llamarl.core.loading import load_object
from llamarl.core.records import Message, Prompt, Sample, text_completion
from llamarl.data.asks import Ask
from llamarl.data.groups import GroupFunction
from llamarl.data.prompts import BadRowPolicy, PromptData, raw_rows, read_prompts
from llamarl.data.rows import RowError
from llamarl.evals.conversations import Conversation, Turn
from llamarl.evals.replies import Reply
from llamarl.evals.runner import run_conversations
from llamarl.generation.chats import Chat
from llamarl.judges.config import build_panel, read_judges
from llamarl.judges.lab.runner import judge_rows
from llamarl.judges.rows import CompletionRow
from llamarl.judges.voting import num_begun, read_vote
from llamarl.models.endpoint import ChatReply
from llamarl.report.progress import Progress

BUILTIN = "builtin"
"""Source name of held-out prompts of the permutation chain."""
NUM_BUILTIN = 256
CORRECT_FROM = 1.0
"""The reward from which a sample counts as right, as in IBPO."""

AnswerFunction = Callable[[str], str | None]
"""Reads the answer of a text, for which the text votes; None is no vote."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sample of one model, judged."""

    prompt_id: str
    number: int
    is_right: bool | None
    """None: no reply, or no verdict; such a sample is in no number."""
    answer: str | None = None
    """The answer for which the sample votes."""
    group: str | None = None
    """The response group of the sample; None where it is malformed or cut."""
    num_answers: int = 1
    """Trials of a vote, else one."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    is_cut: bool = False
    """True where the sample ended at the token limit."""
    problem: str | None = None
    """The reason for which the sample is in no rate."""


def read_problems(
    source: str, *, limit: int | None = None, split: str | None = None, on_bad_row: BadRowPolicy = "error"
) -> PromptData:
    """Problems of a file, a Hub data set, or `builtin`.

    A column `problem` or `question` stands in for `prompt`, and `solution` with its boxed answer for `answer`.

    Raises:
        ConfigError: a split of what has none, or see `read_prompts`.
        DataError, MissingDependencyError: see `read_prompts`.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}; give at least 1")
    if split is not None and (source == BUILTIN or _is_files(source)):
        raise ConfigError(f"split={split!r}: {source} has no splits, Hub data sets have; leave it out")
    if source == BUILTIN:
        from llamarl.tasks.chain import UNIFORM, ChainTask

        return PromptData(ChainTask(0, "heldout", UNIFORM).prompts(limit or NUM_BUILTIN))
    _, _, first = next(iter(raw_rows(source, split)), ("", 0, {}))
    mapping = {} if isinstance(first, RowError) else _columns(first)
    return read_prompts(source, split=split, limit=limit, mapping=mapping or None, on_bad_row=on_bad_row)


def _is_files(source: str) -> bool:
    return not Path(source).is_dir() and bool(glob.glob(source, recursive=True))


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Our fields by the columns of MATH-style rows."""
    found: dict[str, str] = {}
    for field, columns in (("prompt", ("problem", "question")), ("answer", ("solution",))):
        present = [column for column in columns if column in row]
        if present and field not in row and "reward_model" not in row:
            found[field] = present[0]
    return found


def sample(
    problems: Sequence[Prompt],
    chat: Chat,
    out: Path,
    samples_per_prompt: int,
    *,
    ask: Ask | None = None,
    max_in_flight: int = 16,
    seed: int = 0,
    system: str | None = None,
    strip_thinking: str = "none",
    progress: Progress | None = None,
) -> dict[str, list[Reply]]:
    """A model's replies by problem, in the order of their numbers; failures among them.

    Args:
        problems: with unique ids.
        chat: who answers; closed at the end.
        out: directory of this model's replies.
        samples_per_prompt: how many.
        ask: how the problem is put to this model.
        max_in_flight: requests at a time.
        seed: of all sampling.
        system: a system message before each problem.
        strip_thinking: see `run_conversations`.
        progress: told of every reply.

    Raises:
        ConfigError, DataError, EndpointError: see `run_conversations`.
    """
    asked = [ask(problem) if ask else problem for problem in problems]
    texts = [json.dumps([dict(message) for message in prompt.messages], ensure_ascii=False) for prompt in asked]
    conversations = [
        Conversation(f"{problem.id}#{number}", "en", (Turn(text, ()),))
        for number in range(samples_per_prompt)
        for problem, text in zip(problems, texts, strict=True)
    ]
    replies = run_conversations(
        conversations,
        _WholePrompts(chat),
        out,
        max_in_flight=max_in_flight,
        seed=seed,
        system=system,
        strip_thinking=strip_thinking,
        progress=progress,
    )
    by_problem: dict[str, list[Reply]] = {problem.id: [] for problem in problems}
    for reply in replies:
        by_problem[reply.key.rpartition("#")[0]].append(reply)
    return by_problem


class _WholePrompts:
    """A chat whose questions are prompts of several messages, written as JSON into one."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def reply(self, messages: Sequence[Message], seed: int) -> ChatReply:
        *opening, question = messages
        return await self._chat.reply([*opening, *json.loads(question["content"])], seed)

    def record(self) -> Mapping[str, Any]:
        return self._chat.record()

    async def close(self) -> None:
        await self._chat.close()


@dataclass(frozen=True, slots=True)
class Reading:
    """The rules by which replies are judged and measured."""

    judge: str
    """A judge's name, `module:function`, `file.py:function`, or a TOML file of judges."""
    group: GroupFunction
    answer: AnswerFunction

    def check(self, problems: Sequence[Prompt]) -> None:
        """Checks, before anything is asked, that judge and functions work and the problems hold what they need.

        Raises:
            ConfigError: names judge or problem, and what is missing.
            DataError: a function fails on a text that boxes the first problem's answer.
        """
        for problem in problems[:1]:
            text = f"\\boxed{{{problem.answer}}}"
            self.group(problem, text_completion(text))
            self.answer_of(problem, text)
        panel = build_panel(read_judges(self.judge))
        try:
            panel.check(problems)
        finally:
            panel.close()

    def answer_of(self, problem: Prompt, text: str) -> str | None:
        """Reads the answer of a reply. Raises `DataError`, naming the problem, where the function fails."""
        try:
            return self.answer(text)
        except DataError as error:
            raise DataError(f"prompt {problem.id!r}: {error}") from error


def assess(
    problems: Sequence[Prompt], replies: Mapping[str, Sequence[Reply]], reading: Reading
) -> dict[str, list[Attempt]]:
    """A model's samples by problem: judged, and measured.

    Args:
        problems: with reference answers where the judge needs them.
        replies: of `sample`.
        reading: how.

    Raises:
        ConfigError, DataError, JudgeError: there is no such judge, a problem lacks what it needs, or it broke.
    """
    return asyncio.run(_assess(problems, replies, reading))


async def _assess(
    problems: Sequence[Prompt], replies: Mapping[str, Sequence[Reply]], reading: Reading
) -> dict[str, list[Attempt]]:
    panel = build_panel(read_judges(reading.judge))
    texts = {id: tuple(reply.response for reply in each if reply.response is not None) for id, each in replies.items()}
    rows = [CompletionRow("problems", line, each, texts[each.id]) for line, each in enumerate(problems, start=1)]
    try:
        judged = await judge_rows(panel, rows)
    finally:
        await panel.aclose()
    found: dict[str, list[Attempt]] = {}
    for problem, samples in zip(problems, judged, strict=True):
        verdicts = iter(samples)
        found[problem.id] = [
            Attempt(problem.id, number, None, problem=reply.error or "no reply")
            if reply.response is None
            else _add_verdict(_measure_reply(problem, number, reply, reply.response, reading), next(verdicts))
            for number, reply in enumerate(replies[problem.id])
        ]
    return found


def _add_verdict(attempt: Attempt, verdict: Sample) -> Attempt:
    """Adds what the judges say to an attempt."""
    if verdict.reward is None:
        reasons = [each.reason for each in verdict.verdicts.values() if each.score is None]
        return replace(attempt, problem=f"not judged: {reasons[0] if reasons else 'no reward'}")
    return replace(attempt, is_right=verdict.reward >= CORRECT_FROM and verdict.is_satisfied is not False)


def _measure_reply(problem: Prompt, number: int, reply: Reply, text: str, reading: Reading) -> Attempt:
    """Measures what needs no judge."""
    is_cut = reply.finish_reason == "length"
    completion = text_completion(text, "length" if is_cut else "stop")
    return Attempt(
        problem.id,
        number,
        None,
        reading.answer_of(problem, text),
        reading.group(problem, completion),
        num_answers_in(text),
        reply.prompt_tokens,
        reply.completion_tokens,
        is_cut,
    )


def num_answers_in(text: str) -> int:
    """Answers that were generated: the trials of a vote, begun ones of a malformed vote too; else one."""
    return max(1, num_begun(text))


def stated_answer(text: str) -> str | None:
    """The answer of a mathematical text, or the final one of a vote."""
    return read_vote(text).answer


def whole_answer(text: str) -> str | None:
    """Everything behind the thoughts: for tasks whose completions are their answers."""
    return text.rpartition("</think>")[2].strip() or None


ANSWERS: Mapping[str, AnswerFunction] = {"stated": stated_answer, "whole": whole_answer}
"""The shipped ways to read an answer, by name."""


def load_answer_function(spec: str) -> AnswerFunction:
    """The function that `spec` names; what it returns is checked whenever it is called.

    Args:
        spec: a name among `ANSWERS`, `module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: there is none of that name, or it does not take a text.
    """
    if spec in ANSWERS:
        return ANSWERS[spec]
    if ":" not in spec:
        raise ConfigError(f"answers {spec!r}: choose stated or whole, or name a function of a text, module:function")
    function: Any = load_object(spec)
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        raise ConfigError(f"answers {spec!r}: no function of a text") from None
    return partial(_checked_answer, spec, function)


def _checked_answer(spec: str, function: AnswerFunction, text: str) -> str | None:
    """Raises `DataError` where a user's function fails or returns no answer."""
    with boundary(lambda problem: DataError(f"answers {spec!r} failed on {text!r:.80}: {problem}")):
        answer = function(text)
    if not isinstance(answer, str | None):
        raise DataError(f"answers {spec!r} made {answer!r:.80} of {text!r:.80}; return the answer as text, or None")
    return answer


def check_attempts(attempts: Mapping[str, Mapping[str, Sequence[Attempt]]], needed: Mapping[str, int]) -> list[str]:
    """Ids of the problems that every model has enough judged samples of, in order.

    Args:
        attempts: model -> problem id -> samples.
        needed: model -> samples it must have.

    Raises:
        DataError: there is no such problem.
    """
    ids = list(next(iter(attempts.values())))
    used = [
        id
        for id in ids
        if all(sum(a.is_right is not None for a in by_id[id]) >= needed[name] for name, by_id in attempts.items())
    ]
    if not used:
        problems = [a.problem for by_id in attempts.values() for each in by_id.values() for a in each if a.problem]
        reason = f"; the first failure: {problems[0]}" if problems else ""
        raise DataError(f"none of the {len(ids)} problems has enough judged samples of every model{reason}")
    return used
