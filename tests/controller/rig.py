"""A run on scripted executors, for tests of the loop."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamarl.controller.clients import JudgesClient, ScorerClient, TrainerClient
from llamarl.controller.evaluation import Evaluation
from llamarl.controller.generators import GeneratorPool
from llamarl.controller.guard import CollapseGuard, GuardConfig
from llamarl.controller.ledger import Ledger
from llamarl.controller.loop import Controller
from llamarl.controller.pulse import Pulse
from llamarl.controller.restarts import RestartBudget
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.core.algorithm import Algorithm, Credit, Needs
from llamarl.core.protocols import Executor
from llamarl.core.records import Assignment, Group, Prompt, TrainSample, Trajectory
from llamarl.core.sampling import Sampling
from llamarl.testing import DirectEngine, RecordingObserver, ScriptedGenerator, ScriptedJudge, ScriptedTrainer

PROMPTS = [Prompt(id=f"p{i}", messages=({"role": "user", "content": str(i)},)) for i in range(40)]


class PassRewards(Credit):
    """Takes each reward for the advantage."""

    def assign(self, groups: Sequence[Group]) -> Assignment:
        samples = (
            TrainSample(s.completion.trajectory, s.reward, group=g.index)
            for g in groups
            for s in g.samples
            if s.reward is not None
        )
        return Assignment(tuple(samples), len(groups), {"groups": len(groups)})


class ScriptedAlgorithm(Algorithm):
    """Has the needs and the controller's half that a test gives it."""

    def __init__(self, credit: Callable[[], Credit] = PassRewards, **needs: Any) -> None:
        self._credit, self._needs = credit, Needs(corrects_staleness=True, **needs)

    @property
    def needs(self) -> Needs:
        return self._needs

    def credit(self) -> Credit:
        return self._credit()

    def loss(self) -> Callable[[Any], Any]:
        raise AssertionError("the trainer's half; the controller never builds it")


class ScriptedReference(Executor):
    """Says -1 of every token; keeps the rows that it was asked about."""

    def __init__(self) -> None:
        self.rows: list[Trajectory] = []

    async def logprobs(self, rows: list[Trajectory]) -> list[tuple[float, ...]]:
        self.rows += rows
        return [(-1.0,) * row.response_length for row in rows]


@dataclass
class Rig:
    """A run on scripted executors, with whatever a test wants to look at afterwards."""

    schedule: Schedule
    generator: Callable[[], ScriptedGenerator] = ScriptedGenerator
    judge: ScriptedJudge = field(default_factory=ScriptedJudge)
    trainer: ScriptedTrainer = field(default_factory=ScriptedTrainer)
    num_generators: int = 1
    prompts: list[Prompt] = field(default_factory=lambda: PROMPTS)
    algorithm: Algorithm = field(default_factory=ScriptedAlgorithm)
    tasks: list[RunTask] = field(default_factory=list)
    reference: ScriptedReference | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    capacity: int = 8
    ledger: Ledger = field(default_factory=lambda: Ledger(":memory:"))
    observer: RecordingObserver = field(default_factory=RecordingObserver)
    engine: DirectEngine = field(default_factory=DirectEngine)
    saved: list[int] = field(default_factory=list)

    async def run(self, evaluation: Evaluation | None = None) -> None:
        pulse, self.budget = Pulse(), RestartBudget(self.schedule.max_restarts)
        pool = GeneratorPool(
            lambda name: self.engine.spawn(self.generator, name=name),
            [f"generator-{i}" for i in range(self.num_generators)],
            capacity=self.capacity,
            pulse=pulse,
            call_seconds=self.schedule.call_seconds,
            budget=self.budget,
            observer=self.observer,
        )

        async def save(version: int, reward: float) -> None:
            self.saved.append(version)

        shared = (self.budget, self.observer, self.schedule.call_seconds)
        trainer = await self.engine.spawn(lambda: self.trainer, name="trainer")
        judges = JudgesClient(
            "judge",
            lambda: self.engine.spawn(lambda: self.judge, name="judge"),
            *shared,
            judge_seconds=self.schedule.judge_seconds,
        )
        scorer = ScorerClient("reference", lambda: self.engine.spawn(lambda: self.reference, name="reference"), *shared)
        self.controller = Controller(
            schedule=self.schedule,
            tasks=self.tasks or [self.only_task()],
            encode=lambda prompt: (int(prompt.messages[0]["content"]),),
            sampling=Sampling(max_tokens=8),
            trainer=TrainerClient(trainer, self.observer, self.schedule.call_seconds),
            judges=await judges.start(),
            scorer=self.reference and await scorer.start(),
            pool=pool,
            ledger=self.ledger,
            observer=self.observer,
            guard=CollapseGuard(self.guard),
            pulse=pulse,
            seed=1,
        )
        await self.controller.run(evaluation, save)

    def only_task(self) -> RunTask:
        size, samples = self.schedule.prompts_per_step, self.schedule.samples_per_prompt
        return RunTask("only", iter([(0, prompt) for prompt in self.prompts]), self.algorithm, size, samples)

    def trained(self) -> list[str]:
        return [group.prompt.id for record in self.observer.steps for group in record.groups]

    def drop_reasons(self) -> Counter[str]:
        return Counter(reason for _, reason in self.observer.groups if reason)

    def staleness(self) -> list[int]:
        return [int(record.metrics["rollout/staleness/max"]) for record in self.observer.steps]


def small(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 5, "prompts_per_step": 4, "samples_per_prompt": 2, "checkpoint_every": 2, **changes})
