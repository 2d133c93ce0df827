"""The benchmarks of instruction following, from settings to results; each is also `llamarl eval NAME`.

results = run_benchmark(MultiIF(data="builtin", model="checkpoints/my-model"))
results["modes"]["official"]["macro"]["turns"]["3"]["overall"]["value"]
"""

import re
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from llamarl.core.config import Config, Metavar, Words
from llamarl.evals.answering import SAMPLING_SEED, AnswerSettings, CheckpointSettings, ReplySettings, ServerSettings

if TYPE_CHECKING:
    from llamarl.evals.conversations import Conversations
    from llamarl.evals.replies import Replies
    from llamarl.evals.verdicts import GraderSettings
    from llamarl.judges.rules import Mode
    from llamarl.report.progress import Progress

GRADER_SEED = 0


def _read_turns(value: Any) -> Any:
    """`1,2` as 2: a later turn needs those before it."""
    if not isinstance(value, str) or "," not in value:
        return value
    numbers = value.split(",")
    if numbers != [str(number) for number in range(1, len(numbers) + 1)]:
        raise ValueError("give 1, 2 or 3; a later turn needs those before it")
    return len(numbers)


class Respondent(Config):
    """The model that answers: --model DIR, --endpoint URL --model NAME, or --grade FILE."""

    model: Annotated[str | None, Metavar("NAME")] = None
    """Checkpoint directory or Hub id; with --endpoint the server's name of the model."""
    endpoint: Annotated[str | None, Metavar("URL")] = None
    """OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    grade: Annotated[str | None, Metavar("FILE")] = None
    """Grade these replies: lines of {"key", "turn", "response"}."""


class Grading(Config):
    """Settings by which replies are graded."""

    sentence_splitter: Literal["punkt", "rules"] | None = None
    """Sentences in the released mode: by NLTK's Punkt model (default), or by our rules, which come close without its
    data."""
    workers: int = Field(default=1, ge=1)
    """Processes that grade."""


class Benchmark(Respondent, AnswerSettings, Grading):
    """Settings of every benchmark. A benchmark itself says how its conversations, and replies on file, are read."""

    NAME: ClassVar[str]
    MODES: "ClassVar[tuple[Mode, ...]]"
    """Modes of the released grader and of the repaired one."""

    data: str
    """Source of the conversations."""
    out: Annotated[str | None, Metavar("DIR")] = None
    """Directory of all that is written; the same settings go on there (default: a directory under runs/)."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first N conversations only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out and list it."""
    mode: str = "both"

    @model_validator(mode="after")
    def _check_respondent(self) -> Self:
        if self.grade:
            if self.model or self.endpoint:
                raise ValueError("--grade grades replies that exist; leave out --model and --endpoint")
            if not self.out:
                raise ValueError("--grade needs --out DIR, where verdicts and results are written")
            self.refuse_unused("--grade", ReplySettings, CheckpointSettings, ServerSettings)
        elif not self.model:
            raise ValueError("no model given: use --model DIR, --endpoint URL --model NAME, or --grade FILE")
        elif self.endpoint:
            self.refuse_unused("--endpoint", CheckpointSettings)
        else:
            self.refuse_unused("a checkpoint", ServerSettings)
        return self

    @property
    def directory(self) -> Path:
        """The directory of the evaluation: the same for the same model, so that typing a command again goes on."""
        if self.out:
            return Path(self.out)
        name = re.sub(r"[^\w.-]+", "-", str(self.model)).strip("-.") or "model"
        return Path("runs") / f"{self.NAME}-{name}"

    @property
    def grader_settings(self) -> "GraderSettings":
        """The settings that verdicts depend on."""
        from llamarl.evals.verdicts import GraderSettings

        modes = self.MODES if self.mode == "both" else (cast("Mode", self.mode),)
        return GraderSettings(modes, self.sentence_splitter, self.grader_seed)

    @property
    def grader_seed(self) -> int:
        """The seed of language detection and intervals: --seed is that of sampling where replies are sampled."""
        return self.seed if self.grade and self.seed is not None else GRADER_SEED

    @abstractmethod
    def read_conversations(self) -> "Conversations":
        """Reads the conversations. Raises what `conversations.read_conversations` raises."""

    @abstractmethod
    def read_replies(self, path: str, conversations: "Conversations") -> "Replies":
        """Reads replies that exist. Raises `DataError` for a file that holds none."""


class MultiIF(Benchmark):
    """Multi-IF: instruction following over three turns in eight languages."""

    NAME = "multi-if"
    MODES = ("official", "fixed")

    data: str
    """The released CSV, Parquet, JSON lines, a Hub id, or builtin."""
    languages: Annotated[Words, Metavar("CODES")] = ()
    """Languages to take, such as en,fr (default: all)."""
    turns: Annotated[int, BeforeValidator(_read_turns), Metavar("N")] = Field(default=3, ge=1, le=3)
    """Take the first N turns; 1,2 means 2."""
    mode: Literal["official", "fixed", "both"] = "both"
    """The released grader's verdicts, the repaired ones, or both side by side."""

    def read_conversations(self) -> "Conversations":
        """The chosen languages and turns."""
        from llamarl.evals.conversations import read_conversations

        return read_conversations(
            self.data,
            languages=self.languages or None,
            turns=self.turns,
            limit=self.limit,
            on_bad_row=self.on_bad_row,
        )

    def read_replies(self, path: str, conversations: "Conversations") -> "Replies":
        """Lines of key, turn and response."""
        from llamarl.evals.replies import read_responses

        return read_responses(path)


class IFEval(Benchmark):
    """IFEval: instruction following in one turn, by Google's checkers and the repaired ones."""

    NAME = "ifeval"
    MODES = ("google", "fixed")

    data: str
    """Google's input_data.jsonl, a table of its columns, or a Hub id."""
    mode: Literal["google", "fixed", "both"] = "both"
    """The released grader's verdicts, the repaired ones, or both side by side."""

    def read_conversations(self) -> "Conversations":
        """All prompts, as conversations of one turn."""
        from llamarl.evals.conversations import read_conversations

        return read_conversations(self.data, turns=1, limit=self.limit, on_bad_row=self.on_bad_row)

    def read_replies(self, path: str, conversations: "Conversations") -> "Replies":
        """Lines of prompt (or key) and response."""
        from llamarl.evals.ifeval import read_ifeval_responses

        return read_ifeval_responses(path, conversations)


def run_benchmark(
    benchmark: Benchmark, progress: "Progress | None" = None, grading: "Progress | None" = None
) -> dict[str, Any]:
    """Asks the model what it has not answered yet, grades the replies, and writes everything to `benchmark.directory`.

    Args:
        benchmark: what is asked, of whom, and how it is graded.
        progress: told of every reply.
        grading: told of every graded conversation.

    Returns:
        What `results.json` holds.

    Raises:
        ConfigError, DataError, EndpointError, JudgeError, MissingDependencyError: see `run_conversations` and
            `evaluate`.
    """
    from llamarl.evals.evaluation import evaluate, generation_record
    from llamarl.evals.groups import Bootstrap
    from llamarl.evals.runner import run_conversations
    from llamarl.report.progress import NoProgress

    conversations, out = benchmark.read_conversations(), benchmark.directory
    settings = benchmark.grader_settings
    if benchmark.grade:
        replies, replies_from = benchmark.read_replies(benchmark.grade, conversations), Path(benchmark.grade).parent
    for mode in settings.modes:
        settings.grader(mode)  # what is missing shows now, not after hours of generation
    if not benchmark.grade:
        assert benchmark.model is not None
        found = run_conversations(
            conversations,
            benchmark.build_chat(benchmark.model, benchmark.endpoint),
            out,
            max_in_flight=benchmark.max_in_flight,
            seed=SAMPLING_SEED if benchmark.seed is None else benchmark.seed,
            system=benchmark.system,
            strip_thinking=benchmark.strip_thinking,
            progress=progress,
        )
        replies, replies_from = {(reply.key, reply.turn): reply for reply in found}, out
    num_graded = 0

    def note_graded(count: int) -> None:
        nonlocal num_graded
        num_graded += count
        shown.update(num_graded)

    with grading or NoProgress() as shown:
        shown.start(0, len(conversations))
        return evaluate(
            benchmark.NAME,
            conversations,
            replies,
            out,
            settings,
            generation=generation_record(replies_from),
            bootstrap=Bootstrap(benchmark.grader_seed),
            workers=benchmark.workers,
            on_graded=note_graded,
        )
