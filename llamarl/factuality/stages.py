"""One step of a build over many items: many at a time, each kept under the hash of all that made it.

    DIR/claims.jsonl     {"key", "id", "result"}, a line for each finished item, appended as items finish

The key is a hash of the stage's settings and of the item's content. So a killed build goes on where it was, a changed
setting redoes the stages that it touches, changed back it finds the old lines, and nothing has to be declared stale.
An item whose back end fails leaves no line: the next run tries it again.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from llamarl.core.errors import ConfigError, EndpointError
from llamarl.factuality.facts import digest_of
from llamarl.jobs import Journal
from llamarl.report.files import read_jsonl
from llamarl.report.progress import NoProgress, Progress

MIN_PATIENCE = 8
"""The least number of items that must fail one after another before a stage gives up."""
T = TypeVar("T")


class Stage(ABC, Generic[T]):
    """A step: from an item to plain JSON values."""

    name: str
    """The name of its file."""

    @abstractmethod
    def record(self) -> Mapping[str, Any]:
        """The settings on which results depend."""

    @abstractmethod
    def content(self, item: T) -> Any:
        """The parts of an item that its result depends on, as plain JSON values."""

    @abstractmethod
    async def process(self, item: T) -> dict[str, Any]:
        """The result of an item.

        Raises:
            EndpointError: a back end did not answer; the item fails and is tried again by the next run.
            ConfigError: a back end refuses the request.
        """


@dataclass(slots=True)
class Outcome:
    """A stage's results."""

    results: dict[str, dict[str, Any]]
    """Results in the order of the items."""
    failures: dict[str, str] = field(default_factory=dict)
    """Item -> what its back end said."""
    num_kept: int = 0
    """Items that were on file already."""


async def run_stage(
    stage: Stage[T],
    items: Mapping[str, T],
    directory: Path,
    *,
    max_in_flight: int = 16,
    progress: Progress | None = None,
) -> Outcome:
    """Processes the items that are not on file.

    Args:
        stage: what to do.
        items: by id.
        directory: of the stage's file.
        max_in_flight: items worked on at a time.
        progress: told of every item.

    Raises:
        EndpointError: all items failed, or so many one after another that going on is pointless.
        ConfigError: a back end refused the first request, so a setting is wrong.
        DataError: the file cannot be read or written.
    """
    settings = digest_of(stage.record())
    keys = {name: digest_of([settings, stage.content(item)]) for name, item in items.items()}
    path = directory / f"{stage.name}.jsonl"
    journal = Journal(path)  # first of all, since it mends the line that a kill tore
    try:
        known = {line["key"]: line["result"] for line in read_jsonl(path, {"key": str, "result": dict})}
        run = _Run(stage, journal, known, keys, max(MIN_PATIENCE, 2 * max_in_flight), bool(known))
        waiting = deque(name for name in items if keys[name] not in known)
        outcome = Outcome({}, run.failures, len(items) - len(waiting))
        with progress or NoProgress() as view:
            view.start(outcome.num_kept, len(items))
            await _work_off(run, items, waiting, max_in_flight, view, outcome.num_kept)
    finally:
        journal.close()
    outcome.results = {name: known[keys[name]] for name in items if keys[name] in known}
    if run.failures and not outcome.results:
        raise EndpointError(_explain(stage, run.failures, f"all {len(items)} items failed", path))
    return outcome


@dataclass
class _Run:
    """One call of `run_stage`."""

    stage: Stage[Any]
    journal: Journal
    known: dict[str, dict[str, Any]]
    keys: Mapping[str, str]
    patience: int
    has_answered: bool
    failures: dict[str, str] = field(default_factory=dict)
    num_failures_in_a_row: int = 0

    async def process(self, name: str, item: Any) -> None:
        """One item; its result goes on file."""
        try:
            result = await self.stage.process(item)
        except (EndpointError, ConfigError) as error:
            # Before anything worked, a refusal means that a setting is wrong; afterwards, that this item is.
            if isinstance(error, ConfigError) and not self.has_answered:
                raise
            self.failures[name] = str(error)
            self.num_failures_in_a_row += 1
            if self.num_failures_in_a_row >= self.patience:
                start = f"{self.num_failures_in_a_row} items failed one after another"
                raise EndpointError(_explain(self.stage, self.failures, start, self.journal.path)) from error
            return
        self.has_answered, self.num_failures_in_a_row = True, 0
        self.known[self.keys[name]] = result
        self.journal.append({"key": self.keys[name], "id": name, "result": result})


async def _work_off(
    run: _Run, items: Mapping[str, Any], waiting: "deque[str]", max_in_flight: int, view: Progress, done: int
) -> None:
    num_done = done

    async def work() -> None:
        nonlocal num_done
        while waiting:
            name = waiting.popleft()
            if run.keys[name] not in run.known:  # an equal item may have been finished meanwhile
                await run.process(name, items[name])
            num_done += 1
            view.update(num_done, len(run.failures))
            await asyncio.sleep(0)  # a stage that never waits lets others run, Ctrl-C among them

    workers = [asyncio.create_task(work()) for _ in range(min(max_in_flight, len(waiting)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _explain(stage: Stage[Any], failures: Mapping[str, str], start: str, path: Path) -> str:
    last = next(reversed(list(failures.values())))
    return f"{stage.name}: {start}, the last with: {last}; what was finished is in {path}: run the same again"


def count_reasons(reasons: Sequence[str]) -> dict[str, int]:
    """Counts of the reasons, the most frequent first."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
