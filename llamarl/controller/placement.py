"""The place of each executor of a run: its engine, its share of the cores, and how much work it gets."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from llamarl.controller.clients import JudgesClient, ReferenceScorer, ScorerClient, TrainerClient
from llamarl.controller.generators import GeneratorPool
from llamarl.controller.prepare import Prepared, generator_names
from llamarl.controller.pulse import Pulse
from llamarl.controller.recipe import Recipe
from llamarl.controller.reporter import Reporter
from llamarl.controller.restarts import RestartBudget
from llamarl.core.machine import usable_cores
from llamarl.core.protocols import AllCores, Cores, Executor, ExecutorHandle
from llamarl.engine import build_engine
from llamarl.engine.cores import Cores as SharedCores
from llamarl.generation.executor import GeneratorExecutor
from llamarl.generation.server.executor import ServerExecutor, ServerPlace
from llamarl.generation.sglang.executor import SglangExecutor
from llamarl.generation.vllm.executor import VllmExecutor
from llamarl.judges.executor import JudgeExecutor
from llamarl.models.checkpoint import load_model, resolve
from llamarl.training.executor import TrainerExecutor
from llamarl.training.reference import ReferenceExecutor
from llamarl.weights import build_channel

MIN_CACHE_BYTES, MAX_CACHE_BYTES = 64 << 20, 1 << 30
"""Bounds of the memory for keys and values of a vLLM server on a CPU."""
SERVERS: Mapping[str, type[ServerExecutor[Any]]] = {"vllm": VllmExecutor, "sglang": SglangExecutor}


class Executors(NamedTuple):
    """The executors of one run, as clients."""

    trainer: TrainerClient
    judges: JudgesClient
    scorer: ReferenceScorer | None
    """The frozen reference policy, where an algorithm needs it; with adapters the trainer, which switches them off."""
    pool: GeneratorPool
    """The generators, not yet started."""
    pulse: Pulse
    """Shared by the pool and the loop."""

    async def measure_memory(self) -> dict[str, int]:
        """Bytes that trainer and generators hold, by part."""
        trainer = await self.trainer.measure_memory()
        statuses = [await member.read_status() for member in self.pool.members]
        return {
            **{f"trainer {part}": size for part, size in trainer.items()},
            "generator weights": sum(int(status["weight_bytes"]) for status in statuses),
            "generator cache": sum(int(status["cache_bytes"]) for status in statuses),
        }


@asynccontextmanager
async def place_executors(prepared: Prepared, reporter: Reporter, budget: RestartBudget) -> AsyncIterator[Executors]:
    """Starts all executors on the recipe's engine; all are gone at the end of the block.

    Args:
        prepared: the run.
        reporter: is told of processes, of losses and of what takes time.
        budget: limits the replacements of the whole run.
    """
    recipe = prepared.recipe
    cores, environment = _share_cores(recipe)
    where = recipe.placement
    model = str(resolve(recipe.model))  # on this machine by now: no executor asks the Hub
    engine = build_engine(
        recipe.engine,
        environment,
        recipe.passed_variables,
        where,
        executors=["trainer", *generator_names(recipe)],
        threads=recipe.threads,
        paths={"*": [model], "trainer": [str(reporter.directory)]},
        tell=reporter.on_message,
    )
    channel = build_channel(
        recipe.engine,
        # A Ray cluster places executors where it likes.
        is_across_hosts=where.has_hosts or (recipe.engine == "ray" and "RAY_ADDRESS" in os.environ),
        dtype=torch.bfloat16 if recipe.publishes_bf16 else None,
        sends_deltas=where.weight_deltas,
    )

    async def spawn(factory: Callable[[], Executor], name: str, num_ranks: int = 1) -> ExecutorHandle:
        handle = await engine.spawn(factory, name=name, num_ranks=num_ranks)
        reporter.on_spawn(name, handle.pids, handle.host)
        return handle

    load = functools.partial(load_model, model)
    pulse, call_seconds = Pulse(), recipe.schedule.call_seconds
    load_frozen = functools.partial(load, device=recipe.trainer.device)
    build_trainer = functools.partial(
        TrainerExecutor,
        recipe.trainer,
        [task.algorithm for task in prepared.tasks],
        load_frozen,
        recipe.sampling,
        channel,
        recipe.schedule.steps,
        cores=cores,
        probe_prompts=prepared.probe_prompts,
        on_micro_batch=reporter.progress.write,
        seed=recipe.seed,
        placement=recipe.placement.trainer,
    )
    build_judges = functools.partial(JudgeExecutor, {task.config.name: task.config.judges for task in prepared.tasks})
    build_scorer = functools.partial(ReferenceExecutor, recipe.trainer, load_frozen, recipe.sampling, cores=cores)
    judges = JudgesClient(
        "judge",
        functools.partial(spawn, build_judges, "judge"),
        budget,
        reporter,
        call_seconds,
        judge_seconds=recipe.schedule.judge_seconds,
    )
    scorer = ScorerClient(
        "reference", functools.partial(spawn, build_scorer, "reference"), budget, reporter, call_seconds
    )
    try:
        trainer, *_ = await asyncio.gather(
            spawn(build_trainer, "trainer", recipe.placement.trainer.num_ranks),
            judges.start(),
            scorer.start() if prepared.needs_reference_copy else asyncio.sleep(0),
        )
        receivers = await trainer.call("open_weights", trainer.host or "", timeout_seconds=call_seconds)
        native = functools.partial(
            GeneratorExecutor,
            recipe.generator,
            load,
            prepared.tokenizer,
            receivers,
            cores,
            lora=recipe.trainer.lora,
        )
        names = generator_names(recipe)
        servers = place_servers(prepared)

        def spawn_generator(name: str) -> Awaitable[ExecutorHandle]:
            if not servers:
                return spawn(native, name)
            table, place = recipe.placement.generators[0], servers[names.index(name)]
            kind = SERVERS[table.kind]
            build = functools.partial(kind, table.server, recipe.generator, place, prepared.tokenizer, receivers)
            return spawn(build, name)

        pool = GeneratorPool(
            spawn_generator,
            names,
            capacity=_capacity(recipe),
            observer=reporter,
            pulse=pulse,
            call_seconds=call_seconds,
            budget=budget,
        )
        client = TrainerClient(trainer, reporter, call_seconds, recipe.placement.trainer.num_ranks)
        await client.meet()
        reference = (scorer if prepared.needs_reference_copy else client) if prepared.needs_reference else None
        yield Executors(client, judges, reference, pool, pulse)
    finally:
        try:
            await engine.close()
        finally:  # a second interrupt may have cut that short
            channel.close()


def place_servers(prepared: Prepared) -> list[ServerPlace]:
    """Where each generator's server is, and what it is started with; empty where the generators are native."""
    recipe = prepared.recipe
    table = next((table for table in recipe.placement.generators if table.kind != "native"), None)
    if table is None:
        return []
    config, threads = prepared.model_config.get_text_config(), recipe.threads or usable_cores()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * prepared.max_positions
    each = num_numbers * (4 if recipe.generator.precision == "fp32" else 2)
    # On a CPU vLLM must be told: room for all slots at full length, but no more than a modest part of the memory.
    cache = max(MIN_CACHE_BYTES, min(each * recipe.generator.slots, MAX_CACHE_BYTES), each * 5 // 4)
    is_on_cpu = recipe.generator.resolved_device == "cpu"
    place = ServerPlace(
        str(resolve(recipe.model)),
        prepared.max_positions,
        tp=table.tp,
        cache_bytes=cache if is_on_cpu else None,
        threads=max(1, threads // (1 + table.replicas * table.tp)),
    )
    return [replace(place, url=url) for url in table.url or [None] * table.replicas]


def _share_cores(recipe: Recipe) -> tuple[Cores, dict[str, str]]:
    """Says how executors share this machine's cores: by turns within one process, in fixed parts between processes.

    Returns:
        What executors of this process share, and the environment of executors with a process of their own.
    """
    total = recipe.threads or usable_cores()
    if recipe.engine == "inprocess":
        return SharedCores(total, _set_threads, is_split=not recipe.schedule.is_synchronous), {}
    where = recipe.placement
    local = sum(where.is_local(name) for name in generator_names(recipe))
    local += where.trainer.num_ranks * where.is_local("trainer")
    return AllCores(), {"OMP_NUM_THREADS": str(max(1, total // max(1, local)))}


def _set_threads(count: int) -> None:
    torch.get_num_threads()  # a thread's first query overwrites what was set before it
    torch.set_num_threads(count)


def _capacity(recipe: Recipe) -> int:
    """Counts the prompts that one generator is given: enough to keep its slots full, few enough that they start soon.

    A synchronous step is handed out as a whole: what is decoded together then doesn't depend on the clock, and the run
    repeats bit for bit.
    """
    if recipe.schedule.is_synchronous:
        return -(-sum(task.prompts_per_step or 1 for task in recipe.all_tasks) // recipe.num_generators)
    fewest = min(task.samples_per_prompt or 1 for task in recipe.all_tasks)
    per_slotful = -(-recipe.generator.slots // fewest)
    return max(1, per_slotful + (per_slotful + 1) // 2)
