"""Judges many rows at once: bounded, in order, and resumable where the results go to a file.

results = await judge_rows(panel, rows)             # one record per row, completion and judge

OUT.partial   one line per finished row, until OUT is written whole; the same call then goes on from there
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.judge import Judge
from llamarl.core.records import Sample, Status, Verdict, text_completion
from llamarl.data.jsonl import write_jsonl
from llamarl.functional.statistics import quantile
from llamarl.jobs import Journal, changed_names
from llamarl.judges.config import JudgeConfig, build_panel
from llamarl.judges.llm.cache import content_key
from llamarl.judges.panel import JudgePanel
from llamarl.judges.rows import CompletionRow
from llamarl.models.endpoint import well_formed
from llamarl.report.files import read_jsonl

Record = dict[str, Any]
OnDone = Callable[[int, int], object]
"""Called with the number of rows done and of those with a failed verdict."""
MAX_IN_FLIGHT = 16
_MAX_HASHED_BYTES = 16 << 20
"""Larger files are told apart by size and time of change."""


def equal_panel(configs: Sequence[JudgeConfig]) -> JudgePanel:
    """Seats the judges side by side: each sees every row and counts the same, whatever role a recipe gives it."""
    plain = {"role": "reward", "weight": 1.0, "share": 1.0, "canaries": None}
    return build_panel([config.model_copy(update=plain) for config in configs])


def judge_card(judge: Judge) -> dict[str, str]:
    """Says who judged: name, version (empty where it has none) and cost class (`free`, `local` or `paid`)."""
    return {"judge": judge.name, "version": judge.info.version, "cost_class": judge.info.cost_class}


def job_key(configs: Sequence[JudgeConfig]) -> dict[str, Any]:
    """Returns what tells a job of these judges from others: settings, and a fingerprint of each local file they name.

    Those are Python files, templates and other files, and directories of models; not an `llm` judge's `cache`, which
    grows with the job. Build the judges first: modules are found where they were imported from.
    """
    paths = dict.fromkeys(path for config in configs for path in _local_paths(config))
    settings = [config.model_dump(mode="json") for config in configs]
    return {"judge settings": settings, **{path: _fingerprint(path) for path in paths}}


async def judge_rows(
    panel: JudgePanel,
    rows: Sequence[CompletionRow],
    *,
    max_in_flight: int = MAX_IN_FLIGHT,
    on_done: OnDone = lambda done, failed: None,
) -> list[tuple[Sample, ...]]:
    """The judged samples of every row, in order, with `max_in_flight` rows under way.

    Raises:
        DataError: a row lacks what a judge needs (before anything is judged).
        JudgeError: a judge failed its last 64 samples.
    """
    results: dict[int, tuple[Sample, ...]] = {}

    async def judge(number: int) -> None:
        results[number] = await _judge(panel, rows[number])
        on_done(len(results), _num_failed(results.values()))

    check_rows(panel, rows)
    panel.load()
    await _for_each(range(len(rows)), judge, max_in_flight)
    return [results[number] for number in range(len(rows))]


def check_rows(panel: JudgePanel, rows: Sequence[CompletionRow]) -> None:
    """Asks the judges whether the rows hold what they need. Raises `DataError` naming file, line and the lack."""
    for row in rows:
        try:
            panel.check([row.prompt])
        except ConfigError as error:
            raise DataError(f"{row.source}, line {row.line}: {error}") from None


async def judge_file(
    panel: JudgePanel,
    rows: Sequence[CompletionRow],
    out: Path,
    *,
    key: Mapping[str, Any] | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
    on_done: OnDone = lambda done, failed: None,
) -> list[Record]:
    """Judges the rows and writes one JSON line per row, completion and judge, in input order, whole or not at all.

    What is done is kept in `OUT.partial`; after an interruption the same call goes on from there, and asks again about
    rows with a failed verdict.

    Args:
        panel: of `equal_panel`.
        rows: to judge.
        out: the file to write.
        key: further JSON that tells this job from another one, by what it is called in an error (`job_key`).
        max_in_flight: rows under way.
        on_done: see `OnDone`.

    Returns:
        The records written.

    Raises:
        DataError: a row lacks what a judge needs, or `OUT.partial` belongs to a job with other rows, judges or `key`.
        JudgeError: a judge failed its last 64 samples; what is done is kept.
    """
    check_rows(panel, rows)
    partial = out.with_name(out.name + ".partial")
    parts = {"data": [_content(row) for row in rows], "judges": [judge_card(judge) for judge in panel.judges]}
    job = {name: content_key(part) for name, part in {**parts, **(key or {})}.items()}
    done = _read_partial(partial, job)
    log = Journal(partial)
    if not done:
        log.keep_only(lambda record: False)
        log.append({"job": job})

    async def judge(number: int) -> None:
        samples = await _judge(panel, rows[number])
        done[number] = records_of(rows[number], samples)
        log.append({"row": number, "records": done[number]})
        on_done(len(done), _num_failed_records(done.values()))

    try:
        on_done(len(done), 0)
        panel.load()
        await _for_each([number for number in range(len(rows)) if number not in done], judge, max_in_flight)
    finally:
        log.close()
    records = [record for number in range(len(rows)) for record in done[number]]
    write_jsonl(out, records)
    partial.unlink()
    return records


def records_of(row: CompletionRow, samples: Sequence[Sample]) -> list[Record]:
    """One record per completion and judge, as written to files."""
    return [
        {"id": row.prompt.id, "sample": number, "judge": name, **_fields(verdict)}
        for number, sample in enumerate(samples)
        for name, verdict in sample.verdicts.items()
    ]


def summary_of(records: Sequence[Record]) -> list[Record]:
    """Counts, for each judge: statuses, mean score, pass rate, cost, median and 95th percentile of the seconds."""
    summaries = []
    for name in dict.fromkeys(record["judge"] for record in records):
        mine = [record for record in records if record["judge"] == name]
        scores = [record["score"] for record in mine if record["score"] is not None]
        passes = [record["passed"] for record in mine if record["passed"] is not None]
        seconds = [record["seconds"] for record in mine]
        summary: Record = {"judge": name, "verdicts": len(mine)}
        summary |= {status.value: sum(record["status"] == status for record in mine) for status in Status}
        summary |= {"mean_score": _mean(scores), "pass_rate": _mean(passes), "cost": sum(r["cost"] for r in mine)}
        summary |= {"seconds_p50": quantile(seconds, 0.5), "seconds_p95": quantile(seconds, 0.95)}
        summaries.append(summary)
    return summaries


async def _judge(panel: JudgePanel, row: CompletionRow) -> tuple[Sample, ...]:
    return await panel.judge_group(row.prompt, [text_completion(text) for text in row.completions])


async def _for_each(numbers: Sequence[int], work: Callable[[int], Any], max_in_flight: int) -> None:
    """Runs `work` on each number, so many at a time; the first error ends all."""
    waiting = iter(numbers)

    async def worker() -> None:
        for number in waiting:
            await work(number)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(max_in_flight, len(numbers)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _content(row: CompletionRow) -> list[Any]:
    """Returns all that a judge sees of a row."""
    prompt = row.prompt
    return [prompt.id, prompt.messages, prompt.answer, prompt.task, prompt.info, prompt.tools, row.completions]


def _local_paths(config: JudgeConfig) -> list[str]:
    """The files, and the directories of models, that a judge's function and settings name."""
    place = config.function.rpartition(":")[0]
    module = sys.modules.get(place)
    values = {name: value for name, value in (config.settings or {}).items() if name != "cache"}
    named = [place if module is None else getattr(module, "__file__", None), *values.values()]
    return [
        name
        for name in named
        if isinstance(name, str) and (os.path.isfile(name) or os.path.isfile(os.path.join(name, "config.json")))
    ]


def _fingerprint(path: str) -> Any:
    """Returns a file's hash; of a large one, or of a directory's files, name, size and time of change."""
    if os.path.isdir(path):
        entries = (entry for entry in os.scandir(path) if entry.is_file())
        return sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
    status = os.stat(path)
    if status.st_size > _MAX_HASHED_BYTES:
        return [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read_partial(path: Path, job: Mapping[str, str]) -> dict[int, list[Record]]:
    """Finished rows of an interrupted job by number; those with a failed verdict are to be judged again."""
    if not path.exists():
        return {}
    records = read_jsonl(path)
    if not records:
        return {}
    before = records[0].get("job")
    if before != job:
        before = before if isinstance(before, Mapping) else {}
        changed = changed_names(before, job)
        raise DataError(
            f"{path}: left by a job that differs in {', '.join(changed)}; undo the change to finish that job, or "
            "delete the file to judge all rows anew"
        )
    finished = {record["row"]: record["records"] for record in records[1:]}
    return {number: rows for number, rows in finished.items() if not _num_failed_records([rows])}


def _fields(verdict: Verdict) -> Record:
    return {
        "status": verdict.status.value,
        "score": verdict.score,
        "passed": verdict.passed,
        "reason": well_formed(verdict.reason),
        "cost": verdict.cost,
        "seconds": round(verdict.seconds, 6),
    }


def _num_failed(results: Any) -> int:
    return sum(any(v.status is Status.FAILED for s in samples for v in s.verdicts.values()) for samples in results)


def _num_failed_records(rows: Any) -> int:
    return sum(any(record["status"] == Status.FAILED for record in records) for records in rows)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
