import torch

from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.models.checkpoint import new_config, new_model

VOCAB = 37
EOS = 2


def build(family="llama", seed=0, **sizes):
    extra = {"qwen3": {"head_dim": 8}, "mistral": {"sliding_window": None}}.get(family, {})
    defaults = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    model = new_model(new_config(family, **{**defaults, **extra, **sizes}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def spell(ids):
    """Token 10 is 'k', 11 is 'l', ...; special tokens (0 to 2) are skipped."""
    return "".join(chr(97 + i) for i in ids if i > EOS)


def request(key=0, prompt=(5, 9, 11), num_samples=2, **sampling):
    return GenerationRequest(
        key,
        tuple(prompt),
        tuple(1000 * key + i for i in range(num_samples)),
        Sampling(**{"max_tokens": 12, **sampling}),
    )


def reference_logprobs(model, completion, temperature=1.0):
    """Log-probs of a completion's tokens by the transformers forward."""
    ids = [*completion.trajectory.prompt_ids, *completion.token_ids]
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0].float() / temperature, dim=-1)
    start = len(completion.trajectory.prompt_ids)
    return [table[i - 1, ids[i]].item() for i in range(start, len(ids))]
