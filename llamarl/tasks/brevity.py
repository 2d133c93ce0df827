"""The smallest task that shows learning: the shorter the answer, the better. A random policy learns it in 20 steps."""

from dataclasses import dataclass

from llamarl.core.records import Completion, Prompt


def prompts(count: int) -> list[Prompt]:
    """`count` prompts `say 0`, `say 1`, ..."""
    return [
        Prompt(id=f"brevity-{index}", messages=({"role": "user", "content": f"say {index}"},), task="brevity")
        for index in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Brevity:
    """A judge in [0, 1]: 1 for an answer that ends at once, 0 for one of `max_tokens` tokens or more."""

    max_tokens: int = 16

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """The reward of one completion."""
        return max(0.0, 1.0 - (len(completion.token_ids) - 1) / (self.max_tokens - 1))
