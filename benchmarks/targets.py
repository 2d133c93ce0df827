"""What to reach, and where the result files say what was reached."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table in README.md."""

    what: str
    bound: float
    is_floor: bool
    """Whether the bound is the least that is good enough, or the most."""
    unit: str
    file: str
    """`results/FILE.json`"""
    path: tuple[str, ...]
    """Keys from the file's top to the number."""

    @property
    def goal(self) -> str:
        """The bound in words."""
        return f"{'≥' if self.is_floor else '≤'} {self.bound:g} {self.unit}".rstrip()

    def measured(self, results: Mapping[str, Mapping[str, Any]]) -> float | None:
        """The number in the result files, by file name; None if it was not measured."""
        value: Any = results.get(self.file)
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    def is_met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.bound if self.is_floor else value <= self.bound


def at_least(bound: float, what: str, unit: str, file: str, *path: str) -> Target:
    """A target with a lower bound."""
    return Target(what, bound, True, unit, file, path)


def at_most(bound: float, what: str, unit: str, file: str, *path: str) -> Target:
    """A target with an upper bound."""
    return Target(what, bound, False, unit, file, path)


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """Every result file of a directory, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}


TRL, HF, MODEL, SYNC = "x TRL", "x HF generate", "x the model", "x synchronous"
RELEASED = "x the released grader"
HEAD = "headlines"

TARGETS = (
    at_least(3.0, "GRPO step, 0.34M, short answers", TRL, "grpo_step", HEAD, "0.34M"),
    at_least(2.0, "GRPO step, 7.5M", TRL, "grpo_step", HEAD, "7.5M"),
    at_least(4.0, "GRPO step, 0.87M, long-tailed lengths", TRL, "grpo_step", HEAD, "0.87M"),
    at_least(8.0, "generation, 0.87M", HF, "generation", HEAD, "fp32/generate at 0.87M"),
    at_least(6.0, "generation, 8.75M", HF, "generation", HEAD, "fp32/generate at 8.75M"),
    at_least(4.0, "generation, 97.5M", HF, "generation", HEAD, "fp32/generate at 97.5M"),
    *(
        at_least(1.0, f"generation, {size}", "x continuous batching", "generation", HEAD, f"fp32/continuous at {size}")
        for size in ("0.87M", "8.75M", "97.5M")
    ),
    at_least(1.5, "generation with int8, 8.75M", "x fp32", "generation", HEAD, "int8/fp32 at 8.75M"),
    at_least(2.5, "generation with int8, 97.5M", "x fp32", "generation", HEAD, "int8/fp32 at 97.5M"),
    at_most(1.6, "decode step of 64 rows, 8.75M", "x its bound", "generation", HEAD, "step/bound at 8.75M"),
    *(
        at_least(
            0.6, f"decode step of {rows}, 135M", "of the memory's bound", "real_model", HEAD, f"share fp32, {rows}"
        )
        for rows in ("1 rows", "2 rows", "4 rows", "8 rows")
    ),
    at_least(0.75, "training, 7.5M", "of the product rate", "training", HEAD, "large share of product rate"),
    at_most(1.1, "asynchronous step, 1 s judge, K = 4", MODEL, "asynchrony", HEAD, "J=1 K=4 step / model"),
    at_least(1.0, "asynchronous step, instant judge, K = 1", SYNC, "asynchrony", HEAD, "J=0 K=1 speed-up"),
    at_most(1.1, "asynchronous step, 1 s judge, K = 4", "x instant", "judging_overlap", HEAD, "K=4 slow / instant"),
    at_least(
        0.45,
        "weight sync through the arena, publish and fetch",
        "of memcpy",
        "weight_sync",
        HEAD,
        "shm both / memcpy",
    ),
    at_least(
        0.9,
        "weight sync, fetch out of shared memory",
        "of memcpy",
        "weight_sync",
        HEAD,
        "shm fetch / memcpy",
    ),
    at_least(
        0.9,
        "weight sync over a process group",
        "of a bare gloo broadcast",
        "weight_sync",
        HEAD,
        "collective / gloo broadcast",
    ),
    at_most(0.0, "200 good weight syncs, alarms", "", "weight_proof", HEAD, "false alarms"),
    at_most(0.0, "faults of a weight sync, missed", "of 66", "weight_proof", HEAD, "faults missed"),
    at_most(0.0, "every command on a 135M model, failed", "", "every_command", HEAD, "failed commands"),
    at_most(20.0, "every command on a 135M model", "minutes", "every_command", HEAD, "minutes"),
    at_most(0.02, "controller, in-process", "of a 0.17 s step", "controller_overhead", HEAD, "inprocess full share"),
    at_most(
        0.02,
        "controller with 10,000 groups in flight",
        "core-seconds a 100 samples",
        "controller_in_flight",
        HEAD,
        "core-seconds a 100 samples",
    ),
    at_most(10.0, "controller over Monarch", "ms a step", "controller_overhead", HEAD, "monarch full ms"),
    at_least(5.0, "grading, replies of a few lines", RELEASED, "grading", HEAD, "short speed-up"),
    at_least(5.0, "grading, replies of 1,500 characters", RELEASED, "grading", HEAD, "long speed-up"),
    at_least(
        0.9,
        "evaluation through an endpoint",
        "of the server's rate",
        "endpoint_throughput",
        HEAD,
        "least evaluation/bare",
    ),
    *(
        at_least(0.9, f"LLM judge, {n} in flight", "of the server's rate", "llm_judge", HEAD, f"least, {n} in flight")
        for n in (16, 32, 64)
    ),
    at_most(0.5, "faults of 30 %: shift of the mean reward", "points of 100", "judge_faults", HEAD, "shift, points"),
    at_most(0.0, "of these, faults that became a score", "", "judge_faults", HEAD, "invented scores"),
    at_most(0.0, "of these, other samples lost", "", "judge_faults", HEAD, "lost samples"),
    at_least(
        20.0, "a claim by SelfCheck, 20 answers", "x one of Prompt-TF", "detect", HEAD, "selfcheck over prompt_tf"
    ),
    at_most(25.0, "sandbox over bare Python, p50", "ms", "sandbox", HEAD, "program over bare, p50 ms"),
    at_least(20.0, "sandbox, two cores", "runs/s", "sandbox", HEAD, "runs/s"),
    at_most(0.0, "left behind by 1,000 sandboxes", "", "sandbox", HEAD, "left behind"),
    at_most(0.5, "budget program of 1,024 prompts x 8", "s", "budget_solver", HEAD, "1024 share, auto s"),
    at_most(1.0, "budget program of 4,096 prompts x 8", "s", "budget_solver", HEAD, "4096 share, auto s"),
    at_least(
        200_000, "ingest of 20 million messages", "rows/s", "feedback_ingest", HEAD, "large.parquet llamarl rows/s"
    ),
    at_least(
        100_000,
        "of these, by processor time, which two cores need for it",
        "rows/s",
        "feedback_ingest",
        HEAD,
        "large.parquet llamarl rows/processor s",
    ),
    at_most(1.2, "of these, peak memory", "x that of 1 million", "feedback_ingest", HEAD, "peak of large / small"),
    at_most(10.0, "records of 512 tokens, in memory", "bytes a token", "record_size", HEAD, "512 arrays, memory"),
    at_most(10.0, "records of 512 tokens, pickled", "bytes a token", "record_size", HEAD, "512 arrays, pickled"),
    at_most(0.0, "13,000 requests to a detector, server errors", "", "detect_service", HEAD, "server errors"),
    at_most(0.0, "of these, answers other than the offline scores", "", "detect_service", HEAD, "wrong answers"),
    at_least(
        0.8, "claims per processor second of the service", "x offline", "detect_service", HEAD, "throughput of offline"
    ),
    at_least(
        0.8,
        "the same, where texts repeat each other's claims",
        "x offline",
        "detect_service",
        HEAD,
        "throughput of offline, repeated claims",
    ),
    at_most(
        64.0,
        "memory that the service gained meanwhile, its allocator's warm-up included",
        "MiB",
        "detect_service",
        HEAD,
        "MiB gained",
    ),
    at_most(2.0, "page of 10,000 steps, 1M completions", "processor s", "run_page", HEAD, "cold processor seconds"),
    at_most(200.0, "the same, memory of the page", "MB", "run_page", HEAD, "cold page MB"),
    at_most(1.2, "peak memory of the demo", "GB", "startup", HEAD, "demo peak GB"),
    at_most(0.3, "import llamarl", "s", "startup", HEAD, "import llamarl s"),
    at_most(0.3, "llamarl --help", "s", "startup", HEAD, "llamarl --help s"),
    at_most(0.0, "of these, programs that import torch", "", "startup", HEAD, "programs that import torch"),
)
"""Every target; the benchmark named by `file` measures it."""
