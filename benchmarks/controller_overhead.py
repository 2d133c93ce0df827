"""What the controller itself costs a step: a run whose executors do nothing.

    python -m benchmarks.controller_overhead [--steps 200] [--engines inprocess monarch]

16 groups of 8 completions of 20 tokens a step, synchronous (`max_staleness = 0`), so nothing overlaps: the wall time of
a step is the controller's, the ledger's and the engine's calls. `bare` keeps the ledger in memory and tells nobody;
`full` is what a run does: ledger, metrics, rollouts and timeline in a run directory. The share is of a 0.17 s step.
"""

import asyncio
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.common import Benchmark, spread, take_turns
from llamarl.algorithms import AIPOConfig
from llamarl.controller.clients import JudgesClient, TrainerClient
from llamarl.controller.generators import GeneratorPool
from llamarl.controller.guard import CollapseGuard, GuardConfig
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller
from llamarl.controller.observer import StepRecord
from llamarl.controller.pulse import Pulse
from llamarl.controller.reporter import Reporter
from llamarl.controller.restarts import RestartBudget
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.core.group_judge import GroupJudge
from llamarl.core.protocols import Executor
from llamarl.core.records import (
    Assignment,
    Completion,
    GenerationRequest,
    Prompt,
    Sample,
    StepResult,
    Trajectory,
    Verdict,
    WeightManifest,
    WeightProof,
)
from llamarl.core.sampling import Sampling
from llamarl.engine import build_engine
from llamarl.testing import RecordingObserver

STEP_SECONDS = 0.17
CALL_SECONDS = 60.0
NUM_GROUPS, GROUP_SIZE, LENGTH, PROMPT_LENGTH = 16, 8, 20, 30
WARM_UP = 20
"""Steps that are not counted."""


class IdleGenerator(Executor):
    """Every completion is there as soon as it is asked for."""

    def setup(self) -> None:
        """Nothing is finished."""
        self._finished: list[tuple[int, tuple[Completion, ...]]] = []
        self._any, self._version = asyncio.Event(), 0

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Finishes all of them."""
        versions = (self._version,) * LENGTH
        for r in requests:
            trajectory = Trajectory.sampled(r.prompt_ids, (5,) * LENGTH, (-0.5,) * LENGTH, versions)
            answer = Completion(trajectory, "x" * LENGTH)
            self._finished.append((r.key, (answer,) * len(r.seeds)))
        self._any.set()

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Completion, ...]]]:
        """What was asked for."""
        await self._any.wait()
        self._any.clear()
        finished, self._finished = self._finished, []
        return finished

    async def update_weights(self, manifest: WeightManifest) -> WeightProof:
        """Takes the number."""
        self._version = manifest.version
        return WeightProof(manifest.version, 0.0, 0, 0.0)


class IdleTrainer(Executor):
    """Counts versions."""

    version = 0

    def train(
        self, assignments: Sequence[Assignment], watched_groups: Sequence[int], weights: Sequence[float]
    ) -> StepResult:
        """One more."""
        self.version += 1
        metrics = {"train/loss": 0.0, "train/grad_norm": 1.0}
        return StepResult(self.version, metrics, task_metrics=(metrics,) * len(assignments))

    def publish(self) -> WeightManifest:
        """No weights."""
        return WeightManifest(self.version, {})


class IdleJudge(GroupJudge):
    """Odd samples are right."""

    async def judge_group(self, prompt: Prompt, completions: Sequence[Completion], task: str) -> tuple[Sample, ...]:
        """One sample per completion."""
        return tuple(Sample(c, {"idle": Verdict.scored(i % 2)}, float(i % 2)) for i, c in enumerate(completions))


class Timed:
    """Notes when each step was over."""

    def on_step(self, record: StepRecord) -> None:
        """Also what the other base does."""
        super().on_step(record)  # type: ignore[misc]
        vars(self).setdefault("times", []).append(time.perf_counter())


class TimedReporter(Timed, Reporter):
    """A run directory."""


class TimedSilence(Timed, RecordingObserver):
    """A list in memory."""


async def run(engine_name: str, observer: TimedReporter | TimedSilence, ledger: Ledger, steps: int) -> None:
    """One run on executors that do nothing."""
    engine = build_engine(engine_name)
    schedule = Schedule(
        steps=steps, prompts_per_step=NUM_GROUPS, samples_per_prompt=GROUP_SIZE, max_staleness=0, checkpoint_every=0
    )
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": "a prompt"},)) for i in range(steps * NUM_GROUPS)]
    pulse, budget = Pulse(), RestartBudget(0)
    spawn_judge = partial(engine.spawn, IdleJudge, name="judge")
    judges = JudgesClient("judge", spawn_judge, budget, observer, CALL_SECONDS, judge_seconds=CALL_SECONDS)
    try:
        trainer = await engine.spawn(IdleTrainer, name="trainer")
        controller = Controller(
            schedule=schedule,
            tasks=[RunTask("idle", ((0, prompt) for prompt in prompts), AIPOConfig(), NUM_GROUPS, GROUP_SIZE)],
            encode=lambda prompt: (7,) * PROMPT_LENGTH,
            sampling=Sampling(max_tokens=LENGTH),
            trainer=TrainerClient(trainer, observer, CALL_SECONDS),
            judges=await judges.start(),
            pool=GeneratorPool(
                lambda name: engine.spawn(IdleGenerator, name=name),
                ["generator-0"],
                capacity=NUM_GROUPS + NUM_GROUPS // 2,
                pulse=pulse,
                call_seconds=CALL_SECONDS,
                budget=budget,
                observer=observer,
            ),
            ledger=ledger,
            observer=observer,
            guard=CollapseGuard(GuardConfig()),
            pulse=pulse,
        )
        await controller.run()
    finally:
        await engine.close()


def milliseconds(engine_name: str, is_full: bool, steps: int) -> float:
    """Median wall time of a step."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ledger = stack.enter_context(Ledger(directory / "ledger.sqlite" if is_full else ":memory:"))
        observer = TimedReporter(directory, ledger, WARM_UP + steps) if is_full else TimedSilence()
        if isinstance(observer, TimedReporter):
            stack.callback(observer.close)
        asyncio.run(run(engine_name, observer, ledger, WARM_UP + steps))
    times: list[float] = vars(observer)["times"][WARM_UP:]
    return 1000 * statistics.median(b - a for a, b in pairwise(times))


def main() -> None:
    benchmark = Benchmark("controller_overhead", __doc__, repeats=5)
    installed = ["inprocess", *(["monarch"] if importlib.util.find_spec("monarch") else [])]
    benchmark.parser.add_argument("--engines", nargs="+", default=installed, choices=["inprocess", "monarch"])
    benchmark.parser.add_argument("--steps", type=int, help="counted steps of a run (default 200)")
    options = benchmark.start()
    steps = options.steps or (30 if options.quick else 200)
    runs: dict[str, Callable[[], float]] = {}
    for engine_name in options.engines:
        for kind in ("bare", "full"):
            runs[f"{engine_name} {kind}"] = partial(milliseconds, engine_name, kind == "full", steps)
    results = take_turns(runs, options.repeats, 1, lambda index: benchmark.note(f"round {index}"))
    rows = [
        {
            "run": name,
            "ms a step": spread(values),
            "share of 0.17 s": f"{statistics.median(values) / 1000 / STEP_SECONDS:.1%}",
        }
        for name, values in results.items()
    ]
    headlines = {f"{name} ms": round(statistics.median(values), 3) for name, values in results.items()}
    if "inprocess full" in results:
        share = statistics.median(results["inprocess full"]) / 1000 / STEP_SECONDS
        headlines["inprocess full share"] = round(share, 4)
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
