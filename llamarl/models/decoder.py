"""The forward pass of the Llama, Qwen2, Qwen3 and Mistral families, written once for generator and trainer.

Tokens are packed: `[M]` token ids of any number of sequences, without padding. Everything except attention works
token by token; attention is a strategy, `attend(layer, q, k, v)`, which knows the sequences:

    generator, prefill     causal over each prompt, writes the cache
    generator, decode      one query per row against its cache
    trainer                causal over each prompt and over each completion behind its shared prompt

Since both sides run the same mathematics on the same weights, their log-probs agree to rounding, and the generator's
may serve as behaviour log-probs.

Shape legend: M tokens, d hidden size, H query heads, K key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`(layer index, q [M, H, D], k [M, K, D], v [M, K, D]) -> [M, H * D]`; q and k are already rotated."""


class Projection(Protocol):
    """A linear map `[M, in] -> [M, out]`: dense, joined from several weights, or quantised."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(slots=True)
class Dense:
    """`x W^T + b`."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(slots=True)
class Joined:
    """Several maps of one input, side by side: separate weights behave as one wide matrix."""

    parts: tuple[Dense, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass(slots=True)
class Layer:
    """One transformer block."""

    attention_norm: Tensor
    qkv: Projection
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes read from a Hugging Face config."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    norm_eps: float
    max_positions: int

    @classmethod
    def of(cls, config: Any) -> "Geometry":
        """Reads a transformers config."""
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            max_positions=config.max_position_embeddings,
        )


def why_unsupported(config: Any) -> str | None:
    """Why this decoder cannot run a model of `config`, or None if it can. Other models fall back to transformers."""
    kind = getattr(config, "model_type", "?")
    if kind not in ("llama", "qwen2", "qwen3", "mistral"):
        return f"model_type {kind!r} is not one of llama, qwen2, qwen3, mistral"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"hidden_act {config.hidden_act!r} is not silu"
    window = getattr(config, "sliding_window", None)
    windowed_layers = [t for t in getattr(config, "layer_types", None) or [] if t != "full_attention"]
    uses_window = bool(windowed_layers) if kind.startswith("qwen") else window is not None
    if uses_window and (window is None or window < config.max_position_embeddings):
        return f"sliding-window attention ({window} of {config.max_position_embeddings} positions)"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3", "yarn"):
        return f"rope_type {rope!r} depends on the sequence length"
    return None


class Decoder:
    """The packed forward pass over one set of weights.

    Build it with `live` (trainer: the module's own parameters, gradients flow) or `fused` (generator: own copies, wide
    matrices, refreshed by `copy_from`).
    """

    def __init__(
        self, geometry: Geometry, embed: Tensor, layers: list[Layer], norm: Tensor, head: Projection, model: nn.Module
    ) -> None:
        self.geometry, self.embed, self.layers, self.norm, self.head = geometry, embed, layers, norm, head
        self._rotary = model.model.rotary_emb  # type: ignore[union-attr]  # the module that scales positions as trained
        self.cos, self.sin = self._tables(min(geometry.max_positions, 512))

    @classmethod
    def live(cls, model: nn.Module) -> "Decoder":
        """Runs on the parameters of a transformers `*ForCausalLM` themselves.

        The objects are read once: keep the module's parameters in place (optimizers and `copy_` do).
        """
        config: Any = model.config
        body: Any = model.model
        layers = [
            Layer(
                attention_norm=block.input_layernorm.weight,
                qkv=Joined(tuple(_dense(getattr(block.self_attn, f"{n}_proj")) for n in "qkv")),
                query_norm=_weight_of(block.self_attn, "q_norm"),
                key_norm=_weight_of(block.self_attn, "k_norm"),
                out=_dense(block.self_attn.o_proj),
                mlp_norm=block.post_attention_layernorm.weight,
                gate_up=Joined((_dense(block.mlp.gate_proj), _dense(block.mlp.up_proj))),
                down=_dense(block.mlp.down_proj),
            )
            for block in body.layers
        ]
        head: Any = model.lm_head
        return cls(Geometry.of(config), body.embed_tokens.weight, layers, body.norm.weight, _dense(head), model)

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Final hidden states, normalised, ready for `head`.

        Args:
            ids: `[M]` int64 token ids.
            positions: `[M]` int64 position of each token in its own sequence, from 0.
            attend: the attention strategy.

        Returns:
            `[M, d]`.
        """
        g = self.geometry
        x = F.embedding(ids, self.embed)
        cos, sin = self.rotation(positions)
        num_q, num_qk = g.num_heads, g.num_heads + g.num_kv_heads
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._rms(x, layer.attention_norm)).view(len(ids), -1, g.head_dim)
            if layer.query_norm is not None and layer.key_norm is not None:
                q, k = self._rms(qkv[:, :num_q], layer.query_norm), self._rms(qkv[:, num_q:num_qk], layer.key_norm)
                qk = torch.cat([q, k], dim=1)
            else:
                qk = qkv[:, :num_qk]
            qk = rotate(qk, cos, sin)
            x = x + layer.out(attend(index, qk[:, :num_q], qk[:, num_q:], qkv[:, num_qk:]))
            gate, up = layer.gate_up(self._rms(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self._rms(x, self.norm)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary factors `cos, sin [M, 1, D]`; the first half of `sin` is negated, as `rotate` wants it."""
        needed = int(positions.max()) + 1 if len(positions) else 1
        if needed > len(self.cos):
            self.cos, self.sin = self._tables(max(needed, 2 * len(self.cos)))
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.geometry.norm_eps)

    @torch.no_grad()
    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self.embed.device)
        cos, sin = self._rotary(self.embed[:1].detach().unsqueeze(0), positions.unsqueeze(0))
        half = self.geometry.head_dim // 2
        return cos[0].clone(), torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, `x [M, heads, D]` (RoFormer, Su et al. 2021, in the half-split layout)."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every parameter, tied ones once: what a weight channel carries."""
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())


def _dense(linear: nn.Linear) -> Dense:
    return Dense(linear.weight, linear.bias)


def _weight_of(module: nn.Module, name: str) -> Tensor | None:
    child = getattr(module, name, None)
    return None if child is None else child.weight
