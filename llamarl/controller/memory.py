"""The memory of a run, part by part: planned from the model's config, measured from what the executors hold.

A run needs its weights many times over. Per parameter of the policy in float32, with one bf16 generator:

    trainer    weights 4, gradients 4, AdamW's moments 8       channel    two versions 8       generator    2

and beside them a generator's cache, and the activations and logits of one micro-batch. With adapters, the policy's
parameters take 4 in the trainer and 2 in the generator; gradients, moments and channel are the adapters' alone.
"""

from collections.abc import Mapping
from typing import Any

from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError
from llamarl.generation.blocks import BLOCK_BYTES
from llamarl.models.checkpoint import count_parameters, new_skeleton
from llamarl.models.device import num_devices, resolve_device
from llamarl.models.lora import count_adapters
from llamarl.training.memory import activation_bytes, default_micro_batch_tokens, logits_bytes
from llamarl.weights.slots import NUM_SLOTS

GIB = 2**30
"""Bytes of the unit in which `llamarl plan` states memory too."""
_FLOAT = 4
_WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0}
_OFFLOADED = ("trainer moments", "trainer copied weights")
"""Parts that lie in the machine's memory with `trainer.offload`."""
_PROGRAM = 450 * 2**20
"""Python, torch and their libraries in one process."""


def plan_memory(recipe: Recipe, config: Any, *, longest_prompt: int, needs_reference: bool) -> dict[str, int]:
    """Bytes by part, of the whole run.

    Args:
        recipe: the run.
        config: the policy's transformers config.
        longest_prompt: tokens of the longest prompt.
        needs_reference: whether a frozen copy of the first policy scores completions.
    """
    trainer = recipe.trainer
    micro_batch = trainer.micro_batch_tokens or default_micro_batch_tokens(config, resolve_device(trainer.device))
    step_tokens = sum(
        (task.prompts_per_step or 1) * (longest_prompt + (task.samples_per_prompt or 1) * recipe.sampling.max_tokens)
        for task in recipe.all_tasks
    )
    where = recipe.placement.trainer
    tokens = min(micro_batch, step_tokens)  # of each share of the samples
    processes = 1 if recipe.engine == "inprocess" else 2 + where.num_ranks + recipe.num_generators + needs_reference
    return {
        "program": processes * _PROGRAM,
        **_weight_parts(recipe, config, needs_reference),
        "generator cache": recipe.num_generators * _cache_bytes(recipe, config, longest_prompt),
        "activations of a micro-batch": where.fsdp * tokens * activation_bytes(config, where.checkpointing),
        "logits of a micro-batch": where.num_ranks * logits_bytes(config, tokens, where.tp),
    }


def least_memory(
    recipe: Recipe, config: Any, devices: Mapping[str, str], needs_reference: bool
) -> dict[str, dict[str, int]]:
    """Bytes by device and part that a run holds from its first update on, whatever its prompts and lengths.

    Activations, logits and caches are left out: how large they get depends on lengths, and they can be made smaller.

    Args:
        recipe: the run.
        config: the policy's transformers config.
        devices: of the `trainer` and the `generators`.
        needs_reference: whether a frozen copy of the first policy scores completions.
    """
    held: dict[str, dict[str, int]] = {}
    devices_of_trainer = min(recipe.placement.trainer.num_ranks, num_devices(devices["trainer"]))
    for part, size in _weight_parts(recipe, config, needs_reference).items():
        if part == "weight channel" or not size:  # which lies in the machine's memory between processes
            continue
        is_offloaded = recipe.trainer.offload == "optimizer" and part in _OFFLOADED
        name = "cpu" if is_offloaded else devices["generators" if part.startswith("generator") else "trainer"]
        device = {"cuda": "cuda:0"}.get(name, name)  # torch's name for the same device
        is_dealt_out = part.startswith("trainer") and not is_offloaded
        held.setdefault(device, {})[part] = size // devices_of_trainer if is_dealt_out else size
    return held


def _weight_parts(recipe: Recipe, config: Any, needs_reference: bool) -> dict[str, int]:
    """Bytes of all copies of the weights, and of what goes with those that are trained, by part."""
    weights, lora = _FLOAT * count_parameters(config), recipe.trainer.lora
    adapters = 0 if lora is None else _FLOAT * count_adapters(new_skeleton(config), lora)
    trained, where = weights if lora is None else adapters, recipe.placement.trainer
    holders = where.fsdp if where.gradient_sync == "last" else 1  # each then has the gradients of all rows
    held = generator_bytes(config, recipe.generator.precision)
    # A generator holds adapters as it holds activations, and int8 is a format of weights only.
    held += adapters // 2 if recipe.generator.precision == "bf16" else adapters
    return {
        "trainer weights": weights + adapters,
        "trainer gradients": trained * holders,
        "trainer moments": 2 * trained,
        "trainer copied weights": trained * (recipe.trainer.offload == "optimizer"),
        "reference weights": weights * needs_reference,
        "weight channel": NUM_SLOTS * trained // (2 if recipe.publishes_bf16 else 1),
        "generator weights": recipe.num_generators * held,
    }


def refuse_misfit(held: Mapping[str, Mapping[str, int]], totals: Mapping[str, int]) -> None:
    """Raises `ConfigError` where a device has less memory than it must hold in any case.

    Args:
        held: bytes by device and part (`least_memory`).
        totals: bytes of each device.
    """
    for device, parts in held.items():
        if (needed := sum(parts.values())) > totals[device]:
            sizes = ", ".join(f"{part} {size / GIB:.1f} GiB" for part, size in parts.items())
            raise ConfigError(
                f"the run can't fit {device}, which has {totals[device] / GIB:.1f} GiB: {sizes}, together "
                f"{needed / GIB:.1f} GiB before any activation or cache; take a smaller model, fewer generators or a "
                "lower generator.precision, or a device with more memory (llamarl plan says how much)"
            )


def generator_bytes(config: Any, precision: str) -> int:
    """Bytes of a generator's own copy of the weights; embeddings and the output head stay in float32 beside int8."""
    total = count_parameters(config)
    wide = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    if precision == "int8":
        return int(wide * _FLOAT + (total - wide) * _WEIGHT_BYTES["int8"])
    return int(total * _WEIGHT_BYTES[precision])


def _cache_bytes(recipe: Recipe, config: Any, longest_prompt: int) -> int:
    """Keys and values of all slots, each completion as long as it may get; the prompt of a group is held once."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    number = 2 if recipe.generator.precision == "bf16" else _FLOAT
    per_token = 2 * number * config.num_hidden_layers * kv_heads * head_dim
    slots, block = recipe.generator.slots, BLOCK_BYTES // number
    group_size = min(task.samples_per_prompt or 1 for task in recipe.all_tasks)
    num_prompts = min(slots, -(-slots // group_size) + 1)  # the first and the last group may fill part of their slots
    num_blocks = num_prompts * -(-longest_prompt // block) + slots * -(-recipe.sampling.max_tokens // block)
    return int(num_blocks * block * per_token)


def describe_memory(parts: Mapping[str, int], total: int) -> dict[str, str]:
    """The parts in GiB, the largest first; together; and whether that fits `total` bytes."""
    needed = sum(parts.values())
    if needed <= total:
        verdict = "fits"
    else:
        verdict = (
            "more than there is: lower trainer.micro_batch_tokens or generator.slots, set generator.precision to bf16, "
            "or take a smaller model"
        )
    sizes = {part: size for part, size in sorted(parts.items(), key=lambda item: -item[1]) if size}
    return {
        **{
            part: f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"
            for part, size in sizes.items()
        },
        "together": f"{needed / GIB:.2f} GiB of {total / GIB:.1f} GiB: {verdict}",
    }
