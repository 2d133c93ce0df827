"""Grading replies in official mode against the released Multi-IF grader: the same replies, on one core, in turns.

    git clone https://github.com/facebookresearch/Multi-IF released
    python -m venv grader && grader/bin/pip install langdetect emoji nltk==3.9.2 pandas scipy pythainlp
    python -m benchmarks.grading --released released --released-python grader/bin/python

Without `--released` only our own speed is measured. The replies are those shipped with the package's conversations:

    short   as they are
    long    each followed by others in its language, up to 1,500 characters: as long as a model's

Both sides seed langdetect and judge strictly and loosely. Verdicts must be equal, one by one, or the benchmark ends
with the first difference. number_sentences and capital_word_frequency are left out on both sides: the released grader
needs NLTK's Punkt data for them.

Both load their language profiles in the warm-up round. Ours also remembers the n-grams of words; it forgets them before
each round, so that no reply gains by the round before. A worker process imports the package and loads the profiles
itself, which takes seconds: few replies don't gain by workers. The copies that workers share out repeat their words, so
replies per second of those rows compare with each other only.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.evals.conversations import Conversation, Turn, read_conversations
from llamarl.evals.verdicts import GraderSettings, Texts, TurnVerdict, grade_replies
from llamarl.judges.rules.languages import load_profiles

OFFICIAL = GraderSettings(("official",), "rules")
NEEDS_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
LONG = 1500
"""Characters of a long reply, about."""
COPIES = 20
"""Of the long replies, for the worker processes."""
WORKERS = (1, 2)


@dataclass(frozen=True)
class Work:
    """What is graded."""

    conversations: tuple[Conversation, ...]
    texts: Texts

    def rows(self) -> Iterator[dict[str, object]]:
        """As the released grader takes them, in the order of our verdicts."""
        for each in self.conversations:
            for number, turn in enumerate(each.turns, start=1):
                yield {
                    "response": self.texts[each.key, number],
                    "instruction_id_list": [instruction["id"] for instruction in turn.instructions],
                    "kwargs": [dict(instruction["kwargs"]) for instruction in turn.instructions],
                }


def shipped() -> Work:
    """A conversation for each kind of reply, passing and failing."""
    path = resources.files("llamarl.evals") / "assets" / "replies.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for line in lines:
        found[line["key"], line["kind"]].setdefault(line["turn"], line["response"])
    asked = {each.key: each for each in read_conversations("builtin")}
    conversations, texts = [], {}
    for (key, kind), replies in found.items():
        name = f"{key} {kind}"
        turns = tuple(without_punkt(turn) for turn in asked[key].turns[: len(replies)])
        conversations.append(Conversation(name, asked[key].language, turns))
        texts |= {(name, turn): replies[turn] for turn in range(1, len(turns) + 1)}
    return Work(tuple(conversations), texts)


def without_punkt(turn: Turn) -> Turn:
    """The turn with what both sides can judge."""
    return Turn(turn.prompt, tuple(each for each in turn.instructions if each["id"] not in NEEDS_PUNKT))


def lengthened(work: Work, characters: int = LONG) -> Work:
    """Each reply followed by the next ones in its language."""
    pools: dict[str, list[str]] = defaultdict(list)
    languages = {each.key: each.language for each in work.conversations}
    for (key, _), text in work.texts.items():
        pools[languages[key]].append(text)
    texts = {}
    for place, (key, turn) in enumerate(work.texts):
        text, pool, following = work.texts[key, turn], pools[languages[key]], place
        while len(text) < characters:
            following += 1
            text += "\n\n" + pool[following % len(pool)]
        texts[key, turn] = text
    return Work(work.conversations, texts)


def copied(work: Work, copies: int) -> Work:
    """The same many times, under other keys."""
    conversations = [
        Conversation(f"{each.key} {copy}", each.language, each.turns)
        for copy in range(copies)
        for each in work.conversations
    ]
    texts = {(f"{key} {copy}", turn): text for copy in range(copies) for (key, turn), text in work.texts.items()}
    return Work(tuple(conversations), texts)


def seconds_of(work: Work, workers: int) -> float:
    """Of ours, graders built anew."""
    load_profiles.cache_clear()
    load_profiles()
    started = time.perf_counter()
    grade_replies(work.conversations, work.texts, OFFICIAL, workers=workers)
    return time.perf_counter() - started


class Released:
    """The released grader's process, which works only when it has its turn. A context manager.

    Args:
        python: an interpreter with the packages that the released code needs.
        checkout: of facebookresearch/Multi-IF.
        work: what it grades.
    """

    def __init__(self, python: str, checkout: Path, work: Work) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._replies = Path(self._directory.name) / "replies.jsonl"
        self._replies.write_text("".join(json.dumps(row) + "\n" for row in work.rows()), encoding="utf-8")
        command = [python, str(Path(__file__).with_name("released_grader.py")), str(checkout), str(self._replies)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self) -> float:
        """Of one turn. Raises `RuntimeError` where the process has ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the released grader ended with status {self._process.wait()}; see above")
        return float(line)

    def verdicts(self) -> list[list[list[bool]]]:
        """Strict and loose lists of each reply, once it has had a turn."""
        lines = self._replies.with_name("replies.jsonl.verdicts").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def __enter__(self) -> "Released":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()


def num_equal(ours: Sequence[TurnVerdict], theirs: Sequence[Sequence[Sequence[bool]]]) -> int:
    """How many verdicts were compared; all of them are equal. Raises `AssertionError` naming the first that is not."""
    count = 0
    for verdict, (strict, loose) in zip(ours, theirs, strict=True):
        pair = ([list(verdict.strict), list(verdict.loose)], [strict, loose])
        assert pair[0] == pair[1], f"{verdict.key}, turn {verdict.turn}: ours {pair[0]}, released {pair[1]}"
        count += len(strict) + len(loose)
    return count


def against_released(benchmark: Benchmark, work: Work) -> tuple[Mapping[str, list[float]], int]:
    """Seconds of both sides in turns, and how many equal verdicts; only ours without a checkout."""
    options = benchmark.options
    ours = partial(seconds_of, work, 1)
    if options.released is None:
        return take_turns({"ours": ours}, options.repeats), 0
    with Released(options.released_python, options.released, work) as released:
        seconds = take_turns({"ours": ours, "released": released.seconds}, options.repeats)
        verdicts = grade_replies(work.conversations, work.texts, OFFICIAL)
        return seconds, num_equal(verdicts, released.verdicts())


def main() -> None:
    benchmark = Benchmark("grading", __doc__, repeats=5, quick_repeats=2)
    benchmark.parser.add_argument("--released", type=Path, help="a checkout of facebookresearch/Multi-IF")
    benchmark.parser.add_argument("--released-python", default=sys.executable, help="interpreter that can run it")
    options = benchmark.start()
    rows, headlines = [], {}
    short = shipped()
    works = {"short": short, "long": lengthened(short)}
    for name, work in works.items():
        seconds, equal = against_released(benchmark, work)
        headlines |= {f"{name} equal verdicts": equal} if equal else {}
        for who, column in seconds.items():
            ratio = paired_ratio(seconds["released"], column) if "released" in seconds else ""
            rows.append(row(work, name, who, 1, column, ratio))
        if "released" in seconds:
            headlines[f"{name} speed-up"] = paired_ratio(seconds["released"], seconds["ours"])["median"]
        benchmark.note(name)
    many = copied(works["long"], 2 if options.quick else COPIES)
    scaling = take_turns({str(n): partial(seconds_of, many, n) for n in WORKERS}, options.repeats, warm_up=0)
    for workers, column in scaling.items():
        ratio = paired_ratio(scaling["1"], column)
        rows.append(row(many, "long", "ours", int(workers), column, ratio))
        headlines[f"{workers} workers / 1"] = ratio["median"]
    benchmark.finish(rows, headlines, ["ratio: released / this one; in the last rows one worker / this one"])


def row(work: Work, name: str, who: str, workers: int, seconds: list[float], ratio: object) -> dict[str, object]:
    """One line of the table."""
    return {
        "replies": f"{len(work.texts)} {name}",
        "grader": who,
        "workers": workers,
        "seconds": spread(seconds),
        "replies/s": spread([len(work.texts) / each for each in seconds], 1),
        "ratio": ratio,
    }


if __name__ == "__main__":
    main()
