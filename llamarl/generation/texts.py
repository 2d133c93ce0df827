"""Completions of texts and chats by a loaded model, through the generator that training uses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed
from llamarl.data.rows import RowError, check_text, excerpt, read_turns
from llamarl.generation.executor import GeneratorConfig, build_batcher
from llamarl.models.tokenizer import Tokenizer

Chat = Sequence[Mapping[str, Any]]
"""Messages, the last of them the user's."""


def complete(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Iterable[str | Chat],
    sampling: Sampling,
    config: GeneratorConfig,
    *,
    samples: int = 1,
    seed: int = 0,
    system: str | None = None,
) -> list[list[Completion]]:
    """Completes each prompt.

    Args:
        model: a `*ForCausalLM`.
        tokenizer: of the model.
        prompts: user messages, or chats.
        sampling: how tokens are drawn.
        config: how the generator runs; no more slots are made than there are completions.
        samples: completions of each prompt, at least 1.
        seed: equal seeds give equal completions, whatever the other prompts are.
        system: a system message before each prompt.

    Returns:
        For each prompt its completions, in order.

    Raises:
        ConfigError: a setting that won't do, or a prompt that is neither text nor a chat.
    """
    if isinstance(prompts, str):
        raise ConfigError("prompts: one text; give a list of prompts")
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ConfigError(f"prompts: {excerpt(prompts)} is no list; give a list of prompts")
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"samples={samples!r}: give at least 1, a whole number")
    first = [{"role": "system", "content": system}] if system else []
    try:
        check_text(system, "system")
        chats = [read_turns(prompt, f"prompts[{key}]", "user") for key, prompt in enumerate(prompts)]
    except RowError as error:
        raise ConfigError(f"{error.field}: {error.problem}; {error.remedy}") from None
    slots = max(1, min(config.slots, len(chats) * samples))
    requests = []
    for key, messages in enumerate(chats):
        name = "\x1f".join(str(message.get("content", "")) for message in messages)
        seeds = tuple(sample_seed(seed, 0, name, i) for i in range(samples))
        requests.append(GenerationRequest(key, tokenizer.encode_chat([*first, *messages]), seeds, sampling))
    generator = build_batcher(model, config.model_copy(update={"slots": slots}), tokenizer)
    return [list(done) for done in generator.generate(requests)]
