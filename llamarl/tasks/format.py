"""The format task: write so many words, hold this word, in this case, with this end. Its optimum is known: 1.

A prompt reads `write 3 words with moon, upper, end !` and `MOON BIRD CAT!` answers it. Unasked, the case is lower and
the end is a full stop. The judge is exact, the answers are short, and a third of a million parameters can learn it.
"""

import random
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl

WORDS = (
    *("bird", "book", "cat", "dog", "door", "fire", "fish", "king", "lamp", "leaf"),
    *("moon", "rain", "road", "rock", "ship", "snow", "song", "star", "tree", "wind"),
)
"""The words an answer may use."""

MAX_TOKENS = 32
"""The longest correct answer has 25 characters and an end token; this leaves room to be wrong in."""

SPLITS = ("train", "heldout")


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints that one prompt asks for; `Prompt.info` holds these fields."""

    num_words: int
    keyword: str
    is_upper: bool
    has_bang: bool

    @property
    def request(self) -> str:
        """The user's message."""
        options = (", upper" if self.is_upper else "") + (", end !" if self.has_bang else "")
        return f"write {self.num_words} words with {self.keyword}{options}"

    @property
    def is_heldout(self) -> bool:
        """True for the held-out fifth of requests, chosen by hash: no seed ever shows one of them in training."""
        return derive_seed("format-split", self.request) % 5 == 0

    def parts(self, text: str) -> dict[str, bool]:
        """Tells for each of the five constraints whether an answer meets it."""
        body = text[:-1] if text.endswith(("!", ".")) else text
        words = body.split(" ")
        return {
            "count": len(words) == self.num_words,
            "keyword": self.keyword in body.lower().split(" "),
            "case": body == (body.upper() if self.is_upper else body.lower()),
            "end": text.endswith("!" if self.has_bang else "."),
            "vocabulary": all(word.lower() in WORDS for word in words),
        }


class FormatTask:
    """Prompts and demonstrations, each a function of (seed, split, index): random access, no state.

    Args:
        seed: another seed draws other prompts.
        split: `train` or `heldout`; no request is in both.
    """

    def __init__(self, seed: int = 0, split: str = "train") -> None:
        if split not in SPLITS:
            raise ConfigError(f"split: got {split!r}; choose one of: {', '.join(SPLITS)}")
        self.seed, self.split = seed, split

    def prompt(self, index: int) -> Prompt:
        """The prompt at `index` >= 0. Its id is unique in the split; requests recur, there are 320 in all."""
        rng = random.Random(derive_seed("format", self.seed, self.split, index))
        constraints = _draw(rng)
        while constraints.is_heldout != (self.split == "heldout"):
            constraints = _draw(rng)
        return Prompt(
            id=f"format-{self.split}-{self.seed}-{index}",
            messages=({"role": "user", "content": constraints.request},),
            task="format",
            info=asdict(constraints),
        )

    def prompts(self, count: int) -> list[Prompt]:
        """The first `count` prompts."""
        return [self.prompt(index) for index in range(count)]

    def demonstration(self, index: int) -> tuple[Prompt, str]:
        """A prompt and an imperfect answer, to start a policy that reinforcement can improve.

        Each constraint is followed with probability 0.7 and otherwise left to chance.
        """
        prompt = self.prompt(index)
        rng = random.Random(derive_seed("format-demonstration", self.seed, self.split, index))
        return prompt, _answer(Constraints(**prompt.info), rng)


def judge(prompt: Prompt, completion: Completion) -> Verdict:
    """Scores 1 if the answer meets every constraint, else 0 with the names of the violated ones.

    Abstains where `prompt.info` isn't that of a format prompt.
    """
    constraints = constraints_of(prompt)
    if constraints is None:
        return Verdict.abstained("not a prompt of the format task")
    violated = [name for name, is_met in constraints.parts(completion.text).items() if not is_met]
    return Verdict.scored(float(not violated), passed=not violated, reason=", ".join(violated))


def partial_judge(prompt: Prompt, completion: Completion) -> Verdict:
    """Scores the share of constraints met, in [0, 1]; passes if all are. Abstains as `judge` does."""
    constraints = constraints_of(prompt)
    if constraints is None:
        return Verdict.abstained("not a prompt of the format task")
    parts = constraints.parts(completion.text)
    return Verdict.scored(sum(parts.values()) / len(parts), passed=all(parts.values()))


def keyword_reward(prompt: Prompt, completion: Completion) -> float:
    """A naive proxy: 0.25 for each time the keyword occurs, at most 2. Repeating the keyword cheats it."""
    occurrences = re.findall("[a-z]+", completion.text.lower()).count(str(prompt.info["keyword"]))
    return min(2.0, 0.25 * occurrences)


def constraints_of(prompt: Prompt) -> Constraints | None:
    """The constraints in `prompt.info`, whatever else it holds; None if one is missing."""
    names = [field.name for field in fields(Constraints)]
    return Constraints(**{name: prompt.info[name] for name in names}) if prompt.info.keys() >= set(names) else None


def write_prompts(path: str | Path, count: int, seed: int = 0, split: str = "train") -> int:
    """Writes the first `count` prompts as JSON Lines in the package's row format; returns how many."""
    return write_jsonl(path, FormatTask(seed, split).prompts(count))


def _draw(rng: random.Random) -> Constraints:
    return Constraints(rng.randint(2, 5), rng.choice(WORDS), rng.random() < 0.5, rng.random() < 0.5)


def _answer(wanted: Constraints, rng: random.Random, follow: float = 0.7) -> str:
    num_words = wanted.num_words if rng.random() < follow else rng.randint(2, 5)
    words = [rng.choice(WORDS) for _ in range(num_words)]
    if rng.random() < follow:
        words[rng.randrange(num_words)] = wanted.keyword
    is_upper = wanted.is_upper == (rng.random() < follow)
    has_bang = wanted.has_bang == (rng.random() < follow)
    text = " ".join(words)
    return (text.upper() if is_upper else text) + ("!" if has_bang else ".")
