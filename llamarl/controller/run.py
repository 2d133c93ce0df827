"""From a recipe to a finished run: prepares, starts the executors, runs the loop, and survives what it can.

prepare    reads and checks everything that can be wrong before anything starts
train      a new run directory, from the recipe's checkpoint
resume     an existing run directory, from its newest good checkpoint

RUN/recipe.json environment.json metrics.jsonl rollouts.jsonl timeline.jsonl ledger.sqlite checkpoints/ summary.json

What a resume refuses (another algorithm's checkpoint, other data) leaves the directory as it was.
"""

import asyncio
import functools
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llamarl.controller.canaries import canaries_watched
from llamarl.controller.checkpoints import Checkpoint, CheckpointStore
from llamarl.controller.clients import JudgesClient, ScorerClient, TrainerClient
from llamarl.controller.directory import (
    LEDGER_FILE,
    RECIPE_FILE,
    check_same_run,
    check_unused,
    clear,
    held,
    missing_folders,
    read_recipe,
)
from llamarl.controller.evaluation import Evaluation
from llamarl.controller.generators import GeneratorPool
from llamarl.controller.guard import CollapseGuard
from llamarl.controller.in_memory import give_judges, write_rows
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller
from llamarl.controller.prepare import Prepared, PreparedTask, encode_prompt, generator_names, prepare
from llamarl.controller.pulse import Pulse
from llamarl.controller.recipe import Recipe
from llamarl.controller.reporter import Reporter, log_message, read_state
from llamarl.controller.restarts import RestartBudget
from llamarl.controller.task import RunTask
from llamarl.controller.watch import HackingWatch
from llamarl.core.errors import CheckpointError, ExecutorLostError
from llamarl.core.loops import run_async
from llamarl.core.machine import usable_cores
from llamarl.core.protocols import AllCores, Cores, Executor, ExecutorHandle
from llamarl.data import PromptStream
from llamarl.engine import build_engine
from llamarl.engine.cores import Cores as SharedCores
from llamarl.generation.executor import GeneratorExecutor
from llamarl.judges.executor import JudgeExecutor
from llamarl.models.checkpoint import load_model, resolve
from llamarl.report.environment import ENVIRONMENT_FILE, environment_record
from llamarl.report.files import write_json
from llamarl.report.live import LiveView
from llamarl.report.summary import RunSummary, write_summary
from llamarl.report.trackers import open_trackers
from llamarl.training.executor import TrainerExecutor
from llamarl.training.reference import ReferenceExecutor
from llamarl.weights import build_channel

STATE_FILE = "run.json"
"""Beside the trainer's files in a checkpoint: the run's totals."""


def train(
    recipe: Recipe, run_dir: str | Path | None = None, *, live: LiveView | None = None
) -> tuple[RunSummary, Reporter]:
    """Runs a recipe from its checkpoint to its last step.

    Args:
        recipe: what to run.
        run_dir: an absent or empty directory; None makes one under `runs/`.
        live: where to show progress.

    Returns:
        The summary, also in `summary.json`, and the reporter with the evaluated groups.

    Raises:
        ConfigError: `run_dir` holds something already, or cannot be written.
        LlamaRLError: why the run ended early. A run that never began leaves no directory; of any other the directory
            says how far it came, and `resume` goes on from there.
    """
    directory = (Path(run_dir) if run_dir is not None else _default_directory(recipe)).absolute()
    check_unused(directory)
    prepared = prepare(recipe)
    start, missing = _Start(), missing_folders(directory)
    with held(directory):
        check_unused(directory)  # another process may have come first
        try:
            return _drive(prepared, directory, live, start)
        except BaseException:
            if start.step is None:  # it never began, so nothing stands in the way of the next attempt
                clear(directory, missing)
            raise


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    judges: Sequence[Any] | Mapping[str, Any] = (),
    step: str = "latest",
    live: LiveView | None = None,
) -> tuple[RunSummary, Reporter]:
    """Goes on with a run from its newest good checkpoint.

    Every prompt trained since is trained again, every prompt under way starts over; none is lost or trained twice.

    Args:
        run_dir: the directory of a run that ended or was killed.
        overrides: as on the command line, such as `--schedule.steps 200`, or nested values.
        judges: those that began the run in the memory of a program (`in_memory.give_judges`).
        step: `latest`, `best`, or the number of a kept checkpoint; what the run did after it is forgotten.
        live: where to show progress.

    Raises:
        CheckpointError: not a run directory, or no such checkpoint.
        ConfigError: another process works on the run, or an override would make it another run.
    """
    directory = Path(run_dir).absolute()
    began = read_recipe(directory)
    with held(directory):
        recipe = give_judges(read_recipe(directory, overrides), judges)
        check_same_run(began, recipe, directory)
        return _drive(prepare(recipe), directory, live, _Start(step))


@dataclass(slots=True)
class _Start:
    """Where the next life of the executors begins."""

    step: str | None = None
    """None: at the recipe's checkpoint; or which of the run's checkpoints to go on from."""
    notes: Sequence[str] = ()
    """What is said first."""


def _drive(prepared: Prepared, directory: Path, live: LiveView | None, start: _Start) -> tuple[RunSummary, Reporter]:
    if start.step is None:
        _write_records(prepared, directory)
    start.notes = prepared.notes
    budget = RestartBudget(prepared.recipe.schedule.max_restarts)
    while True:
        try:
            return run_async(_attempt(prepared, directory, live, start, budget))
        except ExecutorLostError as error:  # the trainer: generators and judges are replaced one by one
            if budget.left <= 0:
                raise
            budget.spend("trainer", error)
            log_message(directory, f"trainer lost ({error}); starting over from the last checkpoint")


def _write_records(prepared: Prepared, directory: Path) -> None:
    write_json(directory / RECIPE_FILE, write_rows(prepared.recipe, directory).record())
    write_json(directory / ENVIRONMENT_FILE, environment_record())
    if prepared.skipped_rows:
        write_json(directory / "skipped_rows.json", [str(row) for row in prepared.skipped_rows])


def _checkpoint(store: CheckpointStore, step: str | None, reporter: Reporter) -> Checkpoint | None:
    """What to go on from. None: the run wrote no checkpoint yet."""
    if step in (None, "latest"):
        return store.load_latest(reporter.on_message) if step and store.steps() else None
    return store.load(store.number(step or ""))


async def _attempt(
    prepared: Prepared, directory: Path, live: LiveView | None, start: _Start, budget: RestartBudget
) -> tuple[RunSummary, Reporter]:
    """One life of the executors: spawn, restore, loop, close."""
    recipe = prepared.recipe
    store = CheckpointStore(directory / "checkpoints")
    store.remove_temporaries()  # a disk that a dead process filled has room again
    with Ledger(directory / LEDGER_FILE) as ledger, _reporter(recipe, directory, ledger, live) as reporter:
        checkpoint = _checkpoint(store, start.step, reporter)
        version = checkpoint.step if checkpoint else 0
        state = read_state(checkpoint.path / STATE_FILE) if checkpoint else {}
        if checkpoint:
            ledger.check_digest(version, state.get("ledger", ""))
        accounted = ledger.accounted(version)
        async with _executors(prepared, reporter, budget) as executors:
            trainer = executors.trainer
            if checkpoint:
                await trainer.load(checkpoint.path / "trainer")
            guard = CollapseGuard(recipe.guard)
            guard.restore(state.get("guard", {}))
            tasks = [_run_task(recipe, task, accounted) for task in prepared.tasks]
            for task in tasks:
                task.watch.restore(state.get("watch", {}).get(task.name, {}))
                if task.name in state.get("algorithm", {}):
                    task.credit.restore(state["algorithm"][task.name])
            if start.step is not None:  # everything fits, so the directory may change
                if checkpoint:
                    store.forget_after(str(version))
                _write_records(prepared, directory)
            ledger.rewind(version)
            reporter.restore(state, version)
            for note in start.notes:
                reporter.on_message(note)
            start.notes = ()
            reporter.add_sinks(
                open_trackers(recipe.report.trackers, directory, recipe.record(), reporter.on_message, version + 1)
            )
            controller = Controller(
                schedule=recipe.schedule,
                tasks=tasks,
                encode=functools.partial(encode_prompt, prepared.tokenizer),
                sampling=recipe.sampling,
                trainer=trainer,
                judges=executors.judges,
                scorer=executors.scorer,
                pool=executors.pool,
                ledger=ledger,
                observer=reporter,
                guard=guard,
                pulse=executors.pulse,
                seed=recipe.seed,
                version=version,
            )
            save = functools.partial(_save, store, trainer, reporter, ledger, guard, tasks)
            has_canaries = any(judge.canaries for task in prepared.tasks for judge in task.config.judges)
            canaries = canaries_watched(executors.judges, reporter)
            measured: dict[str, int] | None = None
            with first_interrupt(controller.stop, reporter), _ticking(reporter):
                reporter.start_clock()
                try:
                    async with canaries if has_canaries else nullcontext():
                        start.step = "latest"
                        await controller.run(_evaluation(prepared), save)
                    measured = await _measure_memory(executors)
                finally:
                    planned = prepared.plan_memory()
                    summary = replace(reporter.summary(), memory_planned=planned, memory_measured=measured)
                    write_summary(directory, summary)
            _check_kept(store, version, controller.version, directory)
        return summary, reporter


async def _measure_memory(executors: "Executors") -> dict[str, int]:
    """Bytes that trainer and generators hold, by part."""
    trainer = await executors.trainer.measure_memory()
    statuses = [await member.read_status() for member in executors.pool.members]
    return {
        **{f"trainer {part}": size for part, size in trainer.items()},
        "generator weights": sum(int(status["weight_bytes"]) for status in statuses),
        "generator cache": sum(int(status["cache_bytes"]) for status in statuses),
    }


def _check_kept(store: CheckpointStore, first: int, last: int, directory: Path) -> None:
    """Raises `CheckpointError` where the disk refused the checkpoint of the last step: then its weights are lost."""
    kept = store.steps()
    if last == first or last in kept:
        return
    newest = f"the newest kept is of step {kept[-1]} ({store.directory})" if kept else "no earlier one is kept"
    raise CheckpointError(
        f"{directory}: the checkpoint of the last step, {last}, could not be written (see messages.log); {newest}; "
        f"make room, then `llamarl resume {directory}` trains what came after it again"
    )


async def _save(
    store: CheckpointStore,
    trainer: TrainerClient,
    reporter: Reporter,
    ledger: Ledger,
    guard: CollapseGuard,
    tasks: Sequence[RunTask],
    version: int,
    reward: float,
) -> None:
    """Writes one checkpoint. A disk that refuses costs this checkpoint, and only the last one costs the run."""
    with reporter.span("trainer", "checkpoint"):
        try:
            with store.fresh() as folder:
                (folder / "trainer").mkdir()
                await trainer.save(folder / "trainer")
                state = {
                    **reporter.state(),
                    "ledger": ledger.digest(version),
                    "guard": guard.state(),
                    "watch": {task.name: task.watch.state() for task in tasks},
                    "algorithm": {t.name: dict(t.credit.state()) for t in tasks},
                }
                (folder / STATE_FILE).write_text(json.dumps(state))
                await asyncio.to_thread(store.commit, version, folder, reward)
        except OSError as error:
            kept = store.steps()
            newest = f"the newest is of step {kept[-1]}" if kept else "there is none yet"
            reporter.on_message(f"checkpoint {version} not written ({error}); {newest}")


class Executors(NamedTuple):
    """Those of one run."""

    trainer: TrainerClient
    judges: JudgesClient
    scorer: ScorerClient | None
    pool: GeneratorPool
    """The generators, not yet started."""
    pulse: Pulse


@asynccontextmanager
async def _executors(prepared: Prepared, reporter: Reporter, budget: RestartBudget) -> AsyncIterator[Executors]:
    """All executors on the recipe's engine; all gone at the end."""
    recipe = prepared.recipe
    cores, environment = _share_cores(recipe)
    engine = build_engine(recipe.engine, environment, recipe.passed_variables)
    channel = build_channel(recipe.engine)

    async def spawn(factory: Callable[[], Executor], name: str) -> ExecutorHandle:
        handle = await engine.spawn(factory, name=name)
        reporter.on_spawn(name, handle.pids)
        return handle

    load = functools.partial(load_model, str(resolve(recipe.model)))  # on this machine by now: no executor asks the Hub
    pulse = Pulse()
    call_seconds, judge_seconds = recipe.schedule.call_seconds, recipe.schedule.judge_seconds
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
    )
    build_judges = functools.partial(JudgeExecutor, {task.config.name: task.config.judges for task in prepared.tasks})
    build_scorer = functools.partial(ReferenceExecutor, recipe.trainer, load_frozen, recipe.sampling, cores=cores)
    judges = JudgesClient(
        "judge",
        functools.partial(spawn, build_judges, "judge"),
        budget,
        reporter,
        call_seconds,
        judge_seconds=judge_seconds,
    )
    scorer = ScorerClient(
        "reference", functools.partial(spawn, build_scorer, "reference"), budget, reporter, call_seconds
    )
    try:
        trainer, *_ = await asyncio.gather(
            spawn(build_trainer, "trainer"),
            judges.start(),
            scorer.start() if prepared.needs_reference else asyncio.sleep(0),
        )
        generator = functools.partial(GeneratorExecutor, recipe.generator, load, prepared.tokenizer, channel, cores)
        pool = GeneratorPool(
            functools.partial(spawn, generator),
            generator_names(recipe),
            capacity=_capacity(recipe),
            observer=reporter,
            pulse=pulse,
            call_seconds=call_seconds,
            budget=budget,
        )
        client = TrainerClient(trainer, reporter, call_seconds)
        yield Executors(client, judges, scorer if prepared.needs_reference else None, pool, pulse)
    finally:
        try:
            await engine.close()
        finally:  # a second interrupt may have cut that short
            channel.close()


def _share_cores(recipe: Recipe) -> tuple[Cores, dict[str, str]]:
    """How executors share this machine's cores: handed to whoever computes within one process, fixed between processes.

    Returns:
        What executors of this process share, and the environment of executors with a process of their own.
    """
    total = recipe.threads or usable_cores()
    if recipe.engine == "inprocess":
        return SharedCores(total, _set_threads, is_split=not recipe.schedule.is_synchronous), {}
    return AllCores(), {"OMP_NUM_THREADS": str(max(1, total // (1 + recipe.num_generators)))}


def _set_threads(count: int) -> None:
    torch.get_num_threads()  # a thread's first query overwrites what was set before it
    torch.set_num_threads(count)


def _capacity(recipe: Recipe) -> int:
    """Prompts given to one generator: enough to keep its slots full, few enough that they start soon.

    A synchronous step is handed out as a whole: what is decoded together then doesn't depend on the clock, and the run
    repeats bit for bit.
    """
    if recipe.schedule.is_synchronous:
        return -(-sum(task.prompts_per_step or 1 for task in recipe.all_tasks) // recipe.num_generators)
    fewest = min(task.samples_per_prompt or 1 for task in recipe.all_tasks)
    per_slotful = -(-recipe.generator.slots // fewest)
    return max(1, per_slotful + (per_slotful + 1) // 2)


def _run_task(recipe: Recipe, task: PreparedTask, accounted: Collection[tuple[int, str]]) -> RunTask:
    """What is left of a task, after the (epoch, prompt id) that the ledger accounts for."""
    config, prefix = task.config, f"{task.config.name}/"
    done = [(epoch, name) for epoch, name in accounted if not recipe.tasks or name.startswith(prefix)]
    stream = PromptStream(task.prompts, seed=recipe.seed, epochs=config.data.epochs, done=done)
    return RunTask(
        config.name,
        ((issue.epoch, issue.prompt) for issue in stream),
        task.algorithm,
        config.prompts_per_step or 1,
        config.samples_per_prompt or 1,
        weight=1.0 if config.weight is None else config.weight,
        watch=HackingWatch(recipe.watch, task.paying),
        baselines=task.baselines,
        variants=task.variants,
    )


def _evaluation(prepared: Prepared) -> Evaluation | None:
    recipe = prepared.recipe
    held_out = {task.config.name: task.held_out for task in prepared.tasks}
    if not any(held_out.values()):
        return None
    temperature = recipe.evaluation.temperature
    sampling = (
        recipe.sampling if temperature is None else recipe.sampling.model_copy(update={"temperature": temperature})
    )
    return Evaluation(held_out, sampling, recipe.evaluation.samples_per_prompt)


@contextmanager
def _reporter(recipe: Recipe, directory: Path, ledger: Ledger, live: LiveView | None) -> Iterator[Reporter]:
    reporter = Reporter(
        directory,
        ledger,
        recipe.schedule.steps,
        groups_per_step=sum(task.prompts_per_step or 0 for task in recipe.all_tasks),
        rollouts_every=recipe.report.rollouts_every,
        rollouts_per_step=recipe.report.rollouts_per_step,
        live=live,
    )
    try:
        yield reporter
    finally:
        reporter.close()


@contextmanager
def first_interrupt(stop: Callable[[], None], reporter: Reporter) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) finishes the step and saves; a second ends at once.

    A second SIGHUP does not: shell and system may both send one. A signal that is ignored (`nohup`) stays so.
    """
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def on_signal() -> None:
        for number in before:
            loop.remove_signal_handler(number)
            if is_main:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.default_int_handler)
        reporter.on_interrupt()
        stop()

    try:
        for number in before:
            loop.add_signal_handler(number, on_signal)
    except (ValueError, RuntimeError, NotImplementedError):  # a thread that hears of no signal, or no POSIX
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if is_main:
                signal.signal(number, handler)


@contextmanager
def _ticking(reporter: Reporter, seconds: float = 0.5) -> Iterator[None]:
    """Keeps the live view fresh between events."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(seconds)
            reporter.refresh()

    task = asyncio.get_running_loop().create_task(tick())
    try:
        yield
    finally:
        task.cancel()


def _default_directory(recipe: Recipe) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(recipe.model).name}-{os.getpid()}"
