"""Labels as a tokenizer writes them, and the probability of a label at one position.

    P_factual = p_True / (p_True + p_False)        mass = p_True + p_False

Each of the two is summed over the surface variants of its word (case, leading space), in log space. Equation: Qin et
al., https://arxiv.org/abs/2505.12265, section 3, who read the probability of one token. Importing this module does not
import torch.

Shape legend: N claims, K label tokens.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamarl.core.errors import ConfigError
from llamarl.factuality.detectors.detector import Score
from llamarl.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ("True", "False")
"""Words of the two labels; the first one means factual."""
_MIN_LETTERS = 2
"""A first token of fewer letters begins too many other words to count beside whole ones."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The tokens that mean true or false."""

    true_ids: tuple[int, ...]
    false_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Labels":
        """The tokens of all surface variants.

        A variant that is one token counts by that; of one that is several, the first, where no variant of the other
        word begins with it.

        Raises:
            ConfigError: the first tokens of the two words do not tell them apart.
        """
        whole, first = zip(*(_variants(tokenizer, word) for word in WORDS), strict=True)
        shared = (whole[0] | first[0]).intersection(whole[1] | first[1])
        sides = [
            {token for token in singles | starts if _counts(tokenizer, token, singles)} - shared
            for singles, starts in zip(whole, first, strict=True)
        ]
        if not all(sides):
            names = sorted(repr(tokenizer.decode([token], skip_special=False)) for token in shared)
            raise ConfigError(
                f"tokenizer: it begins {WORDS[0]} and {WORDS[1]} with the same tokens ({', '.join(names)}), so one "
                "position cannot tell them apart; use a model with another tokenizer, or the method cot_tf, which "
                "reads the words"
            )
        return cls(*(tuple(sorted(side)) for side in sides))

    @property
    def ids(self) -> tuple[int, ...]:
        """All label tokens `[K]`, those that mean true first."""
        return self.true_ids + self.false_ids

    def sum_up(self, logprobs: "Tensor") -> "Tensor":
        """The log-probs of true and of false `[N, 2]`, from those of `ids`, `[N, K]`."""
        import torch

        sides = logprobs[..., : len(self.true_ids)], logprobs[..., len(self.true_ids) :]
        return torch.stack([side.logsumexp(-1) for side in sides], dim=-1)


def score_labels(log_true: float, log_false: float) -> Score:
    """The score from the log-probs of the two labels; exact also where both are tiny."""
    gap = log_false - log_true
    p_factual = 1.0 / (1.0 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1.0 + math.exp(-gap))
    return Score(p_factual, min(1.0, math.exp(log_true) + math.exp(log_false)))


def _variants(tokenizer: Tokenizer, word: str) -> tuple[set[int], set[int]]:
    """The variants of a word that are one token, and the first tokens of those that are several."""
    texts = [space + form for form in (word, word.lower(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(text) for text in texts]
    return {ids[0] for ids in encoded if len(ids) == 1}, {ids[0] for ids in encoded if len(ids) > 1}


def _counts(tokenizer: Tokenizer, token: int, singles: set[int]) -> bool:
    """True for a whole word and for a start of one that is not too short, if there is a whole one."""
    return token in singles or not singles or len(tokenizer.decode([token]).strip()) >= _MIN_LETTERS
