import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory, Verdict
from llamarl.report.environment import environment_record
from llamarl.report.files import write_json
from llamarl.report.metrics import JsonlSink
from llamarl.report.rollouts import RolloutLog
from llamarl.report.summary import RunSummary, write_summary
from llamarl.report.timeline import Timeline

START = 1_767_225_600.0


def _sample(text: str, passed: bool, versions: tuple[int, ...] = (0, 0, 1), reason: str = "") -> Sample:
    size = len(versions)
    trajectory = Trajectory.sampled((1, 2), tuple(range(10, 10 + size)), (-0.5,) * size, versions)
    completion = Completion(trajectory, text)
    verdict = Verdict.scored(float(passed), passed=passed, reason=reason)
    return Sample(completion, {"format": verdict}, reward=float(passed))


def _group(prompt_id: str, samples: tuple[Sample, ...], index: int = 0) -> Group:
    messages = ({"role": "user", "content": f"Write four words ({prompt_id})."},)
    return Group(Prompt(id=prompt_id, messages=messages, task="words"), samples, index)


def write_metrics(run_dir: Path, steps: int) -> None:
    draw = random.Random(0)
    sink = JsonlSink(run_dir / "metrics.jsonl", clock=iter(START + 0.7 * step for step in range(steps + 1)).__next__)
    for step in range(1, steps + 1):
        sink.write(
            step,
            {
                "policy_version": step,
                "rollout/reward/mean": 0.17 + 0.75 * (1 - math.exp(-step / 40)) + draw.gauss(0, 0.04),
                "rollout/reward/count": 128,
                "rollout/staleness/mean": 0.7 + 0.2 * draw.random(),
                "rollout/staleness/max": draw.choice((1, 2)),
                "rollout/response_len/mean": 18 + 4 * math.sin(step / 20),
                "rollout/response_len/max": 64,
                "rollout/truncated_frac": 0.02,
                "rollout/frac_zero_std": 0.1,
                "perf/tokens_per_second": 10_000 + draw.gauss(0, 400),
                "judge/format/mean": 0.5,
                "judge/format/pass_rate": 0.5,
                "judge/format/error_rate": 0.0,
                "train/grad_norm": 0.8 + 0.1 * draw.random(),
                "train/entropy": 1.2,
                "train/mismatch_kl": 1e-6 * (1 + draw.random()),
                "train/mismatch_prob_max": 2e-5 * (1 + draw.random()),
                "time/step": 0.7,
                "time/sync": 0.003,
                **({"eval/reward/mean": 0.2 + step / 300} if step % 50 == 0 else {}),
            },
        )
    sink.close()


def write_timeline(run_dir: Path, steps: int) -> None:
    timeline = Timeline(run_dir / "timeline.jsonl")
    for step in range(steps):
        start = START + 0.7 * step
        timeline.record("generator-0", "decode", start, start + 0.6)
        timeline.record("generator-0", "weights", start + 0.6, start + 0.62)
        timeline.record("judge", "judge", start + 0.3, start + 0.35)
        timeline.record("judge", "judge", start + 0.33, start + 0.4)
        timeline.record("trainer", "wait", start, start + 0.2)
        timeline.record("trainer", "train", start + 0.2, start + 0.65)
        timeline.record("trainer", "publish", start + 0.65, start + 0.7)
    timeline.close()


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    return _sample


@pytest.fixture
def make_group() -> Callable[..., Group]:
    return _group


@pytest.fixture
def example_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory with this package's own writers; without a summary it is one that crashed."""

    def write(steps: int = 60, is_finished: bool = True) -> Path:
        run_dir = tmp_path / "demo"
        write_json(
            run_dir / "recipe.json",
            {
                "name": "demo",
                "seed": 0,
                "model": {"path": "tiny", "dtype": "float32"},
                "algorithm": {"type": "aipo", "clip": 2.0},
                "schedule": {"steps": steps, "max_staleness": 2},
            },
        )
        write_json(run_dir / "environment.json", environment_record())
        write_metrics(run_dir, steps)
        write_timeline(run_dir, steps)
        log = RolloutLog(run_dir / "rollouts.jsonl", every=10, per_step=1)
        for step in range(1, steps + 1):
            versions = (max(0, step - 2), step - 1)
            samples = (
                _sample("cat dog sun sky", True, versions),
                _sample("cat cat", False, versions, reason="2 words, wanted 4"),
            )
            log.write(step, step, [_group(f"p{step}", samples)])
        log.close()
        if is_finished:
            summary = RunSummary(
                steps=steps, version=steps, seconds=0.7 * steps, reward_before=0.17, reward_after=0.91,
                tokens_generated=420_000, tokens_per_second=10_000.0, staleness_max=2, mismatch_max=4e-5,
                weight_sync_seconds_median=0.003, prompts_issued=980, prompts_trained=960, prompts_dropped=16,
                prompts_failed=4, peak_memory_bytes=812 * 2**20,
            )  # fmt: skip
            write_summary(run_dir, summary)
        return run_dir

    return write
