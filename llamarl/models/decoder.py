"""The forward pass of the Llama, Qwen2, Qwen3, Qwen3-MoE and Mistral families, written once for generator and trainer.

Tokens are packed: `[M]` token ids of any number of sequences, without padding. Everything except attention works
token by token; attention is a strategy, `attend(layer, q, k, v)`, which knows the sequences:

    generator, prefill     causal over each prompt, writes the cache
    generator, decode      one query per row against its cache
    trainer                causal over each prompt and over each completion behind its shared prompt

Since both sides run the same mathematics on the same weights, their log-probs agree to rounding, and the generator's
may serve as behaviour log-probs.

Shape legend: M tokens, d hidden size, H query heads, K key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.core.errors import WeightSyncError
from llamarl.functional.vocabulary import Vocabulary, WholeVocabulary
from llamarl.models.blocks import Attend, Block, Dense, FixedDense, FixedNorm, Joined, Layer, Norm, Projection
from llamarl.models.experts import Experts
from llamarl.models.linear import round_rows
from llamarl.models.packed import Packed, suits_packing

Result = TypeVar("Result")

LANGUAGE_HEAD = "lm_head"
"""Attribute of a causal language model that holds its output head."""


@runtime_checkable
class Quantised(Projection, Protocol):
    """A projection that stores its weights in another form than it is given them."""

    @property
    def num_bytes(self) -> int:
        """The bytes of the stored weights."""

    def write(self, rows: slice, weight: Tensor) -> None:
        """Takes `weight [rows, in]` as the weights of these outputs."""

    def holds(self, rows: slice, weight: Tensor) -> bool:
        """True where these outputs hold exactly what `write` makes of `weight`."""


MakeProjection = Callable[[str, Tensor, Tensor | None], Projection]
"""`(name, weight [out, in], bias [out] or None) -> Projection`: how a fused decoder turns its matrices into maps.

The name is that of the (first) linear module whose weights they are.
"""


_HEAD_COLUMNS = 8
"""An optimizer moves all columns of the output head at once, so that a few tell whether it computes with them."""


class _Views(Mapping[str, Tensor]):
    """Parameters by name: views where the weights lie row by row, copies made when asked for where they are packed."""

    def __init__(self, views: Mapping[str, Tensor], packed: Mapping[str, Callable[[], Tensor]]) -> None:
        self._views, self._packed = views, packed

    def __getitem__(self, name: str) -> Tensor:
        return self._packed[name]() if name in self._packed else self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._views, *self._packed))

    def __len__(self) -> int:
        return len(self._views) + len(self._packed)


def fastest(name: str, weight: Tensor, bias: Tensor | None = None) -> Dense | Packed:
    """A map of a fused decoder: packed where this machine gains by that, else dense."""
    return Packed(weight, bias) if suits_packing(weight) else FixedDense(weight, bias)


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

    def block(self, index: int, layer: Layer, names: dict[str, nn.Module] | None = None) -> Block:
        """Builds a transformer block of these sizes."""
        return Block(index, layer, self.num_heads, self.num_kv_heads, self.head_dim, names)


FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "mistral")
"""Model types that the decoder runs."""


def why_unsupported(config: Any) -> str | None:
    """Says why this decoder cannot run a model of `config`; None if it can. Other models fall back to transformers."""
    kind = getattr(config, "model_type", "?")
    if kind not in FAMILIES:
        return f"model_type {kind!r} is not one of {', '.join(FAMILIES)}"
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


class Decoder(nn.Module):
    """A causal language model: embeddings, blocks, norm and head, over one set of weights.

    Build it with `live` (trainer: the parameters of a transformers module, under the same names; gradients flow) or
    `fuse` (generator: own copies, wide matrices, refreshed by `copy_from`).

    Args:
        config: the transformers config.
        embed: the embeddings; the head itself where they are tied.
        blocks: the transformer blocks.
        norm: the final norm.
        head: the output head, called `head_name`.
        rotary: the module of transformers that scales positions as trained.
        head_name: name of the head's parameters.
    """

    def __init__(
        self,
        config: Any,
        embed: Dense | Packed,
        blocks: list[Block],
        norm: Norm,
        head: Projection,
        rotary: Any,
        head_name: str = LANGUAGE_HEAD,
    ) -> None:
        super().__init__()
        self.config, self.geometry = config, Geometry.of(config)
        body: Any = nn.Module()
        body.embed_tokens, body.layers, body.norm = embed, nn.ModuleList(blocks), norm
        self.model = body
        # Tuples beside the modules that hold the same: these look names up slowly, and every token asks for them.
        self._blocks, self._last_norm = tuple(blocks), (norm,)
        self._head_key = head_name
        self.vocabulary: Vocabulary = WholeVocabulary(self.geometry.vocab_size)
        """The tokens that the head gives logits of, where it is that of a language model."""
        setattr(self, head_name, head)
        self.device, self.dtype = norm.weight.device, norm.weight.dtype
        self._rounds_rows = isinstance(blocks[0].layer.qkv, Packed)
        self._rotary = (rotary,)  # in a tuple, since its buffers are no part of the weights
        self.cos, self.sin = self._tables(min(self.geometry.max_positions, 512))
        self._head_name = ""
        self._views: dict[str, Tensor] = {}
        self._quantised: dict[str, tuple[Quantised, slice, tuple[int, ...]]] = {}

    @classmethod
    def live(cls, model: nn.Module, head_name: str = LANGUAGE_HEAD) -> "Decoder":
        """Runs on the parameters of a transformers `*ForCausalLM` themselves.

        The objects are read once: keep the module's parameters in place (optimizers and `copy_` do).

        Args:
            model: the transformers module.
            head_name: attribute of `model` that holds the output head.
        """
        config: Any = model.config
        body: Any = model.model
        blocks = [_live_block(index, block, Geometry.of(config)) for index, block in enumerate(body.layers)]
        head: Any = getattr(model, head_name)
        embed = Dense(body.embed_tokens.weight, padding_id=body.embed_tokens.padding_idx)
        norm = Norm(body.norm.weight, config.rms_norm_eps)
        return cls(config, embed, blocks, norm, _dense(head), body.rotary_emb, head_name)

    @classmethod
    def fuse(
        cls,
        model: nn.Module,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        make: MakeProjection = fastest,
    ) -> "Decoder":
        """Runs on its own copy of the weights: q, k, v in one matrix, gate and up in another. No gradients.

        Args:
            model: a transformers `*ForCausalLM`; it is read here and not needed afterwards.
            dtype: of weights, activations and cache.
            device: where the copy lives.
            make: builds the projections of the layers. The head, and embeddings tied to it, take the fastest form.
        """
        config: Any = model.config
        body: Any = model.model
        fuse = _Fuser(dtype, torch.device(device), make, config.rms_norm_eps)
        geometry = Geometry.of(config)
        blocks = [
            geometry.block(index, fuse.layer(f"model.layers.{index}.", block))
            for index, block in enumerate(body.layers)
        ]
        norm = fuse.norm("model.norm.weight", body.norm.weight)
        is_tied = cast(Any, model.lm_head).weight is body.embed_tokens.weight
        name, lm_head = "model.embed_tokens" if is_tied else "lm_head", cast(Any, model.lm_head)
        head = cast(Dense | Packed, fuse.project({name: lm_head}, fastest))
        embed = head if is_tied else FixedDense(fuse.copy("model.embed_tokens.weight", body.embed_tokens.weight))
        decoder = cls(config, embed, blocks, norm, head, body.rotary_emb)
        decoder._views, decoder._quantised, decoder._head_name = fuse.views, fuse.quantised, f"{name}.weight"
        return decoder

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks."""
        return self._blocks

    @property
    def layers(self) -> list[Layer]:
        """The maps of each block."""
        return [block.layer for block in self._blocks]

    @property
    def embed(self) -> Dense | Packed:
        """The embeddings."""
        return cast(Any, self.model).embed_tokens  # type: ignore[no-any-return]

    @property
    def norm(self) -> Tensor:
        """The weight of the final norm."""
        return self._last_norm[0].weight

    @property
    def head(self) -> Projection:
        """The output head: hidden states to logits."""
        return cast(Projection, getattr(self, self._head_key))

    @property
    def is_language_model(self) -> bool:
        """True where the head gives a logit of each token, and not of the labels of a classifier."""
        return self._head_key == LANGUAGE_HEAD

    def replace_tokens(self, embed: Dense, head: Dense | None, vocabulary: Vocabulary) -> None:
        """Takes other embeddings, and where it is a language model another head, which gives logits of `vocabulary`."""
        cast(Any, self.model).embed_tokens = embed
        if head is not None:
            setattr(self, self._head_key, head)
            self.vocabulary = vocabulary

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Calls `compute`, a function that uses this decoder.

        Where its weights are sharded over ranks, embeddings, norm and head are whole only in here.
        """
        return compute()

    def named_views(self) -> Mapping[str, Tensor]:
        """Hugging Face parameter name -> view into this fused decoder's buffers; quantised weights have none.

        Of packed weights, a copy made at each access.
        """
        packed = {
            name: partial(projection.dense, rows)
            for name, (projection, rows, _) in self._quantised.items()
            if isinstance(projection, Packed)
        }
        return _Views(self._views, packed)

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights that a fused decoder holds."""
        projections = {id(projection): projection for projection, _, _ in self._quantised.values()}
        return sum(t.nbytes for t in self._views.values()) + sum(p.num_bytes for p in projections.values())

    @torch.no_grad()
    def copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights for every parameter, cast or quantised as this decoder holds them.

        Raises:
            WeightSyncError: names are missing or unknown, or a shape differs; nothing has been copied then.
        """
        self._check_names(tensors)
        for name, view in self._views.items():
            view.copy_(tensors[name])
        for name, (projection, rows, _) in self._quantised.items():
            projection.write(rows, tensors[name])

    @torch.no_grad()
    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of parameters whose held value is not that of `tensors`, up to the rounding of this decoder's form.

        The output head is also compared as it computes: where it is tied to the embeddings, a packed copy that updates
        never reach would pass for equal otherwise, and one update shifts the log-probs by less than bf16 rounds them.
        """
        self._check_names(tensors)
        wrong = [n for n, view in self._views.items() if not torch.equal(view, tensors[n].to(view))]
        wrong += [n for n, (proj, rows, _) in self._quantised.items() if not proj.holds(rows, tensors[n])]
        if self._head_name not in wrong and not self._head_computes_with(tensors[self._head_name]):
            wrong.append(self._head_name)
        return wrong

    def _head_computes_with(self, weight: Tensor) -> bool:
        """True where the head maps unit vectors to columns of `weight`: products with 1 and sums of zeros are exact."""
        columns = torch.arange(0, weight.shape[1], max(1, weight.shape[1] // _HEAD_COLUMNS), device=weight.device)
        unit_vectors = torch.zeros(len(columns), weight.shape[1], dtype=self.dtype, device=self.device)
        unit_vectors[torch.arange(len(columns)), columns] = 1.0
        computed, sent = self.head(unit_vectors), weight[:, columns].t().to(self.device, self.dtype)
        # Some bf16 kernels take subnormal numbers for zero, as untrained rows of an embedding may hold.
        smallest = torch.finfo(self.dtype).tiny
        computed, sent = (x.masked_fill(x.abs() < smallest, 0.0) for x in (computed, sent))
        return torch.equal(computed, sent)

    def _check_names(self, tensors: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(view.shape) for name, view in self._views.items()}
        shapes |= {name: shape for name, (_, _, shape) in self._quantised.items()}
        wrong = sorted(shapes.keys() ^ tensors.keys())
        if wrong:
            raise WeightSyncError(f"weights: {len(wrong)} names missing or unknown: {', '.join(wrong[:5])}")
        wrong = sorted(name for name, shape in shapes.items() if tuple(tensors[name].shape) != shape)
        if wrong:
            raise WeightSyncError(
                f"weights: {wrong[0]} has shape {list(tensors[wrong[0]].shape)}, not {list(shapes[wrong[0]])}"
            )

    def hidden_states(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        longest: int | None = None,
        watch: Callable[[Tensor], None] | None = None,
        experts: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, normalised, ready for `head`.

        Args:
            ids: `[M]` int64 token ids.
            positions: `[M]` int64 position of each token in its own sequence, from 0.
            attend: the attention strategy. Its result may have `num_computed(M)` rows: the rest doesn't matter.
            longest: length of the longest sequence, where the caller knows it: then the device isn't waited for.
            watch: is shown the states behind each layer, `[num_computed(M), d]`, before the final norm.
            experts: `[M, layers with experts, k]` int64, the experts that each token goes to, with -1 where the router
                chooses; None: everywhere.

        Returns:
            `[M, d]`.
        """
        num_tokens = len(ids)
        if longest is None:
            longest = int(positions.max()) + 1 if num_tokens else 1
        num_added = self.num_computed(num_tokens) - num_tokens
        if num_added:  # tokens that nobody attends to
            ids, positions = F.pad(ids, (0, num_added)), F.pad(positions, (0, num_added))
            experts = None if experts is None else F.pad(experts, (0, 0, 0, 0, 0, num_added), value=-1)
        x = self.embed.lookup(ids)
        cos, sin = self.rotation(positions, longest)
        by_layer = iter(() if experts is None else experts.unbind(1))
        for block in self._blocks:
            own = None if block.layer.experts is None else next(by_layer, None)
            x = block(x, cos, sin, attend, num_tokens, own)
            if watch is not None:
                watch(x)
        hidden: Tensor = self._last_norm[0](x[:num_tokens] if num_added else x)
        return hidden

    @property
    def routers(self) -> list[Experts]:
        """The layers with experts, in their order."""
        return [block.layer.experts for block in self._blocks if block.layer.experts is not None]

    def chosen_experts(self, num_tokens: int) -> Tensor:
        """The experts of the first tokens of the last pass, `[num_tokens, layers with experts, k]` uint8."""
        return torch.stack([router.chosen[:num_tokens] for router in self.routers], dim=1).to(torch.uint8)

    def num_computed(self, num_tokens: int) -> int:
        """Number of rows `hidden_states` computes with: products have kernels for few numbers of rows only."""
        return round_rows(num_tokens) if self._rounds_rows else num_tokens

    def rotation(self, positions: Tensor, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Rotary factors `cos, sin [M, 1, D]`; the first half of `sin` is negated, as `rotate` wants it."""
        if longest is None:
            longest = int(positions.max()) + 1 if len(positions) else 1
        if longest > len(self.cos):
            # At least twice as long, so that a growing completion seldom makes new tables.
            self.cos, self.sin = self._tables(max(longest, 2 * len(self.cos)))
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)

    @torch.no_grad()
    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self._rotary[0].inv_freq.device)
        # The rotary module reads no more than dtype and device of its first argument.
        like = torch.empty(1, 1, 1, dtype=self.dtype, device=positions.device)
        cos, sin = (t.to(self.device) for t in self._rotary[0](like, positions.unsqueeze(0)))
        half = self.geometry.head_dim // 2
        return cos[0].clone(), torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every parameter, tied ones once: what a weight channel carries."""
    # Detached, as a copy through a channel is part of no graph.
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())


def _dense(linear: nn.Linear) -> Dense:
    return Dense(linear.weight, linear.bias)


def _experts(mlp: Any, take: Callable[[str, Tensor], Tensor]) -> Experts:
    """The experts of a transformers block, over what `take` makes of each of their named weights."""
    return Experts(
        take("gate.weight", mlp.gate.weight),
        take("experts.gate_up_proj", mlp.experts.gate_up_proj),
        take("experts.down_proj", mlp.experts.down_proj),
        mlp.gate.top_k,
        mlp.gate.norm_topk_prob,
    )


_HEAD_NORMS = ("q_norm", "k_norm")
"""Names of the norms of queries and keys, which only some families have."""


def _live_block(index: int, block: Any, geometry: Geometry) -> Block:
    """A block over the parameters of a transformers block, with the names that they have there."""
    attention, mlp, eps = block.self_attn, block.mlp, geometry.norm_eps
    names: dict[str, Any] = {f"self_attn.{n}_proj": _dense(getattr(attention, f"{n}_proj")) for n in "qkvo"}
    for name in _HEAD_NORMS:
        if hasattr(attention, name):
            names[f"self_attn.{name}"] = Norm(getattr(attention, name).weight, eps)
    if has_experts := hasattr(mlp, "experts"):
        names["mlp"] = _experts(mlp, lambda name, weight: weight)
    else:
        names |= {f"mlp.{name}_proj": _dense(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")}
    for name in ("input_layernorm", "post_attention_layernorm"):
        names[name] = Norm(getattr(block, name).weight, eps)
    layer = Layer(
        attention_norm=names["input_layernorm"],
        qkv=Joined(tuple(names[f"self_attn.{n}_proj"] for n in "qkv")),
        query_norm=names.get("self_attn.q_norm"),
        key_norm=names.get("self_attn.k_norm"),
        out=names["self_attn.o_proj"],
        mlp_norm=names["post_attention_layernorm"],
        gate_up=None if has_experts else Joined((names["mlp.gate_proj"], names["mlp.up_proj"])),
        down=names.get("mlp.down_proj"),
        experts=names["mlp"] if has_experts else None,
    )
    return geometry.block(index, layer, names)


class _Fuser:
    """Collects a module's weights into wide buffers and remembers which rows belong to which name."""

    def __init__(self, dtype: torch.dtype, device: torch.device, make: MakeProjection, eps: float) -> None:
        self.dtype, self.device, self.make, self.eps = dtype, device, make, eps
        self.views: dict[str, Tensor] = {}
        self.quantised: dict[str, tuple[Quantised, slice, tuple[int, ...]]] = {}

    def layer(self, prefix: str, block: Any) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        head_norms = [
            self.norm(f"{prefix}self_attn.{name}.weight", getattr(attention, name).weight)
            if hasattr(attention, name)
            else None
            for name in _HEAD_NORMS
        ]
        return Layer(
            attention_norm=self.norm(f"{prefix}input_layernorm.weight", block.input_layernorm.weight),
            qkv=self.project({f"{prefix}self_attn.{n}_proj": getattr(attention, f"{n}_proj") for n in "qkv"}),
            query_norm=head_norms[0],
            key_norm=head_norms[1],
            out=self.project({f"{prefix}self_attn.o_proj": attention.o_proj}),
            mlp_norm=self.norm(f"{prefix}post_attention_layernorm.weight", block.post_attention_layernorm.weight),
            **self.mlp(f"{prefix}mlp.", mlp),
        )

    def mlp(self, prefix: str, mlp: Any) -> dict[str, Any]:
        if hasattr(mlp, "experts"):
            experts = _experts(mlp, lambda name, weight: self.copy(f"{prefix}{name}", weight))
            return {"gate_up": None, "down": None, "experts": experts}
        return {
            "gate_up": self.project({f"{prefix}gate_proj": mlp.gate_proj, f"{prefix}up_proj": mlp.up_proj}),
            "down": self.project({f"{prefix}down_proj": mlp.down_proj}),
        }

    def norm(self, name: str, weight: Tensor) -> Norm:
        return FixedNorm(self.copy(name, weight), self.eps)

    def copy(self, name: str, weight: Tensor) -> Tensor:
        self.views[name] = weight.detach().to(device=self.device, dtype=self.dtype, copy=True)
        return self.views[name]

    def project(self, linears: dict[str, Any], make: MakeProjection | None = None) -> Projection:
        modules = list(linears.values())
        weight = torch.cat([m.weight.detach().to(self.device, self.dtype) for m in modules])
        bias = None
        if modules[0].bias is not None:
            bias = torch.cat([m.bias.detach().to(self.device, self.dtype) for m in modules])
        projection = (make or self.make)(next(iter(linears)), weight, bias)
        start = 0
        for name, module in linears.items():
            rows = slice(start, start := start + len(module.weight))
            if isinstance(projection, Quantised):
                self.quantised[f"{name}.weight"] = (projection, rows, tuple(module.weight.shape))
            else:
                self.views[f"{name}.weight"] = weight[rows]
            if bias is not None:
                self.views[f"{name}.bias"] = bias[rows]
        return projection


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention strategy of one lone sequence."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1).flatten(1)
