"""A plan as plain values, as the record of a placement, and as a table for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from llamarl.planner.cost import Workload, published_bytes
from llamarl.planner.devices import Device
from llamarl.planner.memory import checkpoint_bytes
from llamarl.planner.search import LEAST_GAIN, USABLE, Answer, Limits, Plan, Search
from llamarl.report.text import format_number

_GIB = 2**30


def describe_answer(search: Search, answer: Answer, devices: int) -> dict[str, Any]:
    """Everything that is known of the best plan, as plain values; sizes in GiB, times in seconds."""
    best, workload, adapters = answer.best, search.workload, search.limits.adapters
    return {
        "fits": True,
        "mode": best.mode,
        "step_seconds": best.step_seconds,
        "synchronous_step_seconds": _seconds(answer.synchronous),
        "asynchronous_step_seconds": _seconds(answer.asynchronous),
        "why": _compare(answer),
        "memory_gib": {
            "trainer": _gib(best.trainer.memory),
            "generator": _gib(best.generators.memory),
            "usable": search.room / _GIB,
        },
        "placement": placement(best, search.device, has_adapters=bool(adapters)),
        "settings": settings(best, workload, search.limits),
        "trainer_seconds": best.trainer.seconds,
        "generator_seconds": best.generators.seconds,
        "decode_step_seconds": best.generators.decode_seconds,
        "completions_under_way": best.generators.active * best.generators.replicas,
        "weight_sync_seconds": best.sync_seconds,
        "idle": idle_shares(best, devices),
        "staleness": staleness(best, workload, search.limits.staleness),
        "published_gib": published_bytes(search.shape, best.generators.precision, search.device, adapters) / _GIB,
        "checkpoint_gib": checkpoint_bytes(search.shape, adapters) / _GIB,
        "tokens_per_second": workload.generated_tokens / best.step_seconds,
        "gpu_hours_per_1000_steps": devices * best.step_seconds / 3.6,
        "model": {
            "name": search.shape.name,
            "parameters": search.shape.parameters,
            "active_parameters": search.shape.active_parameters,
            "adapter_parameters": adapters or None,
        },
        "gpus": devices,
        "gpu": search.device.name,
        "workload": _describe_workload(workload),
        "assumptions": assumptions(search),
    }


def placement(plan: Plan, device: Device, has_adapters: bool = False) -> dict[str, Any]:
    """The record of who runs where, with the names of a recipe's `[placement]`; vLLM servers take no adapters."""
    layout, generators = plan.trainer.layout, plan.generators
    where = "cpu" if device.name == "cpu" else "cuda"
    return {
        "is_shared": plan.is_shared,
        "trainer": {
            "ranks": layout.ranks,
            "fsdp": layout.fsdp,
            "tp": layout.tp,
            "device": where,
            "precision": layout.precision,
            "checkpointing": layout.checkpointing,
            **({"ep": layout.ep} if layout.ep > 1 else {}),
        },
        "generators": [
            {
                "kind": "native" if where == "cpu" or has_adapters else "vllm",
                "replicas": generators.replicas,
                "tp": generators.tp,
                "device": where,
                "precision": generators.precision,
                "slots": generators.slots,
            }
        ],
    }


def settings(plan: Plan, workload: Workload, limits: Limits) -> dict[str, Any]:
    """The plan in the settings that `llamarl train` takes today, by dotted name."""
    generators = plan.generators
    return {
        "schedule.prompts_per_step": workload.prompts,
        "schedule.samples_per_prompt": workload.samples,
        "schedule.max_staleness": limits.staleness if plan.mode == "asynchronous" else 0,
        "sampling.max_tokens": workload.lengths.longest,
        "trainer.precision": plan.trainer.layout.precision,
        "trainer.micro_batch_tokens": plan.trainer.micro_batch_tokens,
        **({"trainer.lora.rank": limits.lora_rank} if limits.lora_rank else {}),
        "generator.slots": generators.slots,
        "num_generators": generators.replicas,
        **({} if generators.precision == "fp8" else {"generator.precision": generators.precision}),
    }


def placement_toml(result: Mapping[str, Any]) -> str:
    """The record as TOML, for a recipe."""
    record = result["placement"]
    lines = [
        f"# {result['model']['name']} on {result['gpus']} x {result['gpu']}: {result['mode']}, about "
        f"{result['step_seconds']:.3g} s a step (llamarl plan)",
        "[placement]",
        f"is_shared = {str(record['is_shared']).lower()}",
        "",
        "[placement.trainer]",
        *_toml(record["trainer"]),
    ]
    for generators in record["generators"]:
        lines += ["", "[[placement.generators]]", *_toml(generators)]
    return "\n".join(lines) + "\n"


def _toml(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        yield f"{name} = {value}" if isinstance(value, int) else f'{name} = "{value}"'


def idle_shares(plan: Plan, devices: int) -> dict[str, float]:
    """Shares of a step in which trainer and generators could have done more, and of all devices' time.

    A generator beside a trainer is never quite idle: its share is what it could sample more at full slots. A simulation
    counts otherwise: there a generator idles where not one slot is taken.
    """
    trainer = 1.0 - plan.trainer.seconds / plan.step_seconds
    generators = max(0.0, 1.0 - plan.generators.seconds / plan.step_seconds)
    ranks = plan.trainer.layout.ranks
    if plan.is_shared:
        busy = plan.trainer.seconds + plan.generators.seconds * plan.generators.ranks / devices
    else:
        busy = (
            ranks * plan.trainer.seconds + plan.generators.ranks * min(plan.generators.seconds, plan.step_seconds)
        ) / devices
    return {"trainer": trainer, "generator": generators, "all": max(0.0, 1.0 - busy / plan.step_seconds)}


def staleness(plan: Plan, workload: Workload, bound: int) -> dict[str, float]:
    """Versions by which trained tokens are behind: the bound, of a completion's oldest token, of the mean token.

    Completions begin as soon as the bound allows, unless all slots are taken.
    """
    if plan.mode == "synchronous":
        return {"bound": 0, "oldest_token": 0.0, "mean_token": 0.0}
    generators = plan.generators
    longest = workload.lengths.expected_longest(workload.completions) * generators.decode_seconds
    oldest = float(bound)
    if generators.active >= 0.999 * generators.slots:
        oldest = min(oldest, (longest + plan.trainer.seconds) / plan.step_seconds)
    until = workload.lengths.mean_context * generators.decode_seconds / plan.step_seconds
    return {"bound": bound, "oldest_token": oldest, "mean_token": max(0.0, oldest - until)}


def assumptions(search: Search) -> list[str]:
    """The assumptions of a plan, in sentences."""
    workload, rates, device = search.workload, search.rates, search.device
    lengths = workload.lengths
    return [
        f"lengths are log-normal (spread {lengths.spread:g}) with mean {lengths.mean:g}, cut off at {lengths.longest}; "
        f"prompts have {workload.prompt_tokens:g} tokens",
        f"matrix products reach {rates.compute_share:.0%} of the peak, memory {rates.memory_share:.0%}, links "
        f"{rates.link_share:.0%}",
        f"{USABLE:.0%} of {device.memory_gib:g} GiB may be filled; weights, gradients and moments are fp32",
        *_adapter_assumptions(search.limits.adapters),
        "an idle judge: judging takes no time",
        f"an asynchronous plan is chosen where it saves at least {LEAST_GAIN:.0%} of a step",
    ]


def _adapter_assumptions(adapters: int) -> list[str]:
    if not adapters:
        return []
    return [
        f"{adapters:,} numbers of adapters are trained beside frozen weights; activations are counted as without them, "
        "and generators are llamarl's own"
    ]


def memory_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of the table of memory: part, trainer, generator, in GiB of one device."""
    trainer, generator = result["memory_gib"]["trainer"], result["memory_gib"]["generator"]
    for part in dict.fromkeys([*trainer, *generator]):
        yield [part, format_number(trainer.get(part)), format_number(generator.get(part))]
    yield ["together", format_number(sum(trainer.values())), format_number(sum(generator.values()))]


def _compare(answer: Answer) -> str:
    """The reason for this mode."""
    a, s = answer.asynchronous, answer.synchronous
    if a is None:
        return "trainer and generators don't fit on devices of their own, or no staleness is allowed"
    if s is None:
        return "no synchronous plan fits"
    gain = 1.0 - a.step_seconds / s.step_seconds
    if answer.best.mode == "asynchronous":
        return f"an asynchronous step takes {gain:.0%} less than a synchronous one"
    if gain > 0:
        return f"an asynchronous step would take only {gain:.1%} less, which staleness is not worth"
    return f"an asynchronous step would take {-gain:.0%} more: the slower side holds the other up"


def _describe_workload(workload: Workload) -> dict[str, Any]:
    return {
        "prompts_per_step": workload.prompts,
        "samples_per_prompt": workload.samples,
        "prompt_tokens": workload.prompt_tokens,
        "tokens_mean": workload.lengths.mean,
        "tokens_max": workload.lengths.longest,
        "trained_tokens": workload.trained_tokens,
    }


def _gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {part: size / _GIB for part, size in parts.items()}


def _seconds(plan: Plan | None) -> float | None:
    return None if plan is None else plan.step_seconds
