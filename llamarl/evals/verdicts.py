"""Verdicts on the replies of conversations: in one process or many, always the same.

    verdicts = grade_replies(conversations, replies, GraderSettings(modes=("official", "fixed")), workers=4)
    verdicts[0].strict                                        # (True, False), by position of the instruction

A turn that has no reply gets no verdict: that is a failure of the machinery, and `failures_of` names it. An empty reply
is the model's own, and follows nothing.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.evals.conversations import Conversation
from llamarl.judges.rules import Grader, Mode
from llamarl.judges.rules.tools import SentenceSplitter
from llamarl.report.files import encode, read_jsonl

MODES: tuple[Mode, ...] = ("official", "fixed")
IFEVAL_MODES: tuple[Mode, ...] = ("google", "fixed")
"""Each benchmark's grader as released, and repaired."""
CHUNK = 16
"""Conversations that a process grades at a time."""

Place = tuple[str, int]
"""Key of a conversation, and a turn from 1."""
Texts = Mapping[Place, str]
"""The reply to each turn that has one."""


@dataclass(frozen=True, slots=True)
class TurnVerdict:
    """The verdict of one mode on one turn's reply."""

    key: str
    turn: int
    mode: Mode
    strict: tuple[bool | None, ...]
    """The verdicts by position of the instruction; None where it is ungradable, in fixed mode."""
    loose: tuple[bool | None, ...]
    ungradable: Mapping[int, str] = field(default_factory=dict)
    """Position -> why this instruction cannot be judged."""


@dataclass(frozen=True, slots=True)
class GraderSettings:
    """The settings on which verdicts depend."""

    modes: tuple[Mode, ...] = MODES
    sentence_splitter: SentenceSplitter | None = None
    """`punkt` (default) or `rules`; fixed mode always has its own."""
    seed: int | None = 0
    """The seed of langdetect, which fixed mode does without; None draws anew on each call."""

    def grader(self, mode: Mode) -> Grader:
        """The grader of one mode. Raises what `Grader` raises."""
        splitter = None if mode == "fixed" else self.sentence_splitter
        return Grader(mode, sentence_splitter=splitter, seed=self.seed)


def grade_replies(
    conversations: Sequence[Conversation],
    texts: Texts,
    settings: GraderSettings | None = None,
    *,
    workers: int = 1,
    on_graded: Callable[[int], None] = lambda count: None,
) -> list[TurnVerdict]:
    """Grades every turn that has a reply, in the order of conversation, turn and mode, whatever the number of workers.

    Args:
        conversations: what was asked.
        texts: the replies.
        settings: of the graders.
        workers: processes; 1 grades in this one. More of them start new interpreters, so a script that calls this
            needs the usual `if __name__ == "__main__"`.
        on_graded: called with the number of conversations just graded.

    Raises:
        ConfigError, MissingDependencyError: a grader cannot be built.
        JudgeError: a grading process died.
    """
    settings = settings or GraderSettings()
    if workers < 1:
        raise ConfigError(f"workers={workers}; give at least 1")
    graders = [settings.grader(mode) for mode in settings.modes]  # here too: what is missing shows before any process
    chunks = [conversations[start : start + CHUNK] for start in range(0, len(conversations), CHUNK)]
    parts = ((chunk, {place: texts[place] for place in places_of(chunk) if place in texts}) for chunk in chunks)
    verdicts: list[TurnVerdict] = []
    with _worker_pool(settings, min(workers, len(chunks) or 1)) if workers > 1 else nullcontext() as pool:
        graded = pool.map(_grade_part, parts) if pool else (_grade_texts(graders, *part) for part in parts)
        for chunk in chunks:
            verdicts += next(graded)
            on_graded(len(chunk))
    return verdicts


@contextmanager
def _worker_pool(settings: GraderSettings, workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(settings,))
    try:
        yield pool
    except BrokenProcessPool:
        raise JudgeError("a grading process died (out of memory?); use fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def places_of(conversations: Sequence[Conversation]) -> Iterator[Place]:
    """Every turn, in order."""
    return ((each.key, turn) for each in conversations for turn in range(1, len(each.turns) + 1))


def failures_of(conversations: Sequence[Conversation], texts: Texts) -> list[Place]:
    """The turns that have no reply, in order."""
    return [place for place in places_of(conversations) if place not in texts]


def write_verdicts(path: str | Path, verdicts: Sequence[TurnVerdict]) -> None:
    """One JSON object a line: key, turn, mode, strict, loose."""
    with open(path, "wb") as file:
        for each in verdicts:
            row = {"key": each.key, "turn": each.turn, "mode": each.mode, "strict": each.strict, "loose": each.loose}
            file.write(encode(row) + b"\n")


def read_verdicts(path: str | Path) -> list[TurnVerdict]:
    """Reads what `write_verdicts` wrote. Raises `DataError` naming file and line."""
    kinds = {"key": str, "turn": int, "mode": str, "strict": list, "loose": list}
    verdicts = []
    for number, row in enumerate(read_jsonl(path, kinds), start=1):
        lists = (row["strict"], row["loose"])
        if row["mode"] not in MODES or len(lists[0]) != len(lists[1]) or not all(map(_is_verdict, chain(*lists))):
            raise DataError(f"{path}, line {number}: no verdict: {row}; grade again")
        verdicts.append(TurnVerdict(row["key"], row["turn"], row["mode"], tuple(lists[0]), tuple(lists[1])))
    return verdicts


def released_reply(text: str) -> str:
    """The text that the released grader looks at: a reply that is JSON may hold its response inside.

    Where the reply parses as JSON whose first item has the key `response`, that value is graded instead.
    """
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        return str(json.loads(text)[0]["response"])
    return text


def _is_verdict(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _grade_texts(graders: Sequence[Grader], conversations: Sequence[Conversation], texts: Texts) -> list[TurnVerdict]:
    return [
        _verdict(grader, conversation, turn, texts[conversation.key, turn])
        for conversation in conversations
        for turn in range(1, len(conversation.turns) + 1)
        if (conversation.key, turn) in texts
        for grader in graders
    ]


def _verdict(grader: Grader, conversation: Conversation, turn: int, text: str) -> TurnVerdict:
    checklist = grader.checklist(conversation.turns[turn - 1].instructions)
    grade = checklist.grade(released_reply(text) if grader.mode == "official" else text)
    return TurnVerdict(conversation.key, turn, grader.mode, grade.strict, grade.loose, dict(grade.ungradable))


_worker_graders: list[Grader] = []
"""The grader of this process where it is a worker, built once."""


def _start_worker(settings: GraderSettings) -> None:
    _worker_graders[:] = [settings.grader(mode) for mode in settings.modes]


def _grade_part(part: tuple[Sequence[Conversation], Texts]) -> list[TurnVerdict]:
    return _grade_texts(_worker_graders, *part)
