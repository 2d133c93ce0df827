"""What the product's team wants beside love: help, and no insults. Exact rules, so that no judge can be fooled."""

from llamarl.core.records import Completion, Prompt
from llamarl.feedback.phrases import features_of

LONGEST = 30
"""Words that a helpful reply has at most."""


def helpful(prompt: Prompt, completion: Completion) -> float:
    """Half for speaking of the topic, a quarter for something concrete, a quarter for brevity; in [0, 1]."""
    _, _, _, concrete, words = features_of(completion.text)
    about = str(prompt.info["topic"]) in completion.text
    return 0.5 * about + 0.25 * (concrete > 0) + 0.25 * (0 < words <= LONGEST)


def polite(prompt: Prompt, completion: Completion) -> bool:
    """No rude word."""
    return bool(features_of(completion.text)[2] == 0)


def kind(prompt: Prompt, completion: Completion) -> float:
    """Nothing rude, and less than 1 for each curt word; in [0, 1]."""
    _, curt, rude, *_ = features_of(completion.text)
    return max(0.0, 1.0 - 0.5 * curt - rude)
