"""The run directory as an observer: everything the loop tells goes to files, and to the live view."""

import contextlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from llamarl.controller.ledger import Ledger
from llamarl.controller.metrics import evaluation_metrics, flatten, mean_reward
from llamarl.controller.observer import EvaluationRecord, StepRecord
from llamarl.core import metric_names as names
from llamarl.core.progress import StepProgress
from llamarl.core.protocols import MetricSink
from llamarl.core.records import Group
from llamarl.report.files import write_json
from llamarl.report.live import LiveView
from llamarl.report.metrics import JsonlSink, MultiSink
from llamarl.report.rollouts import Decode, RolloutLog
from llamarl.report.status import RunStatus, executors_now
from llamarl.report.summary import RunSummary, peak_memory_bytes, resident_memory
from llamarl.report.timeline import Timeline

Value = TypeVar("Value")

PHASES = {
    "train": "training",
    "publish": "passing weights on",
    "wait for sync": "passing weights on",
    "wait for evaluation": "evaluating",
    "checkpoint": "writing a checkpoint",
}
"""The trainer's activity -> the run's phase as users read it."""


class Reporter:
    """Observer of one run.

    Args:
        directory: of the run.
        ledger: for the counts of prompts.
        total_steps: where the run ends.
        groups_per_step: that every step trains, of all tasks.
        rollouts_every, rollouts_per_step: see `recipe.ReportConfig`.
        decode: text of token ids, special tokens included, for the tokens of logged groups.
        live: the live view, if anybody looks.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        total_steps: int,
        *,
        groups_per_step: int = 0,
        rollouts_every: int = 10,
        rollouts_per_step: int = 2,
        decode: Decode | None = None,
        live: LiveView | None = None,
    ) -> None:
        self.directory, self.total_steps, self.live = directory, total_steps, live
        self._ledger, self._groups_per_step = ledger, groups_per_step
        self._metrics_file = JsonlSink(directory / "metrics.jsonl")
        self._sink = MultiSink([self._metrics_file])
        self._rollouts = RolloutLog(directory / "rollouts.jsonl", rollouts_every, rollouts_per_step, decode)
        self.timeline = Timeline(directory / "timeline.jsonl")
        self.progress = StepProgress(directory / "training_progress")
        self.before: Sequence[Group] = ()
        """Held-out groups answered by the untrained policy, in this process."""
        self.after: Sequence[Group] = ()
        self._totals: dict[str, Any] = {
            "seconds": 0.0,
            "tokens": 0,
            "failed": 0,
            "reward_before": None,
            "reward_after": None,
            "staleness_max": None,
            "mismatch_max": None,
            "sync_seconds": [],
            "rewards": [],
        }
        self.is_interrupted = False
        """True once somebody asked the run to stop."""
        self._processes: dict[str, list[int]] = {}
        self._hosts: dict[str, str | None] = {}
        self._version = self._first_version = 0
        self._last_step_at = self._started_at = time.monotonic()
        self._seconds_before = 0.0
        self._is_training = False
        self._message = ""
        self._latest: Mapping[str, float] = {}

    # What the loop tells

    def span(self, executor: str, activity: str) -> AbstractContextManager[None]:
        """A span of the timeline."""
        return self.timeline.span(executor, activity)

    def choose_watched(self, version: int, groups: Sequence[Group]) -> list[int]:
        """The groups that the rollout log will show."""
        return [group.index for group in self._rollouts.choose(version, groups)]

    def on_group(self, group: Group, dropped: str | None) -> None:
        """Counts tokens and failures."""
        self._totals["tokens"] += sum(sample.completion.trajectory.response_length for sample in group.samples)
        self._totals["failed"] += dropped == "unscored"
        self.refresh()

    def on_step(self, record: StepRecord) -> None:
        """Writes the step's metrics and its share of rollouts."""
        now, totals = time.monotonic(), self._totals
        seconds, self._last_step_at = now - self._last_step_at, now
        self._version = record.version
        metrics = {names.POLICY_VERSION: record.version, **flatten(record.metrics, record.task_metrics)}
        metrics[names.TIME_STEP] = seconds
        busy = self.timeline.utilisation(seconds)
        generating = (share for name, share in busy.items() if name.startswith("generator"))
        metrics[names.TIME_JUDGE] = seconds * busy.get("judge", 0.0)
        metrics[names.TIME_GENERATE] = seconds * max(generating, default=0.0)
        metrics[names.TOKENS_PER_SECOND] = record.rollouts.num_tokens / seconds if seconds > 0 else 0.0
        if record.proofs:
            metrics[names.TIME_SYNC] = max(proof.seconds for proof in record.proofs)
            metrics[names.PROBE_GAP] = max(proof.probe_gap for proof in record.proofs)
            metrics[names.PUBLISHED_BYTES] = float(max(proof.num_bytes for proof in record.proofs))
            totals["sync_seconds"].append(metrics[names.TIME_SYNC])
        metrics |= {f"data/{name}": float(count) for name, count in self._ledger.counts().items()}
        metrics[names.DATA_FAILED] = float(totals["failed"])
        memory = resident_memory(self._processes)
        metrics |= {f"{names.PROCESS_MEMORY}/{name}": float(size) for name, size in memory.items()}
        totals["rewards"].append(record.rollouts.reward)
        totals["staleness_max"] = _larger(totals["staleness_max"], record.rollouts.max_staleness)
        totals["mismatch_max"] = _larger(totals["mismatch_max"], record.metrics.get(names.MISMATCH_PROB_MAX))
        self._latest = metrics
        self._sink.write(record.version, metrics)
        logprobs = _by_position(record.groups, record.trainer_logprobs)
        trained = _by_position(record.groups, record.trained)
        self._rollouts.write(record.version, record.version - 1, record.groups, logprobs, trained)
        self.refresh()

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """Writes `eval/*`; the first evaluation is "before", the newest "after"."""
        version, groups = record.version, record.all_groups
        reward = mean_reward(groups)
        if self._totals["reward_before"] is None:
            self._totals["reward_before"], self.before = reward, groups
        if version > 0:
            self._totals["reward_after"], self.after = reward, groups
        self._totals["tokens"] += sum(s.completion.trajectory.response_length for g in groups for s in g.samples)
        found = record.algorithm_metrics
        own = {name: {**evaluation_metrics(each), **found[name]} for name, each in record.groups.items()}
        metrics = {names.POLICY_VERSION: version, **evaluation_metrics(groups)}
        self._sink.write(version, flatten(metrics, own))
        self._last_step_at = time.monotonic()
        self.refresh()

    def on_progress(self) -> None:
        """Shows the micro-batch under way."""
        self.refresh()

    def on_message(self, text: str) -> None:
        """Shows and keeps a message."""
        self._message = text
        log_message(self.directory, text)
        self.refresh()

    def on_interrupt(self) -> None:
        """Somebody asked the run to stop: says what it still does."""
        self.is_interrupted = True
        if self._version >= self.total_steps:
            rest = "all steps are done, and the last evaluation is finished first"
        elif self._version > self._first_version:
            rest = "stopping after this step, with a checkpoint"
        else:
            rest = "stopping; a step under way is finished first, with a checkpoint"
        self.on_message(f"{rest}; press Ctrl-C again to stop at once")

    # What the run asks

    def on_spawn(self, name: str, pids: Sequence[int], host: str | None = None) -> None:
        """Keeps `processes.json`: which process each executor is, for people with a debugger or a kill.

        Args:
            name: of the executor.
            pids: on its machine.
            host: its machine; noted in `hosts.json`. None: this one.
        """
        self._processes[name] = list(pids)
        write_json(self.directory / "processes.json", self._processes)
        if host != self._hosts.get(name):
            self._hosts[name] = host
            write_json(self.directory / "hosts.json", self._hosts)

    def add_sinks(self, sinks: Sequence[MetricSink]) -> None:
        """Writes every later record to these sinks too, and closes them with the files."""
        self._sink = MultiSink([self._sink, *sinks])

    def start_clock(self) -> None:
        """The training loop begins now."""
        self._started_at = self._last_step_at = time.monotonic()
        self._is_training = True

    def refresh(self) -> None:
        """Gives the live view the newest state."""
        if self.live is None:
            return
        counts, latest = self._ledger.counts(), self._latest
        self.live.update(
            RunStatus(
                step=self._version,
                total_steps=self.total_steps,
                phase=self._phase(counts["finished"]),
                version=self._version,
                reward=self._totals["rewards"][-1] if self._totals["rewards"] else None,
                reward_history=self._totals["rewards"],
                staleness_max=latest.get(names.STALENESS_MAX),
                staleness_mean=latest.get(names.STALENESS_MEAN),
                tokens_per_second=latest.get(names.TOKENS_PER_SECOND),
                mismatch=latest.get(names.MISMATCH_KL),
                weight_sync_seconds=latest.get(names.TIME_SYNC),
                executors=executors_now(self.timeline),
                counters={**counts, "failed": self._totals["failed"]},
                message=self._message,
            )
        )

    def _phase(self, num_ready: int) -> str:
        """Names what the next step waits for; `num_ready` groups are judged and not yet trained."""
        activity = self.timeline.activities().get("trainer", "")
        if activity == "wait":
            return f"generating {min(num_ready, self._groups_per_step)} of {self._groups_per_step} groups"
        known = self.progress.read() if activity == "train" else None
        if known is not None:
            return f"training micro-batch {known[0]} of {known[1]}"
        return PHASES.get(activity, "")

    def state(self) -> dict[str, Any]:
        """Totals as plain JSON, saved with a checkpoint."""
        return {**self._totals, "seconds": self._seconds(), "version": self._version}

    def restore(self, state: Mapping[str, Any], version: int) -> None:
        """Goes on from a checkpoint's totals; files forget what came after it."""
        self._totals |= {key: value for key, value in state.items() if key in self._totals}
        self._seconds_before = float(self._totals["seconds"])
        self._version = self._first_version = version
        self._metrics_file.rewind(version)
        self._rollouts.rewind(version)

    def summary(self) -> RunSummary:
        """Summarises the run up to now."""
        totals, counts, seconds = self._totals, self._ledger.counts(), self._seconds()
        syncs = totals["sync_seconds"]
        return RunSummary(
            steps=self._version,
            version=self._version,
            seconds=seconds,
            reward_before=totals["reward_before"],
            reward_after=totals["reward_after"],
            tokens_generated=totals["tokens"],
            tokens_per_second=totals["tokens"] / seconds if seconds > 0 else None,
            staleness_max=None if totals["staleness_max"] is None else int(totals["staleness_max"]),
            mismatch_max=totals["mismatch_max"],
            weight_sync_seconds_median=statistics.median(syncs) if syncs else None,
            prompts_issued=counts["issued"],
            prompts_trained=counts["trained"],
            prompts_dropped=counts["dropped"],
            prompts_failed=totals["failed"],
            peak_memory_bytes=peak_memory_bytes(),
        )

    def close(self) -> None:
        """Closes the files."""
        self._sink.close()
        self._rollouts.close()
        self.timeline.close()
        self.progress.clear()

    def _seconds(self) -> float:
        running = time.monotonic() - self._started_at if self._is_training else 0.0
        return self._seconds_before + running


def _by_position(groups: Sequence[Group], values: Mapping[tuple[int, bytes], Value]) -> dict[tuple[int, int], Value]:
    """Values by (group, `Trajectory.key`), as the trainer knows samples, by (group, position of the sample)."""
    return {
        (group.index, position): values[group.index, key]
        for group in groups
        for position, sample in enumerate(group.samples)
        if (group.index, key := sample.completion.trajectory.key) in values
    }


def log_message(directory: Path, text: str) -> None:
    """Adds a line to the run's `messages.log`, unless the disk is full."""
    with contextlib.suppress(OSError), open(directory / "messages.log", "a") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")


def read_state(path: Path) -> dict[str, Any]:
    """The totals saved with a checkpoint."""
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _larger(old: float | None, new: float | None) -> float | None:
    return new if old is None else old if new is None else max(old, new)
