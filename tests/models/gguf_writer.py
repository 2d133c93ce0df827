"""Writes a tiny Llama checkpoint as a GGUF file, as llama.cpp's converter would."""

from pathlib import Path

import gguf
import numpy as np
import torch

from llamarl.models.checkpoint import load_model, load_tokenizer, new_model, save_model
from llamarl.models.tiny import bpe_tokenizer, tiny_config

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SCALED = {
    "rope_theta": 10000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def build_checkpoint(directory: Path, **sizes: object) -> Path:
    """A Llama with a byte-level BPE tokenizer, the only kind of ours that a GGUF file can hold."""
    tokenizer = bpe_tokenizer(["say the word and the number"] * 4, 300, "chatml")
    config = tiny_config("llama", tokenizer, hidden_size=64, **sizes)  # head_dim 16
    return save_model(new_model(config, 3), tokenizer, directory)


def write_gguf(checkpoint: Path, file: Path, quantize: bool = False, skip: str = "", **fields: str) -> Path:
    """The checkpoint as one file: in float32, or its matrices in 8 bits; without the tensors named `skip`."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    config, backend = model.config, tokenizer.backend
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for name, value in fields.items():
        writer.add_string(name.replace("__", "."), value)
    _add_tokenizer(writer, backend, tokenizer)
    for name, tensor in model.state_dict().items():
        if not name.startswith("lm_head") and (not skip or skip not in name):
            _add_tensor(writer, name, tensor, config, quantize)
    if config.rope_parameters["rope_type"] == "llama3":
        theta, dim = config.rope_parameters["rope_theta"], config.head_dim
        plain = 1.0 / theta ** (torch.arange(0, dim, 2) / dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer, backend, tokenizer):
    import json

    rules = json.loads(backend.backend_tokenizer.to_str())
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    special = set(backend.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in rules["model"]["merges"]])
    writer.add_eos_token_id(backend.eos_token_id)
    writer.add_pad_token_id(backend.pad_token_id)
    writer.add_unk_token_id(backend.unk_token_id)
    writer.add_chat_template(backend.chat_template)


def _add_tensor(writer, name, tensor, config, quantize):
    data = tensor.numpy()
    if name == "model.embed_tokens.weight":
        target = "token_embd.weight"
    elif name == "model.norm.weight":
        target = "output_norm.weight"
    else:
        _, _, index, part = name.removesuffix(".weight").split(".", 3)
        target = f"blk.{index}.{_NAMES[part]}.weight"
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if part in heads:  # llama.cpp rotates neighbours, transformers halves
            data = data.reshape(heads[part], 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
    if quantize and data.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    else:
        writer.add_tensor(target, np.ascontiguousarray(data))
