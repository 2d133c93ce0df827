"""The permutation chain: a task whose hard prompts need long answers, and whose easy ones do not.

A state x in 0..7 goes through a chain of one to eight operations, each a fixed permutation of the states; the answer is
the state at the end. The level of a prompt is the length of its chain. A prompt reads `A3cafb....`: the mode, the first
state, and the operations, filled up to eight with dots.

    answer      group     text
    at once     short     5
    in steps    long      <think>2615</think>5        the state after each operation

The mode says what is allowed: `S` short, `L` long, `A` either. A digit in its place allows either under a budget, the
share of long answers that is wanted, in eighths: `43cafb....`. A small model learns long answers at every level, and
short ones up to three or four operations; further than that a short answer is a guess, right one time in eight. So it
is known which prompts are worth a long answer. Operations have unequal frequencies, which grades the levels.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Literal, get_args

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl

NUM_STATES = 8
OPERATIONS = "abcdef"
FREQUENCIES = (0.34, 0.26, 0.16, 0.12, 0.07, 0.05)
"""The share of each operation in a chain."""
MAX_LEVEL = 8
MAX_TOKENS = 12
"""The tokens of the longest valid answer, its end token included."""

LEVEL_WEIGHTS = (0.5, 0.5, 1.0, 1.2, 1.2, 1.2, 1.2, 1.2)
"""The weights of levels 1 to 8 in training prompts: three quarters are hard, so that a budget of 75 % binds."""
UNIFORM = (1.0,) * MAX_LEVEL

SHORT_CURRICULUM = (
    (0.0, (1.0, 1.0, 1.0)),
    (0.45, (1.0, 1.0, 1.0, 1.0)),
    (0.6, (2.0, 3.0, 5.0, 3.0, 2.0, 1.0, 1.0, 1.0)),
)
"""The level weights of the demonstrations of short answers, each with the share of the steps from which it holds."""

Mode = Literal["S", "L", "A"]
"""Short, long, or either."""

SPLITS = ("train", "heldout")

_SHORT = re.compile(r"([0-7])")
_LONG = re.compile(r"<think>[0-9]+</think>([0-7])")


@dataclass(frozen=True, slots=True)
class Chain:
    """One problem; `Prompt.info` holds these fields."""

    start: int
    operations: str

    @property
    def states(self) -> list[int]:
        """The state after each operation."""
        states, state = [], self.start
        for operation in self.operations:
            state = permutations()[operation][state]
            states.append(state)
        return states

    @property
    def is_heldout(self) -> bool:
        """True for the held-out fifth, chosen by hash: no seed ever shows it in the training split."""
        return derive_seed("chain-split", self.start, self.operations) % 5 == 0

    def request(self, mode: Mode, budget: float | None = None) -> str:
        """The user's message: under a mode, or under a budget.

        Raises:
            ConfigError: the budget is no eighth between 0 and 1.
        """
        first = mode if budget is None else _budget_symbol(budget)
        return f"{first}{self.start}{self.operations.ljust(MAX_LEVEL, '.')}"

    def response(self, is_long: bool) -> str:
        """The right answer, at once or in steps."""
        answer = str(self.states[-1])
        return f"<think>{''.join(map(str, self.states))}</think>{answer}" if is_long else answer


@cache
def permutations() -> dict[str, tuple[int, ...]]:
    """The state that each operation leads to, by the state before."""
    rng = random.Random(derive_seed("chain-permutations", 1))
    return {operation: tuple(rng.sample(range(NUM_STATES), NUM_STATES)) for operation in OPERATIONS}


class ChainTask:
    """Prompts and demonstrations, each a function of (seed, split, index): random access, no state.

    Args:
        seed: another seed draws other prompts.
        split: `train` or `heldout`; no chain is in both.
        level_weights: of levels 1, 2, ... in the prompts; of at most eight.
    """

    def __init__(self, seed: int = 0, split: str = "train", level_weights: Sequence[float] = LEVEL_WEIGHTS) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split: got {split!r}; choose one of: {', '.join(SPLITS)}")
        if not 1 <= len(level_weights) <= MAX_LEVEL or min(level_weights) < 0 or not sum(level_weights) > 0:
            raise ConfigError(f"level_weights: got {tuple(level_weights)}; give one to eight weights, 0 or more each")
        self.seed, self.split, self.level_weights = seed, split, tuple(level_weights)

    def prompt(self, index: int, mode: Mode = "A") -> Prompt:
        """The prompt at `index` >= 0. Its id is unique in the split; short chains recur."""
        rng = random.Random(derive_seed("chain", self.seed, self.split, index))
        level = _level(rng, self.level_weights)
        chain = _draw(rng, level)
        while chain.is_heldout != (self.split == "heldout"):
            chain = _draw(rng, level)
        return _prompt(chain, mode, f"chain-{self.split}-{self.seed}-{index}")

    def prompts(self, count: int, mode: Mode = "A") -> list[Prompt]:
        """The first `count` prompts."""
        return [self.prompt(index, mode) for index in range(count)]

    def demonstration(self, index: int, progress: float = 1.0) -> tuple[Prompt, str]:
        """A prompt of either split and a right answer: 35 % in mode S, 20 % in L, 45 % in A, there half of them long.

        Long ones have all levels alike; short ones, and half of those in mode A, follow a curriculum.

        Args:
            index: 0 or more.
            progress: how far training is, in [0, 1].
        """
        rng = random.Random(derive_seed("chain-demonstration", self.seed, index))
        mode: Mode = rng.choices(get_args(Mode), (0.35, 0.20, 0.45))[0]
        is_long = mode == "L" or (mode == "A" and rng.random() < 0.5)
        follows = mode == "S" or (mode == "A" and rng.random() < 0.5)
        weights = [w for start, w in SHORT_CURRICULUM if progress >= start][-1] if follows else UNIFORM
        chain = _draw(rng, _level(rng, weights))
        return _prompt(chain, mode, f"chain-demonstration-{self.seed}-{index}"), chain.response(is_long)


def with_mode(prompt: Prompt, mode: Mode) -> Prompt:
    """The same problem in another mode, without a budget; id and answer stay."""
    return replace(prompt, messages=({"role": "user", "content": _chain_of(prompt).request(mode)},))


def short(prompt: Prompt) -> Prompt:
    """The same problem, to be answered at once."""
    return with_mode(prompt, "S")


def long(prompt: Prompt) -> Prompt:
    """The same problem, to be answered in steps."""
    return with_mode(prompt, "L")


def adaptive(prompt: Prompt) -> Prompt:
    """The same problem, to be answered either way."""
    return with_mode(prompt, "A")


def with_budget(prompt: Prompt, q_plus: float) -> Prompt:
    """The same problem, either way under a stated budget, which `info.budget` holds too; id and answer stay.

    Raises:
        ConfigError: `q_plus` is no eighth between 0 and 1.
    """
    message = {"role": "user", "content": _chain_of(prompt).request("A", q_plus)}
    return replace(prompt, messages=(message,), info={**prompt.info, "budget": q_plus})


def judge(prompt: Prompt, completion: Completion) -> Verdict:
    """Scores 1 for the right last state in a valid form, else 0. Abstains from prompts of other tasks."""
    if not {"start", "operations"} <= prompt.info.keys():
        return Verdict.abstained("not a prompt of the chain task")
    match = _read(completion.text)
    if match is None:
        return Verdict.scored(0.0, passed=False, reason="malformed")
    is_right = match[1] == str(prompt.answer)
    return Verdict.scored(float(is_right), passed=is_right, reason="" if is_right else f"said {match[1]}")


def group(prompt: Prompt, completion: Completion) -> str | None:
    """`long` for an answer in steps, right or wrong, `short` for one state alone; None for anything else."""
    match = _read(completion.text)
    if match is None:
        return None
    return "short" if match.re is _SHORT else "long"


def write_prompts(
    path: str | Path,
    count: int,
    seed: int = 0,
    split: str = "train",
    mode: Mode = "A",
    level_weights: Sequence[float] = LEVEL_WEIGHTS,
    budgets: Sequence[float] = (),
) -> int:
    """Writes the first `count` prompts as JSON Lines in the package's row format; returns how many.

    With `budgets` each prompt states one of them, in turn, in place of the mode.
    """
    prompts = ChainTask(seed, split, level_weights).prompts(count, mode)
    if budgets:
        prompts = [with_budget(prompt, q_plus) for prompt, q_plus in zip(prompts, cycle(budgets), strict=False)]
    return write_jsonl(path, prompts)


def _read(text: str) -> re.Match[str] | None:
    return _SHORT.fullmatch(text) or _LONG.fullmatch(text)


def _level(rng: random.Random, weights: Sequence[float]) -> int:
    return rng.choices(range(1, len(weights) + 1), weights)[0]


def _draw(rng: random.Random, level: int) -> Chain:
    return Chain(rng.randrange(NUM_STATES), "".join(rng.choices(OPERATIONS, FREQUENCIES, k=level)))


def _chain_of(prompt: Prompt) -> Chain:
    return Chain(prompt.info["start"], prompt.info["operations"])


def _budget_symbol(q_plus: float) -> str:
    if q_plus * 8 not in range(9):
        raise ConfigError(f"budget: got {q_plus}; give an eighth, such as 0.25, 0.5 or 0.75")
    return str(int(q_plus * 8))


def _prompt(chain: Chain, mode: Mode, identifier: str) -> Prompt:
    return Prompt(
        id=identifier,
        messages=({"role": "user", "content": chain.request(mode)},),
        answer=str(chain.states[-1]),
        task="chain",
        info={"start": chain.start, "operations": chain.operations, "level": len(chain.operations)},
    )
