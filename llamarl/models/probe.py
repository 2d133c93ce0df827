"""The probe: likely tokens whose log-probs trainer and generators compare after every weight sync.

Rounding costs most on improbable tokens and grows with depth, so a bound on random tokens fits no model. The probe's
rows are prompts of the run, continued greedily by the checkpoint that the run starts from: what such a policy reads and
writes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llamarl.models.decoder import Decoder, causal

_MAX_ROWS = 2
_PROMPT_TOKENS = 64
_NEW_TOKENS = 16
"""The probe is scored at every sync, on both sides: with these sizes it costs what 160 tokens of training cost."""


def probe_rows(model: nn.Module, prompts: Sequence[Sequence[int]] = ()) -> tuple[tuple[int, ...], ...]:
    """Rows of token ids: the first of `prompts`, cut to 64 tokens, each with 16 tokens that `model` deems likeliest.

    Args:
        model: a transformers `*ForCausalLM` of any family, in evaluation mode.
        prompts: token ids of prompts of the run; without any, four arbitrary tokens stand for one.
    """
    config: Any = model.config
    longest = config.max_position_embeddings - _NEW_TOKENS
    chosen = prompts[:_MAX_ROWS] or [arbitrary_ids(config.vocab_size, 4)]
    return tuple(_continue(model, prompt[: min(_PROMPT_TOKENS, longest)]) for prompt in chosen)


def arbitrary_ids(vocab_size: int, length: int) -> tuple[int, ...]:
    """Token ids spread over the vocabulary, the same in every process."""
    return tuple((7919 * place * place + 104729 * place + 17) % vocab_size for place in range(length))


@torch.no_grad()
def _continue(model: nn.Module, prompt: Sequence[int]) -> tuple[int, ...]:
    """Greedily, and without a cache: every family can do that, and sixteen tokens don't need one."""
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    for _ in range(_NEW_TOKENS):
        likeliest = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(dim=-1)
        ids = torch.cat([ids, likeliest], dim=1)
    return tuple(ids[0].tolist())


@torch.no_grad()
def probe_logprobs(decoder: Decoder, ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probs of `ids[1:]`, each given the ids before it, in fp32: `len(ids) - 1` numbers."""
    tokens = torch.tensor(ids, device=decoder.device)
    hidden = decoder.hidden_states(tokens, torch.arange(len(tokens), device=tokens.device), causal)
    logprobs = torch.log_softmax(decoder.head(hidden[:-1]).float(), dim=-1)
    return tuple(logprobs.gather(1, tokens[1:, None])[:, 0].tolist())
