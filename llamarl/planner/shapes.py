"""The shape of a model: its sizes, from which parameters, activations and the cache are counted.

Shapes of well-known models come with the package (`NAMES`); any other comes from the values of a `config.json`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Self

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Sizes of attention over compressed keys and values (multi-head latent attention, DeepSeek-V2 section 2.1)."""

    query_rank: int
    """Width of the compressed queries; 0 where queries are not compressed."""
    cache_rank: int
    """Width of the compressed keys and values, which are what the cache holds."""
    rotated: int
    """Rotated numbers of a head, one set for all heads; they are cached too."""
    unrotated: int
    """Numbers of a head that are not rotated."""
    value: int
    """Numbers of a head's value."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Sizes of layers in which each token passes through a few of many small MLPs."""

    number: int
    """Routed experts of a layer."""
    active: int
    """Routed experts that one token passes through."""
    width: int
    """Width of a routed expert's MLP."""
    shared_width: int = 0
    """Width of the MLP that every token passes through besides."""
    dense_layers: int = 0
    """First layers that have one plain MLP instead."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a causal language model. Counts are of numbers, not bytes."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    """Width of a dense layer's gated MLP, which has three matrices."""
    vocabulary: int
    is_tied: bool
    """True where the output head is the embedding."""
    has_query_bias: bool = False
    """True where queries, keys and values have a bias."""
    has_output_bias: bool = False
    """True where attention's output has a bias."""
    has_query_norm: bool = False
    """True where queries and keys are normalised, head by head."""
    latent: LatentAttention | None = None
    experts: Experts | None = None
    uncounted: int = 0
    """Parameters of the real model that this shape does not know of; they count as those of every token."""

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return (
            self.embedding_parameters + self.layers * self._every_layer + self._all_mlps + self.hidden + self.uncounted
        )

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through, the embedding's rows counted as the output head's."""
        experts = self.experts
        if experts is None:
            return self.parameters
        idle = 3 * self.hidden * experts.width * (experts.number - experts.active)
        return self.parameters - self.expert_layers * idle

    @property
    def matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with: the active ones, less an embedding that is only looked up."""
        return self.active_parameters - (0 if self.is_tied else self.vocabulary * self.hidden)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and output head."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def expert_layers(self) -> int:
        """Layers with routed experts."""
        return 0 if self.experts is None else self.layers - self.experts.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts."""
        return 0 if self.experts is None else self.expert_layers * self.experts.number * self._one_expert

    @property
    def largest_layer(self) -> int:
        """Parameters of a layer, without its routed experts."""
        return self._every_layer + self._shared_mlp

    @property
    def cache_numbers(self) -> int:
        """Numbers that the cache holds of one token, all layers together."""
        if self.latent is not None:
            return self.layers * (self.latent.cache_rank + self.latent.rotated)
        return self.layers * 2 * self.kv_heads * self.head_dim

    @property
    def attention_width(self) -> int:
        """Numbers of all heads' queries together, to which attention's products are proportional."""
        return self.heads * self.head_dim

    def touched_experts(self, tokens: float) -> float:
        """The share of a layer's experts that a batch of so many tokens passes through, where routing is uniform."""
        if self.experts is None or tokens <= 0:
            return 0.0
        return float(1.0 - (1.0 - self.experts.active / self.experts.number) ** tokens)

    def linear_layers(self) -> dict[str, tuple[int, int, int]]:
        """The linear layers that adapters go beside: inputs, outputs, and how many there are, by name.

        The output head has none; nor have a mixture's experts and its router.

        Raises:
            ConfigError: attention is over compressed keys and values, whose layers nobody here adapts.
        """
        if self.latent is not None:
            raise ConfigError(f"lora: {self.name} has compressed keys and values, for which there are no adapters")
        d, query, key = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        layers = {"q_proj": (d, query), "k_proj": (d, key), "v_proj": (d, key), "o_proj": (query, d)}
        mlp = {"gate_proj": (d, self.width), "up_proj": (d, self.width), "down_proj": (self.width, d)}
        dense = self.layers - self.expert_layers
        found = {name: (*sizes, self.layers) for name, sizes in layers.items()}
        return found | {name: (*sizes, dense) for name, sizes in mlp.items() if dense}

    def adapter_parameters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """Numbers in low-rank adapters, `rank * (inputs + outputs)` for each layer that gets one.

        Args:
            rank: rows of A and columns of B.
            targets: names of these layers; empty: all of them.

        Raises:
            ConfigError: a name that no such layer has.
        """
        layers = self.linear_layers()
        if unknown := [name for name in targets if name not in layers]:
            raise ConfigError(f"lora.targets: {unknown[0]!r} is none of {', '.join(layers)}")
        chosen = [layers[name] for name in targets or layers]
        return sum(rank * (inputs + outputs) * count for inputs, outputs, count in chosen)

    @property
    def _every_layer(self) -> int:
        """Parameters of attention and both norms."""
        d, heads, kv_heads, size = self.hidden, self.heads, self.kv_heads, self.head_dim
        if (latent := self.latent) is not None:
            wide = heads * (latent.rotated + latent.unrotated)
            queries = d * latent.query_rank + latent.query_rank * (1 + wide) if latent.query_rank else d * wide
            keys = d * (latent.cache_rank + latent.rotated) + latent.cache_rank
            keys += latent.cache_rank * heads * (latent.unrotated + latent.value)
            return queries + keys + heads * latent.value * d + 2 * d
        projections = d * size * (2 * heads + 2 * kv_heads)
        biases = size * (heads + 2 * kv_heads) * self.has_query_bias + d * self.has_output_bias
        return projections + biases + 2 * size * self.has_query_norm + 2 * d

    @property
    def _one_expert(self) -> int:
        return 3 * self.hidden * (self.experts.width if self.experts else 0)

    @property
    def _shared_mlp(self) -> int:
        """Parameters of one layer's MLP that every token passes through, the router's among them."""
        if self.experts is None:
            return 3 * self.hidden * self.width
        return 3 * self.hidden * self.experts.shared_width + self.hidden * self.experts.number

    @property
    def _all_mlps(self) -> int:
        dense_layers = self.layers - self.expert_layers
        dense = 3 * self.hidden * self.width * dense_layers
        return dense + self.expert_layers * self._shared_mlp + self.expert_parameters

    @classmethod
    def from_config(cls, name: str, values: Mapping[str, Any], parameters: int | None = None) -> Self:
        """The shape that the values of a `config.json` describe.

        Args:
            name: for messages.
            values: as in the file; what it may leave out takes the value that transformers gives it.
            parameters: the real model's count, where it is known: the shape then has exactly as many.

        Raises:
            ConfigError: a size is missing or not a positive whole number.
        """

        def size(field: str, default: int | None = None) -> int:
            value = values.get(field)
            value = default if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: config: {field}={value!r}, which must be a whole number of at least 1")
            return value

        family = str(values.get("model_type"))
        hidden, heads = size("hidden_size"), size("num_attention_heads")
        has_bias = bool(values.get("attention_bias", False))
        latent = None
        if values.get("kv_lora_rank"):
            latent = LatentAttention(
                query_rank=values.get("q_lora_rank") or 0,
                cache_rank=size("kv_lora_rank"),
                rotated=size("qk_rope_head_dim"),
                unrotated=size("qk_nope_head_dim"),
                value=size("v_head_dim"),
            )
        head_dim = latent.rotated + latent.unrotated if latent else size("head_dim", max(1, hidden // heads))
        number = next((values[key] for key in _EXPERT_COUNTS if values.get(key)), None)
        experts = None
        if number:
            width = size("moe_intermediate_size", values.get("intermediate_size"))
            experts = Experts(
                number=int(number),
                active=size("num_experts_per_tok"),
                width=width,
                shared_width=values.get("shared_expert_intermediate_size")
                or width * (values.get("n_shared_experts") or 0),
                dense_layers=values.get("first_k_dense_replace") or 0,
            )
        shape = cls(
            name=name,
            hidden=hidden,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=head_dim,
            width=size("intermediate_size", 4 * hidden),
            vocabulary=size("vocab_size"),
            is_tied=bool(values.get("tie_word_embeddings", False)),
            has_query_bias=has_bias or family.startswith("qwen2"),
            has_output_bias=has_bias and family == "llama",
            has_query_norm=family.startswith("qwen3"),
            latent=latent,
            experts=experts,
        )
        return shape if parameters is None else replace(shape, uncounted=parameters - shape.parameters)


_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names under which configs say how many experts a layer has."""


@cache
def _public() -> dict[str, dict[str, Any]]:
    text = resources.files("llamarl.planner").joinpath("data/models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def model_names() -> list[str]:
    """The models whose shapes come with the package."""
    return list(_public())


def public_shape(name: str) -> ModelShape:
    """The shape of a model that comes with the package.

    Raises:
        ConfigError: no such name.
    """
    if name not in _public():
        raise ConfigError(
            f"model={name!r}: no directory with a config.json, no GGUF file, and no model whose sizes come with the "
            f"package.{suggest(name, model_names())}"
        )
    return ModelShape.from_config(name, _public()[name])
