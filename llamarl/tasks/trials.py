"""The trials task: a trial succeeds by luck that nobody can foresee or learn, so a vote over several can be worth it.

A problem has a kind, one of twenty, and a number; its answer is one of eight values. A trial gives the answer or a
wrong value, scattered: how often which depends on the kind, and so does what a vote is worth. A completion only says
how often to try. The judge tries, and the value that comes up most is the answer.

    answer     group    text
    a trial    short    K.
    a vote     long     K:.....

    level, of four kinds each            1       2       3       4       5
    chance that a trial is right         1.000   0.750   0.550   0.400   0.125
    chance that a vote of five is right  1.000   0.968   0.823   0.611   0.125

A prompt reads `A4071K`: the mode (`S` a trial, `L` a vote, `A` either), the number, the kind. The level of a kind is
written nowhere; only outcomes tell it. Luck belongs to the problem and to the place of a completion among those that
are judged together: two equal completions differ in luck, and equal calls of the judge give equal verdicts.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl

KINDS = "BCDEFGHIJKMNOPQRTUVW"
NUM_VALUES = 8
NUM_NUMBERS = 10_000
NUM_TRIALS = 5
"""The most trials of a vote."""
CHANCES = (1.0, 0.75, 0.55, 0.4, 0.125)
"""The chance that a trial is right, by level: 1, 2, ... The last is that of a guess."""
MAX_TOKENS = NUM_TRIALS + 3
"""The tokens of a vote, its end token included; a single trial takes three."""

Mode = Literal["S", "L", "A"]
"""Short, long, or either."""
SPLITS = ("train", "heldout")

_FORM = re.compile(rf"([A-Z])(\.|:\.{{{NUM_TRIALS}}})")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `Prompt.info` holds these fields."""

    kind: str
    number: int

    @property
    def level(self) -> int:
        """The difficulty, from 1 (easy) to 5 (hopeless)."""
        return levels()[self.kind]

    @property
    def answer(self) -> int:
        """The right value."""
        return derive_seed("trials-answer", self.kind, self.number) % NUM_VALUES

    @property
    def is_heldout(self) -> bool:
        """True for the held-out fifth, chosen by hash: no seed ever shows it in the training split."""
        return derive_seed("trials-split", self.kind, self.number) % 5 == 0

    def outcomes(self, place: int, count: int) -> list[int]:
        """The values of `count` trials of the completion at a place."""
        rng = random.Random(derive_seed("trials-luck", self.kind, self.number, place))
        return [self._outcome(rng) for _ in range(count)]

    def _outcome(self, rng: random.Random) -> int:
        if rng.random() < CHANCES[self.level - 1]:
            return self.answer
        return (self.answer + rng.randrange(1, NUM_VALUES)) % NUM_VALUES

    def request(self, mode: Mode) -> str:
        """The user's message."""
        return f"{mode}{self.number:04}{self.kind}"

    def response(self, is_long: bool) -> str:
        """A vote, or one trial."""
        return f"{self.kind}:{'.' * NUM_TRIALS}" if is_long else f"{self.kind}."


@cache
def levels() -> dict[str, int]:
    """The level of each kind."""
    kinds = random.Random(derive_seed("trials-levels", 1)).sample(KINDS, len(KINDS))
    return {kind: index % len(CHANCES) + 1 for index, kind in enumerate(kinds)}


class TrialsTask:
    """Prompts and demonstrations, each a function of (seed, split, index): random access, no state.

    Args:
        seed: another seed draws other prompts.
        split: `train` or `heldout`; no problem is in both.
    """

    def __init__(self, seed: int = 0, split: str = "train") -> None:
        if split not in SPLITS:
            raise ConfigError(f"split: got {split!r}; choose one of: {', '.join(SPLITS)}")
        self.seed, self.split = seed, split

    def prompt(self, index: int, mode: Mode = "A") -> Prompt:
        """The prompt at `index` >= 0, of any kind. Its id is unique in the split."""
        rng = random.Random(derive_seed("trials", self.seed, self.split, index))
        problem = _draw(rng)
        while problem.is_heldout != (self.split == "heldout"):
            problem = _draw(rng)
        return _prompt(problem, mode, f"trials-{self.split}-{self.seed}-{index}")

    def prompts(self, count: int, mode: Mode = "A") -> list[Prompt]:
        """The first `count` prompts."""
        return [self.prompt(index, mode) for index in range(count)]

    def demonstration(self, index: int) -> tuple[Prompt, str]:
        """A prompt of either split in any mode and a valid answer; in mode A half of them are votes."""
        rng = random.Random(derive_seed("trials-demonstration", self.seed, index))
        mode: Mode = rng.choice(get_args(Mode))
        is_long = mode == "L" or (mode == "A" and rng.random() < 0.5)
        problem = _draw(rng)
        return _prompt(problem, mode, f"trials-demonstration-{self.seed}-{index}"), problem.response(is_long)


def with_mode(prompt: Prompt, mode: Mode) -> Prompt:
    """The same problem in another mode; id and answer stay."""
    return replace(prompt, messages=({"role": "user", "content": _problem_of(prompt).request(mode)},))


def short(prompt: Prompt) -> Prompt:
    """The same problem, to be answered with one trial."""
    return with_mode(prompt, "S")


def long(prompt: Prompt) -> Prompt:
    """The same problem, to be answered with a vote."""
    return with_mode(prompt, "L")


class TrialsJudge(Judge):
    """Tries as often as a completion says, and scores 1 if the vote is right, else 0. Abstains from other tasks."""

    name = "trials"

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion; each has the luck of its place."""
        if not {"kind", "number"} <= prompt.info.keys():
            return [Verdict.abstained("not a prompt of the trials task") for _ in completions]
        return [
            _verdict(prompt, answer(prompt, completion.text, place)) for place, completion in enumerate(completions)
        ]


judge = TrialsJudge()
"""The judge as recipes name it: `function = "trials"`."""


def group(prompt: Prompt, completion: Completion) -> str | None:
    """`long` for a vote, `short` for one trial; None for anything else."""
    count = num_trials(prompt, completion.text)
    return None if count is None else "short" if count == 1 else "long"


def num_trials(prompt: Prompt, text: str) -> int | None:
    """The number of trials in a completion; None for another form, or another kind."""
    match = _FORM.fullmatch(text)
    return match[2].count(".") if match and match[1] == prompt.info["kind"] else None


def answer(prompt: Prompt, text: str, place: int) -> int | None:
    """The answer of the completion at a place; None if it is malformed."""
    count = num_trials(prompt, text)
    return None if count is None else vote(_problem_of(prompt).outcomes(place, count))


def vote(values: Sequence[int]) -> int:
    """The most frequent value, the earliest of equals. Of five, one that comes three times is that."""
    return Counter(values).most_common(1)[0][0]


def write_prompts(path: str | Path, count: int, seed: int = 0, split: str = "train", mode: Mode = "A") -> int:
    """Writes the first `count` prompts as JSON Lines in the package's row format; returns how many."""
    return write_jsonl(path, TrialsTask(seed, split).prompts(count, mode))


def _verdict(prompt: Prompt, said: int | None) -> Verdict:
    if said is None:
        return Verdict.scored(0.0, passed=False, reason="malformed")
    is_right = said == int(prompt.answer)
    return Verdict.scored(float(is_right), passed=is_right, reason="" if is_right else f"came to {said}")


def _problem_of(prompt: Prompt) -> Problem:
    return Problem(prompt.info["kind"], prompt.info["number"])


def _draw(rng: random.Random) -> Problem:
    return Problem(rng.choice(KINDS), rng.randrange(NUM_NUMBERS))


def _prompt(problem: Problem, mode: Mode, identifier: str) -> Prompt:
    return Prompt(
        id=identifier,
        messages=({"role": "user", "content": problem.request(mode)},),
        answer=str(problem.answer),
        task="trials",
        info={"kind": problem.kind, "number": problem.number, "level": problem.level},
    )
