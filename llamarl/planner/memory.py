"""Memory of a device, part by part, on either side of a run.

The parts have the names that `train --dry-run` gives them. Each is counted at its own largest, so their sum is a little
more than is ever held at once. Nothing in it is fitted: it is tested against reported peaks of public runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llamarl.planner.shapes import ModelShape

Precision = Literal["fp32", "bf16", "fp8", "int8"]
Checkpointing = Literal["none", "selective", "full"]
"""Activations that a layer keeps for its backward pass: all; the outputs of attention and of every other matrix
product; its input only, from which the others are computed again."""

BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp8": 1, "int8": 1}
MAX_LOGITS = 2**26
"""Logits that the trainer makes at once, at most; those of more tokens are made in pieces (`scoring.logprobs`)."""
WHOLE_LOGIT_BYTES = 12
"""Bytes per logit of a trainer that makes them all at once, in the loss's backward pass: the log-softmax and the
gradients of it and of the logits, in float32."""
_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8


@dataclass(frozen=True, slots=True)
class TrainerLayout:
    """The spread of a trainer over its ranks: `fsdp * tp * pp` devices."""

    fsdp: int = 1
    """Ranks among which weights, gradients and moments are cut, and each step's sequences are dealt out."""
    tp: int = 1
    """Ranks that compute each layer together, heads and MLP cut among them, activations between layers too."""
    pp: int = 1
    """Stages of consecutive layers."""
    ep: int = 1
    """Ranks of the FSDP group among which the experts of a layer are dealt out instead of being gathered."""
    precision: Precision = "bf16"
    """Number format of the forward and backward pass; weights, gradients and moments stay in fp32."""
    checkpointing: Checkpointing = "none"

    @property
    def ranks(self) -> int:
        """Devices together."""
        return self.fsdp * self.tp * self.pp


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The work of a pipeline at one time."""

    micro_batches: int = 1
    """Micro-batches of a step, on each pipeline."""
    chunks: int = 1
    """Pieces of consecutive layers on each stage (interleaved schedule); 1 is plain one forward, one backward."""

    def in_flight(self, stages: int) -> float:
        """Micro-batches whose activations the first stage holds, in units of all of the stage's layers."""
        if self.chunks == 1:
            return min(stages, self.micro_batches)
        warm_up = (self.chunks - 1) * stages + 2 * (stages - 1) + 1  # Megatron-LM section 2.2, of the first rank
        return min(warm_up, self.chunks * self.micro_batches) / self.chunks


def activation_numbers(shape: ModelShape, checkpointing: Checkpointing = "none") -> float:
    """Numbers that the forward pass of one token keeps in one layer for the backward pass.

    Without checkpointing, with hidden size d, MLP width f, H query and K key/value heads of size D:

        4 d                    both inputs of the norms, both outputs
        5 H D + 8 K D          q, k, v; rotated; laid out for attention; attention's output
        4 f                    gate, up, silu(gate), their product

    Of a layer with experts, f is the width of those that a token passes through, each with its own input and output.
    """
    d, size = shape.hidden, shape.head_dim
    experts = shape.experts
    width = shape.width if experts is None else experts.active * experts.width + experts.shared_width
    routed = 0 if experts is None else 2 * experts.active * d
    if checkpointing == "full":
        return d
    if checkpointing == "selective":
        return 2 * d + (2 * shape.heads + shape.kv_heads) * size + width + routed / 2
    return 4 * d + (5 * shape.heads + 8 * shape.kv_heads) * size + 4 * width + routed


def trainer_memory(
    shape: ModelShape,
    layout: TrainerLayout,
    tokens: int,
    *,
    pipeline: Pipeline | None = None,
    has_whole_logits: bool = False,
    has_reference: bool = False,
    adapters: int = 0,
) -> dict[str, int]:
    """Bytes of one device of the trainer, by part; of the fullest one, the first of its pipeline.

    The activations are those that all layers keep; one layer's again, as gradients and, with checkpointing, computed
    anew; what goes into the first layer or out of the last one, with its gradient (of a pipeline's stages, for every
    micro-batch under way); and with tensor parallelism a layer's two gathered inputs with their gradients.

    Args:
        shape: the model.
        layout: how the trainer is spread.
        tokens: of one micro-batch, on each group of `tp` ranks.
        pipeline: what a pipeline has under way; None where there is none.
        has_whole_logits: True for a trainer that makes all logits of a micro-batch at once.
        has_reference: True where a frozen copy of the first policy is kept beside it, cut in the same way; beside
            adapters none is needed, since the model without them is that policy.
        adapters: numbers in the adapters that are trained beside frozen weights, and which alone have gradients and
            moments; 0: all weights are trained.
    """
    number, tp = BYTES[layout.precision] if layout.precision != "fp8" else 2, layout.tp
    share = shape.parameters / layout.ranks
    layers = -(-shape.layers // layout.pp)
    if layout.pp > 1:  # the first stage holds the embedding, and no head
        per_layer = (shape.parameters - shape.embedding_parameters) / shape.layers
        share = (layers * per_layer + shape.vocabulary * shape.hidden) / (layout.fsdp * tp)
    in_flight, chunks = (pipeline or Pipeline()).in_flight(layout.pp), (pipeline or Pipeline()).chunks
    held = in_flight * layers * activation_numbers(shape, layout.checkpointing)
    between = 2 * shape.hidden * in_flight * chunks if layout.pp > 1 else 2 * shape.hidden
    working = activation_numbers(shape) * (1 if layout.checkpointing == "none" else 2)
    gathered = 4 * shape.hidden if tp > 1 else 0
    activations = number * tokens * ((held + between + working) / tp + gathered)
    own = adapters / layout.ranks
    trained = own or share
    parts = {
        "weights": _MASTER * (share + own),
        "gradients": _GRADIENT * trained,
        "moments": _MOMENTS * trained,
        "gathered weights": _gathered(shape, layout, number, share),
        "activations of a micro-batch": activations,
        "logits of a micro-batch": 0.0 if layout.pp > 1 else _logits(shape, tokens, tp, has_whole_logits),
        "reference weights": number * share * (has_reference and not adapters),
    }
    return {part: int(size) for part, size in parts.items() if size}


def generator_memory(
    shape: ModelShape,
    precision: Precision,
    tp: int,
    *,
    cached_tokens: float,
    slots: int,
    cache_precision: Precision = "bf16",
    adapters: int = 0,
) -> dict[str, int]:
    """Bytes of one device of a generator of `tp` ranks, by part.

    Embedding and output head stay in bf16 beside fp8 and in fp32 beside int8, as generators keep them.

    Args:
        shape: the model.
        precision: of the weights.
        tp: ranks of the generator.
        cached_tokens: tokens in its cache, of all its completions together.
        slots: completions decoded together, whose logits are in float32 twice.
        cache_precision: of keys and values.
        adapters: numbers in adapters beside the weights, in bf16 beside bf16 and in fp32 otherwise.
    """
    wide = shape.embedding_parameters
    wide_bytes = {"fp8": 2, "int8": 4}.get(precision, BYTES[precision])
    return {
        "weights": int((wide * wide_bytes + (shape.parameters - wide) * BYTES[precision]) / tp)
        + adapters * (2 if precision == "bf16" else 4),
        "cache": int(cached_tokens * cache_bytes_per_token(shape, tp, cache_precision)),
        "logits of a decode step": int(8 * slots * shape.vocabulary / tp),
    }


def cache_bytes_per_token(shape: ModelShape, tp: int, precision: Precision = "bf16") -> float:
    """Bytes of the cache per token on each rank: heads are dealt out, never cut, and latent keys are on every rank."""
    copies = 1 if shape.latent is not None else min(tp, shape.kv_heads)
    return BYTES[precision] * shape.cache_numbers / copies


def checkpoint_bytes(shape: ModelShape, adapters: int = 0) -> int:
    """Bytes on disk of what a resume needs: what is trained, all weights or adapters, and its moments, in fp32."""
    return (_MASTER + _MOMENTS) * (adapters or shape.parameters)


def _gathered(shape: ModelShape, layout: TrainerLayout, number: int, share: float) -> float:
    """Whole weights in the format of the pass, while a rank needs them: one layer and the next, embedding and head.

    A pipeline gathers its stage once for all micro-batches, and sums gradients of whole weights in fp32 meanwhile.
    """
    if layout.fsdp == 1:
        return 0.0 if number == _MASTER else number * share  # autocast's copies
    if layout.pp > 1:
        return (number + _GRADIENT) * share * layout.fsdp
    experts = shape.expert_parameters / max(1, shape.expert_layers) / layout.ep
    return number * (2 * (shape.largest_layer + experts) + shape.embedding_parameters) / layout.tp


def _logits(shape: ModelShape, tokens: int, tp: int, is_whole: bool) -> float:
    """Logits of a micro-batch and their gradient."""
    count = tokens * shape.vocabulary / tp
    return WHOLE_LOGIT_BYTES * count if is_whole else 2 * 4 * min(count, MAX_LOGITS)
