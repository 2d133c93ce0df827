"""Models, prompts and rewards of the GRPO benchmarks: the same for every contender.

Speed does not depend on what weights mean, so the larger models are random. Their answers still end like answers: the
end token is given such a probability that lengths have the wanted mean.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamarl.core.records import Prompt, text_completion
from llamarl.data import read_prompts
from llamarl.models.checkpoint import new_config, new_model, save_model
from llamarl.models.tiny import char_tokenizer
from llamarl.recipes import recipe_path
from llamarl.tasks import format as task
from llamarl.tasks.demo import DEMO_CHECKPOINT

NUM_PROMPTS, GROUP_SIZE = 16, 8
LEARNING_RATE = 1e-5
"""Small, so that lengths stay what they are while the clock runs."""

Reward = Callable[[str, Mapping[str, Any]], float]
"""(completion text, the prompt's info) -> reward."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One GRPO step to time."""

    title: str
    max_tokens: int
    reward: Reward
    sizes: Mapping[str, int] | None = None
    """Of a random Llama; None is the shipped demo checkpoint."""
    mean_length: float = 0.0
    """Wanted mean completion length of a random Llama."""

    def checkpoint(self, directory: Path) -> Path:
        """A Hugging Face checkpoint; written below `directory` if it has to be made."""
        if self.sizes is None:
            return DEMO_CHECKPOINT
        return random_checkpoint(directory, self.sizes, end_probability(self.mean_length, self.max_tokens))


def format_reward(text: str, info: Mapping[str, Any]) -> float:
    """1 where the answer meets every constraint of the format task."""
    prompt = Prompt(id="", messages=({"role": "user", "content": ""},), info=info)
    verdict = task.judge(prompt, text_completion(text))
    assert verdict.score is not None, "every prompt of the file is one of the format task"
    return verdict.score


def letter_share(text: str, info: Mapping[str, Any]) -> float:
    """The share of letters: random answers differ in it, so every sample of every group has a gradient."""
    return sum(character.isalpha() for character in text) / max(1, len(text))


def prompts() -> list[Prompt]:
    """The demo's training prompts, in order."""
    return list(read_prompts(recipe_path("demo").parent.parent / "tasks" / "assets" / "format_prompts.jsonl"))


def end_probability(mean: float, maximum: int) -> float:
    """The p with `(1 - (1 - p)**maximum) / p == mean`: the mean length if p ends it at each token, cut at a maximum.

    Example:
        >>> round(end_probability(1.75, 2), 6)
        0.25
    """
    low, high = 1e-9, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** maximum) / middle > mean else (low, middle)
    return low


@torch.no_grad()
def random_checkpoint(directory: Path, sizes: Mapping[str, int], probability: float, seed: int = 0) -> Path:
    """A random Llama over single characters whose end token has about this probability everywhere."""
    tokenizer = char_tokenizer("plain")
    end = tokenizer.eos_ids[0]
    config = new_config(
        "llama",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=None,
        eos_token_id=end,
        **sizes,
    )
    model: Any = new_model(config, seed)
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 10.0  # all hidden states share a large part, which alone decides about the end
    ids = torch.randint(tokenizer.vocab_size, (64, 64), generator=torch.Generator().manual_seed(seed))
    for _ in range(4):  # the end token is also an input, so its logit is not quite linear in its embedding
        hidden = model.model(input_ids=ids).last_hidden_state.flatten(0, 1)
        now = torch.softmax(model.lm_head(hidden), dim=-1)[:, end].mean().item()
        shift = math.log(probability / (1 - probability)) - math.log(now / (1 - now))
        common = hidden.mean(0)
        embedding[end] += shift * common / common.square().sum()
    return save_model(model, tokenizer, directory)


def llama(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, int]:
    """Sizes under transformers' names."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


WORKLOADS = {
    "0.34M": Workload("0.34M, the demo's short answers", 48, format_reward),
    "7.5M": Workload("7.5M, mean length 43 of 64", 64, letter_share, llama(320, 864, 6, 5), 43.0),
    "0.87M": Workload("0.87M, long-tailed: mean 61, max 256", 256, letter_share, llama(128, 384, 4, 4), 61.0),
}
