"""Memory that training takes: planned from a model's config, which sizes micro-batches, and measured."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llamarl.core.records import TrainSample
from llamarl.functional.shards import local_part
from llamarl.models.blocks import kept_products
from llamarl.models.decoder import Decoder
from llamarl.scoring.logprobs import MAX_LOGITS
from llamarl.training.config import Checkpointing, OptimizerConfig

LARGEST_MICRO_BATCH = 16384
_SMALLEST = 256
_SHARE = 8
"""A micro-batch may take one part in so many of the device's memory: weights, gradients, moments and a generator's copy
take the rest."""
_FLOAT = 4


def activation_bytes(config: Any, checkpointing: Checkpointing = "none") -> int:
    """Bytes that the forward pass of one packed token leaves for the backward pass, in float32.

    Of each layer with hidden size d, MLP width f, H query and K key/value heads of size D:

        4 d                    both inputs of the norms, both outputs
        5 H D + 8 K D          q, k, v; rotated; laid out by row for attention; attention's output
        4 f                    gate, up, silu(gate), their product

    With `full` checkpointing a layer keeps d, its input, and one layer at a time has all again; with `selective` it
    keeps 3 d + (2 H + 2 K) D + 2 f: its input, and what its products and attention give.

    Args:
        config: a transformers config. Families that the packed decoder doesn't know take somewhat more.
        checkpointing: activations that are computed again.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "intermediate_size", None) or 4 * d
    per_layer = 4 * d + (5 * heads + 8 * kv_heads) * head_dim + 4 * width
    kept = {"full": d, "selective": 3 * d + (2 * heads + 2 * kv_heads) * head_dim + 2 * width}.get(checkpointing)
    layers = config.num_hidden_layers * (per_layer if kept is None else kept) + (0 if kept is None else per_layer)
    return int(_FLOAT * (layers + 2 * d))


def logits_bytes(config: Any, num_tokens: int, tp: int = 1) -> int:
    """Bytes of the logits of so many tokens, with their gradient; beyond `MAX_LOGITS` they are made in pieces.

    Args:
        config: the policy's transformers config.
        num_tokens: of a micro-batch.
        tp: ranks that the vocabulary is cut over; the bytes are of one of them.
    """
    return 2 * _FLOAT * min(num_tokens * -(-int(config.vocab_size) // tp), MAX_LOGITS)


def default_micro_batch_tokens(config: Any, device: torch.device | str) -> int:
    """The largest power of two of tokens whose activations and logits fit in an eighth of the device's memory.

    It depends on the model and the machine, not on what is free at the moment, so that runs repeat. Between 256 and
    16384.
    """
    room = total_memory(device) // _SHARE
    tokens = LARGEST_MICRO_BATCH
    while tokens > _SMALLEST and tokens * activation_bytes(config) + logits_bytes(config, tokens) > room:
        tokens //= 2
    return tokens


def micro_batch_tokens(model: nn.Module, config: OptimizerConfig) -> int:
    """Returns the tokens of a micro-batch: what `config` sets, or the default for this model on its device."""
    if config.micro_batch_tokens is not None:
        return config.micro_batch_tokens
    return default_micro_batch_tokens(model.config, next(model.parameters()).device)


def total_memory(device: torch.device | str) -> int:
    """Returns a device's memory in bytes; of a CPU, the machine's, or what its control group allows."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 16 * 2**30
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return total


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the results of the operations that selective recomputation keeps, inside the block.

    Args:
        note: is given each.
    """

    def __init__(self, note: Callable[[torch.Tensor], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note, self._kept = note, kept_products()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self._kept:
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self._note(tensor)
        return result


class LargestActivations:
    """The most bytes that a forward pass left for its backward pass, counted where a micro-batch is a new largest."""

    def __init__(self) -> None:
        self.num_bytes = self._num_tokens = 0

    @contextmanager
    def measure(self, model: nn.Module, samples: Sequence[TrainSample]) -> Iterator[None]:
        """Counts the tensors saved for a backward pass inside the block, each storage once and weights not at all.

        Of blocks that are computed again, what they keep: their input, and the products' results where these are kept.
        One block at a time then has all of its activations again, which is not counted.
        """
        num_tokens = sum(len(sample.trajectory.token_ids) for sample in samples)
        if num_tokens <= self._num_tokens or not torch.is_grad_enabled():
            yield
            return
        self._num_tokens = num_tokens
        held = {local_part(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                saved[storage.data_ptr()] = storage
            return tensor

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))

            def note_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                note(inputs[0])

            blocks = model.blocks if isinstance(model, Decoder) else ()
            for block in blocks:
                if block.recompute != "none":
                    hook = block.register_forward_pre_hook(note_input)
                    stack.callback(hook.remove)
            if any(block.recompute == "selective" for block in blocks):
                stack.enter_context(_Products(note))
            yield
        # Weights that were gathered from other ranks are given back by now: their storages have no bytes.
        self.num_bytes = max(self.num_bytes, sum(storage.nbytes() for storage in saved.values()))
