"""The files of one supervised training: `training.fit` draws them."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llamarl.core.errors import CheckpointError
from llamarl.core.paths import read_path
from llamarl.jobs import LOCK_FILE, changed_names, lock_directory
from llamarl.models.export import check_target
from llamarl.report.environment import ENVIRONMENT_FILE, environment_record
from llamarl.report.files import read_json, write_json
from llamarl.report.rundir import METRICS_FILE
from llamarl.report.summary import SUMMARY_FILE

RECIPE_FILE = "recipe.json"


class Write(Protocol):
    """Writes the result of a training."""

    def __call__(self, place: Path, beside: Sequence[Path] = ()) -> None:
        """Fills a directory, which gets the files `beside` as well."""


class FitFiles:
    """Places of a training's own files and of its result.

    Args:
        out: the directory that the user names.
        model_folder: where the checkpoint lies in it. Empty: it is the checkpoint, and the training's own files lie in
            `OUT.partial` until they are written into it with the result.
        source: the model to start from, which is never overwritten.

    Raises:
        CheckpointError: a training has ended there, or something else lies there; or a checkpoint would take the place
            of the working directory or of one above it.
        ConfigError: `out` is no path.
    """

    def __init__(self, out: str | Path, model_folder: str, source: str | Path) -> None:
        path = read_path(out, "out")
        self._is_checkpoint = not model_folder
        if self._is_checkpoint and path.name in ("", ".."):  # it is renamed when complete, and these have no such name
            raise CheckpointError(f"out={str(out)!r}: no name of a new directory; give one, such as 'tuned'")
        self.work = path.with_name(f"{path.name}.partial") if self._is_checkpoint else path
        """The directory of the training's own files."""
        self.is_written_here = True
        """False on the ranks that leave writing to the first of them."""
        self.model = Path(os.path.normpath(path / model_folder))
        """The checkpoint; complete whenever it is there."""
        self.metrics, self._cache = self.work / METRICS_FILE, self.work / "start.json"
        self._summary, self._recipe = self.work / SUMMARY_FILE, self.work / RECIPE_FILE
        self._checkpoints, self._best = self.work / "checkpoints", self.work / "best"
        if self._is_checkpoint:
            check_target(out, source)
        elif self._summary.exists():
            raise CheckpointError(f"{out}: holds a finished training; choose another directory")
        is_empty = not self.work.is_dir() or all(file.name == LOCK_FILE for file in self.work.iterdir())
        if not is_empty and not self._recipe.exists():
            raise CheckpointError(f"{self.work}: not empty and no training of a model; choose another")

    @contextmanager
    def claim(self, recipe: Mapping[str, Any]) -> Iterator[None]:
        """Holds the directory against other processes; writes the recipe or compares it with that of the checkpoint.

        Raises:
            CheckpointError: names what differs.
            ConfigError: another process trains there.
        """
        with lock_directory(self.work, "training in"):
            self._check(recipe)
            yield

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self._checkpoints.glob("step-*"), default=None)

    def _check(self, recipe: Mapping[str, Any]) -> None:
        """Writes the recipe where there is nothing to go on from, else compares it with the one that is there."""
        if self.latest_checkpoint() is None:
            shutil.rmtree(self._best, ignore_errors=True)
            self._cache.unlink(missing_ok=True)
            write_json(self._recipe, recipe)
            write_json(self.work / ENVIRONMENT_FILE, environment_record())
        there = read_json(self._recipe)
        for name in recipe:
            if there.get(name) != recipe[name]:
                way_on = "give the data as it was" if name == "rows" else "repeat the command that began it"
                remedy = f"or delete {self.work}" if self._is_checkpoint else "or choose another directory"
                raise CheckpointError(
                    f"{self.work}: an unfinished training with other {name} "
                    f"({_describe_changes(there.get(name), recipe[name])}); {way_on}, {remedy}"
                )

    def read_cache(self) -> dict[str, Any]:
        """What `write_cache` kept; nothing where it was never called."""
        return read_json(self._cache) if self._cache.exists() else {}

    def write_cache(self, values: Mapping[str, Any]) -> None:
        """Keeps plain values until the training is finished."""
        if values and self.is_written_here:
            write_json(self._cache, values)

    def save_checkpoint(self, step: int, best_step: int | None, write: Callable[[Path], None]) -> None:
        """Has `write` fill a draft, which takes its name when complete; then what only older ones needed goes.

        All ranks call it, as each has a part of what is written.
        """
        draft, old = self._checkpoints / "draft", list(self._checkpoints.glob("step-*"))
        if self.is_written_here:
            shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        if not self.is_written_here:
            return
        draft.rename(self._checkpoints / f"step-{step:09d}")
        for directory in old:
            shutil.rmtree(directory)
        for file in self._best.glob("*"):
            if best_step is None or file != self.best_file(best_step):
                file.unlink()

    def save_best(self, step: int, write: Callable[[Path], None]) -> None:
        """Has `write` keep the weights of the best measurement so far. All ranks call it.

        Those before stay until the next checkpoint: a resume from the last one still needs them.
        """
        draft = self._best / "draft"
        if self.is_written_here:
            self._best.mkdir(parents=True, exist_ok=True)
        write(draft)
        if self.is_written_here:
            draft.rename(self.best_file(step))

    def best_file(self, step: int) -> Path:
        """The file of the weights that `save_best` kept of a step."""
        return self._best / f"step-{step:09d}.safetensors"

    def rescue(self, write: Write) -> None:
        """Has the model of a training that cannot go on written into `model/` of its own files. All ranks call it."""
        write(self.work / "model")

    def finish(self, summary: Mapping[str, Any], write: Write) -> None:
        """Has the result written, then the summary; what only a resume needs goes. All ranks call it."""
        if not self.is_written_here:
            write(self.model)
            return
        if self._is_checkpoint:
            write_json(self._summary, summary)
            kept = [self.metrics, self._summary, self._recipe, self.work / ENVIRONMENT_FILE]
            write(self.model, kept)
            shutil.rmtree(self.work)
            return
        write(self.model)
        for directory in (self._checkpoints, self._best):
            shutil.rmtree(directory, ignore_errors=True)
        self._cache.unlink(missing_ok=True)
        write_json(self._summary, summary)
        (self.work / LOCK_FILE).unlink()


def _describe_changes(before: Any, now: Any) -> str:
    """Says what it was and is; of settings, only those that differ."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return f"{before}, now {now}"
    return ", ".join(f"{name}={old}, now {new}" for name, (old, new) in changed_names(before, now).items())
