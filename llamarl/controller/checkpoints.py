"""Checkpoints that are complete or absent.

A checkpoint is written into a fresh folder, every file is flushed to disk, a manifest with sizes and SHA-256 comes
last, and only then the folder gets its name by rename; the `latest` pointer moves by rename too. A kill at any moment
leaves the previous checkpoint untouched and at worst a temporary folder, which the next life removes. Loading verifies
every byte against the manifest, the manifest against its own digest, and falls back to the previous copy, saying so.

    checkpoints/step_000040/{manifest.json, trainer/...}
    checkpoints/latest        "step_000040"
    checkpoints/best          "step_000020"
"""

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llamarl.core.errors import CheckpointError

MANIFEST = "manifest.json"


def warn(text: str) -> None:
    """A `RuntimeWarning` at the line that called who calls this."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    step: int
    path: Path
    score: float | None
    """Mean reward at this step, by which `best` is chosen; None where it is unknown."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: created by the first checkpoint; looking changes nothing.
        keep_last: newest copies kept, at least 2; the best by score is kept besides.
    """

    def __init__(self, directory: str | Path, keep_last: int = 2) -> None:
        if keep_last < 2:
            raise ValueError(f"keep_last={keep_last}: keep at least 2, so that a damaged copy has a predecessor")
        self.directory, self.keep_last = Path(directory), keep_last

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Writes checkpoint `step` through `write(fresh directory)` and returns its path.

        Raises:
            OSError: the disk refused (full, read-only); the temporary folder is removed, older copies are untouched.
        """
        with self.fresh() as temporary:
            write(temporary)
            return self.commit(step, temporary, score)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty temporary folder to write to, which `commit` names; gone at the end if it was not committed."""
        self.remove_temporaries()
        temporary = self.directory / f"tmp-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def commit(self, step: int, temporary: Path, score: float | None = None) -> Path:
        """Seals a folder from `fresh`: manifest, flush, rename, pointers, and removal of what is no longer kept."""
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        entries = {str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        manifest = temporary / MANIFEST
        manifest.write_text(_seal({"step": step, "score": score, "files": entries}))
        for path in [*files, manifest]:
            _sync(path)
        # A file's name is durable only once its folder is flushed; inner folders before those that name them.
        for folder in sorted({p.parent for p in [*files, manifest]}, reverse=True):
            _sync(folder)
        target = self._folder(step)
        if target.exists():  # a resumed run reached this step again; the older copy leaves only now
            os.rename(target, self.directory / f"tmp-{uuid.uuid4().hex[:8]}")
        os.rename(temporary, target)
        _sync(self.directory)
        self._point("latest", target.name)
        if best := self._best():
            self._point("best", best.name)
        self._prune()
        return target

    def steps(self) -> list[int]:
        """Steps that have a folder, oldest first; not yet verified."""
        return sorted(int(p.name[5:]) for p in self.directory.glob("step_*") if p.name[5:].isdecimal())

    def load(self, step: int) -> Checkpoint:
        """Verifies one checkpoint. Raises `CheckpointError` naming the file that is missing, torn or altered."""
        path = self._folder(step)
        manifest = _read_manifest(path)
        if manifest.step != step:
            raise CheckpointError(f"{path / MANIFEST}: is of step {manifest.step}; the copy is damaged")
        for name, entry in manifest.files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise CheckpointError(f"{file}: missing or of the wrong size; the copy is damaged")
            if _sha256(file) != entry["sha256"]:
                raise CheckpointError(f"{file}: SHA-256 differs from the manifest; the copy is damaged")
        return Checkpoint(step, path, manifest.score)

    def load_latest(self, tell: Callable[[str], None] = warn) -> Checkpoint:
        """The newest checkpoint that verifies.

        Args:
            tell: hears of each damaged one that is skipped; by default a `RuntimeWarning`.

        Raises:
            CheckpointError: there is none, or none verifies.
        """
        run_dir, problems = self.directory.parent, []
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except CheckpointError as error:
                problems.append(str(error))
                tell(f"skipping a damaged checkpoint: {error}")
        if not problems:
            raise CheckpointError(
                f"{self.directory}: no checkpoint yet; `llamarl resume {run_dir}` goes on with the run, which writes "
                "one every schedule.checkpoint_every steps and at its end"
            )
        raise CheckpointError(
            f"{self.directory}: no usable checkpoint; restore one from a copy, or delete the step folders, and "
            f"`llamarl resume {run_dir}` starts over from step 0" + "".join(f"\n  {problem}" for problem in problems)
        )

    def forget_after(self, step: str) -> None:
        """Makes `step` (`best` or a number) the newest checkpoint by removing later ones.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged; then nothing is removed.
        """
        number = self.number(step)
        self.load(number)
        for later in [other for other in self.steps() if other > number]:
            shutil.rmtree(self._folder(later))
        self._point("latest", self._folder(number).name)

    def number(self, step: str) -> int:
        """The step number that `latest`, `best` or a number names. Raises `CheckpointError` listing what there is."""
        pointer, known = self.directory / step, self.steps()
        name = (
            pointer.read_bytes().decode(errors="replace") if step in ("latest", "best") and pointer.is_file() else step
        )
        number = name.removeprefix("step_")
        if number.isdecimal() and int(number) in known:
            return int(number)
        if name != step:
            raise CheckpointError(f"{pointer}: names {name!r}, which is not there; name a step, one of {known}")
        raise CheckpointError(f"step {step!r}: not there; choose latest, best, or one of {known}")

    def _best(self) -> Path | None:
        scored = [(self._score(p), p) for p in self._folders()]
        known = [(score, path.name, path) for score, path in scored if score is not None]
        return max(known)[2] if known else None

    def _score(self, path: Path) -> float | None:
        try:
            return _read_manifest(path).score
        except CheckpointError:
            return None

    def _folder(self, step: int) -> Path:
        return self.directory / f"step_{step:06d}"

    def _folders(self) -> list[Path]:
        return [self._folder(step) for step in self.steps()]

    def _prune(self) -> None:
        keep = set(self._folders()[-self.keep_last :]) | {self._best()}
        for path in self._folders():
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)
        self.remove_temporaries()

    def remove_temporaries(self) -> None:
        """Removes what a kill left half written."""
        for path in self.directory.glob("tmp-*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _point(self, name: str, target: str) -> None:
        temporary = self.directory / f"tmp-{uuid.uuid4().hex[:8]}"
        temporary.write_text(target)
        _sync(temporary)
        # A rename is atomic: whoever reads the pointer finds the old target or the new one.
        os.rename(temporary, self.directory / name)
        _sync(self.directory)


class _Manifest(NamedTuple):
    """The contents of a checkpoint, as its manifest file states them."""

    step: int
    score: float | None
    files: dict[str, dict[str, Any]]
    """File name -> its `bytes` and `sha256`."""


def _seal(values: dict[str, Any]) -> str:
    """The manifest's text: the values and their own digest."""
    return json.dumps({**values, "sha256": _digest(values)}, indent=1)


def _digest(values: dict[str, Any]) -> str:
    # Sorted, so that the digest is one of the values and not of their order.
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> _Manifest:
    """Raises `CheckpointError` unless the manifest is exactly what `_seal` wrote."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable ({error}); the copy is incomplete or damaged") from None
    if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):
        raise CheckpointError(f"{path}: differs from its own SHA-256; the copy is damaged")
    return _Manifest(**values)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
