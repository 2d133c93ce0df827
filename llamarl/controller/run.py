"""The way from a recipe to a finished run: prepares, starts the executors, runs the loop, survives what it can.

prepare    reads and checks everything that can be wrong before anything starts
train      a new run directory, from the recipe's checkpoint
resume     an existing run directory, from its newest good checkpoint

RUN/recipe.json environment.json metrics.jsonl rollouts.jsonl timeline.jsonl ledger.sqlite checkpoints/ summary.json
    index.html

What a resume refuses (another algorithm's checkpoint, other data) leaves the directory as it was.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamarl.controller.directory import check_same_run, check_unused, clear, hold, missing_folders, read_recipe
from llamarl.controller.in_memory import give_judges
from llamarl.controller.lifetime import Start, run_life, write_records
from llamarl.controller.page import write_page
from llamarl.controller.prepare import Prepared, prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.reporter import Reporter, log_message
from llamarl.controller.restarts import RestartBudget
from llamarl.core.errors import ExecutorLostError, LlamaRLError, RankMemoryError
from llamarl.core.loops import run_async
from llamarl.core.paths import read_path
from llamarl.report.live import LiveView
from llamarl.report.summary import RunSummary


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
    directory = (read_path(run_dir, "run_dir") if run_dir is not None else _default_directory(recipe)).absolute()
    check_unused(directory)
    prepared = prepare(recipe)
    start, missing = Start(), missing_folders(directory)
    with hold(directory):
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
    judges: Any = (),
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
    directory = read_path(run_dir, "run_dir").absolute()
    began = read_recipe(directory)
    with hold(directory):
        recipe = give_judges(read_recipe(directory, overrides), judges)
        check_same_run(began, recipe, directory)
        return _drive(prepare(recipe), directory, live, Start(step))


def _drive(prepared: Prepared, directory: Path, live: LiveView | None, start: Start) -> tuple[RunSummary, Reporter]:
    """Lets the executors live again for as long as only the trainer was lost and restarts are left."""
    if start.step is None:
        write_records(prepared, directory)
    start.notes = prepared.notes
    budget = RestartBudget(prepared.recipe.schedule.max_restarts)
    try:
        while True:
            try:
                return run_async(run_life(prepared, directory, live, start, budget))
            except ExecutorLostError as error:  # the trainer: generators and judges are replaced one by one
                if budget.left <= 0:
                    raise
                budget.spend("trainer", error)
                if isinstance(error, RankMemoryError):
                    prepared = with_smaller_micro_batches(prepared, error)
                news = f"trainer lost ({error}); starting over from the last checkpoint"
                log_message(directory, news)
                if live is not None:
                    live.tell(news)
    finally:
        if start.step is not None:  # it began, so that there is something to see
            _write_page(directory)


def with_smaller_micro_batches(prepared: Prepared, error: RankMemoryError) -> Prepared:
    """The run with micro-batches of half the tokens that were too much for a rank."""
    recipe = prepared.recipe
    trainer = recipe.trainer.model_copy(update={"micro_batch_tokens": max(1, error.micro_batch_tokens // 2)})
    return replace(prepared, recipe=recipe.model_copy(update={"trainer": trainer}))


def _write_page(directory: Path) -> None:
    """Writes the run's page; why it could not stands in the messages, since no run fails for a page's sake."""
    try:
        write_page(directory)
    except (OSError, LlamaRLError) as error:
        log_message(directory, f"no page written: {error}")


def _default_directory(recipe: Recipe) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(recipe.model).name}-{os.getpid()}"
