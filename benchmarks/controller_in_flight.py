"""What the controller costs with 10,000 groups in flight: a run whose executors only hold and release.

    python -m benchmarks.controller_in_flight [--groups 10000] [--steps 30]

Four generators hold 2,500 groups of 8 completions each, and give one back when the next comes; judge and trainer answer
at once. All of them run on threads of their own, and only the controller's thread is counted, in processor time, which
other work on the machine hardly changes. Memory is what the process takes in the end beyond what it took before,
records of 10,000 groups included. A step has 1,000 groups, so the run is up to eleven policy versions deep.
"""

import asyncio
import math
import resource
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import Benchmark, spread
from benchmarks.controller_overhead import (
    CALL_SECONDS,
    GROUP_SIZE,
    LENGTH,
    PROMPT_LENGTH,
    IdleGenerator,
    IdleJudge,
    IdleTrainer,
)
from llamarl.algorithms import AIPOConfig
from llamarl.controller.clients import JudgesClient, TrainerClient
from llamarl.controller.generators import GeneratorPool
from llamarl.controller.guard import CollapseGuard, GuardConfig
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller
from llamarl.controller.pulse import Pulse
from llamarl.controller.reporter import Reporter
from llamarl.controller.restarts import RestartBudget
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.core.records import Completion, GenerationRequest, Prompt, Trajectory
from llamarl.core.sampling import Sampling
from llamarl.engine import InProcessEngine

NUM_GENERATORS = 4


class HoldingGenerator(IdleGenerator):
    """Finishes its oldest requests once it holds more than so many, and all when nothing new comes.

    Args:
        num_held: requests that stay under way.
    """

    def __init__(self, num_held: int) -> None:
        self._num_held = num_held

    def setup(self) -> None:
        """Holds nothing."""
        super().setup()
        self._held: deque[GenerationRequest] = deque()

    async def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests, and finishes the oldest in their place."""
        self._held.extend(requests)
        self._release(self._num_held)

    async def collect(self, timeout_seconds: float) -> list[tuple[int, tuple[Completion, ...]]]:
        """What is finished."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await super().collect(timeout_seconds)
        except TimeoutError:
            self._release(0)  # the run's last groups
            return []

    def _release(self, num_held: int) -> None:
        while len(self._held) > num_held:
            request = self._held.popleft()
            versions = (self._version,) * LENGTH
            trajectory = Trajectory.sampled(request.prompt_ids, (5,) * LENGTH, (-0.5,) * LENGTH, versions)
            answer = Completion(trajectory, "x" * LENGTH)
            self._finished.append((request.key, (answer,) * len(request.seeds)))
            self._any.set()


async def run(reporter: Reporter, ledger: Ledger, groups: int, steps: int) -> tuple[float, float, int]:
    """Processor and wall seconds of the controller, and the most groups that were issued and not yet trained."""
    engine, pulse, budget, per_step = InProcessEngine(), Pulse(), RestartBudget(0), groups // 10
    schedule = Schedule(
        steps=steps, prompts_per_step=per_step, samples_per_prompt=GROUP_SIZE, max_staleness=10, checkpoint_every=0
    )
    prompts = (Prompt(f"p{i}", ({"role": "user", "content": "a prompt"},)) for i in range(steps * per_step))
    judges = JudgesClient(
        "judge",
        partial(engine.spawn, IdleJudge, name="judge"),
        budget,
        reporter,
        CALL_SECONDS,
        judge_seconds=CALL_SECONDS,
    )
    capacity = groups // NUM_GENERATORS
    try:
        trainer = await engine.spawn(IdleTrainer, name="trainer")
        controller = Controller(
            schedule=schedule,
            tasks=[RunTask("idle", ((0, prompt) for prompt in prompts), AIPOConfig(), per_step, GROUP_SIZE)],
            encode=lambda prompt: (7,) * PROMPT_LENGTH,
            sampling=Sampling(max_tokens=LENGTH),
            trainer=TrainerClient(trainer, reporter, CALL_SECONDS),
            judges=await judges.start(),
            pool=GeneratorPool(
                lambda name: engine.spawn(partial(HoldingGenerator, capacity - 1), name=name),
                [f"generator-{i}" for i in range(NUM_GENERATORS)],
                capacity=capacity,
                pulse=pulse,
                call_seconds=CALL_SECONDS,
                budget=budget,
                observer=reporter,
            ),
            ledger=ledger,
            observer=reporter,
            guard=CollapseGuard(GuardConfig()),
            pulse=pulse,
        )
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, ledger.counts()["issued"] - ledger.counts()["trained"])
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        processor, wall = time.thread_time(), time.monotonic()
        await controller.run()
        seconds = time.thread_time() - processor, time.monotonic() - wall
        watching.cancel()
        return *seconds, most
    finally:
        await engine.close()


def measure(groups: int, steps: int) -> dict[str, float]:
    """One run in a run directory, with everything that a run writes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        reporter = Reporter(Path(folder), ledger, steps)
        try:
            processor, wall, most = asyncio.run(run(reporter, ledger, groups, steps))
        finally:
            reporter.close()
    samples = steps * (groups // 10) * GROUP_SIZE
    gained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "groups in flight": most,
        "core-ms a 100 samples": 1000 * processor / samples * 100,
        "samples/s": samples / wall,
        "MiB": gained / 1024,
    }


def main() -> None:
    # Processor time hardly depends on who else works here; what does, the samples per second, is marked so.
    benchmark = Benchmark("controller_in_flight", __doc__, repeats=3, quick_repeats=1, max_load=math.inf)
    benchmark.parser.add_argument("--groups", type=int, help="in flight (default 10,000)")
    benchmark.parser.add_argument("--steps", type=int, help="of a run (default 30)")
    options = benchmark.start()
    groups, steps = options.groups or (1000 if options.quick else 10_000), options.steps or 30
    runs = []
    for index in range(options.repeats):
        runs.append(measure(groups, steps))
        benchmark.note(f"round {index + 1}")
    first = runs[0]  # whose memory is new; later rounds find it taken
    cost = spread([each["core-ms a 100 samples"] for each in runs])
    row = {
        "groups": groups,
        "most in flight": int(min(each["groups in flight"] for each in runs)),
        "core-ms a 100 samples": cost,
        "samples/s, of this machine as busy as it was": spread([each["samples/s"] for each in runs], 0),
        "MiB": round(first["MiB"], 1),
    }
    headlines = {
        "core-seconds a 100 samples": round(cost["median"] / 1000, 5),
        "most in flight": row["most in flight"],
        "MiB": row["MiB"],
    }
    benchmark.finish([row], headlines)


if __name__ == "__main__":
    main()
