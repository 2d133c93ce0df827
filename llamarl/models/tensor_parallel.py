"""A decoder cut up over ranks: each has some of the heads, of the MLP's inner width, and of the vocabulary.

    q, k, v, gate, up     rows of their weights    each rank a share of the outputs
    out, down             columns                  each rank a share of the inputs; what they give is summed
    embeddings            rows                     each rank some tokens; of the others it adds zeros
    head                  rows                     each rank the logits of some tokens (`functional.vocabulary`)

Of the low-rank adapters of a map by rows, B is cut like the map and A is whole; by columns, A is cut and B is whole.
Everything else, norms and experts included, every rank computes as a whole. "Megatron-LM: Training Multi-Billion
Parameter Language Models Using Model Parallelism", Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from llamarl.functional.vocabulary import SplitVocabulary
from llamarl.models.adapted import AdaptedDense, SharedDense
from llamarl.models.blocks import Dense, Projection
from llamarl.models.decoder import Decoder, why_unsupported

_BY_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


def stretch(size: int, part: int, num_parts: int) -> tuple[int, int]:
    """First place and length of a part of a dimension, cut as `torch.chunk` does: the last may be shorter."""
    longest = -(-size // num_parts)
    start = min(part * longest, size)
    return start, min(longest, size - start)


def why_not_split(config: Any, num_parts: int) -> str | None:
    """Says why a model of `config` cannot be cut into `num_parts`; None if it can."""
    if num_parts == 1:
        return None
    if reason := why_unsupported(config):
        return f"only llamarl's own modules can be cut up, and {reason}"
    heads = config.num_attention_heads
    sizes = {
        "query heads": heads,
        "key/value heads": config.num_key_value_heads or heads,
        "numbers of the MLP's inner width": config.intermediate_size,
    }
    if stretch(config.vocab_size, num_parts - 1, num_parts)[1] == 0:
        return f"a vocabulary of {config.vocab_size} tokens cannot be cut into {num_parts} parts"
    uneven = [f"{size} {name}" for name, size in sizes.items() if size % num_parts]
    return f"{', '.join(uneven)} cannot be cut into {num_parts} equal parts" if uneven else None


def cut_up(decoder: Decoder, part: int, num_parts: int, group: Any) -> dict[str, int]:
    """Leaves of a live decoder one part of each block, of the embeddings and of a language model's head, in place.

    Args:
        decoder: of a config for which `why_not_split` has no reason.
        part: number of this rank's part.
        num_parts: parts together.
        group: the process group of the ranks that share a block.

    Returns:
        The dimension along which each parameter was cut (`stretch`); those that stay whole are not named.
    """
    cuts: dict[str, int] = {}
    split = Summed(group)
    for block in decoder.blocks:
        prefix = f"model.layers.{block.index}."
        for names, dim in ((_BY_ROWS, 0), (_BY_COLUMNS, 1)):
            for name in names:
                if name.startswith("mlp.") and block.layer.experts is not None:
                    continue  # experts stay whole: every rank computes the same
                cut = _cut(block.get_submodule(name), dim, part, num_parts, split)
                cuts |= {f"{prefix}{name}.{parameter}": along for parameter, along in cut.items()}
        block.num_heads, block.num_kv_heads = block.num_heads // num_parts, block.num_kv_heads // num_parts
        block.split = split
        for norm in (block.layer.query_norm, block.layer.key_norm):
            if norm is not None:
                norm.split = split
    return cuts | _cut_vocabulary(decoder, part, num_parts, split)


def _cut(dense: nn.Module, dim: int, part: int, num_parts: int, split: "Summed") -> dict[str, int]:
    """Cuts a map, and the adapters beside it; returns the dimension of each parameter that was cut."""
    assert isinstance(dense, Dense)
    dense.weight = _keep(dense.weight, dim, part, num_parts)
    cuts = {"weight": dim}
    if dim == 0 and dense.bias is not None:
        dense.bias = _keep(dense.bias, 0, part, num_parts)
        cuts["bias"] = 0
    if isinstance(dense, AdaptedDense):
        # The whole one computes for this rank's outputs or inputs alone, so that its gradients are summed.
        if dim == 0:
            dense.lora_A = SharedDense(dense.lora_A.weight, split)
            dense.lora_B.weight = _keep(dense.lora_B.weight, 0, part, num_parts)
            cuts["lora_B.weight"] = 0
        else:
            dense.lora_A.weight = _keep(dense.lora_A.weight, 1, part, num_parts)
            dense.lora_B = SharedDense(dense.lora_B.weight, split)
            cuts["lora_A.weight"] = 1
    return cuts


def _cut_vocabulary(decoder: Decoder, part: int, num_parts: int, split: "Summed") -> dict[str, int]:
    embed, head = decoder.embed, decoder.head
    assert isinstance(embed, Dense) and isinstance(head, Dense)
    start, size = stretch(len(embed.weight), part, num_parts)
    width = stretch(len(embed.weight), 0, num_parts)[1]
    vocabulary = SplitVocabulary(start, size, width, split)
    weight = _keep(embed.weight, 0, part, num_parts)
    cuts, own_head = {"model.embed_tokens.weight": 0}, None
    if decoder.is_language_model:
        head_weight = weight if head.weight is embed.weight else _keep(head.weight, 0, part, num_parts)
        own_head = SplitHead(head_weight, None if head.bias is None else _keep(head.bias, 0, part, num_parts), split)
        cuts |= {"lm_head.weight": 0, "lm_head.bias": 0}
    decoder.replace_tokens(SplitEmbedding(weight, embed.padding_id, vocabulary), own_head, vocabulary)
    return cuts


def _keep(whole: Tensor, dim: int, part: int, num_parts: int) -> nn.Parameter:
    """This rank's part of a parameter, in memory of its own."""
    kept = whole.detach().narrow(dim, *stretch(whole.shape[dim], part, num_parts)).clone()
    return nn.Parameter(kept, requires_grad=whole.requires_grad)


class SplitEmbedding(Dense):
    """Embeddings of some tokens; those of the others come from the ranks that have them.

    Args:
        weight: `[W, d]`.
        padding_id: the token whose embedding takes no gradient.
        vocabulary: which tokens these are.
    """

    def __init__(self, weight: Tensor, padding_id: int | None, vocabulary: SplitVocabulary) -> None:
        start = vocabulary.start
        is_own = padding_id is not None and start <= padding_id < start + vocabulary.size
        super().__init__(weight, padding_id=padding_id - start if padding_id is not None and is_own else None)
        self._vocabulary = vocabulary

    def lookup(self, ids: Tensor) -> Tensor:
        """The embeddings of `ids [M]`, `[M, d]`, on all ranks."""
        local, is_own = self._vocabulary.place(ids)
        found = F.embedding(local, self.weight, self.padding_id).masked_fill(~is_own[:, None], 0.0)
        return self._vocabulary.reduce.total(found)


class SplitHead(Dense):
    """The output head of some tokens: maps `[M, d]`, the same on all ranks, to this rank's logits.

    Args:
        weight: `[W, d]`.
        bias: `[W]`.
        split: sums the gradients of what is mapped.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, split: "Summed") -> None:
        super().__init__(weight, bias)
        self._split = split

    def forward(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, d]` to `[M, W]`."""
        return super().forward(self._split.enter(x))


class Summed:
    """Exchanges over the ranks of one group that make a block whole; a `blocks.Split` and a `vocabulary.Reduce`."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def enter(self, x: Tensor) -> Tensor:
        """Returns `x`; its gradients are summed over the ranks."""
        entered: Tensor = _Enter.apply(x, self._group)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, projection: Projection, x: Tensor) -> Tensor:
        """Sums what `projection` makes of each rank's `x`; a bias is added once."""
        bias = projection.bias if isinstance(projection, Dense) else None
        total = self.total(projection.multiply(x) if isinstance(projection, Dense) else projection(x))
        return total if bias is None else total + bias

    def total(self, x: Tensor) -> Tensor:
        """Sums `x` over the ranks; its gradient is that of the sum."""
        total: Tensor = _Leave.apply(x, self._group)  # type: ignore[no-untyped-call]
        return total

    def largest(self, x: Tensor) -> Tensor:
        """The maximum over the ranks, without a gradient."""
        found = x.detach().contiguous().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return found


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
