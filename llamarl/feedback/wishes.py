"""Wishes of the simulated product's team beside love: help, and no insults. Rules, so that nothing fools them.

    helpful     a reward in [0, 1]
    kind        a reward in [0, 1]: the safety objective
    polite      passes or fails: the safety constraint

They stand where a real product has reward models and a safety judge of its own.
"""

from collections.abc import Mapping

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt
from llamarl.feedback.phrases import features_of

LONGEST = 30
"""Words that a helpful reply has at most."""


def helpful(prompt: Prompt, completion: Completion) -> float:
    """Half for speaking of `info["topic"]`, a quarter for something concrete, a quarter for brevity; in [0, 1]."""
    _, _, _, concrete, words = features_of(completion.text)
    is_about = str(prompt.info["topic"]) in completion.text
    return float(0.5 * is_about + 0.25 * (concrete > 0) + 0.25 * (0 < words <= LONGEST))


def kind(prompt: Prompt, completion: Completion) -> float:
    """Nothing rude, and half less for each curt word; in [0, 1]."""
    _, curt, rude, *_ = features_of(completion.text)
    return float(max(0.0, 1.0 - 0.5 * curt - rude))


def polite(prompt: Prompt, completion: Completion) -> bool:
    """No rude word."""
    return bool(features_of(completion.text)[2] == 0)


def weigh_objectives(love: float) -> Mapping[str, float]:
    """Weights of love, helpfulness and safety, which sum to 1: the last two share alike what love leaves.

    The control of an experiment has love 0, a moderate policy 0.1, an aggressive one 0.3.

    Raises:
        ConfigError: not in [0, 1).
    """
    if not 0.0 <= love < 1.0:
        raise ConfigError(f"love={love}: a weight of at least 0 and below 1, such as 0.1")
    return {"love": love, "helpfulness": (1.0 - love) / 2, "safety": (1.0 - love) / 2}
