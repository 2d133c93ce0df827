"""The methods task: whether a method works is luck, so that a vote over several methods is worth its price, sometimes.

A problem has a kind, one of twenty, and a number; its answer is one of eight values. There are 26 methods, `a` to `z`.
A method that works on a problem gives the answer, any other a wrong value, scattered. Nothing in the problem says which
methods work on it, so none can be learnt; how many work depends on the kind, and so does what a vote is worth. A
completion repeats the kind and names methods. The judge tries them, and the value that most of them give is the answer.

    answer     group    text
    a trial    short    Kk
    a vote     long     K[k,c,x,a,q]

    level, of four kinds each            1       2       3       4       5
    chance that a method works           1.000   0.750   0.550   0.400   0.125
    chance that a vote of five is right  1.00    0.97    0.82    0.61    0.12

A prompt reads `A4071K`: the mode (`S` a trial, `L` a vote, `A` either), the number, the kind. The level of a kind is
written nowhere; only outcomes tell it.
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
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl

KINDS = "BCDEFGHIJKMNOPQRTUVW"
METHODS = "abcdefghijklmnopqrstuvwxyz"
NUM_VALUES = 8
NUM_NUMBERS = 10_000
NUM_TRIALS = 5
"""Of a vote."""
CHANCES = (1.0, 0.75, 0.55, 0.4, 0.125)
"""That a method works, by level: 1, 2, ... The last is that of a guess."""
MAX_TOKENS = 2 * NUM_TRIALS + 3
"""Of a vote, its end token included; a trial takes three."""

Mode = Literal["S", "L", "A"]
"""Short, long, or either."""
SPLITS = ("train", "heldout")

_SHORT = re.compile(r"([A-Z])([a-z])")
_LONG = re.compile(rf"([A-Z])\[([a-z](?:,[a-z]){{{NUM_TRIALS - 1}}})\]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `Prompt.info` holds these fields."""

    kind: str
    number: int

    @property
    def level(self) -> int:
        """From 1, easy, to 5, hopeless."""
        return levels()[self.kind]

    @property
    def answer(self) -> int:
        """The right value."""
        return derive_seed("methods-answer", self.kind, self.number) % NUM_VALUES

    @property
    def is_heldout(self) -> bool:
        """Whether it belongs to the held-out fifth, by hash: no seed ever shows it in the training split."""
        return derive_seed("methods-split", self.kind, self.number) % 5 == 0

    def outcome(self, method: str) -> int:
        """The value that a method gives, always the same."""
        rng = random.Random(derive_seed("methods-outcome", self.kind, self.number, method))
        if rng.random() < CHANCES[self.level - 1]:
            return self.answer
        return (self.answer + rng.randrange(1, NUM_VALUES)) % NUM_VALUES

    def request(self, mode: Mode) -> str:
        """The user's message."""
        return f"{mode}{self.number:04}{self.kind}"

    def response(self, methods: Sequence[str]) -> str:
        """A trial of one method, or a vote."""
        return f"{self.kind}{methods[0]}" if len(methods) == 1 else f"{self.kind}[{','.join(methods)}]"


@cache
def levels() -> dict[str, int]:
    """The level of each kind."""
    kinds = random.Random(derive_seed("methods-levels", 1)).sample(KINDS, len(KINDS))
    return {kind: index % len(CHANCES) + 1 for index, kind in enumerate(kinds)}


class MethodsTask:
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
        rng = random.Random(derive_seed("methods", self.seed, self.split, index))
        problem = _draw(rng)
        while problem.is_heldout != (self.split == "heldout"):
            problem = _draw(rng)
        return _prompt(problem, mode, f"methods-{self.split}-{self.seed}-{index}")

    def prompts(self, count: int, mode: Mode = "A") -> list[Prompt]:
        """The first `count` prompts."""
        return [self.prompt(index, mode) for index in range(count)]

    def demonstration(self, index: int) -> tuple[Prompt, str]:
        """A prompt of either split in any mode, and different methods; in mode A half of them a vote."""
        rng = random.Random(derive_seed("methods-demonstration", self.seed, index))
        mode: Mode = rng.choice(get_args(Mode))
        is_long = mode == "L" or (mode == "A" and rng.random() < 0.5)
        methods, problem = rng.sample(METHODS, NUM_TRIALS if is_long else 1), _draw(rng)
        return _prompt(problem, mode, f"methods-demonstration-{self.seed}-{index}"), problem.response(methods)


def with_mode(prompt: Prompt, mode: Mode) -> Prompt:
    """The same problem in another mode; id and answer stay."""
    request = Problem(prompt.info["kind"], prompt.info["number"]).request(mode)
    return replace(prompt, messages=({"role": "user", "content": request},))


def short(prompt: Prompt) -> Prompt:
    """The same problem, to be answered with one trial."""
    return with_mode(prompt, "S")


def long(prompt: Prompt) -> Prompt:
    """The same problem, to be answered with a vote."""
    return with_mode(prompt, "L")


def judge(prompt: Prompt, completion: Completion) -> Verdict:
    """Tries the methods and scores 1 if their vote is right, else 0. Abstains from prompts of other tasks."""
    if not {"kind", "number"} <= prompt.info.keys():
        return Verdict.abstained("not a prompt of the methods task")
    said = answer(prompt, completion.text)
    if said is None:
        return Verdict.scored(0.0, passed=False, reason="malformed")
    is_right = said == int(prompt.answer)
    return Verdict.scored(float(is_right), passed=is_right, reason="" if is_right else f"came to {said}")


def group(prompt: Prompt, completion: Completion) -> str | None:
    """`long` for a vote, `short` for one trial; None for anything else."""
    methods = _methods(prompt, completion.text)
    if methods is None:
        return None
    return "short" if len(methods) == 1 else "long"


def answer(prompt: Prompt, text: str) -> int | None:
    """What a completion answers: the value that most of its methods give, the earliest of equals. None if malformed."""
    methods = _methods(prompt, text)
    if methods is None:
        return None
    problem = Problem(prompt.info["kind"], prompt.info["number"])
    return vote([problem.outcome(method) for method in methods])


def vote(values: Sequence[int]) -> int:
    """The most frequent value, the earliest of equals. Of five, one that comes three times is that."""
    return Counter(values).most_common(1)[0][0]


def write_prompts(path: str | Path, count: int, seed: int = 0, split: str = "train", mode: Mode = "A") -> int:
    """Writes the first `count` prompts as JSON Lines in the package's row format; returns how many."""
    return write_jsonl(path, MethodsTask(seed, split).prompts(count, mode))


def _methods(prompt: Prompt, text: str) -> list[str] | None:
    """The methods that a completion names; None for another form, or another kind."""
    match = _SHORT.fullmatch(text) or _LONG.fullmatch(text)
    return match[2].split(",") if match and match[1] == prompt.info["kind"] else None


def _draw(rng: random.Random) -> Problem:
    return Problem(rng.choice(KINDS), rng.randrange(NUM_NUMBERS))


def _prompt(problem: Problem, mode: Mode, identifier: str) -> Prompt:
    return Prompt(
        id=identifier,
        messages=({"role": "user", "content": problem.request(mode)},),
        answer=str(problem.answer),
        task="methods",
        info={"kind": problem.kind, "number": problem.number, "level": problem.level},
    )
