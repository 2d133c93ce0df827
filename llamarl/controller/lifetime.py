"""One life of a run's executors: from a checkpoint, or from the recipe's, to the last step or to a loss.

The next life, after a lost trainer or on `llamarl resume`, begins at the newest checkpoint of this one.
"""

import asyncio
import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamarl.controller.canaries import watch_canaries
from llamarl.controller.checkpoints import Checkpoint, CheckpointStore
from llamarl.controller.clients import TrainerClient
from llamarl.controller.directory import LEDGER_FILE, RECIPE_FILE
from llamarl.controller.evaluation import Evaluation
from llamarl.controller.guard import CollapseGuard
from llamarl.controller.in_memory import write_rows
from llamarl.controller.interrupts import first_interrupt
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller
from llamarl.controller.placement import place_executors
from llamarl.controller.prepare import Prepared, PreparedTask, encode_prompt
from llamarl.controller.recipe import Recipe
from llamarl.controller.reporter import Reporter, log_message, read_state
from llamarl.controller.restarts import RestartBudget
from llamarl.controller.task import RunTask
from llamarl.controller.watch import HackingWatch
from llamarl.core.errors import CheckpointError
from llamarl.data import PromptStream
from llamarl.report.environment import ENVIRONMENT_FILE, environment_record
from llamarl.report.files import write_json
from llamarl.report.live import LiveView
from llamarl.report.rundir import CHANGES_FILE, ENDED_BY
from llamarl.report.summary import RunSummary, write_summary
from llamarl.report.trackers import open_trackers

STATE_FILE = "run.json"
"""File beside the trainer's files in a checkpoint; it holds the totals of the run and the state of its controller."""


@dataclass(slots=True)
class Start:
    """The checkpoint from which the next life of the executors begins."""

    step: str | None = None
    """None: at the recipe's checkpoint; or which of the run's checkpoints to go on from."""
    notes: Sequence[str] = ()
    """Messages shown before anything else."""


async def run_life(
    prepared: Prepared, directory: Path, live: LiveView | None, start: Start, budget: RestartBudget
) -> tuple[RunSummary, Reporter]:
    """One life of the executors: spawn, restore, loop, close.

    Args:
        prepared: the run.
        directory: of the run, held by this process.
        live: where to show progress.
        start: where this life begins; notes where a next one would.
        budget: limits the replacements of the whole run.

    Raises:
        ExecutorLostError: the trainer was lost, or another executor with no restart left.
        LlamaRLError: why the run ended early.
    """
    recipe = prepared.recipe
    store = CheckpointStore(directory / "checkpoints")
    store.remove_temporaries()  # a disk that a dead process filled has room again
    with Ledger(directory / LEDGER_FILE) as ledger, _reporter(prepared, directory, ledger, live) as reporter:
        checkpoint = _find_checkpoint(store, start.step, reporter)
        version = checkpoint.step if checkpoint else 0
        state = read_state(checkpoint.path / STATE_FILE) if checkpoint else {}
        if checkpoint:
            ledger.check_digest(version, state.get("ledger", ""))
        accounted = ledger.read_accounted(version)
        async with place_executors(prepared, reporter, budget) as executors:
            guard = CollapseGuard(recipe.guard)
            tasks = [_build_task(recipe, task, accounted) for task in prepared.tasks]
            checkpointer = Checkpointer(store, executors.trainer, reporter, ledger, guard, tasks)
            if checkpoint:
                await checkpointer.restore(checkpoint, state)
            if start.step is not None:  # everything fits, so the directory may change
                if checkpoint:
                    store.forget_after(str(version))
                write_records(prepared, directory)
            ledger.rewind(version)
            reporter.restore(state, version)
            for note in start.notes:
                reporter.on_message(note)
            # Said once: another life has its own.
            start.notes = ()
            reporter.add_sinks(
                open_trackers(recipe.report.trackers, directory, recipe.record(), reporter.on_message, version + 1)
            )
            controller = Controller(
                schedule=recipe.schedule,
                tasks=tasks,
                encode=functools.partial(encode_prompt, prepared.tokenizer),
                sampling=recipe.sampling,
                trainer=executors.trainer,
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
            has_canaries = any(judge.canaries for task in prepared.tasks for judge in task.config.judges)
            canaries = watch_canaries(executors.judges, reporter) if has_canaries else nullcontext()
            measured: dict[str, int] | None = None
            with first_interrupt(controller.stop, reporter), _ticking(reporter):
                reporter.start_clock()
                try:
                    async with canaries:
                        # From here on another life goes on from what this one saved, wherever this one began.
                        start.step = "latest"
                        await controller.run(_build_evaluation(prepared), checkpointer.save)
                    measured = await executors.measure_memory()
                except Exception as error:  # whoever looks at the directory later wants to know why the run ended
                    log_message(directory, f"{ENDED_BY} {error or type(error).__name__}")
                    raise
                finally:
                    planned = prepared.plan_memory()
                    summary = replace(reporter.summary(), memory_planned=planned, memory_measured=measured)
                    write_summary(directory, summary)
            checkpointer.check_kept(version, controller.version)
        return summary, reporter


class Checkpointer:
    """Writes and restores what a run must remember: the trainer's files, and the state of the controller's parts.

    Args:
        store: of the run's checkpoints.
        trainer: saves and loads its own files.
        reporter, ledger, guard, tasks: whose state goes along.
    """

    def __init__(
        self,
        store: CheckpointStore,
        trainer: TrainerClient,
        reporter: Reporter,
        ledger: Ledger,
        guard: CollapseGuard,
        tasks: Sequence[RunTask],
    ) -> None:
        self._store, self._trainer, self._reporter = store, trainer, reporter
        self._ledger, self._guard, self._tasks = ledger, guard, tasks

    async def restore(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, `state` being its file of totals; the run's directory stays as it is."""
        await self._trainer.load(checkpoint.path / "trainer")
        self._guard.restore(state.get("guard", {}))
        for task in self._tasks:
            task.watch.restore(state.get("watch", {}).get(task.name, {}))
            if task.name in state.get("algorithm", {}):
                task.credit.restore(state["algorithm"][task.name])

    async def save(self, version: int, reward: float) -> None:
        """Writes one checkpoint. A disk that refuses costs this checkpoint, and only the last one costs the run."""
        with self._reporter.span("trainer", "checkpoint"):
            try:
                with self._store.fresh() as folder:
                    (folder / "trainer").mkdir()
                    await self._trainer.save(folder / "trainer")
                    (folder / STATE_FILE).write_text(json.dumps(self._state(version)))
                    # Hashing and flushing a large checkpoint takes seconds: groups go on meanwhile.
                    await asyncio.to_thread(self._store.commit, version, folder, reward)
            except OSError as error:
                kept = self._store.steps()
                newest = f"the newest is of step {kept[-1]}" if kept else "there is none yet"
                self._reporter.on_message(f"checkpoint {version} not written ({error}); {newest}")

    def check_kept(self, first: int, last: int) -> None:
        """Raises `CheckpointError` where the disk refused the checkpoint of the last step: then its weights are lost.

        Args:
            first: policy version at the start of this life.
            last: policy version at its end.
        """
        store, directory = self._store, self._reporter.directory
        kept = store.steps()
        if last == first or last in kept:
            return
        newest = f"the newest kept is of step {kept[-1]} ({store.directory})" if kept else "no earlier one is kept"
        raise CheckpointError(
            f"{directory}: the checkpoint of the last step, {last}, could not be written (see messages.log); {newest}; "
            f"make room, then `llamarl resume {directory}` trains what came after it again"
        )

    def _state(self, version: int) -> dict[str, Any]:
        """State of all parts of the controller, as plain JSON."""
        return {
            **self._reporter.state(),
            "ledger": self._ledger.digest(version),
            "guard": self._guard.state(),
            "watch": {task.name: task.watch.state() for task in self._tasks},
            "algorithm": {task.name: dict(task.credit.state()) for task in self._tasks},
        }


def write_records(prepared: Prepared, directory: Path) -> None:
    """Writes the resolved recipe and what differs from its defaults, the environment and the rows that were skipped."""
    recipe = write_rows(prepared.recipe, directory)
    write_json(directory / RECIPE_FILE, recipe.record())
    write_json(directory / CHANGES_FILE, {"settings": recipe.changes()})
    write_json(directory / ENVIRONMENT_FILE, environment_record())
    if prepared.skipped_rows:
        write_json(directory / "skipped_rows.json", [str(row) for row in prepared.skipped_rows])


def _find_checkpoint(store: CheckpointStore, step: str | None, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to go on from, verified; None where the run wrote none yet."""
    if step in (None, "latest"):
        return store.load_latest(reporter.on_message) if step and store.steps() else None
    return store.load(store.number(step or ""))


def _build_task(recipe: Recipe, task: PreparedTask, accounted: Collection[tuple[int, str]]) -> RunTask:
    """The task with the prompts that are left of it after the (epoch, prompt id) that the ledger accounts for."""
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
        watch=HackingWatch(recipe.watch, task.paying, recipe.schedule.steps, task.control),
        baselines=task.baselines,
        variants=task.variants,
    )


def _build_evaluation(prepared: Prepared) -> Evaluation | None:
    """The held-out prompts of all tasks; None where there are none."""
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
def _reporter(prepared: Prepared, directory: Path, ledger: Ledger, live: LiveView | None) -> Iterator[Reporter]:
    recipe = prepared.recipe
    reporter = Reporter(
        directory,
        ledger,
        recipe.schedule.steps,
        groups_per_step=sum(task.prompts_per_step or 0 for task in recipe.all_tasks),
        rollouts_every=recipe.report.rollouts_every,
        rollouts_per_step=recipe.report.rollouts_per_step,
        decode=functools.partial(prepared.tokenizer.decode, skip_special=False),
        live=live,
    )
    try:
        yield reporter
    finally:
        reporter.close()


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
